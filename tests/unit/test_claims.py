"""Claims and pairs, judged on rows whose truth is known."""

from collections.abc import Mapping
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from msgspec.structs import replace

from loadtest.analysis.intervals import Interval
from loadtest.analysis.scaling import Response, response
from loadtest.results.claims import Answers, JudgedClaim, judge, sound_protocols
from loadtest.results.pairs import BY, By, Comparisons, compare
from loadtest.results.row import Row
from medserve.study import Claim, Subject
from medserve.tables import TIMING_MISTAKES

FACTOR = {"pytorch": 1.0, "keras_tf": 1.5, "flax_nnx": 0.6}
ACCURACY = {"pytorch": 0.985, "keras_tf": 0.95, "flax_nnx": 0.986}
SIZES = (28, 224)


def row(framework: str | None, size: int, form: str | None, profile: str = "in-process-1") -> Row:
    return Row(
        study="made",
        trained_in=framework,
        valid=True,
        p50=Interval(value=1.0),
        cell=f"{framework}-{size}.{form}.{profile}",
        dataset="bloodmnist",
        size=size,
        architecture="cnn",
        framework=framework,
        format=form,
        runtime="onnx_runtime" if form == "onnx" else framework,
        precision="float32",
        device="cpu",
        threads=1,
        batch_images=1,
        seed=0,
        profile=profile,
        mistake=next((mistake for mistake in TIMING_MISTAKES if profile.endswith(mistake)), None),
        batch=1,
        mode={"in": "in-process", "cl": "closed-loop"}.get(profile[:2], "open-loop"),
        status="done",
        reason=None,
        accuracy=None if framework is None else ACCURACY[framework],
        source_artifact=f"{framework}-{size}.{form}",
        variant=None,
    )


ROWS = [row(*each) for each in product(FACTOR, SIZES, ("native", "onnx"))] + [row(None, 28, None)]


def percentiles(cell: str) -> Mapping[int, float]:
    """Milliseconds of three blocks: a framework's factor, ONNX twice as fast, proportional to the side.

    Not waiting for JAX makes it look three times as fast as PyTorch, compilation inside four times as slow, and the
    pauses of a closed loop equal.
    """
    framework, rest = cell.split("-", 1)
    size, form, profile = int(rest.split(".")[0]), rest.split(".")[1], rest.split(".")[2]
    generator = np.random.default_rng(crc32(cell.encode()))
    took = FACTOR[framework] * size * (0.5 if form == "onnx" else 1.0)
    if framework == "flax_nnx":
        took *= {"in-process-1-compile-inside": 4.0, "closed-1": 1 / 0.6, "in-process-1-unsynchronised": 0.5}.get(
            profile, 1.0
        )
    took *= 4.0 if (framework, form) == ("flax_nnx", "default") else 1.0
    noise = 0.05 if profile == "closed-1" else 0.001
    return {block: took * (1 + 0.3 * block) * float(np.exp(generator.normal(0, noise))) for block in range(3)}


def responses(framework: str, form: str, profile: str) -> Response | None:
    by_size = {size: percentiles(f"{framework}-{size}.{form}.{profile}") for size in SIZES}
    return response({block: {size: by_size[size][block] for size in SIZES} for block in range(3)})


def claim(test: str, **other: Any) -> Claim:
    return Claim(who="A study", what="It is so", where="abstract", test=test, **other)  # type: ignore[arg-type]  # by name


TRAINED = {(framework, size): [share] for (framework, share), size in product(ACCURACY.items(), SIZES)}


def judged(
    one: Claim, *others: Row, trained: Mapping[tuple[str, int], list[float]] = TRAINED, answers: Answers | None = None
) -> list[JudgedClaim]:
    rows = [*ROWS, *others]
    return judge([one], rows, Comparisons(rows, percentiles), responses, trained, answers or {}, images=3421)


JAX, PYTORCH, KERAS = Subject(framework="flax_nnx"), Subject(framework="pytorch"), Subject(framework="keras_tf")


@pytest.mark.parametrize(
    ("first", "second", "at_least", "finding"),
    [
        (JAX, PYTORCH, 1.0, "holds"),
        (JAX, PYTORCH, 1.6, "holds"),
        (JAX, PYTORCH, 1.8, "does not hold"),
        (PYTORCH, JAX, 1.0, "does not hold"),
        (Subject(framework="pytorch", format="onnx"), PYTORCH, 1.9, "holds"),
    ],
)
def test_who_is_faster_is_judged_by_the_interval(
    first: Subject, second: Subject, at_least: float, finding: str
) -> None:
    (entry,) = judged(claim("faster", first=first, second=second, at_least=at_least))
    assert entry.finding == finding
    assert (entry.profile, entry.threads, entry.sound) == ("in-process-1", 1, None)
    assert entry.measured.low is not None
    assert entry.measured.high is not None
    assert entry.measured.value is not None
    assert entry.measured.low <= entry.measured.value <= entry.measured.high


def test_a_mistake_is_held_against_its_sound_protocol_and_says_what_it_turns() -> None:
    profiles = ("in-process-1-compile-inside", "in-process-1-unsynchronised", "poisson-10", "closed-1", "closed-1-json")
    others = [row(framework, 224, "native", profile) for framework in FACTOR for profile in profiles]
    entries = {entry.profile: entry for entry in judged(claim("faster", first=JAX, second=PYTORCH), *others)}
    found = {name: (entry.finding, entry.sound and entry.sound[0], entry.effect) for name, entry in entries.items()}
    assert found == {
        "in-process-1": ("holds", None, None),
        "poisson-10": ("holds", None, None),
        "in-process-1-compile-inside": ("does not hold", "in-process-1", "reversed"),
        "in-process-1-unsynchronised": ("holds", "in-process-1", "the same"),
        "closed-1": ("undecided", "poisson-10", "masked"),
        "closed-1-json": ("holds", "closed-1", "spurious"),
    }
    assert list(entries)[:2] == ["in-process-1", "poisson-10"]


def test_a_mistake_that_one_of_the_two_cannot_step_into_is_set_against_the_others_sound_figure() -> None:
    others = [row("keras_tf", 224, "native", "in-process-1-predict")]
    entries = judged(claim("faster", first=PYTORCH, second=KERAS), *others)
    assert [(entry.profile, entry.sound) for entry in entries] == [
        ("in-process-1", None),
        ("in-process-1-predict", ("in-process-1", 1, "default")),
    ]
    assert entries[1].measured.value == pytest.approx(1.5, rel=0.01)


def test_a_closed_loop_without_an_open_one_is_sound() -> None:
    others = [row(framework, 224, "native", "closed-1") for framework in FACTOR]
    assert {entry.sound for entry in judged(claim("faster", first=JAX, second=PYTORCH), *others)} == {None}


def test_the_defaults_are_held_against_tuned_rows_and_may_turn_the_ranking() -> None:
    rows = []
    for framework, settings in product(FACTOR, ("default", "tuned")):
        measured = row(framework, 224, settings)
        rows.append(replace(measured, format="native", settings=settings))
    one = claim("faster", first=JAX, second=PYTORCH)
    tuned, default = judge([one], rows, Comparisons(rows, percentiles), responses, TRAINED, {}, images=3421)
    assert (tuned.settings, tuned.sound, tuned.finding) == ("tuned", None, "holds")
    assert (default.settings, default.finding) == ("default", "does not hold")
    assert default.sound == ("in-process-1", 1, "tuned")
    assert default.effect == "reversed"


@pytest.mark.parametrize(
    ("jax", "keras", "finding"),
    [(0.986, 0.998, "holds"), (0.986, 0.95, "undecided"), (0.999, 0.95, "does not hold")],
)
def test_a_trade_off_needs_a_slower_one_that_is_more_accurate(jax: float, keras: float, finding: str) -> None:
    accuracies = {"pytorch": 0.985, "keras_tf": keras, "flax_nnx": jax}
    trained = {(framework, size): [share] for (framework, share), size in product(accuracies.items(), SIZES)}
    (entry,) = judged(claim("trade-off"), trained=trained)
    assert (entry.finding, entry.profile) == (finding, "in-process-1")


@pytest.mark.parametrize(("at_least", "finding"), [(0.97, "holds"), (0.99, "does not hold"), (0.985, "undecided")])
def test_an_accuracy_is_judged_with_its_interval(at_least: float, finding: str) -> None:
    (entry,) = judged(claim("accurate", first=PYTORCH, at_least=at_least))
    assert entry.finding == finding
    assert entry.measured.value == 0.985


def test_an_accuracy_is_the_mean_over_seeds_and_a_configuration_the_best() -> None:
    trained = {("pytorch", 224): [0.985, 0.945], ("pytorch", 28): [0.999], ("flax_nnx", 224): [0.999]}
    (entry,) = judged(claim("accurate", first=PYTORCH), trained=trained)
    assert entry.measured.value == pytest.approx(0.965)
    (entry,) = judged(claim("configuration", first=PYTORCH), trained=trained)
    assert entry.measured.value == 0.985


def test_a_difference_of_accuracies_needs_to_be_clear() -> None:
    assert judged(claim("more-accurate", first=JAX, second=KERAS, at_least=0.0))[0].finding == "holds"
    assert judged(claim("more-accurate", first=JAX, second=PYTORCH, at_least=0.0))[0].finding == "undecided"
    assert judged(claim("more-accurate", first=KERAS, second=JAX, at_least=0.0))[0].finding == "does not hold"


def answers_of(shares: Mapping[str, float], spread: float = 0.0) -> Answers:
    """Networks that are right on the first images: no image is right by the worse one only. Two seeds of each."""
    return {
        (framework, size): [
            np.stack([(np.arange(3421) < round((share + seed * spread) * 3421)).astype(float) for seed in (-1, 1)])
        ]
        for (framework, share), size in product(shares.items(), SIZES)
    }


def test_accuracies_on_the_same_images_are_compared_as_pairs_and_with_the_variance_between_seeds() -> None:
    one = claim("more-accurate", first=JAX, second=PYTORCH, at_least=0.0)
    shares = ACCURACY | {"flax_nnx": 0.988}
    (apart,) = judged(one, trained={(name, size): [share] for (name, share), size in product(shares.items(), SIZES)})
    (paired,) = judged(one, answers=answers_of(shares))
    assert (apart.finding, paired.finding) == ("undecided", "holds")
    assert paired.measured.value == pytest.approx(0.003, abs=2e-4)
    assert paired.measured.low is not None
    assert apart.measured.low is not None
    assert paired.measured.low > apart.measured.low
    (spread,) = judged(one, answers=answers_of(shares, spread=0.003))
    assert spread.finding == "undecided", "two seeds differ by more than the frameworks"


def test_a_trade_off_corrects_for_the_pairs_that_it_looks_at() -> None:
    shares = {"pytorch": 0.985, "keras_tf": 0.99, "flax_nnx": 0.986}
    one = claim("trade-off")
    (entry,) = judged(one, answers=answers_of(shares))
    assert entry.finding == "holds"
    assert entry.measured.value == pytest.approx(0.005, abs=2e-4)
    assert entry.measured.low is not None
    gain = judged(claim("more-accurate", first=KERAS, second=PYTORCH, at_least=0.0), answers=answers_of(shares))[0]
    assert gain.measured.low is not None
    assert entry.measured.low < gain.measured.low, "an interval of several pairs is wider than one alone"


def test_latency_that_grows_with_the_side_grows_more_slowly_than_the_pixels() -> None:
    (entry,) = judged(claim("sublinear", first=PYTORCH))
    assert entry.finding == "holds"
    assert entry.measured.value == pytest.approx(0.5, abs=0.01)


def test_what_cannot_be_judged_says_why() -> None:
    (entry,) = judged(claim("none", why="it names no number"))
    assert (entry.finding, entry.reason) == ("not testable here", "it names no number")
    (entry,) = judged(claim("faster", first=Subject(framework="mxnet"), second=PYTORCH))
    assert (entry.finding, entry.reason) == ("not testable here", "this run does not time both")
    assert judged(claim("accurate", first=Subject(framework="mxnet")))[0].finding == "not testable here"


def test_every_pair_stands_once_under_its_kind() -> None:
    found = compare(ROWS, percentiles)
    kinds = {kind: [one for one in found if one.kind == kind] for kind in dict.fromkeys(one.kind for one in found)}
    assert {kind: len(ones) for kind, ones in kinds.items()} == {
        "native against ONNX": 6,
        "framework against framework": 6,
        "ONNX against ONNX": 6,
    }
    assert all((one.first.format, one.second.format) == ("native", "onnx") for one in kinds["native against ONNX"])
    assert {one.judged.verdict for one in kinds["native against ONNX"]} == {"faster"}
    assert [one.judged.ratio.value for one in kinds["native against ONNX"]] == pytest.approx([0.5] * 6, rel=0.01)
    assert all(one.first != one.second for one in found)
    assert len(compare(ROWS, percentiles, kinds=BY["size"])) == 6


@pytest.mark.parametrize(
    ("by", "changed"),
    [
        ("runtime", {"runtime": "openvino_cpu"}),
        ("format", {"format": "aotinductor", "runtime": "aotinductor"}),
        ("precision", {"precision": "int8"}),
        ("batch", {"batch": 8, "profile": "in-process-8"}),
        ("size", {"size": 96}),
        ("settings", {"settings": "tuned"}),
        ("threads", {"threads": 2}),
        ("dispatch", {"dispatch": "thread", "batch_images": 8}),
        ("dispatch", {"dispatch": "thread", "instances": 2}),
        ("variant", {"variant": "frozen"}),
        ("server", {"server": "theirs"}),
        ("copy", {"copy": 1}),
    ],
)
def test_a_pair_differs_by_one_axis_and_in_nothing_else(by: By, changed: dict[str, object]) -> None:
    """One pair along the axis; none where anything else differs too."""
    first = next(row for row in ROWS if row.framework == "pytorch" and row.format != "onnx" and row.size == 28)
    first = replace(first, profile="in-process-1", mode="in-process", cell="first.in-process-1")
    second = replace(first, cell=f"second.{changed.get('profile', first.profile)}", **changed)
    medians = {first.cell: {0: 1.0, 1: 1.01, 2: 1.0}, second.cell: {0: 4.0, 1: 4.1, 2: 4.0}}
    (pair,) = compare([second, first], medians.__getitem__, kinds=BY[by])
    assert {pair.first.cell, pair.second.cell} == medians.keys()
    ratio = 4.0 / second.batch if pair.second is second else second.batch / 4.0
    assert pair.judged.ratio.value == pytest.approx(ratio, rel=0.02)
    assert [name for name, kinds in BY.items() if compare([first, second], medians.__getitem__, kinds=kinds)] == [
        name for name, kinds in BY.items() if pair.kind in kinds
    ]
    other = replace(second, device="cuda")
    assert compare([first, other], medians.__getitem__, kinds=BY[by]) == []


def test_default_settings_are_compared_with_tuned_ones_under_every_profile() -> None:
    """Without an open loop too, beside which alone a closed loop is a mistake."""
    made = next(row for row in ROWS if row.framework == "pytorch")
    rows = [
        replace(made, mode=mode, profile=profile, settings=settings)
        for mode, profile in (("in-process", "in-process-1"), ("closed-loop", "closed-1"))
        for settings in ("default", "tuned")
    ]
    found = sound_protocols(rows)
    for profile in ("in-process-1", "closed-1"):
        assert found[profile, made.threads, "tuned"] is None
        assert found[profile, made.threads, "default"] == (profile, made.threads, "tuned")
    assert sound_protocols(rows[::2])["closed-1", made.threads, "default"] is None
