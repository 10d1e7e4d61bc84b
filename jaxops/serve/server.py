"""An application on uvicorn: where it may listen, and how it ends."""

import asyncio
import contextlib
import functools
import logging
import math
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxops._optional import require
from jaxops.serve.access import is_loopback
from jaxops.serve.app import Service
from jaxops.serve.sketching import Shared, Snapshots
from jaxops.serve.watch import LOG, SHARED

GRACE = 30.0  # seconds for requests that are running at the end
LAST = 2.0  # seconds after them, for the device
TICK = 0.05  # seconds between two looks at what the server does
TELL = 2.0  # seconds after which a worker tells the others what it has counted


def run(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 8000,
    certificate: str | Path | None = None,
    certificate_key: str | Path | None = None,
    sketches: str | Path | None = None,
    interval: float = 60.0,
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Then new requests are refused with 503 until those that are running have their answers, for 30
    seconds at most. The process ends with exit code 1 where the device has no answer soon after, or
    at once by a second signal. Lines of JSON go to stderr.

    Args:
        service: of `application`.
        host: the address to listen on; beyond this machine it needs keys.
        port: to listen on; 0 takes one that is free.
        certificate: a file of PEM, for HTTPS.
        certificate_key: the file of its key.
        sketches: a folder for the sketches of what models with a reference were given, see
            `monitor.read_snapshots`; several servers may share one.
        interval: seconds between two sketches of a model.

    Raises:
        ValueError: an address beyond this machine without keys, files that are no certificate and
            its key, or an interval that is not positive.
        OSError: a folder of sketches that cannot be made.

    >>> from jaxops import serve
    >>> serve.run(serve.Service(serve.Settings(), None, None), host="0.0.0.0")
    Traceback (most recent call last):
    ValueError: keys must be given to listen on 0.0.0.0, got none
    """
    listen(service, host, port, certificate, certificate_key, sketches, interval)


def listen(
    service: Service,
    host: str,
    port: int,
    certificate: str | Path | None,
    certificate_key: str | Path | None,
    sketches: str | Path | None,
    interval: float,
    sockets: list[socket.socket] | None = None,
    ready: Callable[[socket.socket], None] | None = None,
) -> None:
    """See `run`.

    Args:
        service: what `run` takes, as the next ones.
        host: the address.
        port: the port.
        certificate: a file of PEM.
        certificate_key: the file of its key.
        sketches: a folder.
        interval: seconds.
        sockets: to listen on instead, which other processes may have too.
        ready: called with a socket as soon as the server listens; by default its address is
            printed.
    """
    check_host(host, service.keys)
    check_certificate(certificate, certificate_key)
    uvicorn = require("uvicorn", extra="serve")
    log_to_stderr()
    config = uvicorn.Config(
        service,
        host=host,
        port=port,
        access_log=False,
        limit_concurrency=64 + 4 * service.settings.queue,  # connections
        log_level="warning",
        server_header=False,
        ssl_certfile=certificate,
        ssl_keyfile=certificate_key,
    )
    server = uvicorn.Server(config)

    end = threading.Timer(GRACE + LAST, os._exit, (1,))  # no thread of the device can be stopped
    end.daemon = True

    def on_signal(*_: Any) -> None:
        if service.draining:
            os._exit(1)
        service.draining = True
        end.start()

    async def serve() -> None:
        server.handle_exit = on_signal
        tasks = serving, _ = [*map(asyncio.create_task, (server.serve(sockets), _share(service)))]
        told, until = False, math.inf
        while not serving.done():
            if server.started and not told:
                (ready or tell)(server.servers[0].sockets[0])
                told = True
            if service.draining:
                until = min(until, time.monotonic() + GRACE)
                left = until - time.monotonic()
                config.timeout_graceful_shutdown = max(TICK, left)
                server.should_exit |= not service.running or left < 0
            if sockets:
                service.watch.look()  # another process may be asked for the metrics
            await asyncio.wait(tasks, timeout=TICK)
        await serving

    loop = asyncio.Runner(loop_factory=config.get_loop_factory())  # uvloop's, if it is installed
    with _sketching(service, sketches, interval), loop:
        loop.run(serve())
    if not (service.batcher.busy or service.generation.busy):
        end.cancel()


async def _share(service: Service) -> None:
    """Keep writing what this process has counted, if it is one of several workers."""
    shared = Shared(service.models) if SHARED in os.environ else None
    while shared is not None:
        try:
            await asyncio.to_thread(shared.write)
        except OSError as error:
            service.watch.unwritten(error)
        await asyncio.sleep(TELL)


@functools.cache
def log_to_stderr() -> None:
    """Write the lines of the log to stderr; once, however many servers a process runs."""
    LOG.addHandler(logging.StreamHandler(sys.stderr))
    LOG.setLevel(logging.INFO)


@contextlib.contextmanager
def _sketching(service: Service, folder: str | Path | None, interval: float) -> Iterator[None]:
    """Sketches are written to a folder, if there is one, at intervals and at the end."""
    if not 0 < interval < math.inf:
        raise ValueError(f"interval must be above 0 seconds, got {interval}")
    if folder is None:
        yield
        return
    writer = Snapshots(service.models, Path(folder), interval, service.watch.unwritten)
    writer.start()
    try:
        yield
    finally:
        writer.close()


def check_host(host: str, keys: Any) -> None:
    """Raise `ValueError` for an address beyond this machine without keys."""
    if keys is None and not is_loopback(host):
        raise ValueError(f"keys must be given to listen on {host}, got none")


def check_certificate(certificate: str | Path | None, key: str | Path | None) -> None:
    """Raise `ValueError` for files that are no certificate and its key, or a key alone."""
    if certificate is None:
        if key is not None:
            raise ValueError(f"certificate must be given with certificate_key, {key}, got None")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # also one of SSL
        raise ValueError(
            f"certificate and certificate_key must be files of PEM that belong together, got "
            f"{certificate} and {key}: {error}"
        ) from error


def tell(listening: socket.socket) -> None:
    """Print where a server listens."""
    host, port = listening.getsockname()[:2]
    print(f"serving on {host} port {port}", flush=True)
