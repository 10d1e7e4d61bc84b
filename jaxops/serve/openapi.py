"""The OpenAPI document of what is served, and a plain page of it."""

import html
from typing import Any

from jaxops._version import __version__
from jaxops.serve import generation
from jaxops.serve.models import Served

ERRORS = {
    "400": "the request is wrong",
    "401": "no key, or a wrong one",
    "403": "a key of another role",
    "404": "no such model or version",
    "405": "another method",
    "408": "the body did not come in time",
    "413": "too many bytes or rows",
    "415": "a compressed body",
    "429": "the queue is full, or the key is used too often",
    "500": "the server failed; its log has the request id",
    "503": "the server is shutting down",
    "504": "no answer in time",
}


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
        "/v2": _get("Name, version and extensions of the server"),
        "/v2/health/live": _get("Whether the server runs"),
        "/v2/health/ready": _get("Whether the server takes requests"),
        "/metrics": _get("Metrics for Prometheus"),
        "/models": _get("The models and their versions"),
    }
    for name, served in models.items():
        tensors = {"type": "object", "required": ["inputs"]}
        one = {"path": {"type": "string"}, "version": {"type": "string"}}
        change = {"type": "object", "properties": one, "minProperties": 1, "maxProperties": 1}
        infer = _post(f"Tensors for tensors of {name}", tensors)
        paths |= {
            f"/models/{name}/predict": _post(f"Answers of {name}", served.inputs.schema()),
            f"/v2/models/{name}": _get(f"The tensors of {name}"),
            f"/v2/models/{name}/ready": _get(f"Whether {name} takes requests"),
            f"/v2/models/{name}/infer": infer,
            f"/admin/models/{name}": _post(f"Load a version of {name}, or go back", change),
        }
        if served.decoder is not None:
            summary = f"Text by {name}, whole or in server-sent events"
            paths[f"/models/{name}/generate"] = _post(summary, generation.schema())
        for version in versions[name]:
            path = f"/v2/models/{name}/versions/{version}"
            paths |= {path: paths[f"/v2/models/{name}"], f"{path}/infer": infer}
            paths[f"{path}/ready"] = paths[f"/v2/models/{name}/ready"]
    found: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "jaxops", "version": __version__},
        "paths": paths,
    }
    if keys:
        scheme = {"type": "http", "scheme": "bearer"}
        found |= {"components": {"securitySchemes": {"key": scheme}}, "security": [{"key": []}]}
    return found


def _get(summary: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": _responses()}}


def _post(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    content = {"content": {"application/json": {"schema": schema}}, "required": True}
    return {"post": {"summary": summary, "requestBody": content, "responses": _responses()}}


def _responses() -> dict[str, Any]:
    told = {"200": "the answer", **ERRORS}
    return {status: {"description": text} for status, text in told.items()}


def page(paths: dict[str, Any]) -> str:
    """The paths of a document as a plain page."""
    rows = "".join(
        f"<tr><td>{method.upper()}<td><code>{html.escape(path)}</code>"
        f"<td>{html.escape(what['summary'])}"
        for path, methods in paths.items()
        for method, what in methods.items()
    )
    head = "<!doctype html><meta charset=utf-8><title>jaxops</title><h1>jaxops</h1>"
    return f'{head}<p><a href="openapi.json">openapi.json</a><table>{rows}</table>'
