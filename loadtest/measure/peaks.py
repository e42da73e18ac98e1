"""What this machine computes and reads at most, in this process, whose BLAS has as many threads as are asked for.

Matrices are multiplied by two libraries, of which the faster counts: OpenBLAS, NumPy's, chooses its code by the model
of the processor, and on one that it does not know, or that a virtual machine renames, it leaves AVX-512 unused.
"""

from collections.abc import Callable
from math import inf

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from medserve import machine
from medserve.result import Peaks
from medserve.timing import now

SIDES = (512, 1024, 2048)
"""Of the square matrices whose product is timed."""
WORKING_SETS = tuple(2**power for power in range(18, 30, 2))
"""In bytes: 256 KiB to 256 MiB."""
REPEATS, SECONDS = 8, 0.05
"""The fastest repetition counts, for what disturbs the machine only makes it slower; each lasts so long."""


def peaks(threads: int) -> Peaks:
    """Measure both, in about five seconds. NumPy must have been imported with its number of threads set."""
    return Peaks(
        threads=threads,
        cpus=machine.usable_cpus(),
        flops=max(2.0 * side**3 / _seconds_of_product(side, threads) for side in SIDES),
        bandwidth={size: size / _seconds_of_reading(size) for size in WORKING_SETS},
        machine=machine.fingerprint(),
    )


def _seconds_of_product(side: int, threads: int) -> float:
    first, second = (np.full((side, side), value, np.float32) for value in (0.5, 0.25))
    out = np.empty_like(first)
    by_numpy = _fastest(lambda: np.matmul(first, second, out=out))
    return min(by_numpy, _fastest(_product_by_onnx_runtime(first, second, threads)))


def _product_by_onnx_runtime(
    first: NDArray[np.float32], second: NDArray[np.float32], threads: int
) -> Callable[[], object]:
    x, y, product = (helper.make_tensor_value_info(name, TensorProto.FLOAT, first.shape) for name in ("x", "y", "xy"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "y"], ["xy"])], "product", [x, y], [product])
    # The oldest format that has the operators, which every ONNX Runtime reads.
    model = helper.make_model_gen_version(graph, opset_imports=[helper.make_opsetid("", 13)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or len(machine.usable_cpus())
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"x": first, "y": second})


def _seconds_of_reading(size: int) -> float:
    """A scalar product: it reads both arrays, and has two operations for eight bytes."""
    first, second = np.zeros((2, size // 8), np.float32)
    return _fastest(lambda: np.dot(first, second))


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of a call, of the fastest repetition."""
    fastest = inf
    for _ in range(REPEATS):
        calls, began = 0, now()
        while (spent := now() - began) < SECONDS * 1e9:
            call()
            calls += 1
        fastest = min(fastest, spent / calls)
    return fastest / 1e9
