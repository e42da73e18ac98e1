"""The plain loop in Keras: `fit`."""

from collections.abc import Callable
from functools import partial

import keras
import numpy as np
from numpy.typing import NDArray

from medserve.models import Recipe


def plain(
    network: keras.Model, images: NDArray[np.uint8], labels: NDArray[np.int64], recipe: Recipe
) -> Callable[[], object]:
    """See `train.benchmark`."""
    used = len(images) // recipe.batch * recipe.batch
    network.compile(
        keras.optimizers.AdamW(recipe.learning_rate, weight_decay=recipe.weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    return partial(network.fit, images[:used], labels[:used], batch_size=recipe.batch, shuffle=True, verbose=0)
