"""Artifacts in, HTTP out: one wrapper for all runtimes."""
