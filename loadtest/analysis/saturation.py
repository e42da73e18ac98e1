"""The saturation point of closed loops: beyond it more users add more waiting than throughput."""

from collections.abc import Sequence

from medserve.errors import BadInput
from medserve.spec import Noun


class LoadStep(Noun, frozen=True, kw_only=True):
    """A closed loop with so many users. `throughput` in any unit per second."""

    users: int
    throughput: float
    p50_ms: float


def saturation_point(steps: Sequence[LoadStep]) -> int:
    """The users at which throughput over latency is highest; of equals, the fewest. Raises BadInput without steps.

    The quotient is the power of Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in
    computer communications", ICC 1979. Beyond its maximum a request waits for other requests, not for the server.
    """
    if not steps or min(step.p50_ms for step in steps) <= 0:
        raise BadInput("a saturation point needs load steps, each with a positive latency")
    return max(sorted(steps, key=lambda step: step.users), key=lambda step: step.throughput / step.p50_ms).users
