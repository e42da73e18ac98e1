"""Benchmarks of this project's own tools: load generator, statistics, report, wrapper; against targets and others."""
