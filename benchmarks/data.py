"""The workloads' data, as both sides read them."""

import os
from pathlib import Path

import numpy as np

import jaxops as jo
from benchmarks.workloads import GPT, SEED, Columns, Workload
from experiments import binary_mlp, defaults
from jaxops import tabular


def columns(workload: Workload) -> tuple[Columns, str]:
    """Columns for `workloads.write`, and their source."""
    if workload.data == "mnist":
        digits = jo.data.load("mnist")
        splits = {"train": digits.train, "test": digits.test}
        return _xy(splits, "image"), digits.source
    if workload.data == "churn":
        table = binary_mlp.read(None)
        parts = binary_mlp.encode(table, table.data.split(test=0.2, seed=42), SEED)
        return _xy({"train": parts.train, "test": parts.test}, "features"), table.data.source
    if workload.data.startswith("adult"):
        return _adult(bins=0 if "standard" in workload.data else 32)
    assert isinstance(workload.network, GPT)
    text, source = _text()
    letters, tokens = np.unique(text, return_inverse=True)
    vocabulary = workload.network.vocabulary
    if len(letters) != vocabulary:
        raise ValueError(
            f"{source} must have {vocabulary} different characters, got {len(letters)}"
        )
    context, cut = workload.network.context, int(0.9 * len(tokens))
    train, test = (_windows(part, context) for part in (tokens[:cut], tokens[cut:]))
    return {"train_x": train, "test_x": test[:: max(1, len(test) // 200)]}, source


def _adult(bins: int) -> tuple[Columns, str]:
    """Adult as `tabular.fit` encodes it, with or without bins; 4,000 rows are the test."""
    train, test = (tabular.read(frame) for frame in defaults.adult_frames())
    encoder = tabular.fit_encoder(train, label="income", bins=bins)
    splits = {"train": train, "test": {name: column[:4000] for name, column in test.items()}}
    encoded = {split: tabular.encode(encoder, part) for split, part in splits.items()}
    return _xy(encoded, "features"), "Adult, official split"


def _xy(splits: dict[str, Columns], x: str) -> Columns:
    return {
        f"{split}_{short}": np.ascontiguousarray(part[name])
        for split, part in splits.items()
        for short, name in (("x", x), ("y", "label"))
    }


def _text() -> tuple[np.ndarray, str]:
    folder = os.environ.get("JAXOPS_DATA_DIR")
    path = Path(folder or ".", "tinyshakespeare", "input.txt")
    if folder and path.exists():
        return np.frombuffer(path.read_bytes(), np.uint8), f"tiny Shakespeare, {path}"
    random = np.random.default_rng(SEED).integers(32, 97, 1_115_394).astype(np.uint8)
    return random, f"random characters, for want of {path}"


def _windows(tokens: np.ndarray, context: int) -> np.ndarray:
    """(N, context + 1) int32, one after another, each beginning with the last of the one before."""
    count = (len(tokens) - 1) // context
    starts = context * np.arange(count)[:, None]
    return tokens[starts + np.arange(context + 1)[None]].astype(np.int32)
