"""A small CNN: stages of 3x3 convolutions with batch norm, max pooling between stages, global average, linear head."""
