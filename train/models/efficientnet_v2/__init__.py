"""EfficientNetV2 (Tan & Le, 2021): inverted bottlenecks, in the first stages fused into full convolutions.

A block widens its channels `expansion` times and narrows them again without an activation; where shapes allow it is
added to its input, with stochastic depth that grows linearly with the block's place. Behind each depthwise convolution
squeeze-excitation weighs the channels, through a quarter of the block's *input* channels. SiLU throughout; batch norm's
epsilon is 1e-3. Names are torchvision's: `features.0.0`, `features.4.0.block.2.fc1`, `classifier.1`.
"""
