"""Checkpoints in, artifacts out, each with a certificate that it is the same function."""
