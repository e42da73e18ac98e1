"""Coverage of the statistics: intervals, flags and verdicts on simulated series whose truth is known.

Nothing is measured, so the machine may be busy; each line has a seed, so that its figure is the same on any machine.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from math import log
from typing import NamedTuple

import msgspec
import numpy as np
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

from loadtest.analysis import bimodality, compare, intervals, steady, within_launch
from loadtest.analysis.compare import MARGIN, Judged
from loadtest.benchmark import queues
from loadtest.benchmark.bench import Line
from loadtest.benchmark.queues import MS, SPREAD, Floats, generator_of

NAMES = {0.5: "p50", 0.9: "p90", 0.99: "p99"}
LAUNCHES = (3, 5)
EFFECT = 0.05
"""Standard deviation of the logarithm of a launch's effect on all its requests."""
NOISE = 0.02
"""The same of a launch's effect within its block, in families of pairs."""
DRIFT = 0.3
"""The same of a block's effect on all its launches."""


class Series(NamedTuple):
    """`draw(generator, count)` gives latencies (ns) in order of time, `quantile(p)` the truth (ns)."""

    draw: Callable[[np.random.Generator, int], Floats]
    quantile: Callable[[float], float]


def autoregressive(correlation: float) -> Series:
    """Lognormal around 1 ms; the logarithms are an AR(1) process, independent where `correlation` is 0."""

    def draw(generator: np.random.Generator, count: int) -> Floats:
        fresh = np.sqrt(1 - correlation**2)
        noise = generator.standard_normal(count) * fresh
        noise[0] /= fresh  # stationary from the first one on
        found: Floats = MS * np.exp(SPREAD * lfilter([1.0], [1.0, -correlation], noise))
        return found

    return Series(draw, lambda p: MS * float(np.exp(SPREAD * ndtri(p))))


def mixture(share: float, ratio: float, spread: float) -> Series:
    """Independent latencies: a `share` of them around `ratio` ms, the others around 1 ms."""

    def draw(generator: np.random.Generator, count: int) -> Floats:
        upper = generator.random(count) < share
        return np.asarray(MS * np.exp(spread * generator.standard_normal(count) + np.log(ratio) * upper))

    def below(logarithm: float) -> float:
        return float((1 - share) * ndtr(logarithm / spread) + share * ndtr((logarithm - np.log(ratio)) / spread))

    def quantile(p: float) -> float:
        ends = -6 * spread, np.log(ratio) + 6 * spread
        return MS * float(np.exp(brentq(lambda logarithm: below(logarithm) - p, *ends, xtol=1e-12)))

    return Series(draw, quantile)


def ramp(rise: float) -> Series:
    """Independent latencies around a level that rises by the share `rise`; they have no true percentile."""

    def draw(generator: np.random.Generator, count: int) -> Floats:
        level = np.linspace(0.0, np.log1p(rise), count)
        return np.asarray(MS * np.exp(level + SPREAD * generator.standard_normal(count)))

    return Series(draw, lambda _: np.nan)


def paired(
    generator: np.random.Generator, levels: Floats, launches: int, noise: float, drift: float
) -> list[dict[int, float]]:
    """One percentile of each deployment by block: its level, times the effect of the block, times noise."""
    blocks = generator.normal(0.0, drift, launches)
    logs = np.log(levels)[:, None] + blocks + generator.normal(0.0, noise, (len(levels), launches))
    return [dict(enumerate(np.exp(row).tolist())) for row in logs]


INDEPENDENT = autoregressive(0.0)

KINDS: dict[str, tuple[Series, dict[float, int]]] = {
    "independent": (INDEPENDENT, {0.5: 400, 0.9: 400, 0.99: 1000}),
    "two populations": (mixture(0.2, 2.0, 0.15), {0.5: 400, 0.9: 400, 0.99: 1000}),
    "AR(1) of 0.5": (autoregressive(0.5), {0.5: 4000, 0.9: 4000, 0.99: 4000}),
    "AR(1) of 0.9": (autoregressive(0.9), {0.5: 10_000, 0.9: 10_000, 0.99: 20_000}),
}
"""Requests of each series by percentile: an effective sample size of some 400, and more for p99."""


Interval = intervals.Interval | compare.Ratio


def measure(trials: int) -> Iterator[Line]:
    """All figures, in per cent of the trials."""
    for part in (_within, _launches, _pairs, _flags, queues.measure, _verdicts):
        yield from part(trials)
    yield from queues.theory(1000 * trials)


def _holds(part: str, name: str, trials: int, truth: float, draw: Callable[[np.random.Generator], Interval]) -> Line:
    """The share of intervals that contain the truth."""
    generator = generator_of(name)
    found = [draw(generator) for _ in range(trials)]
    ends = [(one.low, one.high) for one in found if one.low is not None and one.high is not None]
    below, above = (sum(truth < low for low, _ in ends), sum(truth > high for _, high in ends))
    note = f"{below} above the truth, {above} below it" + (f", {trials - len(ends)} without" * (len(ends) < trials))
    held = 100 * (1 - (below + above) / len(ends)) if ends else None
    return Line(part=part, name=name, value=held, unit="%", low=93, high=97, note=note)


def _within(trials: int) -> Iterator[Line]:
    for kind, (series, counts) in KINDS.items():
        for p, count in counts.items():
            draw = partial(_within_launch, series=series, p=p, count=count)
            name = f"{NAMES[p]}, {kind}, {count:,} requests"
            yield _holds("one launch", name, trials, series.quantile(p) / 1e6, draw)


def _within_launch(generator: np.random.Generator, series: Series, p: float, count: int) -> Interval:
    values = series.draw(generator, count)
    return within_launch.percentile_interval(values, np.sort(values), p)


def _launches(trials: int) -> Iterator[Line]:
    for count in LAUNCHES:
        for p, name in NAMES.items():
            draw = partial(_launched, p=p, count=count, skewed=False)
            yield _holds("launches", f"{name}, {count} launches", trials, INDEPENDENT.quantile(p) / 1e6, draw)
        name = f"p50, {count} launches, skewed effects"
        draw = partial(_launched, p=0.5, count=count, skewed=True)
        line = _holds("launches", name, trials, INDEPENDENT.quantile(0.5) / 1e6, draw)
        # Student's t guarantees nothing here: the figure shows what to expect.
        yield msgspec.structs.replace(line, low=None, high=None)


def _launched(generator: np.random.Generator, p: float, count: int, skewed: bool) -> Interval:
    effects = EFFECT * (generator.exponential(size=count) - 1 if skewed else generator.standard_normal(count))
    return intervals.estimate([np.sort(np.exp(effect) * INDEPENDENT.draw(generator, 1000)) for effect in effects], p)


def _pairs(trials: int) -> Iterator[Line]:
    for count in LAUNCHES:
        draw = partial(_ratio, truth=1.2, count=count, noise=EFFECT)
        yield _holds("ratio", f"paired, drift between {count} blocks", trials, 1.2, draw)
    for count in (compare.RUNS, 2 * compare.RUNS):
        draw = partial(_between_runs, truth=1.2, count=count)
        yield _holds("ratio", f"a run after {count} others", trials, 1.2, draw)


def _ratio(generator: np.random.Generator, truth: float, count: int, noise: float) -> compare.Ratio:
    first, second = paired(generator, np.array([1.0, truth]), count, noise, DRIFT)
    return compare.ratio(first, second)


def _between_runs(generator: np.random.Generator, truth: float, count: int) -> compare.Ratio:
    """Runs of three launches, which differ twice as much from run to run as within a run."""
    levels = generator.normal(0.0, 2 * EFFECT, (count + 1, 1))
    *before, now = np.exp(levels + generator.normal(0.0, EFFECT, (count + 1, 3)))
    return compare.between_runs([run.tolist() for run in before], (truth * now).tolist())


def _flags(trials: int) -> Iterator[Line]:
    def flagged(name: str, flag: Callable[[np.random.Generator], bool], wanted: bool | None) -> Line:
        generator = generator_of(name)
        share = 100 * sum(flag(generator) for _ in range(trials)) / trials
        low, high = {True: (95.0, None), False: (None, 5.0), None: (None, None)}[wanted]
        return Line(part="flags", name=name, value=share, unit="%", low=low, high=high)

    for rise, words in ((0.2, "20 % from the first to the last"), (0.0, "no trend")):
        yield flagged(f"drift: 5 launches, {words}", partial(_drifts, rise=rise), rise > 0)
    # What the flag is worth where launches differ as real ones do, and with as few as most studies have.
    for count in (5, 3):
        name = f"drift: {count} launches that differ by 5 %, 20 % from the first to the last"
        yield flagged(name, partial(_drifts, rise=0.2, noise=EFFECT, count=count), None)
    records = (
        ("rises by 50 %", ramp(0.5), 3000, True),
        ("rises by 100 %", ramp(1.0), 1000, True),
        ("independent", INDEPENDENT, 3000, False),
        ("AR(1) of 0.5", autoregressive(0.5), 3000, False),
        # Its level wanders by more than 5 % for long: whether that is steady is a matter of definition.
        ("AR(1) of 0.9", autoregressive(0.9), 3000, None),
    )
    for words, series, count, wanted in records:
        name = f"unsteady: {words}, {count:,} requests"
        yield flagged(name, partial(_unsteady, series=series, count=count), wanted)
    for words, change, wanted in (
        ("every second changes by 10 to 100 %", _moved, False),
        ("each rises by 50 %", ramp(0.5).draw, True),
    ):
        yield flagged(f"unsteady: 3 launches, {words}", partial(_unsteady_cell, draw=change), wanted)
    for share in (0.15, 0.5):
        for apart, spread in ((1.25, 0.03), (1.7, 0.1), (3.0, 0.2)):
            name = f"bimodal: {share:.0%} at {apart:g} times, 1,000 requests"
            yield flagged(name, partial(_bimodal, series=mixture(share, apart, spread)), True)
    for words, series in (("independent", INDEPENDENT), ("AR(1) of 0.9", autoregressive(0.9))):
        yield flagged(f"bimodal: one mode, {words}, 1,000 requests", partial(_bimodal, series=series), False)


def _drifts(generator: np.random.Generator, rise: float, noise: float = 0.01, count: int = compare.DRIFT) -> bool:
    trend = np.linspace(0.0, log(1 + rise), count)
    return compare.drifting(np.exp(trend + generator.normal(0.0, noise, count)).tolist())


def _unsteady(generator: np.random.Generator, series: Series, count: int) -> bool:
    return not steady.find(series.draw(generator, count)).steady


def _unsteady_cell(
    generator: np.random.Generator, draw: Callable[[np.random.Generator, int], Floats], launches: int = 3
) -> bool:
    return steady.of_launches([steady.find(draw(generator, 3000)) for _ in range(launches)]) is False


def _moved(generator: np.random.Generator, count: int) -> Floats:
    """A launch of which the machine changes the level with a probability of one half."""
    at = generator.integers(count) if generator.random() < 0.5 else 0
    factor = generator.uniform(1.1, 2.0) ** generator.choice([-1, 1])
    return INDEPENDENT.draw(generator, count) * np.where(np.arange(count) < at, factor, 1.0)


def _bimodal(generator: np.random.Generator, series: Series) -> bool:
    return bimodality.detect(series.draw(generator, 1000)) is not None


BORDER = (1 + MARGIN) * 1.0001
FAMILIES: dict[str, tuple[float, ...]] = {
    "12 equal pairs": (1.0,) * 12,
    "12 pairs just beyond the margin": (BORDER,) * 12,
    "6 equal, 3 just beyond the margin, 3 by 30 %": (1.0,) * 6 + (BORDER,) * 3 + (1.3,) * 3,
}
"""Ratios of a family of pairs, which share only the blocks."""


LEVELS = np.array([1.0, 1.0, BORDER, BORDER, 1.3, 2.0])
"""Levels of deployments that are compared each with each: pairs with a common side are not independent."""


def _verdicts(trials: int) -> Iterator[Line]:
    for count in LAUNCHES:
        for kind, truths in FAMILIES.items():
            draw = partial(_family, truths=truths, count=count)
            yield _judged(f"{kind}, {count} launches", trials, truths, draw)
        places = list(combinations(range(len(LEVELS)), 2))
        truths = tuple(LEVELS[b] / LEVELS[a] for a, b in places)
        draw = partial(_each_with_each, places=places, count=count)
        yield _judged(f"{len(LEVELS)} deployments, each with each, {count} launches", trials, truths, draw)


def _family(generator: np.random.Generator, truths: tuple[float, ...], count: int) -> list[compare.Ratio]:
    return [_ratio(generator, truth, count, NOISE) for truth in truths]


def _each_with_each(generator: np.random.Generator, places: list[tuple[int, int]], count: int) -> list[compare.Ratio]:
    sides = paired(generator, LEVELS, count, NOISE, DRIFT)
    return [compare.ratio(sides[a], sides[b]) for a, b in places]


def _judged(
    name: str, trials: int, truths: tuple[float, ...], draw: Callable[[np.random.Generator], list[compare.Ratio]]
) -> Line:
    """The share of families with a wrong verdict."""
    generator, wrong, decided = generator_of(name), 0, 0
    for _ in range(trials):
        judged = compare.judge(draw(generator))
        wrong += any(map(_wrong, judged, truths))
        decided += sum(one.verdict in ("faster", "slower", "equivalent") for one in judged)
    note = f"{100 * decided / trials / len(truths):.0f} % of the pairs decided"
    return Line(part="verdicts", name=name, value=100 * wrong / trials, unit="%", high=5, note=note)


def _wrong(judged: Judged, truth: float) -> bool:
    # Two levels that differ by rounding alone are equal.
    equal, beyond = abs(log(truth)) < 1e-9, abs(log(truth)) > log(1 + MARGIN)
    return (
        (judged.verdict == "faster" and (equal or truth > 1))
        or (judged.verdict == "slower" and (equal or truth < 1))
        or (judged.verdict == "equivalent" and beyond)
    )
