"""An application on uvicorn: where it may listen, and how it ends."""

import asyncio
import logging
import math
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from jaxops._optional import require
from jaxops.serve.access import is_loopback
from jaxops.serve.app import Service

GRACE = 30.0  # seconds for requests that are running at the end
LAST = 2.0  # seconds after them, for the device
TICK = 0.05  # seconds between two looks at what the server does


def run(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 8000,
    certificate: str | Path | None = None,
    certificate_key: str | Path | None = None,
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

    Raises:
        ValueError: an address beyond this machine without keys.

    >>> from jaxops import serve
    >>> serve.run(serve.Service(serve.Settings(), None, None), host="0.0.0.0")
    Traceback (most recent call last):
    ValueError: keys must be given to listen on 0.0.0.0, got none
    """
    check_host(host, service.keys)
    uvicorn = require("uvicorn", extra="serve")
    handler = logging.StreamHandler(sys.stderr)
    log = logging.getLogger("jaxops.serve")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
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
        serving, told, until = asyncio.create_task(server.serve()), False, math.inf
        while not serving.done():
            if server.started and not told:
                told = _tell(server)
            if service.draining:
                until = min(until, time.monotonic() + GRACE)
                left = until - time.monotonic()
                config.timeout_graceful_shutdown = max(TICK, left)
                server.should_exit |= not service.running or left < 0
            await asyncio.wait((serving,), timeout=TICK)
        await serving

    asyncio.run(serve())
    if not (service.batcher.busy or service.generation.busy):
        end.cancel()


def check_host(host: str, keys: Any) -> None:
    """Raise `ValueError` for an address beyond this machine without keys."""
    if keys is None and not is_loopback(host):
        raise ValueError(f"keys must be given to listen on {host}, got none")


def _tell(server: Any) -> bool:
    """Print where the server listens."""
    host, port = server.servers[0].sockets[0].getsockname()[:2]
    print(f"serving on {host} port {port}", flush=True)
    return True
