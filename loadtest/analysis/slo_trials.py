"""Whether a percentile stays below a limit at one rate, by a trial or a few. It knows no server.

`within_launch.exceedance` judges a trial: holds, fails or undecided, each of the first two with a confidence of 90 %.
An undecided trial is prolonged once. A trial that was disturbed, and one in which the generator was late, is repeated,
unless the rate holds in spite of it.
"""

import re
from collections.abc import Callable
from math import inf
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from loadtest.analysis.intervals import least_samples, percentile
from loadtest.analysis.within_launch import Exceedance, exceedance
from medserve.errors import BadInput, CannotRun
from medserve.numbers import number
from medserve.spec import Noun

CONFIDENCE = 0.8
"""Of an interval: that the truth lies between its ends. A higher one would take minutes where a machine has hiccups."""
LONG = 4.0
"""A confirming or prolonged trial is so many times as long; at a low rate, it has four times the least samples."""
REPEATED = 2
"""How often a trial is repeated at most that was disturbed, or in which the generator was late."""
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


def longest(objective: Objective, rate: float, seconds: float) -> float:
    """Seconds of a trial that is prolonged or confirms, where a first one takes `seconds`."""
    return max(LONG * seconds, 4 * least_samples(objective.p) / rate)


def check(
    objective: Objective, measure: Measure, report: Report, rate: float, *, seconds: float, seed: int = 0
) -> JudgedTrial:
    """The verdict on one rate: of a trial of `seconds`, prolonged once to LONG times as long where it is undecided.

    Raises CannotRun when the client rather than the server is late.
    """
    trials = Trials(objective, measure, report, seconds, seed)
    if trials.find("check", rate) == "late":
        raise CannotRun(trials.why_late)
    return trials.done[-1]


class Trials:
    """Trials of rates for an objective, at most `most_seconds` of load in all; those that ended are in `done`.

    `late_from` is the lowest rate at which the generator was late again and again, and `why_late` says it in words.
    """

    def __init__(
        self,
        objective: Objective,
        measure: Measure,
        report: Report,
        seconds: float,
        seed: int,
        most_seconds: float = inf,
    ) -> None:
        self.objective, self._measure, self._report = objective, measure, report
        self._seconds, self._seed, self._most = seconds, seed, most_seconds
        self.done: list[JudgedTrial] = []
        self._spent, self._left = 0.0, Left(0, 0.0)
        self.late_from, self.why_late = inf, ""

    @property
    def known(self) -> str:
        """What the trials so far say, in words; none of it is confirmed."""
        counted = [judged for judged in self.done if judged.repeated is None]
        held = [judged.rate for judged in counted if judged.exceedance.verdict == "holds"]
        failed = [judged.rate for judged in counted if judged.exceedance.verdict == "fails"]
        low = f"held at {max(held):g} requests/s" if held else "held at no rate"
        high = f"failed at {min(failed):g}" if failed else "failed at none"
        return f"not confirmed: {self.objective} {low} and {high}, in {len(counted)} trials"

    def find(self, step: str, rate: float) -> Found:
        """What a trial of a rate shows; one that is undecided is prolonged."""
        return self.look(step, rate, self._seconds, self.long(rate))

    def look(self, step: str, rate: float, seconds: float, longest: float = 0.0) -> Found:
        """What a trial of so many seconds shows; one that is undecided is prolonged to `longest`."""
        late = 0
        for attempt in range(REPEATED + 1):
            trial = self._trial(rate, seconds)
            judged = self._judge(step, rate, seconds, trial)
            if judged.exceedance.verdict == "undecided" and longest > seconds and self._lateness(judged, trial) is None:
                self._tell(judged)
                trial = trial.followed_by(self._trial(rate, longest - seconds))
                judged = self._judge(step, rate, longest, trial)
            verdict, lateness, why = judged.exceedance.verdict, None, None
            # Neither a late generator nor a disturbance makes a rate hold that does not.
            if verdict != "holds":
                lateness = self._lateness(judged, trial)
                why = lateness or trial.disturbed
            late += lateness is not None
            if late <= 1 and attempt < REPEATED and why:
                self._tell(msgspec.structs.replace(judged, repeated=why))
                continue
            self._tell(judged)
            if lateness is None:
                return verdict
            if late > 1:
                self.late_from, self.why_late = min(self.late_from, rate), lateness
                return "late"
        return "undecided"

    def long(self, rate: float) -> float:
        """Seconds of a trial that is prolonged or confirms."""
        return longest(self.objective, rate, self._seconds)

    def expect(self, looks: int, rate: float, confirming: int = 2) -> None:
        """Estimate what is left: trials as long as those of a rate were so far, and the confirming ones."""
        each = max(self._seconds, self._spent / max(1, len({judged.rate for judged in self.done})))
        self._left = Left(looks + confirming, looks * each + confirming * self.long(rate))

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

    def _lateness(self, judged: JudgedTrial, trial: Trial) -> str | None:
        """Why the generator and not the server is slow; null where it is not, or where too few requests say so."""
        p, limit = self.objective.p, self.objective.limit_ms * 1e6
        if len(trial.latencies) < least_samples(p) and judged.exceedance.verdict != "fails":
            return None
        intended, service = (percentile(np.sort(values), p) for values in (trial.latencies, trial.service))
        # A server whose service time exceeds the limit fails by itself, however late the client is.
        if service > limit or intended - service <= MAX_LAG * limit:
            return None
        return (
            f"the load generator is the limit: at {judged.rate:g} requests/s p{p * 100:g} is "
            f"{number(intended / 1e6)} ms from the intended start and {number(service / 1e6)} ms from sending; give it "
            "more --processes, a core of its own, or a lower --max-rate"
        )

    def _judge(self, step: str, rate: float, seconds: float, trial: Trial) -> JudgedTrial:
        p = self.objective.p
        found = exceedance(trial.latencies, self.objective.limit_ms * 1e6, p, CONFIDENCE)
        value = percentile(np.sort(trial.latencies), p) / 1e6 if found.requests else inf
        percentile_ms = value if value < inf else None
        return JudgedTrial(step=step, rate=rate, seconds=seconds, percentile_ms=percentile_ms, exceedance=found)

    def _tell(self, judged: JudgedTrial) -> None:
        self.done.append(judged)
        self._report(judged, self._left)
