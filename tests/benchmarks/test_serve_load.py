"""The open loop of `benchmarks.serve`: a latency counts from the time a request was to be sent."""

import asyncio

import numpy as np

from benchmarks import serve


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
