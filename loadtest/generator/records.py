"""What the client notes of each request while it measures, and the rows that are worked out of it afterwards.

Noting is made to cost little: a test of ten million requests holds under 200 bytes of each, in a few arrays that the
garbage collector never looks at. Answers that are equal to the byte, as those of one image mostly are, are held once.
"""

from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest import samples
from medserve import wire
from medserve.errors import BadInput

NONE = -1
"""Stands for a number that is unknown; no stamp, status or place is negative."""
UNREADABLE = -2
"""Stands for a stamp of the server that is there and no number."""
ROWS = 1 << 17
"""Rows that are worked out at a time."""
STAGES = ("queue", "decode", "infer", "encode")
# The headers of this program's server, as `serve.app` and `wire.server_timing` write them; others take the slow way.
OURS = r"^(?P<received>\d{1,18}) (?P<sent>\d{1,18})\n" + ", ".join(
    rf"{stage};dur=(?P<{stage}>\d{{1,12}}\.\d+)" for stage in STAGES
)


class Records:
    """The requests of one process, in the order of their ends."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._headers = bytearray()
        self._errors: dict[int, str] = {}
        self._answers: dict[tuple[str | None, bytes], int] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

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
        """One request: its number, nanoseconds, the headers of its answer and, where it is compared, the body."""
        if timing is not None or clock is not None:
            self._headers += f"{clock or ''}\n{timing or ''}".encode()
        answers = self._answers
        self._numbers.extend(
            (
                request,
                status,
                NONE if connection is None else connection,
                NONE if intended is None else intended,
                NONE if sent is None else sent,
                NONE if first_byte is None else first_byte,
                done,
                NONE if body is None else answers.setdefault((head_length, body), len(answers)),
                len(self._headers),
            )
        )
        if error is not None:
            self._errors[self._count] = error
        self._count += 1

    def tables(
        self,
        chosen: NDArray[np.int64],
        expected: NDArray[np.float32] | None = None,
        measured_from: int = 0,
        rows: slice = slice(None),
    ) -> Iterator[pa.Table]:
        """Tables of `samples.SCHEMA`, together in the order of sending; `rows` takes a part, in the order of the ends.

        `chosen` is int64 (requests, batch), as `payload.requests` gives it; `expected` is float32 (images, classes) or
        null; what left before `measured_from` (ns) is warm-up.
        """
        numbers = np.frombuffer(self._numbers, np.int64).reshape(-1, 9)
        headers = _parse(numbers[:, 8], self._headers)[rows]
        numbers, first = numbers[rows], rows.indices(len(numbers))[0]
        wrong, said = self._compare(numbers, chosen, expected)
        errors = {place - first: error for place, error in self._errors.items()} | said
        request, _, _, intended, sent, _, done, _, _ = numbers.T
        origin = np.where(intended != NONE, intended, np.where(sent != NONE, sent, done))
        if not _nested(headers, sent, done):
            headers[:, :2] = NONE
        order = np.argsort(origin, kind="stable")
        for part in (order[at : at + ROWS] for at in range(0, max(1, len(order)), ROWS)):
            some = numbers[part]
            columns = {
                **dict(zip(("intended_ns", "sent_ns", "first_byte_ns"), map(_nullable, some[:, 3:6].T), strict=True)),
                "done_ns": some[:, 6],
                **dict(zip(("server_received_ns", "server_sent_ns"), map(_nullable, headers[part, :2].T), strict=True)),
                **{f"{stage}_ns": _nullable(headers[part, 2 + at]) for at, stage in enumerate(STAGES)},
                "status": some[:, 1].astype(np.int32),
                "error": list(map(errors.get, part.tolist())) if errors else pa.nulls(len(part), pa.string()),
                "image": chosen[request[part], 0],
                "batch": np.full(len(part), chosen.shape[1], np.int32),
                "connection": _nullable(some[:, 2].astype(np.int32)),
                "warmup": origin[part] < measured_from,
                "wrong": pa.array(wrong[part] == 1, mask=wrong[part] == NONE),
            }
            yield samples.as_table(columns)

    def _compare(
        self, numbers: NDArray[np.int64], chosen: NDArray[np.int64], expected: NDArray[np.float32] | None
    ) -> tuple[NDArray[np.int8], dict[int, str]]:
        """For each row whether it is wrong (1), right (0) or not compared (NONE), and what is no answer at all."""
        wrong = np.full(len(numbers), NONE, np.int8)
        if expected is None:
            return wrong, {}
        compared = np.flatnonzero((numbers[:, 1] == 200) & (numbers[:, 7] != NONE))
        # Each answer is compared once for each request that it was given to.
        pairs, which = np.unique(numbers[compared, 7] * len(chosen) + numbers[compared, 0], return_inverse=True)
        answers = list(self._answers)
        verdicts = np.zeros(len(pairs), np.int8)
        unreadable: dict[int, str] = {}
        for place, pair in enumerate(pairs.tolist()):
            answer, request = divmod(pair, len(chosen))
            head_length, body = answers[answer]
            try:
                verdicts[place] = samples.differs(wire.decode_response(body, head_length), expected[chosen[request]])
            except BadInput as error:
                verdicts[place] = 1
                unreadable[place] = str(error)
        rows = np.flatnonzero(np.isin(which, list(unreadable)))
        said = {int(compared[row]): unreadable[int(which[row])] for row in rows}
        wrong[compared] = verdicts[which]
        return wrong, said


def _parse(ends: NDArray[np.int64], headers: bytearray) -> NDArray[np.int64]:
    """Of each row the server's two stamps and its four stages in nanoseconds, (rows, 6) int64."""
    found = np.full((len(ends), 6), NONE, np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), ends])
    for at in range(0, len(ends), ROWS):
        some = offsets[at : at + ROWS + 1]
        texts = pa.LargeStringArray.from_buffers(len(some) - 1, pa.py_buffer(some), pa.py_buffer(headers))
        ours = pc.extract_regex(texts, OURS)
        matched = ~np.asarray(ours.is_null())
        fields = [pc.struct_field(ours.drop_null(), name) for name in ("received", "sent", *STAGES)]
        part = found[at : at + ROWS]
        for column, field in enumerate(fields):
            if column < 2:
                part[matched, column] = field.cast(pa.int64())
            else:
                part[matched, column] = np.rint(np.asarray(field.cast(pa.float64())) * 1e6)
        for row in np.flatnonzero(~matched & (np.diff(some) > 0)).tolist():
            part[row] = _other(texts[row].as_py())
    return found


def _other(text: str) -> tuple[int, ...]:
    clock, _, timing = text.partition("\n")
    stages = wire.parse_server_timing(timing)
    stamps = (NONE, NONE)
    if clock:
        try:
            received, sent = map(int, clock.split())
            stamps = received, sent
        except ValueError:
            stamps = (UNREADABLE, UNREADABLE)
    return *stamps, *(stages.get(stage, NONE) for stage in STAGES)


def _nested(headers: NDArray[np.int64], sent: NDArray[np.int64], done: NDArray[np.int64]) -> bool:
    """Another host's clock has another origin; only the same one lies between sending and reception every time."""
    received, answered = headers[:, 0], headers[:, 1]
    known = (received != NONE) & (sent != NONE)
    return bool(((sent <= received) & (received <= answered) & (answered <= done))[known].all())


def _nullable(values: NDArray[np.signedinteger[Any]]) -> pa.Array:
    return pa.array(np.ascontiguousarray(values), mask=values < 0)
