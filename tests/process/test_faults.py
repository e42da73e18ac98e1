"""A record says what went wrong in it: the client or the server, how often, since when."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from loadtest import samples
from loadtest.results import faults


def made(**columns: object) -> pa.Table:
    """200 good requests, one a millisecond, answered after 2 ms."""
    due = np.arange(200) * 1_000_000
    plain = {"intended_ns": due, "sent_ns": due, "done_ns": due + 2_000_000, "status": np.full(200, 200)}
    plain |= {"warmup": np.zeros(200, bool), "batch": np.ones(200, int)}
    return samples.as_table(plain | columns)


def test_a_late_client_is_the_fault_of_the_client() -> None:
    due = np.arange(200) * 1_000_000
    assert faults.lateness(made()) is None
    assert faults.lateness(made(sent_ns=due + 100_000)) is None
    late = faults.lateness(made(sent_ns=due + 500_000))
    assert late is not None
    assert late.startswith(
        "the load generator could not keep its schedule: p50 is 2.00 ms from the intended start and 1.50"
    )
    assert faults.lateness(made(intended_ns=[None] * 200, sent_ns=due + 500_000)) is None


def test_faults_name_the_moment() -> None:
    status = np.full(200, 200)
    status[150:] = 0
    errors = ["refused" if code == 0 else None for code in status]
    assert faults.failures(made()) is None
    assert (faults.failures(made(status=status, error=errors)) or "").startswith(
        "the server stopped answering 0.150 s into the run: all 50 requests since then failed (refused)"
    )
    status[160] = 200
    status[:100] = 503
    said = faults.failures(made(status=status, error=["busy"] * 200))
    assert said is not None
    assert said.startswith("149 of 200 requests failed, the first 0 s into the run: busy")
    assert faults.failures(made(status=np.zeros(200), error=["refused"] * 200)) == "all 200 requests failed: refused"


def test_a_marked_record_is_the_same_record(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    table = made()
    samples.write_tables(path, [table.slice(0, 50), table.slice(50)], facts={"connections": 3})
    samples.mark(path, "interrupted")
    assert samples.read(path).equals(table)
    assert samples.read_facts(path) == {"connections": 3, "incomplete": "interrupted"}
    assert not list(tmp_path.glob(".*"))
