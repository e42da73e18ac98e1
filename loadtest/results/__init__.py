"""The results of a run: its records reduced, rows with flags, comparisons, writers, and their verification."""
