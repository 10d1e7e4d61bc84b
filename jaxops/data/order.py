"""The rows of each batch in each process, which depend only on the batch's number."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.shards import Columns, Group, Parquet, Rows

LANES = 4  # number of positions in an epoch at which Parquet is read in turn; see `Grouped`


class Share(NamedTuple):
    """The index of this process, and the number of processes."""

    process: int
    processes: int


@dataclass
class Permuted:
    """Batches of a reader that can take any row: slices of a permutation of all rows."""

    reader: Rows
    batch_size: int
    seed: int
    shuffle: bool
    share: Share

    @property
    def per_epoch(self) -> int:
        """Batches in an epoch."""
        return -(-self.reader.rows // self.batch_size)

    def __getitem__(self, number: int) -> Columns:
        epoch, batch = divmod(number, self.per_epoch)
        local = self.batch_size // self.share.processes
        start = batch * self.batch_size + self.share.process * local
        index = np.arange(start, min(start + local, self.reader.rows))
        if len(index) == 0:  # the last rows belong to other processes
            return _none(self.reader.take(np.zeros(1, np.int64)))
        if self.shuffle:
            index = permuted(index, self.reader.rows, (self.seed, epoch))
        return self.reader.take(index)


def _none(columns: Columns) -> Columns:
    """A batch without rows, so that every process has equally many batches."""
    return {name: value[:0] for name, value in columns.items()}


def permuted(index: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """Apply a random permutation of range(count) to `index`; it is computed, not stored.

    A Feistel network permutes the pairs (x // b, x % b), of which there are a * b, slightly more
    than `count`. A value that falls outside [0, count) goes through the network again until it is
    inside (cycle walking), so that the result is a permutation too.

    Args:
        index: integers (B,) in [0, count).
        count: at most 2**62.
        seed: the seed of the permutation.

    Returns:
        int64 (B,), distinct if the values of `index` are.

    References:
        Black and Rogaway 2002, "Ciphers with Arbitrary Finite Domains".

    >>> sorted(permuted(np.arange(10), 10, seed=(0,)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    a = math.isqrt(count - 1) + 1
    b = -(-count // a)
    keys = np.random.SeedSequence(seed).generate_state(8, np.uint64).reshape(4, 2)

    def mixed(x: np.ndarray, key: np.uint64) -> np.ndarray:
        x = (x ^ key) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        return x >> np.uint64(8)  # shifted, so that the sums below do not overflow

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x // b, x % b
        for first, second in keys:
            left = (left + mixed(right, first)) % a
            right = (right + mixed(left, second)) % b
        return left * b + right

    sent = once(np.asarray(index).astype(np.uint64))
    while (outside := sent >= count).any():
        sent[outside] = once(sent[outside])
    return sent.astype(np.int64)


def _shared(groups: list[Group], processes: int) -> list[list[Group]]:
    """Assign row groups to processes: the largest first, to the process with the fewest rows."""
    if len(groups) < processes:
        raise ValueError(
            f"source must have at least {processes} row groups (the number of processes), got "
            f"{len(groups)} in {groups[0].path} and the files beside it; write them with a smaller "
            "row_group_size"
        )
    parts: list[list[Group]] = [[] for _ in range(processes)]
    rows = [0] * processes
    for group in sorted(groups, key=lambda group: -group.rows):
        least = rows.index(min(rows))
        parts[least].append(group)
        rows[least] += group.rows
    return [[group for group in groups if group in part] for part in map(set, parts)]


class _Window(NamedTuple):
    """Row groups that are read and shuffled together, and the number of rows before them."""

    start: int
    groups: tuple[Group, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


class Grouped:
    """Batches of Parquet, where reading one row means reading its whole row group.

    An epoch is a sequence of rows: the row groups in random order, cut into windows, each window
    shuffled. Consecutive batches are taken in turn from `LANES` positions of that sequence, so
    neighbouring batches come from different windows. Worker w of n makes the batches w, w + n, ...,
    so if n divides `LANES`, no two workers read the same window. A row group is read by the same
    process in all epochs.
    """

    def __init__(
        self, reader: Parquet, batch_size: int, seed: int, shuffle: bool, share: Share, window: int
    ) -> None:
        self.reader, self.seed, self.shuffle, self.window = reader, seed, shuffle, window
        self.lanes = LANES if shuffle else 1
        self.local = batch_size // share.processes
        parts = _shared(reader.groups, share.processes)
        self.groups = parts[share.process]
        self.rows = sum(group.rows for group in self.groups)
        most = max(sum(group.rows for group in part) for part in parts)
        self.per_epoch = -(-most // self.local)
        self._held: dict[int, tuple[tuple[int, int], Columns]] = {}  # lane -> window
        self._cut: tuple[int, list[_Window]] = (-1, [])  # an epoch and its windows

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    def __getitem__(self, number: int) -> Columns:
        epoch, batch = divmod(number, self.per_epoch)
        turn, lane = divmod(batch, self.lanes)
        before = [-(-(self.per_epoch - i) // self.lanes) for i in range(lane)]
        start = (sum(before) + turn) * self.local
        stop = min(start + self.local, self.rows)
        if start >= self.rows:  # only other processes still have rows
            return _none(self._read(lane, epoch, 0))
        parts = []
        for i, window in enumerate(self._windows(epoch)):
            first = max(start, window.start) - window.start
            last = min(stop, window.start + window.rows) - window.start
            if first < last:
                columns = self._read(lane, epoch, i)
                parts.append({name: value[first:last] for name, value in columns.items()})
        # copied, because a view would keep the whole window in memory
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _windows(self, epoch: int) -> list[_Window]:
        if self._cut[0] == epoch:
            return self._cut[1]
        groups = self.groups
        if self.shuffle:
            random = np.random.default_rng((self.seed, epoch))
            groups = [groups[i] for i in random.permutation(len(groups))]
        windows, start, part = [], 0, []
        for group in groups:
            part.append(group)
            size = sum(g.rows for g in part)
            if size * LANES >= self.window or not self.shuffle:
                windows.append(_Window(start, tuple(part)))
                start, part = start + size, []
        if part:
            windows.append(_Window(start, tuple(part)))
        self._cut = epoch, windows
        return windows

    def _read(self, lane: int, epoch: int, number: int) -> Columns:
        """The columns of a window. A lane holds one window, or shares that of another lane."""
        columns = next((c for key, c in self._held.values() if key == (epoch, number)), None)
        if columns is None:
            self._held.pop(lane, None)  # freed first, so that a lane never holds two windows
            window = self._windows(epoch)[number]
            order = np.arange(window.rows)
            if self.shuffle:
                order = np.random.default_rng((self.seed, epoch, number)).permutation(order)
            columns, start = {}, 0
            for group in window.groups:
                places = order[start : start + group.rows]
                start += group.rows
                for name, rows in self.reader.read(group).items():
                    if name not in columns:
                        columns[name] = np.empty((window.rows, *rows.shape[1:]), rows.dtype)
                    columns[name][places] = rows
        self._held[lane] = ((epoch, number), columns)
        return columns
