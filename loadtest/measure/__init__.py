"""Measures one launch: the server or the timer, the load generator beside it, and what the system did meanwhile."""
