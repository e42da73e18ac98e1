"""Stages of 3x3 convolutions with batch norm, max pooling between them, global average, one linear head."""
