"""Servers and runtimes in, raw samples out; and the functions of those samples."""
