"""Inline, in one thread behind a bounded queue, or many at once; predictions end when a test or a script says so."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from server_process import PATIENCE, Answer

from medserve import store, wire
from medserve.errors import BadInput
from medserve.spec import Deployment
from medserve.timing import now
from serve import scheduler
from serve.app import App
from serve.runtimes import delay

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Runtime:
    """A runtime that predicts by a function of the test, and is due at once."""

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def place(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return images

    def run(self, x: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return x

    def synchronise(self, y: NDArray[np.uint8]) -> None:
        return None

    def due(self, y: NDArray[np.uint8]) -> int:
        return now()

    def fetch(self, y: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._predict(y)

    def facts(self) -> dict[str, Any]:
        return {}


def call(
    app: App, body: bytes, headers: dict[str, str], method: str = "POST", path: str = "/v2/models/empty/infer"
) -> "asyncio.Task[Answer]":
    """One request to the application itself, as a task of the running loop."""
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"path": path, "method": method, "headers": pairs}
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> Answer:
        await app(scope, receive, send)
        fields = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return Answer(sent[0]["status"], fields, sent[1]["body"])

    return asyncio.get_running_loop().create_task(run())


def application(empty: Path, predict: Predict, **fields: Any) -> App:
    deployment = Deployment(artifact="empty", runtime="null", **fields)
    return App(store.read_artifact(empty), deployment, scheduler.dispatch([Runtime(predict)], deployment, 8))


def test_a_full_queue_says_503_and_the_others_are_served_in_order(empty: Path, image: NDArray[np.uint8]) -> None:
    running, release = threading.Event(), threading.Event()
    order: list[int] = []

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        running.set()
        assert release.wait(PATIENCE)
        order.append(int(images[0, 0, 0, 0]))
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> Sequence[Answer]:
        app = application(empty, predict, dispatch="thread", queue=2)
        requests = [wire.encode_request(np.full_like(image, value)) for value in range(4)]
        tasks = [call(app, requests[0][1], requests[0][0])]
        # One request is being predicted, two wait, the fourth is one too many.
        await asyncio.to_thread(running.wait, PATIENCE)
        for headers, body in requests[1:]:
            tasks.append(call(app, body, headers))
            await asyncio.sleep(0)
        refused = await tasks[3]
        release.set()
        return [*await asyncio.gather(*tasks[:3]), refused]

    *served, refused = asyncio.run(main())
    assert [answer.status for answer in served] == [200, 200, 200]
    assert order == [0, 1, 2]
    assert refused.status == 503
    assert refused.headers["retry-after"] == "1"
    assert "queue" in refused.error


def test_a_request_that_is_too_late_is_told(empty: Path, image: NDArray[np.uint8]) -> None:
    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        time.sleep(0.01)
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> Answer:
        app = application(empty, predict, dispatch="thread")
        request = {"name": "image", "shape": image.shape, "datatype": "UINT8", "data": image.ravel().tolist()}
        return await call(app, json.dumps({"inputs": [request], "parameters": {"timeout": 1}}).encode(), {})

    late = asyncio.run(main())
    assert (late.status, late.error) == (504, "the deadline of this request passed before it was answered")


@pytest.mark.parametrize("dispatch", ["inline", "thread", "concurrent"])
def test_a_runtime_that_fails_is_a_500_and_the_next_request_is_served(
    empty: Path, image: NDArray[np.uint8], dispatch: str, caplog: pytest.LogCaptureFixture
) -> None:
    failures = iter([RuntimeError("out of memory on device 0"), None])

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if failure := next(failures):
            raise failure
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> list[Answer]:
        app = application(empty, predict, dispatch=dispatch)
        headers, body = wire.encode_request(image)
        return [await call(app, body, headers), await call(app, body, headers)]

    failed, good = asyncio.run(main())
    assert failed.status == 500
    assert failed.error == "the runtime failed: RuntimeError: out of memory on device 0"
    assert "Traceback" in caplog.text
    assert good.status == 200


@pytest.mark.parametrize("dispatch", ["inline", "thread"])
def test_readiness_runs_a_trial_prediction_after_a_while(
    empty: Path, image: NDArray[np.uint8], dispatch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = iter([RuntimeError("lost"), RuntimeError("still lost"), None])

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        if failure := next(failures):
            raise failure
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> list[Answer]:
        app = application(empty, predict, dispatch=dispatch)
        headers, body = wire.encode_request(image)
        failed = await call(app, body, headers)
        ready = [await call(app, b"", {}, "GET", "/v2/health/ready")]
        monkeypatch.setattr("serve.app.RETRY_SECONDS", 0.0)
        ready += [await call(app, b"", {}, "GET", "/v2/health/ready") for _ in range(3)]
        return [failed, *ready]

    answers = asyncio.run(main())
    assert [answer.status for answer in answers] == [500, 503, 503, 200, 200]
    assert {answer.error for answer in answers[:3]} == {"the runtime failed: RuntimeError: lost"}


def test_the_thread_leaves_the_event_loop_free(empty: Path, image: NDArray[np.uint8]) -> None:
    release = threading.Event()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        assert release.wait(PATIENCE)
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> tuple[Answer, Answer]:
        app = application(empty, predict, dispatch="thread")
        headers, body = wire.encode_request(image)
        waiting = call(app, body, headers)
        refused = await call(app, b"", {})
        release.set()
        return refused, await waiting

    refused, served = asyncio.run(main())
    assert (refused.status, served.status) == (400, 200)


def test_a_request_that_is_cut_off_is_told_and_does_not_stop_the_thread(
    empty: Path, image: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    running, release = threading.Event(), threading.Event()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        running.set()
        assert release.wait(PATIENCE)
        return np.full((len(images), 8), 0.125, np.float32)

    async def main() -> tuple[Answer, Answer]:
        app = application(empty, predict, dispatch="thread")
        headers, body = wire.encode_request(image)
        cut_off = call(app, body, headers)
        await asyncio.to_thread(running.wait, PATIENCE)
        cut_off.cancel()
        answer = await cut_off
        release.set()
        return answer, await call(app, body, headers)

    cut_off, served = asyncio.run(main())
    assert (cut_off.status, cut_off.error) == (503, "the server is stopping")
    assert caplog.text == ""
    assert served.status == 200


def test_concurrent_predictions_overlap_and_end_when_they_are_due(image: NDArray[np.uint8]) -> None:
    options = {"delays_ms": [200]}
    deployment = Deployment(artifact="empty", runtime="delay", batch_sizes=(2,), dispatch="concurrent", options=options)
    runtime = delay.load(Path(), 8, deployment)
    runtime.run(np.zeros((2, 28, 28, 3), np.uint8))
    infer = scheduler.dispatch([runtime], deployment, 8)

    async def main() -> list[scheduler.Outcome]:
        return await asyncio.gather(*(infer(image) for _ in range(10)))

    outcomes = asyncio.run(main())
    assert max(started for _, started, _ in outcomes) < min(done for *_, done in outcomes), "one waited for another"
    assert all(done - started >= 200_000_000 for _, started, done in outcomes)
    assert all(scores.shape == (1, 8) for scores, *_ in outcomes)


def test_a_runtime_that_is_never_due_cannot_be_concurrent() -> None:
    class Plain(Runtime):
        due = None  # type: ignore[assignment]  # as if it were not there

    deployment = Deployment(artifact="empty", runtime="null", dispatch="concurrent")
    with pytest.raises(BadInput, match="does not say when a prediction is due; 'dispatch' must be inline or thread"):
        scheduler.dispatch([Plain(lambda images: np.zeros((len(images), 8), np.float32))], deployment, 8)


def inline(took_ns: int, monkeypatch: pytest.MonkeyPatch) -> tuple[scheduler.Dispatch, list[int]]:
    """Inline dispatch by a clock that only predictions move, and the numbers of the requests as they are predicted."""
    clock, order = [1_000], list[int]()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        order.append(int(images[0, 0, 0, 0]))
        clock[0] += took_ns
        return np.full((len(images), 8), 1 / 8, np.float32)

    monkeypatch.setattr(scheduler, "now", lambda: clock[0])
    deployment = Deployment(artifact="empty", runtime="null", batch_sizes=(1,))
    return scheduler.dispatch([Runtime(predict)], deployment, 8), order  # type: ignore[arg-type]  # what it needs of one


def numbered(number: int) -> NDArray[np.uint8]:
    return np.full((1, 2, 2, 3), number, np.uint8)


@pytest.mark.parametrize(("took_ns", "turns"), [(2_000_000, 8), (400_000, 3), (1_000, 1)])
def test_the_event_loop_looks_for_what_arrives_between_predictions(
    took_ns: int, turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight requests that were read in one turn, and one that arrives in the next, which comes behind them."""
    predicts, order = inline(took_ns, monkeypatch)

    async def scenario() -> int:
        loop, seen = asyncio.get_running_loop(), list[int]()

        def turn() -> None:
            seen.append(len(order))
            if len(order) < 9:
                loop.call_soon(turn)

        first = [asyncio.create_task(predicts(numbered(at))) for at in range(8)]  # type: ignore[arg-type]
        loop.call_soon(turn)
        await asyncio.sleep(0)
        await asyncio.gather(*first, predicts(numbered(8)))
        return len(set(seen) - {0})

    reached = asyncio.run(scenario())
    assert order == list(range(9))
    assert reached >= turns


@pytest.mark.parametrize("cut", [range(1, 8), [1], [3, 4]])
def test_requests_that_are_cut_off_while_they_wait_hold_up_no_other(
    cut: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    predicts, order = inline(2_000_000, monkeypatch)

    async def scenario() -> None:
        tasks = [asyncio.create_task(predicts(numbered(at))) for at in range(8)]  # type: ignore[arg-type]
        for _ in range(2):
            await asyncio.sleep(0)  # one is answered, and the next one is let go on
        for at in cut:
            tasks[at].cancel()
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(*tasks, return_exceptions=True)
            await predicts(numbered(9))

    asyncio.run(scenario())
    assert order == [at for at in range(8) if at not in cut] + [9]
