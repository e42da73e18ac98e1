"""The record: what is written is what was noted, and what is not a record is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtest import samples
from loadtest.samples import Record
from medserve import wire
from medserve.errors import BadInput

NAMES = [
    *("intended_ns", "sent_ns", "first_byte_ns", "done_ns", "server_received_ns", "server_sent_ns"),
    *("queue_ns", "decode_ns", "infer_ns", "encode_ns"),
    *("status", "error", "image", "batch", "connection", "warmup", "wrong"),
]
CHOSEN = np.array([[7, 3], [5, 1]])
EXPECTED = np.random.default_rng(0).dirichlet(np.ones(8), 9).astype(np.float32)
TIMING = "queue;dur=0.001500, decode;dur=0.020000, infer;dur=1.250000, encode;dur=0.003000"


def answer(scores: np.ndarray) -> dict[str, Any]:
    request = wire.Request(np.zeros((2, 4, 4, 3), np.uint8), None, True)
    headers, body = wire.encode_response("m", "1", scores, request)
    return {"head_length": dict(headers)[b"inference-header-content-length"].decode(), "body": body}


def record(sent: int = 1000, **other: Any) -> Record:
    values = {"request": 0, "status": 200, "connection": 0, "intended": None, "sent": sent, "first_byte": sent + 50}
    return Record(**(values | {"done": sent + 90} | other))


def rows(*records: Record, expected: np.ndarray | None = None, measured_from: int = 0) -> list[dict[str, Any]]:
    columns = samples.from_records(records, CHOSEN, expected, measured_from)
    return samples.as_table(columns).to_pylist()


def test_the_columns_are_those_of_the_contract() -> None:
    assert samples.SCHEMA.names == NAMES
    assert {field.type for field in samples.SCHEMA if field.name.endswith("_ns")} == {pa.int64()}


def test_a_record_becomes_a_row() -> None:
    noted = record(intended=990, request=1, connection=4, timing=TIMING, clock="1010 1080", **answer(EXPECTED[[5, 1]]))
    (row,) = rows(noted, expected=EXPECTED, measured_from=991)
    assert row == {
        "intended_ns": 990,
        "sent_ns": 1000,
        "first_byte_ns": 1050,
        "done_ns": 1090,
        "server_received_ns": 1010,
        "server_sent_ns": 1080,
        "queue_ns": 1500,
        "decode_ns": 20_000,
        "infer_ns": 1_250_000,
        "encode_ns": 3000,
        "status": 200,
        "error": None,
        "image": 5,
        "batch": 2,
        "connection": 4,
        "warmup": True,
        "wrong": False,
    }


def test_what_is_unknown_is_null_and_nothing_is_wrong_where_nothing_is_expected() -> None:
    (row,) = rows(record())
    unknown = {name for name, value in row.items() if value is None}
    stamps = {"server_received_ns", "server_sent_ns", "queue_ns", "decode_ns", "infer_ns", "encode_ns"}
    assert unknown == {"intended_ns", "error", "wrong", *stamps}


def test_stamps_of_a_clock_of_another_host_are_left_out() -> None:
    same, other = record(clock="1010 1080"), record(2000, clock="77 78")
    assert [row["server_sent_ns"] for row in rows(same)] == [1080]
    assert [row["server_sent_ns"] for row in rows(same, other)] == [None, None]
    assert rows(record(clock="rubbish"))[0]["server_sent_ns"] is None


@pytest.mark.parametrize(("error", "wrong"), [(0.0, False), (9e-4, False), (1.1e-3, True), (float("nan"), True)])
def test_scores_are_wrong_beyond_the_limit(error: float, wrong: bool) -> None:
    scores = EXPECTED[[7, 3]].copy()
    scores[1, 2] += error
    (row,) = rows(record(**answer(scores)), expected=EXPECTED)
    assert row["wrong"] is wrong


def test_scores_of_another_image_another_shape_or_no_scores_are_wrong() -> None:
    others = [answer(EXPECTED[[3, 7]]), answer(EXPECTED[[7]]), {"head_length": None, "body": b"hello"}]
    found = rows(*(record(1000 + at, **other) for at, other in enumerate(others)), expected=EXPECTED)
    assert [row["wrong"] for row in found] == [True, True, True]
    assert "not an Open Inference Protocol v2 response" in found[2]["error"]


def test_rows_are_in_the_order_of_sending_and_failures_among_them() -> None:
    late = record(1000, done=9000)
    failed = record(status=0, done=3000, error="refused")
    failed.sent = failed.first_byte = None
    found = rows(late, record(5000), failed)
    assert [row["done_ns"] for row in found] == [9000, 3000, 5090]
    assert [row["status"] for row in found] == [200, 0, 200]


def test_a_record_is_good_when_it_was_answered_and_not_wrongly() -> None:
    columns = {"done_ns": [1, 1, 1, 1], "status": [200, 0, 200, 503], "wrong": [None, None, True, None]}
    table = samples.as_table(columns | {"batch": [1] * 4, "warmup": [False] * 4})
    assert samples.is_good(table).tolist() == [True, False, False, False]


def written(folder: Path) -> Path:
    path = folder / "samples.parquet"
    samples.write(path, samples.from_records([record(), record(2000)], CHOSEN, None, 0), facts={"connections": 1})
    return path


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert samples.read(path).column_names == NAMES
    assert samples.read(path)["sent_ns"].to_pylist() == [1000, 2000]
    assert samples.read(path, ("batch", "warmup")).column_names == ["batch", "warmup"]
    assert samples.read_facts(path) == {"connections": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.parquet"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowException):
        samples.write(tmp_path / "samples.parquet", {"done_ns": ["no number"]})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_record_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    cases: list[tuple[str, Any]] = [("no such file", None)]
    whole = written(tmp_path).read_bytes()
    cases += [
        ("not a Parquet file", whole[: len(whole) // 2]),
        ("not a Parquet file", b""),
        ("not a Parquet", b"x" * 99),
    ]
    for message, content in cases:
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(BadInput, match=message) as caught:
            samples.read(path)
        assert "\n" not in str(caught.value)


def test_other_columns_missing_values_and_impossible_times_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    pq.write_table(pa.table({"done_ns": [1]}), path)
    with pytest.raises(BadInput, match="columns are done_ns int64; expected intended_ns int64"):
        samples.read(path)
    samples.write(path, {"done_ns": [1], "batch": [1], "warmup": [False]})
    with pytest.raises(BadInput, match="1 rows without status"):
        samples.read(path)
    samples.write(path, {"sent_ns": [2], "done_ns": [1], "batch": [1], "warmup": [False], "status": [200]})
    with pytest.raises(BadInput, match="without a sending before it"):
        samples.read(path)
