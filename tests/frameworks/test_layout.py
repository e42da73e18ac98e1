"""The artifacts folder as the other servers read it: Triton (ONNX, TorchScript) and TensorFlow Serving (SavedModel)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from medserve import store
from medserve.tables import FORMATS, INPUT, OUTPUT

SERVED_BY_TRITON = {name: row.triton_platform for name, row in FORMATS.items() if row.triton_platform}
# https://github.com/triton-inference-server/backend: the file that a backend opens in a version's folder.
DEFAULT_FILE = {"onnxruntime_onnx": "model.onnx", "pytorch_libtorch": "model.pt"}


def versions(folder: Path) -> list[str]:
    """Folders that a server takes for versions of the model: those whose name is a number."""
    return [path.name for path in folder.iterdir() if path.is_dir() and path.name.isdecimal()]


@pytest.mark.parametrize("form", SERVED_BY_TRITON)
def test_triton_reads_an_artifact_as_a_model_of_its_repository(form: str, request: pytest.FixtureRequest) -> None:
    from tritonclient.grpc import model_config_pb2

    folder: Path = request.getfixturevalue(form)
    # Strict: a field that Triton does not know is an error.
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert config.platform == SERVED_BY_TRITON[form]
    assert versions(folder) == ["1"]
    assert (folder / "1" / DEFAULT_FILE[config.platform]).is_file()
    # With a batch dimension that Triton adds itself, so it is not among the dims.
    assert config.max_batch_size > 0
    (image,), (output,) = config.input, config.output
    artifact = store.read_artifact(folder)
    assert (image.name, image.data_type, tuple(image.dims)) == (
        INPUT,
        model_config_pb2.TYPE_UINT8,
        artifact.image_shape,
    )
    assert (output.data_type, list(output.dims)) == (model_config_pb2.TYPE_FP32, [len(artifact.checkpoint.classes)])
    # Without a name of its own the configuration takes the folder's.
    assert config.name in ("", folder.name)


def test_triton_finds_the_tensors_of_its_configuration_in_the_onnx_graph(onnx: Path) -> None:
    import onnx as library

    graph = library.load(onnx / "1" / "model.onnx").graph
    (image,), (output,) = graph.input, graph.output
    text = (onnx / "config.pbtxt").read_text()
    assert f'name: "{image.name}"' in text
    assert f'name: "{output.name}"' in text
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in (image, output))


LOOK = """
import json, sys
from pathlib import Path
from tensorflow.core.protobuf import saved_model_pb2
content = saved_model_pb2.SavedModel.FromString(Path(sys.argv[1]).read_bytes())
(graph,) = content.meta_graphs
signature = graph.signature_def["serving_default"]
def tensors(infos):
    return {name: [one.dtype, [dim.size for dim in one.tensor_shape.dim]] for name, one in infos.items()}
print(json.dumps({
    "tags": list(graph.meta_info_def.tags),
    "method": signature.method_name,
    "inputs": tensors(signature.inputs),
    "outputs": tensors(signature.outputs),
}))
"""


def test_tensorflow_serving_reads_an_artifact_as_a_model(saved_model: Path) -> None:
    assert versions(saved_model) == ["1"]
    assert {"saved_model.pb", "variables"} <= {path.name for path in (saved_model / "1").iterdir()}
    words = [sys.executable, "-c", LOOK, str(saved_model / "1" / "saved_model.pb")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    float32, uint8 = 1, 4
    assert found["tags"] == ["serve"]
    assert found["method"] == "tensorflow/serving/predict"
    assert found["inputs"] == {INPUT: [uint8, [-1, 28, 28, 3]]}
    assert found["outputs"] == {OUTPUT: [float32, [-1, 8]]}
