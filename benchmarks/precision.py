"""What bfloat16 products cost in accuracy: every network with and without, for three seeds.

    python -m benchmarks.precision [names] [--seeds 3] [--out FILE]

Nothing is timed here. Each pair has the same initial parameters and the same batches; after the
article's epochs (a GPT: 1,500 steps) both are tested once. MNIST's networks and C04 show their
accuracy, a GPT its loss. A processor without instructions for bfloat16 has nothing to compare.
"""

import datetime
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

import jaxops as jo
from benchmarks import data, workloads
from benchmarks.jax_side import named, task_of
from benchmarks.workloads import EPSILON, LEARNING_RATE
from experiments import common
from jaxops.nn.product import has_bfloat16
from jaxops.trust import report

HERE = Path(__file__).parent
LENGTH: dict[str, dict[str, int]] = {
    "C01": {"epochs": 10},
    "C02": {"epochs": 5},
    "C03": {"epochs": 5},
    "C04": {"epochs": 10},
    "C08": {"epochs": 10},
    "gpt-12": {"steps": 1500},
}


@dataclass(frozen=True)
class Options:
    """What the command line sets."""

    names: tyro.conf.Positional[tuple[str, ...]] = tuple(LENGTH)
    """workloads"""
    seeds: int = 3
    """how many pairs to train, at least two"""
    out: Path | None = None
    """the JSON; benchmarks/results/precision.json by default, and for a run of some workloads
    runs/benchmarks/precision.json"""


def scores(name: str, compute: str, seeds: int, length: dict[str, int]) -> list[float]:
    """The test's accuracy, or loss, for each seed."""
    workload = workloads.BY_NAME[name]
    columns, _ = data.columns(workload)
    network = workload.network
    if isinstance(network, workloads.MLP) and workload.data == "churn":  # as wide as its columns
        network = workloads.MLP((columns["train_x"].shape[1], *network.widths[1:]))
    task = task_of(network)
    train, test = (named(task, columns, split) for split in ("train", "test"))
    found = []
    for seed in range(seeds):
        state = jo.fit(
            task,
            train,
            optimizer=jo.optim.adam(LEARNING_RATE, eps=EPSILON),
            batch_size=workload.batch_size,
            seed=seed,
            compute=compute,
            progress=False,
            epochs=length.get("epochs"),
            steps=length.get("steps"),
        )
        values = jo.evaluate(task, state, test)
        found.append(values.get("accuracy", values["loss"]))
    return found


def measure(name: str, seeds: int, length: dict[str, int]) -> dict[str, Any]:
    """A workload's scores by precision, seed by seed."""
    found = {compute: scores(name, compute, seeds, length) for compute in ("float32", "bfloat16")}
    score = "loss" if name.startswith("gpt") else "accuracy"
    return {"workload": name, "score": score, **length, **found}


def row(result: dict[str, Any]) -> dict[str, str]:
    """A line of the table: both, and the mean of the differences seed by seed."""
    pair = result["float32"], result["bfloat16"]
    off = [b - a for a, b in zip(*pair, strict=True)]
    shown = [f"{statistics.mean(p):.4f} ± {statistics.stdev(p):.4f}" for p in pair]
    return {
        "workload": result["workload"],
        "of the test": result["score"],
        "float32": shown[0],
        "bfloat16": shown[1],
        "difference": f"{statistics.mean(off):+.4f} ({min(off):+.4f} to {max(off):+.4f})",
    }


def run(options: Options) -> None:
    """Train, print, write."""
    for name in options.names:
        if name not in LENGTH:
            raise SystemExit(f"names must be of {', '.join(LENGTH)}, got {name}")
    if options.seeds < 2:
        raise SystemExit(f"--seeds must be at least 2, got {options.seeds}")
    if not has_bfloat16():
        raise SystemExit("the processor must have instructions for bfloat16, got one without")
    whole = options.names == tuple(LENGTH)
    folder = HERE / "results" if whole else Path("runs", "benchmarks")
    out = options.out or folder / "precision.json"
    results = []
    for name in options.names:
        results.append(measure(name, options.seeds, LENGTH[name]))
        document = {
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "hardware": common.hardware(),
            "versions": common.versions(),
            "seeds": options.seeds,
            "results": results,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1) + "\n")  # now, and again: it is a long run
    print(report.table([row(result) for result in results]))
    print(f"written: {out}")


def main() -> None:
    """The command line."""
    run(tyro.cli(Options, description=__doc__, prog="python -m benchmarks.precision"))


if __name__ == "__main__":
    main()
