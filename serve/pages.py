"""The JSON pages for GET requests; they do not change while the server runs."""

from typing import Any

import msgspec

import medserve
from medserve.spec import Artifact, Deployment
from medserve.tables import INPUT, OUTPUT
from serve import openapi

VERSION = "1"
METRICS = "/metrics"
EXTENSIONS = ("binary_tensor_data", "classification", "schedule_policy", "model_configuration")
"""The protocol extensions that the server implements, by their official names."""


def models(artifact: Artifact) -> tuple[str, str]:
    """The paths of the model, without and with the version."""
    return f"/v2/models/{artifact.name}", f"/v2/models/{artifact.name}/versions/{VERSION}"


def pages(artifact: Artifact, deployment: Deployment) -> dict[str, bytes]:
    """The pages as JSON, by path."""
    classes = len(artifact.checkpoint.classes)
    platform = f"medserve_{deployment.runtime}"
    metadata = {
        "name": artifact.name,
        "versions": [VERSION],
        "platform": platform,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *artifact.image_shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, classes]}],
    }
    config = {
        "name": artifact.name,
        "platform": platform,
        "max_batch_size": deployment.batch_sizes[-1],
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": artifact.image_shape}],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [classes]}],
    }
    content: dict[str, Any] = {
        "/v2": {"name": "medserve", "version": medserve.__version__, "extensions": EXTENSIONS},
        "/v2/models": {"models": [artifact.name]},
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
    }
    for model in models(artifact):
        content[model] = metadata
        content[f"{model}/config"] = config
        content[f"{model}/ready"] = {"name": artifact.name, "ready": True}
    document = openapi.document(artifact, deployment, models(artifact), METRICS, content)
    return {path: msgspec.json.encode(page) for path, page in {**content, openapi.PATH: document}.items()}
