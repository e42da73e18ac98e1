"""The report of a run that is built here from known latencies: what it says, what it refuses, how it looks."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from conftest import Stage
from made_run import build, restate, study

from loadtest.report import page, wording
from loadtest.results import table
from loadtest.results.row import Row, published
from medserve import store, study_file
from medserve.errors import BadInput
from medserve.glossary import GLOSSARY
from medserve.jobs import Failure
from medserve.matrix import plan
from medserve.models import Scores
from medserve.numbers import ABSENT, MINUS, TIMES, number
from medserve.spec import Cell
from medserve.study import Deployed, Measure, Objective

FIGURES = ("http-overhead", "latency", "native-onnx", "distributions", "front", "breakdown", "training", "efficiency")
NASTY = '<script>alert("x")</script> & | `a` **b** [c](http://example.org) <img src=x onerror=alert(1)>'
FAILED = "synthetic-64-cnn-flax_nnx-s0.onnx.onnx_runtime.cpu-t1"
MANY_SIDED = ("bloodmnist-resolutions", "loads")
"""Studies that together have every section of the report."""
NATIVE = {"pytorch": 1.0, "keras_tf": 2.0, "flax_nnx": 3.0}


def steady(deployed: Deployed, cell: Cell, index: int) -> float:
    """ONNX takes half of native at 28 px; at 64 px PyTorch and Keras take the same. Launches differ by a hundredth."""
    training, onnx = deployed.export.training, deployed.export.format == "onnx"
    value = NATIVE[training.framework] * (0.5 if onnx else 1.0)
    if training.size == 64:
        value = 4.0 if onnx and training.framework != "flax_nnx" else 8.0
    if deployed.deployment.runtime == "null":
        value = 0.08
    value *= {"in-process": 0.9, "closed-loop": 1.0, "open-loop": 1.2}[cell.profile.mode] * cell.profile.batch
    return value * (1.0, 1.01, 0.99)[index % 3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "made"
    build(folder, study(), steady, failing={FAILED: NASTY})
    page.write(folder)
    return folder


class Reader(HTMLParser):
    """The tables of a page as rows of (text, value, title), and every address that it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[tuple[str, str | None, str | None]]]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self._cell: list[str] | None = None
        self._attributes: dict[str, str | None] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell, self._attributes = [], dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            words = " ".join("".join(self._cell).split())
            self.tables[-1][-1].append((words, self._attributes.get("data-value"), self._attributes.get("title")))
            self._cell = None

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell is not None:
            self._cell.append(data)


@pytest.fixture(scope="module")
def read(run: Path) -> Reader:
    return Reader((run / "report.html").read_text())


def by_deployment(run: Path) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in table.rows(table.read(run)):
        found.setdefault(row.deployment, []).append(row)
    return found


def test_the_page_holds_every_deployment_with_the_very_numbers_of_the_rows(run: Path, read: Reader) -> None:
    lines = {line[0][2]: line for table in read.tables for line in table if line and line[0][2]}
    wanted = {
        "in-process-1": ("p50_ms", "p90_ms", "p99_ms"),
        "in-process-32": ("p50_ms", "throughput"),
        "closed-1": ("p50_ms", "p90_ms", "p99_ms", "throughput"),
        "open-50": ("p50_ms", "p99_ms"),
    }
    for name, found in by_deployment(run).items():
        expected = [published(row)[key] for row in found for key in wanted[row.profile]]
        expected += [found[0].accuracy, found[0].parity_max_abs]
        shown = [None if value is None else float(value) for _, value, _ in lines[name][1:-1]]
        assert shown == expected, name


def test_markdown_holds_the_same_tables_as_the_page(run: Path, read: Reader) -> None:
    text = (run / "report.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    written = [[re.sub(r"[*\\]", "", cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    shown = [[cell for cell, _, _ in line] for table in read.tables for line in table]
    bodies = [line for line in shown if len(line) > 1 and any(line) and line in written]
    assert sum(len(line) > 1 for line in written) - len(bodies) == 2 * len(read.tables), (
        "heads and rules, no other line"
    )
    assert text.count("PyTorch TorchScript | ") >= 2 * len(study().sizes)


def test_medians_and_ratios_are_those_that_were_made(run: Path, read: Reader) -> None:
    found = {row.cell: row for row in table.rows(table.read(run))}
    first = found["synthetic-28-cnn-pytorch-s0.onnx.onnx_runtime.cpu-t1.closed-1"]
    assert first.p50.value == pytest.approx(0.5, rel=1e-3)
    ratios = [line for table in read.tables for line in table if "TorchScript / ONNX" in line[0][0]]
    assert {cell for cell, _, _ in ratios[0] if cell.startswith(f"0.500{TIMES}")}
    assert [float(value) for cell, value, _ in ratios[0] if TIMES in cell and value] == pytest.approx(
        [0.5] * 4, rel=1e-3
    )


def test_a_failed_row_stands_with_its_reason_which_is_text_and_no_markup(run: Path, read: Reader) -> None:
    html, markdown = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert NASTY in read.text
    assert read.tags.count("script") == 1
    assert "img" not in read.tags
    assert "\\<script\\>" in markdown
    assert "](http" not in markdown
    assert re.search(r"(?<!\\)<script", markdown) is None
    assert html.count("alert(&#34;x&#34;)") + html.count("alert(&quot;x&quot;)") >= 1
    assert "of 56 rows could not be measured" in read.text


def test_the_page_loads_nothing(run: Path, read: Reader) -> None:
    named = {address for address in read.addresses if not address.startswith("#")}
    files = {f"{kind}/{path.name}" for kind in ("figures", "tables") for path in (run / kind).iterdir()}
    assert named == {"data:,", *files}
    assert not {"img", "iframe", "object"} & set(read.tags)
    style = (run / "report.html").read_text().partition("<style>")[2].partition("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style


def test_the_answer_says_what_the_intervals_carry_and_no_more(read: Reader) -> None:
    text = " ".join(read.text.split())
    assert "PyTorch ONNX is fastest at 28 px, with a median of 0.500 ms" in text
    assert "at 64 px no single deployment is fastest" in text
    assert f"ONNX is faster in 5 of 5 pairs of framework and size (0.500{TIMES} the native median)" in text
    assert "computes nothing takes 0.0800 ms, 2 to 16 % of the lowest median" in text


@pytest.mark.parametrize(
    ("spread", "says"),
    [
        (0.001, "PyTorch ONNX is fastest at 28 px: a median of 0.9"),
        (0.2, "and is not separated from PyTorch TorchScript"),
    ],
)
def test_what_scatters_from_block_to_block_is_not_told_apart(tmp_path: Path, spread: float, says: str) -> None:
    def latency(deployed: Deployed, cell: Cell, index: int) -> float:
        drift = (1.0, 1.5, 0.7)[index]
        return drift * (0.9 * (1.0, 1.0 + spread, 1.0 - spread)[index] if deployed.export.format == "onnx" else 1.0)

    made = study(sizes=(28,), frameworks=("pytorch",), null=False, measure=(Measure(profiles=("closed-1",)),))
    page.write(build(tmp_path / "run", made, latency))
    text = " ".join(Reader((tmp_path / "run/report.html").read_text()).text.split())
    assert says in text
    assert ("ONNX is faster (" in text) == (spread == 0.001)
    assert ("ONNX is undecided" in text) == (spread == 0.2)


def test_one_launch_gives_numbers_without_intervals_and_no_verdict(tmp_path: Path) -> None:
    made = study(launches=1, sizes=(28,), frameworks=("pytorch", "keras_tf"))
    page.write(build(tmp_path / "run", made, steady))
    text = " ".join(Reader((tmp_path / "run/report.html").read_text()).text.split())
    assert "One launch per deployment: there are no intervals" in text
    assert "is fastest" not in text
    assert "has the lowest median at 28 px, 0.500 ms, and is not separated from any other" in text
    assert (tmp_path / "run/figures/latency-one-size.svg").is_file()


def test_figures_are_files_of_their_own(run: Path) -> None:
    names = sorted(path.name for path in (run / "figures").iterdir())
    assert names == [f"{name}.{kind}" for name in sorted(FIGURES) for kind in ("png", "svg")]
    for path in (run / "figures").iterdir():
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG")
        else:
            labels = [element.get("aria-label", "") for element in ElementTree.parse(path).iter()]
            assert any("28 px" in label and "PyTorch" in label for label in labels), path.name


def test_every_caption_is_that_of_a_figure_or_a_table() -> None:
    """A caption is found by a name or a title; one that is spelt otherwise would be lost without a word."""
    sources = "".join(path.read_text() for path in Path(page.__file__).parent.rglob("*.py"))
    assert [name for name in (*wording.CAPTIONS, *wording.TABLES) if f'"{name}"' not in sources] == []


def test_the_glossary_is_that_of_the_help_texts(read: Reader) -> None:
    words = " ".join(read.text.split())
    assert all(f"{term}{meaning}" in words for term, meaning in GLOSSARY.items())


def test_a_run_that_has_only_begun_has_a_report_of_what_is_missing(tmp_path: Path) -> None:
    made = study()
    store.write_json(tmp_path / "study.json", made)
    broken = plan(made).trainings[0].name
    failure = Failure(stage="train", name=broken, reason="pytorch needs <torch>")
    store.write_json(tmp_path / "failures" / f"train-{broken}.json", failure)
    page.write(tmp_path)
    read = Reader((tmp_path / "report.html").read_text())
    assert "No deployment has been measured yet." in read.text
    assert read.text.count("not measured") > 12
    assert "pytorch needs <torch>" in read.text
    assert not (tmp_path / "figures").exists()


def test_unofficial_data_is_called_so(tmp_path: Path) -> None:
    made = study(datasets=("dermamnist",), sizes=(28,), frameworks=("pytorch",), unofficial=True)
    page.write(build(tmp_path, made, steady), tmp_path / "elsewhere.html")
    read = Reader((tmp_path / "elsewhere.html").read_text())
    assert "A made run unofficial" in " ".join(read.text.split())
    assert "CC BY-NC 4.0 (non-commercial)" in read.text
    assert (tmp_path / "elsewhere.md").read_text().startswith("# A made run (unofficial)")


def test_what_is_no_run_is_refused_in_one_line(stage: Stage, tmp_path: Path) -> None:
    done = stage("loadtest", "report", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "study.json" in done.stderr
    store.write_json(tmp_path / "study.json", study())
    with pytest.raises(BadInput, match=r"ends in \.html"):
        page.write(tmp_path, tmp_path / "report.pdf")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ABSENT),
        (0.0, "0"),
        (0.37, "0.370"),
        (9.996, "10.0"),
        (99.95, "100"),
        (1234.5, "1,230"),
        (0.00123, "0.00123"),
        (0.000297, f"2.97 {TIMES} 10⁻⁴"),
        (6.556e-7, f"6.56 {TIMES} 10⁻⁷"),
        (-0.265, f"{MINUS}0.265"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    "name",
    [name if name in MANY_SIDED else pytest.param(name, marks=pytest.mark.full) for name in study_file.names()],
)
def test_the_results_of_every_study_have_a_report(name: str, tmp_path: Path) -> None:
    made = study_file.read(name)
    launches = min(made.launches, 2)
    build(tmp_path / "run", msgspec.structs.replace(made, launches=launches), steady, count=40)
    text = Reader(next(iter(page.files(tmp_path / "run").values())).decode()).text
    assert made.title in text
    assert all(claim.what in text for claim in made.claims)


def test_networks_without_labels_have_a_report(tmp_path: Path) -> None:
    """No accuracy is known of a model that was adopted with images alone."""
    made = study(objective=Objective(rate=50.0, p99_ms=500.0, accuracy=0.5), sizes=(28,))
    run = build(tmp_path / "run", made, steady)
    for path in sorted((run / "checkpoints").iterdir()):
        restate(run, path.name, test=Scores(accuracy=None, balanced_accuracy=None, auc=None, images=64))
    text = Reader(next(iter(page.files(run).values())).decode()).text
    assert "there are no labels" in text
    assert "Accuracy against latency" not in text
    assert "What HTTP adds" in text
