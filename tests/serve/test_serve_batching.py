"""Requests that come together: each gets its own answer, whatever it was joined with."""

import asyncio
import re
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
from serve_client import SETTINGS, app, ask, churn, get, post, router, together

from jaxops import serve
from jaxops.model.finished import Model
from jaxops.serve.batching import Batcher, answers
from jaxops.serve.compiled import compiled
from jaxops.serve.inputs import Given
from jaxops.serve.refused import Refused

WORDS = ["card", "lost", "pin", "new", "fell", "bank"]


def some_request(rng):
    """A random request, and what the model answers to it alone."""
    rows = int(rng.integers(1, 12))  # a few of more rows than a batch
    kind = rng.integers(3)
    if kind == 0:
        texts = [" ".join(rng.choice(WORDS, rng.integers(1, 4))) for _ in range(rows)]
        return ("/models/router/predict", {"texts": texts}), router().predict(texts)
    rates = [float(x) if x > 0.025 else None for x in rng.uniform(0.02, 0.06, rows)]
    plans = rng.choice(["basic", "plus", "gold", "none"], rows).tolist()
    table = {"rate": np.array(rates, float), "plan": plans}
    if kind == 1:
        body = {"rows": {"rate": rates, "plan": plans}}
        return ("/models/churn/predict", body), churn().predict(table)
    _, columns = churn().reader.columns(table)
    one = {"name": "features", "shape": [*columns["features"].shape], "datatype": "FP32",
           "data": columns["features"].ravel().tolist()}  # fmt: skip
    return ("/v2/models/churn/infer", {"inputs": [one]}), churn().outputs(columns)


def sample(name, text):
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


def batches():
    """How many batches both models have answered so far."""
    text = get(app(), "/metrics").body.decode()
    names = [f'jaxops_batch_rows_count{{model="{model}"}}' for model in ("churn", "router")]
    return sum(sample(name, text) for name in names if name in text)


def test_many_requests_at_once_are_answered_as_each_alone():
    rng = np.random.default_rng(0)
    requests, wanted = zip(*(some_request(rng) for _ in range(60)), strict=True)
    before = batches()
    told = together(app(), *requests)
    for answer, right in zip(told, wanted, strict=True):
        assert answer.status == 200, answer.error
        if "outputs" in answer.json:
            np.testing.assert_allclose(answer.json["outputs"][0]["data"], right, atol=1e-6)
            continue
        found = answer.json["answer"]
        assert found["ids"] == right.ids.tolist() and found["labels"] == right.labels.tolist()
        np.testing.assert_allclose(found["probabilities"], right.probabilities, atol=1e-6)
    assert batches() - before < 60, "nothing was joined"


def test_nothing_compiles_after_the_start():
    together(app(), *([("/models/churn/predict", {"rows": [{"rate": 1, "plan": "a"}]})] * 3))
    before = sample("jaxops_compilations_total", get(app(), "/metrics").body.decode())
    rows = [{"rate": 0.02 + i / 1000, "plan": "plus"} for i in range(8)]
    requests = [("/models/churn/predict", {"rows": rows[:n]}) for n in (1, 2, 3, 5, 8)]
    assert {one.status for one in together(app(), *requests)} == {200}
    assert sample("jaxops_compilations_total", get(app(), "/metrics").body.decode()) == before


def test_a_wrong_request_does_not_harm_those_that_it_was_joined_with():
    right = {"rows": [{"rate": 0.03, "plan": "plus"}]}
    far = {"rows": [{"rate": 1, "plan": "plus"}, {"rate": 3e38, "plan": "a"}]}  # the reader refuses
    path = "/models/churn/predict"
    told = together(app(), (path, right), (path, far), (path, right))
    assert [one.status for one in told] == [200, 400, 200] and "in row 1" in told[1].error
    assert told[0].json["answer"] == told[2].json["answer"]


class Held:
    """A model that waits for the event, and counts the batches it was given."""

    def __init__(self):
        self.event, self.batches = threading.Event(), []

    def __call__(self, parts):
        assert self.event.wait(10)
        self.batches.append([part.data for part in parts])
        return [part.data for part in parts]


async def until(is_so):
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.001)


def one(name, rows=1):
    return Given(name, rows, {}, "bucket")


def test_the_oldest_goes_first_with_those_of_its_bucket_up_to_the_size():
    held, other = Held(), Held()

    async def run():
        batcher = Batcher(batch_size=3, delay=0.0, queue=9)
        first = batcher.put("a", held, one("first"), 9)
        await until(lambda: batcher.busy)
        names = [("a", "x", 2), ("b", "y", 1), ("a", "z", 2), ("a", "w", 1), ("a", "v", 7)]
        calls = {"a": held, "b": other}
        rest = [batcher.put(key, calls[key], one(name, rows), 9) for key, name, rows in names]
        held.event.set()
        other.event.set()
        return await asyncio.gather(first, *rest)

    assert asyncio.run(run()) == ["first", "x", "y", "z", "w", "v"]
    assert held.batches == [["first"], ["x", "w"], ["z"], ["v"]] and other.batches == [["y"]]


def test_a_full_queue_refuses_and_a_request_that_is_too_late_gets_no_turn():
    held = Held()

    async def run():
        batcher = Batcher(batch_size=1, delay=0.0, queue=2)
        first = batcher.put("a", held, one("first"), 9)
        await until(lambda: batcher.busy)
        late, gone = batcher.put("a", held, one("late"), 0.01), batcher.put("a", held, one("x"), 9)
        with pytest.raises(Refused, match="the queue must have room, got 2 requests") as caught:
            batcher.put("a", held, one("more"), 9)
        assert caught.value.status == 429 and caught.value.headers == {"retry-after": "1"}
        gone.cancel()
        more = batcher.put("a", held, one("more"), 9)  # in the place of the one that has gone
        assert batcher.queued() == 2
        more.cancel()
        await asyncio.sleep(0.02)
        held.event.set()
        with pytest.raises(Refused, match="got no turn") as caught:
            await late
        assert caught.value.status == 504
        return await first

    assert asyncio.run(run()) == "first" and held.batches == [["first"]]


@pytest.fixture
def held(monkeypatch):
    """An application of its own whose model waits for an event."""
    settings = serve.Settings(batch_size=1, delay=0.0, queue=2, timeout=5.0)
    service = serve.application({"churn": churn()}, settings=settings)
    served, event = service.models.get("churn"), threading.Event()
    predict = served.predict

    def slow(parts):
        assert event.wait(10)
        return predict(parts)

    monkeypatch.setattr(served, "predict", slow)
    return service, event


PATH, BODY = "/models/churn/predict", {"rows": [{"rate": 0.03, "plan": "plus"}]}


def test_status_429_and_504_and_a_client_that_goes(held):
    service, event = held

    async def run():
        gone = asyncio.Event()
        first = asyncio.create_task(ask(service, "POST", PATH, BODY))
        await until(lambda: service.batcher.busy)
        leaving = asyncio.create_task(ask(service, "POST", PATH, BODY, gone=gone))
        late = asyncio.create_task(ask(service, "POST", PATH, BODY, x_request_timeout=0.9))
        await until(lambda: service.batcher.queued() == 2)
        full = await ask(service, "POST", PATH, BODY)
        gone.set()
        assert await leaving is None  # nobody is there to be told
        told = await late
        event.set()
        return full, told, await first

    full, late, first = asyncio.run(run())
    assert full.status == 429 and full.headers["retry-after"] == "1"
    assert (late.status, late.error) == (504, "the answer must come within 0.9 s, got none")
    assert first.status == 200 and first.json["answer"]["ids"] == [0]
    text = get(service, "/metrics").body.decode()
    for status in ("200", "429", "499", "504"):
        labels = f'{{model="churn",route="predict",status="{status}",version="1"}}'
        assert sample(f"jaxops_requests_total{labels}", text) == 1
    assert sample("jaxops_queue", text) == 0


def test_one_wrong_request_of_a_batch_costs_few_calls():
    sizes = []

    def call(parts):
        sizes.append(len(parts))
        if "wrong" in parts:
            raise KeyError("wrong")
        return parts

    parts = [*range(40), "wrong", *range(23)]
    told = answers(call, parts)
    assert told[:40] + told[41:] == parts[:40] + parts[41:] and isinstance(told[40], KeyError)
    assert sizes[0] == 64 and len(sizes) == 13


def test_what_a_batch_breaks_ends_that_batch_alone():
    def on_batch(batch):
        if batch[0].given.data == "first":
            raise OSError("broken")

    async def run():
        batcher = Batcher(1, 0.0, 9, on_batch)
        call = Held()
        call.event.set()
        first, second = (batcher.put("a", call, one(name), 9) for name in ("first", "second"))
        assert await second == "second" and batcher.works
        with pytest.raises(OSError, match="broken"):
            await first

    asyncio.run(run())


def test_warnings_are_told_to_the_client_that_caused_them_alone(monkeypatch):
    model = app().models.get("churn").model
    outputs = type(model).outputs

    def warns(self, columns, batch_size=1):
        if len(columns["features"]) == 3 or len(columns["features"]) > 4:
            warnings.warn("row 2 was cut", stacklevel=2)
        return outputs(self, columns)

    monkeypatch.setattr(type(model), "outputs", warns)
    row = BODY["rows"]
    told = together(app(), *((PATH, {"rows": row * count}) for count in (1, 3, 2)))
    assert [one.json.get("warnings") for one in told] == [None, ["row 2 was cut"], None]


def test_a_long_body_is_read_beside_the_loop_and_in_time(held, monkeypatch):
    service, _ = held
    event, threads = threading.Event(), []

    class Slow:
        numbered = True

        def read(self, body, most):
            threads.append(threading.current_thread())
            assert event.wait(10)
            raise Refused(400, "too late")

    monkeypatch.setattr(service.models.get("churn"), "inputs", Slow())
    long = {"rows": [{"rate": 0.03, "plan": "a" * 100_000}]}
    told = post(service, PATH, long, x_request_timeout=0.3)
    event.set()
    assert (told.status, told.error) == (504, "the answer must come within 0.3 s, got none")
    assert threads == [] or threads[0] is not threading.main_thread()


def test_more_requests_than_twice_the_queue_are_refused_before_they_are_read(held):
    service, event = held
    event.set()
    service.running = 4
    told = post(service, PATH, b"not read")
    assert told.status == 429 and "the server must have room, got 5 requests" in told.error
    assert get(service, "/v2/health/ready").status == 200
    service.running = 0
    assert post(service, PATH, BODY).status == 200


def test_a_server_that_drains_ends_what_runs_and_refuses_the_rest(held):
    service, event = held

    async def run():
        first = asyncio.create_task(ask(service, "POST", PATH, BODY))
        await until(lambda: service.batcher.busy)
        service.draining = True
        refused = await ask(service, "POST", PATH, BODY)
        ready = await ask(service, "GET", "/v2/health/ready")
        live = await ask(service, "GET", "/v2/health/live")
        assert service.running == 1
        event.set()
        return await first, refused, ready, live

    first, refused, ready, live = asyncio.run(run())
    assert (first.status, refused.status, ready.status, live.status) == (200, 503, 503, 200)
    assert refused.headers["retry-after"] == "1" and service.running == 0


def test_limits_must_be_positive():
    with pytest.raises(ValueError, match="queue must be above 0, got 0"):
        serve.Settings(queue=0)
    with pytest.raises(ValueError, match="models must be at least 1"):
        serve.application({})
    with pytest.raises(
        ValueError, match=r"name must be of letters, digits, _, \. and -, got 'a/b'"
    ):
        serve.application({"a/b": churn()}, settings=SETTINGS)
    assert post(app(), PATH, BODY).status == 200


def test_programs_of_powers_of_two_answer_as_the_model_does(monkeypatch):
    model = churn()
    fast = compiled(model, 5)
    assert sorted(fast.programs) == [1, 2, 4, 8] and fast.room == "tabular"
    rates = np.linspace(0.02, 0.06, 19)
    table = {"rate": rates, "plan": ["plus"] * 19}
    _, columns = model.reader.columns(table)
    for rows in (1, 3, 8, 19):  # of the last, parts of 8, 8 and 3
        part = {name: x[:rows].astype(np.float64) for name, x in columns.items()}
        np.testing.assert_allclose(fast.outputs(part), model.outputs(part), atol=1e-6)
    np.testing.assert_allclose(
        fast.predict(table).probabilities, model.predict(table).probabilities, atol=1e-6
    )
    with pytest.raises(ValueError, match="features must be finite, got NaN in row 1"):
        fast.outputs({"features": columns["features"][:2] * [[1], [np.nan]]})
    assert compiled(model, 1).predict(table).ids.tolist() == [*range(19)]
    monkeypatch.setattr("jaxops.serve.compiled.SMALL", 0)
    large, sizes = compiled(replace(model, reference=None), 5), []
    monkeypatch.setattr(Model, "outputs", lambda self, columns, most: sizes.append(most))
    large.outputs(columns)
    assert not large.programs and sizes == [8]
