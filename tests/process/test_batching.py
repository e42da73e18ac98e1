"""Inference threads by themselves: what they put together, whom they wait for, whom they refuse. No time decides."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from server_process import PATIENCE

from medserve.spec import Deployment
from serve import scheduler

Predict = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
MS = 1_000_000


def values(scores: NDArray[np.float32]) -> list[int]:
    return [round(float(value)) for value in scores[:, 0]]


def in_thread(*predicts: Predict, **fields: Any) -> scheduler.InThreads:
    deployment = Deployment(artifact="a", runtime="r", dispatch="thread", batch_sizes=(1, 64), **fields)
    return scheduler.InThreads(predicts, deployment)


def marked(*numbers: int) -> NDArray[np.uint8]:
    return np.array(numbers, np.uint8).reshape(-1, 1, 1, 1)


class Gate:
    """A prediction that tells the images' own numbers, and whose first call waits to be let through."""

    def __init__(self) -> None:
        self.running, self.release = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        self.running.set()
        assert self.release.wait(PATIENCE)
        self.batches.append(images.ravel().tolist())
        return images.reshape(-1, 1).astype(np.float32)


def test_what_waits_is_put_together_in_order_up_to_the_largest_batch() -> None:
    gate = Gate()

    async def main() -> list[list[int]]:
        infer = in_thread(gate, batch_images=4)
        tasks = [asyncio.create_task(infer(marked(0)))]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        tasks += [asyncio.create_task(infer(marked(*numbers))) for numbers in ((1,), (2, 3), (4, 5), (6,), (7,))]
        await asyncio.sleep(0)
        gate.release.set()
        return [values(scores) for scores, _, _ in await asyncio.gather(*tasks)]

    assert asyncio.run(main()) == [[0], [1], [2, 3], [4, 5], [6], [7]]
    # (4, 5) would make five of the second: it begins the third.
    assert gate.batches == [[0], [1, 2, 3], [4, 5, 6, 7]]


def test_who_is_alone_is_not_kept_waiting_for_others() -> None:
    gate = Gate()
    gate.release.set()

    async def main() -> None:
        infer = in_thread(gate, batch_images=4, batch_delay_ms=1000 * PATIENCE)
        for number in range(3):
            await asyncio.wait_for(infer(marked(number)), PATIENCE / 2)

    asyncio.run(main())
    assert gate.batches == [[0], [1], [2]]


def test_where_others_were_of_late_they_are_waited_for() -> None:
    gate = Gate()

    async def main() -> None:
        infer = in_thread(gate, batch_images=4, batch_delay_ms=1000 * PATIENCE)
        tasks = [asyncio.create_task(infer(marked(0)))]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        tasks += [asyncio.create_task(infer(marked(number))) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        gate.release.set()
        await tasks[0]
        # Three wait and four were here: the fourth is waited for.
        tasks.append(asyncio.create_task(infer(marked(4))))
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert gate.batches == [[0], [1, 2, 3, 4]]


def test_what_is_too_late_is_not_computed_and_not_answered() -> None:
    gate = Gate()

    async def main() -> list[Any]:
        infer = in_thread(gate)
        tasks = [asyncio.create_task(infer(marked(0), 500 * MS))]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        tasks += [asyncio.create_task(infer(marked(number), timeout)) for number, timeout in ((1, 500 * MS), (2, None))]
        await asyncio.sleep(0.7)
        gate.release.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    computed_late, late, served = asyncio.run(main())
    assert [type(error) for error in (computed_late, late)] == [scheduler.TooLate] * 2
    assert values(served[0]) == [2]
    assert gate.batches == [[0], [2]]


def test_what_would_be_too_late_is_refused_at_once() -> None:
    gate = Gate()

    async def main() -> Any:
        infer = in_thread(gate, deadline_ms=1000 * PATIENCE)
        first = asyncio.create_task(infer(marked(0)))
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        await asyncio.sleep(0.1)
        gate.release.set()
        await first
        # By the pace of late, an eighth of that time, a request behind another one takes a quarter of it.
        gate.running.clear()
        gate.release.clear()
        tasks = [asyncio.create_task(infer(marked(1), MS))]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        tasks += [asyncio.create_task(infer(marked(number), within)) for number, within in ((2, 20 * MS), (3, None))]
        await asyncio.sleep(0)
        refused = tasks[1].done()
        await asyncio.sleep(0.01)
        gate.release.set()
        return refused, await asyncio.gather(*tasks, return_exceptions=True)

    at_once, (alone, refused, waited) = asyncio.run(main())
    assert at_once
    assert str(refused) == "so many requests wait that this one's deadline would pass"
    assert isinstance(alone, scheduler.TooLate), "who comes alone is tried, whatever the pace"
    assert values(waited[0]) == [3]
    assert gate.batches == [[0], [1], [3]]


def test_predictions_are_counted_by_their_images() -> None:
    gate = Gate()

    async def main() -> scheduler.InThreads:
        infer = in_thread(gate, batch_images=4)
        tasks = [asyncio.create_task(infer(marked(0)))]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        tasks += [asyncio.create_task(infer(marked(number))) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        assert infer.waiting() == 3
        gate.release.set()
        await asyncio.gather(*tasks)
        return infer

    infer = asyncio.run(main())
    assert infer.batches == {1: 1, 3: 1}
    assert infer.waiting() == 0


def test_a_prediction_that_hangs_is_noticed_by_the_watch() -> None:
    gate, given_up = Gate(), threading.Event()

    async def main() -> None:
        infer = in_thread(gate)
        scheduler.watch([infer], 0.05, given_up.set)
        hung = asyncio.create_task(infer(marked(0)))
        assert await asyncio.to_thread(given_up.wait, PATIENCE)
        assert infer.busy_since()
        gate.release.set()
        assert values((await hung)[0]) == [0]

    asyncio.run(main())


@pytest.mark.parametrize("error", [MemoryError("no memory"), SystemExit(3), None])
def test_the_thread_survives_whatever_a_prediction_does(error: BaseException | None) -> None:
    """A result that is no array, and what is raised even outside of the prediction, belong to its requests."""
    failing = [True]

    def predict(images: NDArray[np.uint8]) -> Any:
        if failing.pop() if failing else False:
            if error is None:
                return None
            raise error
        return images.reshape(-1, 1).astype(np.float32)

    async def main() -> None:
        infer = in_thread(predict)
        with pytest.raises((MemoryError, RuntimeError, TypeError)):
            await infer(marked(1))
        assert values((await infer(marked(2)))[0]) == [2]
        assert infer.busy_since() is None

    asyncio.run(main())


def test_a_thread_that_ended_is_noticed_by_the_watch() -> None:
    given_up = threading.Event()

    class Ended:
        def busy_since(self) -> int:
            return 0

    scheduler.watch([Ended()], 0.05, given_up.set)
    assert given_up.wait(PATIENCE)


def test_images_of_waiting_requests_are_bounded_in_bytes() -> None:
    gate = Gate()

    async def main() -> None:
        infer = in_thread(gate)
        third = np.zeros((scheduler.QUEUED_BYTES // 3 + 1, 1, 1, 1), np.uint8)
        tasks = [asyncio.create_task(infer(third)) for _ in range(2)]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        with pytest.raises(scheduler.Busy, match="requests that wait hold"):
            await infer(third)
        gate.release.set()
        await asyncio.gather(*tasks)
        # A request that is alone may be larger than the bound.
        await infer(np.concatenate([third] * 4))

    asyncio.run(main())


def test_a_request_whose_client_has_gone_is_not_computed() -> None:
    gate = Gate()

    async def main() -> None:
        infer = in_thread(gate)
        tasks = [asyncio.create_task(infer(marked(number))) for number in (1, 2, 3)]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        tasks[1].cancel()
        await asyncio.sleep(0)
        gate.release.set()
        await asyncio.gather(tasks[0], tasks[2])

    asyncio.run(main())
    assert gate.batches == [[1], [3]]


def test_a_batch_that_fails_fails_each_of_its_requests() -> None:
    gate = Gate()

    def predict(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        scores = gate(images)
        if len(images) > 1:
            raise RuntimeError("no memory for so many")
        return scores

    async def main() -> list[Any]:
        infer = in_thread(predict, batch_images=4)
        tasks = [asyncio.create_task(infer(marked(0)))]
        await asyncio.to_thread(gate.running.wait, PATIENCE)
        tasks += [asyncio.create_task(infer(marked(number))) for number in (1, 2)]
        await asyncio.sleep(0)
        gate.release.set()
        return [*await asyncio.gather(*tasks, return_exceptions=True), await infer(marked(3))]

    first, *failed, last = asyncio.run(main())
    assert [str(error) for error in failed] == ["no memory for so many"] * 2
    assert [values(outcome[0]) for outcome in (first, last)] == [[0], [3]]


def test_instances_predict_at_once_and_the_queue_serves_whichever_is_free() -> None:
    gates = Gate(), Gate()

    async def main() -> tuple[scheduler.InThreads, list[int]]:
        infer = in_thread(*gates, instances=2)
        tasks = [asyncio.create_task(infer(marked(number))) for number in range(2)]
        for gate in gates:
            assert await asyncio.to_thread(gate.running.wait, PATIENCE), "one instance waits for the other"
        assert infer.busy_since()
        tasks += [asyncio.create_task(infer(marked(number))) for number in range(2, 6)]
        await asyncio.sleep(0)
        assert infer.waiting() == 4
        # The first instance alone serves all that wait, while the second one still computes.
        gates[0].release.set()
        found = [values(outcome[0])[0] for outcome in await asyncio.gather(*tasks[2:])]
        assert infer.busy_since()
        gates[1].release.set()
        await asyncio.gather(*tasks)
        return infer, found

    infer, found = asyncio.run(main())
    assert found == [2, 3, 4, 5]
    assert [len(gate.batches) for gate in gates] == [5, 1]
    assert (infer.busy_since(), infer.batches) == (None, {1: 6})


def test_several_instances_admit_in_proportion() -> None:
    gates = Gate(), Gate()

    async def main() -> list[str]:
        infer = in_thread(*gates, instances=2, deadline_ms=1000.0 * PATIENCE)
        # As if a request took a quarter of the deadline: one instance would refuse the fourth, two take it.
        infer._per_request = 1e9 * PATIENCE / 4
        tasks = [asyncio.create_task(infer(marked(number))) for number in range(8)]
        await asyncio.sleep(0)
        for gate in gates:
            gate.release.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        return [type(one).__name__ for one in found]

    assert asyncio.run(main()) == ["tuple"] * 6 + ["Busy"] * 2
