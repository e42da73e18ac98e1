"""A study's matrix: complete, without doubles, and refused in one line when it cannot be."""

import re
from pathlib import Path

import msgspec
import pytest

from medserve import study
from medserve.errors import BadInput
from medserve.spec import Deployment, LoadProfile

MINIMAL = """
name = "mini"
title = "Mini"
datasets = ["synthetic"]
sizes = [28, 64]
architectures = ["cnn"]
frameworks = ["pytorch"]
formats = ["native", "onnx"]

[[measure]]
profiles = ["in-process-1", "closed-1"]
seconds = 1.5

[[measure]]
profiles = ["open-50"]
sizes = [28]
"""


def read(tmp_path: Path, text: str) -> study.Study:
    path = tmp_path / "mini.toml"
    path.write_text(text)
    return study.read(str(path))


def test_the_matrix_is_complete_and_holds_nothing_twice(tmp_path: Path) -> None:
    plan = study.plan(read(tmp_path, MINIMAL))
    assert [training.name for training in plan.trainings] == [
        "synthetic-28-cnn-pytorch-s0",
        "synthetic-64-cnn-pytorch-s0",
    ]
    assert [export.format for export in plan.exports] == ["torchscript", "onnx"] * 2
    assert [deployed.deployment.runtime for deployed in plan.deployed] == ["torchscript", "onnx_runtime", "null"] * 2
    cells = [cell.name for deployed in plan.deployed for cell in deployed.cells]
    assert len(cells) == len(set(cells)) == 3 * 3 + 3 * 2
    assert cells[0] == "synthetic-28-cnn-pytorch-s0.torchscript.torchscript.cpu-t1.in-process-1"


def test_a_measure_holds_at_its_sizes_with_its_durations(tmp_path: Path) -> None:
    by_size = {
        deployed.export.training.size: {profile.name: profile.seconds for profile in deployed.profiles}
        for deployed in study.plan(read(tmp_path, MINIMAL)).deployed
    }
    assert by_size == {
        28: {"in-process-1": 1.5, "closed-1": 1.5, "open-50": 20.0},
        64: {"in-process-1": 1.5, "closed-1": 1.5},
    }


def test_a_timing_mistake_is_measured_where_it_applies(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        '["open-50"]', str(["in-process-1-predict", "in-process-1-default-threads", "closed-1-json"])
    )
    plan = study.plan(read(tmp_path, text.replace('["pytorch"]', '["pytorch", "keras_tf"]')))
    found = [
        (
            deployed.deployment.runtime,
            deployed.deployment.threads,
            [p.mistake for p in deployed.profiles if p.mistake],
        )
        for deployed in plan.deployed
        if deployed.export.training.size == 28
    ]
    assert found == [
        ("torchscript", 1, ["json"]),
        ("torchscript", 0, ["default-threads"]),
        ("onnx_runtime", 1, ["json"]),
        ("onnx_runtime", 0, ["default-threads"]),
        ("saved_model", 1, ["predict", "json"]),
        ("saved_model", 0, ["default-threads"]),
        ("onnx_runtime", 1, ["json"]),
        ("onnx_runtime", 0, ["default-threads"]),
        ("null", 1, []),
    ]


def test_one_framework_trains_for_all(tmp_path: Path) -> None:
    text = MINIMAL.replace('["pytorch"]', '["keras_tf", "pytorch"]').replace(
        "[[measure]]", 'trained_in = "pytorch"\n[[measure]]', 1
    )
    plan = study.plan(read(tmp_path, text))
    assert [training.name for training in plan.trainings] == [
        "synthetic-28-cnn-pytorch-s0",
        "synthetic-64-cnn-pytorch-s0",
    ]
    assert [export.name.removeprefix("synthetic-28-cnn-") for export in plan.exports[:4]] == [
        "pytorch-s0-in-keras_tf.saved_model",
        "pytorch-s0-in-keras_tf.onnx",
        "pytorch-s0.torchscript",
        "pytorch-s0.onnx",
    ]


def test_variants_change_the_recipe_and_bear_their_names(tmp_path: Path) -> None:
    variants = '[recipe]\nepochs = 9\n[variants.frozen]\ntrains = "head"\n[variants.whole]\nepochs = 3\n'
    plan = study.plan(read(tmp_path, f"{MINIMAL}\n{variants}"))
    assert [(one.name, one.recipe.trains, one.recipe.epochs) for one in plan.trainings[:2]] == [
        ("synthetic-28-cnn-frozen-pytorch-s0", "head", 9),
        ("synthetic-28-cnn-whole-pytorch-s0", "all", 3),
    ]
    with pytest.raises(BadInput, match=r"'variants\.frozen'.*trained"):
        read(tmp_path, f"{MINIMAL}\n[variants.frozen]\ntrained = 1")


def test_what_is_served_is_the_first_seed_of_the_variants_that_are_named(tmp_path: Path) -> None:
    variants = '[variants.frozen]\ntrains = "head"\n[variants.whole]\nepochs = 3\n'
    text = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nseeds = [3, 4]\nserves = ["whole"]')
    plan = study.plan(read(tmp_path, f"{text}\n{variants}"))
    assert {(one.variant, one.recipe.seed) for one in plan.trainings} == {
        *(("frozen", 3), ("frozen", 4), ("whole", 3), ("whole", 4))
    }
    assert {(one.training.variant, one.training.recipe.seed) for one in plan.exports} == {("whole", 3)}
    assert {one.export for one in plan.deployed} == set(plan.exports)
    with pytest.raises(BadInput, match=r"unknown variant in 'serves' 'whole'; there is: frozen"):
        read(tmp_path, f'{text}\n[variants.frozen]\ntrains = "head"\n')


def test_a_study_asks_for_batches_and_deadlines(tmp_path: Path) -> None:
    asked = 'title = "Mini"\ndispatch = "thread"\nbatch_images = [1, 8]\ndeadline_ms = 50.0\nqueue = 16'
    plan = study.plan(read(tmp_path, MINIMAL.replace('title = "Mini"', asked).replace("[28, 64]", "[28]", 1)))
    deployments = [deployed.deployment for deployed in plan.deployed]
    assert [one.batch_images for one in deployments] == [1, 8, 1, 8, 1]
    assert {(one.deadline_ms, one.queue, one.dispatch) for one in deployments} == {(50.0, 16, "thread")}
    cells = [cell for deployed in plan.deployed for cell in deployed.cells]
    assert len({cell.name for cell in cells}) == len(cells)
    # Nothing waits in process.
    assert {cell.deployment.batch_images for cell in cells if cell.profile.mode == "in-process"} == {1}


def test_seeds_and_epochs_by_size_reach_the_recipe(tmp_path: Path) -> None:
    text = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nseeds = [3, 4]\nepochs_at = { 64 = 2 }')
    trainings = study.plan(read(tmp_path, text)).trainings
    recipes = [(training.size, training.recipe.seed, training.recipe.epochs) for training in trainings]
    assert recipes == [(28, 3, 30), (28, 4, 30), (64, 3, 2), (64, 4, 2)]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"synthetic"', '"bloodmist"', r"unknown dataset 'bloodmist' \(did you mean bloodmnist\?\)"),
        ('"cnn"', '"vit"', "unknown architecture 'vit'; there is: cnn"),
        ('["pytorch"]', '["torch"]', "unknown framework 'torch'.*pytorch"),
        ('"onnx"', '"pickle"', "unknown format 'pickle'.*onnx"),
        ('"closed-1"', '"closed"', "unknown profile 'closed'.*closed-1"),
        ("[28, 64]", "[]", r"Expected `array` of length >= 1 - at `\$.sizes`"),
        ("[28, 64]", '["28"]', r"Expected `int`, got `str` - at `\$.sizes\[0\]`"),
        ("[28, 64]", "[28, 4]", "size 4 px; expected 8 to 1024"),
        ('title = "Mini"', 'titel = "Mini"', r"unknown field 'titel' \(did you mean title\?\)|missing required"),
        ('title = "Mini"', 'title = "Mini"\nlauches = 2', r"unknown field 'lauches' \(did you mean launches\?\)"),
        ("seconds = 1.5", "second = 1.5", r"unknown field of 'measure' 'second' \(did you mean seconds\?\)"),
        (
            'title = "Mini"',
            'title = "Mini"\nrecipe = { epoch = 2 }',
            r"unknown field of 'recipe' 'epoch' \(did you mean epochs\?\)",
        ),
        (
            'title = "Mini"',
            'title = "Mini"\nlaunches = 0',
            r"Expected `int` >= 1 - at `\$.launches`",
        ),
        ('title = "Mini"', 'title = "Mini"\nruntimes = ["tensorrt"]', "unknown runtime 'tensorrt'"),
        ("in-process-1", "in-process-32", "batches of 32; add 32 to 'batch_sizes'"),
        ('title = "Mini"', 'title = "Mini"\nbatch_images = [8]', "dispatch inline has no queue, which batching"),
        ('title = "Mini"', 'title = "Mini"\ndispatch = "thread"\nbatch_images = [64]', "expected 1 to 32, the largest"),
        (
            'title = "Mini"',
            'title = "Mini"\nbatch_images = []',
            r"Expected `array` of length >= 1 - at `\$.batch_images`",
        ),
        ('title = "Mini"', 'title = "Mini"\njob_hours = 0', r"Expected `float` > 0.0 - at `\$.job_hours`"),
        ('title = "Mini"', 'title = "Mini"\njob_hours = inf', r"Expected `float` <= 8760.0 - at `\$.job_hours`"),
        ('name = "mini"', "name = ", "mini.toml: .*line 2"),
    ],
)
def test_bad_studies_are_refused_in_one_line(tmp_path: Path, old: str, new: str, line: str) -> None:
    text = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nbatch_sizes = [1]') if "in-process" in old else MINIMAL
    assert old in text
    with pytest.raises(BadInput, match=line) as refused:
        read(tmp_path, text.replace(old, new))
    assert "\n" not in str(refused.value)


def test_a_study_of_which_nothing_can_be_exported_is_refused_in_one_line(tmp_path: Path) -> None:
    text = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nprecisions = ["int8"]')
    text = re.sub(r"formats = .*", 'formats = ["torchscript"]', text)
    with pytest.raises(BadInput, match="nothing to export: no framework has any of the formats torchscript in int8"):
        read(tmp_path, text)


NAMES = ["../../evil", "/etc/cron.d", "..", ".", "a/b", "a b", "", "a\\u001b[2J", "a\\n", "\u00e4", "x" * 201]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_would_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A study's name chooses the folder of its run, a variant's that of a checkpoint."""
    for text in (
        MINIMAL.replace('name = "mini"', f'name = "{name}"'),
        f'{MINIMAL}\n[variants."{name}"]\nepochs = 3\n',
    ):
        with pytest.raises(
            BadInput, match=r"mini\.toml: (study|variant) '.*': cannot be part of a path; use letters"
        ) as refused:
            read(tmp_path, text)
        assert str(refused.value).isprintable()


def test_names_that_fit_alone_may_be_too_long_together(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cell 'synthetic-28-cnn-v+'.*200"):
        read(tmp_path, f"{MINIMAL}\n[variants.{'v' * 180}]\nepochs = 3\n")


@pytest.mark.parametrize("name", ["../x", "..", "/etc/x", "a b", "", "a\n"])
def test_a_name_in_a_manifest_cannot_lead_elsewhere(name: str) -> None:
    profile = {"name": name, "mode": "in-process", "seconds": 1.0, "warmup_seconds": 0.1}
    for noun, kind in (({"artifact": name, "runtime": "null"}, Deployment), (profile, LoadProfile)):
        with pytest.raises(msgspec.ValidationError, match="Expected `str` matching regex"):
            msgspec.convert(noun, kind)


def test_an_unknown_study_lists_the_studies() -> None:
    with pytest.raises(BadInput, match="unknown study 'slow'; there is: .*quick"):
        study.read("slow")
    with pytest.raises(BadInput, match=r"nowhere\.toml: no such study file"):
        study.read("nowhere.toml")


def test_official_data_sets_come_at_four_sizes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pathmnist does not come at 32 px; there is: 28, 64, 128, 224"):
        read(tmp_path, MINIMAL.replace('"synthetic"', '"pathmnist"').replace("[28, 64]", "[32]"))
