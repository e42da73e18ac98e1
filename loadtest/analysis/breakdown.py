"""Where the time of a request went, from the intended time to the whole answer; and the same sum a second way."""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.analysis import intervals
from loadtest.samples import is_good
from medserve.spec import Noun

STAGES = ("queue", "decode", "infer", "encode")
COLUMNS = (
    *("intended_ns", "sent_ns", "first_byte_ns", "done_ns", "server_received_ns", "server_sent_ns"),
    *(f"{stage}_ns" for stage in STAGES),
    *("status", "wrong", "warmup"),
)
"""What the ledger wants of a record."""
WHOLE, REST = "whole", "unexplained rest"


class Term(Noun, frozen=True, kw_only=True):
    """One stretch of a request's time. `share` is its mean over the mean of the whole; p99 null with too few rows."""

    name: str
    p50_ms: float
    p99_ms: float | None
    share: float


class SecondWay(Noun, frozen=True, kw_only=True):
    """A median in milliseconds as it was measured, and as the sum of two others; the difference is measured less it."""

    measured_ms: float
    expected_ms: float

    @property
    def difference_ms(self) -> float:
        """What the sum does not explain."""
        return self.measured_ms - self.expected_ms

    @property
    def relative(self) -> float:
        """The difference as a share of what was measured."""
        return self.difference_ms / self.measured_ms


def ledger(table: pa.Table) -> tuple[Term, ...]:
    """The terms of the good requests after the warm-up, the rest that they leave, and last the whole.

    With the server's stamps (same host) both ways are told apart; with its stages alone the network is one term and
    takes the rest; with neither there is what the client knows. None when no request was good.
    """
    good = pa.array(is_good(table) & ~table["warmup"].to_numpy())
    if not pc.any(good).as_py():
        return ()

    # One column after another: of ten million rows each takes 80 MB.
    def known(*names: str) -> bool:
        return not any(table[name].filter(good).null_count for name in names)

    def between(early: str, late: str) -> NDArray[np.int64]:
        return np.asarray(pc.subtract(table[late], table[early]).filter(good).to_numpy())

    origin = "intended_ns" if known("intended_ns") else "sent_ns"
    left = between(origin, "done_ns").copy()
    mean = float(left.mean()) or 1.0
    whole = _term(WHOLE, left, mean)

    def spent(name: str, values: NDArray[np.int64]) -> Term:
        np.subtract(left, values, out=left)
        return _term(name, values, mean)

    stages = [stage for stage in STAGES if known(f"{stage}_ns")]
    last = "first_byte_ns" if known("first_byte_ns") else "done_ns"
    terms = [spent("client queue", between("intended_ns", "sent_ns"))] if origin == "intended_ns" else []
    place = len(terms)
    stamped = known("server_received_ns", "server_sent_ns")
    if stamped:
        terms.append(spent("request path", between("sent_ns", "server_received_ns")))
    terms += [spent(stage, table[f"{stage}_ns"].filter(good).to_numpy()) for stage in stages]
    if stamped:
        terms.append(spent("return path", between("server_sent_ns", last)))
        terms += [spent("reading", between(last, "done_ns"))] if last != "done_ns" else []
        terms.append(_term(REST, left, mean))
    else:
        terms.insert(place, _term("network" if stages else "sending to answer", left, mean))
    return (*terms, whole)


def together(launches: Sequence[tuple[Term, ...]]) -> tuple[Term, ...]:
    """The ledgers of a cell's launches as one: the mean of each figure over the launches that have the same terms."""
    known = [terms for terms in launches if terms]
    alike = [terms for terms in known if [one.name for one in terms] == [one.name for one in known[0]]]
    return tuple(_mean(terms) for terms in zip(*alike, strict=True))


def second_way(measured_ms: float, in_process_ms: float, null_ms: float) -> SecondWay:
    """The median over HTTP against the median in process and that of the null server in the same mode, summed.

    Medians do not add exactly, and a server's threads and caches differ: a few per cent are no contradiction.
    """
    return SecondWay(measured_ms=measured_ms, expected_ms=in_process_ms + null_ms)


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
