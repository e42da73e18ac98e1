"""The knee of a ladder of users: where more load buys more waiting than throughput."""

from collections.abc import Sequence

from medserve.errors import BadInput
from medserve.spec import Noun


class Rung(Noun, frozen=True, kw_only=True):
    """One closed loop of a ladder. `throughput` in any unit a second."""

    users: int
    throughput: float
    p50_ms: float


def knee(rungs: Sequence[Rung]) -> int:
    """The users at which throughput over latency is highest; of equals, the fewest. Raises BadInput without rungs.

    The quotient is the power of Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in
    computer communications", ICC 1979. Above its peak a request waits for other requests, not for the server.
    """
    if not rungs or min(rung.p50_ms for rung in rungs) <= 0:
        raise BadInput("a ladder needs rungs, each with a positive latency")
    return max(sorted(rungs, key=lambda rung: rung.users), key=lambda rung: rung.throughput / rung.p50_ms).users
