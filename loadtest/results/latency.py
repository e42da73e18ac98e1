"""Three ways to read the same record: from the intended time, from the sending, and as a closed loop would have.

All give float64 nanoseconds; what failed or was answered wrongly is infinitely slow.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from loadtest.samples import is_good

COLUMNS = ("intended_ns", "sent_ns", "done_ns", "status", "wrong")
"""What the rulers want of a record."""
BLOCK = 1 << 20
"""Rows whose successors are Python integers at once: of ten million they would fill a third of a gigabyte."""


def due(table: pa.Table) -> NDArray[np.int64]:
    """When each request was to leave, or left, or was known to have failed: the first of these that is known."""
    known = pc.coalesce(table["intended_ns"], table["sent_ns"], table["done_ns"])
    return np.asarray(known.to_numpy(), np.int64)


def in_order(table: pa.Table) -> pa.Table:
    """The rows as they were due; the same table where they are so already."""
    planned = due(table)
    if np.all(planned[:-1] <= planned[1:]):
        return table
    return table.take(np.argsort(planned, kind="stable"))


def from_intended(table: pa.Table) -> NDArray[np.float64]:
    """From the intended time, or from the sending where there is none (a closed loop), to the whole answer."""
    return _waited(table, pc.coalesce(table["intended_ns"], table["sent_ns"]))


def from_sent(table: pa.Table) -> NDArray[np.float64]:
    """From the sending to the whole answer: without what the schedule had to wait."""
    return _waited(table, table["sent_ns"])


def lag(table: pa.Table) -> NDArray[np.float64]:
    """How long after its intended time each request left, of those that did."""
    late = pc.drop_null(pc.subtract(table["sent_ns"], table["intended_ns"]))
    return np.asarray(late.to_numpy(), np.float64)


def closed_loop(table: pa.Table) -> NDArray[np.float64]:
    """What one user back to back would have printed in the same run, from its sendings: the fewer rows that it takes.

    It takes a request, waits for the answer and so leaves out those that were due before it, and takes the next: one
    sample of a stall that made a thousand wait. (Tene, How NOT to Measure Latency, calls it coordinated omission.)
    """
    table = in_order(table)
    return from_sent(table)[_taken(due(table), table["done_ns"].to_numpy())]


def _taken(planned: NDArray[np.int64], done: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which requests a walk takes that goes from each to the first one due at or after its answer."""
    taken = bytearray(len(planned))
    place = 0
    for first in range(0, len(planned), BLOCK):
        stop = min(first + BLOCK, len(planned))
        after = np.searchsorted(planned, done[first:stop])
        following = np.maximum(after, np.arange(first + 1, stop + 1)).tolist()
        while place < stop:
            taken[place] = 1
            place = following[place - first]
    return np.frombuffer(taken, np.bool_)


def _waited(table: pa.Table, origin: pa.ChunkedArray) -> NDArray[np.float64]:
    # Subtracted as integers: a clock of months in nanoseconds does not fit into a float.
    waited = pc.subtract(table["done_ns"], origin).to_numpy()
    values = np.array(waited, np.float64)
    values[~is_good(table)] = np.inf
    return values
