"""Training: data sets in, checkpoints out, with the same recipe in every framework."""

import os

# Keras reads it when it is imported, which no module here does before this one.
os.environ["KERAS_BACKEND"] = "tensorflow"
