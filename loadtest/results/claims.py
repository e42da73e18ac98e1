"""Published claims, judged on a run: who said what where, whether it holds here, and under which protocol.

A claim is data in the study's TOML file. What it says must be one of the comparisons below; one that is none of them,
or whose cells this run does not hold, is not testable here, and the ledger says why.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import Literal

import msgspec

from loadtest.analysis.compare import Ratio, ratio
from loadtest.analysis.intervals import Interval, difference_of_shares, wilson
from loadtest.analysis.scaling import Response
from loadtest.results import protocols
from loadtest.results.flags import Row
from loadtest.results.pairs import Percentiles
from loadtest.results.protocols import Protocol, Turn
from medserve.spec import Noun
from medserve.study import Claim, Subject

Finding = Literal["holds", "does not hold", "undecided", "not testable here"]


class Entry(Noun, frozen=True, kw_only=True):
    """A claim under one protocol: `value` with its 95 % interval stands against the claim's `at_least`.

    `profile` and `threads` are the protocol of a latency. `turn` says what the protocol does to the order of the two
    that the `sound` profile finds; both are null where the protocol is sound itself.
    """

    claim: Claim
    finding: Finding
    profile: str | None = None
    threads: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    sound: str | None = None
    turn: Turn | None = None
    reason: str | None = None


Responses = Callable[[str, str, str], Response | None]
"""From a framework, a format and a profile to the response over resolution."""

Accuracies = Mapping[tuple[str, int], Sequence[float]]
"""Of all that a framework trained at a size, on the test split: networks, recipes, seeds."""

Accuracy = Callable[[Claim, Subject], float | None]


def judge(
    claims: Iterable[Claim],
    rows: Sequence[Row],
    centres: Percentiles,
    responses: Responses,
    accuracies: Accuracies,
    images: int,
) -> list[Entry]:
    """Every claim under every protocol (profile and threads) of the run that can speak to it.

    `rows` are all of a run, those with traps too; `centres` gives the milliseconds that a protocol prints, by block.
    `images` is the size of the test split, from which accuracies have their intervals.
    """

    def accuracy(claim: Claim, subject: Subject) -> float | None:
        """The mean of all that it trained at the claim's size; of a claim on its configurations, that of the best."""
        known = accuracies.get((subject.framework, _size(claim, rows)), ())
        return None if not known else max(known) if claim.test == "configuration" else fmean(known)

    found: list[Entry] = []
    for claim in claims:
        match claim.test:
            case "faster":
                found += _faster(claim, rows, centres)
            case "accurate" | "configuration":
                found.append(_accurate(claim, accuracy, images))
            case "more-accurate":
                found.append(_more_accurate(claim, accuracy, images))
            case "sublinear":
                found += _sublinear(claim, rows, responses)
            case "trade-off":
                found += _trade_off(claim, rows, centres, accuracy, images)
            case "none":
                found.append(_untested(claim, claim.why))
    return found


def _faster(claim: Claim, rows: Sequence[Row], centres: Percentiles) -> list[Entry]:
    """Second over first, at the claim's size: at least `at_least` times as long. Sound protocols come first."""
    first, second = (_cells(subject, claim, rows) for subject in (claim.first, claim.second))
    sound = protocols.sound([*first.values(), *second.values()])
    ratios: dict[Protocol, Ratio] = {}
    found = []
    for protocol in sorted(sound, key=lambda one: (sound[one] is not None, one)):
        held_against = sound[protocol]
        # A trap that only one of the two can step into is measured against the other's sound figure.
        cells = [of.get(protocol) or (held_against and of.get(held_against)) for of in (first, second)]
        if not cells[0] or not cells[1]:
            continue
        one = ratios[protocol] = ratio(centres(cells[0]["cell"]), centres(cells[1]["cell"]))
        found.append(
            Entry(
                claim=claim,
                finding=_finding(one.low, one.high, claim.at_least),
                profile=protocol[0],
                threads=protocol[1],
                value=one.value,
                low=one.low,
                high=one.high,
                sound=held_against and held_against[0],
                turn=protocols.turn(ratios[held_against], one) if held_against in ratios else None,
            )
        )
    return found or [_untested(claim, "this run does not time both")]


def _accurate(claim: Claim, accuracy: Accuracy, images: int) -> Entry:
    share = accuracy(claim, claim.first)
    if share is None:
        return _untested(claim, "this run does not hold the network")
    return _bounded(claim, wilson(share, images))


def _more_accurate(claim: Claim, accuracy: Accuracy, images: int) -> Entry:
    first, second = (accuracy(claim, subject) for subject in (claim.first, claim.second))
    if first is None or second is None:
        return _untested(claim, "this run does not hold both networks")
    return _bounded(claim, difference_of_shares(first, second, images))


def _sublinear(claim: Claim, rows: Sequence[Row], responses: Responses) -> list[Entry]:
    """The scaling exponent of latency over pixels lies below 1: the claim that it is not proportional."""
    found = []
    for profile in dict.fromkeys(row["profile"] for row in rows if row["mode"] == "in-process" and not row["trap"]):
        formats = dict.fromkeys(row["format"] for row in rows if row["framework"] == claim.first.framework)
        for form in formats:
            if not _is_form(claim.first, form):
                continue
            response = responses(claim.first.framework, form, profile)
            if response is not None:
                one = response.exponent
                finding = _finding(None if one.high is None else -one.high, None if one.low is None else -one.low, -1.0)
                found.append(msgspec.structs.replace(_bounded(claim, one), finding=finding, profile=profile))
    return found or [_untested(claim, "this run holds fewer than two sizes")]


def _trade_off(claim: Claim, rows: Sequence[Row], centres: Percentiles, accuracy: Accuracy, images: int) -> list[Entry]:
    """Of two native frameworks one is faster and the other more accurate, both for certain: the clearest such pair.

    Where there is none, it does not hold if the most accurate is also the fastest, and is undecided otherwise.
    """
    names = dict.fromkeys(row["framework"] for row in rows if row["framework"])
    subjects = [Subject(framework=name) for name in names]
    shares = {one.framework: accuracy(claim, one) for one in subjects}
    sound = protocols.sound([row for row in rows if row["framework"] and row["batch"] == 1])
    found = []
    for protocol in (one for one, other in sound.items() if other is None):
        timed = {one.framework: cell for one in subjects if (cell := _cells(one, claim, rows).get(protocol))}
        known = {name: share for name in timed if (share := shares[name]) is not None}
        gains, winner = [], True
        for quick, exact in permutations(known, 2):
            one = ratio(centres(timed[quick]["cell"]), centres(timed[exact]["cell"]))
            gain = difference_of_shares(known[exact], known[quick], images)
            if one.low is not None and one.low > 1:
                gains.append(gain)
                winner = winner and (gain.high or 0.0) < 0
        if not gains:
            continue
        best = max(gains, key=lambda gain: gain.low or 0.0)
        finding: Finding = "holds" if (best.low or 0.0) > 0 else "does not hold" if winner else "undecided"
        entry = _bounded(claim, best)
        found.append(msgspec.structs.replace(entry, finding=finding, profile=protocol[0], threads=protocol[1]))
    return found or [_untested(claim, "this run does not tell two frameworks apart by latency")]


def _bounded(claim: Claim, one: Interval) -> Entry:
    finding = _finding(one.low, one.high, claim.at_least)
    return Entry(claim=claim, finding=finding, value=one.value, low=one.low, high=one.high)


def _finding(low: float | None, high: float | None, at_least: float) -> Finding:
    if low is None or high is None:
        return "undecided"
    return "holds" if low >= at_least else "does not hold" if high < at_least else "undecided"


def _untested(claim: Claim, reason: str) -> Entry:
    return Entry(claim=claim, finding="not testable here", reason=reason)


def _cells(subject: Subject, claim: Claim, rows: Sequence[Row]) -> dict[Protocol, Row]:
    """The rows of a subject at the claim's size, by protocol."""
    size = _size(claim, rows)
    return {
        protocols.of(row): row
        for row in rows
        if (row["framework"], row["size"]) == (subject.framework, size)
        and _is_form(subject, row["format"])
        and row["status"] == "done"
    }


def _size(claim: Claim, rows: Sequence[Row]) -> int:
    sizes: list[int] = sorted({row["size"] for row in rows})
    return sizes[0] if claim.size == "smallest" else sizes[-1]


def _is_form(subject: Subject, form: str | None) -> bool:
    return form is not None and (form != "onnx" if subject.format == "native" else form == subject.format)
