"""The ASGI application: routes, limits, access, and what happens to a request."""

import asyncio
import json
import math
import re
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxops._optional import require
from jaxops._version import __version__
from jaxops.model.finished import Model
from jaxops.serve import openapi, site, tensors
from jaxops.serve.access import Holder, Keys, is_loopback
from jaxops.serve.answers import as_object, size
from jaxops.serve.batching import Batcher, Call, Waiting
from jaxops.serve.generation import Generation
from jaxops.serve.inputs import Given
from jaxops.serve.models import Served, Told
from jaxops.serve.refused import Refused, short
from jaxops.serve.rollout import Administration, Shadows
from jaxops.serve.settings import Settings
from jaxops.serve.sketching import families
from jaxops.serve.versions import Models
from jaxops.serve.watch import Record, Watch

SENTENCE = 500  # characters
LONG = 100_000  # bytes of a body that is not read in the thread of the loop
MANY = 10_000  # values of an answer that is not written there
UNKNOWN = 4  # keys that are hashed at once
FULL = 2  # of Starlette's `Match`: the path and the method
BODIES = 16  # of the most bytes that requests without an answer may have together
# of routes, where it is not "predict": "" needs a key of any role, and None needs none
ROLES = {
    **{"metrics": "metrics", "change": "admin", "unload": "admin"},
    **{"live": "", "ready": "", "page": None},
}
LENGTH = "inference-header-content-length"


class Service:
    """An ASGI application that answers for models; `application` makes one.

    Attributes:
        models: the `Models` that answer.
        workers: processes that answer on the same port.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys | None,
        folder: Path | None,
        model_key: bytes | str | None = None,
    ) -> None:
        self.settings, self.keys, self.folder, self.model_key = settings, keys, folder, model_key
        self.models = Models(settings.batch_size, settings.slots)
        self.workers = 1
        self.draining = False
        self.running = 0  # requests that have no answer yet
        self.held = 0  # bytes of their bodies
        self.batcher = Batcher(
            settings.batch_size, settings.delay, settings.queue, self._count_batch
        )
        self.watch = Watch(
            lambda: self.batcher.queued() + self.generation.queued(), lambda: families(self.models)
        )
        self.generation = Generation(self)
        self.shadows, administration = Shadows(self), Administration(self)
        self._readers = ThreadPoolExecutor(2, "jaxops-reader")
        self._hashing = 0
        self._http = require("starlette.exceptions", extra="serve").HTTPException
        self._gone = require("starlette.requests", extra="serve").ClientDisconnect
        self._response = require("starlette.responses", extra="serve").Response
        routing = require("starlette.routing", extra="serve")
        of_model, changed, post = "/v2/models/{model}", "/admin/models/{model}", ["POST"]
        both = (of_model, of_model + "/versions/{version}")
        self._router = routing.Router(
            [
                # first those that ask models, as each request looks for its route from here on
                routing.Route("/models/{model}/predict", self.predict, methods=post),
                *(routing.Route(f"{path}/infer", self.infer, methods=post) for path in both),
                routing.Route("/models/{model}/generate", self.generation.generate, methods=post),
                *(routing.Route(path, site.page) for path in ("/", "/page/{file}")),
                routing.Route("/openapi.json", self.document),
                routing.Route("/metrics", self.metrics),
                routing.Route("/models", self.listed),
                routing.Route("/v2", self.server),
                routing.Route("/v2/health/live", self.live),
                routing.Route("/v2/health/ready", self.ready),
                *(routing.Route(path, self.model) for path in both),
                *(routing.Route(f"{path}/ready", self.ready) for path in both),
                routing.Route(changed, administration.change, methods=post),
                *(
                    routing.Route(path, administration.unload, methods=["DELETE"])
                    for path in (changed, changed + "/versions/{version}")
                ),
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
            handle, role = self._route(scope)
            await self._enter(scope, headers, record, role)
            await handle(scope, receive, sending)
        except self._gone:
            record.status = 499  # also where a part was sent
        except Exception as error:
            if began:
                raise
            response = self._refusal(error, record)
            await response(scope, receive, sending)
        finally:
            self.running -= 1
            self.held -= record.bytes
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

    async def _enter(
        self, scope: Any, headers: Mapping[str, str], record: Record, role: str | None
    ) -> None:
        """Let a request in that has the right key; without keys, one from this machine.

        A page of another site that a browser on this machine shows would name its own host.
        """
        if self.keys is None:
            client = scope.get("client")  # None where there is no network, as of a test
            if client and not is_loopback(client[0]):
                raise Refused(
                    403, "without keys a request must come from this machine, got another"
                )
            host = headers.get("host", "localhost")
            name = host if host.endswith("]") else re.sub(r":\d*$", "", host)
            if not is_loopback(name):
                raise Refused(403, f"without keys the host must be this machine, got {short(host)}")
        elif role is not None:
            await self._known(self.keys, headers.get("authorization"), role, record)
        if role == "predict" and self.running > 2 * self.settings.queue:
            sentence = f"the server must have room, got {self.running} requests that run"
            raise Refused(429, sentence, retry_after=1)

    async def _known(self, keys: Keys, given: str | None, role: str, record: Record) -> None:
        """Find the holder of a key, and whether it may do what needs the role."""
        try:
            holder = keys.known(given) or await self._hashed(keys, given)
            record.key = holder.name
            keys.admit(holder, role)
        except Refused as error:
            if role == "admin":
                self.watch.audit(record, "refused", outcome=str(error))
            raise

    async def _hashed(self, keys: Keys, given: str | None) -> Holder:
        """The holder of a key that is new, which takes its time to be hashed."""
        if self._hashing >= UNKNOWN:
            raise Refused(429, "keys must come one after the other, got many", retry_after=1)
        self._hashing += 1
        try:
            return await asyncio.to_thread(keys.holder, given)
        finally:
            self._hashing -= 1

    def _route(self, scope: Any) -> tuple[Any, str | None]:
        """What handles a request, and the role that it needs, wherever the application is mounted.

        A path with another method, and one that is not there, are for the router to refuse.
        """
        role: str | None = "predict"
        for route in self._router.routes:
            match, found = route.matches(scope)
            if found:
                scope["endpoint"] = found["endpoint"]  # named in the log also where it is refused
                role = ROLES.get(found["endpoint"].__name__, "predict")
            if match.value == FULL:
                scope.update(found)
                return route.handle, role
        return self._router, role

    def _json(self, value: Any, status: int = 200, headers: Any = None) -> Any:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        return self._response(text, status, headers, "application/json")

    def _count_batch(self, batch: list[Waiting]) -> None:
        self.watch.batch(batch[0].key[0].name, sum(one.given.rows for one in batch))

    # what is told

    async def document(self, request: Any) -> Any:
        """The OpenAPI document."""
        current = self.models.current
        versions = {name: self.models.versions(name) for name in current}
        return self._json(openapi.document(current, versions, self.keys is not None))

    async def metrics(self, request: Any) -> Any:
        """The metrics for Prometheus."""
        self.watch.look()
        text, kind = await asyncio.to_thread(self.watch.text)  # it may wait for the device
        return self._response(text, 200, None, kind)

    async def listed(self, request: Any) -> Any:
        """The models, their versions, and the one that answers by default."""
        told = [{"name": name, **self.models.told(name)} for name in self.models.current]
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
        named = {"name": self._served(request).name} if "model" in request.path_params else {}
        ready = not self.draining and self.batcher.works
        return self._json({**named, "ready": ready}, 200 if ready else 503)

    async def model(self, request: Any) -> Any:
        """The tensors of a model."""
        served = self._served(request)
        return self._json({**served.metadata, "versions": self.models.versions(served.name)})

    # what is answered

    async def predict(self, request: Any) -> Any:
        """Raw input to answers with names."""
        served, data = self._served(request), await self._body(request)

        def read(one: Served) -> Given:
            return one.inputs.read(tensors.parsed(data), self.settings.rows)

        slow = len(data) >= LONG or getattr(served.inputs, "slow", False)
        given = await self._read(request, lambda: read(served), slow)
        found = await self._answer(request, (served, "predict"), served.predict, given)
        self._shadow(request, "predict", read, found, len(data))

        def write() -> Any:
            head = {"model": served.name, "version": served.version}
            told = {"warnings": found.warnings} if found.warnings else {}
            answer = {**as_object(found.answer), **given.beside}
            return self._json({**head, "answer": answer, **told})

        return await self._written(found, write)

    async def infer(self, request: Any) -> Any:
        """Tensors to tensors."""
        served, data = self._served(request), await self._body(request)

        def read() -> tuple[tensors.Inference, Given]:
            asked = tensors.read(data, request.headers.get(LENGTH))
            return asked, served.tensors(asked.arrays, self.settings.rows)

        def again(one: Served) -> Given:
            return one.tensors(asked.arrays, self.settings.rows)

        asked, given = await self._read(request, read, len(data) >= LONG)
        found = await self._answer(request, (served, "infer"), served.infer, given, asked.timeout)
        self._shadow(request, "infer", again, found, len(data))
        head: dict[str, Any] = {"model_name": served.name, "model_version": served.version}
        if found.warnings:
            head["parameters"] = {"warnings": "; ".join(found.warnings)}

        def write() -> Any:
            data, length = tensors.write(head, found.answer, asked)
            headers = None if length is None else {"Inference-Header-Content-Length": str(length)}
            kind = "application/json" if length is None else "application/octet-stream"
            return self._response(data, 200, headers, kind)

        return await self._written(found, write)

    def _shadow(
        self, request: Any, method: str, read: Callable[[Served], Given], found: Told, size: int
    ) -> None:
        """Have the shadow of a model asked too, unless the path names a version."""
        if "version" not in request.path_params:
            self.shadows.ask(request.scope["jaxops"], method, read, found.answer, size)

    def _served(self, request: Any) -> Served:
        """The version of a path, or the one that its model has for the request."""
        names, record = request.path_params, request.scope["jaxops"]
        asks = request.method == "POST"  # others are told of the version that answers by default
        served = self.models.get(names["model"], names.get("version"), record.id if asks else None)
        record.model, record.version = served.name, served.version
        return served

    async def _body(self, request: Any) -> bytes:
        """The body of a request that comes in time and is not too long.

        Raises:
            Refused: 503 while the server shuts down, 408, 413, or 429 where those of all requests
                take too much memory.
        """
        if self.draining:
            raise Refused(
                503, "the server must run, got a request while it shuts down", retry_after=1
            )
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refused(415, "the body must not be compressed, got a Content-Encoding")
        most, data, record = self.settings.body, bytearray(), request.scope["jaxops"]
        try:
            async with asyncio.timeout(self._left(request)):
                async for part in request.stream():
                    data += part
                    if len(data) > most:
                        raise Refused(413, f"the body must have at most {most:,} bytes, got more")
                    self.held += len(part)
                    record.bytes += len(part)
                    if self.held > BODIES * most:
                        sentence = f"the server must have room, got {self.held:,} bytes of requests"
                        raise Refused(429, sentence, retry_after=1)
        except TimeoutError:
            raise Refused(408, "the body must come in time, got a part of it") from None
        return bytes(data)

    async def _read(self, request: Any, read: Callable[[], Any], slow: bool) -> Any:
        """What `read` makes of a body, in time; beside the loop where that takes long."""
        if not slow:
            return read()
        running = asyncio.get_running_loop().run_in_executor(self._readers, read)
        try:
            return await asyncio.wait_for(running, self._left(request))
        except TimeoutError:
            seconds = self._timeout(request, None)
            raise Refused(504, f"the answer must come within {seconds:g} s, got none") from None

    async def _written(self, found: Told, write: Callable[[], Any]) -> Any:
        """The response that `write` makes; beside the loop where that takes long."""
        if size(found.answer) < MANY:
            return write()
        return await asyncio.get_running_loop().run_in_executor(self._readers, write)

    async def _answer(
        self, request: Any, key: Any, call: Call, given: Given, timeout: float | None = None
    ) -> Told:
        """The answer that the batcher gives, unless time is over or the client has gone."""
        request.scope["jaxops"].rows = given.rows
        seconds, left = self._timeout(request, timeout), self._left(request, timeout)
        bucket = object() if given.bucket is None else given.bucket
        future = self.batcher.put((*key, bucket), call, given, left)
        gone = asyncio.ensure_future(request.receive())
        gone.add_done_callback(lambda _: future.cancel())
        try:
            async with asyncio.timeout(left):
                found: Told = await future
            return found
        except TimeoutError:
            sentence = f"the answer must come within {seconds:g} s, got none"
            raise Refused(504, sentence) from None
        except asyncio.CancelledError:
            if gone.done():
                raise self._gone from None
            raise
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

    def _left(self, request: Any, asked: float | None = None) -> float:
        """The seconds that are left of those for a request."""
        passed = time.perf_counter() - request.scope["jaxops"].start
        return max(0.0, self._timeout(request, asked) - passed)


def application(
    models: Mapping[str, Model],
    *,
    keys: str | Path | None = None,
    folder: str | Path | None = None,
    settings: Settings | None = None,
    model_key: bytes | str | None = None,
) -> Service:
    """An ASGI application that serves finished models; `jaxops serve` runs it on uvicorn.

    The models are compiled for each power of two of rows up to `batch_size` before it returns.

    Args:
        models: name -> model.
        keys: a file of `jaxops key`; without one, requests must come from this machine and name it
            as their host.
        folder: of model files that an administrator may load.
        settings: limits, by default those of `Settings`.
        model_key: of the files in the folder, if they are encrypted; see `jaxops.load`.

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
    service = Service(settings, held, None if folder is None else Path(folder), model_key)
    for name, model in models.items():
        service.models.add(name, model)
    return service
