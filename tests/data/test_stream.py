"""Streams of shards: every row once an epoch, in one order whatever reads it, exact to resume."""

import functools
import gc
import itertools
import json
import os
import random
import re
import subprocess
import sys
import time
import tracemalloc
import types
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.data.order import Share, permuted
from jaxops.train import feed
from jaxops.train.feed import Stream

ROWS, SHARDS = 1000, 4
TASK = tabular.classifier(tabular.MLP((8,)), features=3)


def columns(rows=ROWS):
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    return {
        "features": x,
        "label": (x.sum(1) > 0).astype(np.int32),
        "id": np.arange(rows),
        "image": np.random.default_rng(1).integers(0, 256, (rows, 2, 2), np.uint8),
    }


def shards(rows):
    """Bounds of shards of unequal size."""
    ends = [0, *np.cumsum(np.arange(1, SHARDS + 1) * rows // sum(range(1, SHARDS + 1)))]
    ends[-1] = rows
    return list(itertools.pairwise(ends))


def write_npy(folder, data):
    for i, (start, stop) in enumerate(shards(len(data["id"]))):
        for name, value in data.items():
            np.save(folder / f"{name}-{i:03}.npy", value[start:stop])


def arrow(value):
    array = pa.array(value.reshape(-1))
    for size in reversed(value.shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def write_parquet(folder, data, row_group_size=30):
    for i, (start, stop) in enumerate(shards(len(data["id"]))):
        table = pa.table({name: arrow(value[start:stop]) for name, value in data.items()})
        pq.write_table(table, folder / f"part-{i}.parquet", row_group_size=row_group_size)


def write_records(folder, data):
    from array_record.python.array_record_module import ArrayRecordWriter

    for i, (start, stop) in enumerate(shards(len(data["id"]))):
        writer = ArrayRecordWriter(str(folder / f"rows-{i}.array_record"), "group_size:1")
        for row in range(start, stop):
            writer.write(b"".join(data[name][row].tobytes() for name in data))
        writer.close()


def decode(record):
    """What `write_records` wrote; at the top of the module, so that workers find it."""
    parts = {"features": (np.float32, (3,)), "label": (np.int32, ()), "id": (np.int64, ())}
    parts["image"] = (np.uint8, (2, 2))
    row, start = {}, 0
    for name, (dtype, shape) in parts.items():
        count = int(np.prod(shape))
        row[name] = np.frombuffer(record, dtype, count, start).reshape(shape)
        start += row[name].nbytes
    return row


WRITE = {"npy": write_npy, "parquet": write_parquet, "array_record": write_records}
KINDS = list(WRITE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind, write in WRITE.items():
        made[kind] = tmp_path_factory.mktemp(kind)
        write(made[kind], columns())
    return made


def open_stream(folders, kind, batch_size=64, **settings):
    if kind == "parquet":
        settings = {"window": 200, **settings}
    if kind == "array_record":
        settings["decode"] = decode
    return jo.data.stream(folders[kind], batch_size, **settings)


def joined(batches):
    batches = list(batches)
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def assert_same(found, wanted):
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_once_an_epoch_with_its_columns_together(folders, kind):
    data, batches = columns(), open_stream(folders, kind)
    assert len(batches) == 16 and repr(batches).startswith("Streamed(1,000 rows")
    endless = batches.endless()
    orders = []
    for _ in range(3):
        epoch = list(itertools.islice(endless, 16))
        assert sorted(len(b["id"]) for b in epoch) == [40] + 15 * [64]
        found = joined(epoch)
        for name, value in found.items():
            assert value.dtype == data[name].dtype
            np.testing.assert_array_equal(value, data[name][found["id"]])
        orders.append(found["id"])
        np.testing.assert_array_equal(np.sort(found["id"]), np.arange(ROWS))
        # little trace of the stored order, though there are but five windows of Parquet
        trace = abs(np.corrcoef(found["id"], np.arange(ROWS))[0, 1])
        assert trace < (0.6 if kind == "parquet" else 0.1)
        assert np.mean(np.abs(np.diff(found["id"])) == 1) < (0.05 if kind == "parquet" else 0.02)
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    np.testing.assert_array_equal(joined(batches)["id"], orders[0])  # iterating is the first epoch
    np.testing.assert_array_equal(joined(open_stream(folders, kind))["id"], orders[0])
    assert not np.array_equal(joined(open_stream(folders, kind, seed=1))["id"], orders[0])
    np.testing.assert_array_equal(
        joined(open_stream(folders, kind, shuffle=False))["id"], np.arange(ROWS)
    )
    assert set(next(iter(open_stream(folders, kind, columns=["id"])))) == {"id"}


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 1000, 65_537])
def test_a_computed_permutation_is_one(count):
    for seed in range(3):
        found = permuted(np.arange(count), count, (seed,))
        np.testing.assert_array_equal(np.sort(found), np.arange(count))
        one = permuted(np.array([count // 2]), count, (seed,))
        assert one[0] == found[count // 2]
    big = permuted(np.arange(2**40, 2**40 + 999), 2**61 + 7, (0,))
    assert len(set(big.tolist())) == 999 and big.min() >= 0 and big.max() < 2**61 + 7


def test_a_computed_permutation_is_as_random_as_numpys():
    from scipy.stats import chi2

    def tables(draw):
        place = np.zeros((20, 20))  # where an element goes
        after = np.zeros((20, 20))  # where its successor goes, given its own place
        for i in range(4000):
            order = draw(i)
            place[np.arange(20), order] += 1
            after[order[:-1], order[1:]] += 1
        return place, after[~np.eye(20, dtype=bool)]

    for table, freedom in zip(
        tables(lambda i: permuted(np.arange(20), 20, (7, i))), (361, 379), strict=True
    ):
        expected = table.mean()
        statistic = ((table - expected) ** 2 / expected).sum()
        assert chi2.ppf(1e-4, freedom) < statistic < chi2.ppf(1 - 1e-4, freedom)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_share_the_rows_and_have_as_many_batches(folders, kind):
    batches = open_stream(folders, kind, batch_size=48)
    for processes in (2, 3, 4):
        parts = [batches.batches(Share(p, processes)) for p in range(processes)]
        assert len({part.per_epoch for part in parts}) == 1
        per_epoch = parts[0].per_epoch
        for epoch in (0, 1):
            numbers = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            seen = []
            for number in numbers:
                group = [part[number] for part in parts]
                assert all(len(b["id"]) <= 48 // processes for b in group)
                assert all(b.keys() == group[0].keys() for b in group)  # some have no rows
                seen.append(np.concatenate([b["id"] for b in group]))
                if kind != "parquet":  # the very batch of one process
                    np.testing.assert_array_equal(seen[-1], batches.batches()[number]["id"])
            np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(ROWS))
    with pytest.raises(ValueError, match=r"batch_size must be a multiple of 5 .*, got 48"):
        batches.batches(Share(0, 5))


def test_parquet_needs_a_row_group_for_each_process(tmp_path):
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"at least 2 row groups .*, got 1 in .*a\.parquet"):
        jo.data.stream(tmp_path, 2).batches(Share(0, 2))


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("shuffle", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_parquet_goes_on_with_as_many_processes_alone(
    folders, tmp_path, monkeypatch, kind, shuffle
):
    batches = open_stream(folders, kind, shuffle=shuffle)
    run = {"optimizer": jo.optim.sgd(0.1), "batch_size": 64, "checkpoints": tmp_path}
    with monkeypatch.context() as patch:
        two = types.SimpleNamespace(count=lambda: 2, index=lambda: 0)
        patch.setattr(sys.modules["jaxops.data.streams"], "hosts", two)
        patch.setattr(feed, "checksums", lambda columns: {})  # none where each reads other rows
        jo.fit(TASK, batches, steps=2, progress=False, **run)
    if kind == "npy":
        assert jo.fit(TASK, batches, steps=3, progress=False, **run).step == 3
    else:
        with pytest.raises(ValueError, match=r"processes must be 2, as in .*, got 1"):
            jo.fit(TASK, batches, steps=3, progress=False, **run)


def test_parquet_is_read_once_an_epoch_and_a_window_at_a_time(folders, monkeypatch):
    batches = open_stream(folders, "parquet")
    source, reads, held = batches.batches(), [], []
    read = batches.reader.read
    monkeypatch.setattr(batches.reader, "read", lambda group: reads.append(group) or read(group))
    for number in range(source.per_epoch):
        source[number]
        windows = dict(source._held.values())
        held.append(sum(len(found["id"]) for found in windows.values()))
    groups = batches.reader.groups
    assert len(groups) == 35 and set(reads) == set(groups)
    # once each, but for the windows in which one lane ends and the next begins
    assert len(reads) <= len(groups) + 3 * 2
    assert max(held) <= 200 + 4 * 30
    neighbours = np.concatenate([batches.batches()[i]["id"] for i in (0, 1, 2, 3)])
    assert len(np.unique(neighbours // 30)) >= 8  # of many row groups


@pytest.mark.parametrize("kind", KINDS)
def test_state_is_a_number_and_is_restored_at_once(folders, kind, monkeypatch):
    batches = open_stream(folders, kind)
    wanted = list(itertools.islice(batches.endless(), 40))
    for stop in (0, 1, 17, 33):
        iterator = batches.endless()
        for _ in range(stop):
            next(iterator)
        state = json.loads(json.dumps(iterator.get_state()))
        assert state == {"next": stop}
        again = open_stream(folders, kind).endless()
        next(again)
        again.set_state(state)
        assert_same(list(itertools.islice(again, 40 - stop)), wanted[stop:])


def test_workers_change_nothing(folders):
    """A killed run below has workers that read Parquet: a worker takes two seconds to start."""
    kind = "array_record"
    batches = list(itertools.islice(open_stream(folders, kind).endless(), 24))
    iterator = open_stream(folders, kind, workers=2).endless()
    iterator.set_state({"next": 3})
    assert_same(list(itertools.islice(iterator, 21)), batches[3:])
    assert iterator.get_state() == {"next": 24}
    iterator.close()


@pytest.mark.parametrize("kind", [pytest.param("npy", marks=pytest.mark.slow), *KINDS[1:]])
def test_fit_takes_the_batches_of_each_epoch(folders, kind):
    def fit(data, **settings):
        return jo.fit(
            TASK,
            data,
            optimizer=jo.optim.adam(1e-2),
            batch_size=64,
            progress=False,
            **settings,
        )

    batches = open_stream(folders, kind)
    records = []
    found = fit(batches, epochs=2, reports=records.append, validation=batches)
    wanted = fit(list(itertools.islice(batches.endless(), 32)), steps=32)
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(wanted.params), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [(r["split"], r["step"], r["epoch"]) for r in records] == [
        ("train", 16, 1.0),
        ("validation", 16, 1.0),
        ("train", 32, 2.0),
        ("validation", 32, 2.0),
    ]
    whole = jo.evaluate(TASK, found, {k: columns()[k] for k in ("features", "label")})
    assert records[-1]["loss"] == pytest.approx(whole["loss"], rel=1e-5)
    rows = open_stream(folders, kind, shuffle=False)
    np.testing.assert_allclose(
        jo.predict(TASK, found, rows),
        jo.predict(TASK, found, {"features": columns()["features"]}),
        rtol=1e-5,
    )


def test_a_stream_is_of_one_batch_size_and_one_seed(folders, tmp_path):
    def fit(batches, **settings):
        jo.fit(
            TASK,
            batches,
            optimizer=jo.optim.sgd(0.1),
            progress=False,
            checkpoints=tmp_path,
            **settings,
        )

    with pytest.raises(ValueError, match=r"batch_size must be 64, as in data\.stream, got 128"):
        fit(open_stream(folders, "npy"), batch_size=128, steps=1)
    fit(open_stream(folders, "npy"), batch_size=64, steps=2)
    with pytest.raises(ValueError, match=r"seed must be 0, as in the run .*, got 1"):
        fit(open_stream(folders, "npy", seed=1), batch_size=64, steps=3)


def run_child(forks, folders, kind, out, workers, kill_after=None):
    log = out / "log"
    arguments = [kind, str(folders[kind]), str(out), workers, str(log)]
    child = forks.start("stream_worker", *arguments, out=os.devnull, err=out / "errors")
    if kill_after is not None:
        deadline = time.monotonic() + 90
        begun = log.read_text().count("\n") if log.exists() else 0
        while child.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_text().count("\n") >= begun + kill_after:
                break
            time.sleep(0.005)
        assert child.poll() is None, (out / "errors").read_text()
        child.kill()
        child.wait()
        return None
    assert child.wait() == 0, (out / "errors").read_text()
    with np.load(out / "final.npz") as file:
        return [file[name] for name in file.files]


@pytest.fixture(scope="module")
def whole(forks, folders, tmp_path_factory):
    """kind -> the parameters of a run that nothing interrupts."""
    return functools.cache(
        lambda kind: run_child(forks, folders, kind, tmp_path_factory.mktemp("whole"), 0)
    )


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers", "kills"), [("npy", 0, 2), ("parquet", 2, 1)])
def test_a_killed_run_goes_on_exactly(forks, whole, tmp_path, folders, kind, workers, kills):
    rng = random.Random(workers)
    for _ in range(kills):
        run_child(forks, folders, kind, tmp_path, workers, kill_after=rng.randint(9, 90))
    found = run_child(forks, folders, kind, tmp_path, workers)
    with jo.Checkpointer(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.meta()["stream"] == {"next": 200}
    for a, b in zip(found, whole(kind), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_stream_of_a_run_starts_no_workers_to_look_at_a_batch(folders):
    iterator = iter(open_stream(folders, "npy", workers=2))
    next(iterator)
    assert iterator._ahead is None
    source = Stream(open_stream(folders, "npy"), 64, jo.devices.single(), dict)
    assert source.steps_per_epoch == 16


def test_a_data_source_of_grain_or_tfds(folders):
    class Source:
        def __len__(self):
            return 10

        def __getitem__(self, row):
            return {"x": np.full(2, row), "name": f"row {row}"}

    batches = jo.data.stream(Source(), 4)
    found = joined(batches)
    assert sorted(found["x"][:, 0].tolist()) == list(range(10))
    assert found["name"].tolist() == [f"row {i}" for i in found["x"][:, 0]]
    doubled = jo.data.stream(Source(), 4, decode=lambda row: {"x": 2 * row["x"]})
    np.testing.assert_array_equal(joined(doubled)["x"], 2 * found["x"])


def test_a_set_that_tfds_prepared(tmp_path):
    import tensorflow_datasets as tfds

    class Squares(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Tensor(shape=(2, 2), dtype=np.uint8),
                "label": tfds.features.ClassLabel(num_classes=3),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(20), "test": self._generate_examples(5)}

        def _generate_examples(self, rows):
            for i in range(rows):
                yield i, {"image": np.full((2, 2), i, np.uint8), "label": i % 3}

    builder = Squares(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    by_files = jo.data.stream(f"{builder.data_dir}/*-train.array_record*", 8)
    by_source = jo.data.stream(builder.as_data_source("train"), 8)
    assert_same(list(by_files), list(by_source))
    found = joined(by_files)
    assert found["image"].dtype == np.uint8
    np.testing.assert_array_equal(found["label"], found["image"][:, 0, 0] % 3)
    np.testing.assert_array_equal(np.sort(found["image"][:, 1, 1]), np.arange(20))
    with pytest.raises(
        ValueError, match=r"must name one split, .*, got squares-test, squares-train"
    ):
        jo.data.stream(builder.data_dir, 8)


def save(folder, **arrays):
    for name, value in arrays.items():
        np.save(folder / f"{name.replace('_', '-')}.npy", value)


def test_npy_errors_name_the_file_and_the_column(tmp_path):
    def stream(**arrays):
        for file in tmp_path.iterdir():
            file.unlink()
        save(tmp_path, **arrays)
        return jo.data.stream(tmp_path, 2)

    x = np.zeros((4, 3), np.float32)
    with pytest.raises(FileNotFoundError, match=re.escape(f"{tmp_path} must hold .npy, .parquet")):
        stream()
    with pytest.raises(
        ValueError, match=r"shard '0' must have a file of column 'x', got only .*y-0\.npy"
    ):
        stream(y_0=x, x_1=x, y_1=x)
    with pytest.raises(ValueError, match=r"4 in .*x-0\.npy, 3 in .*y-0\.npy"):
        stream(x_0=x, y_0=x[:3])
    with pytest.raises(
        ValueError, match=r"x-1\.npy: column 'x' must have rows of float32 .*x-0.*, got float64"
    ):
        stream(x_0=x, x_1=x.astype(float))
    with pytest.raises(
        ValueError, match=r"x-1\.npy: column 'x' must .*\(3,\), as .*, got .*\(2,\)"
    ):
        stream(x_0=x, x_1=x[:, :2].copy())
    with pytest.raises(ValueError, match=r"x\.npy must be in C order"):
        stream(x=np.asfortranarray(x))
    with pytest.raises(ValueError, match=r"x\.npy must have at least 1 row, got shape \(0, 3\)"):
        stream(x=x[:0])
    with pytest.raises(ValueError, match=r"x\.npy must be a whole NumPy file"):
        stream(x=np.array([{}]))
    stream(x=x)
    whole = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"x\.npy must be a whole NumPy file"):
        jo.data.stream(tmp_path, 2)
    stream(x=x)
    with pytest.raises(ValueError, match="must have a column 'z', got x"):
        jo.data.stream(tmp_path, 2, columns=["z"])
    with pytest.raises(ValueError, match=r"decode must be None for \.npy files"):
        jo.data.stream(tmp_path, 2, decode=decode)
    (tmp_path / "more.parquet").write_bytes(b"")
    with pytest.raises(ValueError, match=r"files of one kind, got .*x\.npy, .*more\.parquet"):
        jo.data.stream(tmp_path, 2)
    for name, value in {"batch_size": 0, "workers": -1}.items():
        with pytest.raises(ValueError, match=f"{name} must be at least .*, got {value}"):
            jo.data.stream(tmp_path, **{"batch_size": 2, name: value})
    with pytest.raises(ValueError, match=r"source must be a path, .*, got int"):
        jo.data.stream(3, 2)


def test_parquet_errors_name_the_file_and_the_column(tmp_path):
    def first(*tables, **settings):
        for i, table in enumerate(tables):
            pq.write_table(pa.table(table), tmp_path / f"{i}.parquet")
        return next(iter(jo.data.stream(tmp_path, 2, **settings)))

    found = first({"x": pa.array([1.0, None]), "y": [[1, 2], [3, 4]], "name": ["a", "b"]})
    assert np.isnan(found["x"]).sum() == 1 and found["y"].shape == (2, 2)
    assert sorted(found["name"].tolist()) == ["a", "b"]
    with pytest.raises(
        ValueError,
        match=r"0\.parquet: row group 0: column 'x' must have no missing values.*, got 1",
    ):
        first({"x": pa.array([1, None])})
    with pytest.raises(
        ValueError,
        match=r"0\.parquet: .*column 'x' must have lists of equal length, got 1 to 2 values",
    ):
        first({"x": [[1], [2, 3]]})
    with pytest.raises(ValueError, match=r"1\.parquet: column 'x' must be int64, .*, got string"):
        first({"x": [1]}, {"x": ["a"]})
    with pytest.raises(ValueError, match=r"1\.parquet must have a column 'x', got y"):
        first({"x": [1]}, {"y": [1]})
    with pytest.raises(ValueError, match="must have a column 'z'"):
        first({"x": [1]}, {"x": [1]}, columns=["z"])
    (tmp_path / "1.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"1\.parquet must be a whole Parquet file"):
        jo.data.stream(tmp_path, 2)


def test_errors_of_records_name_the_source_and_the_column(tmp_path, folders):
    with pytest.raises(
        ValueError, match=r"array_record.* must give records .*, got bytes; decode=function"
    ):
        next(iter(jo.data.stream(folders["array_record"], 4)))
    ragged = [{"x": np.zeros(i + 1)} for i in range(3)]
    with pytest.raises(
        ValueError, match=r"source list: column 'x' must have one shape, got .* in row 1"
    ):
        next(iter(jo.data.stream(ragged, 3, shuffle=False)))
    (tmp_path / "a.array_record").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.array_record must be a whole ArrayRecord file"):
        jo.data.stream(tmp_path, 4, decode=decode)


def test_many_files_are_not_open_at_once(tmp_path):
    for i in range(300):
        np.save(tmp_path / f"x-{i}.npy", np.full(4, i))
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("/proc is Linux's")
    batches = jo.data.stream(tmp_path, 600)
    before = len(list(descriptors.iterdir()))
    assert len(np.unique(joined(batches)["x"])) == 300
    assert len(list(descriptors.iterdir())) < before + 20


def growth(batches, epochs, task):
    """By how many batches live memory grows in an epoch of training: the least-squares slope.

    Live is what is still referenced: what Python and NumPy allocated, arrays of JAX, Arrow's pool.
    Unlike the process's resident memory it does not depend on the allocator or on the machine's
    load, only on the few batches that are read ahead.
    """
    samples = []

    def sample(record):
        gc.collect()
        arrays = sum(array.nbytes for array in jax.live_arrays())
        samples.append(tracemalloc.get_traced_memory()[0] + arrays + pa.total_allocated_bytes())

    gc.collect()
    gc.freeze()  # what other tests left is not looked at in every epoch
    tracemalloc.start()
    try:
        jo.fit(
            task,
            batches,
            optimizer=jo.optim.sgd(0.01),
            batch_size=batches.batch_size,
            epochs=epochs,
            reports=sample,
            progress=False,
        )
    finally:
        tracemalloc.stop()
        gc.unfreeze()
    size = sum(value.nbytes for value in next(iter(batches)).values())
    assert len(samples) == epochs
    return np.polyfit(np.arange(5, epochs), samples[5:], 1)[0] / size


@pytest.mark.parametrize("kind", [pytest.param("npy", marks=pytest.mark.slow), "parquet"])
def test_live_memory_does_not_grow(kind, tmp_path, monkeypatch):
    features = np.random.default_rng(0).normal(size=(ROWS // 2, 256)).astype(np.float32)
    data = {"features": features, "label": (features[:, 0] > 0).astype(np.int32)}
    WRITE[kind](tmp_path, {**data, "id": np.arange(ROWS // 2)})
    batches = open_stream({kind: tmp_path}, kind, columns=["features", "label"])
    task = tabular.classifier(tabular.MLP((8,)), features=256)
    assert abs(growth(batches, 30, task)) < 0.25

    reader = type(batches.batches())
    read, kept = reader.__getitem__, []

    def leaking(self, number):
        batch = read(self, number)
        if number % len(batches) == 0:
            kept.append(batch)
        return batch

    monkeypatch.setattr(reader, "__getitem__", leaking)
    assert growth(batches, 30, task) == pytest.approx(1, abs=0.25)  # one batch an epoch
    assert len(kept) >= 30


LIMITED = """
import json, resource, sys
import numpy as np
import jaxops as jo
from jaxops import tabular

if __name__ == "__main__":
    folder, limit, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:  # the limit is one
        np.ones(limit // 8)
        raise SystemExit("an array as large as the limit was allowed")
    except MemoryError:
        pass

    records = []
    batches = jo.data.stream(folder, 256, window=4096)
    jo.fit(
        tabular.classifier(tabular.MLP((16,)), features=2048), batches,
        optimizer=jo.optim.adam(1e-3), batch_size=256, epochs=1, progress=False,
        reports=jo.Reports(records.append, every=len(batches) // 120),
    )
    json.dump({"records": len(records), "rows": len(batches) * 256}, open(out, "w"))
"""


@pytest.fixture
def large(tmp_path):
    """2 GB of rows of 8 KB, 32 links to one file; removed after the test: pytest keeps folders."""
    import shutil

    folder = tmp_path / "large"
    folder.mkdir()
    block = np.random.default_rng(0).normal(size=(8192, 2048)).astype(np.float32)
    table = pa.table({"features": arrow(block), "label": (block[:, 0] > 0).astype(np.int32)})
    settings = {"compression": "none", "use_dictionary": False}
    pq.write_table(table, folder / "0.parquet", row_group_size=1024, **settings)
    for shard in range(1, 32):
        os.link(folder / "0.parquet", folder / f"{shard}.parquet")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory limits and /proc are Linux's")
def test_three_times_the_allowed_memory_trains(large, tmp_path):
    """RLIMIT_DATA counts what a process allocates, but not a mapped file, such as one of NumPy.

    A process that kept a third of its batches would fail; a smaller leak is found above.
    """
    limit = 640 * 2**20
    size = sum(path.stat().st_size for path in large.iterdir())
    assert size > 3 * limit
    script, out = tmp_path / "child.py", tmp_path / "out.json"
    script.write_text(LIMITED)
    # stacks of threads for each core are memory too, and so is the GB that mimalloc sets aside
    small = {"NPROC": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    env = {**os.environ, **small, "PYTHONPATH": str(Path(__file__).parents[2])}
    # VmData counts a thread's whole stack, 8 MB by default, whenever the thread may come to start
    arguments = ["sh", "-c", 'ulimit -s 2048 && exec "$@"', "sh"]
    arguments += [sys.executable, str(script), str(large), str(limit), str(out)]
    found = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    result = json.loads(out.read_text())
    assert result["rows"] == 32 * 8192 and result["records"] >= 100
