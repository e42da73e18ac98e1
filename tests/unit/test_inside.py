"""The least time of a prediction, and the layers that take the time, from known networks, machines and profiles."""

import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_run import build, restate, study
from mini_study import PEAKS
from test_report import Reader

from loadtest.analysis.limit import limit
from loadtest.report import facts, page
from loadtest.report.sections import inside
from loadtest.results.layers import LAYERS, layer
from loadtest.results.tabular import Table
from medserve import store
from medserve.models import Architecture, Computation
from medserve.numbers import number
from medserve.result import Explained, Operator
from medserve.spec import Cell
from medserve.study import Deployed, Measure
from medserve.tables import ARCHITECTURES
from train.models import computation

KIB = 2**10
SMALL = Computation(multiply_adds=1_000_000, weight_bytes=4000, activation_bytes=10_000, largest_bytes=6000)
BANDWIDTH = {8 * KIB: 8e9, 64 * KIB: 2e9}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_a_network_computes_is_what_the_frameworks_count(name: str) -> None:
    """The tables' multiply-adds are counted in each framework's own graph; here they follow from the plan."""
    known = ARCHITECTURES[name]
    found = computation(known, 224, 1000)
    assert found.multiply_adds == known.multiply_adds + known.features * 1000
    assert found.weight_bytes == 4 * known.parameters(1000)
    assert computation(known, 28, 8).multiply_adds < found.multiply_adds / 30


def test_the_bytes_of_a_network_can_be_added_up_by_hand() -> None:
    numbers = {"backbone_parameters": 500, "multiply_adds": 0, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    tiny = Architecture(name="tiny", family="cnn", widths=(4, 8), depths=(1, 1), features=8, **numbers)
    # 3 to 4 channels on 6 x 6, pooled, 4 to 8 channels on 3 x 3, then 8 averages to 5 units to 2 classes.
    moved = [4 * 36 * (3 + 4), 4 * 9 * (4 + 8), 4 * (8 + 5), 4 * (5 + 2)]
    found = computation(tiny, 6, 2, hidden=5)
    assert found.multiply_adds == 36 * 4 * 3 * 9 + 9 * 8 * 4 * 9 + 8 * 5 + 5 * 2
    assert (found.activation_bytes, found.largest_bytes) == (sum(moved), moved[0])
    assert found.weight_bytes == 4 * (500 + 5 * 9 + 6 * 2)


def test_the_limit_is_the_longer_of_computing_and_moving() -> None:
    computed = limit(SMALL, 1, 1e9, BANDWIDTH)
    assert (computed.ms, computed.by_memory, computed.intensity) == (2.0, False, 2e6 / 14_000)
    # 4,000 + 6,000 bytes do not fit into 8 KiB, so that the slower level counts.
    assert limit(SMALL, 1, 1e12, BANDWIDTH).ms == pytest.approx(14_000 / 2e9 * 1e3)
    assert limit(SMALL, 1, 1e12, BANDWIDTH).by_memory
    assert limit(SMALL, 1, 1e13, {16 * KIB: 8e9, **BANDWIDTH}).ms == pytest.approx(14_000 / 8e9 * 1e3)
    assert limit(SMALL, 100, 1e12, BANDWIDTH).bandwidth == 2e9, "beyond the largest working set, its bandwidth"


@given(st.integers(1, 64), st.floats(1e9, 1e13), st.floats(1e8, 1e12))
def test_a_batch_takes_at_most_as_long_as_its_images_alone(batch: int, flops: float, speed: float) -> None:
    alone, together = (limit(SMALL, count, flops, {KIB: speed}).ms for count in (1, batch))
    assert alone <= together <= batch * alone * (1 + 1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("/stages.0/Conv", "FusedConv", "convolution"),
        ("aten::mkldnn_convolution 1x3x28x28", "aten::mkldnn_convolution", "convolution"),
        ("functional_1/stages.0.0.conv/convolution", "_FusedConv2D", "convolution"),
        ("convert_fusion", "convert_fusion", "elementwise"),
        ("conv2d_1/WithoutBiases/reorder", "Reorder", "layout"),
        ("aten::addmm 1x128", "aten::addmm", "dense layer"),
        ("dot.3", "dot", "dense layer"),
        ("MaxPool_7", "MaxPool", "pooling"),
        ("aten::mean", "aten::mean", "pooling"),
        ("aten::relu_", "aten::relu_", "elementwise"),
        ("aten::clamp_min 1x32x28x28", "aten::clamp_min", "elementwise"),
        ("ynn_fusion", "fusion", "several layers"),
        ("broadcast_multiply_fusion.1", "fusion", "elementwise"),
        ("while.1", "while", "other"),
    ],
)
def test_operators_are_sorted_into_layers(name: str, kind: str, expected: str) -> None:
    assert layer(name, kind) == expected
    assert expected in LAYERS


SLOW = 3.0
"""PyTorch's own format takes so many times as long as its ONNX."""


def latency(deployed: Deployed, cell: Cell, index: int) -> float:
    slow = SLOW if (deployed.export.framework, deployed.export.format) == ("pytorch", "torchscript") else 1.0
    return slow * cell.profile.batch * (1.0, 1.001, 0.999)[index]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = study(sizes=(28,), explain=True, measure=(Measure(profiles=("in-process-1", "in-process-32")),))
    folder = build(tmp_path_factory.mktemp("inside") / "run", made, latency)
    store.write_json(folder / "peaks" / "1.json", PEAKS)
    for checkpoint in sorted(path.name for path in (folder / "checkpoints").iterdir()):
        restate(folder, checkpoint, computation=computation(ARCHITECTURES["cnn"], 28, 8))
    for name, operators, reason in (
        ("torchscript.torchscript", (("conv.1", "aten::conv2d", 2.5), ("relu", "aten::relu", 0.3)), None),
        ("onnx.onnx_runtime", (("/conv.1", "FusedConv", 0.9),), None),
    ):
        explained = Explained(
            deployment="any", checkpoint="any", batch=1, plain_ms=3.0, profiled_ms=sum(ms for *_, ms in operators) + 1,
            operators=tuple(Operator(name=name, kind=kind, ms=ms, calls=1) for name, kind, ms in operators),
            reason=reason,
        )  # fmt: skip
        store.write_json(folder / "explained" / f"synthetic-28-cnn-pytorch-s0.{name}.cpu-t1.1.json", explained)
    silent = msgspec.structs.replace(explained, operators=(), reason="it has no profiler")
    store.write_json(
        folder / "explained" / "synthetic-28-cnn-keras_tf-s0.saved_model.saved_model.cpu-t1.1.json", silent
    )
    return folder


@pytest.fixture(scope="module")
def read(run: Path) -> facts.Facts:
    return facts.read(run)


def column(table: Table | None, title: str) -> list[str]:
    assert table is not None
    place = [known.title for known in table.columns].index(title)
    return [line.cells[place].text for line in table.lines]


def test_every_float32_row_is_a_multiple_of_the_limit(read: facts.Facts) -> None:
    computed = computation(ARCHITECTURES["cnn"], 28, 8)
    least = 2 * computed.multiply_adds / 1e11 * 1e3
    by_batch = {row.batch: row.limit_ms for row in read.rows if row.framework}
    assert by_batch == {1: pytest.approx(least), 32: pytest.approx(32 * least)}
    assert all(row.limit_ms is None for row in read.rows if row.framework is None)
    table = inside.multiples(read)
    assert column(table, "limited by") == ["arithmetic"] * 12
    assert column(table, "multiple")[0] == number(SLOW / least)
    assert column(table, "limit")[:2] == [number(least), number(32 * least)]


def test_a_native_format_above_twice_its_onnx_is_explained_by_its_layers(read: facts.Facts) -> None:
    table = inside.gaps(read)
    assert column(table, "native / ONNX") == ["3.00", "3.00"]
    assert column(table, "batch") == ["1", "32"]
    assert column(table, "of it in") == ["convolution 1.60 ms; elementwise 0.300 ms", "not profiled"]
    assert column(table, "slowest operators")[0] == "conv.1: 2.50 ms; relu: 0.300 ms"


def test_what_no_profiler_tells_is_a_line_with_its_reason(read: facts.Facts) -> None:
    table = inside.table(read)
    assert table is not None
    assert [line.remarks for line in table.lines if line.remarks] == [("it has no profiler",)]
    assert len(table.lines) == 3
    drawn = inside.figure(read)
    assert drawn is not None
    assert "TensorFlow" not in drawn.panels[0].svg


def test_the_page_has_the_section_with_its_pictures(run: Path, read: facts.Facts) -> None:
    text = next(iter(page.files(run).values())).decode()
    said = Reader(text).text
    assert all(title in said for title in ("Inside the model", "Distance from the machine's limit", "Layers by time"))
    names = re.findall(r' id="([^"]+)"', text)
    assert len(names) == len(set(names))
    limits = inside.roofline(read)
    assert limits is not None
    assert len(limits.panels) == 1
    fastest = 2 * computation(ARCHITECTURES["cnn"], 28, 8).multiply_adds / 1e6
    assert f"{number(fastest)} GFLOP/s" in limits.panels[0].svg
