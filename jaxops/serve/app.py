"""The ASGI application: routes, limits, access, and what happens to a request."""

import asyncio
import json
import math
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxops._optional import require
from jaxops._version import __version__
from jaxops.model.files import load
from jaxops.model.finished import Model
from jaxops.serve import openapi, tensors
from jaxops.serve.access import Keys, is_loopback
from jaxops.serve.answers import plain
from jaxops.serve.batching import Batcher, Call, Waiting
from jaxops.serve.inputs import Given
from jaxops.serve.models import Models, Served, check_name
from jaxops.serve.refused import Refused, short
from jaxops.serve.watch import Record, Watch

SENTENCE = 500  # characters
LENGTH = "inference-header-content-length"


@dataclass(frozen=True)
class Settings:
    """Limits of a server.

    Attributes:
        batch_size: the most rows that requests are joined to.
        delay: seconds that a request waits for others, at most.
        queue: the most requests that wait; further ones are refused with 429.
        timeout: seconds for a request, which may ask for fewer; then it is answered by 504.
        rows: the most rows of a request.
        body: the most bytes of a request.

    Raises:
        ValueError: a limit that is not positive.

    >>> Settings(batch_size=16).queue
    256
    """

    batch_size: int = 64
    delay: float = 0.001
    queue: int = 256
    timeout: float = 10.0
    rows: int = 10_000
    body: int = 2**24

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value > 0 or (name == "delay" and value == 0)) or not math.isfinite(value):
                raise ValueError(f"{name} must be above 0, got {value}")


class Service:
    """An ASGI application that answers for models; `application` makes one."""

    def __init__(self, settings: Settings, keys: Keys | None, folder: Path | None) -> None:
        self.settings, self.keys, self.folder = settings, keys, folder
        self.models = Models()
        self.draining = False
        self.running = 0  # requests that have no answer yet
        self.batcher = Batcher(
            settings.batch_size, settings.delay, settings.queue, self._count_batch
        )
        self.watch = Watch(lambda: len(self.batcher.waiting))
        self._changes = asyncio.Lock()
        self._http = require("starlette.exceptions", extra="serve").HTTPException
        self._gone = require("starlette.requests", extra="serve").ClientDisconnect
        self._response = require("starlette.responses", extra="serve").Response
        routing = require("starlette.routing", extra="serve")
        of_model, post = "/v2/models/{model}", ["POST"]
        both = (of_model, of_model + "/versions/{version}")
        self._router = routing.Router(
            [
                routing.Route("/", self.page),
                routing.Route("/openapi.json", self.document),
                routing.Route("/metrics", self.metrics),
                routing.Route("/models", self.listed),
                routing.Route("/models/{model}/predict", self.predict, methods=post),
                routing.Route("/v2", self.server),
                routing.Route("/v2/health/live", self.live),
                routing.Route("/v2/health/ready", self.ready),
                *(routing.Route(path, self.model) for path in both),
                *(routing.Route(f"{path}/ready", self.ready) for path in both),
                *(routing.Route(f"{path}/infer", self.infer, methods=post) for path in both),
                routing.Route("/admin/models/{model}", self.change, methods=post),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request; see the ASGI specification."""
        if scope["type"] != "http":
            await self._router(scope, receive, send)
            return
        headers = {name.decode("latin-1"): x.decode("latin-1") for name, x in scope["headers"]}
        given = headers.get("x-request-id", "")
        named = re.fullmatch(r"[\w-]{1,64}", given, re.ASCII)
        record = Record(given if named else uuid.uuid4().hex, scope["method"])
        scope["app"], scope["jaxops"], began = self, record, False

        async def sending(message: Any) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began, record.status = True, message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", record.id.encode()),
                ]
            await send(message)

        self.running += 1
        try:
            await self._enter(scope, headers, record)
            await self._router(scope, receive, sending)
        except self._gone:
            pass
        except Exception as error:
            if began:
                raise
            response = self._refusal(error, record)
            await response(scope, receive, sending)
        finally:
            self.running -= 1
            route = getattr(scope.get("endpoint"), "__name__", "none")
            self.watch.done(record, route)

    def _refusal(self, error: Exception, record: Record) -> Any:
        """The response to a request that ended with an exception."""
        if isinstance(error, Refused):
            sentence = " ".join(str(error).split())[:SENTENCE]  # a reader's may hold a long value
            return self._json({"error": sentence}, error.status, error.headers)
        if isinstance(error, self._http):
            sentence = f"the request must be for a path and a method that exist: {error.detail}"
            return self._json({"error": sentence}, error.status_code, error.headers)
        self.watch.failed(record, error)
        return self._json({"error": "the server failed; its log has the request id"}, 500)

    async def _enter(self, scope: Any, headers: Mapping[str, str], record: Record) -> None:
        """Let a request in that has the right key; without keys, one from this machine.

        A page of another site that a browser on this machine shows would name its own host.
        """
        path = scope["path"]
        if self.keys is None:
            host = headers.get("host", "localhost")
            name = host if host.endswith("]") else re.sub(r":\d*$", "", host)
            if not is_loopback(name):
                raise Refused(403, f"without keys the host must be this machine, got {short(host)}")
            return
        given = headers.get("authorization")
        holder = self.keys.known(given)
        if holder is None:  # it takes its time
            holder = await asyncio.to_thread(self.keys.holder, given)
        record.key = holder.name
        role = "metrics" if path == "/metrics" else "admin" if path.startswith("/admin") else ""
        health = path.startswith("/v2/health")
        self.keys.admit(holder, role or ("" if health else "predict"))

    def _json(self, value: Any, status: int = 200, headers: Any = None) -> Any:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        return self._response(text, status, headers, "application/json")

    def _count_batch(self, batch: list[Waiting]) -> None:
        self.watch.batch(batch[0].key[0].name, sum(one.given.rows for one in batch))

    # what is told

    async def page(self, request: Any) -> Any:
        """A plain page of the routes."""
        paths = openapi.document(self.models.current, self.keys is not None)["paths"]
        return self._response(openapi.page(paths), 200, None, "text/html")

    async def document(self, request: Any) -> Any:
        """The OpenAPI document."""
        return self._json(openapi.document(self.models.current, self.keys is not None))

    async def metrics(self, request: Any) -> Any:
        """The metrics for Prometheus."""
        text, kind = self.watch.text()
        return self._response(text, 200, None, kind)

    async def listed(self, request: Any) -> Any:
        """The models, their versions, and the one that answers by default."""
        told = [
            {"name": name, "version": one.version, "versions": self.models.versions(name)}
            for name, one in self.models.current.items()
        ]
        return self._json({"models": told})

    async def server(self, request: Any) -> Any:
        """What the server is, by the protocol."""
        extensions = ["binary_tensor_data"]
        return self._json({"name": "jaxops", "version": __version__, "extensions": extensions})

    async def live(self, request: Any) -> Any:
        """Whether the server runs."""
        return self._json({"live": True})

    async def ready(self, request: Any) -> Any:
        """Whether the server, or a model, takes requests."""
        if "model" in request.path_params:
            self._served(request)
        return self._json({"ready": not self.draining}, 503 if self.draining else 200)

    async def model(self, request: Any) -> Any:
        """The tensors of a model."""
        served = self._served(request)
        return self._json({**served.metadata, "versions": self.models.versions(served.name)})

    # what is answered

    async def predict(self, request: Any) -> Any:
        """Raw input to answers with names."""
        served = self._served(request)
        body = tensors.parsed(await self._body(request))
        limit = self.settings.rows
        if getattr(served.inputs, "slow", False):
            given = await asyncio.to_thread(served.inputs.read, body, limit)
        else:
            given = served.inputs.read(body, limit)
        answer = await self._answer(request, (served, "predict"), served.predict, given)
        head = {"model": served.name, "version": served.version}
        return self._json({**head, "answer": {**_named(answer), **given.beside}})

    async def infer(self, request: Any) -> Any:
        """Tensors to tensors."""
        served = self._served(request)
        asked = tensors.read(await self._body(request), request.headers.get(LENGTH))
        given = served.tensors(asked.arrays, self.settings.rows)
        found = await self._answer(request, (served, "infer"), served.infer, given, asked.timeout)
        head = {"model_name": served.name, "model_version": served.version}
        data, length = tensors.write(head, found, asked)
        headers = None if length is None else {"Inference-Header-Content-Length": str(length)}
        kind = "application/json" if length is None else "application/octet-stream"
        return self._response(data, 200, headers, kind)

    def _served(self, request: Any) -> Served:
        """The model of a path."""
        names = request.path_params
        served = self.models.get(names["model"], names.get("version"))
        record = request.scope["jaxops"]
        record.model, record.version = served.name, served.version
        return served

    async def _body(self, request: Any) -> bytes:
        """The body of a request that comes in time and is not too long.

        Raises:
            Refused: 503 while the server shuts down, 408 or 413.
        """
        if self.draining:
            raise Refused(
                503, "the server must run, got a request while it shuts down", retry_after=1
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "the body must not be compressed, got a Content-Encoding")
        most, data = self.settings.body, bytearray()
        try:
            async with asyncio.timeout(self.settings.timeout):
                async for part in request.stream():
                    data += part
                    if len(data) > most:
                        raise Refused(413, f"the body must have at most {most:,} bytes, got more")
        except TimeoutError:
            raise Refused(408, "the body must come in time, got a part of it") from None
        return bytes(data)

    async def _answer(
        self, request: Any, key: Any, call: Call, given: Given, timeout: float | None = None
    ) -> Any:
        """The answer that the batcher gives, unless time is over or the client has gone."""
        request.scope["jaxops"].rows = given.rows
        seconds = self._timeout(request, timeout)
        bucket = object() if given.bucket is None else given.bucket
        future = self.batcher.put((*key, bucket), call, given, seconds)
        gone = asyncio.ensure_future(request.receive())
        try:
            first = asyncio.FIRST_COMPLETED
            await asyncio.wait((future, gone), timeout=seconds, return_when=first)
            if future.done():
                return future.result()
            if gone.done():
                raise self._gone
            raise Refused(504, f"the answer must come within {seconds:g} s, got none")
        except ValueError as error:  # of the reader, which names column and row
            raise Refused(400, str(error)) from None
        finally:
            future.cancel()
            gone.cancel()

    def _timeout(self, request: Any, asked: float | None) -> float:
        """The seconds for a request: those it asks for, and at most those of the settings."""
        header = request.headers.get("x-request-timeout")
        if header is not None:
            if not re.fullmatch(r"\d{1,6}(\.\d{1,6})?", header, re.ASCII):
                raise Refused(400, f"X-Request-Timeout must be seconds, got {short(header)}")
            asked = min(float(header), asked or math.inf)
        return min(self.settings.timeout, math.inf if asked is None else asked)

    # what an administrator does

    async def change(self, request: Any) -> Any:
        """Load a version of a model from a file, or take a loaded version back into service."""
        name, record = request.path_params["model"], request.scope["jaxops"]
        body = tensors.parsed(await self._body(request))
        act, told = "refused", {"model": name[:100]}
        try:
            if self.keys is None:
                sentence = "models must be changed with a key of an administrator, got none"
                raise Refused(403, sentence)
            if [*body] == ["version"] and isinstance(body["version"], str):
                act, told = "roll back", {**told, "version": body["version"][:20]}
                served = self.models.back(name, body["version"])
            elif [*body] == ["path"] and isinstance(body["path"], str):
                act, told = "load", {**told, "path": body["path"][:200]}
                file = self._file(body["path"])
                async with self._changes:
                    served = await asyncio.to_thread(self._load, name, file)
            else:
                raise Refused(400, 'the body must be {"path": file} or {"version": number}')
        except Exception as error:
            self.watch.audit(record, act, **told, outcome=type(error).__name__)
            if isinstance(error, ValueError):  # of a file that holds no model
                raise Refused(400, str(error)) from None
            raise
        record.model, record.version = served.name, served.version
        self.watch.audit(record, act, **told, outcome=f"version {served.version}")
        versions = self.models.versions(name)
        return self._json({"model": name, "version": served.version, "versions": versions})

    def _file(self, path: str) -> Path:
        """A file below the folder of models; not one that a link or `..` leads to outside."""
        if self.folder is None:
            raise Refused(403, "the server must have a folder of models to load from, got none")
        folder = self.folder.resolve()
        try:
            file = (folder / path).resolve()
            inside = file.is_relative_to(folder) and file.is_file()
        except (OSError, ValueError):  # too long, or with a zero byte
            inside = False
        if not inside:
            raise Refused(404, f"path must be a file below the folder of models, got {short(path)}")
        return file

    def _load(self, name: str, file: Path) -> Served:
        check_name(name)
        return self.models.add(name, load(file), file.name, self.settings.batch_size)


def _named(answer: Any) -> dict[str, Any]:
    found = plain(answer)
    return found if isinstance(found, dict) else {"output": found}


def application(
    models: Mapping[str, Model],
    *,
    keys: str | Path | None = None,
    folder: str | Path | None = None,
    settings: Settings | None = None,
) -> Service:
    """An ASGI application that serves finished models; `jaxops serve` runs it on uvicorn.

    The models are compiled for each power of two of rows up to `batch_size` before it returns.

    Args:
        models: name -> model.
        keys: a file of `jaxops key`; without one, requests must name this machine as their host.
        folder: of model files that an administrator may load.
        settings: limits, by default those of `Settings`.

    Raises:
        ValueError: no models, a name that an address cannot hold, a model that cannot be served,
            or a file of another form than keys have.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> table = {"age": list(range(40)), "left": [0, 1] * 20}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> app = application({"churn": model}, settings=Settings(batch_size=1))
    >>> app.models.get("churn").metadata["inputs"]
    [{'name': 'features', 'datatype': 'FP32', 'shape': [-1, 32]}]
    """
    if not models:
        raise ValueError("models must be at least 1, got none")
    settings = settings or Settings()
    held = None if keys is None else Keys(keys)
    service = Service(settings, held, None if folder is None else Path(folder))
    for name, model in models.items():
        service.models.add(name, model, "", settings.batch_size)
    return service
