"""The record as a file: what is written comes back, and what is not a record is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from loadtest import samples
from loadtest.generator.records import Records
from loadtest.results import latency
from medserve.errors import BadInput

NAMES = [
    *("intended_ns", "sent_ns", "first_byte_ns", "done_ns", "server_received_ns", "server_sent_ns"),
    *("queue_ns", "decode_ns", "infer_ns", "encode_ns"),
    *("status", "error", "image", "batch", "connection", "warmup", "wrong"),
]


def test_the_columns_are_those_of_the_contract() -> None:
    assert samples.SCHEMA.names == NAMES
    assert {field.type for field in samples.SCHEMA if field.name.endswith("_ns")} == {pa.int64()}


def test_a_record_is_good_when_it_was_answered_and_not_wrongly() -> None:
    columns = {"done_ns": [1, 1, 1, 1], "status": [200, 0, 200, 503], "wrong": [None, None, True, None]}
    table = samples.as_table(columns | {"batch": [1] * 4, "warmup": [False] * 4})
    assert latency.succeeded(table).tolist() == [True, False, False, False]


def written(folder: Path) -> Path:
    path = folder / "samples.parquet"
    records = Records()
    for sent in (1000, 2000):
        records.note(0, 200, 0, None, sent, sent + 50, sent + 90)
    samples.write_tables(path, records.tables(np.array([[0]])), facts={"connections": 1})
    return path


def test_a_file_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = written(tmp_path)
    assert samples.read(path).column_names == NAMES
    assert samples.read(path)["sent_ns"].to_pylist() == [1000, 2000]
    assert samples.read(path, ("batch", "warmup")).column_names == ["batch", "warmup"]
    assert samples.read_facts(path) == {"connections": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["samples.parquet"]


def test_columns_that_a_later_version_added_are_left_out(tmp_path: Path) -> None:
    path = written(tmp_path)
    plain = samples.read(path)
    pq.write_table(plain.add_column(3, "joules", pa.array([0.5, 0.6])), path)
    assert samples.read(path).equals(plain)
    assert samples.read(path, ("batch",)).column_names == ["batch"]


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
