"""JAX to StableHLO (`jax.export`) and to ONNX (jax2onnx)."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from numpy.typing import NDArray

from export.frameworks import Weights, build
from medserve import plugins
from medserve.errors import CannotRun
from medserve.models import Checkpoint
from medserve.spec import Device, Precision
from medserve.tables import INPUT, OPSET, OUTPUT

REQUIRES = ("jax", "flax")
WRITES = ("stablehlo", "onnx")
INT8 = ("onnx",)
FLOAT16 = ("stablehlo", "onnx")
BFLOAT16 = ("stablehlo",)
TF32 = ("stablehlo", "onnx")

Classifier = Callable[[jax.Array], jax.Array]


def export(
    checkpoint: Checkpoint,
    weights: Weights,
    form: str,
    path: Path,
    precision: Precision = "float32",
    _device: Device = "cpu",
) -> None:
    """See `export.frameworks`."""
    shape = checkpoint.size, checkpoint.size, checkpoint.channels
    write(_classifier(checkpoint, weights, precision), shape, form, path, precision=precision)


def write(
    classifier: Classifier,
    shape: tuple[int, int, int],
    form: str,
    path: Path,
    platforms: Sequence[str] = ("cpu", "cuda"),
    precision: Precision = "float32",
) -> None:
    """Write a function from uint8 (N, H, W, C) images of that shape to probabilities. See `export.frameworks`."""
    (batch,) = jax.export.symbolic_shape("batch")
    image = jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
    # Every operation carries its precision, for XLA's default on a GPU is TF32, with an error above the certificate's.
    with jax.default_matmul_precision("tensorfloat32" if precision == "tf32" else "float32"):
        if form == "stablehlo":
            _stablehlo(classifier, image, path, platforms)
        else:
            _onnx(classifier, image, path)


def scores(checkpoint: Checkpoint, weights: Weights, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.frameworks`."""
    with jax.default_matmul_precision("float32"):
        return np.array(jax.jit(_classifier(checkpoint, weights))(images))


def _classifier(checkpoint: Checkpoint, weights: Weights, precision: Precision = "float32") -> Classifier:
    network = build("flax_nnx", checkpoint, weights)
    network.eval()
    if precision in ("float16", "bfloat16"):
        _reduce(network, jnp.dtype(precision))

    def classifier(image: jax.Array) -> jax.Array:
        # The weights are constants of this function, and so of what is traced from it.
        logits = network(image).astype(jnp.float32)
        return jax.nn.sigmoid(logits) if checkpoint.task == "multi-label" else jax.nn.softmax(logits)

    return classifier


def _reduce(network: nnx.Module, dtype: jnp.dtype) -> None:
    """All in 16 bits but the normalisation of the image, the statistics of batch norm, and the activation."""
    for _, module in nnx.iter_modules(network):
        if isinstance(module, (nnx.Conv, nnx.Linear)):
            module.kernel = nnx.Param(module.kernel[...].astype(dtype))
        if isinstance(module, (nnx.Conv, nnx.Linear, nnx.BatchNorm)):
            module.dtype = dtype


def _stablehlo(classifier: Classifier, image: jax.ShapeDtypeStruct, path: Path, platforms: Sequence[str]) -> None:
    """The network as it is, and, where there is one, in the form that a processor computes faster."""
    exported = jax.export.export(jax.jit(classifier), platforms=tuple(platforms))(image)
    path.write_bytes(exported.serialize())
    with plugins.load("train.models.layers", "flax_nnx").rewritten() as changed:
        exported = jax.export.export(jax.jit(lambda image: classifier(image)), platforms=("cpu",))(image)
    if changed:
        other = path.parents[1] / "rewritten" / path.name
        other.parent.mkdir()
        other.write_bytes(exported.serialize())


def _onnx(classifier: Classifier, image: jax.ShapeDtypeStruct, path: Path) -> None:
    onnx, jax2onnx = (plugins.need(name, "JAX to ONNX") for name in ("onnx", "jax2onnx"))
    # It warns about each of its examples that needs a library which is not installed.
    logging.getLogger("jax2onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            # It reads Flax's variables in the older way.
            warnings.filterwarnings("ignore", r"'\.value' access is now deprecated", DeprecationWarning)
            model = jax2onnx.to_onnx(classifier, [image], opset=OPSET, input_names=[INPUT], output_names=[OUTPUT])
    except NotImplementedError as error:
        raise CannotRun(f"jax2onnx has no ONNX for a part of the network: {error}") from error
    # The shapes it notes between operators are those before it moved transpositions; a reader infers the right ones.
    del model.graph.value_info[:]
    onnx.save(model, path)
