"""What a study spells out: trainings, exports, deployments and their profiles, and what is left out."""

from pathlib import Path

import msgspec
import pytest
from minimal_study import MINIMAL, read

from medserve import matrix, run_folder
from medserve.errors import BadInput
from medserve.spec import Cell, Deployment
from medserve.tables import PROFILES, find_profile


def test_the_matrix_is_complete_and_holds_nothing_twice(tmp_path: Path) -> None:
    plan = matrix.plan(read(tmp_path, MINIMAL))
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
        for deployed in matrix.plan(read(tmp_path, MINIMAL)).deployed
    }
    assert by_size == {
        28: {"in-process-1": 1.5, "closed-1": 1.5, "open-50": 20.0},
        64: {"in-process-1": 1.5, "closed-1": 1.5},
    }


def test_a_timing_mistake_is_measured_where_it_applies(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        '["open-50"]', str(["in-process-1-predict", "in-process-1-default-threads", "closed-1-json"])
    )
    plan = matrix.plan(read(tmp_path, text.replace('["pytorch"]', '["pytorch", "keras_tf"]')))
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
    plan = matrix.plan(read(tmp_path, text))
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
    plan = matrix.plan(read(tmp_path, f"{MINIMAL}\n{variants}"))
    assert [(one.name, one.recipe.trains, one.recipe.epochs) for one in plan.trainings[:2]] == [
        ("synthetic-28-cnn-frozen-pytorch-s0", "head", 9),
        ("synthetic-28-cnn-whole-pytorch-s0", "all", 3),
    ]
    with pytest.raises(BadInput, match=r"'variants\.frozen'.*trained"):
        read(tmp_path, f"{MINIMAL}\n[variants.frozen]\ntrained = 1")


def test_what_is_served_is_the_first_seed_of_the_variants_that_are_named(tmp_path: Path) -> None:
    variants = '[variants.frozen]\ntrains = "head"\n[variants.whole]\nepochs = 3\n'
    text = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nseeds = [3, 4]\nserves = ["whole"]')
    plan = matrix.plan(read(tmp_path, f"{text}\n{variants}"))
    assert {(one.variant, one.recipe.seed) for one in plan.trainings} == {
        *(("frozen", 3), ("frozen", 4), ("whole", 3), ("whole", 4))
    }
    assert {(one.training.variant, one.training.recipe.seed) for one in plan.exports} == {("whole", 3)}
    assert {one.export for one in plan.deployed} == set(plan.exports)
    with pytest.raises(BadInput, match=r"unknown variant in 'serves' 'whole'; there is: frozen"):
        read(tmp_path, f'{text}\n[variants.frozen]\ntrains = "head"\n')


def test_a_study_asks_for_batches_and_deadlines(tmp_path: Path) -> None:
    asked = 'title = "Mini"\ndispatch = "thread"\nbatch_images = [1, 8]\ndeadline_ms = 50.0\nqueue = 16'
    plan = matrix.plan(read(tmp_path, MINIMAL.replace('title = "Mini"', asked).replace("[28, 64]", "[28]", 1)))
    deployments = [deployed.deployment for deployed in plan.deployed]
    assert [one.batch_images for one in deployments] == [1, 8, 1, 8, 1]
    assert {(one.deadline_ms, one.queue, one.dispatch) for one in deployments} == {(50.0, 16, "thread")}
    cells = [cell for deployed in plan.deployed for cell in deployed.cells]
    assert len({cell.name for cell in cells}) == len(cells)
    # Nothing waits in process.
    assert {cell.deployment.batch_images for cell in cells if cell.profile.mode == "in-process"} == {1}


def test_a_study_asks_for_several_instances(tmp_path: Path) -> None:
    asked = 'title = "Mini"\ndispatch = ["inline", "thread"]\ninstances = [1, 2]'
    plan = matrix.plan(read(tmp_path, MINIMAL.replace('title = "Mini"', asked).replace("[28, 64]", "[28]", 1)))
    computing = [one.deployment for one in plan.deployed if one.deployment.runtime != "null"]
    assert {(one.dispatch, one.instances, one.cores) for one in computing} == {
        *(("inline", 1, 1), ("thread", 1, 1), ("thread", 2, 2))
    }
    cells = [cell for deployed in plan.deployed for cell in deployed.cells]
    assert len({cell.name for cell in cells}) == len(cells)
    # A call in process has one instance.
    assert {cell.deployment.instances for cell in cells if cell.profile.mode == "in-process"} == {1}


def test_tuned_settings_are_deployments_of_their_own(tmp_path: Path) -> None:
    asked = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nsettings = ["default", "tuned"]')
    plan, before = (matrix.plan(read(tmp_path, text)) for text in (asked, MINIMAL))
    names = {deployed.deployment.name for deployed in plan.deployed}
    default = {deployed.deployment.name for deployed in before.deployed}
    computing = {name for name in default if ".null." not in name}
    assert names == default | {f"{name}-tuned" for name in computing}
    assert {one.deployment.options == {} for one in plan.deployed} == {True}
    # A run goes on with the options that were found on its machine, and takes no other deployment for it.
    tuned = next(one for one in plan.deployed if one.deployment.settings == "tuned").cells[0]
    measured = msgspec.structs.replace(tuned.deployment, options={"heap": "kept"})
    assert run_folder.extends(tuned, msgspec.structs.replace(tuned, deployment=measured))
    untuned = msgspec.structs.replace(measured, settings="default")
    assert not run_folder.extends(tuned, msgspec.structs.replace(tuned, deployment=untuned))


def test_seeds_and_epochs_by_size_reach_the_recipe(tmp_path: Path) -> None:
    text = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nseeds = [3, 4]\nepochs_at = { 64 = 2 }')
    trainings = matrix.plan(read(tmp_path, text)).trainings
    recipes = [(training.size, training.recipe.seed, training.recipe.epochs) for training in trainings]
    assert recipes == [(28, 3, 30), (28, 4, 30), (64, 3, 2), (64, 4, 2)]


def test_official_data_sets_come_at_four_sizes(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="pathmnist does not come at 32 px; there is: 28, 64, 128, 224"):
        read(tmp_path, MINIMAL.replace('"synthetic"', '"pathmnist"').replace("[28, 64]", "[32]"))


def test_a_study_measures_by_terms_of_its_own(tmp_path: Path) -> None:
    lines = [
        'profiles = ["closed-3", "open-100", "in-process-8"]',
        'mode = "open-loop"\nrate = 75.5\narrivals = "bursts"\nburst = 4\nbatch = 2',
        'mode = "closed-loop"\nusers = 2\ngap_seconds = 0.05\npayload = "json"\nseconds = 1',
        'profiles = ["poisson-50"]\nrate = 60',
    ]
    text = MINIMAL.partition("[[measure]]")[0] + "".join(f"[[measure]]\n{line}\n" for line in lines)
    made = read(tmp_path, text)
    found = {profile.name: profile for profile in matrix.plan(made).deployed[0].profiles}
    assert list(found) == [
        "closed-3",
        "open-100",
        "in-process-8",
        "bursts-75.5-x4-b2",
        "idle-50ms-u2-as-json",
        "poisson-60",
    ]
    assert (found["bursts-75.5-x4-b2"].rate, found["bursts-75.5-x4-b2"].batch) == (75.5, 2)
    assert (found["idle-50ms-u2-as-json"].sends_json, found["idle-50ms-u2-as-json"].seconds) == (True, 1.0)
    # Every batch that is measured is prepared, not padded to the next.
    assert made.batch_sizes == (1, 2, 8, 32)
    assert {name: find_profile(name) for name in PROFILES} == PROFILES


def test_an_objective_is_measured_at_its_rate(tmp_path: Path) -> None:
    text = f"{MINIMAL}\n[objective]\np99_ms = 5\nrate = 120"
    for deployed in matrix.plan(read(tmp_path, text)).deployed:
        assert deployed.profiles[-1].name == "poisson-120"
    with pytest.raises(BadInput, match=r"\[objective\]: give one of 'p50_ms', 'p90_ms' and 'p99_ms'"):
        read(tmp_path, f"{MINIMAL}\n[objective]\nrate = 120")


def test_what_a_study_asks_for_and_cannot_have_is_said(tmp_path: Path) -> None:
    text = MINIMAL.replace('title = "Mini"', 'title = "Mini"\nprecisions = ["float32", "int8"]\nseeds = [0, 1]')
    assert matrix.plan(read(tmp_path, text)).left_out == (
        "TorchScript in int8 from PyTorch: its exporter writes int8 in ONNX",
        "seeds 1: trained, not measured, for they are as fast",
    )


def test_a_cell_goes_on_only_where_it_is_measured_as_before() -> None:
    deployment = Deployment(artifact="a", runtime="null", batch_sizes=(1, 32))
    profile = find_profile("in-process-8")
    old = Cell(deployment=deployment, profile=profile)
    more = msgspec.structs.replace(profile, seconds=profile.seconds + 1)
    assert run_folder.extends(Cell(deployment=deployment, profile=more), old)
    assert not run_folder.extends(old, Cell(deployment=deployment, profile=more))
    # Prepared in its own size it takes another time than padded to 32.
    for sizes, same in (((1, 8, 32), False), ((1, 4, 32), True)):
        prepared = msgspec.structs.replace(deployment, batch_sizes=sizes)
        assert run_folder.extends(Cell(deployment=prepared, profile=profile), old) is same
    batching = msgspec.structs.replace(deployment, dispatch="thread", batch_images=8)
    prepared = msgspec.structs.replace(batching, batch_sizes=(1, 4, 32))
    assert not run_folder.extends(
        Cell(deployment=prepared, profile=profile), Cell(deployment=batching, profile=profile)
    )
    other = msgspec.structs.replace(deployment, threads=2)
    assert not run_folder.extends(Cell(deployment=other, profile=profile), old)


def test_copies_are_the_same_deployments_under_other_names(tmp_path: Path) -> None:
    made = read(tmp_path, MINIMAL)
    once, twice = (matrix.plan(msgspec.structs.replace(made, copies=copies)) for copies in (0, 1))
    known = {one.deployment.name: one for one in twice.deployed}
    assert len(known) == len(twice.deployed)
    for one in once.deployed:
        assert known.pop(one.deployment.name) == one
    for name, copied in known.items():
        original = msgspec.structs.replace(copied.deployment, copy=0)
        assert name == f"{original.name}-copy1"
        assert original in [one.deployment for one in once.deployed]
    assert len(known) == sum(one.computes for one in once.deployed)
