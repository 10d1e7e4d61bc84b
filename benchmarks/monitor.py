"""What it costs to count rows inside the program that predicts them, and to make a reference.

    python -m benchmarks.monitor [--rounds 40]

The two programs of `jo.predictor`, without and with an observer, take turns in one process, each
for many calls in a row; the cost is the median over the rounds of the time of one by that of the
other. The seconds of the reference are those that `fit` spends on it at the end, for Adult's
validation rows where `JAXOPS_DATA_DIR` has Adult. The load of the machine is printed: read a loaded
machine's figures with care.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tyro

import jaxops as jo
from experiments import defaults
from jaxops import _table, monitor, tabular, text, vision
from jaxops.model.finished import Model


@dataclass(frozen=True)
class Settings:
    """How long is measured."""

    rounds: int = 40
    turn: float = 0.02
    """seconds of calls of one program before the other has its turn"""
    rows: tuple[int, ...] = (64, 256, 1024)
    """of a call"""
    cases: tuple[str, ...] = ("C01", "TabM", "text")
    """of the networks"""


def main(settings: Settings) -> list[dict[str, str]]:
    """Measure, and print one row for each network and number of rows."""
    found: list[dict[str, str]] = []
    for name in settings.cases:
        model, columns = CASES[name]()
        start = time.perf_counter()
        reference = monitor.reference_of(model, columns)
        model.outputs(columns)  # the programs are compiled now
        start = time.perf_counter()
        model.outputs(columns)
        predicts = time.perf_counter() - start
        start = time.perf_counter()
        reference = monitor.reference_of(model, columns)
        seconds, own = time.perf_counter() - start, len(next(iter(columns.values())))
        print(
            f"{name}: reference of {own:,} rows in {seconds:.2f} s, of which {predicts:.2f} s "
            f"predict; {sum(part.nbytes for part in reference.sketch):,} bytes a sketch; load "
            f"{os.getloadavg()[0]:.1f}",
            flush=True,
        )
        found += [measured(name, model, columns, reference, n, settings) for n in settings.rows]
    print(_table.table(found))
    return found


def measured(
    name: str,
    model: Model,
    columns: dict[str, np.ndarray],
    reference: monitor.Reference,
    count: int,
    settings: Settings,
) -> dict[str, str]:
    """Time a call for so many rows, without and with an observer, in turns."""
    task, state = model.trained()
    observer = monitor.Observer(reference)
    rows = {n: np.resize(x, (count, *x.shape[1:])) for n, x in columns.items()}
    plain, counting = jo.predictor(task, state, rows), jo.predictor(task, state, rows, observer)
    assert np.allclose(plain(rows), counting(rows), atol=1e-6)
    calls = max(1, int(settings.turn / seconds_of(plain, rows, 5)))
    pairs = []
    for turn in range(settings.rounds):
        first, other = (plain, counting) if turn % 2 else (counting, plain)
        times = {one: seconds_of(one, rows, calls) for one in (first, other)}
        pairs.append((times[plain], times[counting]))
    shares = [100 * (with_ / without - 1) for without, with_ in pairs]
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75])
    without, with_ = (1e6 * statistics.median(one) for one in zip(*pairs, strict=True))
    return {
        "network": name,
        "rows": str(count),
        "predicts, µs": f"{without:.1f}",
        "and counts, µs": f"{with_:.1f}",
        "cost": f"{middle:.1f} %",
        "quartiles": f"{low:.1f} to {high:.1f} %",
    }


def seconds_of(call: Callable[[Any], Any], rows: dict[str, np.ndarray], times: int) -> float:
    """The mean seconds of calls in a row."""
    start = time.perf_counter()
    for _ in range(times):
        call(rows)
    return (time.perf_counter() - start) / times


def c01() -> tuple[Model, dict[str, np.ndarray]]:
    """The article's network for MNIST, 784-128-10, with new parameters."""
    task = vision.classifier(vision.MLP((128,)))
    image = np.random.default_rng(0).integers(0, 256, (4096, 28, 28, 1)).astype(np.uint8)
    state = jo.init_state(task, jo.optim.adam(1e-3), 0, {"image": image[:1]})
    return Model(task, state), {"image": image}


def tabm() -> tuple[Model, dict[str, np.ndarray]]:
    """`tabular.fit` by its default, of a few steps: of Adult, or of a table of its kind."""
    label, folder = "income", os.environ.get("JAXOPS_DATA_DIR")
    if folder and os.path.isdir(os.path.join(folder, "adult")):
        train, test = defaults.adult_frames()
    else:
        rng, count = np.random.default_rng(0), 36_000
        table: dict[str, np.ndarray] = {f"x{i}": rng.normal(size=count) for i in range(6)}
        table |= {f"t{i}": rng.integers(0, 4 * i + 4, count).astype(str) for i in range(8)}
        table[label] = (table["x0"] + rng.normal(size=count) > 1).astype(int)
        train, test = (
            {n: x[part] for n, x in table.items()} for part in (slice(6000, None), slice(6000))
        )
    model = tabular.fit(train, label=label, steps=5, progress=False)
    _, columns = model.reader.columns(test)
    return model, {"features": columns["features"][:4800]}  # as many as are for validation


def texts() -> tuple[Model, dict[str, np.ndarray]]:
    """`text.NGramBag` of 77 classes for texts of 12 random words, with new parameters."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(2000)])
    lines = [" ".join(words[rng.integers(0, 2000, 12)]) for _ in range(2000)]
    read = text.NGrams(context=256, vocabulary=2**15)
    task = text.classifier(text.NGramBag(read.vocabulary, 77), read.context, 77)
    columns = read(lines)
    state = jo.init_state(task, jo.optim.adam(1e-3), 0, {"tokens": columns["tokens"][:1]})
    return Model(task, state), columns


CASES: dict[str, Callable[[], tuple[Model, dict[str, np.ndarray]]]] = {
    "C01": c01,
    "TabM": tabm,
    "text": texts,
}


if __name__ == "__main__":
    main(tyro.cli(Settings))
