"""What is traced, compiled, measured, fetched and kept on disk: each once, and none in between."""

import functools
import os
import re
from collections import Counter
from contextlib import contextmanager
from types import SimpleNamespace
from typing import ClassVar

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from small import ADAM, LINEAR, SETTINGS, TASK, Batches, assert_equal, compilations, images

import jaxops as jo
from jaxops import vision
from jaxops.train import cache, clock, pace, program, run, tally

QUIET = {"optimizer": ADAM, "batch_size": 16, "progress": False}
STREAM = list(Batches(images(43), 16))
EIGHT = jo.devices.data_parallel()
STOPPING = {"early_stopping": jo.EarlyStopping(patience=9), "validation": images(30)}


class Counting(nn.Module):
    """Counts how often Python runs through it."""

    tag: str
    traces: ClassVar[list[tuple[str, str]]] = []

    @nn.compact
    def __call__(self, x, train=False):
        mode = "init" if self.is_initializing() else "train" if train else "eval"
        self.traces.append((self.tag, mode))
        return nn.Dense(3)(x.reshape(len(x), -1))


@pytest.mark.parametrize(
    ("data", "plan"),
    [
        pytest.param(images(43), None, id="resident-one"),
        pytest.param(STREAM, EIGHT, id="stream-eight"),
    ],
)
def test_everything_is_traced_once(data, plan, tmp_path, request):
    tag = request.node.name
    task = vision.classifier(Counting(tag), **SETTINGS)
    settings = {**QUIET, **STOPPING, "plan": plan, "checkpoints": tmp_path}
    jo.fit(task, data, epochs=2, **settings)
    jo.fit(task, data, epochs=3, **settings)  # resumed
    jo.fit(task, data, epochs=2, **{**settings, "checkpoints": None})
    found = Counter(mode for t, mode in Counting.traces if t == tag)
    assert found == {"init": 1, "train": 1, "eval": 1}


RUNS = {
    "all": (images(43), {"epochs": 3, "reports": jo.Reports(every=2), **STOPPING}),
    "stream and all": (STREAM, {"epochs": 3, "reports": jo.Reports(every=2), **STOPPING}),
}


@pytest.mark.parametrize("kind", ["all", pytest.param("stream and all", marks=pytest.mark.slow)])
def test_each_program_is_compiled_once(kind, tmp_path):
    jax.clear_caches()
    program.train_program.cache_clear()
    data, settings = RUNS[kind]

    def where(name):
        return jo.Checkpoints(tmp_path / name, every=2) if kind == "all" else None

    with compilations() as names:
        jo.fit(TASK, data, checkpoints=where("a"), **QUIET, **settings)
    times = Counter(names)
    assert times["jit(run)"] == times["jit(init)"] == 1, times
    evaluations = [n for name, n in times.items() if "eval_step" in name or "unnamed" in name]
    assert evaluations == [1], times
    with compilations() as names:
        jo.fit(TASK, data, checkpoints=where("b"), **QUIET, **settings)
    assert not names


class Seen:
    """An array of a program's, which tells when it comes to the host, however it does.

    NumPy reads an array of JAX's through the buffer protocol, which nothing in Python sees; this
    has none, so that every way leads through one of its methods.
    """

    def __init__(self, array, tell):
        self.array, self.tell = array, tell

    def __getattr__(self, name):
        if name not in ("shape", "dtype", "nbytes", "block_until_ready", "copy_to_host_async"):
            self.tell()
        return getattr(self.array, name)

    def _fetched(self, *_, **__):
        self.tell()
        return np.asarray(self.array)

    __array__ = _fetched

    def __float__(self):
        return float(self._fetched())

    __int__ = __index__ = lambda self: int(self._fetched())
    __str__ = __repr__ = lambda self: str(self._fetched())

    def __bool__(self):
        return bool(self._fetched())

    def __format__(self, spec):
        return format(self._fetched().item(), spec)

    def __getitem__(self, key):
        return self._fetched()[key]


FETCHES = [float, int, bool, str, "{:.1f}".format, np.asarray, np.array, jax.device_get]


@pytest.mark.parametrize("fetch", [*FETCHES, lambda x: x.item(), lambda x: x.tolist(), np.sum])
def test_an_array_that_is_seen_tells_of_every_way_to_the_host(fetch):
    told = []
    seen = Seen(jax.numpy.float32(3.0), lambda: told.append(1))
    jax.block_until_ready([seen])
    assert not told and seen.nbytes == 4
    assert str(np.asarray(fetch(seen))).startswith(("3", "True")) and told


def seen_runs(
    monkeypatch, data, on_log, offence=lambda state, metrics: None, every=None, **settings
):
    """A run's events in order: a call has ended "c", something was fetched "f", a report "r"."""
    events = []
    make, await_ = run.train_program, run.Run._await

    def bare(tree):
        return jax.tree.map(lambda leaf: getattr(leaf, "array", leaf), tree)

    def train_program(*args):
        program = make(*args)

        def call(state, *given):
            made = program(bare(state), *given)
            seen = jax.tree.map(lambda leaf: Seen(leaf, lambda: events.append("f")), made)
            offence(*seen)
            return seen

        return call

    finite = run._finite
    monkeypatch.setattr(run, "_finite", lambda tree: finite(bare(tree)))
    monkeypatch.setattr(run, "train_program", train_program)
    monkeypatch.setattr(run, "loops_well", lambda *_: True)
    monkeypatch.setattr(run.Run, "_await", lambda *a: events.append("c") or await_(*a))
    reports = jo.Reports(lambda r: events.append("r") or on_log(r), every=every)
    jo.fit(TASK, data, reports=reports, **QUIET, **settings)
    return "".join(events)


IN_REPORTS_ALONE = "(c{10}f+rc{10}f+rc{5}f+r){2}"


@pytest.mark.parametrize("data", [images(400), list(Batches(images(400), 16))])
def test_nothing_is_fetched_between_reports(data, monkeypatch):
    monkeypatch.setattr(tally, "SECONDS_UNREAD", 1e9)
    monkeypatch.setattr(pace, "SECONDS_PER_CALL", 1e-9)  # a step a call
    steps = []
    found = seen_runs(monkeypatch, data, lambda r: steps.append(r["step"]), epochs=2, every=10)
    assert re.fullmatch(IN_REPORTS_ALONE, found), found
    # the window that ends with the epoch is the epoch's own report
    assert steps == [10, 20, 25, 35, 45, 50]


@pytest.mark.parametrize(
    "offence",
    [
        lambda state, metrics: float(metrics["loss"].weight[0]),
        lambda state, metrics: np.asarray(metrics["loss"].total),
        lambda state, metrics: int(state.step),
    ],
    ids=["float", "asarray", "state"],
)
def test_a_loop_that_fetches_is_found_out(offence, monkeypatch):
    monkeypatch.setattr(tally, "SECONDS_UNREAD", 1e9)
    monkeypatch.setattr(pace, "SECONDS_PER_CALL", 1e-9)
    found = seen_runs(monkeypatch, images(400), lambda r: None, offence, epochs=2, every=10)
    assert "r" in found and not re.fullmatch(IN_REPORTS_ALONE, found)


@pytest.mark.parametrize("bound", ["CALLS_UNREAD", "SECONDS_UNREAD"])
def test_metrics_do_not_wait_for_ever(bound, monkeypatch):
    reads = []
    real = tally.Tally.read
    monkeypatch.setattr(tally.Tally, "read", lambda self: reads.append(1) or real(self))
    monkeypatch.setattr(tally, bound, {"CALLS_UNREAD": 5, "SECONDS_UNREAD": -1.0}[bound])
    records = []
    jo.fit(TASK, STREAM, epochs=7, reports=records.append, **QUIET)
    plain = [r["loss"] for r in records]
    assert len(reads) == {"CALLS_UNREAD": 7, "SECONDS_UNREAD": 7 + 21}[bound]
    monkeypatch.undo()
    records.clear()
    jo.fit(TASK, STREAM, epochs=7, reports=records.append, **QUIET)
    assert plain == [r["loss"] for r in records]


def test_a_loss_that_is_not_finite_is_named_by_its_step_however_late():
    seen = jo.optim.sgd(jo.optim.phases((5, 0.1), (1, 1e38), (1, 0.1)))
    with pytest.raises(FloatingPointError, match=r"the loss is .* at step 7;"):
        jo.fit(TASK, STREAM, epochs=10, **{**QUIET, "optimizer": seen})


# Loops


class Flax(nn.Module):
    """The second convolution's gradient is 10 to 100 times slower in XLA's loops on a CPU."""

    features: int = 3

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(self.features, (3, 3))(x))
        return nn.Dense(3)(x.mean((1, 2)))


def pictures(rows):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (rows, 8, 8, 1), np.uint8)
    return {"image": image, "label": (image.mean((1, 2, 3)) > 127).astype(np.int32)}


class Timed:
    """A program of one parameter, on a clock of its own: its calls take the seconds they are told.

    It has a convolution, so there is doubt, and its loop is what has more than one row.
    """

    def __init__(self, alone, looped):
        self.seconds, self.now, self.calls = {1: alone, 8: looped}, 0.0, []
        kernel = np.ones((1, 1, 3), np.float32)
        convolve = functools.partial(jax.lax.conv, window_strides=(1,), padding="SAME")
        self.trace = jax.jit(lambda state, rows: convolve(state[None, None], kernel)).trace

    def __call__(self, state, rows):
        self.calls.append(len(rows))
        self.now += self.seconds[len(rows)]
        return state, None


@pytest.mark.parametrize(
    ("alone", "looped", "well"),
    # looped: two steps in a loop, beside two alone; the loop may take up to three times as long
    [(1.0, 2.0, True), (1.0, 5.9, True), (1.0, 6.1, False), (0.01, 2.0, False)],
)
def test_a_loop_is_chosen_by_its_seconds(alone, looped, well, monkeypatch):
    timed, state = Timed(alone, looped), np.ones(4, np.float32)
    monkeypatch.setattr(program, "time", SimpleNamespace(perf_counter=lambda: timed.now))
    given = [np.zeros(1)], [np.zeros(8)]
    assert program.loops_well(timed, state, *given) is well
    assert set(timed.calls) == {1, 8}
    timed.calls.clear()
    assert program.loops_well(timed, state, *given) is well and not timed.calls  # kept


@pytest.mark.slow
def test_a_convolution_that_is_slow_in_loops_is_stepped(monkeypatch, tmp_path):
    monkeypatch.setattr(program, "SLOW_IN_LOOPS", 0.0)  # here every loop is slow
    chosen = []
    real = run.Run._loops_well
    monkeypatch.setattr(run.Run, "_loops_well", lambda *a: chosen.append(real(*a)) or chosen[-1])

    def fit(model, **changes):
        task = vision.classifier(model, image_shape=(8, 8, 1), classes=3)
        return jo.fit(task, pictures(64), **{**QUIET, "steps": 6, **changes})

    first = fit(Flax(), checkpoints=tmp_path)
    assert chosen == [False]
    with compilations() as names:
        assert_equal(fit(Flax()), first)
    assert chosen == [False, False] and not names  # measured once in a process
    program._CHOSEN.clear()
    monkeypatch.setattr(program, "SLOW_IN_LOOPS", 1e9)
    fit(Flax(), steps=8, checkpoints=tmp_path)
    assert chosen == [False, False] and not program._CHOSEN  # the checkpoint says it
    with compilations() as names:
        fit(vision.CNN(classes=3, features=2, hidden=4))
    assert chosen[-1] and names.count("jit(run)") == 1  # those of jaxops.nn: nothing to measure


@pytest.mark.slow
def test_a_convolution_that_is_not_slow_is_looped(monkeypatch):
    task = vision.classifier(Flax(), image_shape=(8, 8, 1), classes=3)
    settings = {**QUIET, "steps": 7, "optimizer": jo.optim.sgd(0.1)}
    monkeypatch.setattr(program, "SLOW_IN_LOOPS", 1e9)
    programs = []
    real = program.train_program

    def spy(*args):
        programs.append(real(*args))
        return programs[-1]

    monkeypatch.setattr(run, "train_program", spy)
    looped = jo.fit(task, pictures(64), **settings)
    assert list(program._CHOSEN[programs[0]].values()) == [True]
    program._CHOSEN.clear()
    monkeypatch.setattr(program, "SLOW_IN_LOOPS", 0.0)
    stepped = jo.fit(task, pictures(64), **settings)
    assert list(program._CHOSEN[programs[1]].values()) == [False]
    chex.assert_trees_all_close(looped.params, stepped.params, rtol=1e-7, atol=1e-6)
    program._CHOSEN.clear()  # no other test is to find what was forced here


# The profile


def test_a_profile_changes_nothing_and_says_where_the_time_goes(tmp_path, capsys):
    settings = {**QUIET, "epochs": 16}
    want = jo.fit(TASK, images(43), **settings)
    assert_equal(jo.fit(TASK, images(43), **settings, reports=jo.Reports(profile=tmp_path)), want)
    said = capsys.readouterr().out
    shares = dict(re.findall(r"\| (\w+) +\| +[\d.e-]+ \| +([\d.]+)% +\|", said))
    assert list(shares) == ["input", "dispatch", "compute", "fetch", "all"], said
    parts = [float(share) for name, share in shares.items() if name != "all"]
    assert sum(parts) == pytest.approx(100, abs=0.3) and shares["all"] == "100.0"
    assert f"traces: {tmp_path}" in said and "examples/s" in said
    found = {file.name.split(".", 1)[1]: file for file in tmp_path.rglob("*.*") if file.is_file()}
    assert {"json.gz", "xplane.pb"} <= found.keys(), found
    assert all(file.stat().st_size > 1000 for file in found.values())


def test_a_traces_start_and_end_take_no_time_on_the_runs_clock(tmp_path, monkeypatch):
    paused, seen = [], []
    pause = clock.Clock.paused

    @contextmanager
    def spied(self):
        with pause(self):
            paused.append(1)
            yield
            paused.pop()

    @contextmanager
    def trace(*_, **__):
        seen.append(bool(paused))
        yield
        seen.append(bool(paused))

    monkeypatch.setattr(clock.Clock, "paused", spied)
    monkeypatch.setattr(jax.profiler, "trace", trace)
    jo.fit(TASK, STREAM, epochs=6, **QUIET, reports=jo.Reports(profile=tmp_path))
    assert seen == [True, True]


@pytest.mark.parametrize(
    ("epochs", "line"),
    [
        (1, "more than 8 calls to measure, got 3"),
        (3, "no traces: must have more than 12 calls, got 9"),
    ],
)
def test_a_run_too_short_for_a_profile_says_so(tmp_path, capsys, epochs, line):
    assert_equal(
        jo.fit(TASK, STREAM, epochs=epochs, **QUIET, reports=jo.Reports(profile=tmp_path)),
        jo.fit(TASK, STREAM, epochs=epochs, **QUIET),
    )
    assert line in capsys.readouterr().out and not list(tmp_path.iterdir())


# The cache


@pytest.fixture
def settings_restored():
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    cache.jax_cache.reset_cache()
    jax.clear_caches()


def test_a_warm_cache_gives_the_same_bits(tmp_path, settings_restored):
    def fit():
        jax.clear_caches()
        program.train_program.cache_clear()
        return jo.fit(LINEAR, images(43), epochs=3, **QUIET)

    want = fit()
    assert jo.compilation_cache(tmp_path) == tmp_path
    assert_equal(fit(), want)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-cache")}
    assert any("jit_run" in file.name for file in files)
    hits = []
    jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
    assert_equal(fit(), want)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("*-cache")} == files
    assert hits.count("/jax/compilation_cache/cache_hits") >= 2
    assert "/jax/compilation_cache/cache_misses" not in hits
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache"):
        assert_equal(fit(), want)


def test_where_the_cache_is(tmp_path, monkeypatch, settings_restored):
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = jo.compilation_cache()
    assert folder.parent == tmp_path / "jaxops" and folder.is_dir()
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert jax.__version__ in folder.name
    monkeypatch.setattr(cache, "_processor", lambda: "another")
    assert jo.compilation_cache() == folder  # configured already
    assert jo.compilation_cache(tmp_path / "mine") == tmp_path / "mine"
    jax.config.update("jax_compilation_cache_dir", None)
    assert jo.compilation_cache() != folder


def test_what_is_oldest_in_the_cache_goes(tmp_path, monkeypatch, settings_restored):
    monkeypatch.setattr(cache, "MOST_BYTES", 25)
    for age in range(4):
        (tmp_path / f"{age}-cache").write_bytes(bytes(10))
        os.utime(tmp_path / f"{age}-cache", (1e9 - age, 1e9 - age))
    jo.compilation_cache(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0-cache", "1-cache"]
