"""`python -m train.benchmark`: images per second of `train.loop` and of the usual training loop of each framework.

Both train the same network on the same images, in one process and in alternating epochs, so that disturbances of the
machine affect both. `train.loop` augments the images; the plain loop does not. Neither evaluates.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import typer
from scipy.special import stdtrit

from medserve import errors, plugins
from medserve.errors import CannotRun
from medserve.spec import Recipe
from medserve.tables import ARCHITECTURES, pick
from train import data, loop
from train.batches import batches

TARGET = 0.95


class LoopComparison(NamedTuple):
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

    def both(turn: int) -> tuple[float, float]:
        # In alternating order: the second loop starts with the processor caches that the first one filled.
        if turn % 2:
            return _seconds(partial(ours, turn)), _seconds(epoch)
        plain = _seconds(epoch)
        return _seconds(partial(ours, turn)), plain

    seconds = [both(turn) for turn in range(turns + 1)][1:]
    logs = [log(plain / mine) for mine, plain in seconds]
    half = float(stdtrit(turns - 1, 0.975)) * stdev(logs) / sqrt(turns)
    images_per_turn = steps * recipe.batch
    return LoopComparison(
        framework,
        images_per_turn / fmean(mine for mine, _ in seconds),
        images_per_turn / fmean(plain for _, plain in seconds),
        exp(fmean(logs)),
        exp(fmean(logs) - half),
        exp(fmean(logs) + half),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(
    framework: Annotated[str | None, typer.Option(help="Compare this framework only, in this process.")] = None,
    size: Annotated[int, typer.Option(help="Height and width of the drawn images.")] = 28,
    architecture: Annotated[str, typer.Option(help="The network to train.")] = "cnn",
    turns: Annotated[int, typer.Option(min=3, help="Epochs per loop.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare this program's training loop with a plain one, in every framework that is installed."""
    if framework is not None:
        print(msgspec.json.encode(compare(framework, size, architecture, turns)._asdict()).decode())
        return
    comparisons = []
    for name in plugins.names("train.frameworks"):
        if plugins.missing("train.frameworks", name):
            continue
        # Two frameworks never share a process.
        arguments = ["-m", "train.benchmark", "--framework", name, "--size", str(size), "--architecture", architecture]
        done = subprocess.run(
            [sys.executable, *arguments, "--turns", str(turns)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise CannotRun(f"{name}: the comparison ended with exit code {done.returncode}")
        comparisons.append(LoopComparison(**msgspec.json.decode(done.stdout.splitlines()[-1])))
    if json:
        print(msgspec.json.encode([comparison._asdict() for comparison in comparisons]).decode())
        return
    print(f"{'framework':<12} {'images/s':>10} {'plain loop':>12} {'ratio':>8} {'95 %':>16}  (target: above {TARGET})")
    for name, ours, plain, ratio, low, high in comparisons:
        interval = f"{low:.3f} to {high:.3f}"
        print(f"{name:<12} {ours:>10,.0f} {plain:>12,.0f} {ratio:>8.3f} {interval:>16}")


if __name__ == "__main__":
    errors.main(lambda: typer.run(main))
