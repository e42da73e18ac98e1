"""The load generator: what it sends, when, and what it records of each request. Locust runs it in its own processes."""
