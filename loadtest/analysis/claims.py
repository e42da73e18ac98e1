"""Published claims, judged on a run: who said what where, whether it holds here, and under which protocol.

A claim is data in the study's TOML file. What it says must be one of the comparisons below; one that is none of them,
or whose cells this run does not hold, is not testable here, and the ledger says why.
"""

from collections.abc import Callable, Iterable, Sequence
from math import sqrt
from typing import Literal

from loadtest.analysis.compare import ratio
from loadtest.analysis.pairs import Percentiles
from loadtest.analysis.surface import Response, wilson
from loadtest.analysis.verdicts import Row
from medserve.spec import Noun
from medserve.study import Claim, Subject

Finding = Literal["holds", "does not hold", "undecided", "not testable here"]


class Entry(Noun, frozen=True, kw_only=True):
    """A claim under one protocol: `value` with its 95 % interval stands against the claim's `at_least`."""

    claim: Claim
    protocol: str
    finding: Finding
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str | None = None


Responses = Callable[[str, str, str], Response | None]
"""From a framework, a format and a profile to the response over resolution."""


def judge(
    claims: Iterable[Claim], rows: Sequence[Row], percentiles: Percentiles, responses: Responses, images: int
) -> list[Entry]:
    """Every claim under every protocol (profile and threads) of the run that can speak to it.

    `images` is the size of the test split, from which accuracies have their intervals.
    """
    found: list[Entry] = []
    for claim in claims:
        match claim.test:
            case "faster":
                found += _faster(claim, rows, percentiles)
            case "accurate":
                found.append(_accurate(claim, rows, images))
            case "more-accurate":
                found.append(_more_accurate(claim, rows, images))
            case "sublinear":
                found += _sublinear(claim, rows, responses)
            case "none":
                found.append(Entry(claim=claim, protocol="", finding="not testable here", reason=claim.why))
    return found


def _faster(claim: Claim, rows: Sequence[Row], percentiles: Percentiles) -> list[Entry]:
    """Second over first of the medians, at the claim's size: at least `at_least` times as long."""
    first, second = (_cells(subject, claim, rows) for subject in (claim.first, claim.second))
    found = []
    for protocol in first.keys() & second.keys():
        one = ratio(percentiles(first[protocol]["cell"]), percentiles(second[protocol]["cell"]))
        finding = _finding(one.low, one.high, claim.at_least)
        entry = Entry(claim=claim, protocol=protocol, finding=finding, value=one.value, low=one.low, high=one.high)
        found.append(entry)
    return sorted(found, key=lambda entry: entry.protocol) or [_untested(claim, "this run does not time both")]


def _accurate(claim: Claim, rows: Sequence[Row], images: int) -> Entry:
    accuracy = _accuracy(claim.first, claim, rows)
    if accuracy is None:
        return _untested(claim, "this run does not hold the network")
    bounds = wilson(accuracy, images)
    finding = _finding(bounds.low, bounds.high, claim.at_least)
    return Entry(claim=claim, protocol="test split", finding=finding, value=accuracy, low=bounds.low, high=bounds.high)


def _more_accurate(claim: Claim, rows: Sequence[Row], images: int) -> Entry:
    """Difference of two accuracies, with the interval of Newcombe (1998), method 10."""
    accuracies = [_accuracy(subject, claim, rows) for subject in (claim.first, claim.second)]
    if accuracies[0] is None or accuracies[1] is None:
        return _untested(claim, "this run does not hold both networks")
    first, second = wilson(accuracies[0], images), wilson(accuracies[1], images)
    value = first.value - second.value
    low = value - sqrt((first.value - (first.low or 0)) ** 2 + ((second.high or 1) - second.value) ** 2)
    high = value + sqrt(((first.high or 1) - first.value) ** 2 + (second.value - (second.low or 0)) ** 2)
    finding = _finding(low, high, claim.at_least)
    return Entry(claim=claim, protocol="test split", finding=finding, value=value, low=low, high=high)


def _sublinear(claim: Claim, rows: Sequence[Row], responses: Responses) -> list[Entry]:
    """The scaling exponent of latency over pixels lies below 1: the claim that it is not proportional."""
    found = []
    for profile in dict.fromkeys(row["profile"] for row in rows if row["mode"] == "in-process"):
        formats = dict.fromkeys(row["format"] for row in rows if row["framework"] == claim.first.framework)
        for form in formats:
            if not _is_form(claim.first, form):
                continue
            response = responses(claim.first.framework, form, profile)
            if response is not None:
                one = response.exponent
                finding = _finding(None if one.high is None else -one.high, None if one.low is None else -one.low, -1.0)
                entry = Entry(
                    claim=claim, protocol=profile, finding=finding, value=one.value, low=one.low, high=one.high
                )
                found.append(entry)
    return found or [_untested(claim, "this run holds fewer than two sizes")]


def _finding(low: float | None, high: float | None, at_least: float) -> Finding:
    if low is None or high is None:
        return "undecided"
    return "holds" if low >= at_least else "does not hold" if high < at_least else "undecided"


def _untested(claim: Claim, reason: str) -> Entry:
    return Entry(claim=claim, protocol="", finding="not testable here", reason=reason)


def _cells(subject: Subject, claim: Claim, rows: Sequence[Row]) -> dict[str, Row]:
    """The rows of a subject at the claim's size, by protocol."""
    size = _size(claim, rows)
    return {
        f"{row['profile']}, threads: {row['threads'] or 'all'}": row
        for row in rows
        if (row["framework"], row["size"]) == (subject.framework, size)
        and _is_form(subject, row["format"])
        and row["status"] == "done"
    }


def _accuracy(subject: Subject, claim: Claim, rows: Sequence[Row]) -> float | None:
    size = _size(claim, rows)
    accuracies = (row["accuracy"] for row in rows if (row["framework"], row["size"]) == (subject.framework, size))
    return next((one for one in accuracies if one is not None), None)


def _size(claim: Claim, rows: Sequence[Row]) -> int:
    sizes: list[int] = sorted({row["size"] for row in rows})
    return sizes[0] if claim.size == "smallest" else sizes[-1]


def _is_form(subject: Subject, form: str | None) -> bool:
    return form is not None and (form != "onnx" if subject.format == "native" else form == subject.format)
