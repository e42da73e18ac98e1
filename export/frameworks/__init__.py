"""One file per framework: REQUIRES (modules), WRITES (formats, the native one first), `export` and `scores`.

INT8, FLOAT16, BFLOAT16 and TF32 are those of its formats that exist in this precision too. An ONNX model in int8 or
float16 is made of the exported one. TF32 is a setting of the runtime, or one of the model's operations.

`export(checkpoint, weights, form, path, precision, device)` builds the checkpoint's network, puts the canonical
`weights` into it and writes the model file `path` in the format `form`: input `image` uint8 (N, H, W, C) with N free,
output `probabilities` float32 (N, classes), by a softmax, or a sigmoid where the task is `multi-label`. A format of
machine code is compiled for the `device` too. It raises CannotRun with the reason when the framework's exporter cannot.

`scores(checkpoint, weights, images)` runs the same network in the framework itself, nothing exported: uint8
(N, H, W, C) images to float32 (N, classes) probabilities.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medserve import plugins
from medserve.models import Checkpoint
from medserve.tables import ARCHITECTURES, pick

Weights = dict[str, NDArray[np.float32]]


def build(framework: str, checkpoint: Checkpoint, weights: Weights) -> Any:
    """The checkpoint's network in a framework, with the canonical `weights`."""
    architecture = pick(ARCHITECTURES, "architecture", checkpoint.architecture).for_channels(checkpoint.channels)
    family = plugins.load(f"train.models.{architecture.family}", framework)
    network = family.build(architecture, len(checkpoint.classes), hidden=checkpoint.recipe.hidden)
    plugins.load("train.models.canonical", framework).write(network, weights)
    return network


def drop_unused_domains(model: Any) -> None:
    """Remove the operator sets that an ONNX model declares and no node uses; a runtime may refuse an unknown one."""
    used = {node.domain for node in model.graph.node}
    for entry in [entry for entry in model.opset_import if entry.domain not in used]:
        model.opset_import.remove(entry)
