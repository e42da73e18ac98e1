"""Published claims, judged on a run: whether each holds here, and under which protocol of measuring.

A claim is data in the study's TOML file. It must be one of the comparisons below; one that is none of them, or whose
cells this run does not have, is not testable here, and its entry says why. A protocol is a profile with a number of
threads. Some make a timing mistake on purpose; what that does to a ranking is judged too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import Literal

import msgspec

from loadtest.analysis.compare import Judged, Verdict
from loadtest.analysis.intervals import Interval, difference_of_shares, wilson
from loadtest.analysis.scaling import Response
from loadtest.results.pairs import Comparisons
from loadtest.results.row import Row
from medserve.spec import Noun
from medserve.study import Claim, Subject

Finding = Literal["holds", "does not hold", "undecided", "not testable here"]
Effect = Literal["the same", "reversed", "masked", "spurious"]
"""What a ranking of two is under a timing mistake."""
RANKING: dict[Verdict, int] = {"slower": 1, "faster": -1}
Protocol = tuple[str, int]
"""A profile and a number of threads."""


class JudgedClaim(Noun, frozen=True, kw_only=True):
    """A claim under one protocol: `value` with its 95 % interval, to be compared with the claim's `at_least`.

    `verdict` is that on the second of two latencies, `profile` and `threads` their protocol. For a protocol with a
    timing mistake, `sound` is the profile without it, and `effect` says what the mistake does to the ranking that the
    sound profile gives.
    """

    claim: Claim
    finding: Finding
    verdict: Verdict | None = None
    profile: str | None = None
    threads: int | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    sound: str | None = None
    effect: Effect | None = None
    reason: str | None = None


Responses = Callable[[str, str, str], Response | None]
"""From a framework, a format and a profile to the response over resolution."""

Accuracies = Mapping[tuple[str, int], Sequence[float]]
"""By framework and size, the test accuracies of all networks that it trained: architectures, recipes, seeds."""

Accuracy = Callable[[Claim, Subject], float | None]


def judge(
    claims: Iterable[Claim],
    rows: Sequence[Row],
    comparisons: Comparisons,
    responses: Responses,
    accuracies: Accuracies,
    images: int,
) -> list[JudgedClaim]:
    """Every claim under every protocol of the run that can test it.

    `rows` are all rows of a run, those with timing mistakes too; `comparisons` judges them by the milliseconds that a
    protocol prints. `images` is the size of the test split, which gives accuracies their intervals.
    """

    def accuracy(claim: Claim, subject: Subject) -> float | None:
        """The mean of all networks at the claim's size; for a claim on configurations, the best of them."""
        known = accuracies.get((subject.framework, _size(claim, rows)), ())
        return None if not known else max(known) if claim.test == "configuration" else fmean(known)

    found: list[JudgedClaim] = []
    for claim in claims:
        match claim.test:
            case "faster":
                found += _faster(claim, rows, comparisons)
            case "accurate" | "configuration":
                found.append(_accurate(claim, accuracy, images))
            case "more-accurate":
                found.append(_more_accurate(claim, accuracy, images))
            case "sublinear":
                found += _sublinear(claim, rows, responses)
            case "trade-off":
                found += _trade_off(claim, rows, comparisons, accuracy, images)
            case "none":
                found.append(_untested(claim, claim.why))
    return found


def sound_protocols(rows: Iterable[Row]) -> dict[Protocol, Protocol | None]:
    """Each protocol with the sound one that it is compared with; null for a protocol that is sound itself.

    Where there is an open loop, a closed loop is a timing mistake: it omits the requests that it delays.
    """
    rows = list(rows)
    plain: dict[str, Protocol] = {}
    for row in rows:
        if row.trap is None and row.batch == 1:
            plain.setdefault(row.mode, _protocol(row))
    found: dict[Protocol, Protocol | None] = {}
    for row in rows:
        if row.trap is not None:
            found[_protocol(row)] = plain.get(row.mode)
        elif row.mode == "closed-loop" and row.batch == 1:
            found[_protocol(row)] = plain.get("open-loop")
        else:
            found[_protocol(row)] = None
    return found


def effect_on_ranking(sound: Verdict, mistaken: Verdict) -> Effect:
    """What happens to the ranking of two, which their verdict gives, under a timing mistake."""
    before, after = (RANKING.get(verdict, 0) for verdict in (sound, mistaken))
    if before == after:
        return "the same"
    return "reversed" if before and after else "masked" if before else "spurious"


def _protocol(row: Row) -> Protocol:
    return row.profile, row.threads


def _faster(claim: Claim, rows: Sequence[Row], comparisons: Comparisons) -> list[JudgedClaim]:
    """Second over first, at the claim's size: at least `at_least` times as long. Sound protocols come first."""
    first, second = (_cells(subject, claim, rows) for subject in (claim.first, claim.second))
    sound = sound_protocols([*first.values(), *second.values()])
    verdicts: dict[Protocol, Verdict] = {}
    found = []
    for protocol in sorted(sound, key=lambda known: (sound[known] is not None, known)):
        reference = sound[protocol]
        # A mistake that applies to one of the two only is compared with the other's sound figure.
        cells = [of.get(protocol) or (reference and of.get(reference)) for of in (first, second)]
        if not cells[0] or not cells[1]:
            continue
        judged = comparisons.judge(cells[0], cells[1])
        measured, verdicts[protocol] = judged.ratio, judged.verdict
        found.append(
            JudgedClaim(
                claim=claim,
                finding=_of_pair(judged, claim.at_least),
                verdict=judged.verdict,
                profile=protocol[0],
                threads=protocol[1],
                value=measured.value,
                low=measured.low,
                high=measured.high,
                sound=reference and reference[0],
                effect=effect_on_ranking(verdicts[reference], judged.verdict) if reference in verdicts else None,
            )
        )
    return found or [_untested(claim, "this run does not time both")]


def _accurate(claim: Claim, accuracy: Accuracy, images: int) -> JudgedClaim:
    share = accuracy(claim, claim.first)
    if share is None:
        return _untested(claim, "this run does not have the network")
    return _judged(claim, wilson(share, images))


def _more_accurate(claim: Claim, accuracy: Accuracy, images: int) -> JudgedClaim:
    first, second = (accuracy(claim, subject) for subject in (claim.first, claim.second))
    if first is None or second is None:
        return _untested(claim, "this run does not have both networks")
    return _judged(claim, difference_of_shares(first, second, images))


def _sublinear(claim: Claim, rows: Sequence[Row], responses: Responses) -> list[JudgedClaim]:
    """The scaling exponent of latency over pixels lies below 1: latency is not proportional to the pixels."""
    found = []
    for profile in dict.fromkeys(row.profile for row in rows if row.mode == "in-process" and not row.trap):
        formats = dict.fromkeys(row.format for row in rows if row.framework == claim.first.framework)
        for form in formats:
            if form is None or not _is_format(claim.first, form):
                continue
            response = responses(claim.first.framework, form, profile)
            if response is not None:
                exponent = response.exponent
                low, high = (None if end is None else -end for end in (exponent.high, exponent.low))
                judged = _judged(claim, exponent)
                found.append(msgspec.structs.replace(judged, finding=_finding(low, high, -1.0), profile=profile))
    return found or [_untested(claim, "this run has fewer than two sizes")]


def _trade_off(
    claim: Claim, rows: Sequence[Row], comparisons: Comparisons, accuracy: Accuracy, images: int
) -> list[JudgedClaim]:
    """One native framework is faster and another more accurate, both with 95 % confidence: the clearest such pair.

    Where there is none, the claim does not hold if the most accurate is also the fastest, and is undecided otherwise.
    """
    names = dict.fromkeys(row.framework for row in rows if row.framework)
    subjects = [Subject(framework=name) for name in names]
    shares = {subject.framework: accuracy(claim, subject) for subject in subjects}
    sound = sound_protocols([row for row in rows if row.framework and row.batch == 1])
    found = []
    for protocol in (protocol for protocol, reference in sound.items() if reference is None):
        timed = {
            subject.framework: cell for subject in subjects if (cell := _cells(subject, claim, rows).get(protocol))
        }
        known = {name: share for name in timed if (share := shares[name]) is not None}
        gains, accurate_is_faster = [], True
        for quick, exact in permutations(known, 2):
            slowdown = comparisons.judge(timed[quick], timed[exact])
            gain = difference_of_shares(known[exact], known[quick], images)
            if slowdown.verdict == "slower":
                gains.append(gain)
                accurate_is_faster = accurate_is_faster and (gain.high or 0.0) < 0
        if not gains:
            continue
        best = max(gains, key=lambda gain: gain.low or 0.0)
        finding: Finding = "holds" if (best.low or 0.0) > 0 else "does not hold" if accurate_is_faster else "undecided"
        judged = _judged(claim, best)
        found.append(msgspec.structs.replace(judged, finding=finding, profile=protocol[0], threads=protocol[1]))
    return found or [_untested(claim, "this run does not tell two frameworks apart by latency")]


def _judged(claim: Claim, measured: Interval) -> JudgedClaim:
    finding = _finding(measured.low, measured.high, claim.at_least)
    return JudgedClaim(claim=claim, finding=finding, value=measured.value, low=measured.low, high=measured.high)


def _finding(low: float | None, high: float | None, at_least: float) -> Finding:
    if low is None or high is None:
        return "undecided"
    return "holds" if low >= at_least else "does not hold" if high < at_least else "undecided"


def _of_pair(judged: Judged, at_least: float) -> Finding:
    """Whether the second takes at least so many times as long as the first; never against the verdict on the two."""
    verdict, found = judged.verdict, _finding(judged.ratio.low, judged.ratio.high, at_least)
    if verdict == "equivalent" and at_least >= 1:
        return "does not hold"
    # The interval is of this pair alone; the verdict holds for its whole family.
    if found == "holds" and at_least >= 1 and verdict != "slower":
        return "undecided"
    if found == "does not hold" and at_least <= 1 and verdict != "faster":
        return "undecided"
    return found


def _untested(claim: Claim, reason: str) -> JudgedClaim:
    return JudgedClaim(claim=claim, finding="not testable here", reason=reason)


def _cells(subject: Subject, claim: Claim, rows: Sequence[Row]) -> dict[Protocol, Row]:
    """The rows of a subject at the claim's size, by protocol."""
    size = _size(claim, rows)
    return {
        _protocol(row): row
        for row in rows
        if (row.framework, row.size) == (subject.framework, size) and _is_format(subject, row.format) and row.usable
    }


def _size(claim: Claim, rows: Sequence[Row]) -> int:
    sizes: list[int] = sorted({row.size for row in rows})
    return sizes[0] if claim.size == "smallest" else sizes[-1]


def _is_format(subject: Subject, form: str | None) -> bool:
    return form is not None and (form != "onnx" if subject.format == "native" else form == subject.format)
