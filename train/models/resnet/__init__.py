"""Residual networks (He et al., 2016): a 7x7 stem, four stages of blocks with shortcuts, global average, a linear head.

A block is two 3x3 convolutions, or where it expands its width 1x1, 3x3, 1x1. The stride of a stage lies on the first
block's 3x3 (v1.5, as most have it today) or, in a block of three and with `stride_first`, on its first 1x1 (the
original). Names are torchvision's: `layer1.0.conv1`, `layer1.0.downsample.0`, `fc`.
"""
