"""One file a framework: `plain(network, images, labels, recipe) -> epoch`, the loop that its users would write.

`epoch()` trains once over uint8 (N, H, W, C) `images` and int64 (N,) `labels` in random batches, without augmentation,
and returns the mean loss.
"""
