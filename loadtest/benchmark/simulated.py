"""Simulated series whose truth is known: latencies of a record, of the launches of a cell, and of paired launches."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.signal import lfilter
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]
MS = 1e6
SPREAD = 0.2
"""Standard deviation of the logarithm of a request's latency."""


class Series(NamedTuple):
    """`draw(generator, count)` gives latencies (ns) in order of time, `quantile(p)` the truth (ns)."""

    draw: Callable[[np.random.Generator, int], Floats]
    quantile: Callable[[float], float]


def autoregressive(correlation: float, spread: float = SPREAD) -> Series:
    """Lognormal around 1 ms; the logarithms are an AR(1) process, independent where `correlation` is 0."""

    def draw(generator: np.random.Generator, count: int) -> Floats:
        fresh = np.sqrt(1 - correlation**2)
        noise = generator.standard_normal(count) * fresh
        noise[0] /= fresh  # stationary from the first one on
        found: Floats = MS * np.exp(spread * lfilter([1.0], [1.0, -correlation], noise))
        return found

    return Series(draw, lambda p: MS * float(np.exp(spread * ndtri(p))))


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


def ramp(rise: float, spread: float = SPREAD) -> Series:
    """Independent latencies around a level that rises by the share `rise`; they have no true percentile."""

    def draw(generator: np.random.Generator, count: int) -> Floats:
        level = np.linspace(0.0, np.log1p(rise), count)
        return np.asarray(MS * np.exp(level + spread * generator.standard_normal(count)))

    return Series(draw, lambda _: np.nan)


def launched(generator: np.random.Generator, effects: Floats, of: Series, count: int) -> list[Floats]:
    """Ascending latencies of a launch per effect, which is the logarithm of a factor on all its requests."""
    return [np.sort(np.exp(effect) * of.draw(generator, count)) for effect in effects]


def paired(
    generator: np.random.Generator, levels: Floats, launches: int, noise: float, drift: float
) -> list[dict[int, float]]:
    """One percentile of each deployment by block: its level, times the effect of the block, times noise."""
    blocks = generator.normal(0.0, drift, launches)
    logs = np.log(levels)[:, None] + blocks + generator.normal(0.0, noise, (len(levels), launches))
    return [dict(enumerate(np.exp(row).tolist())) for row in logs]
