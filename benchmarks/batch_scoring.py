"""How fast and in how much memory files are scored: `python -m benchmarks.batch_scoring`.

A table of 20 columns (an id, 17 numbers, 2 texts) is scored by the default network for tables, by
`jaxops predict` in a process of its own: a tenth of the rows, and all. If the peak of memory is the
same, it does not depend on the file. The rates of the three stages are those of this process: to
read the file, to turn rows into features, the network, and to write the answers.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

import jaxops as jo
from jaxops import tabular
from jaxops.data import tables
from jaxops.model import scoring

NUMBERS = [f"x{i}" for i in range(17)]


def frames(rows: int) -> Iterator[pd.DataFrame]:
    """The rows of the table, 100,000 at a time."""
    rng = np.random.default_rng(0)
    for first in range(0, rows, 100_000):
        size = min(100_000, rows - first)
        table: dict[str, Any] = {"id": np.arange(first, first + size)}
        table |= {name: rng.normal(size=size).round(4) for name in NUMBERS}
        table |= {n: rng.choice([*"abcdefgh"], size).astype(object) for n in ("plan", "region")}
        yield pd.DataFrame(table)


def written(folder: Path, rows: int, suffix: str) -> Path:
    """A file of so many rows; Parquet has row groups of a million rows, as most writers make."""
    path = folder / f"{rows}{suffix}"
    table = pa.concat_tables([pa.Table.from_pandas(f, preserve_index=False) for f in frames(rows)])
    if suffix == ".csv":
        pacsv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def model(path: Path) -> jo.Model:
    """A network of the default sizes, not trained."""
    some = next(frames(10_000)).drop(columns="id")
    some["left"] = np.where(some["x0"] > 0, "yes", "no")
    table = tabular.read(some)
    encoder = tabular.fit_encoder(table, label="left")
    features = tabular.encode(encoder, table)["features"]
    task = tabular.classifier(tabular.MLP(), features.shape[1], classes=("no", "yes"))
    state = jo.init_state(task, jo.optim.adam(1e-3), 0, {"features": features[:1]})
    made = jo.Model(task, state, tabular.TableReader(encoder, id="id"))
    jo.save(path, made)
    return made


def scored(path: Path, data: Path) -> tuple[float, float]:
    """The seconds and the peak memory, in MB, of `jaxops predict`."""
    out = data.with_name(f"scores-{data.name.replace('.', '-')}")
    command = [sys.executable, "-m", "jaxops", "predict", path, data, "--out", f"{out}/"]
    start = time.perf_counter()
    process = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    return time.perf_counter() - start, used.ru_maxrss / 1e3


def rates(found: jo.Model, data: Path, rows: int, out: Path) -> dict[str, float]:
    """Rows a second of each stage, alone."""

    def rate(call: Callable[[], Any]) -> tuple[float, Any]:
        start = time.perf_counter()
        value = call()
        return rows / (time.perf_counter() - start), value

    parts = tables.parts(data, scoring.ROWS)
    reading, some = rate(lambda: [*itertools.islice(parts, rows // scoring.ROWS)])
    features, columns = rate(lambda: [found.reader.columns(part) for part in some])
    found.outputs(columns[0][1])  # compiles
    network, outputs = rate(lambda: [found.outputs(part, 4096) for _, part in columns])
    answers = [
        found.reader.answer(found.task, ids, part).frame()
        for (ids, _), part in zip(columns, outputs, strict=True)
    ]
    writing, _ = rate(lambda: scoring.write(out, iter(answers)))
    return {"read": reading, "features": features, "network": network, "write": writing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=3_000_000)
    parser.add_argument("--suffixes", nargs="+", default=[".parquet", ".csv"])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = model(folder / "model.safetensors")
        print("| file | rows | MB | s | rows/s | peak memory, MB |\n|---|---|---|---|---|---|")
        for suffix in given.suffixes:
            for rows in (given.rows // 10, given.rows):
                data = written(folder, rows, suffix)
                seconds, memory = scored(folder / "model.safetensors", data)
                size = data.stat().st_size / 1e6
                print(f"| {suffix} | {rows:,} | {size:.0f} | {seconds:.1f} | {rows / seconds:,.0f} "
                      f"| {memory:.0f} |", flush=True)  # fmt: skip
            few = min(rows, 500_000) // scoring.ROWS * scoring.ROWS
            stages = rates(found, data, few, folder / "out.parquet")
            print(", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in stages.items()))


if __name__ == "__main__":
    main()
