"""Checkpoints that are damaged, directories that refuse, and two runs that want the same one."""

import contextlib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ADAM, TASK, assert_equal, images

import jaxops as jo
from jaxops.train import checksums
from jaxops.train.checkpoint import abstract

LEAF = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def tree(step):
    """A small state whose every number names its step."""
    numbers = np.random.default_rng(step)
    return {
        "state": {
            "params": {"kernel": jnp.asarray(numbers.normal(size=(7, 5)), jnp.float32)},
            "step": jnp.asarray(step, jnp.int32),
            "key": jax.random.key(step),
        }
    }


WANTED = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree(0))
WANTED = abstract(WANTED, jax.tree.map(lambda _: LEAF, WANTED))


def written(directory, steps):
    with jo.Checkpointer(directory) as checkpoints:
        for step in steps:
            checkpoints.save(step, tree(step), {"rows": 100 + step})
    return directory


def damage(folder, rng):
    """Cut one file of the checkpoint short, or turn one of its bits; its name and what was done."""
    file = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size))
    content = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        os.truncate(file, rng.randrange(len(content)))
        return file, "cut"
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)
    return file, "flipped"


def outcome(directory, file, capsys):
    """What a restore makes of it; fails where it is neither right nor refused by name."""
    try:
        with jo.Checkpointer(directory) as checkpoints:
            step, meta = checkpoints.latest_step(), checkpoints.meta()
            assert_equal(checkpoints.restore(WANTED), tree(step))
            assert meta == {"rows": 100 + step}
    except ValueError as error:
        assert str(file) in str(error)
        return "refused"
    printed = capsys.readouterr().err
    if step == 2:
        assert not printed
        return "whole"  # what was damaged says nothing, such as the time of the commit
    assert step == 1 and str(file) in printed
    assert not (directory / "2").exists() and (directory / "2.damaged").is_dir()
    return "the one before"


def tries(tmp_path, count, seed, capsys):
    rng, counts = random.Random(seed), Counter()
    for steps in ((1, 2), (2,)):
        written(tmp_path / str(len(steps)), steps)
    for i in range(count):
        directory = tmp_path / f"try-{i}"
        shutil.copytree(tmp_path / rng.choice("12"), directory)
        file, what = damage(directory / "2", rng)
        alone = not (directory / "1").exists()
        found = outcome(directory, file, capsys)
        assert found == "whole" or (found == "refused") == alone
        counts[what, found] += 1
        shutil.rmtree(directory)
    with capsys.disabled():
        print(f"\n{count} damaged checkpoints:", dict(counts))
    return counts


def test_a_damaged_checkpoint_is_never_restored(tmp_path, capsys):
    counts = tries(tmp_path, 30, 0, capsys)
    assert sum(n for (_, found), n in counts.items() if found != "whole") > 20


@pytest.mark.slow
def test_a_hundred_damaged_checkpoints_are_never_restored(tmp_path, capsys):
    counts = tries(tmp_path, 100, 1, capsys)
    assert sum(n for (_, found), n in counts.items() if found != "whole") > 70


def test_every_file_but_one_is_checked(tmp_path):
    folder = written(tmp_path, (1,)) / "1"
    assert checksums.damage(folder) is None
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    assert len(files) > 5
    unchecked = []
    for file in files:
        content = file.read_bytes()
        file.unlink()
        if not (checksums.damage(folder) or "").startswith(f"{file}: damaged: "):
            unchecked.append(file.relative_to(folder).as_posix())
        file.write_bytes(content)
    assert unchecked == ["commit_success.txt"]  # Orbax's last word, which says nothing else
    assert checksums.damage(folder) is None


def test_a_run_goes_back_to_the_newest_good_checkpoint_and_on(tmp_path, capsys):
    def fit(steps, directory):
        return jo.fit(
            TASK,
            images(40),
            optimizer=ADAM,
            batch_size=10,
            steps=steps,
            checkpoints=directory,
            progress=False,
        )

    fit(12, tmp_path / "damaged")
    for step in ("12", "8"):
        (file,) = (tmp_path / "damaged" / step / "state" / "d").iterdir()
        os.truncate(file, 100)
    found = fit(20, tmp_path / "damaged")
    assert_equal(found, fit(20, tmp_path / "whole"))
    printed = capsys.readouterr().err
    assert printed.count("going back to checkpoint 4") == 2
    names = {path.name for path in (tmp_path / "damaged").iterdir()}
    assert names == {"12", "16", "20", "8.damaged", "12.damaged"}


def test_all_damaged_is_not_a_run_from_the_start(tmp_path):
    written(tmp_path, (1, 2))
    for step in ("1", "2"):
        (tmp_path / step / "jaxops.json").write_text("{}x")
    with pytest.raises(ValueError, match=r"(?s)2/jaxops.json: damaged.*1/jaxops.json: dam"):
        jo.Checkpointer(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


# A directory that is somebody else's


def test_two_runs_do_not_write_to_one_directory_and_a_lock_ends_with_its_process(tmp_path):
    taken, free = tmp_path / "taken", tmp_path / "free"
    code = f"""
import os, jaxops as jo
held = jo.Checkpointer({str(free)!r})
try:
    jo.Checkpointer({str(taken)!r})
except OSError as error:
    print(error, flush=True)
    os.kill(os.getpid(), 9)
"""
    with jo.Checkpointer(taken):
        with pytest.raises(OSError, match=f"{taken}: another run is writing"):
            jo.Checkpointer(taken)
        child = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
        )
        assert child.returncode == -9, child.stderr
        assert f"{taken}: another run is writing" in child.stdout
    for directory in (taken, free):
        jo.Checkpointer(directory).close()


def test_a_directory_of_another_run_is_refused_and_left_as_it_is(tmp_path):
    def fit(**changes):
        settings = {"optimizer": ADAM, "batch_size": 10, "epochs": 2, "checkpoints": tmp_path}
        return jo.fit(TASK, images(40), progress=False, **{**settings, **changes})

    first = fit()
    with pytest.raises(ValueError, match=f"batch_size must be 10, .*{tmp_path}, got 20"):
        fit(batch_size=20)
    with pytest.raises(ValueError, match=f"seed must be 0, .*{tmp_path}, got 1"):
        fit(seed=1)
    with pytest.raises(ValueError, match="another model or optimizer"):
        fit(optimizer=jo.optim.sgd(0.1))
    assert_equal(fit(), first)


@contextlib.contextmanager
def nobody():
    """Permissions do not bind the superuser; for a while, be somebody whom they bind."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def readable():
    """A folder below which everybody may look, as below pytest's own they may not."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_read_only_directory_is_refused_before_the_run(readable):
    directory = readable / "checkpoints"
    written(directory, (1,))
    directory.chmod(0o555)
    with nobody():
        with pytest.raises(OSError, match=f"{directory}: no checkpoint can be written"):
            jo.Checkpointer(directory)
        with pytest.raises(OSError, match=str(directory / "new")):
            jo.Checkpointer(directory / "new")
    directory.chmod(0o755)
    with jo.Checkpointer(directory) as checkpoints:
        assert_equal(checkpoints.restore(WANTED), tree(1))


def test_a_directory_that_becomes_read_only_keeps_its_checkpoint(readable):
    directory = readable / "checkpoints"
    directory.mkdir()
    directory.chmod(0o777)

    def save():
        with jo.Checkpointer(directory) as checkpoints:
            checkpoints.save(1, tree(1), {})
            checkpoints.wait()
            with as_owner():
                directory.chmod(0o555)
            checkpoints.save(2, tree(2), {})

    with nobody(), pytest.raises(OSError, match=r"of step 2 could not be written; .* of step 1"):
        save()
    directory.chmod(0o777)
    with jo.Checkpointer(directory) as checkpoints:
        assert checkpoints.latest_step() == 1
        assert_equal(checkpoints.restore(WANTED), tree(1))


class Refused:
    """A save that the disk refused, as Orbax tells it."""

    def result(self):
        raise ValueError("no space left\nand many more lines")


def test_what_stops_a_run_is_not_hidden_by_a_save_that_fails(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt, match="mine"):  # noqa: SIM117
        with jo.Checkpointer(tmp_path) as checkpoints:
            checkpoints._pending = Refused()
            raise KeyboardInterrupt("mine")
    said = capsys.readouterr().err
    assert said.endswith("the same call starts from the beginning: no space left\n")


@contextlib.contextmanager
def as_owner():
    who = os.geteuid()
    if os.getuid() == 0:
        os.seteuid(0)
    try:
        yield
    finally:
        os.seteuid(who)
