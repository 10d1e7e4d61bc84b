"""Steps of DP-SGD beside Opacus and JAX-Privacy: seconds and memory of one step.

    python -m benchmarks.private --opacus path/to/python --jax-privacy path/to/python

The other interpreters have Opacus 1.6 (with PyTorch 2.13; its fast gradient clipping,
`grad_sample_mode="ghost"`) and JAX-Privacy 2.0; neither is a dependency of jaxops. The batches are
random numbers, all rows are real, and every form clips to norm 1, adds noise and makes a step of
SGD. The forms take turns, after a warm-up. "plain" is jaxops's step without privacy. Memory is what
XLA plans for a step besides the batch.
"""

import contextlib
import os
import pickle
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import tyro

from benchmarks import workloads
from benchmarks.process import Worker
from jaxops.trust import report

CASES: dict[str, tuple[workloads.Network, int]] = {
    "C01": (workloads.C01, 256),
    "C03": (workloads.C03, 256),
    "GPT": (workloads.SMALL_GPT, 64),
}
"""name -> network, rows in a batch"""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    opacus: Path | None = None
    """an interpreter with Opacus; without it that side is left out"""
    jax_privacy: Path | None = None
    """an interpreter with JAX-Privacy and jaxops's dependencies; likewise"""
    cases: tuple[str, ...] = tuple(CASES)
    rounds: int = 5
    """turns of each form"""
    seconds: float = 1.0
    """of one turn, about"""


def batch(network: workloads.Network, rows: int) -> dict[str, np.ndarray]:
    """Random rows as the network's task names them."""
    rng = np.random.default_rng(0)
    mask = np.ones(rows, np.float32)
    if isinstance(network, workloads.GPT):
        tokens = rng.integers(0, network.vocabulary, (rows, network.context + 1))
        return {"tokens": tokens.astype(np.int32), "mask": mask}
    image = rng.integers(0, 256, (rows, 28, 28, 1)).astype(np.uint8)
    return {"image": image, "label": rng.integers(0, 10, rows).astype(np.int32), "mask": mask}


def sides(settings: Settings) -> list[tuple[str, str, str]]:
    """(side, form, interpreter) of what takes turns."""
    chosen = [("jaxops private", form, sys.executable) for form in ("plain", "ghost", "vmap")]
    if settings.opacus:
        chosen += [("Opacus", form, str(settings.opacus)) for form in ("ghost", "hooks")]
    if settings.jax_privacy:
        chosen.append(("JAX-Privacy", "vmap", str(settings.jax_privacy)))
    return chosen


def main(settings: Settings) -> list[dict[str, Any]]:
    """Measure each case, and print a row for each form."""
    rows: list[dict[str, Any]] = []
    for name in settings.cases:
        network, count = CASES[name]
        with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
            folder = Path(place)
            (folder / "case.pickle").write_bytes(pickle.dumps({"network": network}, protocol=4))
            columns: dict[str, Any] = batch(network, count)
            np.savez(folder / "batch.npz", **columns)
            workers = {}
            for side, form, python in sides(settings):
                workers[side, form] = stack.enter_context(Worker(side, form, folder, python))
            steps = {
                key: max(1, round(settings.seconds * 2 / worker("seconds", steps=2)))
                for key, worker in workers.items()
                if worker("seconds", steps=2)  # warm
            }
            taken: dict[Any, list[float]] = {key: [] for key in workers}
            for _ in range(settings.rounds):
                for key, worker in workers.items():
                    taken[key].append(worker("seconds", steps=steps[key]) / steps[key])
            memory = {key: worker("memory") for key, worker in workers.items()}
            plain = ("jaxops private", "plain")
            for key, times in taken.items():
                ratio = memory[key] / memory[plain] if memory[key] else None
                rows.append({
                    "case": f"{name}, {count} rows",
                    "side": " ".join(key),
                    "ms": median(times) * 1e3,
                    "from": min(times) * 1e3,
                    "to": max(times) * 1e3,
                    "times plain": median(times) / median(taken[plain]),
                    "memory": ratio,
                })  # fmt: skip
            print(report.table([shown(row) for row in rows[-len(taken) :]]), flush=True)
    load = os.getloadavg()[0]
    print(f"load average {load:.1f} on {len(os.sched_getaffinity(0))} cores")
    return rows


def shown(row: dict[str, Any]) -> dict[str, str]:
    """A row as text."""
    return {
        key: value if isinstance(value, str) else "" if value is None else f"{value:.2f}"
        for key, value in row.items()
    }


if __name__ == "__main__":
    main(tyro.cli(Settings))
