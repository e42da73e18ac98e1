"""The self-test of the load generator: servers with known delays and stalls, and what its records must show."""
