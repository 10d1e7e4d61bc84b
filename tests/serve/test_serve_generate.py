"""Texts that are generated together: each is as alone, and comes, goes and ends as asked."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import re
import threading
import warnings

import jax
import numpy as np
import pytest
from serve_client import ask, get, post

import jaxops as jo
from jaxops import language, serve, tabular
from jaxops.data import Tokenizer
from jaxops.model.finished import Model
from jaxops.nn import Transformer, TransformerConfig

TOKENIZER = Tokenizer.train(["a"], kind="byte", vocabulary=261)
CONTEXT = 32
CONFIG = TransformerConfig(
    TOKENIZER.vocabulary, CONTEXT, depth=1, heads=2, width=12, hidden=8, tied=False
)
CYCLE = "añ€😀b"  # bytes that all differ
PATH = "/models/gpt/generate"
SETTINGS = serve.Settings(batch_size=1, delay=0.0, timeout=100.0, slots=3)
GREEDY = {"stop": []}
DRAWN = {"temperature": 1.5, "top_k": 40, "top_p": 0.95, "seed": 7, "stop": []}
SHUNNED = {"temperature": 1.0, "repetition_penalty": 3.0, "seed": 3, "stop": []}


def model_of(fill):
    """A tiny GPT whose parameters `fill(path, shape)` gives."""
    module = Transformer(CONFIG)
    tokens = jax.ShapeDtypeStruct((1, CONTEXT), "int32")
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.asarray(
            fill(jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape), np.float32
        ),
        shapes,
    )
    state = jo.TrainState(np.int32(0), params, (), {}, jax.random.key(0))
    reader = language.TokenReader(TOKENIZER, CONTEXT, special=False)
    return Model(language.next_token(module, packed=False), state, reader)


@functools.cache
def gpt(seed=0):
    """Its kernels are wide, so that its logits differ by more than rounding."""
    rng = np.random.default_rng(seed)
    return model_of(lambda path, shape: rng.normal(path.endswith("scale"), 0.5, shape))


@functools.cache
def cycle():
    """It writes the bytes of `CYCLE` again and again: its blocks add nothing to a token."""
    bytes_of = TOKENIZER.encode(CYCLE)
    after = bytes_of[1:] + bytes_of[:1]

    def fill(path, shape):
        found = np.full(shape, float(path.endswith("scale")))
        if path == "embedding/tokens":
            found[bytes_of, np.arange(len(bytes_of))] = 1
        if path == "embedding/head/kernel":
            found[np.arange(len(bytes_of)), after] = 1
        return found

    return model_of(fill)


@functools.cache
def app():
    """The models without keys; tests that change an application make their own."""
    task = tabular.classifier(tabular.MLP((2,)), features=3)
    row = {"features": np.zeros((1, 3), np.float32)}
    reads = Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=row))
    models = {"gpt": gpt(), "cycle": cycle(), "churn": reads}
    return serve.application(models, settings=SETTINGS)


@functools.cache
def alone(prompt, new_tokens, **how):
    """What the room's own `generate` gives."""
    how = {name: [*value] if name == "stop" else value for name, value in how.items()}
    return language.generate(gpt(), prompt, new_tokens=new_tokens, **how)[0]


def wanted(prompt, new_tokens, how):
    return alone(prompt, new_tokens, **{**how, "stop": tuple(how["stop"])})


def body(prompt="ab", stream=False, **options):
    return {"prompt": prompt, "stream": stream, "options": {**GREEDY, **options}}


def events(answer):
    """The data of each event of an answer, or of messages that were sent so far."""
    if not isinstance(answer, list):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        data = answer.body
    else:
        data = b"".join(one.get("body", b"") for one in answer)
    lines = data.decode().split("\n\n")
    assert lines.pop() == "" and all(line.startswith("data: ") for line in lines)
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def until(is_so):
    async with asyncio.timeout(100):
        while not is_so():
            await asyncio.sleep(0.001)


@contextlib.contextmanager
def held(service, name="gpt"):
    """Turns of a decoder wait until the semaphore lets them; those that were made are listed."""
    decoder = service.models.get(name).decoder
    turn, gate, rows = decoder.turn, threading.Semaphore(0), []

    def slow(kept, new):
        assert gate.acquire(timeout=100)
        rows.append(len(kept) + len(new))
        return turn(kept, new)

    decoder.turn = slow
    try:
        yield gate, rows
    finally:
        decoder.turn = turn
        gate.release(1000)


def sample(name, service):
    text = get(service, "/metrics").body.decode()
    return float(re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)[1])


ASKED = [
    ("ab", 5, GREEDY),
    ("to be or not to be", 14, GREEDY),
    ("z", 9, DRAWN),
    ("ab", 5, DRAWN),
    ("the cat is on the mat", 3, SHUNNED),
    ("ab", 12, {**GREEDY, "seed": 5}),
    ("é", 20, DRAWN),
    ("q", 1, GREEDY),
    ("to be", 7, {**SHUNNED, "seed": 4}),
    ("to be", 7, {**SHUNNED, "seed": 4}),
]


def test_texts_that_are_made_together_are_each_as_alone():
    service = app()
    before = sample("jaxops_compilations_total", service)

    async def run(gate):
        requests = [body(prompt, new_tokens=count, **how) for prompt, count, how in ASKED]
        tasks = [asyncio.create_task(ask(service, "POST", PATH, one)) for one in requests]
        used = service.generation._used.labels("gpt")._value
        await until(lambda: used.get() + service.generation.queued() == len(ASKED))
        gate.release(1000)
        return await asyncio.gather(*tasks)

    with held(service) as (gate, rows):
        answers = asyncio.run(run(gate))
    assert sample("jaxops_compilations_total", service) == before  # all were compiled ahead
    for (prompt, count, how), told in zip(ASKED, answers, strict=True):
        assert told.status == 200, told.error
        found, right = told.json["answer"], wanted(prompt, count, how)
        assert found["tokens"] == right.tokens.tolist() and found["text"] == right.text
        assert found["log_probability"] == pytest.approx(right.log_probability, abs=1e-3)
        assert (found["end"], found["new_tokens"]) == ("length", count)
        assert found["prompt_tokens"] == len(prompt.encode())
    # ten texts in three rows: a row that is free is taken at once
    assert max(rows) == 3 and sum(rows) == sum(count for _, count, _ in ASKED)
    assert rows[1:20] == [3] * 19


def test_a_row_is_taken_again_while_the_others_go_on():
    decoder = app().models.get("gpt").decoder
    made = {}

    def turn(kept, *new):
        asked = [decoder.asked(prompt, new_tokens=count, **how) for prompt, count, how in new]
        rows, parts = decoder.turn(kept, asked)
        for row, part in parts.items():
            made.setdefault(row, []).append(part.token)
        return rows

    turn([], ("to be", 20, GREEDY))
    turn([0])
    assert turn([0], ("z", 12, DRAWN), ("ab", 12, SHUNNED)) == [1, 2]
    turn([0, 1, 2])
    turn([0, 2])  # the text of row 1 is given up
    first = made.pop(1)
    assert turn([0, 2], ("mat", 6, DRAWN)) == [1]
    while len(made[0]) < 12:
        turn([0, *([1] if len(made[1]) < 6 else []), 2])
    assert len(made[1]) == 6
    right = {0: ("to be", 20, GREEDY), 1: ("mat", 6, DRAWN), 2: ("ab", 12, SHUNNED)}
    for row, asked in right.items():
        assert made[row] == wanted(*asked).tokens.tolist()[: len(made[row])]
    assert first == wanted("z", 12, DRAWN).tokens.tolist()[:2]
    decoder.turn([], [decoder.asked("a", new_tokens=1)])
    with pytest.raises(ValueError, match=r"new must be at most 3 \(the free rows\), got 4"):
        decoder.turn([], [decoder.asked("a")] * 4)


def test_the_pieces_of_a_stream_are_the_text_and_no_half_characters():
    path = "/models/cycle/generate"
    streamed = post(app(), path, body("b", stream=True, new_tokens=25))
    *parts, end = events(streamed)
    assert "".join(part["text"] for part in parts) + end["text"] == CYCLE * 2 + "añ"
    assert {part["text"] for part in parts} == {"", *CYCLE}
    assert TOKENIZER.decode(part["token"] for part in parts) == CYCLE * 2 + "añ"
    told = {"prompt_tokens": 1, "new_tokens": 25, "model": "cycle", "version": "1"}
    assert {**end, "log_probability": 0} == {
        "text": "", "end": "length", "log_probability": 0, **told
    }  # fmt: skip
    assert streamed.headers["cache-control"] == "no-store"
    # a text that ends within a character
    *parts, end = events(post(app(), path, body("b", stream=True, new_tokens=5)))
    assert [part["text"] for part in parts] == ["a", "", "ñ", "", "\ufffd"]


def test_a_stop_token_ends_a_text_and_is_not_part_of_it():
    tokens = wanted("to be or not to be", 14, GREEDY).tokens.tolist()
    stop = [next(t for i, t in enumerate(tokens) if i > 3 and t not in tokens[:i])]
    asked = body("to be or not to be", new_tokens=14, stop=stop)
    right = wanted("to be or not to be", 14, {"stop": stop})
    assert right.stopped and len(right.tokens) > 3
    whole = post(app(), PATH, asked).json["answer"]
    assert (whole["tokens"], whole["end"]) == (right.tokens.tolist(), "stop")
    assert whole["log_probability"] == pytest.approx(right.log_probability, abs=1e-3)
    *parts, end = events(post(app(), PATH, {**asked, "stream": True}))
    assert "".join(part["text"] for part in parts) + end["text"] == whole["text"] == right.text
    assert end["end"] == "stop" and len(parts) == end["new_tokens"] == len(right.tokens)


def test_by_default_a_text_ends_with_the_end_of_a_text_or_at_the_context():
    told = post(app(), "/models/cycle/generate", {"prompt": "ab"}).json["answer"]
    assert (told["end"], told["new_tokens"]) == ("length", CONTEXT - 2)
    asked = app().models.get("gpt").decoder.asked("ab")
    assert asked.stop == {TOKENIZER.eos}


def test_a_client_that_goes_away_frees_its_row(caplog):
    caplog.set_level("INFO", "jaxops.serve")
    service = serve.application({"gpt": gpt()}, settings=dataclasses.replace(SETTINGS, slots=1))

    async def run(gate):
        gone, told = asyncio.Event(), []
        first = asyncio.create_task(
            ask(service, "POST", PATH, body(stream=True, new_tokens=20), gone, told=told)
        )
        second = asyncio.create_task(ask(service, "POST", PATH, body(new_tokens=2)))
        gate.release(3)
        await until(lambda: len(told) == 4)  # the start, and three tokens
        gone.set()
        await first
        assert not second.done()
        gate.release(3)  # one may be made for the client that has gone
        return events(told[1:]), await second

    with held(service) as (gate, rows):
        begun, answer = asyncio.run(run(gate))
        assert rows in ([1] * 5, [1] * 6)
    assert [part["token"] for part in begun] == wanted("ab", 20, GREEDY).tokens.tolist()[:3]
    assert answer.json["answer"]["tokens"] == wanted("ab", 2, GREEDY).tokens.tolist()
    assert sample('jaxops_slots_used{model="gpt"}', service) == 0
    lines = [json.loads(one.message) for one in caplog.records]
    told = [(one["status"], one["tokens"]) for one in lines if one["route"] == "generate"]
    assert told == [(499, 3), (200, 2)]


def test_who_goes_while_waiting_or_is_too_late_gets_no_row_and_a_full_queue_refuses():
    settings = dataclasses.replace(SETTINGS, slots=1, queue=2)
    service = serve.application({"gpt": gpt()}, settings=settings)

    async def run(gate):
        first = asyncio.create_task(ask(service, "POST", PATH, body(new_tokens=2)))
        await until(lambda: service.generation.busy)
        gone = asyncio.Event()
        waiting = [asyncio.create_task(ask(service, "POST", PATH, body(), gone)) for _ in "ab"]
        await until(lambda: service.generation.queued() == 2)
        full = await ask(service, "POST", PATH, body(stream=True))
        gone.set()
        await asyncio.gather(*waiting)
        late = {"x_request_timeout": "0.4"}
        told = [await ask(service, "POST", PATH, body(stream=stream, new_tokens=2), **late)
                for stream in (False, True)]  # fmt: skip
        gate.release(2)
        return full, told, await first

    with held(service) as (gate, rows):
        full, told, first = asyncio.run(run(gate))
        assert rows == [1, 1]
    assert (full.status, full.headers["retry-after"]) == (429, "1")
    assert full.error == "the queue must have room, got 2 requests that wait"
    for one in told:
        assert one.status == 504
        assert one.error == "the answer must come within 0.4 s, got a part of it"
    assert first.json["answer"]["tokens"] == wanted("ab", 2, GREEDY).tokens.tolist()


def test_a_stream_ends_when_its_time_is_over():
    async def run(gate):
        gate.release(2)
        asked = body(stream=True, new_tokens=9)
        return await ask(app(), "POST", PATH, asked, x_request_timeout="1")

    with held(app()) as (gate, _):
        *parts, end = events(asyncio.run(run(gate)))
    assert [part["token"] for part in parts] == wanted("ab", 9, GREEDY).tokens.tolist()[:2]
    assert (end["end"], end["new_tokens"], end["version"]) == ("timeout", 2, "1")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (body("a" * 30, new_tokens=3), "prompt and new_tokens must have at most 32 tokens (the "
         "context) together, got 30 and 3"),
        (body("a" * 40, stream=True), "prompt and new_tokens must have at most 32 tokens (the "
         "context) together, got 40 and 1"),
        (body("a" * 1025), "prompt must have at most 1,024 characters (32 for each token of the "
         "context), got 1,025"),
        (body(""), "prompt must be a text that is not empty, got ''"),
        ({"prompt": "a", "stream": 1}, "stream must be true or false, got 1"),
        ({"stream": True}, "the body must have 'prompt', got none"),
        ({"prompt": "a", "temperature": 1}, "the body must have prompt and stream and options "
         "alone, got 'temperature'"),
        (body(beams=2), "options must be among new_tokens, temperature, top_k, top_p, min_p, "
         "repetition_penalty, stop, seed, got 'beams'"),
        (body(new_tokens=0), "new_tokens must be of type integer, minimum 1, maximum 2147483647, "
         "got 0"),
        (body(top_k=3), "temperature must be above 0 with top_k, got 0; it takes the most probable "
         "token"),
        (body(temperature=1, top_p=0), "top_p must be in (0, 1], got 0.0"),
        (body(stop=[261]), "stop must be tokens in [0, 261) (the vocabulary), got 261"),
        (body(stop=["a"]), "stop: each must be of type integer, minimum 0, maximum 2147483647, "
         "got 'a'"),
    ],
)  # fmt: skip
def test_what_cannot_be_generated_is_refused_before_a_turn(asked, sentence):
    with held(app()) as (_, rows):
        told = post(app(), PATH, asked)
        assert (told.status, told.error, rows) == (400, sentence, [])


def test_a_model_that_does_not_generate_says_so():
    told = post(app(), "/models/churn/generate", body())
    wanted = "churn must generate text to be asked for it: its reader has no decoder"
    assert (told.status, told.error) == (400, wanted)
    paths = get(app(), "/openapi.json").json["paths"]
    assert "/models/gpt/generate" in paths and "/models/churn/generate" not in paths
    encoder = Transformer(dataclasses.replace(CONFIG, causal=False))
    task = language.masked_tokens(encoder, TOKENIZER.id("[MASK]"))
    with pytest.raises(ValueError, match="must have a decoder"):
        gpt().reader.decoder(dataclasses.replace(gpt(), task=task), 2)


def test_a_failure_ends_the_texts_of_its_turn_alone(monkeypatch):
    decoder = app().models.get("gpt").decoder
    turn = decoder._turn

    def fails(*_):
        raise RuntimeError("the device is ill")

    monkeypatch.setattr(decoder, "_turn", fails)
    assert post(app(), PATH, body(stream=True)).status == 500
    monkeypatch.setattr(decoder, "_turn", turn)
    told = post(app(), PATH, body(new_tokens=5)).json["answer"]
    assert told["tokens"] == wanted("ab", 5, GREEDY).tokens.tolist()


def test_a_stream_that_fails_says_so_at_its_end(monkeypatch, caplog):
    decoder, turns = app().models.get("gpt").decoder, []
    turn = decoder._turn

    def fails(*arguments):
        turns.append(arguments)
        if len(turns) > 2:
            raise RuntimeError("ann@example.com")
        return turn(*arguments)

    monkeypatch.setattr(decoder, "_turn", fails)
    with caplog.at_level("INFO", "jaxops.serve"):
        *parts, end = events(post(app(), PATH, body(stream=True, new_tokens=5)))
    assert [part["token"] for part in parts] == wanted("ab", 5, GREEDY).tokens.tolist()[:2]
    assert (end["end"], end["new_tokens"], end["version"]) == ("error", 2, "1")
    failure = json.loads(next(one.message for one in caplog.records if one.levelname == "ERROR"))
    assert failure["error"] == "RuntimeError" and "ann@" not in caplog.text


def test_a_swap_lets_the_old_version_end_its_texts(tmp_path):
    jo.save(tmp_path / "new.safetensors", gpt(seed=1))
    keys = {role: serve.add_key(tmp_path / "keys", role, role) for role in ("predict", "metrics")}
    admin = {"authorization": f"Bearer {serve.add_key(tmp_path / 'keys', 'root', 'admin')}"}
    service = serve.application(
        {"gpt": gpt()}, keys=tmp_path / "keys", folder=tmp_path, settings=SETTINGS
    )
    assert post(service, PATH, body()).status == 401
    bearer = {role: {"authorization": f"Bearer {key}"} for role, key in keys.items()}
    assert post(service, PATH, body(), **bearer["metrics"]).status == 403

    async def run(gate):
        asked = body(stream=True, new_tokens=6)
        told = []
        running = asyncio.create_task(
            ask(service, "POST", PATH, asked, told=told, **bearer["predict"])
        )
        gate.release(2)
        await until(lambda: len(told) == 3)
        change = {"path": "new.safetensors"}
        loaded = await ask(service, "POST", "/admin/models/gpt", change, **admin)
        gate.release(4)
        later = await ask(service, "POST", PATH, body(new_tokens=6), **bearer["predict"])
        return loaded, later, await running

    with held(service) as (gate, rows):
        loaded, later, running = asyncio.run(run(gate))
        assert rows == [1] * 6
    assert loaded.json["version"] == later.json["version"] == "2"
    *parts, end = events(running)
    assert (end["version"], end["end"]) == ("1", "length")
    assert [part["token"] for part in parts] == wanted("ab", 6, GREEDY).tokens.tolist()
    right = language.generate(gpt(seed=1), "ab", new_tokens=6, stop=[])[0].tokens.tolist()
    assert later.json["answer"]["tokens"] == right != wanted("ab", 6, GREEDY).tokens.tolist()


def test_tokens_are_counted_and_logged(caplog):
    post(app(), PATH, body(new_tokens=1))  # before the first text there is no metric of it
    before = sample('jaxops_tokens_total{model="gpt"}', app())
    caplog.clear()  # a server that ran in this process before has set the level of the log
    with caplog.at_level("INFO", "jaxops.serve"):
        post(app(), PATH, body("ann@example.com", new_tokens=4))
        post(app(), PATH, body("a", stream=True, new_tokens=3))
    lines = [json.loads(one.message) for one in caplog.records]
    assert [(one["route"], one["tokens"]) for one in lines] == [("generate", 4), ("generate", 3)]
    assert "ann" not in caplog.text
    assert sample('jaxops_tokens_total{model="gpt"}', app()) == before + 7
    assert sample('jaxops_first_token_seconds_count{model="gpt"}', app()) >= 2
    assert sample('jaxops_slots_used{model="gpt"}', app()) == 0


def test_what_the_tokenizer_warns_of_is_told(monkeypatch):
    decoder = app().models.get("gpt").decoder
    asked = decoder.asked

    def warns(*prompt, **options):
        warnings.warn("texts has 1 unknown token", UserWarning, stacklevel=1)
        return asked(*prompt, **options)

    monkeypatch.setattr(decoder, "asked", warns)
    told = ["texts has 1 unknown token"]
    assert post(app(), PATH, body(new_tokens=2)).json["warnings"] == told
    assert events(post(app(), PATH, body(stream=True, new_tokens=2)))[-1]["warnings"] == told
    monkeypatch.undo()
    assert "warnings" not in post(app(), PATH, body(new_tokens=2)).json
