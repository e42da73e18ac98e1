"""One file per framework: `plain(network, images, labels, recipe) -> epoch`, the usual training loop of its users.

`epoch()` trains for one epoch on uint8 (N, H, W, C) `images` and int64 (N,) `labels`, in random batches without
augmentation. Those of PyTorch and Flax read the loss of every step, as `train.loop` does.
"""
