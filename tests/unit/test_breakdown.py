"""The latency breakdown: known parts are found again, and they sum up to the total."""

from typing import Any

import numpy as np
import pytest

from loadtest import samples
from loadtest.analysis import breakdown
from loadtest.results import latency
from loadtest.results.record_summary import as_text, summarise

US = 1_000
TERMS = {
    "client queue": 10,
    "request path": 40,
    "queue": 3,
    "decode": 7,
    "infer": 600,
    "encode": 5,
    "return path": 50,
    "reading": 15,
    "unattributed": 20,
}


def record(count: int = 400, terms: dict[str, int] = TERMS, **other: Any) -> Any:
    """Requests whose n-th takes 1 + n/1000 of each term (microseconds)."""
    part = {name: (value * US * (1 + np.arange(count) / 1000)).astype(np.int64) for name, value in terms.items()}
    intended = np.arange(count) * 10_000 * US
    sent = intended + part["client queue"]
    received = sent + part["request path"]
    stages = [part[name] for name in ("queue", "decode", "infer", "encode")]
    answered = received + sum(stages) + part["unattributed"]
    first = answered + part["return path"]
    columns = {
        "intended_ns": intended,
        "sent_ns": sent,
        "server_received_ns": received,
        "server_sent_ns": answered,
        "first_byte_ns": first,
        "done_ns": first + part["reading"],
        **{f"{name}_ns": part[name] for name in ("queue", "decode", "infer", "encode")},
        "status": [200] * count,
        "batch": [1] * count,
        "warmup": [False] * count,
    }
    return samples.as_table(columns | other)


def test_every_term_is_found_and_the_shares_sum_to_one() -> None:
    found = latency.breakdown(record())
    assert [term.name for term in found] == [*TERMS, "total"]
    for term in found[:-1]:
        assert term.p50_ms == pytest.approx(TERMS[term.name] * 1.199 / 1000, rel=1e-3)
        assert term.p99_ms == pytest.approx(TERMS[term.name] * 1.395 / 1000, rel=1e-3)
    assert sum(term.share for term in found[:-1]) == pytest.approx(1)
    assert found[-1].share == 1
    assert sum(term.p50_ms for term in found[:-1]) == pytest.approx(found[-1].p50_ms)


def test_without_the_servers_clock_the_network_is_one_term() -> None:
    nothing = {"server_received_ns": [None] * 400, "server_sent_ns": [None] * 400}
    found = {term.name: term for term in latency.breakdown(record(**nothing))}
    assert list(found) == ["client queue", "network", "queue", "decode", "infer", "encode", "total"]
    # What the stages leave: both paths, the reading, and the rest.
    assert found["network"].p50_ms == pytest.approx(0.125 * 1.199, rel=1e-3)
    nothing |= {f"{name}_ns": [None] * 400 for name in samples.SERVER_STAGES}
    assert [term.name for term in latency.breakdown(record(**nothing))] == [
        "client queue",
        "sending to answer",
        "total",
    ]


def test_a_closed_loop_has_no_queue_in_the_client_and_failures_are_in_no_term() -> None:
    status = [200] * 400
    status[7] = 0
    gone = {name: [None if place == 7 else 5 for place in range(400)] for name in ("queue_ns", "encode_ns")}
    found = latency.breakdown(record(intended_ns=[None] * 400, status=status, **gone))
    assert found[0].name == "request path"
    assert "queue" in [term.name for term in found]
    assert latency.breakdown(record(status=[500] * 400)) == ()


def test_few_requests_have_no_p99_and_launches_are_averaged() -> None:
    few = latency.breakdown(record(100))
    assert {term.p99_ms for term in few} == {None}
    twice = latency.breakdown(record(terms={name: 3 * value for name, value in TERMS.items()}))
    both = breakdown.over_launches([latency.breakdown(record()), (), twice])
    assert [term.p50_ms for term in both] == pytest.approx([2 * term.p50_ms for term in latency.breakdown(record())])
    assert breakdown.over_launches([]) == ()


def test_the_cross_check_is_the_sum_of_what_was_measured_apart() -> None:
    found = breakdown.cross_check(measured_ms=1.0, in_process_ms=0.6, null_ms=0.3)
    assert (found.expected_ms, found.difference_ms) == (pytest.approx(0.9), pytest.approx(0.1))
    assert found.relative == pytest.approx(0.1)


def test_the_summary_prints_the_breakdown_with_what_is_unattributed() -> None:
    said = summarise(record())
    assert [term["name"] for term in said["breakdown"]] == [*TERMS, "total"]
    words = as_text(said)
    assert "unattributed" in words
    heads, *lines = words[words.index("latency breakdown") :].splitlines()
    assert len({len(line) for line in (heads, *lines)}) == 1
