"""Rows, records and their writers: what a run of raw samples says, in every form."""

import csv
import io
import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Stage

from loadtest import samples
from loadtest.results import latency
from loadtest.results.record_summary import as_text, summarise
from loadtest.results.row import Row, published
from loadtest.results.table import read, rows
from loadtest.results.tabular import csv_lines
from loadtest.results.writers import reasons, render, render_plain, short
from medserve import store
from medserve.errors import BadInput
from medserve.jobs import Failure
from medserve.matrix import plan
from medserve.models import Recipe
from medserve.numbers import ABSENT
from medserve.result import Result
from medserve.study import Measure, Study

KEYS = (
    "study, cell, dataset, size, architecture, framework, trained_in, format, runtime, server, copy, precision, "
    "device, settings, threads, dispatch, batch_images, instances, batch, mode, profile, trap, load, "
    "rate_asked, rate_delivered, status, reason, n, failed, wrong, launches, p50_ms, p50_low, p50_high, "
    "p90_ms, p90_low, p90_high, p99_ms, p99_low, p99_high, p50_service_ms, p99_service_ms, "
    "p50_uncorrected_ms, p99_uncorrected_ms, "
    "lag_p50_us, lag_p99_us, throughput, utilisation, deadline_ms, goodput, overloaded, task, accuracy, "
    "balanced_accuracy, auc, variant, seed, parity_max_abs, "
    "decisions_changed, "
    "source_artifact, limit_ms, unofficial, valid, late, cpu_ms, faults, switches, peak_memory_bytes, "
    "import_seconds, load_seconds, ready_seconds, "
    "first_answer_seconds, windows, disturbed, steady, bimodal, drifting, cached, saturation"
)


def table(**columns: Any) -> Any:
    count = len(columns["done_ns"])
    given = {"status": [200] * count, "batch": [1] * count, "warmup": [False] * count}
    return samples.as_table(given | columns)


def test_latency_is_from_the_intended_time_or_else_from_the_sending_and_failures_are_infinite() -> None:
    of_open = table(intended_ns=[10, 20], sent_ns=[15, 25], done_ns=[40, 60])
    assert latency.from_intended_start(of_open).tolist() == [30, 40]
    of_closed = table(sent_ns=[15, 25, 30], done_ns=[40, 60, 70], status=[200, 0, 200], wrong=[None, None, True])
    assert latency.from_intended_start(of_closed).tolist() == [25, math.inf, math.inf]


def test_nanoseconds_stay_exact_after_months_of_uptime() -> None:
    start = 2**60
    assert latency.from_intended_start(table(sent_ns=[start], done_ns=[start + 1])).tolist() == [1.0]


STUDY = Study(
    name="tiny",
    title="Tiny",
    datasets=("synthetic",),
    sizes=(28,),
    architectures=("cnn",),
    frameworks=("pytorch",),
    formats=("torchscript", "onnx"),
    measure=(Measure(profiles=("in-process-1", "closed-1", "open-50"), seconds=2.0, warmup_seconds=0.0, requests=0),),
    launches=2,
    recipe=Recipe(epochs=1),
)


@pytest.fixture
def run(tmp_path: Path, torchscript: Path) -> Path:
    """A run's folder: TorchScript and null measured twice, ONNX not yet."""
    folder = tmp_path / "run"
    store.write_json(folder / "study.json", STUDY)
    artifact = store.read_artifact(torchscript)
    for deployed in plan(STUDY).deployed:
        if deployed.export.format == "onnx":
            continue
        for cell in deployed.cells:
            for launch in range(2):
                target = folder / "results" / cell.name / str(launch)
                is_open = cell.profile.mode == "open-loop"
                sent = np.arange(100) * 20_000_000
                took = np.full(100, (launch + 1) * 1_000_000)
                with store.new_folder(target) as partial:
                    columns = {"sent_ns": sent, "done_ns": sent + took, "status": [200] * 100, "batch": [1] * 100}
                    columns |= {"intended_ns": sent} if is_open else {}
                    columns |= {"warmup": np.arange(100) < 20, "wrong": np.arange(100) == 99}
                    samples.write(partial / "samples.parquet", columns)
                    result = Result(
                        study="tiny",
                        cell=cell,
                        launch=launch,
                        status="done",
                        artifact=artifact,
                        started="2025-01-01T00:00:00+00:00",
                        files=store.digests(partial, without="result.json"),
                    )
                    store.write_json(partial / "result.json", result)
    return folder


def pick(found: list[Row], runtime: str, mode: str) -> Any:
    (row,) = [row for row in found if row.runtime == runtime and row.mode == mode]
    return row


def test_rows_have_the_keys_of_the_contract_and_the_studys_order(run: Path) -> None:
    found = rows(read(run))
    assert {tuple(published(row)) for row in found} == {tuple(KEYS.split(", "))}
    assert [row.cell for row in found] == [cell.name for one in plan(STUDY).deployed for cell in one.cells]


def test_a_measured_row_says_what_its_samples_say(run: Path, torchscript: Path) -> None:
    row = pick(rows(read(run)), "torchscript", "open-loop")
    artifact = store.read_artifact(torchscript)
    assert (row.status, row.n, row.failed, row.launches) == ("done", 160, 2, 2)
    assert row.p50.value == pytest.approx(math.sqrt(2))
    assert row.p50.low < row.p50.value < row.p50.high
    assert (row.p99.value, row.p99.low, row.p99.high) == (None, None, None)
    assert "p99: n 80 < 368 in a launch" in row.reason
    # 80 arrivals of which one was answered wrongly, over what the found warm-up leaves of the schedule's 2 seconds.
    assert (row.rate_asked, row.rate_delivered) == (50.0, pytest.approx(79 / 1.6))
    assert row.throughput == row.rate_delivered
    assert row.accuracy == artifact.checkpoint.test.accuracy
    assert row.parity_max_abs == artifact.certificate.max_abs
    assert (row.framework, row.format, row.valid, row.seed) == ("pytorch", "torchscript", True, 0)
    in_process = pick(rows(read(run)), "torchscript", "in-process")
    assert (in_process.rate_asked, in_process.rate_delivered) == (None, None)
    assert in_process.throughput == pytest.approx(158 / sum(79 * 0.02 + took for took in (0.001, 0.002)))


def test_the_null_runtime_claims_no_scores(run: Path) -> None:
    row = pick(rows(read(run)), "null", "closed-loop")
    assert row.status == "done"
    assert row.p50.value is not None
    nothing = ("framework", "format", "accuracy", "auc", "balanced_accuracy", "parity_max_abs", "decisions_changed")
    assert [getattr(row, key) for key in nothing] == [None] * len(nothing)
    assert "the null runtime computes no scores" in row.reason


def test_cells_without_results_are_missing_and_those_of_a_failed_job_say_why(run: Path) -> None:
    row = pick(rows(read(run)), "onnx_runtime", "closed-loop")
    assert (row.status, row.reason, row.n) == ("missing", "not measured yet", 0)
    name = "synthetic-28-cnn-pytorch-s0.onnx"
    store.write_json(run / "failures" / f"export-{name}.json", {"stage": "export", "name": name, "reason": "no opset"})
    row = pick(rows(read(run)), "onnx_runtime", "closed-loop")
    assert (row.status, row.reason) == ("failed", f"export of {name} failed: no opset")
    assert pick(rows(read(run)), "torchscript", "closed-loop").status == "done"


def results_of(run: Path, mode: str) -> Path:
    (cell,) = [
        cell
        for one in plan(STUDY).deployed
        for cell in one.cells
        if cell.deployment.runtime == "torchscript" and cell.profile.mode == mode
    ]
    return run / "results" / cell.name


def test_a_failed_launch_is_named_beside_what_the_others_say(run: Path) -> None:
    folder = results_of(run, "closed-loop") / "1"
    result = store.read_json(folder / "result.json", Result)
    store.write_json(folder / "result.json", msgspec.structs.replace(result, status="failed", reason="it died"))
    row = pick(rows(read(run)), "torchscript", "closed-loop")
    assert (row.status, row.launches, row.p50.value, row.p50.low) == ("done", 1, 1.0, None)
    assert "launch 1 failed: it died" in row.reason
    assert "one launch: no interval" in row.reason
    shutil.rmtree(results_of(run, "closed-loop") / "0")
    row = pick(rows(read(run)), "torchscript", "closed-loop")
    assert (row.status, row.valid, row.reason) == ("failed", False, "it died; 1 of 2 launches missing")


def test_a_changed_or_half_written_record_is_never_read_as_whole(run: Path) -> None:
    path = results_of(run, "in-process") / "0" / "samples.parquet"
    path.write_bytes(path.read_bytes()[:-10])
    row = pick(rows(read(run)), "torchscript", "in-process")
    assert row.launches == 1
    assert "its SHA-256 is not the manifest's" in row.reason
    (results_of(run, "in-process") / "1" / "result.json").write_text('{"schema": 1')
    row = pick(rows(read(run)), "torchscript", "in-process")
    assert row.status == "failed"
    assert "not a valid Result" in row.reason


def test_rows_are_written_to_files_for_papers_and_programs(run: Path, stage: Stage, tmp_path: Path) -> None:
    found = rows(read(run))
    text = render(found, "latex")
    assert "\\begin{tabular}{ll" in text
    body = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(body) == len(found) + 1
    assert {line.count("&") for line in body} == {15}
    assert not re.search(r"(?<!\\)[%_#$]", " ".join(body))
    for form in ("parquet", "csv"):
        stage("loadtest", "results", str(run), "--format", form, "--out", str(tmp_path / f"rows.{form}"))
    table = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["cell"] for row in table] == [row.cell for row in found]
    assert table[0]["p50_ms"] == found[0].p50.value
    assert (tmp_path / "rows.csv").read_text() == render(found, "csv") + "\n"
    refused = subprocess.run(
        [sys.executable, "-m", "loadtest", "results", str(run), "--format", "parquet"], capture_output=True, check=False
    )
    assert refused.returncode == 2


def test_rows_are_written_in_every_form(run: Path, stage: Stage) -> None:
    found = rows(read(run))
    said = stage("loadtest", "results", str(run), "--format", "json")
    assert json.loads(said.stdout) == json.loads(render(found, "json"))
    assert json.loads(said.stdout)[0]["cell"] == found[0].cell
    lines = list(csv.DictReader(io.StringIO(render(found, "csv"))))
    assert [line["cell"] for line in lines] == [row.cell for row in found]
    assert lines[0]["p50_ms"] == str(found[0].p50.value)
    page, _, remarks = render(found, "markdown").partition("\n\n")
    assert len(page.splitlines()) == len(found) + 2
    assert len({line.count(" | ") for line in page.splitlines()}) == 1
    assert "missing: not measured yet" in remarks
    calm = stage("loadtest", "results", str(run), COLUMNS="80")
    assert max(map(len, calm.stdout.splitlines())) <= 80
    named = ["PyTorch", "TorchScript"]
    closed, opened = [line.split() for line in calm.stdout.splitlines() if line.split()[:2] == named]
    assert closed[2:5] == ["1.41", "1.41", ABSENT]
    # Asked, delivered, and the two percentiles; those of a p99 want more requests.
    assert opened[2:] == ["50.0", "49.4", "1.41", ABSENT, ABSENT]
    assert "rows not measured: not measured yet" in " ".join(calm.stdout.split())
    told = stage("loadtest", "results", str(run), "--reasons")
    assert "missing: not measured yet" in " ".join(told.stdout.split())
    tables, notes = short(found)
    assert [len(table.lines) for table in tables] == [3, 3]
    assert len(notes) <= 6
    missing = [row for row in found if row.status != "done"]
    assert notes[0].startswith("null: ")
    assert notes[2].startswith(f"{len(missing)} of {len(found)} rows not measured: ")
    assert len(reasons(found)) == len({row.reason for row in missing})
    denied = msgspec.structs.replace(found[0], status="failed", valid=False, reason="it said \x1b[2J")
    for note in (short([denied])[1][-2], *reasons([denied])):
        assert note.endswith(": it said \\x1b[2J"), "a terminal would obey it"
    steady = msgspec.structs.replace(
        found[0], status="done", valid=True, reason="bimodal: x; no steady state: y", steady=False
    )
    assert short([steady, steady])[1][1] == "2 of 2 rows without a steady state: y"


@pytest.mark.parametrize("text", ["=1+1", "+1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", "\t=1", "\r=1", "\n=1", "-"])
def test_no_cell_of_a_csv_is_run_by_a_spreadsheet(text: str) -> None:
    """A reason may say what a framework, or a file of somebody else, said."""
    line = [text, -2.5, "-2.5", f"plain{text}", None]
    (read_back,) = csv.reader(io.StringIO(csv_lines([line]), newline=""))
    text = text.replace("\r", "\n")
    assert read_back == [f"'{text}", "-2.5", "-2.5", f"plain{text}", ""]
    failure = Failure(stage=text, name="x", reason="r")
    assert (
        next(csv.DictReader(io.StringIO(render_plain([msgspec.to_builtins(failure)], "csv"), newline="")))["stage"]
        == f"'{text}"
    )


def test_a_folder_that_is_no_run_is_refused(stage: Stage, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no run"):
        rows(read(tmp_path))
    done = stage("loadtest", "results", str(tmp_path), "--format", "json")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_the_summary_of_one_record_has_counts_rates_and_all_definitions_of_latency() -> None:
    sent = np.arange(400) * 10_000_000
    record = table(intended_ns=sent, sent_ns=sent + 2_000_000, done_ns=sent + 3_000_000)
    said = summarise(record, seconds=4.0)
    assert (said["n"], said["failed"], said["rate_delivered"], said["p50_ms"]) == (400, 0, 100.0, 3.0)
    assert (said["p99_ms"], said["p99_service_ms"], said["p99_uncorrected_ms"], said["p99_9_ms"]) == (
        3.0,
        1.0,
        1.0,
        None,
    )
    assert (said["lag_p50_us"], said["lag_p99_us"], said["steady"]) == (2000.0, 2000.0, True)
    words = as_text(said | {"rate_asked": 100.0})
    assert "100/s of 100 asked" in words
    (line,) = [line.split() for line in words.splitlines() if line.startswith("p99 ")]
    assert line == ["p99", "3.00", "1.00", "1.00", "2.00"]
    (line,) = [line.split() for line in words.splitlines() if line.startswith("p99.9")]
    assert line == ["p99.9", *[ABSENT] * 4]
    # One rule of what a sample carries, by each definition; and how long it would have to be.
    assert said["reasons"] == {
        "p99_9_ms": "n 400 < 3,688; --seconds 37",
        "p99_9_service_ms": "n 400 < 3,688; --seconds 37",
        "p99_9_uncorrected_ms": "n 400 < 3,688; --seconds 37",
    }
    assert "p99_9, p99_9_service, p99_9_uncorrected: n 400 < 3,688; --seconds 37" in words


def test_correlated_requests_have_the_percentiles_of_their_number() -> None:
    """Latency rises and falls over the whole record: it is worth a few independent requests."""
    wave = np.rint(1e6 * (2 + np.sin(np.linspace(0, 6, 1000)))).astype(np.int64)
    said = summarise(table(sent_ns=np.arange(1000) * 10_000_000, done_ns=np.arange(1000) * 10_000_000 + wave))
    assert said["p90_ms"] is not None
    assert said["p99_ms"] is not None
    assert (said["p90_low"], said["p99_high"]) == (None, None)
    assert set(said["reasons"]) == {"p50_low", "p90_low", "p99_low", "p99_9_ms"}
    assert "correlated requests are worth" in said["reasons"]["p99_low"]
    assert "p99.9        - (n 1,000 < 3,688; --seconds 37)" in as_text(said)


def test_the_summary_of_nothing_divides_by_nothing() -> None:
    said = summarise(table(sent_ns=[1], done_ns=[2], warmup=[True]))
    assert (said["n"], said["rate_delivered"], said["p50_ms"]) == (0, None, None)
