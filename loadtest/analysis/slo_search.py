"""The highest rate at which a percentile stays below a limit: bracket, bisect, confirm. It knows no server.

`within_launch.exceedance` judges each rate: holds, fails or undecided, each of the first two with a confidence of 90 %,
so that both ends together have one of 80 %. An undecided trial is prolonged once; a rate that stays undecided belongs
to the interval that is the result. Both ends of the interval rest on confirming trials. A trial that was disturbed, and
one in which the generator was late, is repeated.
"""

import re
from collections.abc import Callable
from itertools import count
from math import ceil, inf, log, sqrt
from typing import Literal, NamedTuple

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
CONFIDENCE = 0.8
"""Of the answer: that the rate lies between its ends. A higher one would take minutes where a machine has hiccups."""
RESOLUTION = 0.15
"""The bracket is narrowed until its ends differ by at most this share."""
BESIDE = 0.065
"""How far, as a share, the ends lie at first from a rate that stays undecided."""
STEP = 0.05
"""The first step, as a share, from an end that is not confirmed; each further one is larger by the same share."""
LONG = 4.0
"""A confirming or prolonged trial is so many times as long; at a low rate, it has four times the least samples."""
MOST = 20
"""Trials after which each step halves or doubles the rate, so that the search ends."""
REPEATED = 2
"""How often a trial is repeated at most that was disturbed, or in which the generator was late."""
MOST_SECONDS = 480.0
"""Seconds of load after which a search ends without an answer, where a caller says nothing else."""
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

    `latencies` are from the intended start, `service` from sending; `disturbed` says what disturbed the machine.
    """

    latencies: NDArray[np.float64]
    service: NDArray[np.float64]
    disturbed: str | None = None

    def followed_by(self, other: "Trial") -> "Trial":
        """Both, one after the other."""
        return Trial(
            np.concatenate([self.latencies, other.latencies]),
            np.concatenate([self.service, other.service]),
            self.disturbed or other.disturbed,
        )


class JudgedTrial(Noun, frozen=True, kw_only=True):
    """A rate that was tried for so many seconds, with its verdict; `percentile_ms` is null when it is infinite.

    `repeated` says why it does not count: the machine was disturbed, or the generator late.
    """

    step: str
    rate: float
    seconds: float
    percentile_ms: float | None
    exceedance: Exceedance
    repeated: str | None = None


class SearchResult(Noun, frozen=True, kw_only=True):
    """`low` is the highest rate that a confirming trial showed to hold, `high` the lowest that one showed to fail.

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


class Left(NamedTuple):
    """An estimate of what is left to do: trials, and their seconds."""

    trials: int
    seconds: float


Report = Callable[[JudgedTrial, Left], None]
Found = Literal["holds", "fails", "undecided", "late"]


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
    most_seconds: float = MOST_SECONDS,
) -> SearchResult:
    """The highest rate up to `ceiling` that meets the objective, as an interval. A first trial takes `seconds`.

    Each end rests on one confirming trial of its own, which has another seed, is longer, and is never prolonged:
    repeated looks until a trial succeeds would make the confidence untrue. Raises CannotRun when the objective is not
    met even at the lowest rate, when the client rather than the server is late there, and with what is known by then
    when a further trial would take longer than `most_seconds` in all. An interruption says the same.
    """
    found = _Search(objective, measure, report, ceiling, why_ceiling, seconds, seed, most_seconds)
    try:
        return found.result(start)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{str(interrupt) or 'interrupted'}; {found.known}") from None


def longest(objective: Objective, rate: float, seconds: float) -> float:
    """Seconds of a trial that is prolonged or confirms, where a first one takes `seconds`."""
    return max(LONG * seconds, 4 * least_samples(objective.p) / rate)


def check(
    objective: Objective, measure: Measure, report: Report, rate: float, *, seconds: float, seed: int = 0
) -> JudgedTrial:
    """The verdict on one rate: of a trial of `seconds`, prolonged once to LONG times as long where it is undecided.

    Raises CannotRun when the client rather than the server is late.
    """
    found = _Search(objective, measure, report, rate, "", seconds, seed, inf)
    if found.find("check", rate) == "late":
        raise CannotRun(found.why_ceiling)
    return found.trials[-1]


class _Search:
    def __init__(
        self,
        objective: Objective,
        measure: Measure,
        report: Report,
        ceiling: float,
        why_ceiling: str,
        seconds: float,
        seed: int,
        most_seconds: float,
    ) -> None:
        self._objective, self._measure, self._report, self._most = objective, measure, report, most_seconds
        self._ceiling, self.why_ceiling, self._seconds, self._seed = ceiling, why_ceiling, seconds, seed
        self.trials: list[JudgedTrial] = []
        self._spent, self._left = 0.0, Left(0, 0.0)
        self._late_from = inf

    @property
    def known(self) -> str:
        """What the trials so far say, in words; none of it is confirmed."""
        counted = [judged for judged in self.trials if judged.repeated is None]
        held = [judged.rate for judged in counted if judged.exceedance.verdict == "holds"]
        failed = [judged.rate for judged in counted if judged.exceedance.verdict == "fails"]
        low = f"held at {max(held):g} requests/s" if held else "held at no rate"
        high = f"failed at {min(failed):g}" if failed else "failed at none"
        return f"not confirmed: {self._objective} {low} and {high}, in {len(counted)} trials"

    def result(self, start: float) -> SearchResult:
        low, high = self._narrow(*self._bracket(min(start, self._ceiling)))
        low, failed = self._confirm_low(low)
        if failed is None:
            low, failed = self._confirm_high(low, high)
        reason = None if failed is not None else self.why_ceiling
        return SearchResult(objective=self._objective, low=low, high=failed, trials=tuple(self.trials), reason=reason)

    def _bracket(self, rate: float) -> tuple[float, float]:
        """Double or halve the rate: to one that holds and one above it that does not, or to the ceiling."""
        self._expect(5, rate)
        found, low = self.find("bracket", rate), 0.0
        while found == "holds":
            if rate >= self._ceiling:
                return rate, rate
            low, rate = rate, min(2 * rate, self._ceiling)
            found = self.find("bracket", rate)
        if found == "undecided":
            return self._around(rate)
        while not low:
            if rate <= LOWEST_RATE:
                raise self._unmet()
            high, rate = rate, max(_rounded(rate / 2), LOWEST_RATE)
            found = self.find("bracket", rate)
            if found == "undecided":
                return self._around(rate)
            low, rate = (rate, high) if found == "holds" else (0.0, rate)
        return low, rate

    def _narrow(self, low: float, high: float) -> tuple[float, float]:
        """Bisect geometrically until the ends are near one another, or a rate between them is undecided."""
        while high > low * (1 + RESOLUTION):
            self._expect(ceil(log(log(high / low) / log(1 + RESOLUTION), 2)), low)
            middle = _rounded(sqrt(low * high))
            found = self.find("bisect", middle)
            if found == "undecided":
                return self._around(middle)
            low, high = (middle, high) if found == "holds" else (low, middle)
        return low, high

    def _around(self, rate: float) -> tuple[float, float]:
        return max(_rounded(rate / (1 + BESIDE)), LOWEST_RATE), min(_rounded(rate * (1 + BESIDE)), self._ceiling)

    def _confirm_low(self, rate: float) -> tuple[float, float | None]:
        """The highest rate, from this one down, that a confirming trial shows to hold; the lowest that one refutes."""
        failed = None
        for attempt in count(1):
            self._expect(0, rate, confirming=1)
            if (found := self._look("confirm", rate, self._confirming(rate, attempt))) == "holds":
                return rate, failed
            if found == "fails":
                failed = rate
            if rate <= LOWEST_RATE:
                raise self._unmet()
            rate = max(_rounded(rate / self._factor(attempt)), LOWEST_RATE)
        raise AssertionError  # it ends at the lowest rate

    def _confirm_high(self, low: float, rate: float) -> tuple[float, float | None]:
        """The lowest rate, from this one up, that a confirming trial shows to fail; the highest that one confirms."""
        for attempt in count(1):
            if low < rate < self._late_from:
                self._expect(0, rate, confirming=0)
                found = self._look("confirm", rate, self._confirming(rate, attempt))
                if found == "fails":
                    return low, rate
                low = rate if found == "holds" else low
            if rate >= self._ceiling:
                return low, None
            rate = min(_rounded(rate * self._factor(attempt)), self._ceiling)
        raise AssertionError  # it ends at the ceiling

    def _factor(self, attempt: int) -> float:
        return 2.0 if len(self.trials) > MOST else 1 + attempt * STEP

    def _confirming(self, rate: float, attempt: int) -> float:
        """The seconds of a trial: each further attempt is longer, because the one before it did not decide."""
        return self._long(rate) * (1 + attempt) / 2

    def find(self, step: str, rate: float) -> Found:
        """What a trial of a rate shows; one that is undecided is prolonged."""
        return self._look(step, rate, self._seconds, self._long(rate))

    def _look(self, step: str, rate: float, seconds: float, longest: float = 0.0) -> Found:
        late = 0
        for attempt in range(REPEATED + 1):
            trial = self._trial(rate, seconds)
            judged = self._judge(step, rate, seconds, trial)
            if judged.exceedance.verdict == "undecided" and longest > seconds and self._lateness(rate, trial) is None:
                self._tell(judged)
                trial = trial.followed_by(self._trial(rate, longest - seconds))
                judged = self._judge(step, rate, longest, trial)
            verdict, lateness = judged.exceedance.verdict, self._lateness(rate, trial)
            late += lateness is not None
            # A disturbance makes no rate hold that does not.
            disturbed = trial.disturbed if verdict != "holds" else None
            if late <= 1 and attempt < REPEATED and (lateness or disturbed):
                self._tell(msgspec.structs.replace(judged, repeated=lateness or disturbed))
                continue
            self._tell(judged)
            if lateness is None:
                return verdict
            if late > 1:
                self._late_from = min(self._late_from, rate)
                self._ceiling, self.why_ceiling = min(self._ceiling, rate), lateness
                return "late"
        return "undecided"

    def _trial(self, rate: float, seconds: float) -> Trial:
        if self._spent + seconds > self._most:
            raise CannotRun(
                f"no answer within {self._most:g} s of load; {self.known}; give it more --minutes, or a machine on "
                "which nothing else runs"
            )
        self._seed += 1
        self._spent += seconds
        self._left = Left(max(0, self._left.trials - 1), max(0.0, self._left.seconds - seconds))
        return self._measure(rate, seconds, self._seed)

    def _lateness(self, rate: float, trial: Trial) -> str | None:
        """Why the generator and not the server is slow; null where it is not."""
        p, limit = self._objective.p, self._objective.limit_ms * 1e6
        if len(trial.latencies) < least_samples(p):
            return None
        intended, service = (percentile(np.sort(values), p) for values in (trial.latencies, trial.service))
        # A server whose service time exceeds the limit fails by itself, however late the client is.
        if service > limit or intended - service <= MAX_LAG * limit:
            return None
        return (
            f"the load generator is the limit: at {rate:g} requests/s p{p * 100:g} is {number(intended / 1e6)} ms from "
            f"the intended start and {number(service / 1e6)} ms from sending; give it more --processes, a core of its "
            "own, or a lower --max-rate"
        )

    def _judge(self, step: str, rate: float, seconds: float, trial: Trial) -> JudgedTrial:
        p = self._objective.p
        found = exceedance(trial.latencies, self._objective.limit_ms * 1e6, p, CONFIDENCE)
        value = percentile(np.sort(trial.latencies), p) / 1e6 if found.requests else inf
        percentile_ms = value if value < inf else None
        return JudgedTrial(step=step, rate=rate, seconds=seconds, percentile_ms=percentile_ms, exceedance=found)

    def _tell(self, judged: JudgedTrial) -> None:
        self.trials.append(judged)
        self._report(judged, self._left)

    def _long(self, rate: float) -> float:
        return longest(self._objective, rate, self._seconds)

    def _expect(self, looks: int, rate: float, confirming: int = 2) -> None:
        """Estimate what is left: trials as long as those of a rate were so far, and the confirming ones."""
        each = max(self._seconds, self._spent / max(1, len({judged.rate for judged in self.trials})))
        self._left = Left(looks + confirming, looks * each + confirming * self._long(rate))

    def _unmet(self) -> CannotRun:
        judged = self.trials[-1]
        if self._late_from <= judged.rate:
            return CannotRun(self.why_ceiling)
        found, objective = judged.exceedance, self._objective
        how = "cannot be met" if found.verdict == "fails" else f"cannot be shown to hold within {judged.seconds:g} s"
        return CannotRun(
            f"{objective} {how} even at {judged.rate:g} request/s: {found.share:.3%} of {found.requests} requests took "
            f"longer or failed ({CONFIDENCE * 100:g} % interval {found.low:.3%} to {found.high:.3%}, "
            f"allowed {1 - objective.p:.3%})"
        )


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
