"""The highest rate at which a percentile stays under its objective: bracket, bisect, confirm. It knows no server.

Every rate is judged by `analysis.exceedance`, with 95 % confidence and three outcomes. A trial that decides nothing is
prolonged up to a bound; a rate that stays undecided belongs to the interval that is the answer.
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
from medserve.spec import Noun

LOWEST = 1.0
"""Requests a second below which nobody asks for a rate."""
START = 16.0
"""Requests a second at which a search begins that knows nothing of the server."""
WITHIN = 0.05
"""The bracket is narrowed until its ends differ by no more than this."""
LONGEST = 8.0
"""A trial is prolonged up to so many times its length; at a low rate, until it has four times the least samples."""
LAG = 0.1
"""Share of the objective that the client's own lateness may take before the client is what is measured."""


class Objective(Noun, frozen=True, kw_only=True):
    """A percentile (0 to 1) of the latency from the intended time, and the milliseconds it must stay under."""

    p: float
    limit_ms: float

    def __str__(self) -> str:
        """As it is spoken of: p99 < 50 ms."""
        return f"p{self.p * 100:g} < {self.limit_ms:g} ms"


class Trial(msgspec.Struct, frozen=True):
    """What one stretch at one rate gave: nanoseconds from the intended time and from the sending, in order of time.

    A failed request is infinite in both.
    """

    latencies: NDArray[np.float64]
    sent: NDArray[np.float64]


class Judged(Noun, frozen=True, kw_only=True):
    """A rate that was tried for so many seconds, and what came of it; `percentile_ms` is null where it is infinite."""

    step: str
    rate: float
    seconds: float
    percentile_ms: float | None
    seen: Exceedance


class Answer(Noun, frozen=True, kw_only=True):
    """`low`: the highest rate that was confirmed to hold; `high`: the lowest above it that failed.

    `high` is null when no rate up to the ceiling failed, and `reason` says why there was a ceiling.
    """

    objective: Objective
    low: float
    high: float | None
    trials: tuple[Judged, ...]
    reason: str | None = None

    def __str__(self) -> str:
        """The answer in a sentence's half: what holds, and what is known above it."""
        above = f"fails at {self.high:g}" if self.high is not None else f"nothing higher failed: {self.reason}"
        return f"{self.objective} holds up to {self.low:g} requests/s ({above})"


Measure = Callable[[float, float, int], Trial]
"""measure(requests a second, seconds, seed)"""
Tell = Callable[[Judged, float], None]
"""tell(judged, seconds left, roughly)"""


def parse(text: str) -> Objective:
    """`p99<50ms` as an Objective. Raises BadInput that shows the form."""
    found = re.fullmatch(r"p(\d+(?:\.\d+)?)\s*<\s*(\d+(?:\.\d+)?)\s*(us|ms|s)", text.strip())
    percent, limit = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    if found is None or not 50 <= percent <= 99.9 or not limit > 0:
        raise BadInput(f"objective {text!r}; expected a percentile from p50 to p99.9 and a time, such as p99<50ms")
    return Objective(p=round(percent / 100, 9), limit_ms=limit * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[3]])


def search(
    objective: Objective,
    measure: Measure,
    tell: Tell,
    *,
    start: float = START,
    ceiling: float,
    why_ceiling: str,
    seconds: float = 10.0,
    seed: int = 0,
) -> Answer:
    """The highest rate up to `ceiling` that keeps the objective, as an interval. A first trial takes `seconds`.

    `low` rests on its confirming trial alone, which is of another seed, as long as a trial may be and never prolonged:
    looking again until a trial pleases would make 95 % untrue. Raises CannotRun when the objective is not met even at
    the lowest rate, and when the client rather than the server is late.
    """
    return _Search(objective, measure, tell, ceiling, seconds, seed).answer(start, why_ceiling)


class _Search:
    def __init__(
        self, objective: Objective, measure: Measure, tell: Tell, ceiling: float, seconds: float, seed: int
    ) -> None:
        self._objective, self._measure, self._tell = objective, measure, tell
        self._ceiling, self._seconds, self._seed = ceiling, seconds, seed
        self._trials: list[Judged] = []
        self._high = inf
        self._left = self._spent = 0.0

    def answer(self, start: float, why_ceiling: str) -> Answer:
        low, unproven = self._foothold(self._bracket(min(start, self._ceiling)))
        low, unproven = self._narrow(low, unproven, lambda judged: judged.seen.verdict == "holds")
        if self._high < inf:
            self._narrow(unproven, self._high, lambda judged: judged.seen.verdict != "fails")
        low = self._confirm(low)
        high, reason = (None, why_ceiling) if self._high == inf else (self._high, None)
        return Answer(objective=self._objective, low=low, high=high, trials=tuple(self._trials), reason=reason)

    def _bracket(self, rate: float) -> float:
        """Double the rate until it fails; returns the last one that did not."""
        while True:
            self._expect(rate, 2 * rate)
            if self._try("bracket", rate, self._seconds).seen.verdict == "fails":
                return max(rate / 2, LOWEST)
            if rate >= self._ceiling:
                return rate
            rate = min(2 * rate, self._ceiling)

    def _foothold(self, rate: float) -> tuple[float, float]:
        """Halve the rate until it holds, for short trials pass over failures; and the lowest one not known to."""
        unproven = min(self._high, self._ceiling)
        while True:
            self._expect(rate, 2 * rate)
            judged = self._decided(rate) or self._settle("bracket", rate)
            if judged.seen.verdict == "holds":
                return rate, max(rate, unproven)
            if rate <= LOWEST:
                raise self._unmet(judged)
            rate, unproven = max(rate / 2, LOWEST), rate

    def _narrow(self, low: float, high: float, below: Callable[[Judged], bool]) -> tuple[float, float]:
        """Bisect geometrically for the edge of `below`, which holds of `low` and not of `high`."""
        while high > low * (1 + WITHIN):
            self._expect(low, high)
            middle = _rounded(sqrt(low * high))
            low, high = (middle, high) if below(self._settle("bisect", middle)) else (low, middle)
        return low, high

    def _confirm(self, rate: float) -> float:
        """The highest rate, from this one down in growing steps, that a longer trial of its own finds to hold."""
        step = WITHIN
        while True:
            self._left = 0.0
            judged = self._try("confirm", rate, self._longest(rate))
            if judged.seen.verdict == "holds":
                return rate
            if rate <= LOWEST:
                raise self._unmet(judged)
            rate, step = max(_rounded(rate / (1 + step)), LOWEST), step + WITHIN

    def _settle(self, step: str, rate: float) -> Judged:
        """Try a rate, and prolong the trial until it is decided, or long enough."""
        bound = self._longest(rate)
        trial = self._trial(rate, self._seconds)
        seconds = self._seconds
        while (judged := self._judge(step, rate, seconds, trial)).seen.verdict == "undecided" and seconds < bound:
            more = min(2 * seconds, bound) - seconds
            further = self._trial(rate, more)
            trial = Trial(
                np.concatenate([trial.latencies, further.latencies]), np.concatenate([trial.sent, further.sent])
            )
            seconds += more
        return judged

    def _try(self, step: str, rate: float, seconds: float) -> Judged:
        return self._judge(step, rate, seconds, self._trial(rate, seconds))

    def _trial(self, rate: float, seconds: float) -> Trial:
        self._seed += 1
        trial = self._measure(rate, seconds, self._seed)
        self._spent += seconds
        p, limit = self._objective.p, self._objective.limit_ms * 1e6
        if len(trial.latencies) >= least_samples(p):
            intended, sent = (percentile(np.sort(values), p) for values in (trial.latencies, trial.sent))
            # A server that is too slow from the sending on fails on its own account, however late the client is.
            if sent <= limit and intended - sent > LAG * limit:
                raise CannotRun(
                    f"the load generator is the limit: at {rate:g} requests/s p{p * 100:g} is {intended / 1e6:.4g} ms "
                    f"from the intended time and {sent / 1e6:.4g} ms from the sending; "
                    "give it more --processes, a core of its own, or a lower --max-rate"
                )
        return trial

    def _judge(self, step: str, rate: float, seconds: float, trial: Trial) -> Judged:
        p = self._objective.p
        seen = exceedance(trial.latencies, self._objective.limit_ms * 1e6, p)
        value = percentile(np.sort(trial.latencies), p) / 1e6 if seen.requests else inf
        percentile_ms = value if value < inf else None
        judged = Judged(step=step, rate=rate, seconds=seconds, percentile_ms=percentile_ms, seen=seen)
        if seen.verdict == "fails":
            self._high = min(self._high, rate)
        self._trials.append(judged)
        self._tell(judged, self._left)
        return judged

    def _decided(self, rate: float) -> Judged | None:
        return next((one for one in self._trials if one.rate == rate and one.seen.verdict != "undecided"), None)

    def _longest(self, rate: float) -> float:
        return max(LONGEST * self._seconds, 4 * least_samples(self._objective.p) / rate)

    def _expect(self, low: float, high: float) -> None:
        """Foresee the end: the halvings that are left, each as long as rates took so far, and the confirmation."""
        rates = max(1, len({judged.rate for judged in self._trials}))
        halvings = ceil(log(log(max(high / low, 1 + WITHIN)) / log(1 + WITHIN), 2))
        self._left = max(self._seconds, self._spent / rates) * (1 + halvings) + self._longest(low)

    def _unmet(self, judged: Judged) -> CannotRun:
        seen, objective = judged.seen, self._objective
        how = "cannot be met" if seen.verdict == "fails" else f"cannot be shown to hold within {judged.seconds:g} s"
        return CannotRun(
            f"{objective} {how} even at {judged.rate:g} request/s: {seen.share:.3%} of {seen.requests} requests took "
            f"longer or failed (95 % interval {seen.low:.3%} to {seen.high:.3%}, allowed {1 - objective.p:.3%})"
        )


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
