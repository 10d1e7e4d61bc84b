"""Workers: processes that answer commands; and the load of the machine's other processes."""

import contextlib
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


def asked(command: list[str]) -> dict[str, Any]:
    """What a process that runs a command prints as JSON in its last line.

    Raises:
        RuntimeError: it ended with an error.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


class WorkerError(RuntimeError):
    """A worker could not do what it was asked; the message ends with its own traceback."""


class Worker:
    """One form of one side, in a process of its own.

    Args:
        side: "jaxops" or "torch".
        form: of that side.
        folder: what the sides share; caches of compiled programs are kept in it.
        python: the interpreter.
    """

    def __init__(self, side: str, form: str, folder: Path, python: str) -> None:
        self.name, self.folder, self.python = f"{side} {form}", folder, python
        self.log = folder / f"{side}-{form}.log".replace(" ", "-")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "JAX_COMPILATION_CACHE_DIR": str(folder / f"jax-{form}".replace(" ", "-")),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.2",  # of a GPU, which several workers share
            # g++ is called with unquoted paths: no blanks
            "TORCHINDUCTOR_CACHE_DIR": str(folder / f"inductor-{form}".replace(" ", "-")),
        }
        command = [python, "-m", "benchmarks.worker", side, form, str(folder), str(time.time())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                env=environment, text=True,
            )  # fmt: skip

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Ask, and wait for the answer.

        Raises:
            WorkerError: with the worker's traceback, or the end of its log where it died.
        """
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise WorkerError(f"{self.name}: died of {do!r}:\n{tail}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.name}: {do!r} failed:\n{answer['error']}")
        return answer["ok"]

    def close(self) -> None:
        """End it: its input ends, and so does its loop."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):  # it died with a command unread
                    pipe.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Others:
    """The share of this machine that processes other than a worker used since the last look."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.before = self._ticks()

    def _ticks(self) -> tuple[float, float, float] | None:
        """All ticks, the busy ones, and the worker's own; Linux tells them."""
        try:
            total = [float(n) for n in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
            own = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        idle = total[3] + total[4]
        return sum(total), sum(total) - idle, float(own[11]) + float(own[12])

    def share(self) -> float | None:
        """From 0 to 1; `None` where the system does not tell."""
        after = self._ticks()
        if after is None or self.before is None or after[0] <= self.before[0]:
            return None
        all_, busy, own = (b - a for a, b in zip(self.before, after, strict=True))
        return max(0.0, busy - own) / all_
