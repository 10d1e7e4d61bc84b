"""Answers for a file into a folder of parts: every row once and in order, whatever ends a run."""

import contextlib
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxops as jo
from jaxops import cli, monitor, tabular
from jaxops.model import scoring

HERE = Path(__file__).parent
N = 230  # rows: twelve parts of 20, the last of 10
AGE = np.arange(N) * 7 % 60 + 20
TABLE = {
    "customer": np.array([f"c{i * 37 % N}" for i in range(N)], object),
    "age": AGE,
    "plan": np.array(["a", "b", "c"], object)[np.arange(N) % 3],
}


def saved(path, seed):
    """A model with the parameters of a seed, in a file."""
    rows = {**TABLE, "left": np.array(["no", "yes"], object)[(AGE > 40) * 1]}
    del rows["customer"]
    encoder = tabular.fit_encoder(rows, label="left")
    features = tabular.encode(encoder, rows)["features"]
    task = tabular.classifier(tabular.MLP((4,)), features.shape[1], classes=("no", "yes"))
    state = jo.init_state(task, jo.optim.sgd(0.1), seed, {"features": features[:1]})
    jo.save(path, jo.Model(task, state, tabular.TableReader(encoder, id="customer")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models; the rows as Parquet, CSV and packed CSV; and what the first model answers."""
    folder = tmp_path_factory.mktemp("predict")
    for seed, name in enumerate(("model", "other")):
        saved(folder / f"{name}.safetensors", seed)
    frame = pd.DataFrame(TABLE)
    frame.to_parquet(folder / "rows.parquet", row_group_size=70)
    frame.to_csv(folder / "rows.csv", index=False)
    frame.to_csv(folder / "rows.csv.gz", index=False)
    return folder


@pytest.fixture(scope="module")
def wanted(folder):
    return jo.load(folder / "model.safetensors").predict(folder / "rows.parquet").frame()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(scoring, "ROWS", 10)
    monkeypatch.setattr(scoring, "PART", 20)


def command(folder, out, data="rows.parquet", model="model", *more):
    """The exit code of `jaxops predict`."""
    words = ["predict", f"{folder}/{model}.safetensors", f"{folder}/{data}", "--out", f"{out}/"]
    return cli.main([*words, *more])


def assert_whole(out, wanted):
    """Every row once, in order, with the user's ids; nothing else is left."""
    found = pd.read_parquet(out)
    assert found.columns.tolist() == wanted.columns.tolist()
    assert found["id"].tolist() == wanted["id"].tolist()
    assert found["label"].tolist() == wanted["label"].tolist()
    np.testing.assert_allclose(found["p(yes)"], wanted["p(yes)"], atol=1e-6)
    manifest = json.loads((out / "_manifest.json").read_text())
    files = sorted(out.glob("part-*.parquet"))
    assert manifest["finished"] and len(manifest["parts"]) == len(files)
    for path, part in zip(files, manifest["parts"].values(), strict=True):
        assert pq.read_metadata(path).num_rows == part["rows"]
    assert sum(part["rows"] for part in manifest["parts"].values()) == len(wanted)
    assert len([*out.iterdir()]) == len(files) + 1


@pytest.mark.parametrize("data", ["rows.parquet", "rows.csv", "rows.csv.gz"])
def test_a_folder_has_what_the_model_answers(folder, wanted, tmp_path, data, capsys):
    out = tmp_path / "scores"
    assert command(folder, out, data) == 0
    assert capsys.readouterr().out == f"written: {out}, 230 rows in 12 parts\n"
    assert_whole(out, wanted)
    assert pq.read_metadata(out / "part-000003.parquet").num_rows == 20
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert command(folder, out, data) == 0
    assert capsys.readouterr().out == f"finished before: {out}, 230 rows in 12 parts\n"
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times


class Killed(BaseException):
    """The end of a process, which cleans nothing up."""


@pytest.fixture
def written(monkeypatch):
    """The numbers of the parts that are written."""
    numbers, write_part = [], scoring.write_part

    def noted(folder, number, frames):
        numbers.append(number)
        return write_part(folder, number, frames)

    monkeypatch.setattr(scoring, "write_part", noted)
    return numbers


# calls of fsync: two of the first manifest; of each part its file, its name, and its manifest's two
@pytest.mark.parametrize(
    ("at", "made", "first"), [(1, 0, 0), (15, 4, 3), (16, 4, 3), (17, 4, 3), (18, 4, 4)]
)
def test_a_run_that_ends_anywhere_goes_on(
    folder, wanted, tmp_path, written, monkeypatch, at, made, first
):
    calls, fsync = [], os.fsync

    def killed(descriptor):
        calls.append(descriptor)
        if len(calls) == at:
            raise Killed
        fsync(descriptor)

    out = tmp_path / "scores"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fsync", killed)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # who is killed leaves what is begun
        command(folder, out)
    assert written == [*range(made)]
    written.clear()
    assert command(folder, out) == 0
    assert written == [*range(first, 12)]
    assert_whole(out, wanted)


@pytest.fixture(scope="module")
def watched(folder):
    """A model with a reference in a folder with the rows, and their sketch."""
    model = jo.load(folder / "model.safetensors")
    model = monitor.with_reference(model, folder / "rows.parquet")
    place = folder / "watched"
    place.mkdir()
    jo.save(place / "model.safetensors", model)
    shutil.copy(folder / "rows.parquet", place)
    return place, model.reference


def assert_counted_once(sketches, reference):
    merged = monitor.read_snapshots(sketches, reference, model="model", whole=True)
    np.testing.assert_array_equal(merged[0].sketch.counts, reference.sketch.counts)
    np.testing.assert_allclose(merged[0].sketch.sums, reference.sketch.sums, atol=1e-3)
    assert len([*sketches.iterdir()]) == 12


# of each part the sketch's file comes second: it is begun, it is there, the part is half recorded
@pytest.mark.parametrize("at", [14, 15, 16])
def test_the_sketch_of_a_part_counts_once_wherever_a_run_ends(watched, tmp_path, monkeypatch, at):
    place, reference = watched
    calls, fsync, out, sketches = [], os.fsync, tmp_path / "scores", tmp_path / "sketches"
    words = ("rows.parquet", "model", "--sketches", str(sketches))

    def killed(descriptor):
        calls.append(descriptor)
        if len(calls) == at:
            raise Killed
        fsync(descriptor)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "fsync", killed)
        command(place, out, *words)
    assert recorded(out) == 2 and len([*sketches.glob("model-*")]) == 2 + (at > 14)
    assert command(place, out, *words) == 0
    assert_counted_once(sketches, reference)
    assert command(place, out, *words) == 0  # finished: nothing is counted again
    assert_counted_once(sketches, reference)
    assert command(place, tmp_path / "again", *words) == 0  # other answers are other rows
    [both] = monitor.read_snapshots(sketches, reference, whole=True)
    assert both.sketch.counts[0] == 2 * N


def test_what_a_failed_part_has_counted_is_not_in_the_sketch_of_the_next(
    watched, tmp_path, monkeypatch
):
    """An actor of Ray lives on after a part that it could not write."""
    place, reference = watched
    kept = scoring.Kept(f"{tmp_path}/sketches", "model", "model-3f")
    files = f"{place}/model.safetensors", f"{place}/rows.parquet", str(tmp_path)
    actor = scoring._Scorer(*files, 10, 20, kept)

    def full(folder, number, frames):
        assert len([*frames]) == 2  # predicted, and counted
        raise OSError(errno.ENOSPC, "no space is left")

    with monkeypatch.context() as patch:
        patch.setattr(scoring, "write_part", full)
        [told] = actor({"number": np.array([3])})["part"]
    assert json.loads(told)["disk"]
    for number in range(12):
        actor({"number": np.array([number])})
    assert_counted_once(tmp_path / "sketches", reference)


def test_the_parts_of_a_folder_have_all_their_sketches_in_one_place(
    watched, folder, tmp_path, capsys
):
    place, _ = watched
    out, to = tmp_path / "scores", f"{tmp_path}/sketches"
    assert command(place, out) == 0
    said = f"sketches must be as for the parts in {out}, None, got {to}"
    assert_refused(capsys, said, place, out, "rows.parquet", "model", "--sketches", to)
    out = tmp_path / "other"
    assert command(place, out, "rows.parquet", "model", "--sketches", to) == 0
    capsys.readouterr()
    said = f"sketches must be as for the parts in {out}, {to}, got None"
    assert_refused(capsys, said, place, out)
    said = "model must have a reference to be observed, got none"
    assert_refused(
        capsys, said, folder, tmp_path / "none", "rows.parquet", "model", "--sketches", to
    )
    assert not (tmp_path / "none").exists()


def test_what_a_killed_actor_has_begun_is_removed_at_the_end(tmp_path):
    with scoring.Folder(tmp_path) as parts:
        parts.begin({})
        (tmp_path / f".{'0' * 32}.part-000001.parquet").touch()
        parts.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["_manifest.json"]


def test_parts_that_are_lost_are_made_again(folder, wanted, tmp_path, written, capsys):
    out = tmp_path / "scores"
    assert command(folder, out) == 0
    (out / "part-000002.parquet").unlink()
    with open(out / "part-000007.parquet", "r+b") as file:
        file.truncate(100)
    written.clear()
    capsys.readouterr()
    assert command(folder, out) == 0
    said = f"resumed: {out}, 190 rows in 10 parts\nwritten: {out}, 230 rows in 12 parts\n"
    assert capsys.readouterr().out == said and written == [2, 7]
    assert_whole(out, wanted)


def assert_refused(capsys, message, *arguments):
    assert command(*arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("jaxops: error: ") and said.count("\n") == 1
    assert message in said


def test_a_folder_of_something_else_is_refused_and_left_as_it_is(
    folder, wanted, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "scores"
    assert command(folder, out) == 0
    kept = f"as for the parts in {out}, "
    assert_refused(capsys, f"model must be {kept}", folder, out, "rows.parquet", "other")
    assert_refused(capsys, f"data must be {kept}", folder, out, "rows.csv")
    with monkeypatch.context() as patch:
        patch.setattr(scoring, "PART", 40)
        assert_refused(capsys, f"rows must be {kept}20, got 40", folder, out)
    assert_whole(out, wanted)
    manifest = out / "_manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"format": 1', '"format": 2'))
    assert_refused(capsys, "must have the format 1, got 2", folder, out)
    manifest.write_text(text[:50])
    assert_refused(capsys, f"{manifest} must be a manifest of parts", folder, out)
    other = tmp_path / "photos"
    other.mkdir()
    (other / "a.jpg").touch()
    assert_refused(capsys, f"a folder of parts or empty, got {other}/a.jpg", folder, other)
    assert_refused(capsys, "out must be a folder, or end in", folder, other / "a.jpg")


def test_a_folder_without_a_part_takes_other_data(folder, wanted, tmp_path, capsys):
    out = tmp_path / "scores"
    pd.DataFrame({"age": AGE}).to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert_refused(capsys, "must have a column 'plan', got age", tmp_path, out)
    (out / "part-000099.parquet").touch()  # of a run that was killed before it recorded a part
    assert command(folder, out) == 0
    assert_whole(out, wanted)


def test_what_cannot_be_made_is_refused_before_the_folder(folder, tmp_path, capsys):
    out = tmp_path / "scores"
    assert_refused(capsys, "none.parquet", folder, out, "none.parquet")
    assert_refused(capsys, "data must be one file, CSV or Parquet, got", folder, out, "")
    for words, message in (
        ((f"{out}/", "--ray", "0"), "ray must be at least 1, got 0"),
        ((f"{out}/", "--ray", "2"), "data must be a Parquet file for Ray"),
        ((f"{out}.csv", "--ray", "2"), "ray must be left out for one file"),
    ):
        call = ["predict", f"{folder}/model.safetensors", f"{folder}/rows.csv", "--out", *words]
        assert cli.main(call) == 1
        assert message in capsys.readouterr().err
    model = jo.load(folder / "model.safetensors")
    jo.save(tmp_path / "bare.safetensors", jo.Model(model.task, model.state))
    with pytest.raises(ValueError, match=r"out must be a \.parquet or \.csv file for a model with"):
        scoring.score(tmp_path / "bare.safetensors", str(folder / "rows.csv"), out)
    assert not out.exists()


def test_a_part_with_other_columns_ends_the_run(folder, tmp_path, capsys):
    """Ids are integers in the first rows; where one is missing, they would become text."""
    ids = pa.array([*range(50), None, *range(51, N)])
    table = pa.table({**TABLE, "customer": ids})
    pq.write_table(table, tmp_path / "rows.parquet")
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    out = tmp_path / "scores"
    assert_refused(capsys, "columns of the rows before, id int64, ", tmp_path, out)
    manifest = json.loads((out / "_manifest.json").read_text())
    assert [*manifest["parts"]] == ["0", "1"] and not manifest["finished"]


def test_data_that_change_while_they_are_read_are_no_finished_folder(
    folder, tmp_path, monkeypatch, capsys
):
    data = tmp_path / "rows.csv"
    data.write_text((folder / "rows.csv").read_text())
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    add = scoring.Folder.add

    def touched(self, number, part):
        os.utime(data, ns=(1, 1))
        add(self, number, part)

    monkeypatch.setattr(scoring.Folder, "add", touched)
    assert_refused(
        capsys, "must stay as it is while it is read", tmp_path, tmp_path / "s", data.name
    )
    assert not json.loads((tmp_path / "s" / "_manifest.json").read_text())["finished"]


@pytest.mark.parametrize("name", ["rows.csv", "model.safetensors"])
def test_a_part_of_a_file_that_changed_is_not_recorded(
    folder, wanted, tmp_path, monkeypatch, capsys, name
):
    """Else the file of before, put back, would go on after a part that is not of it."""
    for one in ("rows.csv", "model.safetensors"):
        shutil.copy(folder / one, tmp_path)
    write_part = scoring.write_part

    def touched(path, number, frames):
        if number == 1:
            os.utime(tmp_path / name, ns=(1, 1))
        return write_part(path, number, frames)

    monkeypatch.setattr(scoring, "write_part", touched)
    out = tmp_path / "s"
    assert_refused(capsys, f"{name} must stay as it is while it is read", tmp_path, out, "rows.csv")
    assert [*json.loads((out / "_manifest.json").read_text())["parts"]] == ["0"]
    monkeypatch.setattr(scoring, "write_part", write_part)
    assert command(tmp_path, out, "rows.csv") == 0
    assert_whole(out, wanted)


@contextlib.contextmanager
def no_room_after(calls, monkeypatch):
    """The disk is full from the n-th table on."""
    count, write_table = [], pq.ParquetWriter.write_table

    def refused(self, table):
        count.append(table)
        if len(count) > calls:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_table(self, table)

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", refused)
        yield


@contextlib.contextmanager
def no_larger_file(size):
    """No file may grow beyond `size` bytes: the system refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_keeps_the_complete_parts(folder, wanted, tmp_path, monkeypatch, capsys):
    out = tmp_path / "scores"
    with no_larger_file(800):  # room for the manifest, and for no part
        kept = f"{out}, 0 rows in 0 parts, are kept, and the same command goes on after them: "
        assert_refused(capsys, f"{kept}[Errno 27] File too large", folder, out)
    assert [path.name for path in out.iterdir()] == ["_manifest.json"]
    with no_room_after(5, monkeypatch):  # in the middle of the third part
        kept = f"{out}, 40 rows in 2 parts, are kept, and the same command goes on after them: "
        assert_refused(capsys, f"{kept}[Errno 28] No space left on device", folder, out)
    names = ["_manifest.json", "part-000000.parquet", "part-000001.parquet"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert command(folder, out) == 0
    assert_whole(out, wanted)


def test_a_second_writer_is_refused(folder, wanted, tmp_path, monkeypatch, capsys):
    out = tmp_path / "scores"
    with scoring.Folder(out):
        assert_refused(capsys, f"{out}: another run is writing its answers there", folder, out)
    assert [*out.iterdir()] == []
    assert command(folder, out) == 0
    assert_whole(out, wanted)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert_refused(capsys, f"{out}: no answer can be written; it is read-only", folder, out)


def recorded(out):
    """How many parts the manifest has."""
    manifest = out / "_manifest.json"
    return len(json.loads(manifest.read_text())["parts"]) if manifest.exists() else 0


def wait_for(out, parts, running):
    deadline = time.monotonic() + 240
    while recorded(out) < parts:
        assert running() and time.monotonic() < deadline, f"{recorded(out)} parts"
        time.sleep(0.002)


@pytest.fixture
def many(watched, tmp_path):
    """The rows ten times with ids of their own, 115 parts, and what the model answers."""
    frame = pd.concat([pd.DataFrame(TABLE)] * 10, ignore_index=True)
    frame["customer"] = [f"c{i * 37 % len(frame)}" for i in range(len(frame))]
    frame.to_parquet(tmp_path / "rows.parquet", row_group_size=1000)
    (tmp_path / "model.safetensors").symlink_to(watched[0] / "model.safetensors")
    return jo.load(watched[0] / "model.safetensors").predict(frame).frame()


@pytest.mark.slow
def test_three_kills_lose_and_double_no_row(many, tmp_path, forks):
    out, rng = tmp_path / "scores", random.Random(0)
    words = ["predict", f"{tmp_path}/model.safetensors", f"{tmp_path}/rows.parquet"]
    words += ["--sketches", f"{tmp_path}/sketches"]
    files = {"out": os.devnull, "err": tmp_path / "errors"}
    for _ in range(3):
        child = forks.start("predict_worker", 20, [*words, "--out", f"{out}/"], **files)
        wait_for(out, recorded(out) + rng.randrange(1, 30), lambda: child.poll() is None)
        time.sleep(rng.uniform(0, 0.02))
        child.kill()
        assert child.wait() == -signal.SIGKILL
        for path in out.glob("part-*"):
            assert pq.read_metadata(path).num_rows == 20
    assert recorded(out) < 115
    child = forks.start("predict_worker", 20, [*words, "--out", f"{out}/"], **files)
    assert child.wait() == 0, (tmp_path / "errors").read_text()
    assert_whole(out, many)
    reference = jo.load(tmp_path / "model.safetensors").reference
    [whole] = monitor.read_snapshots(tmp_path / "sketches", reference, whole=True)
    np.testing.assert_array_equal(whole.sketch.counts, 10 * reference.sketch.counts)


def actors(mark):
    """The processes of Ray's actors that have the mark in their environment."""
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            title, own = (place / "cmdline").read_bytes(), (place / "environ").read_bytes()
            if title.startswith(b"ray::MapWorker") and mark in own:
                yield int(place.name)


@pytest.mark.slow
def test_a_killed_actor_of_ray_loses_and_doubles_no_row(many, tmp_path):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    out = tmp_path / "scores"
    place = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # a socket's path is short
    path = os.pathsep.join([str(HERE.parent), str(HERE), os.environ.get("PYTHONPATH", "")])
    words = ["predict", f"{tmp_path}/model.safetensors", f"{tmp_path}/rows.parquet"]
    words += ["--out", f"{out}/", "--ray", "2", "--sketches", f"{tmp_path}/sketches"]
    child = subprocess.Popen(
        [sys.executable, HERE / "predict_worker.py", "20", *words],
        env={**os.environ, "PYTHONPATH": path, "JAXOPS_MARK": str(tmp_path)}
        | {"RAY_TMPDIR": place.name, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_for(out, 20, lambda: child.poll() is None)
        os.kill(next(actors(str(tmp_path).encode())), signal.SIGKILL)
        printed, _ = child.communicate(timeout=240)
    finally:
        child.kill()
        place.cleanup()
    assert child.returncode == 0, printed
    assert f"written: {out}, 2,300 rows in 115 parts" in printed
    assert_whole(out, many)
    reference = jo.load(tmp_path / "model.safetensors").reference
    [whole] = monitor.read_snapshots(tmp_path / "sketches", reference, whole=True)
    np.testing.assert_array_equal(whole.sketch.counts, 10 * reference.sketch.counts)
