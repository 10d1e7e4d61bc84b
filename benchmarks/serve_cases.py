"""What `benchmarks.serve` asks: models of jaxops, rows of JSON, and the same for the peers.

The networks are untrained, or nearly so, which does not change how long an answer takes.
"""

import functools
import http.client
import json
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

import jaxops as jo
from benchmarks import workloads
from benchmarks.sequence_data import Size
from jaxops import recommend, tabular, text, vision
from jaxops.data import Tokenizer
from jaxops.serve import tensors
from jaxops.serve.answers import plain
from jaxops.serve.models import Served
from jaxops.serve.readers import inputs_of

ROWS = 32  # different ones that are asked in turns
SIZE = Size(items=20_000, dropout=0.0)  # of SASRec
CONTEXT, WORDS, CLASSES = 64, 8_000, 77  # of the text classifier
TOLERANCE = 1e-4
Headers = http.client.HTTPMessage


class Case(NamedTuple):
    """A model, and rows that are asked of it, one a request.

    Attributes:
        name: of the case.
        model: of jaxops.
        key: under which the route of raw input takes rows.
        rows: JSON.
        about: what the peers have to know of the input.
        column: of the tensor that the binary route takes; "" where there is none.
        tensors: (N, ...), the rows as the network takes them.
        answer: what of the answer to one row is compared.
    """

    name: str
    model: jo.Model
    key: str
    rows: list[Any]
    about: dict[str, Any]
    column: str
    tensors: np.ndarray | None
    answer: Callable[[dict[str, Any]], Any]


def state_of(task: jo.Task, columns: dict[str, np.ndarray]) -> jo.TrainState:
    """A state that is drawn."""
    params, extra = jax.jit(task.init)(jax.random.key(0), columns)
    return jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))


def c01() -> Case:
    """The article's perceptron on images of MNIST's size."""
    size, rng = workloads.C01, np.random.default_rng(0)
    images = rng.integers(0, 256, (ROWS, 28, 28, 1), np.uint8)
    task = vision.classifier(vision.MLP(size.widths[1:-1]), mean=size.mean, std=size.std)
    state = state_of(task, {"image": images[:1], "label": np.zeros(1, np.int32)})
    model = jo.Model(task, state, vision.ImageReader((28, 28), 1))
    rows = images.tolist()
    return Case("C01", model, "images", rows, {}, "image", images, _probabilities)


def tabm() -> Case:
    """TabM on twenty numbers and a text, read in bins, as `tabular.fit` has it by default."""
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {f"x{i}": rng.normal(size=400) for i in range(20)}
    table["plan"] = rng.choice(["basic", "plus", "gold"], 400).astype(object)
    left = (table["x0"] > 0).astype(int)
    network = tabular.TabM()
    model = tabular.fit({**table, "left": left}, network, label="left", epochs=1, progress=False)
    some = {name: column[:ROWS].tolist() for name, column in table.items()}
    rows = [dict(zip(some, row, strict=True)) for row in zip(*some.values(), strict=True)]
    features = model.reader.columns({name: table[name][:ROWS] for name in table})[1]["features"]
    size = workloads.TabM(
        features.shape[1], network.widths[0], len(network.widths), network.members
    )
    encoder = model.reader.encoder
    about = {"size": asdict(size), "encoder": {"edges": encoder.edges, "values": encoder.values}}
    second = functools.partial(_probabilities, first=1)
    return Case("TabM", model, "rows", rows, about, "features", features, second)


def sasrec() -> Case:
    """SASRec's ten best of 20,000 items for histories of 5 to 50."""
    rng = np.random.default_rng(0)
    module = recommend.sasrec(SIZE.items, SIZE.context, SIZE.width, SIZE.depth, dropout=0.0)
    ones = np.ones((1, SIZE.context), np.int32)
    init = jax.jit(functools.partial(module.init, method="hidden"))
    params = init(jax.random.key(0), ones, ones)["params"]
    items, method = np.arange(SIZE.items).astype(str), recommend.SequenceModel(module)
    closed = recommend.Recommender(method, params, items, np.ones(SIZE.items))
    lengths = rng.integers(5, SIZE.context + 1, ROWS)
    rows = [rng.choice(SIZE.items, n, replace=False).astype(str).tolist() for n in lengths]
    model, about = jo.Model(closed, None, recommend.LogReader()), {"size": SIZE._asdict()}

    def best(answer: dict[str, Any]) -> Any:
        return {"items": answer["items"][0], "scores": answer["scores"][0]}

    return Case("SASRec", model, "histories", rows, about, "", None, best)


def texts() -> Case:
    """A convolutional network on texts of 4 to 40 words, one of 77 classes."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(WORDS)])
    rows = [" ".join(rng.choice(words, n)) for n in rng.integers(4, 41, ROWS)]
    tokenizer = Tokenizer.train([*rows, " ".join(words)], kind="word", vocabulary=WORDS)
    read = text.Tokens(tokenizer, CONTEXT)
    module = text.TextCNN(read.vocabulary, CLASSES)
    task = text.classifier(module, CONTEXT, CLASSES)
    tokens = read(rows)["tokens"]
    state = state_of(task, {"tokens": tokens[:1], "label": np.zeros(1, np.int32)})
    names = ("classes", "width", "widths", "filters")
    size = {"vocabulary": read.vocabulary, **{name: getattr(module, name) for name in names}}
    known = {word for row in rows for word in row.split()}
    number = {word: tokenizer.encode(word)[0] for word in known}
    about = {"size": size, "number": number, "context": CONTEXT}
    model = jo.Model(task, state, text.TextReader(read))
    return Case("text", model, "texts", rows, about, "tokens", tokens, _probabilities)


CASES = {"C01": c01, "TabM": tabm, "SASRec": sasrec, "text": texts}


def _probabilities(answer: dict[str, Any], first: int = 0) -> Any:
    return answer["probabilities"][0][first:]


def write(case: Case, folder: Path) -> None:
    """What the servers read: the model of jaxops, and for the peers weights, input and rows."""
    folder.mkdir(parents=True)
    jo.save(folder / f"{case.name}.safetensors", case.model)
    closed = case.model.state is None
    params = case.model.task.params if closed else case.model.state.params
    flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
    np.savez(folder / "weights.npz", **flat)
    (folder / "about.json").write_text(json.dumps(case.about))
    (folder / "rows.json").write_text(json.dumps(case.rows))


class Body(NamedTuple):
    """One way to ask a server: the bytes of each request, and how an answer is read.

    Attributes:
        name: "JSON" or "bytes".
        requests: one for each row.
        read: headers and body of an answer -> what is compared.
    """

    name: str
    requests: list[bytes]
    read: Callable[[Headers, bytes], Any]


def post(path: str, body: bytes, **headers: str) -> bytes:
    r"""The bytes of a request; an underscore in a header's name stands for its hyphen.

    >>> post("/predict", b"{}").partition(b"\r\n")[0]
    b'POST /predict HTTP/1.1'
    """
    told = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in told.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def bodies(case: Case, server: str) -> list[Body]:
    """How a server is asked: JSON of raw rows, and bytes of tensors where it takes them."""
    if server == "jaxops":
        return _ours(case)
    path, key, found = {
        "fastapi": ("/predict", "rows", lambda told: told["answer"][0]),
        "litserve": ("/predict", "rows", lambda told: told["answer"][0]),
        "bentoml": ("/predict", "rows", lambda told: told[0]),
        "mlflow": ("/invocations", "inputs", lambda told: told["predictions"][0]),
    }[server]
    kind = {"Content_Type": "application/json"}
    asked = [post(path, json.dumps({key: [row]}).encode(), **kind) for row in case.rows]
    ways = [Body("JSON", asked, lambda _, body: found(json.loads(body)))]
    if server == "fastapi" and case.tensors is not None:
        raw = [post("/bytes", row.tobytes()) for row in case.tensors]
        ways.append(Body("bytes", raw, lambda _, body: np.frombuffer(body, "<f4").tolist()))
    return ways


def _ours(case: Case) -> list[Body]:
    path = f"/models/{case.name}/predict"
    asked = [post(path, json.dumps({case.key: [row]}).encode()) for row in case.rows]
    ways = [Body("JSON", asked, lambda _, body: case.answer(json.loads(body)["answer"]))]
    if case.tensors is not None:
        ways.append(Body("bytes", [_binary(case, row) for row in case.tensors], _of_binary))
    return ways


def _binary(case: Case, row: np.ndarray) -> bytes:
    """A request of the protocol with the bytes of one row."""
    kind = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32"}[row.dtype.name]
    tensor = {"name": case.column, "shape": [1, *row.shape], "datatype": kind}
    size = {"parameters": {"binary_data_size": row.nbytes}}
    head = {"inputs": [tensor | size], "parameters": {"binary_data_output": True}}
    told = json.dumps(head).encode()
    length = {"Inference_Header_Content_Length": str(len(told))}
    return post(f"/v2/models/{case.name}/infer", told + row.tobytes(), **length)


def _of_binary(headers: Headers, body: bytes) -> Any:
    length = int(headers["Inference-Header-Content-Length"])
    (output,) = json.loads(body[:length])["outputs"]
    size = output["parameters"]["binary_data_size"]
    return np.frombuffer(body[length : length + size], "<f4").tolist()


def wanted(case: Case) -> list[Any]:
    """What `Model.predict` answers to each row, in the form in which answers are compared."""
    inputs, found = inputs_of(case.model), []
    for row in case.rows:
        given = inputs.read({case.key: [row]}, most=1)
        told = plain(case.model.predict(given.data, **given.options))
        if given.first:
            told = {
                name: [row[: given.first] for row in told[name]] for name in ("items", "scores")
            }
        found.append(case.answer(told))
    return found


def difference(one: Any, two: Any) -> float:
    """The largest difference of numbers; infinite where the answers are of other form or items.

    >>> difference({"items": ["a"], "scores": [1.0]}, {"items": ["a"], "scores": [1.5]})
    0.5
    >>> difference([0.5], [0.5, 0.5])
    inf
    """
    if isinstance(one, dict):
        same = one.keys() == two.keys() and one["items"] == two["items"]
        return difference(one["scores"], two["scores"]) if same else np.inf
    one, two = np.asarray(one, float).ravel(), np.asarray(two, float).ravel()
    return float(np.abs(one - two).max()) if one.shape == two.shape else np.inf


def parts(case: Case, body: Body) -> dict[str, float]:
    """Milliseconds of what the server does with a request behind HTTP, in this process.

    They are those of the reading of its body, of the answer of the model (with its reader, where
    rows are raw), and of the writing; the rest of the server's time is HTTP and the queue.
    """
    served = Served(case.name, "1", case.model).warm(1, slots=1)
    head, _, data = body.requests[0].partition(b"\r\n\r\n")
    if body.name == "JSON":

        def read() -> Any:
            return served.inputs.read(tensors.parsed(data), 1000)

        given = read()
        told = served.predict([given])[0].answer
        steps = {
            "read": read,
            "model": lambda: served.predict([given]),
            "write": lambda: json.dumps(plain(told), separators=(",", ":")),
        }
    else:
        length = re.search(rb"(?i)header-content-length: (\d+)", head)
        assert length is not None
        size = length[1].decode()
        asked = tensors.read(data, size)
        given = served.tensors(asked.arrays, 1000)
        answer = served.infer([given])[0].answer
        steps = {
            "read": lambda: served.tensors(tensors.read(data, size).arrays, 1000),
            "model": lambda: served.infer([given]),
            "write": lambda: tensors.write({}, answer, asked),
        }
    return {name: 1000 * median_of(step) for name, step in steps.items()}


def median_of(call: Callable[[], Any], calls: int = 200) -> float:
    """The median seconds of a call, after some that warm up."""
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[calls // 10 :]))
