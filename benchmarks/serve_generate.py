"""Tokens a second of `jaxops serve` by the number of clients: texts together, and one by one.

    python -m benchmarks.serve_generate [--clients 1 4 8 --seconds 4 --rounds 3]

Each client asks for the next text when it has the last one, by server-sent events, on loopback. One
server generates up to 8 texts together, the other one by one (`--slots 1`); `alone` is
`language.generate` in this process, one text after the other, without HTTP. The three take turns,
and the figures are medians over the rounds. Each of them is a process of its own.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

import jaxops as jo
from jaxops import language
from jaxops._table import table
from jaxops.data import Tokenizer

CONTEXT = 256
ANSWERS = {"together": 8, "one by one": 1}  # slots of the servers


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    clients: tuple[int, ...] = (1, 4, 8)
    """that ask at the same time"""
    seconds: float = 4.0
    """of each measurement, in which no further text is asked for"""
    rounds: int = 3
    """of turns"""
    new_tokens: int = 64
    """of each text"""
    prompt: str = "to be or not to be, that is the "
    """of each text, a token a byte"""


def model() -> jo.Model:
    """A GPT of 0.9 million parameters; speed does not depend on what it learned."""
    tokenizer = Tokenizer.train(["a"], kind="byte", vocabulary=261)
    module = language.nanogpt(
        vocabulary=tokenizer.vocabulary, context=CONTEXT, depth=4, heads=4, width=128, dropout=0.0
    )
    task = language.next_token(module, packed=False)
    rows = language.windows(np.arange(2 * CONTEXT) % 256, CONTEXT)
    state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows)
    return jo.Model(task, state, language.TokenReader(tokenizer, CONTEXT, special=False))


async def load(port: int, clients: int, settings: Settings) -> tuple[float, float]:
    """Tokens a second of all clients, and the median seconds to the first token."""
    options = {"new_tokens": settings.new_tokens, "stop": []}
    body = json.dumps({"prompt": settings.prompt, "stream": True, "options": options}).encode()
    head = f"POST /models/gpt/generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}"
    start, texts, firsts = time.perf_counter(), 0, []

    async def client() -> None:
        nonlocal texts
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (asked := time.perf_counter()) - start < settings.seconds:
            writer.write(head.encode() + b"\r\n\r\n" + body)
            status = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in status.partition(b"\r\n")[0]:
                raise RuntimeError(status.decode())
            await reader.readuntil(b"data: ")
            firsts.append(time.perf_counter() - asked)
            await reader.readuntil(b"\r\n0\r\n\r\n")
            texts += 1
        writer.close()

    async with asyncio.timeout(10 * settings.seconds + 60), asyncio.TaskGroup() as running:
        for _ in range(clients):
            running.create_task(client())
    seconds = time.perf_counter() - start
    return texts * settings.new_tokens / seconds, float(np.median(firsts))


def alone(found: jo.Model, settings: Settings) -> float:
    """Tokens a second of `language.generate`, one text after the other."""
    start, texts = time.perf_counter(), 0
    while time.perf_counter() - start < settings.seconds:
        language.generate(found, settings.prompt, new_tokens=settings.new_tokens, stop=[])
        texts += 1
    return texts * settings.new_tokens / (time.perf_counter() - start)


@contextlib.contextmanager
def server(file: str, slots: int) -> Iterator[int]:
    """The port of a server of its own."""
    command = [sys.executable, "-m", "jaxops", "serve", file, "--port", "0"]
    command += ["--slots", str(slots), "--batch-size", "1", "--timeout", "120"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split()[-1])
        finally:
            process.terminate()


def main(settings: Settings) -> list[dict[str, Any]]:
    """Print the medians by number of clients."""
    found = model()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        file = f"{folder}/gpt.safetensors"
        jo.save(file, found)
        ports = {name: stack.enter_context(server(file, n)) for name, n in ANSWERS.items()}
        language.generate(found, settings.prompt, new_tokens=settings.new_tokens, stop=[])
        rows: list[dict[str, Any]] = []
        for clients in settings.clients:
            speed: dict[str, list[float]] = {name: [] for name in (*ports, "alone")}
            first: dict[str, list[float]] = {name: [] for name in ports}
            for _ in range(settings.rounds):
                for name, port in ports.items():
                    tokens, seconds = asyncio.run(load(port, clients, settings))
                    speed[name].append(tokens)
                    first[name].append(seconds)
                speed["alone"].append(alone(found, settings))
            rows.append(_row(clients, speed, first))
    print(f"load of the machine {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n{table(rows)}")
    return rows


def _row(
    clients: int, speed: dict[str, list[float]], first: dict[str, list[float]]
) -> dict[str, Any]:
    ratio = np.array(speed["together"]) / np.array(speed["one by one"])
    return {
        "clients": clients,
        **{f"{name}, tokens/s": round(float(np.median(x))) for name, x in speed.items()},
        "together / one by one": round(float(np.median(ratio)), 2),
        **{f"{name}, ms to first": round(1000 * float(np.median(x)), 1)
           for name, x in first.items()},
    }  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Settings))
