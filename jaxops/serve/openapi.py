"""The OpenAPI document of what is served."""

from typing import Any

from jaxops._version import __version__
from jaxops.serve import generation
from jaxops.serve.answers import as_object
from jaxops.serve.models import Served

ERRORS = {
    "400": "the request is wrong",
    "401": "no key, or a wrong one",
    "403": "a key of another role",
    "404": "no such model or version",
    "405": "another method",
    "408": "the body did not come in time",
    "409": "not while it answers by default, or not with several workers",
    "413": "too many bytes or rows",
    "415": "a compressed body",
    "429": "the queue is full, or the key is used too often",
    "500": "the server failed; its log has the request id",
    "503": "the server is shutting down",
    "504": "no answer in time",
}


TEXT, WHOLE, YES = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
SHARE = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
IDS = {"type": "array", "items": {"type": ["integer", "string"]}}


def _object(optional: dict[str, Any] | None = None, **required: Any) -> dict[str, Any]:
    """The schema of an object with the required properties, and perhaps the optional ones."""
    properties = {**required, **(optional or {})}
    return {"type": "object", "properties": properties, "required": [*required]}


def _list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


GIVEN = {kind: _object(version=TEXT, share=SHARE) for kind in ("canary", "shadow")}
TOLD = {"version": TEXT, "versions": _list(TEXT)}
TENSOR = _object(name=TEXT, datatype=TEXT, shape=_list(WHOLE))
ERROR = _object(error=TEXT)
SERVER = _object(name=TEXT, version=TEXT, extensions=_list(TEXT))
MODELS = _object(models=_list(_object(GIVEN, name=TEXT, **TOLD)))
READY = _object(name=TEXT, ready=YES)
METADATA = _object(
    name=TEXT, platform=TEXT, versions=_list(TEXT), inputs=_list(TENSOR), outputs=_list(TENSOR)
)
OUTPUT = _object(
    {"data": {"type": "array"}, "parameters": {"type": "object"}},
    **TENSOR["properties"],  # a tensor in bytes has no data
)
INFERRED = _object(
    {"id": TEXT, "parameters": {"type": "object"}},
    model_name=TEXT,
    model_version=TEXT,
    outputs=_list(OUTPUT),
)
WRITTEN = _object(
    {"warnings": _list(TEXT)},
    model=TEXT,
    version=TEXT,
    text=TEXT,
    end=TEXT,
    prompt_tokens=WHOLE,
    new_tokens=WHOLE,
    log_probability={"type": "number"},
)
CHANGED = _object(GIVEN, model=TEXT, **TOLD)
UNLOADED = _object(
    {**GIVEN, "version": TEXT}, model=TEXT, unloaded=_list(TEXT), versions=TOLD["versions"]
)
CHANGE = {
    "type": "object",
    "properties": {"path": TEXT, "version": TEXT}
    | {kind: {"type": "number", "minimum": 0, "maximum": 1} for kind in GIVEN},
    "oneOf": [{"required": ["path"]}, {"required": ["version"]}],
    "not": {"required": [*GIVEN]},
    "additionalProperties": False,
}


def schema_of(value: Any) -> dict[str, Any]:
    """The JSON schema of an answer that is like an example: a number may be null, which stands for
    one that is not finite, and ids may be texts.

    >>> schema_of({"ids": [0], "p": [[0.5]]})["properties"]["p"]
    {'type': 'array', 'items': {'type': 'array', 'items': {'type': ['number', 'null']}}}
    """
    if isinstance(value, dict):
        properties = {name: schema_of(one) for name, one in value.items()}
        return _object(**properties | ({"ids": IDS} if "ids" in value else {}))
    if isinstance(value, list):
        return _list(schema_of(value[0])) if value else {"type": "array"}
    if isinstance(value, bool):
        return YES
    kinds: dict[type, Any] = {str: "string", int: "integer"}
    return {"type": kinds.get(type(value), ["number", "null"])}


def document(
    models: dict[str, Served], versions: dict[str, list[str]], keys: bool
) -> dict[str, Any]:
    """The OpenAPI document, version 3.1.

    Args:
        models: name -> what answers by default.
        versions: name -> the versions that are loaded.
        keys: whether requests need a key.
    """
    paths: dict[str, Any] = {
        "/v2": _get("Name, version and extensions of the server", SERVER),
        "/v2/health/live": _get("Whether the server runs", _object(live=YES)),
        "/v2/health/ready": _get("Whether the server takes requests", _object(ready=YES)),
        "/metrics": _get("Metrics for Prometheus", None),
        "/models": _get("The models and their versions", MODELS),
    }
    for name, served in models.items():
        tensors = {"type": "object", "required": ["inputs"]}
        infer = _post(f"Tensors for tensors of {name}", tensors, INFERRED)
        answer = (
            {"type": "object"} if served.answer is None else schema_of(as_object(served.answer))
        )
        answered = _object({"warnings": _list(TEXT)}, model=TEXT, version=TEXT, answer=answer)
        unload = _does("delete", f"Unload {name}", UNLOADED, _last())
        change = _post(f"Load, promote or unload a version of {name}", CHANGE, CHANGED)
        paths |= {
            f"/models/{name}/predict": _post(
                f"Answers of {name}", served.inputs.schema(), answered
            ),
            f"/v2/models/{name}": _get(f"The tensors of {name}", METADATA),
            f"/v2/models/{name}/ready": _get(f"Whether {name} takes requests", READY),
            f"/v2/models/{name}/infer": infer,
            f"/admin/models/{name}": change | unload,
        }
        if served.decoder is not None:
            summary = f"Text by {name}, whole or in server-sent events"
            paths[f"/models/{name}/generate"] = _post(summary, generation.schema(), WRITTEN)
        for version in versions[name]:
            path = f"/v2/models/{name}/versions/{version}"
            paths |= {path: paths[f"/v2/models/{name}"], f"{path}/infer": infer}
            paths[f"{path}/ready"] = paths[f"/v2/models/{name}/ready"]
            one = _does("delete", f"Unload version {version} of {name}", UNLOADED, _last())
            paths[f"/admin/models/{name}/versions/{version}"] = one
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "jaxops", "version": __version__},
        "paths": paths,
    }
    if keys:
        scheme = {"type": "http", "scheme": "bearer"}
        found |= {"components": {"securitySchemes": {"key": scheme}}, "security": [{"key": []}]}
    return found


def _get(summary: str, answer: Any) -> dict[str, Any]:
    return _does("get", summary, answer, {})


def _post(summary: str, schema: dict[str, Any], answer: Any) -> dict[str, Any]:
    content = {"content": {"application/json": {"schema": schema}}, "required": True}
    return _does("post", summary, answer, {"requestBody": content})


def _last() -> dict[str, Any]:
    """The parameter that lets the last version of a model go."""
    schema = {"type": "string", "enum": ["true"]}
    return {"parameters": [{"name": "last", "in": "query", "schema": schema}]}


def _does(method: str, summary: str, answer: Any, more: dict[str, Any]) -> dict[str, Any]:
    """An operation; its answer is text if it has no schema."""
    kind, schema = ("text/plain", TEXT) if answer is None else ("application/json", answer)
    content = {"content": {kind: {"schema": schema}}}
    error = {"content": {"application/json": {"schema": ERROR}}}
    refused = {status: {"description": text, **error} for status, text in ERRORS.items()}
    responses = {"200": {"description": "the answer", **content}, **refused}
    return {method: {"summary": summary, **more, "responses": responses}}
