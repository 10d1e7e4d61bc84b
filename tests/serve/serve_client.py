"""Two small models that are trained once a process, and a client by hand on the ASGI protocol."""

import asyncio
import functools
import json
from typing import Any, NamedTuple

import numpy as np

from jaxops import serve, tabular, text

RATE = (np.arange(60.0) % 37 + 20) / 1000
TABLE = {
    "rate": np.where(RATE > 0.05, np.nan, RATE),
    "plan": np.array(["basic", "plus", "gold"], object)[np.arange(60) % 3],
    "left": np.where(RATE < 0.035, "yes", "no"),
}
TEXTS = {"text": ["my card is lost", "a new pin", "the card fell"] * 8,
         "label": ["card", "pin", "card"] * 8}  # fmt: skip
SETTINGS = serve.Settings(batch_size=8, delay=0.02, queue=64, timeout=20.0, rows=100, body=50_000)


@functools.cache
def churn(seed=0):
    method = tabular.MLP((4,))
    return tabular.fit(TABLE, method, label="left", epochs=2, seed=seed, progress=False)


@functools.cache
def router():
    method = text.NGramBag(128, 2, width=4)
    return text.fit(TEXTS, method, epochs=2, validation=0.25, progress=False)


@functools.cache
def app():
    """Both models, without keys; tests that change an application make their own."""
    return serve.application({"churn": churn(), "router": router()}, settings=SETTINGS)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]


async def ask(
    app,
    method,
    path,
    body=None,
    gone=None,
    parts=1,
    root_path="",
    client="127.0.0.1",
    told=None,
    **headers,
):
    """One request; `gone` is an event on which the client goes away, `told` gets the messages."""
    path, _, query = path.partition("?")
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    sent, gone = iter(_parts(data, parts)), gone or asyncio.Event()
    told = [] if told is None else told

    async def receive():
        part = next(sent, None)
        if part is not None:
            return part
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        told.append(message)

    named = [(k.replace("_", "-").encode(), str(v).encode("latin-1")) for k, v in headers.items()]
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": root_path,
        "headers": named,
        "client": (client, 1),
        "server": ("127.0.0.1", 80),
    }
    await app(scope, receive, send)
    if not told:
        return None
    start, *rest = told
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, b"".join(one.get("body", b"") for one in rest))


def _parts(data, count):
    size = -(-len(data) // count) or 1
    pieces = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
    for place, piece in enumerate(pieces):
        yield {"type": "http.request", "body": piece, "more_body": place < len(pieces) - 1}


def get(app, path, **headers):
    return asyncio.run(ask(app, "GET", path, **headers))


def post(app, path, body, **headers):
    return asyncio.run(ask(app, "POST", path, body, **headers))


def together(app, *requests):
    """The answers to requests (path, body), sent at once."""

    async def all_of_them():
        return await asyncio.gather(*(ask(app, "POST", path, body) for path, body in requests))

    return asyncio.run(all_of_them())
