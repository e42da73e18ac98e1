"""The vocabulary of medserve: nouns, tables, store, wire, clock. Knows no stage and no framework."""

__version__ = "0.2.0"
