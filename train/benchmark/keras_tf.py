"""The plain loop in Keras: `fit`."""

from collections.abc import Callable

import keras
import numpy as np
from numpy.typing import NDArray

from medserve.spec import Recipe

REQUIRES = ("tensorflow", "keras")


def plain(
    network: keras.Model, images: NDArray[np.uint8], labels: NDArray[np.int64], recipe: Recipe
) -> Callable[[], float]:
    """See `train.benchmark`."""
    used = len(images) // recipe.batch * recipe.batch
    network.compile(
        keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def epoch() -> float:
        history = network.fit(images[:used], labels[:used], batch_size=recipe.batch, shuffle=True, verbose=0)
        return float(history.history["loss"][0])

    return epoch
