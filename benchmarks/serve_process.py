"""A server as a process of its own: started, asked until it answers, watched, ended."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.process import ROOT

START = 180.0  # seconds in which a server must answer
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class ServerError(RuntimeError):
    """A server did not start, or answers otherwise than it should; the message says how."""


class Server:
    """`with Server(command, log) as server:` is a process on a port of this machine, `server.port`.

    Args:
        command: in which "PORT" stands for a free port.
        log: where its output goes.
        environment: what is added to that of this process.
    """

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [str(self.port) if word == "PORT" else word for word in command]
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT,
                env={**os.environ, "PYTHONPATH": path, **(environment or {})},
                start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # the rest of its processes
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answer(self, request: bytes) -> tuple[http.client.HTTPMessage, bytes]:
        """The headers and the body of the answer to a request, which must be 200.

        Raises:
            ServerError: another status.
            OSError: no answer.
        """
        with socket.create_connection(("127.0.0.1", self.port), 20) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            body = response.read()
        if response.status != 200:
            raise ServerError(f"status {response.status}: {body[:200].decode(errors='replace')}")
        return response.headers, body

    def wait(self, request: bytes, seconds: float = START) -> None:
        """Ask until there is an answer.

        Raises:
            ServerError: the process has ended, or the time is over.
        """
        end, last = time.monotonic() + seconds, "no answer"
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise ServerError(f"ended with {self.process.returncode}: {self._said()}")
            try:
                self.answer(request)
                return
            except (OSError, http.client.HTTPException):
                pass
            except ServerError as error:  # such as 503 while it loads
                last = str(error)
            time.sleep(0.2)
        raise ServerError(f"{last} within {seconds:g} s: {self._said()}")

    def _said(self) -> str:
        """The last line of its output that has a letter."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.strip()[-300:] for line in reversed(lines) if line.strip()), "nothing")

    def used(self) -> tuple[float | None, int | None]:
        """The CPU seconds so far of its processes, and the bytes they hold; None where not told."""
        return used(self.process.pid)


def used(session: int) -> tuple[float | None, int | None]:
    """The CPU seconds and resident bytes of the processes of a session, as Linux tells them.

    Memory that processes share counts once for each.
    """
    ticks, pages, found = 0, 0, False
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found = True
                ticks += int(fields[11]) + int(fields[12])
                pages += int(fields[21])
    return (ticks / TICKS, pages * PAGE) if found else (None, None)
