"""Requests that wait for the device, and those of one bucket that are answered together."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from jaxops.serve.inputs import Given
from jaxops.serve.refused import Refused

Call = Callable[[Sequence[Given]], list[Any]]
"""What answers several requests of one bucket together, in order."""


@dataclass(eq=False)
class Waiting:
    """A request in the queue: those with an equal key may be answered together."""

    key: Any
    call: Call
    given: Given
    future: asyncio.Future[Any]
    arrived: float
    end: float


class Batcher:
    """A bounded queue, and one thread that answers from it: the oldest request first.

    A request waits at most `delay` for others of its bucket, or until they have `batch_size` rows;
    while the device is busy more of them come together by themselves.

    Args:
        batch_size: the most rows that are joined; a request of more rows is answered alone.
        delay: seconds.
        queue: the most requests that wait.
        on_batch: called with the requests of each batch, in the thread of the loop.

    >>> async def both():
    ...     batcher = Batcher(batch_size=8, delay=0.01, queue=8)
    ...     given = [Given([text], 1, {}, "texts") for text in ("a", "b")]
    ...     call = lambda parts: [f"{part.data[0]} of {len(parts)}" for part in parts]
    ...     return await asyncio.gather(*(batcher.put("key", call, one, 1.0) for one in given))
    >>> asyncio.run(both())
    ['a of 2', 'b of 2']
    """

    def __init__(
        self,
        batch_size: int,
        delay: float,
        queue: int,
        on_batch: Callable[[list[Waiting]], None] = lambda batch: None,
    ) -> None:
        self.waiting: deque[Waiting] = deque()
        self._most, self._delay, self._queue = batch_size, delay, queue
        self._on_batch = on_batch
        self._worker = ThreadPoolExecutor(1, "jaxops-device")
        self._loop: Any = None
        self.busy = 0  # batches that the device answers, with that of a shadow

    def put(self, key: Hashable, call: Call, given: Given, timeout: float) -> "asyncio.Future[Any]":
        """The future of the answer to a request; who cancels it takes the request back.

        Raises:
            Refused: 429 where the queue is full; the future, 504 where the time is over.
        """
        if (queued := self.queued()) >= self._queue:
            sentence = f"the queue must have room, got {queued} requests that wait"
            raise Refused(429, sentence, retry_after=1)
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the first request, or a loop after another
            self._loop, self._arrived = loop, asyncio.Event()
            self.waiting.clear()
            self.busy = 0
            self._task = loop.create_task(self._work())
        now = time.monotonic()
        future: asyncio.Future[Any] = loop.create_future()
        self.waiting.append(Waiting(key, call, given, future, now, now + timeout))
        self._arrived.set()
        return future

    def queued(self) -> int:
        """The number of requests that wait; those whose clients have gone are dropped."""
        self.waiting = deque(one for one in self.waiting if not one.future.done())
        return len(self.waiting)

    @property
    def works(self) -> bool:
        """Whether requests of the running loop get their turns."""
        return self._loop is not asyncio.get_running_loop() or not self._task.done()

    async def _work(self) -> None:
        while True:
            while not self.queued():
                self._arrived.clear()
                await self._arrived.wait()
            await self._gather(self.waiting[0])
            batch = self._take()
            if batch:
                self.busy += 1
                parts = [one.given for one in batch]
                try:
                    self._on_batch(batch)
                    found = await self._loop.run_in_executor(
                        self._worker, answers, batch[0].call, parts
                    )
                    for one, answer in zip(batch, found, strict=True):
                        _answer(one.future, answer)
                except Exception as error:  # of this batch alone: the next ones get their turns
                    for one in batch:
                        _answer(one.future, error)
                self.busy -= 1

    async def idle(self, call: Callable[[], Any], pause: float) -> Any:
        """What a call returns that nobody waits for: it has its turn when no request has one.

        A request that comes meanwhile waits for this one call at most.

        Args:
            call: without arguments.
            pause: seconds between two looks.
        """
        while self.busy or self.queued():
            await asyncio.sleep(pause)
        self.busy += 1
        found = asyncio.get_running_loop().run_in_executor(self._worker, call)
        await asyncio.wait((found,))
        self.busy -= 1  # not if this is cancelled, as the device is busy then
        return found.result()

    async def _gather(self, first: Waiting) -> None:
        """Wait until the first request's batch is full, or its delay is over."""
        while (left := first.arrived + self._delay - time.monotonic()) > 0:
            if sum(one.given.rows for one in self.waiting if one.key == first.key) >= self._most:
                return
            self._arrived.clear()
            try:
                async with asyncio.timeout(left):  # which needs no task of its own
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _take(self) -> list[Waiting]:
        """The oldest request and those that join it; the others stay, in order."""
        batch: list[Waiting] = []
        rows, now, left = 0, time.monotonic(), deque[Waiting]()
        for one in self.waiting:
            if one.future.done():  # its client has gone
                continue
            if one.end < now:
                _answer(one.future, Refused(504, "the answer must come in time, got no turn"))
            elif not batch or (one.key == batch[0].key and rows + one.given.rows <= self._most):
                batch.append(one)
                rows += one.given.rows
            else:
                left.append(one)
        self.waiting = left
        return batch


def _answer(future: "asyncio.Future[Any]", answer: Any) -> None:
    if not future.done():
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


def answers(call: Call, parts: Sequence[Given]) -> list[Any]:
    """The answer to each request, or the exception that answers it.

    Where a batch fails its halves are tried, so that a wrong request harms no other.
    """
    try:
        return call(parts)
    except Exception as error:
        if len(parts) == 1:
            return [error]
        half = len(parts) // 2
        return [*answers(call, parts[:half]), *answers(call, parts[half:])]
