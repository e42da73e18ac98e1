"""The model that every application serves, the same for all: ONNX Runtime on one thread.

As a program it answers lines of its standard input: `time IMAGES COUNT` with the nanoseconds of so many predictions of
so many images, `score IMAGE` with the scores of one image.
"""

import contextlib
import json
import os
import sys
import time

import numpy as np
import onnxruntime


class Model:
    """The ONNX file that the environment variable MODEL names."""

    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
        self.shape = self._session.get_inputs()[0].shape[1:]

    def __call__(self, images):
        """Float32 (N, classes) probabilities of uint8 (N, H, W, C) images."""
        return self._session.run(None, {"image": images})[0]


def time_it(model, images, count):
    """Nanoseconds of each prediction."""
    images = np.random.default_rng(0).integers(0, 256, (images, *model.shape), np.uint8)
    model(images)
    times = []
    for _ in range(count):
        before = time.perf_counter_ns()
        model(images)
        times.append(time.perf_counter_ns() - before)
    return times


def answer(line):
    """What a line asks for."""
    verb, _, rest = line.partition(" ")
    if verb == "time":
        return time_it(the_model, *map(int, rest.split()))
    return the_model(np.array([json.loads(rest)], np.uint8))[0].tolist()


if __name__ == "__main__":
    # Ctrl-C reaches it too; the benchmark says so.
    with contextlib.suppress(KeyboardInterrupt):
        the_model = Model()
        for line in sys.stdin:
            print(json.dumps(answer(line)), flush=True)
