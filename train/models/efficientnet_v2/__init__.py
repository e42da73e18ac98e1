"""EfficientNetV2 (Tan & Le, 2021): inverted bottlenecks, in the first stages fused into full convolutions.

A block expands its channels by the factor `expansion` and projects them back without an activation. If input and output
have the same shape, the block is residual, with stochastic depth whose rate grows linearly with the index of the block.
Squeeze-and-excitation follows each depthwise convolution, with a quarter of the block's *input* channels. All
activations are SiLU; batch norm's epsilon is 1e-3. Names are torchvision's: `features.0.0`,
`features.4.0.block.2.fc1`, `classifier.1`.
"""
