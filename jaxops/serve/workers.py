"""Several processes that answer on one port, and what starts them anew."""

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from jaxops._optional import require
from jaxops.serve.access import Keys
from jaxops.serve.app import Service
from jaxops.serve.server import listen, log_to_stderr, tell
from jaxops.serve.watch import LOG, SHARED, line

File = str | Path | None
LOOK = 0.1  # seconds between two looks at whether a signal came
PAUSE = 1.0  # seconds before a worker that could not start is started again


def run_workers(
    make: Callable[[], Service],
    workers: int,
    host: str = "127.0.0.1",
    port: int = 8000,
    certificate: str | Path | None = None,
    certificate_key: str | Path | None = None,
    sketches: str | Path | None = None,
    interval: float = 60.0,
) -> None:
    """Serve by several processes on one port until SIGTERM or Ctrl-C; see `run`.

    They wait for connections at one socket. A process that ends is started again, and the
    connections that it had not accepted go to the others. Each process loads and compiles the
    models, and has a queue and limits of its own; `/metrics` tells of all of them. Models cannot be
    changed while they are served.

    Args:
        make: a function at the top level of a module, or a `functools.partial` of one, that makes
            what a worker serves. The workers import the main program's file, which must therefore
            call this function only below `if __name__ == "__main__"`.
        workers: the number of processes.
        host: see `run`.
        port: see `run`.
        certificate: see `run`.
        certificate_key: see `run`.
        sketches: see `run`; each process writes its own.
        interval: see `run`.

    Raises:
        ValueError: fewer than 2 workers; or what a worker raised at the start, as for an address
            beyond this machine without keys or for a key with a quota, which each process would
            count for itself.

    >>> run_workers(Service, workers=1)
    Traceback (most recent call last):
    ValueError: workers must be at least 2, got 1
    """
    if workers < 2:
        raise ValueError(f"workers must be at least 2, got {workers}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    log_to_stderr()
    with tempfile.TemporaryDirectory() as folder, socket.socket(family) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))  # the workers listen
        before = os.environ.get(SHARED)
        os.environ[SHARED] = folder
        try:
            options = host, port, certificate, certificate_key, sketches, interval
            _Workers(workers, (make, workers, listening, options)).run(listening)
        finally:
            os.environ.pop(SHARED)
            if before is not None:
                os.environ[SHARED] = before


class _Worker:
    """A process, and what it says of its start: None when it listens, or why it cannot."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        context = multiprocessing.get_context("spawn")  # JAX has threads, which forks would lose
        self.said, saying = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(saying, *arguments))
        self.process.start()
        saying.close()
        self.serves = False
        self.error = ""

    def look(self) -> None:
        """Read what the process has said."""
        with contextlib.suppress(EOFError):  # it has ended
            while self.said.poll():
                self.error = self.said.recv() or ""
                if not self.error:
                    self.serves = True
                    LOG.info(line(act="a worker serves", worker=self.process.pid))


class _Workers:
    """The processes that run, and what is done when one of them ends."""

    def __init__(self, count: int, arguments: tuple[Any, ...]) -> None:
        self._arguments = arguments
        self._signals, self._sent, self._failed = 0, 0, False
        self._before = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        self._running = [_Worker(arguments) for _ in range(count)]

    def _on_signal(self, *_: Any) -> None:
        self._signals += 1

    def run(self, listening: socket.socket) -> None:
        """Until the last process has ended."""
        told = False
        try:
            while self._running:
                wait([one.process.sentinel for one in self._running], LOOK)
                for one in self._running:
                    one.look()
                while self._sent < self._signals:
                    self._sent += 1
                    listening.close()
                    for one in self._running:
                        one.process.terminate()
                if not told and all(one.serves for one in self._running):
                    tell(listening)
                    told = True
                for one in [one for one in self._running if one.process.exitcode is not None]:
                    self._ended(one, told)
        finally:
            for one in self._running:
                one.process.kill()
                one.process.join()
            for number, handler in self._before.items():
                signal.signal(number, handler)
        if self._failed:
            sys.exit(1)

    def _ended(self, one: _Worker, told: bool) -> None:
        """Start a process anew, unless all are to end."""
        self._running.remove(one)
        pid, code = one.process.pid, one.process.exitcode
        require("prometheus_client.multiprocess", extra="serve").mark_process_dead(pid)
        if self._signals:
            self._failed |= one.serves and code != 0
            return
        if not told:
            raise ValueError(one.error or f"a worker must start, got its end with exit code {code}")
        LOG.error(line(act="start a worker again", worker=pid, exit_code=code, error=one.error))
        if not one.serves:
            time.sleep(PAUSE)
        self._running.append(_Worker(self._arguments))


def _work(
    saying: Connection,
    make: Callable[[], Service],
    workers: int,
    listening: socket.socket,
    options: tuple[str, int, File, File, File, float],
) -> None:
    """What a process does."""
    os.setpgrp()  # Ctrl-C is for the process that started this one, which passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        service = make()
        check_quotas(service.keys)
        service.workers = workers
        listen(service, *options, sockets=[listening], ready=lambda _: saying.send(None))
    except Exception as error:
        saying.send(str(error) or type(error).__name__)
        sys.exit(1)


def check_quotas(keys: Keys | None) -> None:
    """Raise `ValueError` for keys with a quota, of which each worker would count for itself."""
    limited = [] if keys is None else keys.limited
    if limited:
        sentence = "keys must have no quota with several workers, which would count apart"
        raise ValueError(f"{sentence}, got that of {limited[0]}")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
