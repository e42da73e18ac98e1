"""Published claims beside what this run found, and what timing mistakes do to the rankings."""

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from loadtest.analysis import scaling
from loadtest.analysis.scaling import Response
from loadtest.report import tables as fields_of
from loadtest.report.facts import Facts
from loadtest.report.tables import Field, field, text
from loadtest.report.wording import framework, profile
from loadtest.results import claims
from loadtest.results.claims import Effect, Finding, JudgedClaim
from loadtest.results.row import of_labels
from loadtest.results.tabular import Cell, Table, Tone, interval_cell
from medserve.models import Recipe
from medserve.numbers import ABSENT, interval, number
from medserve.scores import shares_right
from medserve.study import Subject
from medserve.tables import TIMING_MISTAKES, title

TONES: dict[Finding, Tone] = {
    "holds": "good",
    "does not hold": "bad",
    "undecided": "warn",
    "not testable here": "muted",
}
EFFECTS: dict[Effect, Tone] = {
    "the same": "muted",
    "reversed": "bad",
    "masked": "warn",
    "spurious": "bad",
}
UNITS = {"faster": "times", "sublinear": "exponent"}
"""Of what was measured; of the other tests, a share of the test split."""
NEEDED = {"sublinear": "below 1", "trade-off": "above 0"}
OF_ACCURACY = ("accurate", "more-accurate", "configuration", "trade-off")
"""The tests that compare accuracies."""
CLOSED = "a closed loop, which omits the requests that it delays"


def tables(facts: Facts) -> list[Table]:
    """The claims under sound protocols, and the rankings under timing mistakes; empty without claims."""
    judged = _judged(facts)
    fields: list[Field[JudgedClaim]] = [
        text("claim", lambda known: known.claim.what),
        text("by", lambda known: Cell(known.claim.who, known.claim.where)),
        text("protocol", lambda known: _protocol(facts, known)),
        field("measured", _measured),
        field("claimed", lambda known: ABSENT if known.measured.value is None else _claimed(known)),
        text("here", lambda known: Cell(known.finding, known.reason or "", tone=TONES[known.finding])),
    ]
    of_mistakes: list[Field[JudgedClaim]] = [
        text("how it is timed", lambda known: _mistake(facts, known)),
        text("latency of", _pair),
        field("correctly", lambda known: _ratio(_sound(known, judged))),
        field("this way", _ratio),
        text("the ranking is", lambda known: known.effect and Cell(known.effect, tone=EFFECTS[known.effect])),
    ]
    # Several claims may be about the same two.
    mistakes = {
        (known.profile, known.threads, known.settings, known.claim.first, known.claim.second, known.claim.size): known
        for known in judged
        if known.sound is not None and known.effect is not None
    }
    found = (
        fields_of.table("", fields, [known for known in judged if known.sound is None]),
        fields_of.table("What a timing mistake does to a ranking", of_mistakes, mistakes.values()),
    )
    return [table for table in found if table is not None]


def _judged(facts: Facts) -> list[JudgedClaim]:
    images = max((checkpoint.test.images for checkpoint in facts.checkpoints.values()), default=1)

    best = claims.sound_settings(facts.rows)

    def response(framework: str, form: str, profile: str) -> Response | None:
        keys = (framework, form, profile)
        rows = [row for row in facts.rows if (row.framework, row.format, row.profile) == keys and row.settings == best]
        return scaling.response(facts.blocks(rows))

    accuracies: dict[tuple[str, int], list[float]] = {}
    for checkpoint in facts.checkpoints.values():
        if checkpoint.test.accuracy is not None:
            accuracies.setdefault((checkpoint.framework, checkpoint.size), []).append(checkpoint.test.accuracy)
    rows, asked = [*facts.rows, *facts.mistaken], facts.study.claims
    if len({of_labels(checkpoint.task) for checkpoint in facts.checkpoints.values()}) > 1:
        why = "its data sets have accuracies of images and of labels, which are not comparable"
        asked = tuple(replace(one, test="none", why=why) if one.test in OF_ACCURACY else one for one in asked)
    return claims.judge(asked, rows, facts.comparisons, response, accuracies, _answers(facts), images)


def _answers(facts: Facts) -> claims.Answers:
    """The answers of all checkpoints whose scores of the test split are kept; none where these are of several sets."""
    found: dict[tuple[str, int], dict[tuple[str, Recipe], list[NDArray[np.float64]]]] = {}
    folder = facts.measured.folder / "checkpoints"
    if len({checkpoint.dataset for checkpoint in facts.checkpoints.values()}) > 1:
        return {}
    for name, checkpoint in facts.checkpoints.items():
        labels, scores = (folder / name / f"test_{part}.npy" for part in ("labels", "scores"))
        if labels.is_file() and scores.is_file():
            right = shares_right(np.load(labels), np.load(scores))
            made_by = checkpoint.architecture, replace(checkpoint.recipe, seed=0)
            found.setdefault((checkpoint.framework, checkpoint.size), {}).setdefault(made_by, []).append(right)
    return {key: [np.stack(seeds) for seeds in every.values()] for key, every in found.items()}


def _protocol(facts: Facts, judged: JudgedClaim) -> str:
    if judged.profile:
        words = [profile(facts.profiles[judged.profile])]
        words += [title(judged.format)] if judged.format else []
        return ", ".join(words + [judged.settings] * (len(facts.study.settings) > 1))
    return "Test split" if judged.measured.value else ABSENT


def _measured(judged: JudgedClaim) -> Cell:
    found = judged.measured
    if found.value is None:
        return fields_of.absent(judged.reason)
    words = f"{interval(found.low, found.high)} {UNITS.get(judged.claim.test, 'of the test split')}".strip()
    return Cell(number(found.value), words, found.value)


def _claimed(judged: JudgedClaim) -> str:
    return NEEDED.get(judged.claim.test, f"at least {judged.claim.at_least:g}")


def _sound(mistaken: JudgedClaim, judged: list[JudgedClaim]) -> JudgedClaim:
    """The same claim under the protocol without the mistake."""
    return next(
        known
        for known in judged
        if (known.claim, (known.profile, known.threads, known.settings)) == (mistaken.claim, mistaken.sound)
    )


def _mistake(facts: Facts, judged: JudgedClaim) -> str:
    mistake = facts.profiles[judged.profile].mistake if judged.profile else None
    if mistake is None and judged.sound and judged.sound[0] == judged.profile:
        return "with the runtimes' default options"
    return TIMING_MISTAKES[mistake] if mistake else CLOSED


def _pair(judged: JudgedClaim) -> Cell:
    pair = f"{_subject(judged.claim.second)} over {_subject(judged.claim.first)}"
    return Cell(pair, f"the {judged.claim.size} images")


def _subject(subject: Subject) -> str:
    return framework(subject.framework) + ("" if subject.format == "native" else f" ({subject.format})")


def _ratio(judged: JudgedClaim) -> Cell:
    return interval_cell(judged.measured)
