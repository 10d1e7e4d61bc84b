"""Mutated requests: every answer is 200, or 4xx with a sentence; the server never fails."""

import asyncio
import base64
import functools
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serve_client import SETTINGS, TABLE, app, ask, churn, post

import jaxops as jo
from jaxops import customers, forecast, recommend, serve, text, vision
from jaxops.model.finished import Model

ODD = [None, True, -1, 0, 2**31, 2**63, 2**64, 1e308, -0.0, "", " ", "a" * 300, "\0", "\ud800", "é",
       "NaN", [], [[]], [None], {}, {"": 0}, "2024-13-45", "1e999"]  # fmt: skip
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"NaN",
    b"1e999",
    b"Infinity",
    b'"\\ud800"',
    b"[" * 2000,
    b"{",
    b"9" * 5000,
]


def seeds():
    """(path, headers, body) of requests that are right."""
    rows = [{"rate": 0.031, "plan": "plus"}, {"rate": None, "plan": "gold"}]
    _, columns = churn().reader.columns({name: TABLE[name][:3] for name in ("rate", "plan")})
    value = columns["features"]
    tensor = {"name": "features", "shape": [*value.shape], "datatype": "FP32"}
    data = {"id": "1", "inputs": [{**tensor, "data": value.tolist()}],
            "outputs": [{"name": "output", "parameters": {"binary_data": True}}]}  # fmt: skip
    size = {"binary_data_size": value.nbytes}
    head = json.dumps({"inputs": [{**tensor, "parameters": size}], "parameters": {"timeout": 9**9}})
    length = {"inference_header_content_length": len(head)}
    return [
        ("/models/churn/predict", {}, {"rows": rows}),
        ("/models/churn/predict", {}, {"rows": {"rate": [0.031, None], "plan": ["plus", "gold"]}}),
        ("/models/router/predict", {}, {"texts": ["my card", "a pin"]}),
        ("/v2/models/churn/infer", {}, data),
        ("/v2/models/churn/infer", length, head.encode() + value.tobytes()),
    ]


@functools.cache
def others():
    """Models of other rooms that cost next to nothing, and right requests for them."""
    log = recommend.events({"user": list("aabbc"), "item": list("xyxzx")}, time=None)
    base = customers.CustomerBase(
        customers.BGNBD(), np.array([0.243, 4.414, 0.793, 2.426]), np.eye(4)
    )
    task = vision.classifier(vision.MLP((4,)))
    image = {"image": np.zeros((1, 28, 28, 1), np.uint8)}
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, image)
    models = {
        "shop": Model(recommend.fitted(recommend.Popularity(), log), None, recommend.LogReader()),
        "sales": Model(forecast.Baseline("seasonal_naive", 3), None, forecast.SeriesReader(3, "D")),
        "base": Model(base, None, customers.LogReader(period="day")),
        "docs": Model(text.index(["my card", "a bank"]), None, text.DocumentReader()),
        "digits": Model(task, state, vision.ImageReader((28, 28), 1)),
    }
    days = [f"2024-01-0{day}" for day in range(1, 8)]
    series = {"id": ["a"] * 7, "time": days, "value": [5, 9, 7, 5, 9, 7, 5]}
    bought = [{"customer": i % 3, "time": day} for i, day in enumerate(days)]
    file = io.BytesIO()
    Image.new("L", (28, 28)).save(file, "png")
    file = base64.b64encode(file.getvalue()).decode()
    pixels = [[0] * 28] * 28
    right = [
        (
            "/models/shop/predict",
            {},
            {"histories": [["x", "w"]], "options": {"k": 2, "deny": ["y"]}},
        ),
        ("/models/sales/predict", {}, {"rows": series, "options": {"horizon": 2}}),
        (
            "/models/base/predict",
            {},
            {"rows": bought, "options": {"horizon": 9, "cutoff": days[-1]}},
        ),
        ("/models/docs/predict", {}, {"texts": ["a card"], "options": {"k": 1}}),
        ("/models/digits/predict", {}, {"images": [pixels, file]}),
    ]
    return serve.application(models, settings=SETTINGS), right


def places(value, path=()):
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(
        value if isinstance(value, list) else ()
    ):  # fmt: skip
        yield from places(inner, (*path, key))


def mutated(value, rng):
    """A body of JSON with one thing replaced, removed, doubled or renamed."""
    value = json.loads(json.dumps(value))
    paths = [*places(value)]
    path = paths[rng.integers(len(paths))]
    if not path:
        return ODD[rng.integers(len(ODD))]
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    act = rng.integers(4)
    if act == 0:
        inner[path[-1]] = ODD[rng.integers(len(ODD))]
    elif act == 1:
        del inner[path[-1]]
    elif act == 2 and isinstance(inner, list):
        inner.insert(0, inner[path[-1]])
    else:
        inner[path[-1]] = [inner[path[-1]]]
    return value


def cut(data, rng):
    """Bytes with some removed, changed, doubled or put in."""
    place, end = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    end = min(end, place + 20)
    middle = [b"", BYTES[rng.integers(len(BYTES))], data[place:end] * 2, rng.bytes(end - place)]
    return data[:place] + middle[rng.integers(4)] + data[end:]


def requests(right, count):
    rng = np.random.default_rng(0)
    for _ in range(count):
        path, headers, body = right[rng.integers(len(right))]
        if not isinstance(body, bytes):
            body = json.dumps(mutated(body, rng)).encode()
        if rng.integers(2) or headers:
            body = cut(body, rng)
        if rng.integers(10) == 0:
            odd = [-1, "x", len(body) // 2, 10**30, ""][rng.integers(5)]
            headers = {"inference_header_content_length": odd}
        yield path, headers, body


@pytest.mark.parametrize("kind", ["two", "others"])
@pytest.mark.parametrize("count", [500, pytest.param(4_000, marks=pytest.mark.slow)])
def test_no_mutated_request_fails_the_server(kind, count):
    service, right = (app(), seeds()) if kind == "two" else others()
    for path, headers, body in right:
        assert post(service, path, body, **headers).status == 200

    async def some(part):
        return await asyncio.gather(*(ask(service, "POST", p, b, **h) for p, h, b in part))

    statuses, sizes = {}, []
    waiting = [*requests(right, count)]
    for start in range(0, count, 50):  # fewer than the queue holds
        part = waiting[start : start + 50]
        for (path, headers, body), told in zip(part, asyncio.run(some(part)), strict=True):
            statuses[told.status] = statuses.get(told.status, 0) + 1
            assert told.status in (200, 400, 413), (path, headers, body, told)
            assert told.status == 200 or 0 < len(told.error) < 1000
        sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
    assert sizes[-1] - sizes[len(sizes) // 2] < 30e6, "memory grows"
    assert statuses[200] > count / 50 and statuses[400] > count / 4, statuses
    for path, headers, body in right:
        assert post(service, path, body, **headers).status == 200
