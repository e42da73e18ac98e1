"""TFLite: the graph cannot be composed, so the runtime has the way in and out, outside the graph."""

import shutil
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from export.adopt import Found, only, takes
from medserve.errors import BadInput
from medserve.models import Contract
from medserve.store import write_json
from medserve.tables import ADAPTER

REQUIRES = ("ai_edge_litert",)
READS = (".tflite",)
WRITES = ("tflite",)


def inspect(path: Path, output: str = "") -> Found:
    """See `export.adopt`."""
    model = _load(path)
    inputs, outputs = ({one["name"]: one for one in of()} for of in (model.get_input_details, model.get_output_details))
    given = inputs[only(path, "input", list(inputs))]
    out = only(path, "output", list(outputs), output)
    shape = tuple(int(side) if side > 0 else None for side in given["shape_signature"])
    # An interpreter takes any batch, whatever its file says.
    return Found(
        input=given["name"],
        output=out,
        shape=(None, *shape[1:]),
        takes=takes(path, np.dtype(given["dtype"]).name),
        outputs=int(outputs[out]["shape"][-1]),
        parameters=0,
    )


def scores(path: Path, contract: Contract, x: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.float32]:
    """See `export.adopt`."""
    model = _load(path)
    given = model.get_input_details()[0]["index"]
    (out,) = (one["index"] for one in model.get_output_details() if one["name"] == contract.output)
    model.resize_tensor_input(given, x.shape)
    model.allocate_tensors()
    model.set_tensor(given, x)
    model.invoke()
    return model.get_tensor(out).reshape(len(x), -1).astype(np.float32)


def write(path: Path, contract: Contract, _form: str, out: Path) -> None:
    """See `export.adopt`."""
    shutil.copyfile(path, out)
    write_json(out.with_name(ADAPTER), contract)


def _load(path: Path) -> Interpreter:
    try:
        return Interpreter(model_path=str(path))
    except Exception as error:  # it raises anything over other bytes
        raise BadInput(f"{path}: no TFLite model: {str(error)[:300]}") from None
