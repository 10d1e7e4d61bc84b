"""The highest rate of `jaxops serve` with p99 under 20 ms, beside four servers of PyTorch.

    python -m benchmarks.serve [--cases C01 TabM] [--peers-python PEERS/bin/python]
    python -m benchmarks.serve --cases C01 --soak 600 --soak-rate 1000

The peers serve the same network with the same weights: a FastAPI route by hand, LitServe and
BentoML with their batching, and MLflow's pyfunc server. They run by an interpreter of their own:

    python3.11 -m venv PEERS
    PEERS/bin/pip install torch tabm "uvicorn[standard]" fastapi orjson litserve bentoml mlflow

Answers are compared first. Then the servers take turns, one of them running at a time, and for each
the highest rate is searched that an open loop of requests of one row holds: 99 of 100 answers
within 20 ms of the time at which the request was to be sent, and none wrong. The process that sends
needs a core for itself. A server that does not start is a row that says why. With `--soak` jaxops
alone is asked for so many seconds, at 70 % of a rate.
"""

import functools
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import serve_cases, serve_load
from benchmarks.serve_cases import CASES, Body, Case
from benchmarks.serve_load import Try
from benchmarks.serve_process import Server, ServerError
from jaxops._table import table

SHARE = 0.7  # of the rate, in a soak
Peer = Literal["fastapi", "litserve", "bentoml", "mlflow"]


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    cases: tuple[Literal["C01", "TabM", "SASRec", "text"], ...] = ("C01", "TabM", "SASRec", "text")
    peers: tuple[Peer, ...] = ("fastapi", "litserve", "bentoml", "mlflow")
    peers_python: str = ""
    """interpreter of the peers; without one jaxops is measured alone"""
    rounds: int = 2
    """turns of each server; the rate is the median"""
    seconds: float = 4.0
    """of each run of a search, of which a server has about 8 a round"""
    first: float = 200
    """requests a second of the first run"""
    lowest: float = 25
    highest: float = 10_000
    connections: int = 64
    """that are kept open"""
    soak: float = 0
    """seconds; jaxops alone, one case"""
    soak_rate: float = 0
    """requests a second, of which a soak sends 70 %"""
    seed: int = 0
    """of the times"""

    def __post_init__(self) -> None:
        if (self.soak > 0) != (self.soak_rate > 0) or (self.soak and len(self.cases) > 1):
            raise ValueError(
                f"soak must come with soak_rate and one case, got {self.soak:g}, "
                f"{self.soak_rate:g} and {', '.join(self.cases)}"
            )


def command(server: str, case: Case, folder: Path, python: str) -> list[str]:
    """The command of a server; "PORT" stands for its port."""
    if server == "jaxops":
        file = str(folder / f"{case.name}.safetensors")
        return [sys.executable, "-m", "jaxops", "serve", file, "--port", "PORT"]
    return [python, "-m", "benchmarks.serve_peers", server, case.name, str(folder), "PORT"]


def compared(server: Server, body: Body, wanted: Sequence[Any]) -> float:
    """The largest difference of a server's answers to those of `Model.predict`.

    Raises:
        ServerError: it is too large.
    """
    found = [body.read(*server.answer(request)) for request in body.requests]
    largest = max(map(serve_cases.difference, wanted, found))
    if not largest <= serve_cases.TOLERANCE:
        raise ServerError(f"answers differ by {largest:.2g} from those of jaxops")
    return largest


def attempt(server: Server, body: Body, rate: float, settings: Settings) -> Try:
    """One run at a rate, with the CPU time that the server took for a request."""
    before, _ = server.used()
    latency = serve_load.run(
        serve_load.load(
            server.port, body.requests, rate, seconds=settings.seconds, seed=settings.seed,
            connections=settings.connections, give_up=0.05,
        )
    )  # fmt: skip
    after, _ = server.used()
    return serve_load.tried(rate, latency, after - before if before and after else None)


def turn(
    name: str, case: Case, folder: Path, wanted: Sequence[Any], settings: Settings,
    before: dict[str, list[Try]],
) -> None:  # fmt: skip
    """Start a server, compare its answers, and search its highest rate for each kind of body.

    Args:
        name: of the server.
        case: what is asked.
        folder: of the case.
        wanted: answers.
        settings: of the search.
        before: body -> what was found in earlier turns, to which this one is added.

    Raises:
        ServerError: it does not start, or its answers differ.
    """
    log = folder / f"{name}.log"
    with Server(command(name, case, folder, settings.peers_python), log) as server:
        ways = serve_cases.bodies(case, name)
        server.wait(ways[0].requests[0])
        for body in ways:
            compared(server, body, wanted)
            attempt(server, body, settings.lowest, settings)  # warms up
            known = before.setdefault(body.name, [])
            again = known and known[-1].rate
            start, factor = (again, 1.25) if again else (settings.first, 2.0)
            found = serve_load.highest(
                functools.partial(attempt, server, body, settings=settings),
                start, settings.lowest, settings.highest, factor,
            )  # fmt: skip
            found = found or Try(0.0, math.inf, math.inf, math.inf, 0)  # not even the lowest
            known.append(found)
            print(f"{case.name}, {name}, {body.name}: {found.rate:.0f} a second", flush=True)


def rows_of(case: str, server: str, found: dict[str, list[Try]]) -> list[dict[str, Any]]:
    """The rows of a server: the median of its rates, with the latency of the run next to it.

    The rate is 0 where not even the lowest one is held.

    >>> runs = [Try(100.0, 0.001, 0.002, 0.003, 0, 0.004), Try(300.0, 0.001, 0.01, 0.02, 0)]
    >>> rows_of("C01", "jaxops", {"JSON": runs})[0]["rate"], rows_of("", "", {})
    (200, [])
    """
    rows = []
    for body, runs in found.items():
        rate = statistics.median(one.rate for one in runs)
        one = min(runs, key=lambda one: abs(one.rate - rate))
        milliseconds = {"p50 ms": one.p50, "p99 ms": one.p99, "p99.9 ms": one.p999}
        rows.append(
            {
                "case": case,
                "server": server,
                "body": body,
                "rate": round(rate),
                "of rounds": " ".join(f"{one.rate:.0f}" for one in runs),
                **{name: round(1000 * value, 2) for name, value in milliseconds.items()},
                "CPU ms": None if one.cpu is None else round(1000 * one.cpu, 3),
            }
        )
    return rows


def shares(case: Case) -> list[dict[str, Any]]:
    """What of a request to jaxops is reading, the model, and writing, in this process."""
    found = []
    for body in serve_cases.bodies(case, "jaxops"):
        parts = {f"{n}, ms": round(x, 3) for n, x in serve_cases.parts(case, body).items()}
        found.append({"case": case.name, "body": body.name, **parts})
    return found


def with_rest(parts: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shares of a request's CPU time: what is not in the parts is HTTP and the queue.

    >>> parts = [{"case": "C01", "body": "JSON", "read, ms": 0.1, "model, ms": 0.2}]
    >>> rows = [{"case": "C01", "server": "jaxops", "body": "JSON", "CPU ms": 1.0}]
    >>> with_rest(parts, rows)[0]["HTTP and queue, ms"], with_rest(parts, rows)[0]["theirs, %"]
    (0.7, 70)
    """
    told = []
    for part in parts:
        ours = sum(value for name, value in part.items() if name.endswith(", ms"))
        one = {"case": part["case"], "server": "jaxops", "body": part["body"]}
        cpu = next((row["CPU ms"] for row in rows if one.items() <= row.items()), None)
        rest = {}
        if cpu:
            left = max(0.0, cpu - ours)
            rest = {"HTTP and queue, ms": round(left, 3), "theirs, %": round(100 * left / cpu)}
        told.append({**part, **rest})
    return told


def measure(case: Case, folder: Path, settings: Settings) -> list[dict[str, Any]]:
    """One case: the rows of all servers, each of which takes its turns."""
    wanted = serve_cases.wanted(case)
    names = ["jaxops", *(settings.peers if settings.peers_python else ())]
    found: dict[str, dict[str, list[Try]]] = {name: {} for name in names}
    failed: dict[str, str] = {}
    for _ in range(settings.rounds):
        for name in names:
            if name in failed:
                continue
            try:
                turn(name, case, folder, wanted, settings, found[name])
            except (ServerError, OSError, ValueError, KeyError) as error:
                failed[name] = f"failed: {error}"
                print(f"{case.name}, {name}: {failed[name]}", flush=True)
    rows = []
    for name in names:
        rows += rows_of(case.name, name, found[name])
        if name in failed:
            rows.append({"case": case.name, "server": name, "of rounds": failed[name]})
    return rows


def soak(case: Case, folder: Path, settings: Settings) -> dict[str, Any]:
    """Ask jaxops for a long time at 70 % of a rate: errors, latency, memory before and after."""
    rate = SHARE * settings.soak_rate
    with Server(command("jaxops", case, folder, ""), folder / "jaxops.log") as server:
        body = serve_cases.bodies(case, "jaxops")[0]
        server.wait(body.requests[0])
        attempt(server, body, rate, settings)  # warms up
        _, before = server.used()
        latency = serve_load.run(
            serve_load.load(
                server.port, body.requests, rate, seconds=settings.soak, seed=settings.seed,
                connections=settings.connections, most=int(rate * settings.soak) + 1,
            )
        )  # fmt: skip
        time.sleep(1.0)
        _, after = server.used()
    told = serve_load.tried(rate, latency)
    megabytes = [None if x is None else round(x / 2**20, 1) for x in (before, after)]
    return {
        "case": case.name,
        "body": body.name,
        "rate": round(rate),
        "requests": len(latency),
        "errors": told.wrong,
        "p50 ms": round(1000 * told.p50, 2),
        "p99 ms": round(1000 * told.p99, 2),
        "p99.9 ms": round(1000 * told.p999, 2),
        "MB at the start": megabytes[0],
        "MB at the end": megabytes[1],
    }


def main(settings: Settings) -> list[dict[str, Any]]:
    """Print the tables, each case's as soon as it is measured."""
    rows: list[dict[str, Any]] = []
    parts: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name in settings.cases:
            case, folder = CASES[name](), Path(place, name)
            serve_cases.write(case, folder)
            if settings.soak:
                rows.append(soak(case, folder, settings))
                break
            parts += shares(case)
            rows += measure(case, folder, settings)
            print(table([row for row in rows if row["case"] == name]), flush=True)
    print(f"load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n{table(rows)}")
    if parts:
        print(f"\nCPU time of a request to jaxops\n{table(with_rest(parts, rows))}")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Settings))
