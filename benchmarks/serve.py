"""Latency of `jaxops serve` by rate, on loopback, with an open loop of requests.

    python -m benchmarks.serve [--seconds 5 --rates 50 100 200 400 800]

Requests are sent at random times of a given mean rate, whether or not earlier ones are answered,
and a latency counts from the time at which a request was to be sent: a server that falls behind
cannot hide it. Every run is bounded in requests and time, and goes to 127.0.0.1 alone. The server
is a process of its own; this one, which sends, needs a core for itself.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

import jaxops as jo
from jaxops import tabular, vision
from jaxops._table import table
from jaxops.serve.compiled import compiled

MOST = 20_000  # requests of one run
LATE = 0.02  # seconds that the 99th percentile may take


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rates: tuple[float, ...] = (50, 100, 200, 400, 800, 1600)
    """requests a second, rising; a kind ends with the first whose p99 is above 20 ms"""
    seconds: float = 5.0
    """of each rate"""
    connections: int = 64
    """that are kept open"""
    seed: int = 0
    """of the times and of the data"""


def models(folder: Path, seed: int) -> dict[str, jo.Model]:
    """A network of images and one of tables; latency does not depend on what they learned."""
    task = vision.classifier(vision.MLP())
    image = {"image": np.zeros((1, 28, 28, 1), np.uint8)}
    state = jo.init_state(task, jo.optim.adam(1e-3), seed, image)
    rng = np.random.default_rng(seed)
    numbers = {f"x{i}": rng.normal(size=400) for i in range(20)}
    plans = rng.choice(["basic", "plus", "gold"], 400)
    given = {**numbers, "plan": plans, "left": (numbers["x0"] > 0).astype(int)}
    method = tabular.TabM()
    found = {
        "digits": jo.Model(task, state, vision.ImageReader((28, 28), 1)),
        "churn": tabular.fit(given, method, label="left", epochs=1, progress=False),
    }
    for name, model in found.items():
        jo.save(folder / f"{name}.safetensors", model)
    return found


def requests(found: dict[str, jo.Model], seed: int) -> dict[str, tuple[bytes, Any]]:
    """Kind -> the bytes of a request of one row, and the call that answers it in this process."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (1, 28, 28, 1), np.uint8)
    tensor = {"name": "image", "shape": [1, 28, 28, 1], "datatype": "UINT8"}
    size = {"parameters": {"binary_data_size": image.nbytes}}
    head = {"inputs": [tensor | size], "parameters": {"binary_data_output": True}}
    text = json.dumps(head).encode()
    row = {**{f"x{i}": [float(rng.normal())] for i in range(20)}, "plan": ["plus"]}
    digits, churn = compiled(found["digits"], 1), compiled(found["churn"], 1)  # as the server
    return {
        "image, bytes": (
            _post("/v2/models/digits/infer", text + image.tobytes(), len(text)),
            lambda: digits.outputs({"image": image}),
        ),
        "image, JSON": (
            _post("/models/digits/predict", json.dumps({"images": image.tolist()}).encode()),
            lambda: digits.predict(image),
        ),
        "row of 21 columns, JSON": (
            _post("/models/churn/predict", json.dumps({"rows": row}).encode()),
            lambda: churn.predict(row),
        ),
    }


def _post(path: str, body: bytes, head: int | None = None) -> bytes:
    extra = "" if head is None else f"Inference-Header-Content-Length: {head}\r\n"
    text = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return text.encode() + body


async def load(port: int, request: bytes, rate: float, settings: Settings) -> np.ndarray:
    """The latency of each request in seconds; infinite where the status is not 200."""
    rng = np.random.default_rng(settings.seed)
    count = min(MOST, int(rate * settings.seconds))
    intended = np.cumsum(rng.exponential(1 / rate, count))
    free: asyncio.Queue[Any] = asyncio.Queue()
    for _ in range(min(settings.connections, count)):
        free.put_nowait(await asyncio.open_connection("127.0.0.1", port))
    start, latency = time.perf_counter(), np.full(count, np.inf)

    async def one(place: int) -> None:
        reader, writer = await free.get()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
        if b" 200 " in head.partition(b"\r\n")[0]:
            latency[place] = time.perf_counter() - start - intended[place]
        free.put_nowait((reader, writer))

    async with asyncio.timeout(4 * settings.seconds + 30), asyncio.TaskGroup() as running:
        for place, moment in enumerate(intended):
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            running.create_task(one(place))
    while not free.empty():
        free.get_nowait()[1].close()
    return latency


def alone(call: Any) -> float:
    """The median seconds of a call in this process, without HTTP, JSON and batches."""
    seconds = []
    for _ in range(200):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[20:]))


def main(settings: Settings) -> list[dict[str, Any]]:
    """Print, for each kind of request and rate, quantiles of the latency in milliseconds."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        found = models(Path(folder), settings.seed)
        files = [f"{folder}/{name}.safetensors" for name in found]
        command = [sys.executable, "-m", "jaxops", "serve", *files, "--port", "0"]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as server:
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline().split()[-1])
                for kind, (request, call) in requests(found, settings.seed).items():
                    own = 1000 * alone(call)
                    asyncio.run(load(port, request, 20, settings))  # to warm up
                    for rate in settings.rates:
                        latency = asyncio.run(load(port, request, rate, settings))
                        p50, p99, p999 = np.quantile(latency, [0.5, 0.99, 0.999], method="higher")
                        named = {"p50 ms": p50, "p99 ms": p99, "p99.9 ms": p999}
                        told = {name: round(1000 * float(x), 2) for name, x in named.items()}
                        lost = int(np.isinf(latency).sum())
                        rows.append({"request": kind, "model alone, ms": round(own, 2),
                                     "rate": rate, **told, "not 200": lost})  # fmt: skip
                        if p99 > LATE:
                            break
            finally:
                server.terminate()
    print(f"load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n{table(rows)}")
    return rows


if __name__ == "__main__":
    main(tyro.cli(Settings))
