"""Open loops of clients, the search of a rate, and clients that generate text."""

import asyncio
import contextlib
import doctest
import sys
import time

import numpy as np
import pytest

from benchmarks import serve, serve_cases, serve_generate, serve_load
from benchmarks.serve_load import LATE, Try
from benchmarks.serve_process import Server, ServerError, used


def loaded(answer, requests, rate, **options):
    """The latencies of a run against a server that handles each connection by `answer`."""

    async def run():
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        latency = await serve_load.load(port, requests, rate, **options)
        server.close()
        handlers = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*handlers, return_exceptions=True)
        await asyncio.sleep(0.02)  # the connections end
        return latency

    return serve_load.run(run())


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

    latency = loaded(answer, [b"GET\n"], 1000, seconds=0.0101, connections=1)
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


def test_answers_in_parts_and_lost_connections_are_counted_rightly():
    """Each connection gives two answers, one of them in chunks, and is then closed unasked."""
    asked = []

    async def answer(reader, writer):
        for body in (
            b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
            b"content-length: 2\r\n\r\n",
        ):
            asked.append(await reader.read(1))
            writer.write(b"HTTP/1.1 200 OK\r\n" + body)
            await asyncio.sleep(0.005)
            writer.write(b"0\r\n\r\n" if b"chunked" in body else b"ok")
            await writer.drain()
        await reader.read(1)
        writer.close()

    latency = loaded(answer, [b"a", b"b"], 400, seconds=0.0626, connections=2)
    assert len(latency) == 25
    lost = np.isinf(latency)
    # every third request of a connection is lost with it
    assert 7 <= lost.sum() <= 8 and (latency[~lost] > 0.004).all()
    assert {*asked} - {b""} == {b"a", b"b"}


def test_no_more_is_sent_where_too_many_are_late():
    sent = []

    async def answer(reader, writer):
        with contextlib.suppress(ConnectionError):
            while await reader.read(1):
                sent.append(1)
                await asyncio.sleep(2 * LATE)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    start = time.perf_counter()
    latency = loaded(answer, [b"a"], 200, seconds=10.0, connections=4, give_up=0.01)
    assert time.perf_counter() - start < 5 and len(sent) < 400
    assert len(latency) == 2000 and np.isinf(latency).sum() > 1600


def server_of(capacity, tries, noise=0):
    """The p99 of a server that holds so many requests a second; the first `noise` fail narrowly."""

    def attempt(rate):
        tries.append(rate)
        p99 = 0.01 if rate <= capacity else 10.0
        return Try(rate, 0.001, 1.5 * LATE if len(tries) <= noise else p99, 1.0, 0)

    return attempt


@pytest.mark.parametrize(
    ("capacity", "start", "factor"),
    [*((c, s, 2.0) for c in (30, 190, 777, 4_321, 99_999) for s in (25, 200)),
     (777, 800, 1.25), (777, 500, 1.25), (9_999, 3_000, 1.25)],
)  # fmt: skip
def test_the_highest_rate_is_found_within_a_tenth(capacity, start, factor):
    tries = []
    found = serve_load.highest(server_of(capacity, tries), start, 25, 10_000, factor)
    most = min(capacity, 10_000)
    assert most / 1.1 <= found.rate <= most and len(tries) <= serve_load.TRIES
    assert len(tries) <= 6 or factor == 2 or start == 3_000


def test_a_rate_that_fails_narrowly_once_is_tried_again():
    tries = []
    found = serve_load.highest(server_of(300, tries, noise=1), 200, 25, 10_000)
    assert tries[:3] == [200, 200, 400] and 270 < found.rate <= 300
    assert serve_load.highest(server_of(10, []), 200, 25, 10_000) is None
    wrong = lambda rate: Try(rate, 0.001, 0.001, 0.001, 1)  # noqa: E731  # a wrong answer
    assert serve_load.highest(wrong, 200, 25, 10_000) is None


def test_quantiles_are_answers_that_came():
    latency = np.arange(1, 1001) / 1000
    told = serve_load.tried(5.0, latency, cpu=2.0)
    assert (told.p50, told.p99, told.p999) == (0.501, 0.991, 1.0) and told.cpu == 0.002
    latency[:11] = np.inf
    told = serve_load.tried(5.0, latency, cpu=2.0)
    assert told.wrong == 11 and told.p99 == np.inf and told.p50 == 0.512 and not told.holds


def test_rows_say_the_median_and_what_failed(monkeypatch, tmp_path):
    rates = {"jaxops": iter([400.0, 500.0]), "litserve": iter([100.0])}

    def turn(name, case, folder, wanted, settings, found):
        rate = next(rates[name], None)
        if rate is None:
            raise ServerError("it ended")
        found.setdefault("JSON", []).append(Try(rate, 0.001, 0.01, 0.02, 0, 0.0005))

    monkeypatch.setattr(serve, "turn", turn)
    monkeypatch.setattr(serve_cases, "wanted", lambda case: [])
    case = serve_cases.Case("C01", None, "images", [], {}, "", None, None)
    settings = serve.Settings(peers=("litserve",), peers_python="python")
    ours, theirs, failed = serve.measure(case, tmp_path, settings)
    assert (ours["rate"], ours["of rounds"], ours["CPU ms"]) == (450, "400 500", 0.5)
    assert (theirs["server"], theirs["rate"]) == ("litserve", 100)
    assert failed["of rounds"] == "failed: it ended"
    for soak in ({"soak": 5.0}, {"soak": 5.0, "soak_rate": 9.0}):
        with pytest.raises(ValueError, match="soak must come with soak_rate and one case, got 5, "):
            serve.Settings(**soak)


def test_a_server_that_ends_says_why_and_one_that_runs_is_watched(tmp_path):
    script = (
        "import http.server, sys\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_POST(self):\n"
        "        self.send_response(200); self.send_header('content-length', '2')\n"
        "        self.end_headers(); self.wfile.write(b'ok')\n"
        "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()\n"
    )
    request = serve_cases.post("/predict", b"")
    with Server([sys.executable, "-c", script, "PORT"], tmp_path / "log") as server:
        server.wait(request, seconds=20)
        headers, body = server.answer(request)
        assert (headers["content-length"], body) == ("2", b"ok")
        cpu, memory = server.used()
        assert cpu > 0 and memory > 2**20
    assert used(server.process.pid) == (None, None)
    with (
        Server([sys.executable, "-c", "raise SystemExit('no weights')"], tmp_path / "log") as gone,
        pytest.raises(ServerError, match="ended with 1: no weights"),
    ):
        gone.wait(request, seconds=20)


@pytest.mark.parametrize("module", [serve, serve_cases, serve_load])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
