"""Training: data sets in, checkpoints out, with the same recipe in every framework."""
