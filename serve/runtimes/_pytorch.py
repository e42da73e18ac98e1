"""Shared by the runtimes of PyTorch: its profiler."""

from collections.abc import Callable

import torch

from medserve import process
from medserve.result import Operator
from serve.runtimes import operators


def profile(predict: Callable[[], object], count: int) -> list[Operator]:
    """Operators by name and the shapes of their inputs, on the processor; see `serve.runtimes.Runtime.profile`."""
    processor = [torch.profiler.ProfilerActivity.CPU]
    # The profiler writes of its start and its end.
    with process.quiet(), torch.profiler.profile(activities=processor, record_shapes=True) as profiled:
        for _ in range(count):
            predict()
    took: dict[tuple[str, str], list[float]] = {}
    for event in profiled.key_averages(group_by_input_shape=True):
        shapes = " ".join("x".join(map(str, shape)) for shape in event.input_shapes if shape)
        name = f"{event.key} {shapes}".strip()
        took[name, event.key] = [event.self_cpu_time_total / 1e3 / event.count] * event.count
    return operators(took, count)
