"""What compressing a model costs and gains, measured: `receipt`."""

import importlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxops import _table
from jaxops.compress.networks import Network, walked
from jaxops.model.encoding import encode
from jaxops.model.exported.run import machine
from jaxops.model.files import plain, save
from jaxops.model.finished import Model, columns_of
from jaxops.nn.packed import is_packed, unpacked
from jaxops.task import Task
from jaxops.trust.evaluation import BLOCKS, Evaluation

ROWS = (1, 64, 1024)
TURNS, LEAST, SECONDS = 200, 20, 10.0  # calls of each model for each number of rows


@dataclass(frozen=True)
class Receipt:
    """A compressed model beside the original.

    Attributes:
        figures: for each metric of the room `metric`, `original`, `compressed`, and the
            `difference` (compressed - original) with the bounds `low` and `high` of its 95 %
            interval over the same units, and `p`, see `Evaluation.paired`; NaN without an interval.
        sizes: `what`, `original`, `compressed`, and `share` (compressed / original), of bytes on
            disk, bytes of the arrays in memory, parameters, and those that are not 0.
        times: for each number of `rows` the 50th and 99th percentiles in milliseconds, such as
            `original p50` and `compressed p99`, and the number of `calls` of each model.
        steps: what was done, `about["compressed"]` of the model.
        machine: where the times were measured; `load` is the mean number of running programs in the
            minute before the times were taken.

    >>> sizes = [{"what": "bytes on disk", "original": 400, "compressed": 100, "share": 0.25}]
    >>> print(Receipt([], sizes, [], [], {}))
    | what          | original | compressed | share |
    |---------------|---------:|-----------:|------:|
    | bytes on disk |      400 |        100 |  0.25 |
    """

    figures: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    times: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    machine: dict[str, Any]

    def json(self) -> str:
        """The receipt as JSON; NaN is null."""

        def finite(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: finite(one) for name, one in value.items()}
            if isinstance(value, list):
                return [finite(one) for one in value]
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return json.dumps(finite(asdict(self)), indent=1, default=plain)

    def __str__(self) -> str:
        layers = [layer for step in self.steps for layer in step.get("layers", [])]
        tables = [self.figures, self.sizes, self.times, layers]
        parts = [_table.table(rows) for rows in tables if rows]
        done = [", ".join(f"{k} {v}" for k, v in step.items() if not isinstance(v, dict | list))
                for step in self.steps]  # fmt: skip
        where = [", ".join(f"{k} {v}" for k, v in self.machine.items() if v != "")]
        return "\n\n".join(["\n".join(done)] * bool(done) + parts + where * bool(self.machine))


def receipt(
    original: Model,
    compressed: Model,
    data: Any,
    *,
    evaluate: Callable[[Model, Any], Evaluation] | None = None,
    call: Callable[[Model, int], Any] | None = None,
) -> Receipt:
    """Measure a compressed model beside the original, on this machine.

    The times are of one call for 1, 64 and 1,024 rows, by turns: a call of each model, 200 times or
    for 10 seconds. Of a task it is the compiled program on encoded columns, without the reader,
    which both models share; of a closed form with encoded columns `Model.outputs`.

    Args:
        original: the model as it was.
        compressed: the model that was made of it.
        data: test data with its labels, which the model's room evaluates; its rows, repeated where
            there are fewer, are also those of the timed calls.
        evaluate: `(model, data) -> Evaluation`; by default `evaluate` of the model's room.
        call: `(model, rows) -> answer` of a call to be timed; needed for a model that does not
            predict from encoded columns, such as a recommender.

    Raises:
        ValueError: a model without a reader and without `evaluate`; one that needs `call`; data
            that the room cannot evaluate.

    >>> from jaxops import compress, tabular
    >>> rows = {"age": np.arange(80.0) % 40, "left": np.arange(80) % 40 < 20}
    >>> model = tabular.fit(rows, tabular.MLP((64,)), label="left", epochs=3, progress=False)
    >>> bill = compress.receipt(model, compress.quantise(model), rows)
    >>> bill.figures[0]["metric"], bill.times[0]["rows"], bill.sizes[0]["share"] < 1
    ('accuracy', 1, True)
    """
    evaluate = _evaluate_of(original) if evaluate is None else evaluate
    scored = [evaluate(model, data) for model in (original, compressed)]
    if call is None:
        call = _call_of(original, data)
    load = round(os.getloadavg()[0], 1)
    times = [_times((original, compressed), call, rows) for rows in ROWS]
    return Receipt(
        _figures(*scored),
        sizes(original, compressed),
        times,
        list(compressed.about.get("compressed", [])),
        machine() | {"cores": os.cpu_count(), "load": load},
    )


def _evaluate_of(model: Model) -> Any:
    if not model.room:
        raise ValueError("evaluate must be given for a model without a reader, got None")
    room = importlib.import_module(f"jaxops.{model.room}")
    if not hasattr(room, "evaluate"):
        raise ValueError(f"evaluate must be given for a model of the room {model.room}, got None")
    return room.evaluate


def _call_of(model: Model, data: Any) -> Callable[[Model, int], Any]:
    """A call of the program of a task, or of `outputs`, for rows of the data."""
    try:
        columns = columns_of(model, data)
    except ValueError as error:
        raise ValueError(f"call must be given for this model, got None: {error}") from error
    count = len(next(iter(columns.values())))
    taken = {n: {name: x[np.arange(n) % count] for name, x in columns.items()} for n in ROWS}
    programs: dict[int, Any] = {}

    def call(model: Model, rows: int) -> Any:
        if not isinstance(model.task, Task):
            return model.outputs(taken[rows])
        task, state = model.trained()
        if id(task) not in programs:
            programs[id(task)] = jax.jit(task.predict)
        return programs[id(task)](state.params, state.extra, taken[rows])

    return call


def _figures(original: Evaluation, compressed: Evaluation) -> list[dict[str, Any]]:
    before, after = original.figures(), compressed.figures()
    rows = []
    for metric in before:
        values = {"original": before[metric], "compressed": after[metric]}
        row = {"metric": metric, **values, "difference": after[metric] - before[metric]}
        row |= dict.fromkeys(("low", "high", "p"), math.nan)
        if metric not in original.bare and len(original) // original.block >= BLOCKS:
            row |= compressed.paired(original, metric)._asdict()
        rows.append(row)
    return rows


def sizes(original: Model, compressed: Model) -> list[dict[str, Any]]:
    """The rows `Receipt.sizes` of two models."""
    both = [_sizes_of(model) for model in (original, compressed)]
    return [
        {"what": what, "original": one, "compressed": two, "share": two / max(one, 1)}
        for (what, one), two in zip(both[0].items(), both[1].values(), strict=True)
    ]


def _sizes_of(model: Model) -> dict[str, int]:
    trees: list[Any] = []

    def keep(part: Network) -> Network:
        trees.append(part.params)
        return part

    walked(model, keep)
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder) / "model", model)
        size = (Path(folder) / "model").stat().st_size
    arrays: dict[str, Any] = {}
    if model.state is None:
        encode(model.task, arrays)
    held = jax.tree.leaves((arrays, model.state and (model.state.params, model.state.extra)))
    leaves = [x for x in jax.tree.leaves(trees, is_leaf=is_packed) if hasattr(x, "shape")]
    return {
        "bytes on disk": size,
        "bytes in memory": sum(np.asarray(x).nbytes for x in held),
        "parameters": sum(x.size for x in leaves),
        "parameters that are not 0": sum(int(np.count_nonzero(unpacked(x))) for x in leaves),
    }


def _times(
    models: tuple[Model, Model], call: Callable[[Model, int], Any], rows: int
) -> dict[str, Any]:
    """The percentiles of calls for so many rows, the models by turns, after two calls of each."""
    for model in models * 2:
        jax.block_until_ready(call(model, rows))
    end = time.monotonic() + SECONDS
    taken: tuple[list[float], list[float]] = ([], [])
    while len(taken[1]) < LEAST or (len(taken[1]) < TURNS and time.monotonic() < end):
        for model, times in zip(models, taken, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(call(model, rows))
            times.append(1e3 * (time.perf_counter() - start))
    found: dict[str, Any] = {"rows": rows}
    for name, times in zip(("original", "compressed"), taken, strict=True):
        p50, p99 = np.percentile(times, [50, 99])
        found |= {f"{name} p50": float(p50), f"{name} p99": float(p99)}
    return found | {"calls": len(taken[1])}
