"""What the client notes becomes rows: the same that a straightforward loop over the requests would give."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import samples
from loadtest.generator import records
from loadtest.generator.records import Records
from medserve import wire
from medserve.errors import BadInput

CHOSEN = np.array([[7, 3], [5, 1]])
EXPECTED = np.random.default_rng(0).dirichlet(np.ones(8), 9).astype(np.float32)
TIMING = "queue;dur=0.001500, decode;dur=0.020000, infer;dur=1.250000, encode;dur=0.003000"


def answer(scores: np.ndarray) -> dict[str, Any]:
    request = wire.Request(np.zeros((2, 4, 4, 3), np.uint8), None, True)
    headers, body = wire.encode_response("m", "1", scores, request)
    return {"head_length": dict(headers)[b"inference-header-content-length"].decode(), "body": body}


def record(sent: int | None = 1000, **other: Any) -> dict[str, Any]:
    at = sent or 0
    values = {"request": 0, "status": 200, "connection": 0, "intended": None, "sent": sent, "first_byte": at + 50}
    return values | {"done": at + 90} | other


def rows(
    *noted: dict[str, Any], expected: np.ndarray | None = None, measured_from: int = 0, part: slice = slice(None)
) -> list[dict[str, Any]]:
    kept = Records()
    for values in noted:
        kept.note(**values)
    assert len(kept) == len(noted)
    return [row for table in kept.tables(CHOSEN, expected, measured_from, part) for row in table.to_pylist()]


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
    failed = record(None, first_byte=None, status=0, done=3000, error="refused")
    found = rows(late, record(5000), failed)
    assert [row["done_ns"] for row in found] == [9000, 3000, 5090]
    assert [row["status"] for row in found] == [200, 0, 200]


TIMINGS = st.one_of(
    st.none(),
    st.just(""),
    st.tuples(*[st.integers(0, 10**12)] * 4).map(lambda spent: wire.server_timing(*spent).decode()),
    st.sampled_from(["queue;dur=1, infer;dur=2.5", "infer;desc=x;dur=1e3", "total;dur=7", "rubbish", "é;dur=1"]),
)
CLOCKS = st.one_of(st.none(), st.sampled_from(["1010 1080", "1090 1010", "rubbish", "5", "+1010 1_080", ""]))
BODIES = [
    answer(EXPECTED[[7, 3]]),
    answer(EXPECTED[[5, 1]]),
    answer(EXPECTED[[7]]),
    {"head_length": None, "body": b"hello"},
    {"head_length": "7x", "body": b"hello"},
    {},
]
NOTED = st.builds(
    lambda sent, body, **other: record(sent, **body, **other),
    st.one_of(st.none(), st.integers(990, 1010)),
    st.sampled_from(BODIES),
    request=st.integers(0, 1),
    status=st.sampled_from([0, 200, 200, 200, 503]),
    intended=st.one_of(st.none(), st.integers(900, 1100)),
    connection=st.one_of(st.none(), st.integers(0, 5)),
    timing=TIMINGS,
    clock=CLOCKS,
    error=st.one_of(st.none(), st.just("failed")),
)


def origin(noted: dict[str, Any]) -> int:
    return int(next(noted[name] for name in ("intended", "sent", "done") if noted[name] is not None))


def stamps(noted: dict[str, Any]) -> tuple[int, int] | None:
    try:
        received, sent = map(int, (noted["clock"] or "").split())
    except ValueError:
        return None
    return received, sent


def straightforward(noted: list[dict[str, Any]], measured_from: int) -> list[dict[str, Any]]:
    stamped = [one for one in noted if one["clock"] and one["sent"] is not None]
    pairs = [(one, stamps(one)) for one in stamped]
    same_host = all(pair and one["sent"] <= pair[0] <= pair[1] <= one["done"] for one, pair in pairs)
    found = []
    for one in sorted(noted, key=origin):
        stages = wire.parse_server_timing(one["timing"] or "")
        received, sent = (stamps(one) or (None, None)) if same_host else (None, None)
        wrong, error = None, one["error"]
        if one["status"] == 200 and "body" in one:
            try:
                scores = wire.decode_response(one["body"], one["head_length"])
                right = EXPECTED[CHOSEN[one["request"]]]
                wrong = samples.differs(scores, right)
                error = samples.difference(scores, right) if wrong else error
            except BadInput as refusal:
                wrong, error = True, str(refusal)
        found.append(
            {f"{name}_ns": one[name] for name in ("intended", "sent", "first_byte", "done")}
            | {"server_received_ns": received, "server_sent_ns": sent}
            | {f"{stage}_ns": stages.get(stage) for stage in samples.SERVER_STAGES}
            | {"status": one["status"], "error": error, "image": CHOSEN[one["request"], 0], "batch": 2}
            | {"connection": one["connection"], "warmup": origin(one) < measured_from, "wrong": wrong}
        )
    return found


@given(st.lists(NOTED, max_size=12), st.integers(900, 1100), st.integers(1, 5))
def test_the_rows_are_those_of_a_straightforward_loop(
    noted: list[dict[str, Any]], measured_from: int, at_a_time: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "CHUNK_ROWS", at_a_time)
        assert rows(*noted, expected=EXPECTED, measured_from=measured_from) == straightforward(noted, measured_from)


def test_a_part_of_the_requests_has_its_own_rows() -> None:
    noted = [record(2000, error="first"), record(1000), record(3000, error="last", request=1)]
    assert [(row["sent_ns"], row["error"]) for row in rows(*noted, part=slice(1, None))] == [
        (1000, None),
        (3000, "last"),
    ]
    assert [row["image"] for row in rows(*noted, expected=EXPECTED, part=slice(0, 2))] == [7, 7]
