"""A study's matrix: complete, without doubles, and refused in one line when it cannot be."""

import copy
import math
import random
import re
import tomllib
from pathlib import Path

import msgspec
import pytest
from minimal_study import MINIMAL, read

from medserve import document, forecast, matrix, run_folder, study, study_file
from medserve.errors import BadInput
from medserve.models import Recipe
from medserve.spec import Deployment, LoadProfile


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ('"synthetic"', '"bloodmist"', r"unknown data set 'bloodmist' \(did you mean bloodmnist\?\)"),
        ('"synthetic"', '"scans"', r"unknown data set 'scans'.*; a folder of one's own has a slash: \./scans"),
        ('"synthetic"', '"./scans"', r"data set ./scans: no such folder or file, from the folder that you are in"),
        ('"synthetic"', '"x/synthetic.npz"', "x/synthetic.npz: is called as the data set synthetic of `medserve list`"),
        ('title = "Mini"', 'title = "Mini"\nwindow = [0, 4095]', "'window' is for images of one's own; 'datasets'"),
        ('title = "Mini"', 'title = "Mini"\nwindow = [9, 3]', "window 9 to 3; expected two finite numbers"),
        (
            'title = "Mini"',
            'title = "Mini"\nwindow = [1, 2, 3]',
            r"'window' is \[1, 2, 3\]; expected 2 numbers",
        ),
        ('title = "Mini"', 'title = "Mini"\nwindow = "own"', "unknown value of 'window' 'own'; there is: file"),
        ('"cnn"', '"vit"', "unknown architecture 'vit'; there is: cnn"),
        ('["pytorch"]', '["torch"]', "unknown framework 'torch'.*pytorch"),
        ('"onnx"', '"pickle"', "unknown format 'pickle'.*onnx"),
        ('"closed-1"', '"closed"', "unknown profile 'closed'.*closed-1"),
        ('"closed-1"', '"closd-3"', r"unknown profile 'closd-3' \(did you mean closed-3\?\)"),
        ("[[measure]]", "[measure]", r"twice .*; for several of them write \[\[measure\]\] above each"),
        ("[28, 64]", "28", r"'sizes' is 28; expected a list of any number of whole numbers.*, as in \[28\]"),
        ("[28, 64]", "[]", r"'sizes' is missing; expected one or more whole numbers, at least 8, at most 1024, or"),
        ("[28, 64]", '["28"]', "value 1 of 'sizes' is \"28\"; expected whole number, at least 8"),
        ("[28, 64]", "[28, 4]", "value 2 of 'sizes' is 4; expected whole number, at least 8, at most 1024"),
        ('title = "Mini"', 'titel = "Mini"', r"unknown field 'titel' \(did you mean title\?\)|missing required"),
        ('title = "Mini"', 'title = "Mini"\nlauches = 2', r"unknown field 'lauches' \(did you mean launches\?\)"),
        ("seconds = 1.5", "second = 1.5", r"\[\[measure\]\] 1: unknown field 'second' \(did you mean seconds\?\)"),
        (
            'title = "Mini"',
            'title = "Mini"\nrecipe = { epoch = 2 }',
            r"\[recipe\]: unknown field 'epoch' \(did you mean epochs\?\)",
        ),
        (
            'title = "Mini"',
            'title = "Mini"\nlaunches = 0',
            "'launches' is 0; expected whole number, at least 1",
        ),
        ('title = "Mini"', 'title = "Mini"\nruntimes = ["tensorrt"]', "unknown runtime 'tensorrt'"),
        ("in-process-1", "in-process-32", "batches of 32; add 32 to 'batch_sizes'"),
        ('title = "Mini"', 'title = "Mini"\nbatch_images = [8]', "dispatch inline has no queue, which batching"),
        (
            'title = "Mini"',
            'title = "Mini"\ndispatch = "thread"\nbatch_images = [64]\nbatch_sizes = [1]',
            "expected 1 to 1, the largest",
        ),
        (
            'title = "Mini"',
            'title = "Mini"\nbatch_images = []',
            r"'batch_images' is \[\]; expected one or more whole numbers",
        ),
        ('title = "Mini"', 'title = "Mini"\njob_hours = 0', "'job_hours' is 0; expected number, above 0"),
        ('title = "Mini"', 'title = "Mini"\njob_hours = inf', "'job_hours' is Infinity; expected number, above 0"),
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


def test_a_study_names_images_of_ones_own_by_their_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan needs no images, so that a run is read on any machine."""
    monkeypatch.chdir(tmp_path)
    for folder in ("my scans", "other/my_scans"):
        (tmp_path / folder).mkdir(parents=True)
    text = MINIMAL.replace('"synthetic"', '"./my scans/"').replace('"Mini"', '"Mini"\nwindow = "file"')
    asked = read(tmp_path, text)
    (tmp_path / "my scans").rmdir()
    trainings = matrix.plan(asked).trainings
    assert {(made.dataset, made.path) for made in trainings} == {("my_scans", "./my scans/")}
    assert {made.name for made in trainings} == {f"my_scans-{size}-cnn-pytorch-s0" for size in (28, 64)}
    assert asked.window == "file"
    (tmp_path / "my scans").mkdir()
    seconds = {}
    for count in (0, 5000):
        for index in range(count):
            (tmp_path / "my scans" / str(index)).touch()
        (work,) = (one for one in forecast.forecast(asked, tmp_path / "out").work if one.kind == "train")
        seconds[count] = work.seconds
    assert seconds[5000] > 2 * seconds[0], "the more files, the longer a training takes"
    with pytest.raises(BadInput, match="'datasets': several are called my_scans; rename the folders or files"):
        read(tmp_path, text.replace('"./my scans/"', '"./my scans", "other/my_scans"'))


def test_an_unknown_study_lists_the_studies() -> None:
    with pytest.raises(BadInput, match="unknown study 'slow'; there is: .*quick"):
        study_file.read("slow")
    with pytest.raises(BadInput, match=r"nowhere\.toml: no such study file"):
        study_file.read("nowhere.toml")


def test_a_single_table_in_place_of_several_is_refused_with_its_mend(tmp_path: Path) -> None:
    head, _, _ = MINIMAL.partition("[[measure]]")
    with pytest.raises(BadInput, match=r"'measure' is one table; write \[\[measure\]\] above it"):
        read(tmp_path, f'{head}[measure]\nprofiles = ["closed-1"]\n')


def test_the_folder_of_a_run_is_its_study(tmp_path: Path) -> None:
    asked = read(tmp_path, MINIMAL)
    run_folder.adopt(asked, tmp_path)
    assert study_file.read(str(tmp_path)) == asked
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty: no study; give a TOML file, the folder of a run, or one of: .*quick"):
        study_file.read(str(tmp_path / "empty"))


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    text = MINIMAL.replace("datasets", "datasest").replace('"cnn"', '"vit"').replace('"open-50"', '"open"')
    with pytest.raises(BadInput) as refused:
        read(tmp_path, f"{text}\nsecond = 3\n[recipe]\nepochs = 0")
    words = (
        "'datasest' (did you mean datasets?)",
        "'vit'",
        "'open'",
        "[[measure]] 2: unknown field 'second'",
        "[recipe]",
    )
    assert len(refused.value.lines) == 6, refused.value.lines
    for word in words:
        assert sum(word in line for line in refused.value.lines) == 1


def test_the_template_is_a_study_of_every_field(tmp_path: Path) -> None:
    text = study_file.template()
    assert read(tmp_path, text).name == "mine"
    whole = tomllib.loads(re.sub(r"^#(?=[a-z\[])", "", text, flags=re.MULTILINE))
    document.convert(whole, study.Study)
    for kind, part in ((study.Study, whole), (study.Measure, whole["measure"][0]), (Recipe, whole["recipe"])):
        assert part.keys() == set(kind.__struct_fields__)


def test_no_change_of_a_study_ends_in_a_traceback(tmp_path: Path) -> None:
    """2,000 mutations of a study with every field: misspelt, of a wrong type, out of range, without a value."""
    draw = random.Random(0)
    whole = tomllib.loads(re.sub(r"^#(?=[a-z\[])", "", study_file.template(), flags=re.MULTILINE))
    # One of them leaves no room for the other.
    del whole["measure"][0]["mode"], whole["objective"]["p50_ms"], whole["objective"]["p90_ms"]
    odd: list[object] = [
        "",
        "x",
        "a\nb",
        -1,
        0,
        2**70,
        1.5,
        math.inf,
        math.nan,
        True,
        [],
        [1],
        ["x"],
        {},
        {"x": 1},
        [{}],
    ]
    refused: list[str] = []
    for _ in range(2000):
        told = copy.deepcopy(whole)
        place = draw.choice([told, told, told["recipe"], told["measure"][0], told["objective"], told["claims"][0]])
        name = draw.choice(list(place))
        if (kind := draw.randrange(4)) == 0:
            place[name[:-1] + draw.choice("xyz_")] = place.pop(name)
        elif kind == 1:
            del place[name]
        elif isinstance(place[name], list) and kind == 2:
            place[name].append(draw.choice(odd))
        else:
            place[name] = draw.choice(odd)
        try:
            matrix.plan(document.convert(told, study.Study))
        except BadInput as error:
            refused += error.lines
    assert len(refused) > 1000
    assert [line for line in refused if not 0 < len(line) < 1000 or "\n" in line] == []
