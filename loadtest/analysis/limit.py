"""The least time of a prediction on a machine, by the roofline model (Williams, Waterman & Patterson, 2009)."""

from collections.abc import Mapping

from medserve.models import Computation
from medserve.spec import Noun


class Limit(Noun, frozen=True, kw_only=True):
    """What a prediction computes (operations) and moves (bytes), and the machine's peaks for both, per second.

    `bandwidth` is that of the memory level that holds the working set.
    """

    operations: float
    moved: float
    flops: float
    bandwidth: float

    @property
    def ms(self) -> float:
        """The longer of computing and moving in milliseconds: both can go on at the same time."""
        return 1e3 * max(self.operations / self.flops, self.moved / self.bandwidth)

    @property
    def by_memory(self) -> bool:
        """Whether moving takes longer than computing."""
        return self.moved / self.bandwidth > self.operations / self.flops

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.operations / self.moved


def limit(computation: Computation, batch: int, flops: float, bandwidth: Mapping[int, float]) -> Limit:
    """The limit of a batch, where weights are read once per prediction, and each layer's maps once per image.

    `flops` are operations per second, two per multiply-add; `bandwidth` maps the bytes of a working set to bytes per
    second. The working set is the weights with the maps of the largest layer.
    """
    return Limit(
        operations=2.0 * computation.multiply_adds * batch,
        moved=computation.weight_bytes + computation.activation_bytes * batch,
        flops=flops,
        bandwidth=_bandwidth(bandwidth, computation.weight_bytes + computation.largest_bytes * batch),
    )


def _bandwidth(bandwidth: Mapping[int, float], size: int) -> float:
    """That of the smallest measured working set which is not smaller, else of the largest."""
    return bandwidth[min((known for known in bandwidth if known >= size), default=max(bandwidth))]
