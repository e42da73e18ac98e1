"""One folder a family of networks; in it one file a framework with `build(architecture, classes, seed)`, side by side.

A network takes uint8 (N, H, W, C) images and gives float32 logits (N, classes): normalisation and layout are inside, so
that training, export and serving share them. Initialisation is written out: He normal (fan out, that of a depthwise
kernel taken as PyTorch does: all channels) for convolutions, ones and zeros for batch norm, zeros for biases, normal of
deviation 0.01 and zeros for the head. Batch norm: epsilon 1e-5 (EfficientNetV2: 1e-3), a tenth of each batch into the
running statistics, the running variance unbiased. Padding is explicit. Drop-out and stochastic depth scale up what they
leave, and are off in evaluation; their masks are each framework's own, so the frameworks are equal in expectation only.

`layers` holds what the families share in a framework. `canonical` translates a network's weights to the interchange
form and back: PyTorch's names and layouts.
"""
