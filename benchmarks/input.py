"""How fast shards are read, and the model size from which the step, not the input, is the limit.

    python -m benchmarks.input [--rows 20000] [--seconds 0.5]

Rows are pictures of 28 x 28 bytes with a label, shuffled, in batches of 128, read from files that
are in the system's cache. First each source alone, without a step, by this process and by two
workers; then the step alone, on one batch that stays on the device, for perceptrons of growing
width; then both together, by `fit`. The input is the limit where a step alone uses more rows a
second than the source alone gives; that size is interpolated between two widths. On a CPU the
two share the cores, so that together they are slower than the slower one.
"""

import functools
import io
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxops as jo
from jaxops import vision
from jaxops.trust import report

OPTIMIZER = jo.optim.adam(1e-3)
WIDTHS = ((8,), (128,), (1024,), (2048, 2048))


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rows: int = 20_000
    batch_size: int = 128
    seconds: float = 0.5  # for each figure


def write(folder: Path, rows: int) -> dict[str, Path]:
    """The same rows as shards of each kind."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, 28, 28, 1), np.uint8)
    label = rng.integers(0, 10, rows, np.int32)
    folders = {kind: folder / kind for kind in ("npy", "parquet", "bytes", "png")}
    for path in folders.values():
        path.mkdir()
    for shard in range(4):
        part = slice(shard * rows // 4, (shard + 1) * rows // 4)
        np.save(folders["npy"] / f"image-{shard}.npy", image[part])
        np.save(folders["npy"] / f"label-{shard}.npy", label[part])
        pixels: Any = pa.array(image[part].reshape(-1))
        for size in (1, 28, 28):
            pixels = pa.FixedSizeListArray.from_arrays(pixels, size)
        table = pa.table({"image": pixels, "label": label[part]})
        pq.write_table(table, folders["parquet"] / f"{shard}.parquet", row_group_size=2_000)
        for kind, encode in (("bytes", _bytes), ("png", _png)):
            records = map(encode, image[part], label[part])
            _write_records(folders[kind] / f"{shard}.array_record", records)
    return folders


def _write_records(path: Path, records: Any) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def _bytes(image: np.ndarray, label: np.ndarray) -> bytes:
    return label.tobytes() + image.tobytes()


def _png(image: np.ndarray, label: np.ndarray) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(image[..., 0]).save(file, "png")
    return label.tobytes() + file.getvalue()


def from_bytes(record: bytes) -> Mapping[str, np.ndarray]:
    """What `_bytes` wrote."""
    image = np.frombuffer(record, np.uint8, offset=4).reshape(28, 28, 1)
    return {"image": image, "label": np.frombuffer(record, np.int32, 1)[0]}


def from_png(record: bytes) -> Mapping[str, np.ndarray]:
    """What `_png` wrote."""
    from PIL import Image

    image = np.asarray(Image.open(io.BytesIO(record[4:])))[..., None]
    return {"image": image, "label": np.frombuffer(record, np.int32, 1)[0]}


DECODE: dict[str, Callable[[bytes], Any] | None] = {"bytes": from_bytes, "png": from_png}


def source_rate(batches: Any, seconds: float) -> float:
    """Rows a second of a stream alone."""
    iterator = batches.endless()
    for _ in range(20):  # workers start, buffers fill
        next(iterator)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(iterator)["label"])
    rate = count / (time.perf_counter() - start)
    iterator.close()
    return rate


def step_rate(task: jo.Task, batch_size: int, seconds: float) -> tuple[float, float]:
    """Rows a second of the step alone, and its floating-point operations for a row."""
    batch = {
        "image": np.zeros((batch_size, 28, 28, 1), np.uint8),
        "label": np.zeros(batch_size, np.int32),
    }
    state = jo.init_state(task, OPTIMIZER, seed=0, batch=batch)
    step = functools.partial(jo.train_step, task, OPTIMIZER)
    operations = jo.clock.flops(step, state, batch) / batch_size
    batch = jax.device_put(batch)
    program = jax.jit(step, donate_argnums=0)
    for _ in range(10):
        state, _ = program(state, batch)
    jax.block_until_ready(state)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(16):
            state, _ = program(state, batch)
        jax.block_until_ready(state)
        count += 16 * batch_size
    return count / (time.perf_counter() - start), operations


def together(task: jo.Task, batches: Any, rate: float, seconds: float) -> float:
    """Rows a second of `fit` with a stream."""
    records: list[dict[str, Any]] = []
    jo.fit(
        task,
        batches,
        optimizer=OPTIMIZER,
        batch_size=batches.batch_size,
        steps=max(20, int(rate * seconds / batches.batch_size)),
        reports=jo.Reports(records.append, every=10**9),
        progress=False,
    )
    return records[-1]["examples_per_second"]


def main(settings: Settings) -> None:
    """Print the two tables."""
    with tempfile.TemporaryDirectory() as folder:
        folders = write(Path(folder), settings.rows)

        def stream(kind: str, workers: int = 0) -> Any:
            return jo.data.stream(
                folders[kind], settings.batch_size, workers=workers, decode=DECODE.get(kind)
            )

        tasks = [vision.classifier(vision.MLP(widths)) for widths in WIDTHS]
        steps = [step_rate(task, settings.batch_size, settings.seconds) for task in tasks]
        sources, alone = [], {}
        for kind in folders:
            rates = [source_rate(stream(kind, w), settings.seconds) for w in (0, 2)]
            alone[kind] = rates[0]
            sources.append(
                {
                    "source": kind,
                    "rows/s": f"{rates[0]:,.0f}",
                    "2 workers": f"{rates[1]:,.0f}",
                    "the limit below (MFLOP a row)": _crossing(steps, max(rates)),
                }
            )
        print(report.table(sources), end="\n\n")
        models = []
        for widths, task, (rate, operations) in zip(WIDTHS, tasks, steps, strict=True):
            row = {"widths": " x ".join(map(str, widths)), "MFLOP a row": f"{operations / 1e6:.2f}"}
            row["step alone (rows/s)"] = f"{rate:,.0f}"
            for kind in ("npy", "bytes"):
                expected = min(rate, alone[kind])
                found = together(task, stream(kind), expected, settings.seconds)
                row[f"fit, {kind} (rows/s)"] = f"{found:,.0f}"
            models.append(row)
        print(report.table(models))


def _crossing(steps: list[tuple[float, float]], rate: float) -> str:
    """The size at which a step uses `rate` rows a second, between two that were measured."""
    rates, sizes = (np.log(column) for column in np.array(steps).T)
    order = np.argsort(rates)
    if not rates.min() <= np.log(rate) <= rates.max():
        bound = sizes.min() if np.log(rate) > rates.max() else sizes.max()
        return f"{'<' if bound == sizes.min() else '>'} {np.exp(bound) / 1e6:.2f}"
    return f"{np.exp(np.interp(np.log(rate), rates[order], sizes[order])) / 1e6:.2f}"


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
