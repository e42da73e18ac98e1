"""One folder a family of networks; in it one file a framework with `build(architecture, classes, seed)`, side by side.

A network takes uint8 (N, H, W, C) images and gives float32 logits (N, classes): normalisation and layout are inside, so
that training, export and serving share them. Initialisation is written out: He normal (fan out) for convolutions, ones
and zeros for batch norm, normal of deviation 0.01 and zeros for the head. Batch norm: epsilon 1e-5, a tenth of each
batch into the running statistics, the running variance unbiased. Padding is explicit.

`canonical` translates a network's weights to the interchange form and back: PyTorch's names and layouts.
"""
