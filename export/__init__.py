"""Checkpoints in, artifacts out, each with a certificate that it is the same function."""

import os

# Keras reads it when it is imported, which no module here does before this one.
os.environ["KERAS_BACKEND"] = "tensorflow"
