"""Models as others make them: `python foreign_job.py KIND FILE` writes the same linear classifier by KIND's library.

It takes the mean of each channel of a float32 image, and gives three logits: what it must answer can be computed by
hand from the bytes of an image.
"""

import os
import sys
from pathlib import Path

import numpy as np

SIZE, WEIGHT = 12, np.array([[1.0, -2.0, 0.5], [-1.0, 1.5, 2.0], [0.5, 0.25, -1.5]], np.float32)
"""Rows are channels."""
BIAS = np.array([0.1, -0.2, 0.3], np.float32)


def torch_module(classes: int = 3) -> object:
    import torch

    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, classes)
            with torch.no_grad():
                self.head.weight.copy_(torch.from_numpy(WEIGHT.T[:classes]))
                self.head.bias.copy_(torch.from_numpy(BIAS[:classes]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.mean((2, 3)))

    return Linear().eval()


def torchscript(path: Path) -> None:
    import torch

    torch.jit.save(torch.jit.script(torch_module()), str(path))


def torch_export(path: Path) -> None:
    import torch

    example, free = torch.zeros(2, 3, SIZE, SIZE), {0: torch.export.Dim("n")}
    torch.export.save(torch.export.export(torch_module(), (example,), dynamic_shapes=(free,)), path)


def torch_onnx(path: Path) -> None:
    import torch

    example, free = torch.zeros(2, 3, SIZE, SIZE), {0: torch.export.Dim("n")}
    torch.onnx.export(torch_module(), (example,), dynamo=True, dynamic_shapes=(free,), verbose=False).save(path)


def keras_model() -> object:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    image = keras.Input((SIZE, SIZE, 3))
    model = keras.Model(image, keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(image)))
    model.set_weights([WEIGHT, BIAS])
    return model


def keras(path: Path) -> None:
    keras_model().save(path)


def saved_model(path: Path) -> None:
    keras_model().export(path, verbose=False)


def tflite(path: Path) -> None:
    model = keras_model()
    import tensorflow as tf

    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())


def tf2onnx(path: Path) -> None:
    model = keras_model()
    import tensorflow as tf
    import tf2onnx as converter

    spec = [tf.TensorSpec((None, SIZE, SIZE, 3), tf.float32, name="x")]
    converter.convert.from_function(tf.function(model, spec), spec, opset=15, output_path=str(path))


def stablehlo(path: Path) -> None:
    import jax
    import jax.numpy as jnp

    (free,) = jax.export.symbolic_shape("n")
    image = jax.ShapeDtypeStruct((free, SIZE, SIZE, 3), jnp.float32)
    path.write_bytes(jax.export.export(jax.jit(lambda x: x.mean((1, 2)) @ WEIGHT + BIAS))(image).serialize())


def onnx(path: Path, nodes: int = 2, channels: int = 3, classes: int = 3, batch: object = "n") -> None:
    """By ONNX's own helpers, in the layout of PyTorch; `nodes` may be those of two inputs."""
    import onnx as library
    from onnx import TensorProto, helper, numpy_helper

    inputs = [f"x{place}" for place in range(max(1, nodes - 1))]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", [inputs[-1]], ["m"], axes=[2, 3], keepdims=0),
            helper.make_node("Gemm", ["m", "w", "b"], ["y"]),
        ],
        "linear",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, channels, SIZE, SIZE])
            for name in inputs
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, classes])],
        [
            numpy_helper.from_array(WEIGHT[:channels, :classes], "w"),
            numpy_helper.from_array(BIAS[:classes], "b"),
        ],
    )  # fmt: skip
    library.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


KINDS = {
    "onnx": (onnx, "linear.onnx"),
    "two": (lambda path: onnx(path, nodes=3), "two.onnx"),
    "grey": (lambda path: onnx(path, channels=1), "grey.onnx"),
    "single": (lambda path: onnx(path, classes=1), "single.onnx"),
    "fixed": (lambda path: onnx(path, batch=1), "fixed.onnx"),
    "eight": (lambda path: onnx(path, batch=8), "eight.onnx"),
    "torchscript": (torchscript, "linear.pt"),
    "torch_export": (torch_export, "linear.pt2"),
    "torch_onnx": (torch_onnx, "torch.onnx"),
    "keras": (keras, "linear.keras"),
    "saved_model": (saved_model, "linear"),
    "tf2onnx": (tf2onnx, "tf.onnx"),
    "tflite": (tflite, "linear.tflite"),
    "stablehlo": (stablehlo, "linear.stablehlo"),
}

if __name__ == "__main__":
    KINDS[sys.argv[1]][0](Path(sys.argv[2]))
