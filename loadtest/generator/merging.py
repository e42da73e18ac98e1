"""The records of several processes as one: the same rows, one clock, connections numbered through."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct

STAMPS = ("intended_ns", "sent_ns", "first_byte_ns", "done_ns")
SERVER_STAMPS = ("server_received_ns", "server_sent_ns")


class Part(Struct, frozen=True):
    """The record of one process, a table of `samples.SCHEMA`; `start` is the common start (ns) by its own clock.

    `name` is its host's, and `same_clock` says that its stamps need no shift, for it is on the host of the others.
    """

    table: pa.Table
    start: int
    name: str
    same_clock: bool
    facts: dict[str, Any]


def merge(parts: Sequence[Part], start: int) -> tuple[pa.Table, dict[str, Any]]:
    """All rows in the order of sending, and the facts of all processes together with each one's own.

    The stamps of another host are shifted, all of a row alike, so that its start falls on `start` (ns); the server's
    stamps were made by a clock that it shared, or by none, and are left out.
    """
    tables = []
    opened = 0
    for part in parts:
        columns = {name: part.table[name] for name in part.table.column_names}
        if not part.same_clock:
            for name in STAMPS:
                columns[name] = pc.add(columns[name], start - part.start)
            for name in SERVER_STAMPS:
                columns[name] = pa.nulls(len(part.table), pa.int64())
        columns["connection"] = pc.add(columns["connection"], pa.scalar(opened, pa.int32()))
        opened += part.facts["connections"]
        tables.append(pa.table(columns, schema=part.table.schema.remove_metadata()))
    table = pa.concat_tables(tables)
    order = pc.coalesce(table["intended_ns"], table["sent_ns"], table["done_ns"])
    facts = [part.facts for part in parts]
    workers = [
        {"host": part.name} | {name: part.facts[name] for name in ("affinity", "cpu_seconds", "connections")}
        for part in parts
    ]
    together = facts[0] | {
        "affinity": sorted({cpu for one in facts for cpu in one["affinity"]}),
        "connections": opened,
        "cpu_seconds": sum(one["cpu_seconds"] for one in facts),
        "workers": workers,
    }
    return table.take(pc.sort_indices(order)), together
