"""The JSON pages for GET requests, which do not change while the server runs, and the OpenAPI document among them."""

from collections.abc import Mapping
from typing import Any

import msgspec

import medserve
from medserve.models import Artifact
from medserve.scores import THRESHOLD
from medserve.spec import Deployment
from medserve.tables import INPUT, OUTPUT

VERSION = "1"
METRICS = "/metrics"
EXTENSIONS = ("binary_tensor_data", "classification", "schedule_policy", "model_configuration")
"""The protocol extensions that the server implements, by their official names."""

Schema = dict[str, Any]
ERROR: Schema = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
SIZE: Schema = {"type": "integer", "minimum": 0}
STATUSES = {
    400: "The body is invalid; the error says what is expected.",
    403: "The request comes from a web page: it has an Origin header.",
    413: "The body is larger than the largest valid request.",
    415: "The body is compressed, but neither with gzip nor with deflate.",
    500: "The runtime failed; the server is not ready until a prediction succeeds.",
    503: "Too many requests wait, the runtime is not ready, or the server is stopping.",
    504: "The deadline of the request passed before it was answered.",
}


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
        "parameters": {"task": {"string_value": artifact.checkpoint.task}},
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
    content |= {"/openapi.json": _document(artifact, deployment, content)}
    return {path: msgspec.json.encode(page) for path, page in content.items()}


def _document(artifact: Artifact, deployment: Deployment, pages: Mapping[str, Any]) -> Schema:
    """The OpenAPI document: GET for each page of `pages`, POST for inference and classification below the models."""
    paths: dict[str, Schema] = {path: {"get": _page(path, page)} for path, page in pages.items()}
    text = {"description": "Metrics of the server, for Prometheus.", "content": {"text/plain": {}}}
    paths[METRICS] = {"get": {"responses": {"200": text}}}
    for model in models(artifact):
        paths[f"{model}/infer"] = {"post": _infer(artifact, deployment.batch_sizes[-1])}
        paths[f"{model}/classify"] = {"post": _classify(artifact)}
    info = {
        "title": f"{artifact.name} by the Open Inference Protocol v2",
        "version": medserve.__version__,
        "description": "Tensors may follow the JSON in binary (binary tensor data extension); the header "
        "Inference-Header-Content-Length then gives the length of the JSON.",
    }
    return {"openapi": "3.1.0", "info": info, "paths": paths}


def _page(path: str, page: Any) -> Schema:
    responses = {"200": _json("Information about the server.", {"const": page})}
    if path.endswith("/ready"):
        responses["503"] = _json("The runtime failed or hangs.", ERROR)
    return {"responses": responses}


def _infer(artifact: Artifact, largest: int) -> Schema:
    batch: Schema = {"type": "integer", "minimum": 1, "maximum": largest}
    sides = [{"const": side} for side in artifact.image_shape]
    shape = {"type": "array", "prefixItems": [batch, *sides], "minItems": 4, "maxItems": 4}
    data: Schema = {"type": "array", "description": "Whole numbers from 0 to 255, flat or nested like the shape."}
    tensor = _tensor(INPUT, ["UINT8"], shape, data)
    output = _object(
        ("name",),
        name={"const": OUTPUT},
        parameters=_object((), binary_data={"type": "boolean"}, classification={"type": "integer", "minimum": 1}),
    )
    timeout = {**SIZE, "description": "Microseconds that the client waits; 0: the deadline of the deployment."}
    request = _object(
        ("inputs",),
        id={"type": "string"},
        inputs={"type": "array", "items": tensor, "minItems": 1, "maxItems": 1},
        outputs={"type": "array", "items": output, "maxItems": 1},
        parameters=_object((), binary_data_output={"type": "boolean"}, timeout=timeout),
    )
    data = {"type": "array", "items": {"type": ["number", "string"]}}
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 2, "maxItems": 2}
    scores = _tensor(OUTPUT, ["FP32", "BYTES"], shape, data)
    outputs = {"type": "array", "items": scores, "minItems": 1, "maxItems": 1}
    response = _of_model(artifact, ("outputs",), id={"type": "string"}, outputs=outputs)
    of = "labels, none of which excludes another" if artifact.checkpoint.task == "multi-label" else "classes"
    answer = _json(f"Probabilities of each image, or its likeliest {of}.", response)
    answer["content"]["application/octet-stream"] = {}
    return _posted({"application/json": {"schema": request}, "application/octet-stream": {}}, answer)


def _classify(artifact: Artifact) -> Schema:
    checkpoint = artifact.checkpoint
    key, words = "classes", "The classes, the likeliest one first."
    properties: dict[str, Schema] = {
        "name": {"enum": list(checkpoint.classes)},
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
    }
    if checkpoint.task == "multi-label":
        key, words = "labels", "The labels, the likeliest first. Any number of them may apply: none excludes another."
        properties["applies"] = {"type": "boolean", "description": f"Whether the probability is above {THRESHOLD}."}
    ranked = _object(tuple(properties), **properties)
    resized_from = {
        "type": ["array", "null"],
        "items": {"type": "integer", "minimum": 1},
        "minItems": 2,
        "maxItems": 2,
        "description": "Width and height of the image file, null if they are those of the model.",
    }
    response = _of_model(
        artifact,
        ("task", key, "resized_from"),
        **{key: {"type": "array", "items": ranked, "minItems": 1}},
        task={"const": checkpoint.task},
        resized_from=resized_from,
    )
    content: Schema = {f"image/{kind}": {} for kind in ("png", "jpeg", "webp")}
    return _posted(content, _json(words, response))


def _tensor(name: str, datatypes: list[str], shape: Schema, data: Schema) -> Schema:
    return _object(
        ("name", "datatype", "shape"),
        name={"const": name},
        datatype={"enum": datatypes},
        shape=shape,
        data=data,
        parameters=_object((), binary_data_size=SIZE),
    )


def _of_model(artifact: Artifact, required: tuple[str, ...], **properties: Schema) -> Schema:
    model = {"model_name": {"const": artifact.name}, "model_version": {"type": "string"}}
    return _object(("model_name", *required), **model, **properties)


def _posted(content: Schema, answer: Schema) -> Schema:
    refused = {str(status): _json(text, ERROR) for status, text in STATUSES.items()}
    return {"requestBody": {"required": True, "content": content}, "responses": {"200": answer, **refused}}


def _json(description: str, schema: Schema) -> Schema:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _object(required: tuple[str, ...], **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(required)}
