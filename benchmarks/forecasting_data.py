"""A multivariate series for both sides of `benchmarks.forecasting`: ETTh1, or one made like it."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROWS, TRAIN, CHANNELS = 17_420, 8_640, 7  # of ETTh1


class Size(NamedTuple):
    """What is trained.

    Attributes:
        network: "DLinear" or "PatchTST".
        batch: windows in a step.
        train: rows to learn from.
    """

    network: str
    context: int
    horizon: int = 96
    batch: int = 32
    train: int = TRAIN


SIZES = {"DLinear": Size("DLinear", 336), "PatchTST": Size("PatchTST", 512, batch=128)}


def generated(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Days, weeks and a random walk, float32 (rows, 7)."""
    random, hour = np.random.default_rng(seed), np.arange(rows)[:, None]
    phase = random.uniform(0, 2 * np.pi, (2, CHANNELS))
    waves = np.sin(2 * np.pi * hour / 24 + phase[0]) + np.sin(2 * np.pi * hour / 168 + phase[1])
    walk = 0.02 * random.normal(size=(rows, CHANNELS)).cumsum(0)
    return (waves + walk + 0.3 * random.normal(size=(rows, CHANNELS))).astype(np.float32)


def etth1() -> tuple[np.ndarray, str]:
    """Standardised by the training rows, and where it is from."""
    file = Path(os.environ.get("JAXOPS_DATA_DIR", "/nowhere"), "ett", "ETTh1.csv")
    values, source = generated(), "generated like ETTh1"
    if file.exists():
        columns = range(1, 1 + CHANNELS)
        values = np.loadtxt(file, np.float32, delimiter=",", skiprows=1, usecols=columns)
        source = "ETTh1"
    train = values[:TRAIN].astype(np.float64)
    return ((values - train.mean(0)) / train.std(0)).astype(np.float32), source


def many(count: int, length: int) -> np.ndarray:
    """Series of one channel to be forecast at once, float32 (count, length)."""
    random = np.random.default_rng(0)
    hour = np.arange(length, dtype=np.float32)[None]
    phase = random.uniform(0, 2 * np.pi, (count, 1)).astype(np.float32)
    return np.sin(2 * np.pi * hour / 24 + phase)


def write(folder: Path, values: np.ndarray, size: Size) -> None:
    np.save(folder / "values.npy", values)
    (folder / "size.json").write_text(json.dumps(size._asdict()))


def read(folder: Path) -> tuple[np.ndarray, Size]:
    """The training rows, and what is trained."""
    size = Size(**json.loads((folder / "size.json").read_text()))
    return np.load(folder / "values.npy")[: size.train], size
