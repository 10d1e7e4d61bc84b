"""Data sets larger than memory: shards on a disk, streamed by Grain, exact to resume.

Batch i of a stream is a function of i, so the state of an iterator is one number, the same
whatever reads ahead: this process, a thread, or worker processes.
"""

import functools
import glob
import math
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxops.data.shards import Columns, Group, Npy, Parquet, Records, Rows, array_records

BATCHES_AHEAD = 4  # held in memory ready to use, by this process and by each worker
LANES = 4  # places of an epoch at which Parquet is read by turns; see `_Groups`
ENDLESS = 1 << 40  # batches


def stream(
    source: Any,
    batch_size: int,
    *,
    seed: int = 0,
    shuffle: bool = True,
    workers: int = 0,
    columns: Sequence[str] | None = None,
    decode: Callable[[Any], Mapping[str, Any]] | None = None,
    window: int = 65_536,
) -> "Streamed":
    """Batches of a data set that need not fit into memory, for `fit`, `evaluate` and `predict`.

    Every row comes once an epoch; the last batch may be shorter. With many processes each gets its
    own share, and all get as many batches. Rows are shuffled anew each epoch: NPY and ArrayRecord
    over the whole set, by a permutation that is computed and not stored; Parquet by row groups,
    and by rows within a window. The order depends on the arguments alone, not on `workers`.

    Args:
        source: a directory, a file or a glob pattern of shards, all of one kind: .npy files named
            COLUMN-SHARD.npy (image-00000.npy, label-00000.npy) or COLUMN.npy, rows first; .parquet
            files, where lists of one length are rows of numbers; .array_record files, of TFDS or
            with `decode`. Or a data source of TFDS or Grain: `len`, and a record for each number.
        batch_size: rows in one update, over all devices and processes; that of `fit`.
        seed: of the order.
        shuffle: without it rows come in order, as `predict` wants them.
        workers: processes that read ahead, for records that are dear to decode. They are spawned
            when the second batch is asked for, so a script wants `if __name__ == "__main__"`.
        columns: those to read, all by default.
        decode: makes named arrays of one record of `.array_record` files or of a data source.
        window: how many rows of Parquet are held to be shuffled, in whole row groups, at least
            four of them.

    Raises:
        FileNotFoundError: no such files.
        ValueError: files that do not fit together or are damaged; names the file and column.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for shard in range(3):
    ...         np.save(f"{folder}/x-{shard}.npy", np.arange(4.0) + 4 * shard)
    ...     batches = stream(folder, 8, shuffle=False)
    ...     print(batches, [batch["x"].tolist() for batch in batches])
    Streamed(12 rows of x, 2 batches an epoch) [[0.0, ..., 7.0], [8.0, 9.0, 10.0, 11.0]]
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name}: {value} found, at least {least} wanted")
    reader = _reader(source, columns, decode)
    return Streamed(reader, batch_size, seed, shuffle, workers, window)


def _reader(
    source: Any, columns: Sequence[str] | None, decode: Callable[[Any], Mapping[str, Any]] | None
) -> Any:
    if not isinstance(source, str | Path):
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise ValueError(
                f"source: {type(source).__name__} found; a path, or a data source with len() and "
                "a record for each number wanted"
            )
        return Records(source, decode, columns, f"source {type(source).__name__}")
    kinds: dict[str, list[Path]] = {"npy": [], "parquet": [], "array_record": []}
    found = Path(source).iterdir() if Path(source).is_dir() else map(Path, glob.glob(str(source)))
    for path in sorted(found):
        for kind, paths in kinds.items():
            if f".{kind}" in path.name and path.is_file():
                paths.append(path)
    present = {kind: paths for kind, paths in kinds.items() if paths}
    if not present:
        raise FileNotFoundError(f"{source}: no .npy, .parquet or .array_record files found")
    if len(present) > 1:
        files = ", ".join(str(paths[0]) for paths in present.values())
        raise ValueError(f"{source}: files of several kinds found ({files}); one kind wanted")
    [(kind, paths)] = present.items()
    if decode and kind != "array_record":
        raise ValueError(f"decode: found with .{kind} files, whose columns are arrays already")
    if kind == "array_record":
        return array_records(paths, decode, columns)
    return Npy(paths, columns) if kind == "npy" else Parquet(paths, columns)


class Share(NamedTuple):
    """Which process this is, of how many."""

    process: int
    processes: int


@dataclass(frozen=True, eq=False)
class Streamed:
    """Batches of a data set on a disk: what `stream` makes.

    Iterating gives the first epoch's batches, the local rows of each; `endless` all epochs'.
    """

    reader: Any
    batch_size: int
    seed: int
    shuffle: bool
    workers: int
    window: int

    def __len__(self) -> int:
        """Batches in an epoch, the same on every process."""
        return self.batches().per_epoch

    def __repr__(self) -> str:
        names = ", ".join(self.reader.columns or ["records"])
        return f"Streamed({self.reader.rows:,} rows of {names}, {len(self):,} batches an epoch)"

    def __iter__(self) -> "Batches":
        return Batches(self.batches(), len(self), self.workers)

    def endless(self) -> "Batches":
        """The batches of epoch after epoch, each in an order of its own."""
        return Batches(self.batches(), ENDLESS, self.workers)

    def batches(self, share: Share | None = None) -> "_Permuted | _Groups":
        """What gives the batch of each number to this process, or to another `share`."""
        share = share or Share(jax.process_index(), jax.process_count())
        if self.batch_size % share.processes:
            raise ValueError(
                f"batch_size: {self.batch_size} found, a multiple of {share.processes} "
                "(processes) wanted"
            )
        if isinstance(self.reader, Parquet):
            return _Groups(
                self.reader, self.batch_size, self.seed, self.shuffle, share, self.window
            )
        return _Permuted(self.reader, self.batch_size, self.seed, self.shuffle, share)

    def identity(self) -> dict[str, Any]:
        """What a resumed run must have in common."""
        found = {"rows": self.reader.rows, "seed": self.seed, "shuffle": self.shuffle}
        by_group = isinstance(self.reader, Parquet) and self.shuffle
        return {**found, "window": self.window} if by_group else found


@dataclass
class _Permuted:
    """Batches of a reader with cheap access to any row: slices of a permutation of all rows."""

    reader: Rows
    batch_size: int
    seed: int
    shuffle: bool
    share: Share

    @property
    def per_epoch(self) -> int:
        return -(-self.reader.rows // self.batch_size)

    def __getitem__(self, number: int) -> Columns:
        epoch, batch = divmod(number, self.per_epoch)
        local = self.batch_size // self.share.processes
        start = batch * self.batch_size + self.share.process * local
        index = np.arange(start, min(start + local, self.reader.rows))
        if len(index) == 0:  # the other processes have had the last rows
            return _none(self.reader.take(np.zeros(1, np.int64)))
        if self.shuffle:
            index = permuted(index, self.reader.rows, (self.seed, epoch))
        return self.reader.take(index)


def _none(columns: Columns) -> Columns:
    """One row that does not count, so that every process has a batch."""
    return {**{name: value[:1] for name, value in columns.items()}, "mask": np.zeros(1, np.float32)}


def permuted(index: np.ndarray, count: int, seed: tuple[int, ...]) -> np.ndarray:
    """Where a random permutation of range(count) sends `index`; it is computed, not stored.

    A Feistel network over pairs (x // b, x % b), whose a * b values are hardly more than `count`;
    the few that fall outside go through it again until they are inside (cycle walking), which
    keeps it a permutation (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

    Args:
        index: (B,) whole numbers in [0, count).
        count: at most 2**62.
        seed: of the permutation.

    Returns:
        (B,) int64, distinct where `index` is.

    >>> sorted(permuted(np.arange(10), 10, seed=(0,)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    a = math.isqrt(count - 1) + 1
    b = -(-count // a)
    keys = np.random.SeedSequence(seed).generate_state(8, np.uint64).reshape(4, 2)

    def mixed(x: np.ndarray, key: np.uint64) -> np.ndarray:
        x = (x ^ key) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(29))) * np.uint64(0x94D049BB133111EB)
        return x >> np.uint64(8)  # so that the sums below do not overflow

    def once(x: np.ndarray) -> np.ndarray:
        left, right = x // b, x % b
        for first, second in keys:
            left = (left + mixed(right, first)) % a
            right = (right + mixed(left, second)) % b
        return left * b + right

    found = once(np.asarray(index).astype(np.uint64))
    while (outside := found >= count).any():
        found[outside] = once(found[outside])
    return found.astype(np.int64)


def _shared(groups: list[Group], processes: int) -> list[list[Group]]:
    """The row groups of each process, in order; the largest first to whoever has fewest rows."""
    if len(groups) < processes:
        raise ValueError(
            f"{groups[0].path}: {len(groups)} row groups found in all files, at least one for each "
            f"of {processes} processes wanted; write them with a smaller row_group_size"
        )
    parts: list[list[Group]] = [[] for _ in range(processes)]
    rows = [0] * processes
    for group in sorted(groups, key=lambda group: -group.rows):
        least = rows.index(min(rows))
        parts[least].append(group)
        rows[least] += group.rows
    return [[group for group in groups if group in part] for part in map(set, parts)]


class _Window(NamedTuple):
    """Row groups that are read and shuffled together, and which rows of the epoch they are."""

    start: int
    groups: tuple[Group, ...]

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


class _Groups:
    """Batches of Parquet, where a whole row group has to be read for a single row.

    An epoch is a sequence of rows: row groups in random order, cut into windows, each shuffled.
    Its batches come from `LANES` places of that sequence by turns. So a batch and its neighbours
    are of several windows, and worker w of n, which makes batches w, w + n, ..., has lanes of its
    own to read where n divides `LANES`. A row group stays with its process in all epochs.
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
        self._cut: tuple[int, list[_Window]] = (-1, [])  # of an epoch

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    def __getitem__(self, number: int) -> Columns:
        epoch, batch = divmod(number, self.per_epoch)
        turn, lane = divmod(batch, self.lanes)
        before = [-(-(self.per_epoch - i) // self.lanes) for i in range(lane)]
        start = (sum(before) + turn) * self.local
        stop = min(start + self.local, self.rows)
        if start >= self.rows:  # other processes have more rows
            return _none(self._read(lane, epoch, 0))
        parts = []
        for i, window in enumerate(self._windows(epoch)):
            first = max(start, window.start) - window.start
            last = min(stop, window.start + window.rows) - window.start
            if first < last:
                columns = self._read(lane, epoch, i)
                parts.append({name: value[first:last] for name, value in columns.items()})
        # copies: a view would keep its window in memory as long as the batch is
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
        """A window's columns; each lane holds one, and shares that of another lane."""
        found = next((c for key, c in self._held.values() if key == (epoch, number)), None)
        if found is None:
            self._held.pop(lane, None)  # let go first: two windows are not held for one lane
            window = self._windows(epoch)[number]
            order = np.arange(window.rows)
            if self.shuffle:
                order = np.random.default_rng((self.seed, epoch, number)).permutation(order)
            found, start = {}, 0
            for group in window.groups:
                places = order[start : start + group.rows]
                start += group.rows
                for name, rows in self.reader.read(group).items():
                    if name not in found:
                        found[name] = np.empty((window.rows, *rows.shape[1:]), rows.dtype)
                    found[name][places] = rows
        self._held[lane] = ((epoch, number), found)
        return found


@dataclass
class _From:
    """Batches `start` to `stop` as Grain's data source."""

    batches: Any
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, number: Any) -> Columns:
        return self.batches[self.start + int(number)]


class Batches:
    """An iterator of batches, read ahead by Grain; its state is the number of the next."""

    def __init__(self, batches: Any, stop: int, workers: int) -> None:
        self._batches, self._stop, self._workers = batches, stop, workers
        self._next, self._begun = 0, False
        self._ahead: Any = None

    def __iter__(self) -> Iterator[Columns]:
        return self

    def __next__(self) -> Columns:
        if self._next >= self._stop:
            self.close()
            raise StopIteration
        if not self._begun:  # read here: who looks at one batch alone starts no workers
            self._begun, batch = True, self._batches[self._next]
        else:
            if self._ahead is None:
                self._ahead = _ahead(_From(self._batches, self._next, self._stop), self._workers)
            batch = next(self._ahead)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The number of the next batch, counted from the first of all epochs."""
        return {"next": self._next}

    def set_state(self, state: dict[str, int]) -> None:
        """Go on with the batch of that number; nothing before it is read."""
        self.close()
        self._next, self._begun = state["next"], False

    def close(self) -> None:
        """End the thread or the processes that read ahead."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.close()

    def __del__(self) -> None:
        self.close()


def _ahead(source: _From, workers: int) -> Any:
    import grain

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=BATCHES_AHEAD)
    dataset = grain.MapDataset.source(source).to_iter_dataset(options)
    if workers:
        _mark_flags_as_parsed()
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=BATCHES_AHEAD),
            _end_with_parent,
        )
    return iter(dataset)


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker: end when the run does, also when it is killed and cannot say so."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _mark_flags_as_parsed() -> None:
    """Grain asks absl for flags, which refuses outside `absl.app` (google/grain#1355)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
