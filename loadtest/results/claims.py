"""Published claims, judged on a run: whether each holds here, and under which protocol of measuring.

A claim is data in the study's TOML file. It must be one of the comparisons below; one that is none of them, or whose
cells this run does not have, is not testable here, and its entry says why. A protocol is a profile with a number of
threads and settings. Some make a timing mistake on purpose; what that does to a ranking is judged too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from loadtest.analysis.compare import Judged, Verdict
from loadtest.analysis.intervals import LEVEL, Interval, difference_of_shares, paired_difference, wilson
from loadtest.analysis.scaling import Response
from loadtest.results.pairs import Comparisons
from loadtest.results.row import OURS, Row
from medserve.spec import Noun
from medserve.study import Claim, Subject

Finding = Literal["holds", "does not hold", "undecided", "not testable here"]
Effect = Literal["the same", "reversed", "masked", "spurious"]
"""What a ranking of two is under a timing mistake."""
RANKING: dict[Verdict, int] = {"slower": 1, "faster": -1}
Protocol = tuple[str, int, str]
"""A profile, a number of threads and settings of the runtimes."""


class JudgedClaim(Noun, frozen=True, kw_only=True):
    """A claim under one protocol: what was `measured`, to be compared with the claim's `at_least`.

    `verdict` is that on the second of two latencies, `profile`, `threads` and `settings` their protocol; `format` is
    that of a claim on one framework. For a protocol with a timing mistake, or with default settings where there are
    tuned ones, `sound` is the one without, and `effect` says what it does to the ranking of the sound protocol.
    """

    claim: Claim
    finding: Finding
    verdict: Verdict | None = None
    profile: str | None = None
    threads: int | None = None
    settings: str = "default"
    format: str | None = None
    measured: Interval = Interval()
    sound: Protocol | None = None
    effect: Effect | None = None
    reason: str | None = None


Responses = Callable[[str, str, str], Response | None]
"""From a framework, a format and a profile to the response over resolution."""

Accuracies = Mapping[tuple[str, int], Sequence[float]]
"""By framework and size, the test accuracies of all networks that it trained: architectures, recipes, seeds."""

Answers = Mapping[tuple[str, int], Sequence[NDArray[np.float64]]]
"""By framework and size, for each configuration that it trained, float64 (seeds, images): the share of an image's
decisions that are right. What is not here has no answers that are kept."""

Difference = Callable[[Claim, Subject, Subject, float], Interval | None]
"""The accuracy of the first of two subjects less the second's, with its interval at a confidence."""


def judge(
    claims: Iterable[Claim],
    rows: Sequence[Row],
    comparisons: Comparisons,
    responses: Responses,
    accuracies: Accuracies,
    answers: Answers,
    images: int,
) -> list[JudgedClaim]:
    """Every claim under every protocol of the run that can test it.

    `rows` are all rows of a run, those with timing mistakes too; `comparisons` judges them by the milliseconds that a
    protocol prints. `images` is the size of the test split, which gives accuracies their intervals; those of the same
    images are compared as pairs.
    """

    def accuracy(claim: Claim, subject: Subject) -> float | None:
        """The mean of all networks at the claim's size; for a claim on configurations, the best of them."""
        known = accuracies.get((subject.framework, _size(claim, rows)), ())
        return None if not known else max(known) if claim.test == "configuration" else fmean(known)

    def difference(claim: Claim, first: Subject, second: Subject, level: float) -> Interval | None:
        ours, theirs = (answers.get((one.framework, _size(claim, rows))) for one in (first, second))
        if ours and theirs:
            return paired_difference(ours, theirs, level)
        shares = [accuracy(claim, one) for one in (first, second)]
        if shares[0] is None or shares[1] is None:
            return None
        return difference_of_shares(shares[0], shares[1], images)

    found: list[JudgedClaim] = []
    for claim in claims:
        match claim.test:
            case "faster":
                found += _faster(claim, rows, comparisons)
            case "accurate" | "configuration":
                found.append(_accurate(claim, accuracy(claim, claim.first), images))
            case "more-accurate":
                found.append(_more_accurate(claim, difference(claim, claim.first, claim.second, LEVEL)))
            case "sublinear":
                found += _sublinear(claim, rows, responses)
            case "trade-off":
                found += _trade_off(claim, rows, comparisons, difference)
            case "none":
                found.append(_untested(claim, claim.why))
    return found


def sound_protocols(rows: Iterable[Row]) -> dict[Protocol, Protocol | None]:
    """Each protocol with the sound one that it is compared with; null for a protocol that is sound itself.

    Where there is an open loop, a closed loop is a timing mistake: it omits the requests that it delays. Where there
    are tuned rows, the defaults of the runtimes are compared with them.
    """
    rows = list(rows)
    best = sound_settings(rows)
    plain: dict[str, Protocol] = {}
    for row in rows:
        if row.mistake is None and row.batch == 1 and row.settings == best:
            plain.setdefault(row.mode, _protocol(row))
    found: dict[Protocol, Protocol | None] = {}
    for row in rows:
        omits = row.mistake is None and row.mode == "closed-loop" and row.batch == 1
        mode = "open-loop" if omits else row.mode
        tuned = None if row.settings == best else (row.profile, row.threads, best)
        sound = plain.get(mode) if omits or row.mistake else None
        found[_protocol(row)] = sound or tuned
    return found


def sound_settings(rows: Iterable[Row]) -> str:
    """The settings that a claim is judged by: tuned ones where there are any."""
    return "tuned" if any(row.settings == "tuned" for row in rows) else "default"


def effect_on_ranking(sound: Verdict, mistaken: Verdict) -> Effect:
    """What happens to the ranking of two, which their verdict gives, under a timing mistake."""
    before, after = (RANKING.get(verdict, 0) for verdict in (sound, mistaken))
    if before == after:
        return "the same"
    return "reversed" if before and after else "masked" if before else "spurious"


def _protocol(row: Row) -> Protocol:
    return row.profile, row.threads, row.settings


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
        verdicts[protocol] = judged.verdict
        found.append(
            JudgedClaim(
                claim=claim,
                finding=_of_pair(judged, claim.at_least),
                verdict=judged.verdict,
                profile=protocol[0],
                threads=protocol[1],
                settings=protocol[2],
                measured=judged.ratio,
                sound=reference,
                effect=effect_on_ranking(verdicts[reference], judged.verdict) if reference in verdicts else None,
            )
        )
    return found or [_untested(claim, "this run does not time both")]


def _accurate(claim: Claim, share: float | None, images: int) -> JudgedClaim:
    """The accuracy of the first subject."""
    if share is None:
        return _untested(claim, "this run does not have the network")
    return _judged(claim, wilson(share, images))


def _more_accurate(claim: Claim, gain: Interval | None) -> JudgedClaim:
    """By how much the accuracy of the first subject is above that of the second."""
    if gain is None:
        return _untested(claim, "this run does not have both networks")
    return _judged(claim, gain)


def _sublinear(claim: Claim, rows: Sequence[Row], responses: Responses) -> list[JudgedClaim]:
    """The scaling exponent of latency over pixels lies below 1: latency is not proportional to the pixels."""
    found = []
    for profile in dict.fromkeys(row.profile for row in rows if row.mode == "in-process" and not row.mistake):
        for form in dict.fromkeys(row.format for row in rows if row.framework == claim.first.framework):
            if form is None or not _is_format(claim.first, form):
                continue
            if (response := responses(claim.first.framework, form, profile)) is not None:
                below = _finding(response.exponent.mapped(lambda end: -end), -1.0)
                found.append(
                    JudgedClaim(
                        claim=claim, finding=below, measured=response.exponent, profile=profile, format=form,
                        settings=sound_settings(rows),
                    )
                )  # fmt: skip
    return found or [_untested(claim, "this run has fewer than two sizes")]


def _trade_off(
    claim: Claim, rows: Sequence[Row], comparisons: Comparisons, difference: Difference
) -> list[JudgedClaim]:
    """One native framework is faster and another more accurate, both with 95 % confidence: the clearest such pair.

    The differences of accuracy are those of all pairs that latency tells apart, and hold together (Bonferroni). Where
    there is none, the claim does not hold if the most accurate is also the fastest, and is undecided otherwise.
    """
    subjects = [Subject(framework=name) for name in dict.fromkeys(row.framework for row in rows if row.framework)]
    sound = sound_protocols([row for row in rows if row.framework and row.batch == 1])
    found = []
    for protocol in (protocol for protocol, reference in sound.items() if reference is None):
        known = [(cell, subject) for subject in subjects if (cell := _cells(subject, claim, rows).get(protocol))]
        apart = [
            (exact, quick)
            for (quick_cell, quick), (exact_cell, exact) in permutations(known, 2)
            if comparisons.judge(quick_cell, exact_cell).verdict == "slower"
        ]
        level = 1 - (1 - LEVEL) / max(1, len(apart))
        gains = [gain for pair in apart if (gain := difference(claim, *pair, level)) is not None]
        if not gains:
            continue
        best = max(gains, key=lambda gain: gain.low or 0.0)
        finding: Finding = "undecided"
        if (best.low or 0.0) > 0:
            finding = "holds"
        elif all((gain.high or 0.0) < 0 for gain in gains):  # the most accurate is the fastest
            finding = "does not hold"
        profile, threads, settings = protocol
        found.append(
            JudgedClaim(
                claim=claim, finding=finding, measured=best, profile=profile, threads=threads, settings=settings
            )
        )
    return found or [_untested(claim, "this run does not tell two frameworks apart by latency")]


def _judged(claim: Claim, measured: Interval) -> JudgedClaim:
    return JudgedClaim(claim=claim, finding=_finding(measured, claim.at_least), measured=measured)


def _finding(measured: Interval, at_least: float) -> Finding:
    if measured.low is None or measured.high is None:
        return "undecided"
    return "holds" if measured.low >= at_least else "does not hold" if measured.high < at_least else "undecided"


def _of_pair(judged: Judged, at_least: float) -> Finding:
    """Whether the second takes at least so many times as long as the first; never against the verdict on the two."""
    verdict, found = judged.verdict, _finding(judged.ratio, at_least)
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
        if (row.framework, row.size) == (subject.framework, size)
        and (row.server, row.copy) == (OURS, 0)
        and _is_format(subject, row.format)
        and row.usable
    }


def _size(claim: Claim, rows: Sequence[Row]) -> int:
    sizes: list[int] = sorted({row.size for row in rows})
    return sizes[0] if claim.size == "smallest" else sizes[-1]


def _is_format(subject: Subject, form: str | None) -> bool:
    return form is not None and (form != "onnx" if subject.format == "native" else form == subject.format)
