"""The records of several processes as one: all rows, one clock, and connection numbers that are unique."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

STAMPS = ("intended_ns", "sent_ns", "first_byte_ns", "done_ns")
SERVER_STAMPS = ("server_received_ns", "server_sent_ns")


class WorkerRecord(Struct, frozen=True):
    """The record of one process, a table of `samples.SCHEMA`; `start` is the common start (ns) by its own clock.

    `host` is its host's name, and `same_clock` says that its stamps need no shift, as it runs on the master's host.
    """

    table: pa.Table
    start: int
    host: str
    same_clock: bool
    facts: dict[str, Any]


def merge(records: Sequence[WorkerRecord], start: int) -> tuple[pa.Table, dict[str, Any]]:
    """All rows in the order of sending, and the facts of all processes together with those of each.

    The stamps of another host are shifted, all of a row alike, so that its start becomes `start` (ns). The server's
    stamps in its rows are removed: their clock is that host's own, or a third one.
    """
    tables = []
    opened = 0
    for record in records:
        columns = {name: record.table[name] for name in record.table.column_names}
        if not record.same_clock:
            for name in STAMPS:
                columns[name] = pc.add(columns[name], start - record.start)
            for name in SERVER_STAMPS:
                columns[name] = pa.nulls(len(record.table), pa.int64())
        columns["connection"] = pc.add(columns["connection"], pa.scalar(opened, pa.int32()))
        opened += record.facts["connections"]
        tables.append(pa.table(columns, schema=record.table.schema.remove_metadata()))
    table = pa.concat_tables(tables)
    order = pc.coalesce(table["intended_ns"], table["sent_ns"], table["done_ns"])
    facts = [record.facts for record in records]
    workers = [
        {"host": record.host} | {name: record.facts[name] for name in ("affinity", "cpu_seconds", "connections")}
        for record in records
    ]
    together = facts[0] | {
        "affinity": sorted({cpu for each in facts for cpu in each["affinity"]}),
        "connections": opened,
        "cpu_seconds": sum(each["cpu_seconds"] for each in facts),
        "workers": workers,
    }
    return table.take(pc.sort_indices(order)), together
