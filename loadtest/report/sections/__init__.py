"""The sections of the report, one file each: its tables and its figures."""
