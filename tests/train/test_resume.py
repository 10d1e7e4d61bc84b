"""Runs that are killed or refused by the disk, and go on as if they had not been."""

import functools
import json
import os
import random
import re
import resource
import tempfile
import time
import traceback
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from small import (
    ADAM,
    SETTINGS,
    TASK,
    Batches,
    assert_equal,
    counting,
    grained,
    host,
    images,
    numbered,
    train,
)

import jaxops as jo
from jaxops import optim, vision
from jaxops.train import feed


def start(forks, directory, kind, pause=0.01, **changes):
    directory.mkdir(exist_ok=True)
    files = {"out": os.devnull, "err": directory / "errors"}
    return forks.start("resume_worker", str(directory), kind, {"pause": pause, **changes}, **files)


def wait_for_records(child, directory, count):
    path, deadline = directory / "records.jsonl", time.monotonic() + 90
    while child.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= count:
            return
        time.sleep(0.01)
    assert child.poll() is not None, "no record within 90 seconds"


def plain(records):
    """The last record of each split and step, without its speed."""
    kept = {(r["split"], r["step"]): r for r in json.loads(json.dumps(records))}
    timings = {"examples_per_second": None, "first_step_seconds": None}
    return {k: {**r, **timings} for k, r in kept.items()}


@functools.cache
def unbroken(kind):
    """The state and the records of a run that nothing interrupts."""
    records = []
    with tempfile.TemporaryDirectory() as directory:
        return train(kind, directory, records.append), records


@pytest.mark.slow  # of columns that lie on the device, test_survival.py shows it
@pytest.mark.parametrize(("kind", "trial"), [("grain", 4), ("plain", 5)])
def test_killed_runs_go_on_exactly(forks, tmp_path, kind, trial):
    path, rng = tmp_path / "records.jsonl", random.Random(trial)
    for _ in range(2):
        seen = path.read_text().count("\n") if path.exists() else 0
        child = start(forks, tmp_path, kind, pause=0.05)
        wait_for_records(child, tmp_path, seen + 1)
        time.sleep(rng.uniform(0, 0.5))
        child.kill()
        child.wait()
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    records = [json.loads(line) for line in lines]
    state = train(kind, tmp_path / "checkpoints", records.append)
    want, wanted = unbroken(kind)
    assert_equal(state, want)
    assert plain(records) == plain(wanted)


class Stop(Exception):
    """The test's own end of a run."""


@pytest.mark.slow  # compiled as the others that compare with `unbroken`
def test_a_run_that_broke_off_in_a_window_goes_on_exactly(tmp_path):
    records = []

    def broken(record):
        records.append(record)
        if record["step"] >= limit:  # in a window; saved at 14 and 35
            raise Stop

    for limit in (19, 39):
        with pytest.raises(Stop):
            train("grain", tmp_path / "broken", broken)
    state = train("grain", tmp_path / "broken", records.append)
    want, wanted = unbroken("grain")
    assert_equal(state, want)
    assert plain(records) == plain(wanted)
    validations = [r for r in wanted if r["split"] == "validation"]
    assert state.step < validations[-1]["step"]  # the best one came back


def test_a_finished_run_is_not_trained_again(tmp_path):
    # the largest loss is the first one, so the best state is from before the last checkpoints
    settings = {"steps": 30, "early_stopping": jo.EarlyStopping("loss", 99, "max")}
    first = train("resident", tmp_path, lambda record: None, **settings)
    assert first.step == 11
    records = []
    assert_equal(train("resident", tmp_path, records.append, **settings), first)
    assert not records


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A function that fits ten steps, with changes, and continues from the same checkpoints."""
    common = {"optimizer": ADAM, "batch_size": 8, "epochs": 2, "progress": False}
    directory = tmp_path_factory.mktemp("finished")

    def fit(task=TASK, data=None, **changes):
        data = images(40) if data is None else data
        return jo.fit(task, data, checkpoints=directory, **{**common, **changes})

    fit()
    return fit


def another(images, label):
    return {"image": images, "label": label}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data": images(40, seed=1)},
            r"checksum of data column 'image' must be uint8\[4, 4, 1\] \w{8}, as in",
        ),
        (
            {"data": another(images(40)["image"], (images(40)["label"] + 1) % 3)},
            r"data column 'label' must be int32\[\] \w{8}, as in .* got int32\[\] \w{8}",
        ),
        (
            {"task": vision.classifier(vision.MLP((16,), dropout=0.5, classes=3), **SETTINGS)},
            r"(?s)task argument 'module' must be MLP.*dropout = 0.0.*got MLP.*dropout = 0.5",
        ),
        (
            {"task": TASK._replace(recipe=None)},
            r"argument 'augment' must be None, as in .* got nothing",
        ),
        ({"epochs": 1}, r"steps must be at least 10 \(the newest checkpoint in .* got 5; for"),
    ],
)
def test_a_run_with_other_data_or_task_is_refused(finished, changes, message):
    with pytest.raises(ValueError, match=message):
        finished(**changes)


def test_the_same_data_in_another_dtype_go_on(finished, capfd):
    finished(data=another(images(40)["image"], images(40)["label"].astype(np.int64)))
    assert "no step was made" in capfd.readouterr().err


def test_a_call_that_makes_no_step_says_so(finished, capfd):
    finished(optimizer=optim.adam(1e-5))
    said = capfd.readouterr()
    assert re.match(r"no step was made: .* holds the end of this run, step 10, and fit", said.err)
    assert said.out == ""
    finished(epochs=3)
    assert capfd.readouterr().err == ""


def test_another_stream_is_refused(tmp_path):
    common = {"optimizer": ADAM, "batch_size": 8, "steps": 5, "progress": False}
    jo.fit(TASK, Batches(images(40), 8), checkpoints=tmp_path, **common)
    with pytest.raises(ValueError, match=r"column 'image' must be .*, as in the run that wrote"):
        jo.fit(TASK, Batches(images(40, seed=1), 8), checkpoints=tmp_path, **common)


def test_metrics_of_a_user_survive_in_the_middle_of_an_epoch(tmp_path):
    records = []

    def broken(record):
        if len(records) == 1:
            raise Stop
        records.append(record)

    def fit(on_log):
        return jo.fit(
            counting(23),
            numbered(23),
            optimizer=ADAM,
            batch_size=5,
            epochs=2,
            reports=jo.Reports(on_log, every=2),
            checkpoints=jo.Checkpoints(tmp_path, every=3),
            progress=False,
        )

    with pytest.raises(Stop):
        fit(broken)
    with jo.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 3
    fit(records.append)
    epochs = [r["seen"] for r in records if r["split"] == "train"]
    np.testing.assert_array_equal(epochs, np.ones((2, 23)))


def test_early_stopping_is_left_out_on_the_way(tmp_path):
    settings = {"steps": 20, "early_stopping": jo.EarlyStopping(patience=99)}
    train("resident", tmp_path, lambda record: None, **settings)
    found = train("resident", tmp_path, lambda record: None, steps=30, early_stopping=None)
    assert found.step == 30


@contextmanager
def full_disk(size=50_000):
    """No file may grow beyond `size` bytes: the write is refused, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WIDE = vision.classifier(vision.MLP((4096,), classes=3), **SETTINGS)


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, caplog):
    def fit(steps):
        return jo.fit(
            WIDE,
            images(40),
            optimizer=ADAM,
            batch_size=10,
            steps=steps,
            checkpoints=tmp_path,
            progress=False,
        )

    before = host(fit(4))
    said = f"{tmp_path}: .* of step 8 could not be written; the checkpoint of step 4 is complete"
    with full_disk(), pytest.raises(OSError, match=said) as caught:
        fit(12)
    assert len(traceback.format_exception(caught.value)) < 20  # and not Orbax's hundreds
    assert not [record for record in caplog.records if record.exc_info]
    assert_equal(fit(4), before)
    assert fit(8).step == 8  # and with room again it goes on


def test_a_full_disk_leaves_the_model_before(tmp_path):
    path = tmp_path / "wide.model"
    states = [jo.init_state(WIDE, ADAM, seed, images(1)) for seed in (0, 1)]
    jo.save(path, jo.Model(WIDE, states[0]))
    with full_disk(), pytest.raises(OSError, match=r"wide\.model: the model could not be written"):
        jo.save(path, jo.Model(WIDE, states[1]))
    assert_equal(jo.load(path).state.params, states[0].params)
    assert [p.name for p in tmp_path.iterdir()] == ["wide.model"]


def test_a_half_written_checkpoint_is_not_read(tmp_path):
    def fit(steps):
        return jo.fit(
            TASK,
            images(40),
            optimizer=ADAM,
            batch_size=10,
            steps=steps,
            checkpoints=tmp_path,
            progress=False,
        )

    fit(4)
    want = host(fit(8))
    fit(12)
    (tmp_path / "12").rename(tmp_path / "12.orbax-checkpoint-tmp")
    with jo.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 8
    assert_equal(fit(8), want)


def test_the_newest_three_stay_and_foreign_files_are_named(tmp_path):
    tree = {"state": {"w": jax.numpy.arange(3.0)}}
    with jo.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
            checkpoints.meta()
        for step in range(5):
            checkpoints.save(step, jax.tree.map(lambda x: x + step, tree), {"n": step})
        checkpoints.wait()
        assert checkpoints.meta() == {"n": 4}
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "3", "4"]


def test_streams_say_how_they_are_continued():
    data = {**numbered(23), "label": np.zeros(23, np.int32)}
    for stream in (grained(data, 5), Batches(data, 5)):
        source = feed.Stream(stream, 5, jo.devices.single(), dict)
        for i in range(3):
            source.feed(i, 1, 1)
        saved = json.loads(json.dumps(source.state()))
        assert (saved is None) == isinstance(stream, Batches)
        rest = [host(source.feed(i, 1, 1))["id"][0] for i in range(3, 7)]
        again = feed.Stream(stream, 5, jo.devices.single(), dict)
        again.restore(saved, 3)
        np.testing.assert_array_equal(
            [host(again.feed(i, 1, 1))["id"][0] for i in range(3, 7)], rest
        )
