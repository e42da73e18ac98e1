"""ONNX in float32 to ONNX in int8, by static quantisation that is calibrated on training images, or in float16.

Runs in a process of its own (`python -m export.quantise`), for it loads ONNX Runtime.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import typer
from numpy.typing import NDArray

from export.frameworks import drop_unused_domains
from medserve import errors, plugins
from medserve.spec import Precision
from medserve.tables import INPUT

IMAGES = 256
BATCH = 32


class Calibration:
    """Batches of uint8 images, as ONNX Runtime's calibrator asks for them."""

    def __init__(self, images: NDArray[np.uint8]) -> None:
        chosen = np.linspace(0, len(images) - 1, min(IMAGES, len(images))).astype(int)
        self._batches = ({INPUT: images[chosen[at : at + BATCH]]} for at in range(0, len(chosen), BATCH))

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        """The next batch under the input's name, null after the last."""
        return next(self._batches, None)


def reduce(model: Path, images: Path, precision: Precision) -> None:
    """Reduce MODEL, an ONNX file, to a precision, in place.

    IMAGES are uint8 (N, H, W, C) of the training split, as .npy; float16 needs none.
    """
    if precision == "int8":
        quantise(model, images)
    else:
        halve(model)


def halve(model: Path) -> None:
    """Weights and activations in float16; the scores stay in float32."""
    onnx = plugins.need("onnx", "float16")
    library = plugins.need("onnxruntime.transformers.float16", "float16")
    onnx.save(library.convert_float_to_float16(onnx.load(model), keep_io_types=True), model)


def quantise(model: Path, images: Path) -> None:
    """Quantise weights (per channel, signed) and activations (per tensor, unsigned) to 8 bits.

    The quantised model replaces the ONNX file `model`; `images` as above.
    """
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
    drop_unused_domains(quantised)  # the quantiser declares every one that ONNX Runtime knows
    onnx.save(quantised, model)


if __name__ == "__main__":
    errors.main(lambda: typer.run(reduce))
