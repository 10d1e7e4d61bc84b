"""Seconds of integrated gradients beside Captum's, with the same weights and rows.

    python -m benchmarks.explain --python path/to/python [--rows 1000 --steps 50 --rounds 5]

The other interpreter has PyTorch and Captum (0.9.0 and 2.13.0 were measured; Captum is not a
dependency of jaxops). Both sides hold their network and rows, have run once before (jaxops has
compiled), and take turns. Captum is given batches of as many rows as jaxops takes at once, which is
faster than its default. The largest difference of their values is printed. The load of the
machine is printed: read a loaded machine's figures with care.
"""

import json
import os
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jaxops as jo
from jaxops import _table, tabular, vision
from jaxops.explain import game, integrated_gradients
from jaxops.model.finished import Model

SIDE = Path(__file__).with_name("explain_side.py")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    python: Path | None = None
    """an interpreter with PyTorch and Captum; without it jaxops alone is measured"""
    rows: int = 1000
    steps: int = 50
    rounds: int = 5
    cases: tuple[str, ...] = ("mnist_cnn", "table_mlp")


def case(name: str, rows: int) -> tuple[Model, np.ndarray]:
    """A network with random weights, and its rows."""
    rng = np.random.default_rng(0)
    batch: dict[str, np.ndarray]
    if name == "mnist_cnn":
        images = rng.integers(0, 256, (rows, 28, 28, 1)).astype(np.uint8)
        task, batch = vision.classifier(vision.CNN()), {"image": images}
    else:
        x = rng.normal(size=(rows, 20)).astype(np.float32)
        task, batch = tabular.classifier(tabular.MLP(), features=20), {"features": x}
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {k: v[:1] for k, v in batch.items()})
    return Model(task, state), next(iter(batch.values()))


class Captum:
    """The other side: a process that explains once for each line that it reads.

    Args:
        python: its interpreter.
        folder: for weights and values.
        name: of the case.
        model: whose weights it takes.
        rows: to explain.
        settings: of the run.
    """

    def __init__(
        self, python: Path, folder: Path, name: str, model: Model, rows: Any, settings: Settings
    ) -> None:
        leaves = jax.tree_util.tree_leaves_with_path(model.state.params)
        weights = {jax.tree_util.keystr(p, simple=True, separator="/"): w for p, w in leaves}
        np.savez(folder / "case.npz", rows=rows, **weights)
        self.values = folder / "values.npy"
        command = [str(python), str(SIDE), name, str(folder), str(settings.steps)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self) -> float:
        """The seconds of one explanation of all rows."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{SIDE.name} ended with {self.process.wait()}")
        return float(json.loads(line))

    def end(self) -> None:
        """Close its input, upon which it ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measured(name: str, settings: Settings) -> dict[str, Any]:
    """A row of the table: both sides' seconds by turns."""
    model, rows = case(name, settings.rows)
    found: dict[str, list[float]] = {"jaxops": [], "captum": []}

    def ours() -> float:
        start = time.perf_counter()
        told[:] = [integrated_gradients(game(model, rows), settings.steps, tolerance=np.inf)]
        return time.perf_counter() - start

    told: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        python = settings.python
        peer = python and Captum(python, Path(folder), name, model, rows, settings)
        for number in range(settings.rounds + 1):
            seconds = {"jaxops": ours()} | ({"captum": peer()} if peer else {})
            if number:  # the first one compiles
                for side, value in seconds.items():
                    found[side].append(value)
        line: dict[str, Any] = {"case": name, "rows": settings.rows, "steps": settings.steps}
        line |= {side: f"{statistics.median(v):.3f} s" for side, v in found.items() if v}
        if peer:
            ratios = [b / a for a, b in zip(found["jaxops"], found["captum"], strict=True)]
            line["captum by jaxops"] = f"{statistics.median(ratios):.2f}"
            difference = np.abs(np.load(peer.values).reshape(told[0].values.shape) - told[0].values)
            line["largest difference"] = f"{difference.max():.1e}"
            peer.end()
    return line


def main(settings: Settings) -> list[dict[str, Any]]:
    """Measure, and print a row for each network."""
    found = [measured(name, settings) for name in settings.cases]
    print(_table.table(found))
    print(f"load {os.getloadavg()[0]:.1f}")
    return found


if __name__ == "__main__":
    main(tyro.cli(Settings))
