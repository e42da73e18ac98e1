"""What the runner and its jobs tell one another: what to measure, where data lie, why something came to nothing."""

from medserve.result import SelfTestOutcome
from medserve.spec import Cell, Noun


class Launch(Noun, frozen=True, kw_only=True):
    """One fresh process of one deployment and the cells it measures in order. Paths are absolute.

    `images` is an .npy file uint8 (N, H, W, C); `expected` an .npy file float32 (N, classes) of certified scores,
    null for a runtime that computes nothing.
    """

    study: str
    index: int
    cells: tuple[Cell, ...]
    artifact: str
    results: str
    images: str
    expected: str | None
    server_cpus: tuple[int, ...]
    client_cpus: tuple[int, ...]
    seed: int
    selftest: SelfTestOutcome | None = None


class Prepared(Noun, frozen=True, kw_only=True):
    """A data set that lies unpacked in `folder` as {split}_images.npy and {split}_labels.npy."""

    dataset: str
    size: int
    digest: str
    unofficial: bool
    folder: str
    classes: tuple[str, ...]


class Failure(Noun, frozen=True, kw_only=True):
    """`failures/<stage>-<name>.json`: why a data set, a training or an export came to nothing."""

    stage: str
    name: str
    reason: str
