"""The highest rate at which a percentile stays below a limit: bracket, bisect, confirm. It knows no server.

`slo_trials` judges each rate with a confidence of 90 %, so that both ends together have one of 80 %. A rate that stays
undecided belongs to the interval that is the result. Both ends of the interval rest on confirming trials.
"""

from itertools import count
from math import ceil, log, sqrt

from loadtest.analysis.slo_trials import CONFIDENCE, JudgedTrial, Measure, Objective, Report, Trials
from medserve.errors import CannotRun
from medserve.spec import Noun

LOWEST_RATE = 1.0
"""Requests per second below which no rate is tried."""
START_RATE = 16.0
"""Requests per second of the first trial by default."""
RESOLUTION = 0.15
"""The bracket is narrowed until its ends differ by at most this share."""
BESIDE = 0.065
"""How far, as a share, the ends lie at first from a rate that stays undecided."""
STEP = 0.05
"""The first step, as a share, from an end that is not confirmed; each further one is larger by the same share."""
MOST = 20
"""Trials after which each step halves or doubles the rate, so that the search ends."""
MOST_SECONDS = 480.0
"""Seconds of load after which a search ends without an answer, where a caller says nothing else."""


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
    trials = Trials(objective, measure, report, seconds, seed, most_seconds)
    try:
        return _Search(trials, ceiling, why_ceiling).result(start)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt(f"{str(interrupt) or 'interrupted'}; {trials.known}") from None


class _Search:
    def __init__(self, trials: Trials, ceiling: float, why_ceiling: str) -> None:
        self._trials, self._given, self._why_given = trials, ceiling, why_ceiling

    @property
    def _ceiling(self) -> float:
        return min(self._given, self._trials.late_from)

    def result(self, start: float) -> SearchResult:
        low, high = self._narrow(*self._bracket(min(start, self._ceiling)))
        low, failed = self._confirm_low(low)
        if failed is None:
            low, failed = self._confirm_high(low, high)
        why = self._trials.why_late if self._trials.late_from <= self._given else self._why_given
        return SearchResult(
            objective=self._trials.objective,
            low=low,
            high=failed,
            trials=tuple(self._trials.done),
            reason=why if failed is None else None,
        )

    def _bracket(self, rate: float) -> tuple[float, float]:
        """Double or halve the rate: to one that holds and one above it that does not, or to the ceiling."""
        self._trials.expect(5, rate)
        found, low = self._trials.find("bracket", rate), 0.0
        while found == "holds":
            if rate >= self._ceiling:
                return rate, rate
            low, rate = rate, min(2 * rate, self._ceiling)
            found = self._trials.find("bracket", rate)
        if found == "undecided":
            return self._around(rate)
        while not low:
            if rate <= LOWEST_RATE:
                raise self._unmet()
            high, rate = rate, max(_rounded(rate / 2), LOWEST_RATE)
            found = self._trials.find("bracket", rate)
            if found == "undecided":
                return self._around(rate)
            low, rate = (rate, high) if found == "holds" else (0.0, rate)
        return low, rate

    def _narrow(self, low: float, high: float) -> tuple[float, float]:
        """Bisect geometrically until the ends are near one another, or a rate between them is undecided."""
        while high > low * (1 + RESOLUTION):
            self._trials.expect(ceil(log(log(high / low) / log(1 + RESOLUTION), 2)), low)
            middle = _rounded(sqrt(low * high))
            found = self._trials.find("bisect", middle)
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
            self._trials.expect(0, rate, confirming=1)
            if (found := self._trials.look("confirm", rate, self._confirming(rate, attempt))) == "holds":
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
            if low < rate < self._trials.late_from:
                self._trials.expect(0, rate, confirming=0)
                found = self._trials.look("confirm", rate, self._confirming(rate, attempt))
                if found == "fails":
                    return low, rate
                low = rate if found == "holds" else low
            if rate >= self._ceiling:
                return low, None
            rate = min(_rounded(rate * self._factor(attempt)), self._ceiling)
        raise AssertionError  # it ends at the ceiling

    def _factor(self, attempt: int) -> float:
        return 2.0 if len(self._trials.done) > MOST else 1 + attempt * STEP

    def _confirming(self, rate: float, attempt: int) -> float:
        """The seconds of a trial: each further attempt is longer, because the one before it did not decide."""
        return self._trials.long(rate) * (1 + attempt) / 2

    def _unmet(self) -> CannotRun:
        judged = self._trials.done[-1]
        if self._trials.late_from <= judged.rate:
            return CannotRun(self._trials.why_late)
        found, objective = judged.exceedance, self._trials.objective
        how = "cannot be met" if found.verdict == "fails" else f"cannot be shown to hold within {judged.seconds:g} s"
        return CannotRun(
            f"{objective} {how} even at {judged.rate:g} request/s: {found.share:.3%} of {found.requests} requests took "
            f"longer or failed ({CONFIDENCE * 100:g} % interval {found.low:.3%} to {found.high:.3%}, "
            f"allowed {1 - objective.p:.3%})"
        )


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")
