"""`python -m train.benchmark`: images per second of `train.loop` and of the usual training loop of each framework.

Both train the same network on the same images, in one process and in alternating epochs, so that disturbances of the
machine affect both. `train.loop` augments the images; the plain loop does not. Neither evaluates.
"""

import time
from functools import partial
from typing import Annotated

import msgspec
import numpy as np
import typer
from scipy.stats import ttest_1samp

from medserve import errors, plugins, stage
from medserve.models import Recipe
from medserve.tables import ARCHITECTURES, pick
from train import data, loop
from train.batches import batches

TARGET = 0.95


class LoopComparison(msgspec.Struct, frozen=True):
    """Images per second of `train.loop` and of the plain loop; their ratio with its 95 % interval over the turns."""

    framework: str
    ours: float
    plain: float
    ratio: float
    low: float
    high: float


def compare(framework: str, size: int, architecture: str, turns: int) -> LoopComparison:
    """Time both loops in turns. The first turn of each compiles and does not count."""
    network = pick(ARCHITECTURES, "architecture", architecture)
    opened = data.open_dataset("synthetic", size)
    recipe = Recipe(epochs=turns + 1)
    # A copy: users have their images in memory, not in a mapped file.
    images, labels = np.array(opened.images("train")), opened.labels("train")
    steps = len(labels) // recipe.batch
    rates = loop.learning_rates(recipe, recipe.epochs * steps)
    trainer = plugins.load("train.frameworks", framework).create(network, len(opened.classes), recipe, rates)
    build = plugins.load(f"train.models.{network.family}", framework).build
    epoch = plugins.load("train.benchmark", framework).plain(
        build(network, len(opened.classes)), images, labels, recipe
    )

    def ours(turn: int) -> None:
        for batch, targets in batches(opened, recipe, turn):
            trainer.step(batch, targets)

    seconds = np.empty((turns + 1, 2))
    for turn in range(turns + 1):
        loops = (partial(ours, turn), epoch)
        # In alternating order: the second loop starts with the processor caches that the first one filled.
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            loops[which]()
            seconds[turn, which] = time.perf_counter() - start
    mine, plain = seconds[1:].T
    logs = np.log(plain / mine)
    low, high = ttest_1samp(logs, 0).confidence_interval(0.95)
    images_per_turn = steps * recipe.batch
    figures = (images_per_turn / mine.mean(), images_per_turn / plain.mean(), *np.exp((logs.mean(), low, high)))
    return LoopComparison(framework, *map(float, figures))


def main(
    framework: Annotated[str | None, typer.Option(help="Compare this framework only, in this process.")] = None,
    size: Annotated[int, typer.Option(help="Height and width of the drawn images.")] = 28,
    architecture: Annotated[str, typer.Option(help="The network to train.")] = "cnn",
    turns: Annotated[int, typer.Option(min=3, help="Epochs per loop.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare this program's training loop with a plain one, in every framework that is installed."""
    if framework is not None:
        print(msgspec.json.encode(compare(framework, size, architecture, turns)).decode())
        return
    comparisons = []
    for name in plugins.names("train.frameworks"):
        if plugins.missing("train.frameworks", name):
            continue
        # Two frameworks never share a process.
        words = ["--framework", name, "--size", str(size), "--architecture", architecture, "--turns", str(turns)]
        done = stage.ask(["-m", "train.benchmark", *words])
        comparisons.append(msgspec.json.decode(done.splitlines()[-1], type=LoopComparison))
    if json:
        print(msgspec.json.encode(comparisons).decode())
        return
    print(f"{'framework':<12} {'images/s':>10} {'plain loop':>12} {'ratio':>8} {'95 %':>16}  (target: above {TARGET})")
    for one in comparisons:
        interval = f"{one.low:.3f} to {one.high:.3f}"
        print(f"{one.framework:<12} {one.ours:>10,.0f} {one.plain:>12,.0f} {one.ratio:>8.3f} {interval:>16}")


if __name__ == "__main__":
    errors.main(lambda: typer.run(main))
