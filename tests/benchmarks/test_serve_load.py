"""The loops of clients of `benchmarks.serve` and `benchmarks.serve_generate`."""

import asyncio

import numpy as np

from benchmarks import serve, serve_generate


def test_a_server_that_falls_behind_cannot_hide_it():
    """One request of 50 ms at a time, and ten that are to be sent at once, two of them refused."""
    seen = []

    async def answer(reader, writer):
        while await reader.read(4):
            seen.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.05)
            status = "503 no" if len(seen) in (3, 4) else "200 OK"
            writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\nok".encode())
        writer.close()

    async def run():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        settings = serve.Settings(seconds=0.0101, connections=1)
        latency = await serve.load(port, b"GET\n", 1000, settings)
        server.close()
        await asyncio.sleep(0.01)  # the connection ends
        return latency

    latency = asyncio.run(run())
    assert len(seen) == 10 and np.isinf(latency).sum() == 2
    right = np.arange(1, 11)[np.isfinite(latency)] * 0.05
    assert (np.sort(latency[np.isfinite(latency)]) > right - 0.02).all()
    assert (np.diff(seen) > 0.04).all()


def test_tokens_are_those_of_all_clients_and_the_first_event_counts():
    """Each text takes 20 ms to its first event and 20 ms more, for two clients at the same time."""
    texts = []

    async def answer(reader, writer):
        while await reader.read(1000):
            await asyncio.sleep(0.02)
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n6\r\ndata: {}\r\n")
            await asyncio.sleep(0.02)
            writer.write(b"6\r\ndata: {}\r\n0\r\n\r\n")
            texts.append(asyncio.get_running_loop().time())
        writer.close()

    async def run():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        start = asyncio.get_running_loop().time()
        settings = serve_generate.Settings(seconds=0.1, new_tokens=5)
        found = await serve_generate.load(port, 2, settings)
        server.close()
        await asyncio.sleep(0.01)
        return found, max(texts) - start

    (tokens, first), seconds = asyncio.run(run())
    assert len(texts) >= 4 and 0.019 < first < 0.04
    assert 0.8 < tokens / (5 * len(texts) / seconds) < 1.05
