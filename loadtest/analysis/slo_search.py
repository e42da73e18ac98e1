"""The highest rate at which a percentile stays below a limit: bracket, bisect, confirm. It knows no server.

`within_launch.exceedance` judges each rate with 95 % confidence: holds, fails or undecided. An undecided trial is
prolonged up to a bound; a rate that stays undecided belongs to the interval that is the result.
"""

import re
from collections.abc import Callable
from math import ceil, inf, log, sqrt

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.analysis.intervals import least_samples, percentile
from loadtest.analysis.within_launch import Exceedance, exceedance
from medserve.errors import BadInput, CannotRun
from medserve.numbers import number
from medserve.spec import Noun

LOWEST_RATE = 1.0
"""Requests per second below which no rate is tried."""
START_RATE = 16.0
"""Requests per second of the first trial by default."""
RESOLUTION = 0.05
"""The bracket is narrowed until its ends differ by at most this share."""
PROLONGED = 8.0
"""A trial is prolonged up to this multiple of its length; at a low rate, until it has four times the least samples."""
MAX_LAG = 0.1
"""Share of the limit that the client's own lateness may take; above it the client is measured, not the server."""


class Objective(Noun, frozen=True, kw_only=True):
    """A percentile (0 to 1) of the latency from the intended start, and the milliseconds it must stay below."""

    p: float
    limit_ms: float

    def __str__(self) -> str:
        """In the usual notation: p99 < 50 ms."""
        return f"p{self.p * 100:g} < {self.limit_ms:g} ms"


class Trial(msgspec.Struct, frozen=True):
    """What one load at one rate gave: float64 nanoseconds in order of time, infinite where a request failed.

    `latencies` are from the intended start, `service` from sending.
    """

    latencies: NDArray[np.float64]
    service: NDArray[np.float64]


class JudgedTrial(Noun, frozen=True, kw_only=True):
    """A rate that was tried for so many seconds, with its verdict; `percentile_ms` is null when it is infinite."""

    step: str
    rate: float
    seconds: float
    percentile_ms: float | None
    exceedance: Exceedance


class SearchResult(Noun, frozen=True, kw_only=True):
    """`low`: the highest rate that a confirming trial showed to hold; `high`: the lowest rate above it that failed.

    `high` is null when no rate up to the ceiling failed, and `reason` says why there was a ceiling.
    """

    objective: Objective
    low: float
    high: float | None
    trials: tuple[JudgedTrial, ...]
    reason: str | None = None

    def __str__(self) -> str:
        """Both ends in words."""
        above = f"fails at {self.high:g}" if self.high is not None else f"no higher rate failed: {self.reason}"
        return f"{self.objective} holds up to {self.low:g} requests/s ({above})"


Measure = Callable[[float, float, int], Trial]
"""measure(requests per second, seconds, seed)"""
Report = Callable[[JudgedTrial, float], None]
"""report(judged trial, estimate of the seconds left)"""


def parse_objective(text: str) -> Objective:
    """`p99<50ms` as an Objective. Raises BadInput that shows the form."""
    match = re.fullmatch(r"p(\d+(?:\.\d+)?)\s*<\s*(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip())
    percent, limit = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
    if match is None or not 50 <= percent <= 99.9 or not limit > 0:
        raise BadInput(f"objective {text!r}; expected a percentile from p50 to p99.9 and a time, such as p99<50ms")
    return Objective(p=round(percent / 100, 9), limit_ms=limit * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[3]])


def search(
    objective: Objective,
    measure: Measure,
    report: Report,
    *,
    start: float = START_RATE,
    ceiling: float,
    why_ceiling: str,
    seconds: float = 10.0,
    seed: int = 0,
) -> SearchResult:
    """The highest rate up to `ceiling` that meets the objective, as an interval. A first trial takes `seconds`.

    `low` rests on its confirming trial alone, which has another seed, the greatest length of a trial, and is never
    prolonged: repeated looks until a trial succeeds would make the 95 % untrue. Raises CannotRun when the objective is
    not met even at the lowest rate, and when the client rather than the server is late.
    """
    return _Search(objective, measure, report, ceiling, seconds, seed).result(start, why_ceiling)


class _Search:
    def __init__(
        self, objective: Objective, measure: Measure, report: Report, ceiling: float, seconds: float, seed: int
    ) -> None:
        self._objective, self._measure, self._report = objective, measure, report
        self._ceiling, self._seconds, self._seed = ceiling, seconds, seed
        self._trials: list[JudgedTrial] = []
        self._high = inf
        self._seconds_left = self._spent = 0.0

    def result(self, start: float, why_ceiling: str) -> SearchResult:
        low, unproven = self._find_holding(self._bracket(min(start, self._ceiling)))
        low, unproven = self._narrow(low, unproven, lambda judged: judged.exceedance.verdict == "holds")
        if self._high < inf:
            self._narrow(unproven, self._high, lambda judged: judged.exceedance.verdict != "fails")
        low = self._confirm(low)
        high, reason = (None, why_ceiling) if self._high == inf else (self._high, None)
        return SearchResult(objective=self._objective, low=low, high=high, trials=tuple(self._trials), reason=reason)

    def _bracket(self, rate: float) -> float:
        """Double the rate until it fails; returns the last rate that did not."""
        while True:
            self._estimate_end(rate, 2 * rate)
            if self._try("bracket", rate, self._seconds).exceedance.verdict == "fails":
                return max(rate / 2, LOWEST_RATE)
            if rate >= self._ceiling:
                return rate
            rate = min(2 * rate, self._ceiling)

    def _find_holding(self, rate: float) -> tuple[float, float]:
        """Halve the rate until it holds, as short trials miss failures. Also the lowest rate that did not hold yet."""
        unproven = min(self._high, self._ceiling)
        while True:
            self._estimate_end(rate, 2 * rate)
            tried = (known for known in self._trials if known.rate == rate and known.exceedance.verdict != "undecided")
            judged = next(tried, None) or self._try_until_decided("bracket", rate)
            if judged.exceedance.verdict == "holds":
                return rate, max(rate, unproven)
            if rate <= LOWEST_RATE:
                raise self._unmet(judged)
            rate, unproven = max(rate / 2, LOWEST_RATE), rate

    def _narrow(self, low: float, high: float, below: Callable[[JudgedTrial], bool]) -> tuple[float, float]:
        """Bisect geometrically for the border of `below`, which is true at `low` and false at `high`."""
        while high > low * (1 + RESOLUTION):
            self._estimate_end(low, high)
            middle = _rounded(sqrt(low * high))
            low, high = (middle, high) if below(self._try_until_decided("bisect", middle)) else (low, middle)
        return low, high

    def _confirm(self, rate: float) -> float:
        """The highest rate, going down from this one in growing steps, that a longer trial of its own shows to hold."""
        step = RESOLUTION
        while True:
            self._seconds_left = 0.0
            judged = self._try("confirm", rate, self._longest(rate))
            if judged.exceedance.verdict == "holds":
                return rate
            if rate <= LOWEST_RATE:
                raise self._unmet(judged)
            rate, step = max(_rounded(rate / (1 + step)), LOWEST_RATE), step + RESOLUTION

    def _try_until_decided(self, step: str, rate: float) -> JudgedTrial:
        """Try a rate, and prolong the trial until it is decided or has its greatest length."""
        bound = self._longest(rate)
        trial = self._trial(rate, self._seconds)
        seconds = self._seconds
        while (judged := self._judge(step, rate, seconds, trial)).exceedance.verdict == "undecided" and seconds < bound:
            more = min(2 * seconds, bound) - seconds
            further = self._trial(rate, more)
            trial = Trial(
                np.concatenate([trial.latencies, further.latencies]), np.concatenate([trial.service, further.service])
            )
            seconds += more
        return judged

    def _try(self, step: str, rate: float, seconds: float) -> JudgedTrial:
        return self._judge(step, rate, seconds, self._trial(rate, seconds))

    def _trial(self, rate: float, seconds: float) -> Trial:
        self._seed += 1
        trial = self._measure(rate, seconds, self._seed)
        self._spent += seconds
        p, limit = self._objective.p, self._objective.limit_ms * 1e6
        if len(trial.latencies) >= least_samples(p):
            intended, service = (percentile(np.sort(values), p) for values in (trial.latencies, trial.service))
            # A server whose service time exceeds the limit fails by itself, however late the client is.
            if service <= limit and intended - service > MAX_LAG * limit:
                raise CannotRun(
                    f"the load generator is the limit: at {rate:g} requests/s p{p * 100:g} is "
                    f"{number(intended / 1e6)} ms from the intended start and {number(service / 1e6)} ms from sending; "
                    "give it more --processes, a core of its own, or a lower --max-rate"
                )
        return trial

    def _judge(self, step: str, rate: float, seconds: float, trial: Trial) -> JudgedTrial:
        p = self._objective.p
        found = exceedance(trial.latencies, self._objective.limit_ms * 1e6, p)
        value = percentile(np.sort(trial.latencies), p) / 1e6 if found.requests else inf
        percentile_ms = value if value < inf else None
        judged = JudgedTrial(step=step, rate=rate, seconds=seconds, percentile_ms=percentile_ms, exceedance=found)
        if found.verdict == "fails":
            self._high = min(self._high, rate)
        self._trials.append(judged)
        self._report(judged, self._seconds_left)
        return judged

    def _longest(self, rate: float) -> float:
        return max(PROLONGED * self._seconds, 4 * least_samples(self._objective.p) / rate)

    def _estimate_end(self, low: float, high: float) -> None:
        """Estimate the seconds left: the halvings still to do, each as long as rates took so far, and confirmation."""
        rates = max(1, len({judged.rate for judged in self._trials}))
        halvings = ceil(log(log(max(high / low, 1 + RESOLUTION)) / log(1 + RESOLUTION), 2))
        self._seconds_left = max(self._seconds, self._spent / rates) * (1 + halvings) + self._longest(low)

    def _unmet(self, judged: JudgedTrial) -> CannotRun:
        found, objective = judged.exceedance, self._objective
        how = "cannot be met" if found.verdict == "fails" else f"cannot be shown to hold within {judged.seconds:g} s"
        return CannotRun(
            f"{objective} {how} even at {judged.rate:g} request/s: {found.share:.3%} of {found.requests} requests took "
            f"longer or failed (95 % interval {found.low:.3%} to {found.high:.3%}, allowed {1 - objective.p:.3%})"
        )


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
