"""Histories for both sides of `benchmarks.sequences`: Amazon Beauty, or generated ones like it."""

import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

USERS, ITEMS = 40_226, 54_542  # of Beauty


class Size(NamedTuple):
    """The network and its batch.

    Attributes:
        items: N; the place behind them is padding.
        batch: users in a step.
    """

    items: int = ITEMS
    context: int = 50
    width: int = 64
    depth: int = 2
    dropout: float = 0.2
    batch: int = 128


class Histories(NamedTuple):
    """As `jaxops.recommend.Histories`: items (E,) int32, starts (U + 1,) int64."""

    items: np.ndarray
    starts: np.ndarray


def generated(users: int, items: int, seed: int = 0) -> Histories:
    """Popular items are Zipf's; lengths begin at 2 and are geometric, 7 on average, as Beauty's."""
    random = np.random.default_rng(seed)
    lengths = 1 + random.geometric(1 / 6, users)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    popularity = 1 / np.arange(1, items + 1) ** 0.7
    drawn = np.searchsorted(np.cumsum(popularity / popularity.sum()), random.random(starts[-1]))
    return Histories(np.minimum(drawn, items - 1).astype(np.int32), starts)


def beauty() -> tuple[Histories, str]:
    """Training histories, all but the last two of each user, and where they are from."""
    file = Path(os.environ.get("JAXOPS_DATA_DIR", "/nowhere"), "beauty", "beauty.txt")
    if not file.exists():
        return generated(USERS, ITEMS), "generated like Beauty"
    user, item = np.loadtxt(file, np.int64).T
    order = np.argsort(user, kind="stable")
    lengths = np.bincount(user)[np.unique(user)]
    kept = np.maximum(lengths - 2, 0)
    ends = np.cumsum(lengths)
    place = np.arange(len(user)) - np.repeat(ends - lengths, lengths)
    items = np.unique(item, return_inverse=True)[1][order][place < np.repeat(kept, lengths)]
    starts = np.concatenate([[0], np.cumsum(kept)])
    return Histories(items.astype(np.int32), starts), "Beauty"


def last(histories: Histories, count: int) -> Histories:
    """The last `count` items of each user who has two at least: to both sides the same work."""
    lengths = np.diff(histories.starts)
    taken = np.where(lengths > 1, np.minimum(lengths, count), 0)
    ago = np.repeat(histories.starts[1:], lengths) - np.arange(len(histories.items))
    items = histories.items[ago <= np.repeat(taken, lengths)]
    return Histories(items, np.concatenate([[0], np.cumsum(taken[taken > 0])]))


def write(folder: Path, histories: Histories, size: Size) -> None:
    np.savez(folder / "histories.npz", **histories._asdict())
    (folder / "size.json").write_text(json.dumps(size._asdict()))


def read(folder: Path) -> tuple[Histories, Size]:
    found = np.load(folder / "histories.npz")
    size = Size(**json.loads((folder / "size.json").read_text()))
    return Histories(found["items"], found["starts"]), size
