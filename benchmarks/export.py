"""Exported programs beside jaxops: size, seconds until the first answer, latency of a call.

    python -m benchmarks.export [--rounds 30]

The networks are untrained, which changes none of these figures. A start is loading and the first
answer for one row, in a fresh process after `import jax`, with files that are in the disk's cache.
The calls of an export and of jaxops take turns in one process. They begin with encoded columns, and
with lists of items for SASRec. The load of the machine is printed: read the medians of a loaded
machine with care.
"""

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxops as jo
from jaxops import _table, language, nn, recommend, tabular, vision
from jaxops.model.exported import run
from jaxops.task import example

ITEMS = 20_000
START = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
import jax, numpy as np
from run import load
begin = time.perf_counter()
model = load(sys.argv[1])
columns = {c["name"]: np.zeros([n if isinstance(n, int) else {"batch": 1, "length": 64}[n]
                                for n in c["shape"]], c["dtype"]) for c in model.manifest["inputs"]}
model.apply(columns)
print(json.dumps(time.perf_counter() - begin))
"""


@dataclass(frozen=True)
class Settings:
    """How often each call and each start is measured, after a first one."""

    rounds: int = 30
    starts: int = 3
    seconds: float = 10.0  # after which no more than three rounds are made


class Case(NamedTuple):
    """A model, its raw input for so many rows, and what jaxops does with it."""

    name: str
    model: jo.Model
    raw: Callable[[int], Any]
    own: Callable[[Any], Callable[[], Any]]
    options: dict[str, Any] = {}  # noqa: RUF012
    rows: tuple[int, int] = (1, 64)  # of a call


def main(settings: Settings) -> list[dict[str, str]]:
    """Measure, and print one row for each model and number of rows."""
    rows = []
    print(f"load of the machine {os.getloadavg()[0]:.1f}", flush=True)
    for case in cases():
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(case, Path(folder), settings)
        print(_table.table(rows[-2:]), flush=True)
    print(_table.table(rows))
    return rows


def measured(case: Case, folder: Path, settings: Settings) -> list[dict[str, str]]:
    """Export a model twice, start both, and call it beside jaxops."""
    plain = jo.export(case.model, folder / "plain", **case.options)
    kept = jo.export(case.model, folder / "kept", compile_for=case.rows, **case.options)
    starts = [
        statistics.median(started(path) for _ in range(settings.starts)) for path in (plain, kept)
    ]
    program, parameters = (
        (plain / name).stat().st_size for name in ("program.bin", "parameters.npz")
    )
    model, found = run.load(kept), []
    for count in case.rows:
        raw = case.raw(count)
        ours, own = functools.partial(model.predict, raw), case.own(raw)
        times: dict[Any, list[float]] = {ours: [], own: []}
        end = time.perf_counter() + settings.seconds
        for turn in range(settings.rounds + 1):
            if turn > 3 and time.perf_counter() > end:
                break
            for call in times:
                begin = time.perf_counter()
                call()
                times[call].append(time.perf_counter() - begin)
        medians = [statistics.median(values[1:]) for values in times.values()]
        found.append(
            {
                "model": case.name,
                "rows": str(count),
                "program, MB": f"{program / 1e6:.2f}",
                "parameters, MB": f"{parameters / 1e6:.1f}",
                "start, s": f"{starts[0]:.2f}",
                "start with compiled, s": f"{starts[1]:.2f}",
                "export, ms": f"{1e3 * medians[0]:.2f}",
                "jaxops, ms": f"{1e3 * medians[1]:.2f}",
            }
        )
    return found


def started(folder: Path) -> float:
    """Seconds of loading and the first answer for one row, in a fresh process."""
    command = [sys.executable, "-I", "-c", START, str(folder)]
    return float(json.loads(subprocess.check_output(command)))


def cases() -> list[Case]:
    """The articles' C01 and C03, a GPT, TabM, and SASRec's ten best of 20,000 items."""
    image = functools.partial(drawn, "image", (28, 28, 1), 256, np.uint8)
    gpt = nn.Transformer(nn.TransformerConfig(4_096, context=128, depth=4, heads=4, width=256))
    tokens = functools.partial(drawn, "tokens", (129,), 4_096, np.int32)
    return [
        of_task("C01, MLP 784-128-10", vision.classifier(vision.MLP((128,))), image),
        of_task("C03, CNN", vision.classifier(vision.CNN()), image),
        of_task(
            "GPT, 4 blocks of 256, 128 tokens",
            language.next_token(gpt),
            lambda count: tokens(count) | {"segments": np.ones((count, 129), np.int32)},
            length=129,
        )._replace(rows=(1, 8)),
        of_task(
            "TabM, 30 features",
            tabular.classifier(tabular.TabM(), 30),
            lambda count: {
                "features": np.random.default_rng(0).normal(size=(count, 30)).astype("f4")
            },
        ),
        of_sasrec(),
    ]


def drawn(name: str, shape: tuple[int, ...], end: int, dtype: Any, count: int) -> dict[str, Any]:
    """A column of random integers."""
    return {name: np.random.default_rng(0).integers(0, end, (count, *shape)).astype(dtype)}


def of_task(name: str, task: Any, raw: Callable[[int], Any], **options: Any) -> Case:
    """A task with new parameters, whose calls in jaxops are those of `jo.predictor`."""
    params, extra = jax.jit(task.init)(jax.random.key(0), raw(1) | example(task.columns) | raw(1))
    state = jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))

    def own(columns: Any) -> Callable[[], Any]:
        return functools.partial(jo.predictor(task, state, columns), columns)

    return Case(name, jo.Model(task, state), raw, own, options)


def of_sasrec() -> Case:
    """SASRec of 20,000 items and histories of 50."""
    module = recommend.sasrec(ITEMS)
    ones = np.ones((1, 50), np.int32)
    params = jax.jit(functools.partial(module.init, method="hidden"))(jax.random.key(0), ones, ones)
    items, method = np.arange(ITEMS).astype(str), recommend.SequenceModel(module)
    model = jo.Model(recommend.Recommender(method, params["params"], items, np.ones(ITEMS)))

    def histories(count: int) -> list[list[str]]:
        return np.random.default_rng(0).integers(0, ITEMS, (count, 50)).astype(str).tolist()

    return Case(
        "SASRec, ten best of 20,000",
        model,
        histories,
        lambda raw: functools.partial(recommend.recommend, model, raw, 10),
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
