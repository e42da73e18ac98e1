"""Comparisons: ratios of paired launches, their intervals, and verdicts that hold for all pairs together.

Launches of a block run one after the other on the same machine, so a pair of deployments is compared within each block
and drift between blocks cancels. Every number here is a function of one percentile per launch.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from math import exp, isfinite, log, sqrt
from statistics import fmean, stdev
from typing import Literal

import scipy
from msgspec.structs import replace

from loadtest.analysis.intervals import LEVEL, Interval, half_width
from medserve.spec import Noun

Verdict = Literal["faster", "slower", "equivalent", "undecided", "between-run variance unknown", "not comparable"]

SWAPPED: dict[Verdict, Verdict] = {"faster": "slower", "slower": "faster"}
INFINITE = "a percentile of a launch is infinite: too many requests failed"
MARGIN = 0.05
"""Two deployments within this share of each other are equivalent."""
DRIFT = 5
"""Launches below which a monotonic rise is too likely by chance."""
RUNS = 5
"""Runs on machines of one kind that tell the spread between runs well enough to judge another one."""
ENOUGH = 200
"""Launches that no user makes; a pair that needs so many is practically equal."""


class Ratio(Interval, frozen=True, kw_only=True):
    """Second over first of one percentile, geometric mean over blocks with its interval; null without launches.

    `level` is that of the interval: 95 % of a pair alone, more of one of a family. `error` is the standard error of
    the logarithm. `p_differs` is the two-sided p-value of Student's t on the logarithms, `p_equivalent` the larger of
    the two one-sided ones against the margin (Schuirmann 1987).
    """

    level: float = LEVEL
    error: float | None = None
    blocks: int = 0
    p_differs: float = 1.0
    p_equivalent: float = 1.0
    deviation: float | None = None


class Judged(Noun, frozen=True, kw_only=True):
    """A ratio with its verdict on the second; the ratio's interval is the one that decides.

    `more` estimates how many more launches decide an undecided pair.

    Where the variance between runs is unknown, it is the number of runs that are needed to know it.
    """

    ratio: Ratio
    verdict: Verdict
    more: int | None = None


def ratio(first: Mapping[int, float], second: Mapping[int, float], margin: float = MARGIN) -> Ratio:
    """Compare one percentile (any unit) of two cells, given by block; blocks with only one of them are left out."""
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return Ratio(reason="no block has a launch of both")
    if not all(isfinite(side[block]) and side[block] > 0 for side in (first, second) for block in shared):
        return Ratio(blocks=len(shared), reason=INFINITE)
    logs = [log(second[block] / first[block]) for block in shared]
    centre, count = fmean(logs), len(logs)
    if count < 2:
        return Ratio(value=exp(centre), blocks=1, reason="one block: no interval")
    deviation = stdev(logs, centre)
    error = max(deviation / sqrt(count), 1e-12)
    return _ratio(centre, error, count - 1, count, deviation, margin)


def between_runs(before: Sequence[Sequence[float]], now: Sequence[float], margin: float = MARGIN) -> Ratio:
    """Compare one percentile of a cell in a run with earlier runs on machines of its kind, each given by its launches.

    A run counts as one value, the mean of its launches' logarithms: what differs from run to run (memory, neighbours,
    temperature) is the same in all its launches, so their spread says nothing of the next run. The interval is
    Student's for one value more (Hahn & Meeker, Statistical Intervals, 1991, section 4.8); fewer than RUNS runs give
    none.
    """
    if not before or not all(before) or not now:
        return Ratio(reason="no launch on one side")
    if not all(isfinite(value) and value > 0 for run in (*before, now) for value in run):
        return Ratio(reason=INFINITE)
    runs = [fmean(map(log, run)) for run in before]
    centre, count = fmean(map(log, now)) - fmean(runs), len(runs)
    if count < RUNS:
        return Ratio(
            value=exp(centre), blocks=count, reason=f"{count} of {RUNS} runs that tell the spread between runs"
        )
    error = max(stdev(runs) * sqrt(1 + 1 / count), 1e-12)
    return _ratio(centre, error, count - 1, count, None, margin)


def judge(ratios: Sequence[Ratio], margin: float = MARGIN) -> list[Judged]:
    """A verdict on each ratio, such that with 95 % confidence none of them is wrong.

    Each pair has two tests: whether it differs, and whether it is equivalent. The p-values of all pairs are corrected
    together by Holm (1979). A pair that both differs and lies within the margin is equivalent. The interval of each
    ratio becomes that of the level at which its test was decided: it excludes 1 where the pair differs, lies within
    the margin where it is equivalent, and does neither where it is undecided.
    """
    tested = [ratio for ratio in ratios if ratio.value is not None]
    levels = iter(_holm([p for ratio in tested for p in (ratio.p_differs, ratio.p_equivalent)]))
    found = []
    for ratio in ratios:
        if ratio.value is None:
            found.append(Judged(ratio=ratio, verdict="not comparable"))
            continue
        (differs, alpha), (equivalent, one_sided) = next(levels), next(levels)
        if equivalent:
            found.append(Judged(ratio=_at_level(ratio, 1 - 2 * one_sided), verdict="equivalent"))
        elif differs:
            found.append(Judged(ratio=_at_level(ratio, 1 - alpha), verdict="faster" if ratio.value < 1 else "slower"))
        else:
            more = _more_launches(ratio, margin)
            found.append(Judged(ratio=_at_level(ratio, 1 - alpha), verdict="undecided", more=more))
    return found


def _at_level(ratio: Ratio, level: float) -> Ratio:
    """The ratio with the interval of another level, where it has one."""
    if ratio.value is None or ratio.error is None:
        return ratio
    centre, half = log(ratio.value), half_width(ratio.error, ratio.blocks - 1, level)
    return replace(ratio, low=exp(centre - half), high=exp(centre + half), level=level)


def swapped(judged: Judged) -> Judged:
    """The verdict on the first of two, from that on the second."""
    verdict = SWAPPED.get(judged.verdict, judged.verdict)
    return replace(judged, ratio=judged.ratio.mapped(lambda end: 1 / end), verdict=verdict)


def _ratio(centre: float, error: float, freedom: float, blocks: int, deviation: float | None, margin: float) -> Ratio:
    half, bound = half_width(error, freedom), log(1 + margin)
    return Ratio(
        value=exp(centre),
        low=exp(centre - half),
        high=exp(centre + half),
        error=error,
        blocks=blocks,
        p_differs=2 * float(scipy.special.stdtr(freedom, -abs(centre) / error)),
        p_equivalent=max(float(scipy.special.stdtr(freedom, (side * centre - bound) / error)) for side in (1, -1)),
        deviation=deviation,
    )


def _holm(values: Sequence[float]) -> list[tuple[bool, float]]:
    """Which hypotheses are rejected, such that at most 5 % of all families have a wrong rejection, and at what level.

    The p-value of each was held against the level beside it.
    """
    found = [(False, 0.0)] * len(values)
    rejecting, level = True, 0.0
    for step, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        if rejecting:
            level = (1 - LEVEL) / (len(values) - step)
            rejecting = values[index] <= level
        found[index] = (rejecting, level)
    return found


def _more_launches(ratio: Ratio, margin: float) -> int | None:
    """Launches until this pair alone is decided, if its mean and spread stay the same; null beyond ENOUGH."""
    if ratio.value is None or ratio.deviation is None:
        return None
    centre, bound = abs(log(ratio.value)), log(1 + margin)
    # It can be shown to differ, or to lie within the margin; whichever is farther from its border is shown first.
    reach = max(centre, bound - centre)
    for count in range(ratio.blocks + 1, ENOUGH):
        if half_width(ratio.deviation, count - 1) / sqrt(count) < reach:
            return count - ratio.blocks
    return None


def drifting(values: Iterable[float]) -> bool:
    """Whether percentiles of successive launches, DRIFT or more, all rise or all fall.

    By chance, independent launches do so in 2 of k! orders: 1.7 % for five.
    """
    ordered = list(values)
    if len(ordered) < DRIFT or not all(map(isfinite, ordered)):
        return False
    steps = [b - a for a, b in pairwise(ordered)]
    return min(steps) > 0 or max(steps) < 0
