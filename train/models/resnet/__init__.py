"""Residual networks (He et al., 2016): a 7x7 stem, four stages of blocks with shortcuts, global average, a linear head.

A basic block has two 3x3 convolutions; a bottleneck block, with an expansion above 1, has 1x1, 3x3 and 1x1. The first
block of a stage has its stride in the first 3x3 convolution (v1.5, common today) or, in a bottleneck with
`stride_first`, in the first 1x1 (the original). Names are torchvision's: `layer1.0.conv1`, `layer1.0.downsample.0`,
`fc`.
"""
