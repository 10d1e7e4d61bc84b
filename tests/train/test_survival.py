"""Runs that are killed, preempted or spoiled, and go on."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from small import ADAM, TASK, assert_equal, images

import jaxops as jo
from jaxops import optim
from jaxops.train.run import Run
from jaxops.trust import report

HERE = Path(__file__).parents[1]


def killed(tmp_path, seed, devices, kills):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])}
    child = subprocess.run(
        [sys.executable, HERE / "kill_worker.py", tmp_path, str(seed), str(devices), str(kills)],
        env={**env, "NPROC": "16"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert child.returncode == 0, child.stderr[-5000:]
    found = json.loads(child.stdout.splitlines()[-1])
    assert found["same_records"] and found["records"] > 20
    assert found["kills"] >= kills
    return found


@pytest.mark.slow
def test_four_kills_on_one_device_change_no_bit(tmp_path, capsys):
    found = killed(tmp_path, seed=0, devices=1, kills=4)
    with capsys.disabled():
        print("\nkilled on one device:", found)
    assert found["difference"] == 0


@pytest.mark.slow
def test_two_kills_on_eight_devices(tmp_path, capsys):
    found = killed(tmp_path, seed=1, devices=8, kills=2)
    with capsys.disabled():
        print("\nkilled on eight devices:", found)
    assert found["difference"] <= 1e-6


@pytest.mark.parametrize(
    ("number", "stop", "said"),
    [
        (signal.SIGTERM, SystemExit, "preempted: stopped after step [5-8]\n"),
        (signal.SIGINT, KeyboardInterrupt, "stopped after step [5-8]"),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_is_handled_while_a_run_lasts_and_the_run_goes_on(
    tmp_path, capsys, number, stop, said
):
    """What a process then exits with, tests/devices/test_hosts.py shows."""

    def on_log(record):
        if record["step"] == 4:  # once: a second Ctrl-C does not wait for the step
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(stop) as stopped:
        fit(images(40), tmp_path, epochs=9, reports=on_log)
    printed = capsys.readouterr().err
    told = str(stopped.value) if stop is KeyboardInterrupt else printed
    assert re.fullmatch(said, told), told
    assert stop is KeyboardInterrupt or stopped.value.code == jo.PREEMPTED == 75
    assert signal.getsignal(number) is before
    with jo.Checkpointer(tmp_path) as checkpoints:
        assert 5 <= checkpoints.latest_step() <= 8
    assert_equal(fit(images(40), tmp_path, epochs=3), fit(images(40), epochs=3))


def test_sigterm_while_the_form_of_a_step_is_chosen_is_answered_after(tmp_path, monkeypatch):
    def loops_well(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stopped:
        patch.setattr(Run, "_loops_well", loops_well)
        fit(images(40), tmp_path, epochs=9)
    assert stopped.value.code == 75
    with jo.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1


def fit(data, checkpoints=None, optimizer=ADAM, **changes):
    settings = {"batch_size": 10, "progress": False, "checkpoints": checkpoints, **changes}
    return jo.fit(TASK, data, optimizer=optimizer, **settings)


# A logger's file


def lines(path):
    timings = {"examples_per_second": 0, "first_step_seconds": 0}
    return [{**record, **timings} for record in report.read_json_lines(path)]


class Stop(Exception):
    """The end of a run that saves nothing any more."""


# before the first checkpoint; between two; at one
@pytest.mark.parametrize("at", [2, 7, pytest.param(10, marks=pytest.mark.slow)])
def test_a_metrics_file_has_no_gap_and_no_line_twice(tmp_path, at):
    path = tmp_path / "broken.jsonl"

    def run(name, log):
        checkpoints = jo.Checkpoints(tmp_path / name, every=5)
        fit(images(40), checkpoints, epochs=4, reports=jo.Reports(log, every=1))

    class Broken(report.JsonLines):
        def __call__(self, record):
            super().__call__(record)
            if record["step"] == at:
                raise Stop

    with pytest.raises(Stop):
        run("broken", Broken(path))
    assert lines(path)[-1]["step"] == at
    run("broken", report.JsonLines(path))
    run("whole", report.JsonLines(tmp_path / "whole.jsonl"))
    assert lines(path) == lines(tmp_path / "whole.jsonl")


def test_two_runs_of_one_process_into_one_metrics_file_keep_both(tmp_path):
    log = report.JsonLines(tmp_path / "metrics.jsonl")
    for name in ("first", "second"):
        fit(images(40), tmp_path / name, epochs=2, reports=log)
    assert [r["epoch"] for r in lines(tmp_path / "metrics.jsonl")] == [1, 2, 1, 2]


# A loss that is not finite


def spoiled_loss(params, extra, batch, key, train):
    total, out = TASK.loss(params, extra, batch, key, train)
    return total * jnp.where(jnp.isnan(batch["factor"]).any(), jnp.nan, 1.0), out


def spoiled(rows, bad, value=np.nan):
    """Data with a column that multiplies the loss, NaN in some rows, and its task."""
    factor = np.ones(rows, np.float32)
    factor[bad] = value
    return TASK._replace(loss=spoiled_loss, columns=()), {**images(rows), "factor": factor}


def step_of(row, rows=40, batch_size=10):
    """The step, from 1, of the first epoch in which a row is used."""
    order = np.random.default_rng((0, 0)).permutation(rows)
    return int(np.flatnonzero(order == row)[0]) // batch_size + 1


def test_a_nan_stops_and_the_state_before_is_kept(tmp_path):
    task, bad = spoiled(40, [5])
    good = {**bad, "factor": np.ones(40, np.float32)}
    common = {"optimizer": ADAM, "batch_size": 10, "epochs": 3, "progress": False}
    checkpoints = jo.Checkpoints(tmp_path, every=1)
    at = step_of(5)
    assert at > 1
    with pytest.raises(FloatingPointError, match=rf"the loss is nan at step {at};"):
        jo.fit(task, bad, checkpoints=checkpoints, **common)
    with jo.Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest_step() == at - 1
    with pytest.raises(ValueError, match=r"checksum of data column 'factor' must be"):
        jo.fit(task, good, checkpoints=checkpoints, **common)  # other data are another run
    del common["epochs"]
    found = jo.fit(task, bad, checkpoints=checkpoints, steps=at - 1, **common)
    assert_equal(found, jo.fit(task, good, steps=at - 1, **common))


def test_skipped_and_clipped_steps_are_reported_by_epoch(tmp_path):
    task, data = spoiled(40, [5])
    tx = optim.skip_not_finite(optim.chain(optim.clip_by_global_norm(1e-3), ADAM))
    path = tmp_path / "metrics.jsonl"
    common = {"optimizer": tx, "batch_size": 10, "epochs": 3, "progress": False}
    state = jo.fit(task, data, reports=report.JsonLines(path), **common)
    records = lines(path)
    assert [r["skipped"] for r in records] == [1, 1, 1]
    assert [r["clipped"] for r in records] == [3, 3, 3]
    assert all(np.isfinite(r["loss"]) for r in records)
    chex.assert_tree_all_finite(state.params)
    assert state.step == 12 and state.opt_state.total_notfinite == 3


@pytest.mark.slow  # test_resume.py shows it for a metric of a user
def test_counts_survive_in_the_middle_of_an_epoch(tmp_path):
    task, data = spoiled(40, [5])
    records = []

    def broken(record):
        if record["step"] == 7:
            raise Stop

    def run(on_log):
        return jo.fit(
            task,
            data,
            optimizer=optim.skip_not_finite(ADAM),
            batch_size=10,
            epochs=2,
            reports=jo.Reports(on_log, every=1),
            checkpoints=jo.Checkpoints(tmp_path, every=1),
            progress=False,
        )

    with pytest.raises(Stop):
        run(broken)
    run(records.append)
    (epoch,) = (r for r in records if r["split"] == "train")
    assert epoch["skipped"] == 1 and epoch["step"] == 8


def test_a_run_in_which_all_is_skipped_ends():
    task, data = spoiled(40, np.arange(40))
    with pytest.raises(FloatingPointError, match="not finite in all steps from 1 to 100"):
        jo.fit(
            task,
            data,
            optimizer=optim.skip_not_finite(ADAM),
            batch_size=10,
            epochs=1000,
            progress=False,
        )


def test_skipped_steps_in_a_row_are_counted_on_after_a_restart(tmp_path):
    task, data = spoiled(40, np.arange(40))
    settings = {"optimizer": optim.skip_not_finite(ADAM), "batch_size": 10, "progress": False}
    settings["checkpoints"] = jo.Checkpoints(tmp_path, every=60)
    jo.fit(task, data, steps=60, **settings)
    with pytest.raises(FloatingPointError, match="not finite in all steps from 1 to 100"):
        jo.fit(task, data, steps=120, **settings)
