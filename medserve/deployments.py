"""Valid deployments: the check that studies and the `serve` command share."""

import math

from medserve.errors import BadInput
from medserve.spec import Deployment


def check(deployment: Deployment) -> None:
    """Raise BadInput for a deployment that is not valid: a number out of range, or batching without a queue."""
    if deployment.threads < 0 or deployment.queue < 1:
        raise BadInput(
            f"threads is {deployment.threads} and queue {deployment.queue}; "
            "expected at least 1 (or 0 threads: as many as usable cores)"
        )
    sizes = deployment.batch_sizes
    if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
        raise BadInput(f"batch_sizes is {list(sizes)}; expected one or more positive numbers in ascending order")
    if deployment.dispatch != "thread" and (deployment.batch_images > 1 or deployment.deadline_ms is not None):
        raise BadInput(
            f"dispatch {deployment.dispatch} has no queue, which batching and a deadline need; choose thread"
        )
    if not 1 <= deployment.batch_images <= sizes[-1]:
        raise BadInput(
            f"batch_images is {deployment.batch_images}; expected 1 to {sizes[-1]}, the largest of batch_sizes"
        )
    times = {"batch_delay_ms": deployment.batch_delay_ms, "patience_seconds": deployment.patience_seconds}
    for name, value in {**times, "deadline_ms": deployment.deadline_ms}.items():
        # A delay of 0 is allowed: no waiting for more images.
        if value is not None and not (0 < value < math.inf or (value == 0 and name == "batch_delay_ms")):
            raise BadInput(f"{name} is {value:g}; expected a positive number")
