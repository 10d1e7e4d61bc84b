"""Data sets larger than memory: shards on disk, streamed by Grain, resumed exactly.

Batch i of a stream depends only on i. Therefore the state of an iterator is one number, which is
the same whether this process, a thread or worker processes read ahead.
"""

import functools
import glob
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxops.data.order import Grouped, Permuted, Share
from jaxops.data.shards import Columns, Npy, Parquet, Records, array_records
from jaxops.devices import hosts

BATCHES_AHEAD = 4  # batches ready in memory, in this process and in each worker
ENDLESS = 1 << 40  # number of batches


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
    """Stream batches of a data set that need not fit into memory.

    Give the result to `fit`, `evaluate` and `predict`. Every row occurs once in an epoch; the last
    batch may be shorter. With several processes, each reads its own share of the rows, and all read
    the same number of batches. Rows are shuffled anew in each epoch: NPY and ArrayRecord over the
    whole set, by a permutation that is computed and not stored; Parquet by row groups, and by rows
    within a window. The order depends on the arguments, but not on `workers`.

    Args:
        source: a directory, a file or a glob pattern of shards, all of one kind: .npy files named
            COLUMN-SHARD.npy (image-00000.npy, label-00000.npy) or COLUMN.npy, rows first; .parquet
            files, where lists of equal length become arrays; .array_record files, of TFDS or with
            `decode`. Or a data source of TFDS or Grain, with `len` and a record for each number.
        batch_size: rows in one update, over all devices and processes; the same as in `fit`.
        seed: the seed of the order.
        shuffle: whether to shuffle; without it rows come in their stored order, as `predict` needs.
        workers: number of processes that read ahead, for records that are slow to decode. They are
            spawned when the second batch is read, so a script needs the guard
            `if __name__ == "__main__"`.
        columns: names of the columns to read, all by default.
        decode: makes named arrays of one record of `.array_record` files or of a data source.
        window: number of Parquet rows in memory that are shuffled together, in whole row groups, at
            least four of them.

    Returns:
        A `Streamed`: an iterable of batches, dicts of arrays (B, ...).

    Raises:
        FileNotFoundError: no such files.
        ValueError: files that do not fit together or are damaged; the message names the file and
            the column.

    >>> import tempfile
    >>> import numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for shard in range(3):
    ...         np.save(f"{folder}/x-{shard}.npy", np.arange(4.0) + 4 * shard)
    ...     batches = stream(folder, 8, shuffle=False)
    ...     print(batches, [batch["x"].tolist() for batch in batches])
    Streamed(12 rows of x, 2 batches an epoch) [[0.0, ..., 7.0], [8.0, 9.0, 10.0, 11.0]]
    """
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    reader = _reader(source, columns, decode)
    return Streamed(reader, batch_size, seed, shuffle, workers, window)


def _reader(
    source: Any, columns: Sequence[str] | None, decode: Callable[[Any], Mapping[str, Any]] | None
) -> Any:
    if not isinstance(source, str | Path):
        if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
            raise ValueError(
                "source must be a path, or a data source with len() and a record for each number, "
                f"got {type(source).__name__}"
            )
        return Records(source, decode, columns, f"source {type(source).__name__}")
    kinds: dict[str, list[Path]] = {"npy": [], "parquet": [], "array_record": []}
    files = Path(source).iterdir() if Path(source).is_dir() else map(Path, glob.glob(str(source)))
    for path in sorted(files):
        for kind, paths in kinds.items():
            if f".{kind}" in path.name and path.is_file():
                paths.append(path)
    present = {kind: paths for kind, paths in kinds.items() if paths}
    if not present:
        raise FileNotFoundError(
            f"{source} must hold .npy, .parquet or .array_record files, got none"
        )
    if len(present) > 1:
        given = ", ".join(str(paths[0]) for paths in present.values())
        raise ValueError(f"{source} must hold files of one kind, got {given}")
    [(kind, paths)] = present.items()
    if decode and kind != "array_record":
        raise ValueError(
            f"decode must be None for .{kind} files, whose columns are arrays, got {decode!r}"
        )
    if kind == "array_record":
        return array_records(paths, decode, columns)
    return Npy(paths, columns) if kind == "npy" else Parquet(paths, columns)


@dataclass(frozen=True, eq=False)
class Streamed:
    """Batches of a data set on disk; see `stream`.

    Iterating gives the batches of the first epoch, and `endless` gives those of all epochs. With
    several processes a batch holds only the rows of this process.
    """

    reader: Any
    batch_size: int
    seed: int
    shuffle: bool
    workers: int
    window: int

    def __len__(self) -> int:
        """Number of batches in an epoch, the same on every process."""
        return self.batches().per_epoch

    def __repr__(self) -> str:
        names = ", ".join(self.reader.columns or ["records"])
        return f"Streamed({self.reader.rows:,} rows of {names}, {len(self):,} batches an epoch)"

    def __iter__(self) -> "Batches":
        return Batches(self.batches(), len(self), self.workers)

    def endless(self) -> "Batches":
        """Iterate over the batches of all epochs, each epoch in a different order."""
        return Batches(self.batches(), ENDLESS, self.workers)

    def batches(self, share: Share | None = None) -> "Permuted | Grouped":
        """Return the object that makes each batch, for this process or for another `share`."""
        share = share or Share(hosts.index(), hosts.count())
        if self.batch_size % share.processes:
            raise ValueError(
                f"batch_size must be a multiple of {share.processes} (the number of processes), "
                f"got {self.batch_size}"
            )
        if isinstance(self.reader, Parquet):
            return Grouped(
                self.reader, self.batch_size, self.seed, self.shuffle, share, self.window
            )
        return Permuted(self.reader, self.batch_size, self.seed, self.shuffle, share)

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same in a resumed run and in the interrupted one."""
        settings = {"rows": self.reader.rows, "seed": self.seed, "shuffle": self.shuffle}
        if not isinstance(self.reader, Parquet):
            return settings
        settings["processes"] = hosts.count()  # the processes' row groups depend on it
        return {**settings, "window": self.window} if self.shuffle else settings


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
    """An iterator of batches, read ahead by Grain. Its state is the number of the next batch."""

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
        if not self._begun:  # the first batch is read here, so that it starts no workers
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
        """Continue with the batch of that number; the batches before it are not read."""
        self.close()
        self._next, self._begun = state["next"], False

    def close(self) -> None:
        """Stop the thread or the processes that read ahead."""
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
    """In a worker: end when the main process ends, also if it is killed."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.cache
def _mark_flags_as_parsed() -> None:
    """Let Grain read absl's flags, which fails outside `absl.app` (google/grain#1355)."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
