"""Latency breakdown: the parts of a request's latency, what they leave unattributed, and a cross-check."""

from collections.abc import Iterable, Sequence
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from loadtest.analysis import intervals
from medserve.spec import Noun

TOTAL, UNATTRIBUTED = "total", "unattributed"


class Term(Noun, frozen=True, kw_only=True):
    """One part of the latency. `share` is its mean over the mean of the total; p99 is null with too few requests."""

    name: str
    p50_ms: float
    p99_ms: float | None
    share: float


class CrossCheck(Noun, frozen=True, kw_only=True):
    """A median in milliseconds as it was measured, and as the sum of two other medians."""

    measured_ms: float
    expected_ms: float

    @property
    def difference_ms(self) -> float:
        """Measured less expected."""
        return self.measured_ms - self.expected_ms

    @property
    def relative(self) -> float:
        """The difference as a share of what was measured."""
        return self.difference_ms / self.measured_ms


def break_down(
    total: NDArray[np.int64],
    parts: Iterable[tuple[str, NDArray[np.int64]]],
    remainder: str = UNATTRIBUTED,
    position: int | None = None,
) -> tuple[Term, ...]:
    """A term for each part, one for what they leave of the total, and last the total. All arrays are nanoseconds.

    `parts` is read one by one, so that a generator of large arrays holds one at a time. `remainder` names what they
    leave; its term stands at `position`, by default after the parts.
    """
    left = total.copy()
    mean = float(left.mean()) or 1.0
    terms = []
    for name, values in parts:
        np.subtract(left, values, out=left)
        terms.append(_term(name, values, mean))
    terms.insert(len(terms) if position is None else position, _term(remainder, left, mean))
    return (*terms, _term(TOTAL, total, mean))


def over_launches(launches: Sequence[tuple[Term, ...]]) -> tuple[Term, ...]:
    """The breakdowns of a cell's launches as one: means over the launches that have the same terms as the first."""
    known = [terms for terms in launches if terms]
    alike = [terms for terms in known if [term.name for term in terms] == [term.name for term in known[0]]]
    return tuple(_mean(terms) for terms in zip(*alike, strict=True))


def cross_check(measured_ms: float, in_process_ms: float, null_ms: float) -> CrossCheck:
    """The median over HTTP against the sum of the median in process and that of the null server in the same mode.

    Medians do not add exactly, and a server's threads and caches differ: a few per cent are no contradiction.
    """
    return CrossCheck(measured_ms=measured_ms, expected_ms=in_process_ms + null_ms)


def _term(name: str, values: NDArray[np.int64], mean: float) -> Term:
    ordered = values.astype(np.float64)
    ordered.sort()
    p99 = intervals.percentile(ordered, 0.99) / 1e6 if len(ordered) >= intervals.least_samples(0.99) else None
    share = float(values.mean()) / mean
    return Term(name=name, p50_ms=intervals.percentile(ordered, 0.5) / 1e6, p99_ms=p99, share=share)


def _mean(terms: tuple[Term, ...]) -> Term:
    p99s = [term.p99_ms for term in terms if term.p99_ms is not None]
    return Term(
        name=terms[0].name,
        p50_ms=fmean(term.p50_ms for term in terms),
        p99_ms=fmean(p99s) if len(p99s) == len(terms) else None,
        share=fmean(term.share for term in terms),
    )
