"""A runtime is one file here, with READS (formats), REQUIRES (modules) and `load(artifact, deployment) -> Runtime`.

One that computes has a class Options for `Deployment.options`, a `CacheOptions` where CACHES is ("cache",). Defaults
are what the first example of the library's documentation does; TUNING has the other values that `medserve tune` tries:
(option, value, why, source), with the only device where there is one, or the name of one that several have. One that
does not run on every processor says so: DEVICES (the only ones, the usual one first), LIBRARIES (shared ones that it
loads beside its modules), PROGRAMS (that must be on the path to export for it). CUDA are distributions, of which one is
enough, that hold its libraries for GPUs; CUDA_PACKAGES what pip installs to have them.

This module is what all of them share: the four verbs, the one prediction, and what happens before a runtime is ready.
"""

import gc
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from medserve import machine, plugins
from medserve.certificate import check
from medserve.errors import BadInput, CannotRun
from medserve.models import Artifact, Certificate
from medserve.result import Operator
from medserve.spec import Deployment, Noun
from medserve.store import read_artifact
from medserve.tables import FORMATS, pick

Kind = TypeVar("Kind")
GOLDEN_LIMIT = 1e-4
"""Largest |difference of probabilities| to the trainer's scores that a float32 runtime may show on golden images."""


NO_MEMORY = ("out of memory", "allocate", "resource_exhausted", "bad_alloc")
"""Words of the errors of frameworks that want more memory than there is."""


class TooLarge(CannotRun):
    """A batch of `size` images needs more memory than there is."""

    def __init__(self, size: int, reason: str) -> None:
        super().__init__(reason)
        self.size = size


class Runtime(Protocol):
    """Four verbs. `x` and `y` are whatever the runtime keeps on its device.

    By default the device is the processor, and `run` returns when the scores are computed.

    A runtime whose predictions overlap has one more, `due(y) -> int`: the nanosecond of `medserve.timing.now` at which
    `y` is done. One whose MISTAKES hold `predict` has `predict(images)`, the call that its framework's beginners find
    first.
    """

    def place(self, images: NDArray[np.uint8], /) -> Any:
        """Host to device. `images` is uint8 (N, H, W, C), N one of the declared batch sizes."""
        return images

    def run(self, x: Any, /) -> Any:
        """Compute. May return before the device is done."""

    def synchronise(self, _y: Any, /) -> None:
        """Return when the device is done with the result of `run`."""
        return

    def fetch(self, y: Any, /) -> NDArray[np.float32]:
        """Device to host: float32 (N, classes) probabilities whose bytes are there when this returns."""

    def device_ns(self, _x: Any, /) -> int | None:
        """The nanoseconds of one `run` by the device's own events; null where it has none."""
        return None

    def profile(self, _predict: Callable[[], object], _count: int, _folder: Path, /) -> list[Operator]:
        """Call the prediction so often under the runtime's profiler, and once before where it compiles the model again.

        As often once more where a library below the runtime tells what its calls do. The profiler may write into the
        folder. Raises CannotRun where it has none.
        """
        raise CannotRun(f"{self.facts()['runtime']} has no profiler that a program can read")

    def facts(self) -> dict[str, Any]:
        """Read back from the runtime itself: effective threads, device, provider, versions."""


class RuntimeOptions(Noun, frozen=True, kw_only=True):
    """What every runtime that computes takes. With the `heap` kept, freed memory stays with the process."""

    heap: Literal["default", "kept"] = "default"


class CacheOptions(RuntimeOptions, frozen=True, kw_only=True):
    """`cache` is a folder for compiled code, outside the artifact; the next start of the same model loads it."""

    cache: str = ""


def predict(runtime: Runtime, images: NDArray[np.uint8], batch_sizes: tuple[int, ...]) -> NDArray[np.float32]:
    """One prediction: uint8 (N, H, W, C) to float32 (N, classes), padded up to the next of the ascending `batch_sizes`.

    Raises BadInput when N is above the largest of them.
    """
    count = len(images)
    if count not in batch_sizes:
        images = pad(images, batch_sizes)
    return runtime.fetch(runtime.run(runtime.place(images)))[:count]


def pad(images: NDArray[np.uint8], batch_sizes: tuple[int, ...]) -> NDArray[np.uint8]:
    """The images themselves where their number is a declared batch size, else with black ones up to the next."""
    count = len(images)
    place = bisect_left(batch_sizes, count)
    if place == len(batch_sizes):
        raise BadInput(f"a batch of {count} images; this deployment takes at most {batch_sizes[-1]}")
    if batch_sizes[place] == count:
        return images
    padded = np.zeros((batch_sizes[place], *images.shape[1:]), np.uint8)
    padded[:count] = images
    return padded


def open_runtime(
    folder: Path, deployment: Deployment, *, cold: bool = False, digest: str | None = None
) -> tuple[Runtime, Artifact]:
    """Load an artifact whose digests and certificate hold, compile its batch sizes, check it against the golden file.

    The framework executes what the model file says, so nothing is loaded before all else holds. `digest` is the SHA-256
    that the manifest must have, null for any. A `cold` runtime is only loaded, for timing the first calls. Raises
    BadInput for a folder that must not be used, CannotRun for what this machine lacks or a failed check.
    """
    artifact = read_artifact(folder, digest)
    reads, own = plugins.literals("serve.runtimes", deployment.runtime)["READS"], artifact.certificate.runtime
    proof = _check_certificate(artifact, deployment.runtime if artifact.format in reads else own)
    _check_cache(folder, deployment)
    shape, classes = artifact.image_shape, len(artifact.checkpoint.classes)
    _check_target(artifact)
    deployment = msgspec.structs.replace(deployment, precision=artifact.precision)
    runtime = load_runtime(folder, artifact.format, classes, shape, deployment, cold=cold)
    if reads and not cold:
        # One of reduced precision may be as far off as its certificate says.
        allowed = max(proof.max_abs or 0.0, proof.golden_max_abs or 0.0) if proof.kind == "lossy" else 0.0
        _check_golden(runtime, folder, artifact, deployment, allowed + GOLDEN_LIMIT)
    return runtime, artifact


def open_fitting(
    folder: Path, deployment: Deployment, *, cold: bool = False, digest: str | None = None
) -> tuple[Runtime, Artifact, Deployment, TooLarge | None]:
    """As `open_runtime`, without the batch sizes that do not fit into memory: the deployment that does, and why."""
    why = None
    while True:
        # What did not fit is freed once its error is.
        gc.collect()
        try:
            return *open_runtime(folder, deployment, cold=cold, digest=digest), deployment, why
        except TooLarge as error:
            # Without its traceback, which would keep the runtime that fills the memory.
            why = TooLarge(error.size, str(error))
            fitting = tuple(size for size in deployment.batch_sizes if size < error.size)
            images = min(deployment.batch_images, fitting[-1])
            deployment = msgspec.structs.replace(deployment, batch_sizes=fitting, batch_images=images)


def load_runtime(
    folder: Path, form: str, classes: int, shape: tuple[int, int, int], deployment: Deployment, *, cold: bool = False
) -> Runtime:
    """Load the model of an artifact's folder and run every declared batch size once, so that nothing compiles later.

    A `cold` one has run nothing. A runtime that READS nothing (null) takes any format. Raises CannotRun with a reason,
    TooLarge where that is memory and a smaller batch has run.
    """
    literals = plugins.literals("serve.runtimes", deployment.runtime)
    if (reads := literals["READS"]) and form not in reads:
        raise BadInput(f"{deployment.runtime} reads {', '.join(reads)}; the artifact {folder.name} is {form}")
    if (devices := literals.get("DEVICES")) and deployment.device not in devices:
        raise CannotRun(f"{deployment.runtime} does not run on {deployment.device}; use --device {devices[0]}")
    module = plugins.load("serve.runtimes", deployment.runtime)
    if deployment.options and not hasattr(module, "Options"):
        raise BadInput(f"{deployment.runtime} takes no options; leave out {', '.join(deployment.options)}")
    if deployment.options and read_options(deployment, module.Options).heap == "kept":
        machine.keep_memory()
    deployment = msgspec.structs.replace(deployment, threads=deployment.threads or len(machine.usable_cpus()))
    size = deployment.batch_sizes[0]
    try:
        runtime: Runtime = module.load(folder / FORMATS[form].path, classes, deployment)
        for size in () if cold else deployment.batch_sizes:
            predict(runtime, np.zeros((size, *shape), np.uint8), deployment.batch_sizes)
    except (BadInput, CannotRun):
        raise
    except Exception as error:  # a framework raises anything; it is the reason in the cell's row
        reason = f"{type(error).__name__}: {error}"[:500]
        if size > deployment.batch_sizes[0] and any(words in str(error).lower() for words in NO_MEMORY):
            raise TooLarge(
                size, f"batches of {size} need more memory than {deployment.device} has: {reason}"
            ) from error
        raise CannotRun(f"{deployment.runtime} cannot run {folder.name}: {reason}") from error
    return runtime


def operators(took: Mapping[tuple[str, str], Sequence[float]], count: int) -> list[Operator]:
    """The milliseconds of each call of an operator, by name and kind, as operators of one of `count` predictions."""
    return [
        Operator(name=name, kind=kind, ms=sum(found) / count, calls=len(found) / count)
        for (name, kind), found in took.items()
    ]


def read_options(deployment: Deployment, kind: type[Kind]) -> Kind:
    """The deployment's options as those that a runtime knows. Raises BadInput for others."""
    try:
        return msgspec.convert(deployment.options, kind)
    except msgspec.ValidationError as error:
        raise BadInput(f"the options of {deployment.runtime}: {error}") from None


def _check_certificate(artifact: Artifact, runtime: str) -> Certificate:
    proof = artifact.certificate_of(runtime)
    if proof is None:
        again = "adopt" if artifact.adopted else "export"
        raise CannotRun(f"{artifact.name} is not certified for {runtime}; {again} it again with --runtime {runtime}")
    if not proof.valid:
        raise CannotRun(f"{artifact.name} has no valid certificate: {proof.reason}")
    if artifact.has_model:
        check(artifact)
    return proof


def _check_cache(folder: Path, deployment: Deployment) -> None:
    """Code that is compiled into an artifact's folder would be in no manifest, and the next start would refuse it."""
    named = deployment.options.get("cache")
    if named and isinstance(named, str) and Path(named).resolve().is_relative_to(folder.resolve()):
        raise BadInput(
            f"the option cache of {deployment.runtime} is {named}, inside the artifact; name a folder outside"
        )


def _check_target(artifact: Artifact) -> None:
    compiler = pick(FORMATS, "format", artifact.format).compiled_by
    if compiler and artifact.compiled_for != (here := machine.target(compiler)):
        raise CannotRun(
            f"{artifact.name} is compiled for another machine ({artifact.compiled_for}); this one is {here}; "
            "export it again here"
        )


def _check_golden(runtime: Runtime, folder: Path, artifact: Artifact, deployment: Deployment, limit: float) -> None:
    with np.load(folder / "golden.npz") as golden:
        images, expected = golden["images"], golden["scores"]
    if not len(images) or images.dtype != np.uint8 or images.shape[1:] != artifact.image_shape:
        raise BadInput(f"{folder / 'golden.npz'}: {images.dtype} {images.shape}, no images for it; export it again")
    step = deployment.batch_sizes[-1]
    parts = [predict(runtime, images[at : at + step], deployment.batch_sizes) for at in range(0, len(images), step)]
    # A smaller batch may be computed by other code.
    smaller = [predict(runtime, images[:size], deployment.batch_sizes) for size in deployment.batch_sizes[:-1]]
    error = max(_distance(scores, expected) for scores in (np.concatenate(parts), *smaller))
    if not error <= limit:
        raise CannotRun(
            f"{deployment.runtime} differs from the trainer by {error:.2e} on the golden images of {folder.name}; "
            f"the limit is {limit:.0e}"
        )


def _distance(scores: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """The largest |difference| from as many of the expected scores, infinite where they cannot be compared."""
    expected = expected[: len(scores)]
    found = float(np.abs(scores - expected).max()) if scores.shape == expected.shape else np.inf
    return found if np.isfinite(found) else np.inf
