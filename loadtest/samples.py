"""The raw record of a measurement: one row per request, integer nanoseconds, null where unknown. Parquet files.

The load generator and the timer write it; everything that is published about a measurement is a function of its rows.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from medserve import store
from medserve.errors import BadInput
from medserve.tables import LIMITS

SCHEMA = pa.schema(
    [
        ("intended_ns", pa.int64()),  # the intended start, by the schedule; null in a closed loop
        ("sent_ns", pa.int64()),  # before its first byte was written
        ("first_byte_ns", pa.int64()),  # when the first byte of the answer arrived
        ("done_ns", pa.int64()),  # when the whole answer had arrived, or the failure was known
        ("server_received_ns", pa.int64()),  # the server's own stamps, on the same host only
        ("server_sent_ns", pa.int64()),
        ("queue_ns", pa.int64()),  # the server's stages
        ("decode_ns", pa.int64()),
        ("infer_ns", pa.int64()),
        ("encode_ns", pa.int64()),
        ("status", pa.int32()),  # of HTTP; 0 without an answer; 200 in process
        ("error", pa.string()),
        ("image", pa.int64()),  # index of the first image of the batch in the file
        ("batch", pa.int32()),
        ("connection", pa.int32()),  # numbered in the order of opening
        ("warmup", pa.bool_()),
        ("wrong", pa.bool_()),  # the scores are not the expected ones
    ]
)
SERVER_STAGES = ("queue", "decode", "infer", "encode")
"""The stages that a server reports, in this order; their columns end in _ns."""
STAGES = pa.schema(
    [
        ("place_ns", pa.int64()),  # by the host's clock
        ("run_ns", pa.int64()),
        ("fetch_ns", pa.int64()),
        ("warmup", pa.bool_()),
        ("device_ns", pa.int64()),  # of another run, by the device's own events; null where it has none
    ]
)

NEVER_NULL = ("done_ns", "status", "batch", "warmup", "place_ns", "run_ns", "fetch_ns")

MAX_IN_FLIGHT = LIMITS.connections
"""Requests that the generator has in flight at most; further ones wait for a free connection.

geventhttpclient looks at idle connections with select(2), which ends at 1024.
"""
WRONG = 1e-3
"""Largest |difference of probabilities| to the certified scores that still counts as the same answer.

Ten times what a certificate allows: a batch of another size may be summed in another order.
"""


def difference(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> str:
    """Where float32 (N, classes) scores differ most from the expected ones, in words."""
    if scores.shape != expected.shape:
        return f"scores of shape {scores.shape}, not {expected.shape}"
    image, label = np.unravel_index(np.abs(scores - expected).argmax(), scores.shape)
    return f"a score of {scores[image, label]:.6g} for class {label}, not {expected[image, label]:.6g}"


def differs(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether float32 (N, classes) scores differ from the expected ones by more than WRONG; a NaN does."""
    return scores.shape != expected.shape or not np.abs(scores - expected).max(initial=0.0) <= WRONG


def as_table(columns: Mapping[str, Any], schema: pa.Schema = SCHEMA) -> pa.Table:
    """Columns (lists or arrays) as a table of the schema; an absent column is all null."""
    count = len(next(iter(columns.values())))
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def write(path: Path, columns: Mapping[str, Any], schema: pa.Schema = SCHEMA, facts: Any = None) -> None:
    """Write columns as Parquet, atomically, with `facts` (any JSON) about the process that recorded them."""
    write_tables(path, [as_table(columns, schema)], schema, facts)


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema = SCHEMA, facts: Any = None) -> None:
    """Write tables one after the other as one Parquet file, as `write` does."""
    partial = store.partial_of(path)
    # Differences between neighbouring times take two fifths of the bytes of the times. Statistics, which nothing reads,
    # and a second description of the columns would take a fifth of a record of 400 requests.
    times = [field.name for field in schema if pa.types.is_int64(field.type)]
    encoding = dict.fromkeys(times, "DELTA_BINARY_PACKED")
    others = [name for name in schema.names if name not in times]
    try:
        with pq.ParquetWriter(
            partial,
            schema,
            compression="zstd",
            use_dictionary=others,
            column_encoding=encoding,
            write_statistics=False,
            store_schema=False,
        ) as writer:
            for table in tables:
                writer.write_table(table)
            writer.add_key_value_metadata({"facts": msgspec.json.encode(facts).decode()})
        store.commit(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path, names: Iterable[str] | None = None, schema: pa.Schema = SCHEMA) -> pa.Table:
    """The rows of a file, or only the columns of these names, without the columns that a later version added.

    Raises BadInput when it is not such a file.
    """
    try:
        found = pq.read_schema(path)
        if pa.schema([found.field(name) for name in schema.names if name in found.names]) != schema:
            raise BadInput(f"{path}: columns are {_columns(found)}; expected {_columns(schema)}")
        # Prefetching would hold the compressed file in memory beside the rows.
        table = pq.read_table(path, columns=list(names or schema.names), partitioning=None, pre_buffer=False)
    except FileNotFoundError:
        raise BadInput(f"{path}: no such file") from None
    except (pa.ArrowException, OSError) as error:
        raise BadInput(f"{path}: not a Parquet file of samples: {error}") from None
    for name in set(NEVER_NULL) & set(table.column_names):
        if table[name].null_count:
            raise BadInput(f"{path}: {table[name].null_count} rows without {name}; measure the cell again")
    if {"sent_ns", "done_ns", "status"} <= set(table.column_names):
        in_order = pc.fill_null(pc.less_equal(table["sent_ns"], table["done_ns"]), False)
        if not pc.all(pc.or_(pc.equal(table["status"], 0), in_order), min_count=0).as_py():
            raise BadInput(f"{path}: an answered request without a sending before it; measure the cell again")
    return table


def read_facts(path: Path) -> dict[str, Any]:
    """The facts that were written with a record."""
    facts: dict[str, Any] = msgspec.json.decode((pq.read_schema(path).metadata or {}).get(b"facts", b"{}")) or {}
    return facts


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def mark(path: Path, reason: str) -> None:
    """Mark a record as incomplete: {"incomplete": reason} in its facts."""
    with pq.ParquetFile(path) as file:
        groups = (file.read_row_group(number) for number in range(file.num_row_groups))
        write_tables(path, groups, file.schema_arrow.remove_metadata(), read_facts(path) | {"incomplete": reason})
