"""The Open Inference Protocol: by hand, and by Triton's own client over a socket."""

import json
import struct
import threading
import time
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from serve_client import TABLE, app, churn, get, post, router

from jaxops import serve, tabular
from jaxops.model.finished import Model
from jaxops.serve import tensors
from jaxops.serve.refused import Refused
from jaxops.task import Column, Task

INFER = "/v2/models/churn/infer"


def features(rows):
    _, columns = churn().reader.columns({name: TABLE[name][:rows] for name in ("rate", "plan")})
    return columns["features"]


def tensor(value, **changes):
    named = {"name": "features", "shape": [*value.shape], "datatype": "FP32"}
    return {**named, "data": value.tolist()} | changes


def with_bytes(head, *parts):
    for one in head["inputs"]:
        one.pop("data", None)
    text = json.dumps(head).encode()
    return text + b"".join(parts), {"inference_header_content_length": len(text)}


def test_health_and_metadata():
    assert get(app(), "/v2").json["extensions"] == ["binary_tensor_data"]
    assert get(app(), "/v2/health/live").status == get(app(), "/v2/health/ready").status == 200
    assert get(app(), "/v2/models/churn/ready").json == {"name": "churn", "ready": True}
    assert get(app(), "/v2/models/churn/versions/1/ready").status == 200
    assert get(app(), "/v2/models/churn/versions/2/ready").status == 404
    width = features(1).shape[1]
    assert get(app(), "/v2/models/churn").json == {
        "name": "churn",
        "platform": "jaxops",
        "versions": ["1"],
        "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, width]}],
        "outputs": [{"name": "output", "datatype": "FP32", "shape": [-1]}],
    }
    tokens = get(app(), "/v2/models/router/versions/1").json["inputs"]
    columns = [c for c in router().task.columns if not c.target]
    assert [one["name"] for one in tokens] == [column.name for column in columns]


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("gives", [False, True])
def test_tensors_in_json_and_in_bytes(gives, asks):
    value = features(5)
    head = {"id": "7", "inputs": [tensor(value)], "parameters": {"binary_data_output": asks}}
    data, headers = head, {}
    if gives:
        head["inputs"][0]["parameters"] = {"binary_data_size": value.nbytes}
        data, headers = with_bytes(head, value.tobytes())
    told = post(app(), INFER, data, **headers)
    assert told.status == 200, told.error
    length = int(told.headers.get("inference-header-content-length", len(told.body)))
    answer = json.loads(told.body[:length])
    (output,) = answer["outputs"]
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("churn", "1", "7")
    assert (output["name"], output["datatype"], output["shape"]) == ("output", "FP32", [5])
    found = np.frombuffer(told.body[length:], "<f4") if asks else np.array(output["data"])
    assert asks == ("parameters" in output)
    np.testing.assert_allclose(found, churn().outputs({"features": value}), atol=1e-6)


def test_a_closed_form_takes_raw_columns_and_answers_with_texts():
    method = tabular.HistGradientBoosting(max_iter=5, min_samples_leaf=5)
    model = tabular.fit(TABLE, method, label="left", progress=False)
    trees = serve.application({"trees": model}, settings=serve.Settings(batch_size=1))
    told = get(trees, "/v2/models/trees").json
    assert [(one["name"], one["datatype"]) for one in told["inputs"]] == [
        ("rate", "FP64"), ("plan", "BYTES"),
    ]  # fmt: skip
    plans = [b"gold", "plüs".encode()]
    packed = b"".join(struct.pack("<I", len(text)) + text for text in plans)
    rates = np.array([0.031, np.nan])
    head = {"inputs": [
        {"name": "plan", "shape": [2], "datatype": "BYTES",
         "parameters": {"binary_data_size": len(packed)}},
        {"name": "rate", "shape": [2], "datatype": "FP64",
         "parameters": {"binary_data_size": rates.nbytes}},
    ], "outputs": [{"name": "labels"}, {"name": "probabilities"}]}  # fmt: skip
    data, headers = with_bytes(head, packed, rates.tobytes())
    labels, probabilities = post(trees, "/v2/models/trees/infer", data, **headers).json["outputs"]
    wanted = model.predict({"rate": rates, "plan": ["gold", "plüs"]})
    assert labels == {"name": "labels", "datatype": "BYTES", "shape": [2],
                      "data": wanted.labels.tolist()}  # fmt: skip
    found = np.reshape(probabilities["data"], probabilities["shape"])
    np.testing.assert_allclose(found, wanted.probabilities, atol=1e-6)
    head["outputs"] = [{"name": "labels", "parameters": {"binary_data": True}}]
    data, headers = with_bytes(head, packed, rates.tobytes())
    told = post(trees, "/v2/models/trees/infer", data, **headers)
    rest = told.body[int(told.headers["inference-header-content-length"]) :]
    texts = [label.encode() for label in wanted.labels]
    assert rest == b"".join(struct.pack("<I", len(text)) + text for text in texts)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"shape": [3, 1]}, "features must have 3 values for its shape, got "),
        ({"shape": [2, 2**39, 5]}, "values for its shape, got "),
        ({"shape": [0, 5]}, "shape of features must be 1 to 8 whole numbers from 1"),
        ({"shape": "x"}, "shape of features must be 1 to 8 whole numbers from 1, got 'x'"),
        ({"datatype": "FP8"}, "datatype of features must be among BOOL, UINT8"),
        ({"datatype": "BYTES"}, "features must be object, got 0.0 in row 0"),
        ({"datatype": "INT32"}, "features must be int32, got 0.0 in row 0"),
        ({"datatype": "INT8", "shape": [3], "data": [0, 0, 128]}, "int8, got 128 in row 2"),
        ({"datatype": "INT8", "shape": [1], "data": [1]}, "must have dtype float, got int8"),
        ({"shape": [2, 1], "data": [0.0, 1e39]}, "features must be float32, got 1e+39 in row 1"),
        ({"shape": [2, 1], "data": [0.0, 10**400]}, "features must be float32, got 1000"),
        ({"data": [[0.0] * 5, [0.0] * 4]}, "nested lists of equal lengths"),
        ({"name": "x"}, "inputs must be features, got 'x'"),
        ({"name": 3}, "name must be a text of 1 to 200 characters, got 3"),
        ({"shape": [1, 1], "data": [0.5]}, "features must have rows of shape"),
        ({"more": 1}, "an input must have name, shape, datatype, parameters, data alone"),
        ({"parameters": {"binary_data_size": 4}}, "must have data or binary_data_size, got both"),
    ],
)
def test_a_wrong_tensor_is_refused(change, sentence):
    value = np.zeros((2, features(1).shape[1]), np.float32)
    told = post(app(), INFER, {"inputs": [tensor(value, **change)]})
    assert told.status == 400 and sentence in told.error, told.error


def test_wrong_heads_and_bytes_are_refused():
    value = features(2)
    size = {"binary_data_size": value.nbytes}
    bits = {"inputs": [tensor(value, parameters=size)]}
    data, headers = with_bytes(bits, value.tobytes())
    for body, header, sentence in (
        (data[:-1], headers, f"must be 0 to {value.nbytes - 1}, got {value.nbytes}"),
        (data + b"x", headers, "the tensors' bytes must end with the body, got 1 more"),
        (data, {"inference_header_content_length": "-1"}, "the header's length must be whole"),
        (data, {"inference_header_content_length": 10**6}, "the header's length must be at most"),
        (data, {}, "the body must be JSON"),
        ({"inputs": []}, {}, "inputs must be a list of at least one tensor"),
        ({"inputs": [tensor(value)] * 2}, {}, "names of their own, got 'features' twice"),
        (
            {"inputs": [tensor(value)], "outputs": [{"name": "x"}]},
            {},
            "outputs must be among output",
        ),
        ({"inputs": [tensor(value)], "parameters": {"x": 1}}, {}, "parameters must have"),
        ({"inputs": [tensor(value, datatype="BF16")]}, {}, "must be given as bytes, as JSON has"),
        ({"inputs": [tensor(value)], "parameters": {"timeout": 0}}, {}, "microseconds above 0"),
        ({"inputs": [tensor(value)], "id": 3}, {}, "id must be a text, got 3"),
        ({"inputs": [tensor(value)], "x": 3}, {}, "the body must have id, parameters, inputs"),
    ):
        told = post(app(), INFER, body, **header)
        assert told.status == 400 and sentence in told.error, told.error
    nan = np.full_like(value, np.nan)
    data, headers = with_bytes({"inputs": [tensor(value, parameters=size)]}, nan.tobytes())
    assert "features must be finite, got NaN in row 0" in post(app(), INFER, data, **headers).error
    many = np.zeros((101, value.shape[1]), np.float32)
    told = post(app(), INFER, {"inputs": [tensor(many)]})
    assert (told.status, told.error) == (413, "features must have at most 100 rows, got 101")


def test_bf16_parameters_of_sequences_and_outputs_that_are_not_finite():
    value = np.array([[0.5, -2.0, 3.0]], np.float32)  # exact in BF16
    halves = (value.view("<u4") >> 16).astype("<u2").tobytes()
    one = tensor(value, datatype="BF16", parameters={"binary_data_size": 6})
    data, headers = with_bytes(
        {"inputs": [one], "parameters": {"priority": 1, "sequence_id": 3}}, halves
    )
    asked = tensors.read(data, str(headers["inference_header_content_length"]))
    assert asked.arrays["features"].tolist() == value.tolist()
    text, _ = tensors.write({}, {"p": np.array([0.5, np.nan])}, asked)
    assert json.loads(text)["outputs"][0]["data"] == [0.5, None]


@pytest.mark.parametrize("data", [b"\x01\0\0\0", b"\x09\0\0\0a", b"\x01\0\0\0\xff", b"\x01\0", b""])
def test_wrong_texts_in_bytes_are_refused(data):
    one = {"name": "x", "shape": [1], "datatype": "BYTES",
           "parameters": {"binary_data_size": len(data)}}  # fmt: skip
    head = json.dumps({"inputs": [one]}).encode()
    with pytest.raises(Refused, match=r"x must (be UTF-8|have 1 texts)"):
        tensors.read(head + data, str(len(head)))


@pytest.fixture
def port(tmp_path):
    """The port of a server in a thread, as signals are for the main thread alone."""
    uvicorn = pytest.importorskip("uvicorn")
    config = uvicorn.Config(app(), port=0, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


def test_the_client_of_triton_works_unchanged(port):
    http = pytest.importorskip("tritonclient.http")
    client = http.InferenceServerClient(f"127.0.0.1:{port}", concurrency=4)
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready("churn") and client.is_model_ready("churn", "1")
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "jaxops"
    assert client.get_model_metadata("churn")["inputs"][0]["name"] == "features"
    value = features(6)
    wanted = churn().outputs({"features": value})
    for binary_in in (True, False):
        given = http.InferInput("features", value.shape, "FP32")
        given.set_data_from_numpy(value, binary_data=binary_in)
        for outputs in (None, [http.InferRequestedOutput("output", binary_data=True)],
                        [http.InferRequestedOutput("output", binary_data=False)]):  # fmt: skip
            told = client.infer("churn", [given], outputs=outputs, request_id="9", timeout=10**7)
            np.testing.assert_allclose(told.as_numpy("output"), wanted, atol=1e-6)
            assert told.get_response()["id"] == "9"
    waiting = [client.async_infer("churn", [given], model_version="1") for _ in range(4)]
    for one in waiting:
        np.testing.assert_allclose(one.get_result().as_numpy("output"), wanted, atol=1e-6)
    given = http.InferInput("wrong", [1], "FP32")
    given.set_data_from_numpy(np.zeros(1, np.float32))
    utils = pytest.importorskip("tritonclient.utils")
    with pytest.raises(
        utils.InferenceServerException, match="inputs must be features, got 'wrong'"
    ):
        client.infer("churn", [given])
    client.close()


class Lengths(NamedTuple):
    ids: np.ndarray
    lengths: np.ndarray


class Reader:
    room, text = "language", "words"

    def predict(self, model, data):
        return Lengths(np.arange(len(data["words"])), np.array([*map(len, data["words"])]))


def test_rows_that_must_have_some_length_are_asked_as_texts():
    def predict(params, extra, batch):
        if batch["x"].shape[1] < 8:
            raise ValueError("x must have at least 8 columns")

    task = Task(lambda key, batch: ({}, {}), None, predict, (Column("x", (None,), "int"),))
    model = Model(task, churn().state._replace(params={}, extra={}), Reader())
    app = serve.application({"words": model}, settings=serve.Settings(batch_size=1))
    told = get(app, "/v2/models/words").json
    assert told["inputs"] == [{"name": "texts", "datatype": "BYTES", "shape": [-1]}]
    one = {"name": "texts", "shape": [2], "datatype": "BYTES", "data": ["a", "/etc/hostname"]}
    ids, lengths = post(app, "/v2/models/words/infer", {"inputs": [one]}).json["outputs"]
    assert (ids["data"], lengths["data"], lengths["datatype"]) == ([0, 1], [1, 13], "INT64")
    answer = post(app, "/models/words/predict", {"texts": ["a card"]}).json["answer"]
    assert answer == {"ids": [0], "lengths": [6]}


def test_outputs_with_names_and_free_lengths():
    def predict(params, extra, batch):
        x = batch["x"].astype(jnp.float32)
        return {"mean": x.mean(1), "each": x}

    task = Task(lambda key, batch: ({}, {}), None, predict, (Column("x", (None,), "int"),))
    state = churn().state._replace(params={}, extra={})
    free = serve.application({"free": Model(task, state)}, settings=serve.Settings(batch_size=1))
    told = get(free, "/v2/models/free").json
    assert told["inputs"] == [{"name": "x", "datatype": "INT32", "shape": [-1, -1]}]
    assert {one["name"]: one["shape"] for one in told["outputs"]} == {
        "each": [-1, -1],
        "mean": [-1],
    }
    odd = {"name": "x", "shape": [2, 3], "datatype": "INT32", "data": [1, 2, 3, 4, 5, 6]}
    told = post(free, "/v2/models/free/infer", {"inputs": [odd]})
    assert (
        told.status == 400
        and "must have as length a power of two, at most 4,096, got 3" in told.error
    )
    x = {"name": "x", "shape": [2, 2], "datatype": "INT32", "data": [1, 3, 4, 6]}
    each, mean = post(free, "/v2/models/free/infer", {"inputs": [x]}).json["outputs"]
    assert (mean["data"], each["shape"]) == ([2.0, 5.0], [2, 2])
