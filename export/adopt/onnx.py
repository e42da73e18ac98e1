"""ONNX: nodes for the way in and out are put around the graph."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper

from export.adopt import Found, only, takes
from export.frameworks import drop_unused_domains
from medserve.errors import BadInput
from medserve.models import Contract
from medserve.tables import INPUT, OUTPUT

REQUIRES = ("onnx", "onnxruntime")
READS = (".onnx",)
WRITES = ("onnx",)
PREFIX = "model/"
"""Before the names of the file, which may be those of the artifact."""
OLDEST_OPSET = 13
"""From here on Softmax has the meaning of today."""


def inspect(path: Path, output: str = "") -> Found:
    """See `export.adopt`."""
    model = _load(path)
    weights = {value.name for value in model.graph.initializer}
    inputs = {value.name: value for value in model.graph.input if value.name not in weights}
    outputs = {value.name: value for value in model.graph.output}
    given = inputs[only(path, "input", list(inputs))].type.tensor_type
    out = outputs[only(path, "output", list(outputs), output)]
    shape = tuple(dim.dim_value or None for dim in given.shape.dim) if given.HasField("shape") else None
    last = [dim.dim_value or None for dim in out.type.tensor_type.shape.dim]
    return Found(
        input=next(iter(inputs)),
        output=out.name,
        shape=shape,
        takes=takes(path, helper.tensor_dtype_to_np_dtype(given.elem_type).name),
        outputs=last[1] if len(last) > 1 else 1 if last else None,
        parameters=sum(int(np.prod(value.dims)) for value in model.graph.initializer if len(value.dims)),
    )


def scores(path: Path, contract: Contract, x: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.adopt`."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    step = contract.batch or len(x)
    parts = [session.run([contract.output], {contract.input: x[at : at + step]})[0] for at in range(0, len(x), step)]
    return np.concatenate(parts).astype(np.float32)


def write(path: Path, contract: Contract, _form: str, out: Path) -> None:
    """See `export.adopt`."""
    model = compose.add_prefix(_load(path), PREFIX)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if opset < OLDEST_OPSET:
        model = onnx.version_converter.convert_version(model, OLDEST_OPSET)
    graph = model.graph
    channels, size = contract.channels, contract.size
    x, y = PREFIX + contract.input, PREFIX + contract.output
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []
    at = INPUT

    def add(operator: str, value: NDArray[np.float32] | None = None, **attributes: object) -> None:
        nonlocal at
        name = f"in_{len(nodes)}"
        inputs = [at]
        if value is not None:
            constants.append(numpy_helper.from_array(value, f"{name}_value"))
            inputs.append(f"{name}_value")
        nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        at = name

    # Bytes are moved, not the four times as many of floats.
    if contract.layout == "nchw":
        add("Transpose", perm=[0, 3, 1, 2])
    if contract.takes == "float32":
        shape = (channels, 1, 1) if contract.layout == "nchw" else (channels,)
        add("Cast", to=TensorProto.FLOAT)
        add("Mul", np.array(contract.factor, np.float32).reshape(shape))
        add("Sub", np.array(contract.offset, np.float32).reshape(shape))
    nodes.append(helper.make_node("Identity", [at], [x], name="in"))
    last = [helper.make_node("Flatten", [y], ["flat"], name="out_flat", axis=1)]
    if contract.gives == "logits":
        operator = "Sigmoid" if contract.activation == "sigmoid" else "Softmax"
        last.append(helper.make_node(operator, ["flat"], ["activated"], name="out_activated"))
    if contract.outputs == 1:
        constants.append(numpy_helper.from_array(np.ones((), np.float32), "one"))
        last.append(helper.make_node("Sub", ["one", last[-1].output[0]], ["other"], name="out_other"))
        last.append(helper.make_node("Concat", ["other", last[-2].output[0]], ["both"], name="out_both", axis=1))
    last.append(helper.make_node("Identity", [last[-1].output[0]], [OUTPUT], name="out"))
    middle = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend([*nodes, *middle, *last])
    graph.initializer.extend(constants)
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", size, size, channels]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", contract.classes]))
    drop_unused_domains(model)
    onnx.checker.check_model(model)
    onnx.save(model, out)


def _load(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf and the checker raise anything over damaged bytes
        raise BadInput(
            f"{path}: no valid ONNX model, or a part of one: {str(error)[:300]}; copy or export it again"
        ) from None
    return model
