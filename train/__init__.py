"""Data in, checkpoints out: the same recipe in every framework."""
