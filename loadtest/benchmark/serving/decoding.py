"""Images in JSON: this project's decoder against the usual `np.array(json.loads(body))`."""

import json
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
from numpy.typing import NDArray

from loadtest.benchmark.bench import Line
from medserve import wire
from medserve.timing import gc_paused, now

SIDE = 224
TARGET = 5.0


def decoders(repeats: int) -> Iterator[Line]:
    """The speed-up of our decoder for both forms that the protocol allows; clients send the flat one."""
    image = np.random.default_rng(0).integers(0, 256, (1, SIDE, SIDE, 3), np.uint8)
    flat = wire.encode_request(image, binary=False)[1]
    tensor = {"name": "image", "shape": image.shape, "datatype": "UINT8", "data": image.tolist()}
    nested = json.dumps({"inputs": [tensor]}).encode()

    def naive(body: bytes) -> NDArray[np.uint8]:
        return np.array(json.loads(body)["inputs"][0]["data"], np.uint8).reshape(image.shape)

    def ours(body: bytes) -> NDArray[np.uint8]:
        return wire.decode_request(body, None, (SIDE, SIDE, 3)).images

    # Clients send the flat form; nested lists are what the usual decoder is usually given.
    for name, slow_body, fast_body, target in (
        ("flat, as clients send it: naive decode of nested lists", nested, flat, TARGET),
        ("nested too: naive decode of nested lists", nested, nested, None),
        ("flat for both: naive decode", flat, flat, None),
    ):
        pairs = [
            (_milliseconds(naive, slow_body, image), _milliseconds(ours, fast_body, image)) for _ in range(repeats)
        ]
        low, middle, high = np.quantile([slow / fast for slow, fast in pairs], (0.25, 0.5, 0.75))
        slow, fast = (median(times) for times in zip(*pairs, strict=True))
        yield Line(
            part="JSON",
            name=f"{SIDE} px, {name} to ours",
            value=float(middle),
            low=target,
            note=f"{slow:.2f} ms and {fast:.2f} ms; quartiles {low:.1f} to {high:.1f}",
        )


def _milliseconds(decode: Callable[[bytes], NDArray[np.uint8]], body: bytes, image: NDArray[np.uint8]) -> float:
    with gc_paused():
        before = now()
        found = decode(body)
        spent = now() - before
    assert np.array_equal(found, image)
    return spent / 1e6
