"""`python -m train.benchmark`: images a second of this program's loop, beside the loop that a framework's users write.

Both train the same network on the same images in turns of one epoch, in one process, so that what the machine does
meanwhile meets both alike. This program's loop also augments; the plain one does not. Evaluation is in neither.
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


class Compared(NamedTuple):
    """Images a second of both loops, and the ratio of ours to the plain one with its 95 % interval over the turns."""

    framework: str
    ours: float
    plain: float
    ratio: float
    low: float
    high: float


def compare(framework: str, size: int, architecture: str, turns: int) -> Compared:
    """Both loops in turns, after one turn of each that is not counted: it compiles."""
    network = pick(ARCHITECTURES, "architecture", architecture)
    opened = data.open_dataset("synthetic", size)
    recipe = Recipe(epochs=turns + 1)
    # A copy, as users have it in memory, and not the mapped file.
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
        # In alternating order: who comes second finds the caches as the first one left them.
        if turn % 2:
            return _seconds(partial(ours, turn)), _seconds(epoch)
        plain = _seconds(epoch)
        return _seconds(partial(ours, turn)), plain

    seconds = [both(turn) for turn in range(turns + 1)][1:]
    logs = [log(plain / mine) for mine, plain in seconds]
    half = float(stdtrit(turns - 1, 0.975)) * stdev(logs) / sqrt(turns)
    shown = steps * recipe.batch
    return Compared(
        framework,
        shown / fmean(mine for mine, _ in seconds),
        shown / fmean(plain for _, plain in seconds),
        exp(fmean(logs)),
        exp(fmean(logs) - half),
        exp(fmean(logs) + half),
    )


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main(
    framework: Annotated[str | None, typer.Option(help="Only this one, in this process.")] = None,
    size: Annotated[int, typer.Option(help="Height and width of the drawn images.")] = 28,
    architecture: Annotated[str, typer.Option(help="The network.")] = "cnn",
    turns: Annotated[int, typer.Option(min=3, help="Epochs of each loop.")] = 8,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare this program's training loop with a plain one, in every framework that is installed."""
    if framework is not None:
        print(msgspec.json.encode(compare(framework, size, architecture, turns)._asdict()).decode())
        return
    found = []
    for name in plugins.names("train.frameworks"):
        if plugins.missing("train.frameworks", name):
            continue
        # Two frameworks never share a process.
        words = ["-m", "train.benchmark", "--framework", name, "--size", str(size), "--architecture", architecture]
        done = subprocess.run(
            [sys.executable, *words, "--turns", str(turns)], stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise CannotRun(f"{name}: the comparison ended with exit code {done.returncode}")
        found.append(Compared(**msgspec.json.decode(done.stdout.splitlines()[-1])))
    if json:
        print(msgspec.json.encode([one._asdict() for one in found]).decode())
        return
    print(f"{'framework':<12} {'images/s':>10} {'plain loop':>12} {'ratio':>8} {'95 %':>16}  (target: above {TARGET})")
    for one in found:
        interval = f"{one.low:.3f} to {one.high:.3f}"
        print(f"{one.framework:<12} {one.ours:>10,.0f} {one.plain:>12,.0f} {one.ratio:>8.3f} {interval:>16}")


if __name__ == "__main__":
    errors.main(lambda: typer.run(main))
