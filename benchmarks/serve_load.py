"""An open loop of requests over connections that stay open, and the highest rate that holds.

Requests are sent at random times of a given mean rate, whether or not earlier ones are answered,
and a latency counts from the time at which a request was to be sent: a server that falls behind
cannot hide it. Every run is bounded in requests and time, and goes to 127.0.0.1 alone.
"""

import asyncio
import contextlib
import functools
import selectors
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

LATE = 0.02  # seconds that the 99th percentile may take
MOST = 20_000  # requests of one run of a search
WAIT = 5.0  # seconds for the last answers
NEAR = 1.1  # of the highest rate that holds and the lowest that does not
TRIES = 14  # runs of a search


class Connection(asyncio.Protocol):
    """A connection that has one request at a time; `done(connection, place, right)` ends it."""

    def __init__(self, done: Callable[["Connection", int | None, bool], None]) -> None:
        self.done, self.data, self.open = done, bytearray(), True
        self.place: int | None = None
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, place: int, request: bytes) -> None:
        self.place = place
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.place is not None and is_whole(self.data):
            place, right = self.place, self.data[8:13] == b" 200 "
            self.place, self.data = None, bytearray()
            self.done(self, place, right)

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        self.done(self, self.place, False)


def is_whole(data: bytes | bytearray) -> bool:
    r"""Whether the bytes of an answer have come, by its length or by its last chunk.

    >>> is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\no")
    False
    >>> is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    True
    >>> tensors = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 1\r\nContent-Length: 2"
    >>> is_whole(tensors + b"\r\n\r\no")
    False
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    length = data[:end].lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
    if length:
        return len(data) >= end + 4 + int(length)
    return data.endswith(b"\r\n0\r\n\r\n")


class Load:
    """One run: which requests wait for a connection, and the latency of those that are answered."""

    def __init__(self, requests: Sequence[bytes], intended: np.ndarray, late: float) -> None:
        self.requests, self.intended, self.late = requests, intended, late
        self.latency = np.full(len(intended), np.inf)
        self.free: deque[Connection] = deque()  # in turns, so that none is idle for long
        self.waiting: deque[int] = deque()
        self.held: list[Connection] = []
        self.opening: set[asyncio.Future[None]] = set()
        self.left, self.bad, self.start = len(intended), 0, time.perf_counter()
        self.ended = asyncio.Event()

    def done(self, connection: Connection, place: int | None, right: bool) -> None:
        """A request is answered, or its connection is lost; the next one that waits is sent."""
        if place is not None:
            seconds = time.perf_counter() - self.start - self.intended[place]
            if right:
                self.latency[place] = seconds
            self.bad += not right or seconds > self.late
            self.left -= 1
            if self.left == 0:
                self.ended.set()
        if not connection.open:
            self.free = deque(one for one in self.free if one is not connection)
            self.opening.add(asyncio.ensure_future(self._reopen()))
        elif self.waiting:
            self._send(connection, self.waiting.popleft())
        else:
            self.free.append(connection)

    async def _open(self) -> None:
        make = functools.partial(Connection, self.done)
        loop = asyncio.get_running_loop()
        connection = (await loop.create_connection(make, "127.0.0.1", self.port))[1]
        self.held.append(connection)
        self.done(connection, None, True)

    async def _reopen(self) -> None:
        """Open a connection in place of one that is lost, unless the server is gone."""
        with contextlib.suppress(OSError):
            await self._open()

    def _send(self, connection: Connection, place: int) -> None:
        connection.send(place, self.requests[place % len(self.requests)])

    async def run(self, port: int, connections: int, most_bad: float) -> np.ndarray:
        """The latencies; infinite of what was not answered, or not sent as too many were late."""
        self.port = port
        for _ in range(min(connections, len(self.intended))):
            await self._open()
        self.start = time.perf_counter()
        for place, moment in enumerate(self.intended):
            if self.bad > most_bad:
                break
            wait = self.start + moment - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            if self.free:
                self._send(self.free.popleft(), place)
            else:
                self.waiting.append(place)
        if self.left and self.bad <= most_bad:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), WAIT)
        for opening in self.opening:
            opening.cancel()
        for one in self.held:
            one.done = lambda *_: None
            one.transport.close()
        return self.latency


async def load(
    port: int,
    requests: Sequence[bytes],
    rate: float,
    *,
    seconds: float,
    connections: int = 64,
    seed: int = 0,
    most: int = MOST,
    give_up: float = 1.0,
) -> np.ndarray:
    """The latency of each request in seconds; infinite where the status is not 200.

    Args:
        port: of this machine.
        requests: that are sent in turns.
        rate: requests a second, on average.
        seconds: how long they are sent.
        connections: that are kept open.
        seed: of the times.
        most: requests.
        give_up: the share of late or wrong answers at which no more requests are sent.
    """
    count = max(1, min(most, int(rate * seconds)))
    intended = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    return await Load(requests, intended, LATE).run(port, connections, give_up * count)


def run(loading: Any) -> Any:
    """Run a coroutine on a loop whose timers are exact: those of epoll are whole milliseconds."""

    def make() -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    with asyncio.Runner(loop_factory=make) as runner:
        return runner.run(loading)


class Try(NamedTuple):
    """One run at a rate.

    Attributes:
        rate: requests a second.
        p50, p99, p999: quantiles of the latency, in seconds.
        wrong: requests without an answer 200.
        cpu: CPU seconds of the server for each request; None where the system does not tell.
    """

    rate: float
    p50: float
    p99: float
    p999: float
    wrong: int
    cpu: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the rate is held: 99 of 100 answers in time, and none wrong."""
        return self.p99 <= LATE and self.wrong == 0


def tried(rate: float, latency: np.ndarray, cpu: float | None = None) -> Try:
    """The quantiles of the latencies of a run.

    >>> tried(10.0, np.array([0.001] * 99 + [np.inf])).wrong
    1
    """
    p50, p99, p999 = np.quantile(latency, [0.5, 0.99, 0.999], method="higher")
    each = None if cpu is None else cpu / max(1, int(np.isfinite(latency).sum()))
    return Try(rate, float(p50), float(p99), float(p999), int(np.isinf(latency).sum()), each)


def highest(
    attempt: Callable[[float], Try], start: float, low: float, high: float, factor: float = 2.0
) -> Try | None:
    """The run at the highest rate that holds; None where not even `low` does.

    The rate is raised, or lowered, by `factor` until it is between one that holds and one that does
    not, which are then brought together. A rate that narrowly fails gets a second run.

    Args:
        attempt: rate -> run.
        start: the first rate.
        low: the lowest rate.
        high: the highest rate.
        factor: above 1.

    >>> found = highest(lambda rate: Try(rate, 0, 0 if rate < 700 else 9, 0, 0), 100, 50, 9000)
    >>> 630 < found.rate < 700
    True
    """
    best: Try | None = None
    above, rate = high * NEAR, start
    for _ in range(TRIES):
        found = attempt(rate)
        if not found.holds and found.p99 < 3 * LATE:
            found = attempt(rate)
        if found.holds:
            best = found
        else:
            above = min(above, rate)
        below = low if best is None else best.rate
        if above / below <= NEAR or below >= high:
            break
        if best is None:
            rate = max(low, rate / factor)
        elif above > high:
            rate = min(high, rate * factor)
        else:
            rate = (below * above) ** 0.5
    return best
