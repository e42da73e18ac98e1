"""One file per framework: `plain(network, images, labels, recipe) -> epoch`, the usual training loop of its users.

`epoch()` trains for one epoch on uint8 (N, H, W, C) `images` and int64 (N,) `labels`, in random batches without
augmentation, and returns the mean loss.
"""
