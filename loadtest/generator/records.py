"""What the client records of each request while it measures, and the rows that are computed from it afterwards.

The records of several processes become one: all rows, one clock, and connection numbers that are unique.

Recording costs little: under 200 bytes per request, so that ten million fit, in a few arrays that the garbage collector
does not visit. Answers that are byte for byte equal, as most of the same image are, are held once.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import Struct
from numpy.typing import NDArray

from loadtest import samples
from medserve import wire
from medserve.errors import BadInput

Decode = Callable[[bytes, str | None], NDArray[np.float32]]
"""Of an answer's body and its Inference-Header-Content-Length: the scores. Raises BadInput."""
UNKNOWN = -1
"""Stands for an unknown number; no stamp, status or index is negative."""
UNREADABLE = -2
"""Stands for a stamp of the server that is not a number."""
NUMBERS = 9
"""Numbers that are recorded of a request."""
CHUNK_ROWS = 1 << 17
"""Rows that are computed at a time."""
STAMPS = ("intended_ns", "sent_ns", "first_byte_ns", "done_ns")
SERVER_STAMPS = ("server_received_ns", "server_sent_ns")
# The headers of this program's server, as `serve.app` and `wire.server_timing` write them; others are parsed slowly.
OWN_HEADERS = r"^(?P<received>\d{1,18}) (?P<sent>\d{1,18})\n" + ", ".join(
    rf"{stage};dur=(?P<{stage}>\d{{1,12}}\.\d+)" for stage in samples.SERVER_STAGES
)


class Records:
    """The requests of one process, in the order in which they ended."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._headers = bytearray()
        self._errors: dict[int, str] = {}
        self._answers: dict[tuple[str | None, bytes], int] = {}

    def __len__(self) -> int:
        return len(self._numbers) // NUMBERS

    def note(
        self,
        request: int,
        status: int,
        connection: int | None,
        intended: int | None,
        sent: int | None,
        first_byte: int | None,
        done: int,
        error: str | None = None,
        head_length: str | None = None,
        timing: str | None = None,
        clock: str | None = None,
        body: bytes | None = None,
    ) -> None:
        """Record one request: its number, stamps (ns), the headers of its answer and, if it is compared, the body."""
        if timing is not None or clock is not None:
            self._headers += f"{clock or ''}\n{timing or ''}".encode()
        if error is not None:
            self._errors[len(self)] = error
        answers = self._answers
        answer = None if body is None else answers.setdefault((head_length, body), len(answers))
        numbers = (request, status, connection, intended, sent, first_byte, done, answer, len(self._headers))
        self._numbers.extend([UNKNOWN if number is None else number for number in numbers])

    def tables(
        self,
        chosen: NDArray[np.int64],
        expected: NDArray[np.float32] | None = None,
        measured_from: int = 0,
        rows: slice = slice(None),
        decode: Decode = wire.decode_response,
    ) -> Iterator[pa.Table]:
        """Tables of `samples.SCHEMA`, together in the order of sending; `rows` selects by the order of the ends.

        `chosen` is int64 (requests, batch), as `payload.requests` gives it; `expected` is float32 (images, classes) or
        null; requests that were sent before `measured_from` (ns) are warm-up; `decode` reads an answer's scores.
        """
        numbers = np.frombuffer(self._numbers, np.int64).reshape(-1, NUMBERS)
        headers = _parse_headers(numbers[:, 8], self._headers)[rows]
        numbers, first = numbers[rows], rows.indices(len(numbers))[0]
        wrong, reasons = self._compare(numbers, chosen, expected, decode)
        errors = {row - first: error for row, error in self._errors.items()} | reasons
        request, _, _, intended, sent, _, done, _, _ = numbers.T
        origin = np.where(intended != UNKNOWN, intended, np.where(sent != UNKNOWN, sent, done))
        if not _shares_clock(headers, sent, done):
            headers[:, :2] = UNKNOWN
        order = np.argsort(origin, kind="stable")
        for part in (order[at : at + CHUNK_ROWS] for at in range(0, max(1, len(order)), CHUNK_ROWS)):
            chunk = numbers[part]
            columns = {
                **dict(zip(("intended_ns", "sent_ns", "first_byte_ns"), map(_nullable, chunk[:, 3:6].T), strict=True)),
                "done_ns": chunk[:, 6],
                **dict(zip(("server_received_ns", "server_sent_ns"), map(_nullable, headers[part, :2].T), strict=True)),
                **{f"{stage}_ns": _nullable(headers[part, 2 + at]) for at, stage in enumerate(samples.SERVER_STAGES)},
                "status": chunk[:, 1].astype(np.int32),
                "error": list(map(errors.get, part.tolist())) if errors else pa.nulls(len(part), pa.string()),
                "image": chosen[request[part], 0],
                "batch": np.full(len(part), chosen.shape[1], np.int32),
                "connection": _nullable(chunk[:, 2].astype(np.int32)),
                "warmup": origin[part] < measured_from,
                "wrong": pa.array(wrong[part] == 1, mask=wrong[part] == UNKNOWN),
            }
            yield samples.as_table(columns)

    def _compare(
        self,
        numbers: NDArray[np.int64],
        chosen: NDArray[np.int64],
        expected: NDArray[np.float32] | None,
        decode: Decode,
    ) -> tuple[NDArray[np.int8], dict[int, str]]:
        """For each row whether it is wrong (1), right (0) or not compared (UNKNOWN); and why those are wrong."""
        wrong = np.full(len(numbers), UNKNOWN, np.int8)
        if expected is None:
            return wrong, {}
        compared = np.flatnonzero((numbers[:, 1] == 200) & (numbers[:, 7] != UNKNOWN))
        # Each answer is compared once per request that it answers.
        pairs, which = np.unique(numbers[compared, 7] * len(chosen) + numbers[compared, 0], return_inverse=True)
        answers = list(self._answers)
        verdicts = np.zeros(len(pairs), np.int8)
        reasons: dict[int, str] = {}
        for index, pair in enumerate(pairs.tolist()):
            answer, request = divmod(pair, len(chosen))
            head_length, body = answers[answer]
            try:
                scores, right = decode(body, head_length), expected[chosen[request]]
                verdicts[index] = samples.differs(scores, right)
                if verdicts[index]:
                    reasons[index] = samples.difference(scores, right)
            except BadInput as error:
                verdicts[index] = 1
                reasons[index] = str(error)
        rows = np.flatnonzero(np.isin(which, list(reasons)))
        wrong[compared] = verdicts[which]
        return wrong, {int(compared[row]): reasons[int(which[row])] for row in rows}


def _parse_headers(ends: NDArray[np.int64], headers: bytearray) -> NDArray[np.int64]:
    """The server's two stamps and its four stages of each row in nanoseconds, int64 (rows, 6)."""
    found = np.full((len(ends), 6), UNKNOWN, np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    for at in range(0, len(ends), CHUNK_ROWS):
        ends_here = offsets[at : at + CHUNK_ROWS + 1]
        texts = pa.LargeStringArray.from_buffers(len(ends_here) - 1, pa.py_buffer(ends_here), pa.py_buffer(headers))
        own = pc.extract_regex(texts, OWN_HEADERS)
        matched = ~np.asarray(own.is_null())
        fields = [pc.struct_field(own.drop_null(), name) for name in ("received", "sent", *samples.SERVER_STAGES)]
        part = found[at : at + CHUNK_ROWS]
        for column, field in enumerate(fields):
            if column < 2:
                part[matched, column] = field.cast(pa.int64())
            else:
                part[matched, column] = np.rint(np.asarray(field.cast(pa.float64())) * 1e6)
        for row in np.flatnonzero(~matched & (np.diff(ends_here) > 0)).tolist():
            part[row] = _parse_other(texts[row].as_py())
    return found


def _parse_other(text: str) -> tuple[int, ...]:
    clock, _, timing = text.partition("\n")
    stages = wire.parse_server_timing(timing)
    stamps = (UNKNOWN, UNKNOWN)
    if clock:
        try:
            received, sent = map(int, clock.split())
            stamps = received, sent
        except ValueError:
            stamps = (UNREADABLE, UNREADABLE)
    return *stamps, *(stages.get(stage, UNKNOWN) for stage in samples.SERVER_STAGES)


def _shares_clock(headers: NDArray[np.int64], sent: NDArray[np.int64], done: NDArray[np.int64]) -> bool:
    """Whether server and client share a clock: every stamp of the server lies between sending and reception."""
    received, answered = headers[:, 0], headers[:, 1]
    known = (received != UNKNOWN) & (sent != UNKNOWN)
    return bool(((sent <= received) & (received <= answered) & (answered <= done))[known].all())


def _nullable(values: NDArray[np.signedinteger[Any]]) -> pa.Array:
    return pa.array(np.ascontiguousarray(values), mask=values < 0)


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
