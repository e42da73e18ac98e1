"""Which deployments hold a study's objective, which do not, and which are undecided."""

from collections.abc import Callable, Iterable, Mapping
from math import isfinite, log, sqrt
from statistics import stdev
from typing import Literal

from msgspec import Struct

from loadtest.analysis.compare import ENOUGH
from loadtest.analysis.intervals import Interval, half_width, log_t_interval, wilson
from loadtest.results.row import PERCENTILES, Row
from medserve.measures import objective_profile
from medserve.study import Objective, Study

Standing = Literal["passes", "undecided", "fails", "not measured"]
Launches = Callable[[str, str], Mapping[int, float]]
"""From a percentile's name and a cell's to the milliseconds of each launch, infinite where too many requests failed."""


class Held(Struct, frozen=True):
    """How a row stands against an objective: by latency and accuracy, the worse of both.

    `latency` is in milliseconds; `more` estimates how many more launches decide, null where launches do not.
    """

    row: Row
    standing: Standing
    latency: Interval
    accuracy: Interval
    reason: str = ""
    more: int | None = None

    @property
    def median(self) -> float:
        """What those that pass are ordered by."""
        return self.row.median


def in_words(objective: Objective) -> str:
    """`p99 < 5 ms at 100 requests/s (Poisson arrivals), accuracy at least 90 %`."""
    name, limit = percentile(objective)
    arrivals = f"{objective.arrivals.capitalize()} arrivals" if objective.arrivals == "poisson" else "constant rate"
    words = f"{name} < {limit:g} ms"
    words += f" at {objective.rate:g} requests/s ({arrivals})" if objective.rate is not None else ""
    return words + ("" if objective.accuracy is None else f", accuracy at least {objective.accuracy * 100:g} %")


def percentile(objective: Objective) -> tuple[str, float]:
    """The percentile that is limited, and its limit in milliseconds."""
    limits = {"p50": objective.p50_ms, "p90": objective.p90_ms, "p99": objective.p99_ms}
    return next((name, limit) for name, limit in limits.items() if limit is not None)


def deadline_ms(study: Study) -> float | None:
    """The milliseconds within which an answer of an open loop counts: the objective's, else the server's deadline."""
    return study.deadline_ms if study.objective is None else percentile(study.objective)[1]


def judge(objective: Objective, rows: Iterable[Row], launches: Launches, images: Callable[[Row], int]) -> list[Held]:
    """Every row under the objective's profile that has a model; `images` is the number that its accuracy rests on."""
    profile = objective_profile(objective).name
    return [
        _held(objective, row, launches, images) for row in rows if row.profile == profile and row.framework is not None
    ]


def _held(objective: Objective, row: Row, launches: Launches, images: Callable[[Row], int]) -> Held:
    name, limit = percentile(objective)
    if row.status != "done" or not (row.valid or row.late):
        nothing = Interval(reason=row.reason)
        return Held(row, "not measured", nothing, nothing, row.reason or "no valid certificate")
    accuracy = Interval(reason="there are no labels")
    if row.accuracy is not None:
        accuracy = wilson(row.accuracy, images(row))
    standing, latency, reason, more = _latency(list(launches(name, row.cell).values()), name, limit, row)
    if row.late:
        # What the generator adds can make a deployment fail, and not pass.
        passes = standing == "passes"
        standing, more = ("passes", None) if passes else ("undecided", None)
        reason = "although the client sent late" if passes else "the client sent late"
    of_accuracy = _against(objective.accuracy, accuracy)
    if of_accuracy == "fails":
        return Held(row, "fails", latency, accuracy, "its accuracy is too low")
    if standing == "passes" and of_accuracy == "undecided":
        reason = accuracy.reason or "the interval of its accuracy holds the limit"
        return Held(row, "undecided", latency, accuracy, reason)
    return Held(row, standing, latency, accuracy, reason, more)


def _latency(values: list[float], name: str, limit: float, row: Row) -> tuple[Standing, Interval, str, int | None]:
    """Against the limit, by Student's interval over the logarithms of the launches' percentiles."""
    if not values:
        short = row.percentile(name).reason or "no launch"
        return "undecided", Interval(reason=short), short, None
    if not all(map(isfinite, values)):
        return "fails", Interval(), f"more than {(1 - PERCENTILES[name]) * 100:g} % of the requests failed", None
    found = log_t_interval([max(value, 1e-6) for value in values])
    if found.low is None or found.high is None:
        return "undecided", found, "one launch has no interval", 1
    if found.high < limit:
        return "passes", found, "", None
    if found.low > limit:
        return "fails", found, "", None
    return "undecided", found, "the interval holds the limit", _more_launches(values, limit)


def _more_launches(values: list[float], limit: float) -> int | None:
    """Launches until the interval leaves the limit, if mean and spread stay the same; null beyond ENOUGH."""
    logs = [log(value / limit) for value in values]
    distance, deviation = abs(sum(logs) / len(logs)), stdev(logs)
    counts = range(len(values) + 1, ENOUGH)
    return next((n - len(values) for n in counts if half_width(deviation, n - 1) / sqrt(n) < distance), None)


def _against(least: float | None, accuracy: Interval) -> Standing:
    if least is None or (accuracy.low or 0.0) >= least:
        return "passes"
    return "fails" if accuracy.high is not None and accuracy.high < least else "undecided"
