"""ONNX in float32 to ONNX in int8: static quantisation, calibrated on images of the training split.

Runs in a process of its own (`python -m export.quantise`), for it loads ONNX Runtime.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from medserve import errors, plugins
from medserve.tables import INPUT

IMAGES = 256
BATCH = 32


class Calibration:
    """Batches of uint8 images, as ONNX Runtime's calibrator asks for them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        chosen = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).astype(int)
        self._batches: Iterator[NDArray[np.uint8]] = (
            np.ascontiguousarray(images[chosen[at : at + BATCH]]) for at in range(0, len(chosen), BATCH)
        )

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch under the input's name, null after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def quantise(
    model: Annotated[Path, typer.Argument(help="ONNX file; the quantised model takes its place.")],
    images: Annotated[Path, typer.Argument(help="uint8 (N, H, W, C) images of the training split, as .npy.")],
) -> None:
    """Quantise weights (a channel at a time, signed) and activations (a tensor at a time, unsigned) to 8 bits."""
    onnx = plugins.need("onnx", "quantisation")
    library = plugins.need("onnxruntime.quantization", "quantisation")
    prepare = plugins.need("onnxruntime.quantization.shape_inference", "quantisation").quant_pre_process
    with TemporaryDirectory() as scratch:
        prepared, done = Path(scratch) / "prepared.onnx", Path(scratch) / "done.onnx"
        # Batch norm must be folded into its convolution before either is quantised.
        prepare(model, prepared, skip_symbolic_shape=True)
        library.quantize_static(
            prepared,
            done,
            Calibration(np.load(images, mmap_mode="r")),
            quant_format=library.QuantFormat.QDQ,
            per_channel=True,
            activation_type=library.QuantType.QUInt8,
            weight_type=library.QuantType.QInt8,
        )
        quantised = onnx.load(done)
    # It declares every domain that ONNX Runtime knows, whether a node uses it or not.
    used = {node.domain for node in quantised.graph.node}
    for entry in [entry for entry in quantised.opset_import if entry.domain not in used]:
        quantised.opset_import.remove(entry)
    onnx.save(quantised, model)


if __name__ == "__main__":
    errors.main(lambda: typer.run(quantise))
