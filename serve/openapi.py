"""The REST face, described in OpenAPI 3.1; served at ``/openapi.json`` and what the tests' fuzzer reads."""

from importlib.metadata import version
from typing import Any, Final

from serve.tensors import DATATYPES

_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"


def document() -> dict[str, Any]:
    """The description."""
    model = [_parameter("model", "The model's name.")]
    numbered = [*model, _parameter("version", "The version's number.")]
    paths: dict[str, Any] = {
        "/v2": {"get": _get("serverMetadata", "What this server is", "Server")},
        "/v2/health/live": {"get": _get("serverLive", "Whether the process answers", "Live")},
        "/v2/health/ready": {"get": _get("serverReady", "Whether all models are loaded", "Ready")},
        "/v2/models": {"get": _get("models", "Every version of every model", "Models")},
    }
    for path, parameters, suffix in (
        ("/v2/models/{model}", model, ""),
        ("/v2/models/{model}/versions/{version}", numbered, "Version"),
    ):
        paths[path] = {"parameters": parameters, "get": _get(f"model{suffix}", "A model's metadata", "Model", 404)}
        paths[f"{path}/ready"] = {
            "parameters": parameters,
            "get": _get(f"modelReady{suffix}", "Whether a model can be asked", "ModelReady", 404),
        }
        paths[f"{path}/infer"] = {"parameters": parameters, "post": _infer(f"infer{suffix}")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "PruneSeal",
            "version": version("pruneseal"),
            "description": "The Open Inference Protocol (V2) with the binary tensor extension.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": _SCHEMAS},
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _parameter(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {_JSON: {"schema": _ref("Error")}}}


_ERRORS: Final = {
    400: "The request does not parse or does not fit the model",
    404: "No such model or version is loaded",
    413: "The request exceeds a limit of this server",
    415: "The body has a content-encoding",
    500: "The model failed",
    503: "The queue is full; try again later",
}


def _get(operation: str, summary: str, schema: str, *errors: int) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": summary,
        "responses": {
            "200": {"description": summary, "content": {_JSON: {"schema": _ref(schema)}}},
            **{str(status): _error(_ERRORS[status]) for status in errors},
        },
    }


def _infer(operation: str) -> dict[str, Any]:
    octets = {"schema": {"type": "string", "format": "binary"}}
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "required": False,
        "description": "Bytes of the JSON at the head of the body; the bytes of tensors follow.",
        "schema": {"type": "integer", "minimum": 0},
    }
    return {
        "operationId": operation,
        "summary": "Inference",
        "parameters": [length],
        "requestBody": {
            "required": True,
            "content": {_JSON: {"schema": _ref("InferenceRequest")}, _BINARY: octets},
        },
        "responses": {
            "200": {
                "description": "The outputs",
                "content": {_JSON: {"schema": _ref("InferenceResponse")}, _BINARY: octets},
            },
            **{str(status): _error(text) for status, text in _ERRORS.items()},
        },
    }


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


_STRING: Final = {"type": "string"}
_STRINGS: Final = {"type": "array", "items": _STRING}
_SHAPE: Final = {"type": "array", "items": {"type": "integer"}}
_DATATYPE: Final = {"type": "string", "enum": [name for name, _ in DATATYPES.values()]}
_PARAMETERS: Final = {"type": "object"}
_DATA: Final = {"type": "array", "description": "Numbers, nested by axis or flat in row-major order."}
_TENSOR: Final = {"name": _STRING, "datatype": _DATATYPE, "shape": _SHAPE}
_DESCRIBED: Final = _object([*_TENSOR], **_TENSOR)
_FILLED: Final = _object([*_TENSOR], **_TENSOR, parameters=_PARAMETERS, data=_DATA)
_MODEL: Final = {
    "name": _STRING,
    "versions": _STRINGS,
    "platform": _STRING,
    "inputs": {"type": "array", "items": _DESCRIBED},
    "outputs": {"type": "array", "items": _DESCRIBED},
    "properties": {"type": "object", "additionalProperties": _STRING},
}
_SCHEMAS: Final = {
    "Error": _object(["error"], error=_STRING),
    "Live": _object(["live"], live={"type": "boolean"}),
    "Ready": _object(["ready"], ready={"type": "boolean"}),
    "Server": _object(["name", "version", "extensions"], name=_STRING, version=_STRING, extensions=_STRINGS),
    "Model": _object([*_MODEL], **_MODEL),
    "Models": _object(
        ["models"], models={"type": "array", "items": _object([*_MODEL, "version"], **_MODEL, version=_STRING)}
    ),
    "ModelReady": _object(["name", "ready"], name=_STRING, ready={"type": "boolean"}),
    "InferenceRequest": _object(
        ["inputs"],
        id=_STRING,
        parameters=_PARAMETERS,
        inputs={"type": "array", "items": _FILLED},
        outputs={"type": "array", "items": _object(["name"], name=_STRING, parameters=_PARAMETERS)},
    ),
    "InferenceResponse": _object(
        ["model_name", "model_version", "outputs"],
        model_name=_STRING,
        model_version=_STRING,
        id=_STRING,
        outputs={"type": "array", "items": _FILLED},
    ),
}
