"""Text that a language model generates for requests, which come and go while others are written.

A model that writes has a decoder, which its reader makes: `decoder.turn(kept, new)` takes new
prompts into rows that are free, and makes one token of the text in each row. Nothing here knows
more of it. A text is told whole, or by server-sent events while it is made.
"""

import asyncio
import contextlib
import functools
import json
import time
import weakref
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from jaxops.serve.answers import plain
from jaxops.serve.fields import body_schema, is_text, opened_body
from jaxops.serve.inputs import Given
from jaxops.serve.refused import Refused, short
from jaxops.serve.tensors import parsed
from jaxops.serve.watch import SECONDS, Record

INT32 = 2**31 - 1
TOKEN = {"type": "integer", "minimum": 0, "maximum": INT32}
COUNT = {**TOKEN, "minimum": 1}
OPTIONS: dict[str, Any] = {
    "new_tokens": COUNT,
    "temperature": {"type": "number", "minimum": 0},
    "top_k": COUNT,
    "top_p": {"type": "number", "minimum": 0, "maximum": 1},
    "min_p": {"type": "number", "minimum": 0, "maximum": 1},
    "repetition_penalty": {"type": "number", "minimum": 0},
    "stop": {"type": "array", "items": TOKEN, "maxItems": 100},
    "seed": TOKEN,
}
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
GONE, LATE = object(), object()  # in place of a part: the client has gone, time is over


@dataclass(eq=False)
class Text:
    """A text in the making; its parts wait here until they are told."""

    asked: Any
    parts: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)
    gone: bool = False  # nobody waits for it any more


class Writer:
    """A bounded queue, and the texts of one decoder that are made together.

    The decoder has a thread of its own, which does not wait for the clients' tokens to be sent.

    Args:
        decoder: see the module.
        used: the gauge of the rows in use.
    """

    def __init__(self, decoder: Any, used: Any) -> None:
        self.busy = False  # whether turns are being made
        self._decoder, self._used = decoder, used
        self._worker = ThreadPoolExecutor(1, "jaxops-decoder")
        self._waiting: deque[Text] = deque()
        self._running = 0
        self._task: asyncio.Task[None] | None = None

    def put(self, asked: Any, most: int) -> Text:
        """The text of a request; it is made as soon as a row is free.

        Raises:
            Refused: 429 where more than `most` texts would wait.
        """
        waits = self.queued() - (self._decoder.rows - self._running)
        if waits >= most:
            sentence = f"the queue must have room, got {waits} requests that wait"
            raise Refused(429, sentence, retry_after=1)
        text = Text(asked)
        self._waiting.append(text)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return text

    def queued(self) -> int:
        """The number of texts that wait; those whose clients have gone are dropped."""
        self._waiting = deque(text for text in self._waiting if not text.gone)
        return len(self._waiting)

    async def _work(self) -> None:
        """Have turns made until there are no texts."""
        loop, texts = asyncio.get_running_loop(), dict[int, Text]()
        try:
            while True:
                texts = {row: text for row, text in texts.items() if not text.gone}
                free = min(self.queued(), self._decoder.rows - len(texts))
                new = [self._waiting.popleft() for _ in range(free)]
                self._count(len(texts) + len(new))
                if not self._running:
                    return
                try:
                    texts = await loop.run_in_executor(self._worker, self._turns, loop, texts, new)
                except Exception as error:  # of these texts alone
                    for text in (*texts.values(), *new):
                        text.parts.put_nowait(error)
                    texts = {}
        finally:
            self._count(0)

    def _turns(
        self, loop: asyncio.AbstractEventLoop, texts: dict[int, Text], new: list[Text]
    ) -> dict[int, Text]:
        """In the thread of the decoder: turns until a text ends or has gone, or one can come."""
        self.busy = True
        try:
            while True:
                rows, parts = self._decoder.turn([*texts], [text.asked for text in new])
                texts, new = texts | dict(zip(rows, new, strict=True)), []
                loop.call_soon_threadsafe(_put, [(texts[row], parts[row]) for row in parts])
                going = {row: text for row, text in texts.items() if parts[row].end is None}
                comes = self._waiting and len(going) < self._decoder.rows
                if len(going) < len(texts) or comes or any(text.gone for text in going.values()):
                    return going
        finally:
            self.busy = False

    def _count(self, running: int) -> None:
        self._used.inc(running - self._running)
        self._running = running


def _put(parts: list[tuple[Text, Any]]) -> None:
    for text, part in parts:
        text.parts.put_nowait(part)


class Generation:
    """What answers `POST /models/NAME/generate`.

    Args:
        service: the application, whose limits, keys and metrics hold here too.
    """

    def __init__(self, service: Any) -> None:
        self._service = service
        self._writers: weakref.WeakKeyDictionary[Any, Writer] = weakref.WeakKeyDictionary()
        metric = service.watch.metric
        self._tokens = metric("Counter", "jaxops_tokens", "Tokens of generated texts")
        told = "Seconds from a request to the first token"
        self._first = metric("Histogram", "jaxops_first_token_seconds", told, buckets=SECONDS)
        told = "Texts that are being generated"
        self._used = metric("Gauge", "jaxops_slots_used", told, multiprocess_mode="livesum")

    @property
    def busy(self) -> bool:
        """Whether the device makes a token."""
        return any(writer.busy for writer in self._writers.values())

    def queued(self) -> int:
        """The number of requests that wait for a row."""
        return sum(writer.queued() for writer in self._writers.values())

    async def generate(self, request: Any) -> Any:
        """The text that follows a prompt: whole, or by events while it is made."""
        service = self._service
        served = service._served(request)
        given = Given(await service._body(request), 1, {}, None)
        # the tokenizer may warn, which one thread alone can catch
        found = await service._answer(request, (served, "generate"), served.asked, given)
        asked, streams = found.answer
        head = {"model": served.name, "version": served.version}
        told = {"warnings": found.warnings} if found.warnings else {}
        if served not in self._writers:
            used = self._used.labels(served.name)
            self._writers[served] = Writer(served.decoder, used)
        text = self._writers[served].put(asked, service.settings.queue)
        events = self._events(request, text, streams)
        if streams:
            return functools.partial(sent, events, {**head, **told})
        parts = [part async for part in events]
        made = {"tokens": [part["token"] for part in parts[:-1]]}
        answer = {**parts[-1], "text": "".join(part["text"] for part in parts), **made}
        return service._json({**head, "answer": plain(answer), **told})

    async def _events(
        self, request: Any, text: Text, streams: bool
    ) -> AsyncGenerator[dict[str, Any], None]:
        """What is told of a text: each token, and its end.

        Raises:
            Refused: 504 where time is over.
            Exception: of the decoder. A stream that has begun ends instead, and says why.
        """
        service, record = self._service, request.scope["jaxops"]
        put = text.parts.put_nowait
        timer = asyncio.get_running_loop().call_later(service._left(request), put, LATE)
        gone = asyncio.ensure_future(request.receive())
        gone.add_done_callback(lambda _: put(GONE))
        end = {"prompt_tokens": len(text.asked.tokens), "new_tokens": 0, "log_probability": 0.0}
        try:
            while True:
                part = await text.parts.get()
                if part is GONE:
                    raise service._gone
                late = part is LATE
                if late:
                    seconds = service._timeout(request, None)
                    sentence = f"the answer must come within {seconds:g} s, got a part of it"
                    part = Refused(504, sentence)
                if isinstance(part, Exception):
                    if not (streams and record.tokens):
                        raise part
                    if not late:
                        service.watch.failed(record, part)
                    yield {"text": "", "end": "timeout" if late else "error", **end}
                    return
                rest, end["log_probability"] = part.text, part.log_probability
                if part.token is not None:
                    self._count(record)
                    end["new_tokens"] = record.tokens
                    yield {"token": part.token, "text": part.text}
                    rest = ""
                if part.end is not None:
                    yield {"text": rest, "end": part.end, **end}
                    return
        finally:
            text.gone = True
            timer.cancel()
            gone.cancel()

    def _count(self, record: Record) -> None:
        if not record.tokens:
            self._first.labels(record.model).observe(time.perf_counter() - record.start)
        record.tokens += 1
        self._tokens.labels(record.model).inc()


def read(data: bytes) -> tuple[str, dict[str, Any], bool]:
    """The prompt of a body, its options, and whether it asks for events.

    Raises:
        Refused: 400.

    >>> read(b'{"prompt": "to be", "stream": true, "options": {"seed": 3}}')
    ('to be', {'seed': 3}, True)
    """
    body = parsed(data)
    options = opened_body(body, ("prompt", "stream"), OPTIONS)
    prompt, streams = body["prompt"], body.get("stream", False)
    if not isinstance(prompt, str) or not prompt or not is_text(prompt):
        raise Refused(400, f"prompt must be a text that is not empty, got {short(prompt)}")
    if not isinstance(streams, bool):
        raise Refused(400, f"stream must be true or false, got {short(streams)}")
    return prompt, options, streams


def schema() -> dict[str, Any]:
    """The JSON schema of a body."""
    parts = {"prompt": {"type": "string", "minLength": 1}, "stream": {"type": "boolean"}}
    return body_schema(parts, ["prompt"], OPTIONS)


async def sent(
    events: AsyncGenerator[dict[str, Any], None],
    head: dict[str, Any],
    scope: Any,
    receive: Any,
    send: Any,
) -> None:
    """An ASGI response of server-sent events with JSON as data; the last has the head too.

    It begins with the first of them, so that what is refused has a status of its own.
    """
    began = False
    async with contextlib.aclosing(events):
        async for event in events:
            if not began:
                await send({"type": "http.response.start", "status": 200, "headers": EVENTS})
                began = True
            told = plain({**event, **head} if "end" in event else event)
            body = f"data: {json.dumps(told, allow_nan=False)}\n\n".encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
