"""One file a framework: REQUIRES (modules) and `create(architecture, classes, recipe, learning_rates) -> Trainer`.

What all trainers share is not here but in `train.loop`: batches, augmentation, epochs, scores, checkpoints. A trainer
knows one step and one prediction. The loss is the mean cross-entropy with label smoothing; the optimiser is AdamW with
betas 0.9 and 0.999, epsilon 1e-8 outside the bias correction, decoupled decay times the rate of the step, none on batch
norm and biases.
"""

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Trainer(Protocol):
    """One network in training."""

    parameters: int
    """Trainable numbers."""

    def step(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
        """One optimiser step on uint8 (N, H, W, C) images at the next rate of `learning_rates`. Returns the loss."""

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities, float32 (N, classes), in evaluation mode."""

    def save(self, folder: Path) -> None:
        """Write `weights.safetensors` (canonical) and `resume.safetensors` (optimiser state, step) into `folder`."""

    def restore(self, folder: Path) -> None:
        """Go on from what `save` wrote; the next step gives what it would have given without the interruption."""
