"""Seconds and scores of RealMLP and TabM beside pytabkit's, both as a user calls them.

    JAXOPS_DATA_DIR=DATA python -m benchmarks.tabular_peers --python path/to/python

The other interpreter has pytabkit (1.8.0 is what was measured, with PyTorch 2.13.0; not a
dependency of jaxops). Adult and California housing, with the train, validation and test rows of
`experiments.tables`. Each fit has a process of its own; the sides take turns. The seconds of
jaxops include reading and compiling, those of pytabkit its preparation; imports and reading the
file are outside of both. The scores are accuracy (Adult) and RMSE (California). CPU seconds depend
less on what else the machine does.
"""

import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd
import tyro

from benchmarks.process import asked
from experiments import tables
from jaxops import tabular
from jaxops.trust import report

MODELS = {
    "RealMLP": ("RealMLP_TD", tabular.RealMLP()),
    "TabM": ("TabM_D", tabular.TabM()),
}
SIDE = Path(__file__).with_name("tabular_peers_side.py")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    python: Path | None = None
    """an interpreter with pytabkit; without it jaxops alone is measured"""
    sets: tuple[str, ...] = ("adult", "california")
    models: tuple[str, ...] = ("RealMLP", "TabM")
    seeds: int = 1
    threads: int = len(os.sched_getaffinity(0))


def ours(folder: Path, name: str, seed: int) -> dict[str, float]:
    """One fit of jaxops, in a process of its own."""
    parts = ("train", "validation", "test")
    train, held, test = (pd.read_pickle(folder / f"{part}.pkl") for part in parts)
    label, number = str(train.columns[-1]), train.iloc[:, -1].dtype.kind == "f"
    start, cpu = time.perf_counter(), time.process_time()
    model = tabular.fit(
        train, MODELS[name][1], label=label, validation=held, seed=seed, progress=False
    )
    row = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    metric = "rmse" if number else "accuracy"
    row |= {"validation": model.about["validation"][metric]}
    row |= {"test": tabular.evaluate(model, test).figures()[metric]}
    return row | {"memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def written(folder: Path, name: str) -> None:
    """The three tables of a data set, with the label as the last column."""
    table = tables.TABLES[name](0, False)
    for part, frame in table.splits[0]._asdict().items():
        rest = [column for column in frame.columns if column != table.label]
        frame[[*rest, table.label]].reset_index(drop=True).to_pickle(folder / f"{part}.pkl")


def main(settings: Settings) -> list[dict[str, Any]]:
    """Measure each model on each set, and print a row for each side."""
    rows: list[dict[str, Any]] = []
    for name in settings.sets:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            written(folder, name)
            for model in settings.models:
                sides = {"jaxops": [sys.executable, "-m", "benchmarks.tabular_peers", "--one"]}
                tails = {"jaxops": [place, model]}
                if settings.python:
                    sides["pytabkit"] = [str(settings.python), str(SIDE)]
                    tails["pytabkit"] = [place, MODELS[model][0]]
                told: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
                for seed in range(settings.seeds):
                    for side, start in sides.items():
                        tail = [*tails[side], str(seed), str(settings.threads)]
                        told[side].append(asked([*start, *tail]))
                for side, found in told.items():
                    row = {key: mean(one[key] for one in found) for key in found[0]}
                    rows.append({"set": name, "model": model, "side": side} | row)
                    print(report.table([shown(row) for row in rows[-1:]]), flush=True)
    print(report.table([shown(row) for row in rows]))
    return rows


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row as text; memory in GiB."""
    formats = {"seconds": ".1f", "cpu": ".1f", "memory": ".2f"}
    return {
        key: value if isinstance(value, str) else format(value, formats.get(key, ".4f"))
        for key, value in row.items()
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(ours(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))))
    else:
        main(tyro.cli(Settings))
