"""fit, evaluate and predict: what is seen, what is reported, what is compiled, what is refused."""

import itertools

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from small import (
    ADAM,
    SETTINGS,
    TASK,
    Batches,
    assert_close,
    assert_equal,
    compilations,
    counting,
    grained,
    images,
    numbered,
    regression,
)

import jaxops as jo
from jaxops import metrics, optim, vision
from jaxops.train import evaluation, pace, run

QUIET = {"optimizer": ADAM, "batch_size": 10, "progress": False}


def fit(task=TASK, data=None, **changes):
    return jo.fit(task, images(43) if data is None else data, **{**QUIET, **changes})


def log_of(*args, every=None, **changes):
    records = []
    state = fit(*args, reports=jo.Reports(records.append, every=every), **changes)
    return state, records


# What is seen


@pytest.mark.parametrize(
    "batch_size", [7, *(pytest.param(size, marks=pytest.mark.slow) for size in (5, 23))]
)
def test_each_row_is_seen_once_an_epoch(batch_size):
    task, data = counting(23), numbered(23)
    _, records = log_of(task, data, batch_size=batch_size, epochs=3)
    assert [r["epoch"] for r in records] == [1, 2, 3]
    assert records[-1]["step"] == 3 * -(-23 // batch_size)
    for record in records:
        np.testing.assert_array_equal(record["seen"], np.ones(23))


def test_epochs_have_orders_of_their_own_by_the_seed():
    task, data = counting(23), numbered(23)

    def order(seed):
        _, records = log_of(task, data, batch_size=5, epochs=2, every=1, seed=seed)
        return [tuple(np.flatnonzero(r["seen"])) for r in records if r["split"] == "steps"]

    first = order(0)
    assert len(first) == 8  # the fifth window of each epoch is its "train" record
    assert first == order(0)
    assert first[:4] != first[4:] and first != order(1)


def test_a_mask_column_weighs_rows():
    data = {**images(40), "mask": np.repeat([1, 0], 20).astype(np.float32)}
    half = {k: v[:20] for k, v in data.items()}
    tx = optim.sgd(0.1)
    masked = fit(data=data, batch_size=40, steps=3, optimizer=tx)
    plain = fit(data=half, batch_size=20, steps=3, optimizer=tx)
    assert_close(masked.params, plain.params, atol=1e-6)
    assert jo.evaluate(TASK, plain, data) == pytest.approx(jo.evaluate(TASK, plain, half))


def test_the_split_into_calls_does_not_change_the_result(monkeypatch):
    task = vision.classifier(vision.MLP((16,), classes=3, dropout=0.2), **SETTINGS)

    def result(seconds, steps, **changes):
        monkeypatch.setattr(pace, "SECONDS_PER_CALL", seconds)
        monkeypatch.setattr(pace, "MAX_STEPS_PER_CALL", steps)
        state, records = log_of(task, epochs=5, validation=images(30), **changes)
        for record in records:
            for timing in ("examples_per_second", "first_step_seconds"):
                record.pop(timing, None)
        return state, [r for r in records if r["split"] != "steps"]

    want = result(1e-9, 256)
    for other in (
        result(100.0, 256),
        result(100.0, 3),
        result(1.0, 1),
        result(1.0, 256, every=3),
    ):
        assert_equal(other[0], want[0])
        assert other[1] == want[1]


def test_fit_is_a_loop_of_steps():
    data, tx = images(43), optim.sgd(0.1)
    state = jo.init_state(TASK, tx, 5, data)
    step = jax.jit(lambda s, b: jo.train_step(TASK, tx, s, b))
    losses = []
    for epoch in range(2):
        order = np.random.default_rng((5, epoch)).permutation(43)
        for start in range(0, 43, 10):
            rows = order[start : start + 10]
            state, out = step(state, {k: v[rows] for k, v in data.items()})
            losses.append((float(out["loss"].total), len(rows)))
    found, records = log_of(data=data, optimizer=tx, epochs=2, seed=5)
    assert_close(found.params, state.params, atol=1e-6)
    for record, part in zip(records, (losses[:5], losses[5:]), strict=True):
        want = sum(total for total, _ in part) / 43
        assert record["loss"] == pytest.approx(want, rel=1e-5)
    assert found.step == 10


# What is reported


def test_records_come_where_they_should():
    _, records = log_of(epochs=2, steps=None, every=2, validation=images(20))
    found = [(r["split"], r["step"]) for r in records]
    want = [("steps", 2), ("steps", 4), ("train", 5), ("validation", 5)]
    assert found == want + [(split, step + 5) for split, step in want]
    _, records = log_of(steps=7)
    assert [(r["split"], r["step"], r["epoch"]) for r in records] == [
        ("train", 5, 1.0),
        ("train", 7, 1.4),
    ]


def test_windows_add_up_to_their_epoch():
    task, data = counting(23), numbered(23)
    _, records = log_of(task, data, batch_size=5, epochs=1, every=2)
    windows = [r["seen"] for r in records if r["split"] == "steps"]
    assert [w.sum() for w in windows] == [10, 10]
    np.testing.assert_array_equal(records[-1]["seen"], np.ones(23))


def test_metrics_of_a_user_are_computed_on_validation():
    def confusion(probabilities, batch):
        return metrics.confusion(probabilities.argmax(-1), batch["label"], 3, jo.row_weights(batch))

    validation = images(33, seed=2)
    state, records = log_of(epochs=2, validation=validation, metrics={"c": confusion})
    want = np.zeros((3, 3))
    guess = jo.predict(TASK, state, validation).argmax(1)
    np.add.at(want, (validation["label"], guess), 1)
    np.testing.assert_array_equal(records[-1]["confusion"], want)


def test_several_loggers_and_a_progress_bar(capsys):
    a, b = [], []
    fit(epochs=2, reports=[a.append, b.append], progress=True, validation=images(9))
    assert a == b and len(a) == 4
    shown = capsys.readouterr()
    assert "epoch 2/2" in shown.out + shown.err and "accuracy" in shown.out + shown.err


# Early stopping


def test_early_stopping_gives_the_best_state_back():
    noisy, validation = images(40, noise=0.6), images(50, seed=1)
    patience = 4
    state, records = log_of(
        data=noisy,
        epochs=100,
        optimizer=optim.adam(0.02),
        validation=validation,
        early_stopping=jo.EarlyStopping(patience=patience),
    )
    losses = [r["loss"] for r in records if r["split"] == "validation"]
    best = int(np.argmin(losses))
    assert len(losses) < 100 and len(losses) == best + 1 + patience + 1
    assert state.step == 4 * (best + 1)
    assert jo.evaluate(TASK, state, validation)["loss"] == losses[best]
    assert losses[-1] > losses[best]


def test_early_stopping_by_the_largest_and_by_a_least_gain():
    a, b = jo.EarlyStopping("accuracy", mode="max", min_delta=0.1), jo.EarlyStopping()
    assert a.better(0.1, None) and a.better(0.7, 0.5) and not a.better(0.55, 0.5)
    assert b.better(0.4, 0.5) and not b.better(0.5, 0.5)
    assert not b.better(float("nan"), None)


def test_early_stopping_by_time_ends_within_an_epoch():
    count = 4096
    state, records = log_of(
        data=images(count),
        epochs=1000,
        batch_size=1,
        validation=images(50, seed=1),
        early_stopping=jo.EarlyStopping(seconds=0.0),
    )
    assert 0 < state.step < count
    assert [r["split"] for r in records] == ["train", "validation"]
    assert {r["step"] for r in records} == {int(state.step)}


# What is compiled, and what waits


def test_evaluation_compiles_once_for_every_batch_and_epoch():
    state = fit(steps=1)
    evaluation._eval_program.cache_clear()
    with compilations() as names:
        for _ in range(2):
            jo.evaluate(TASK, state, images(53), batch_size=16)
    assert len([n for n in names if "eval_step" in n or "unnamed" in n]) <= 1, names
    assert evaluation._eval_program(TASK, False)._cache_size() == 1


@pytest.mark.parametrize(("looped", "limit"), [(True, 2), (False, 16)])
def test_calls_in_flight_are_bounded(monkeypatch, looped, limit):
    inside, most = 0, 0
    real_await, real_feed = run.Run._await, run.Resident.feed

    def feed(self, *args):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        return real_feed(self, *args)

    def wait(self, *args):
        nonlocal inside
        inside -= 1
        return real_await(self, *args)

    monkeypatch.setattr(run.Resident, "feed", feed)
    monkeypatch.setattr(run.Run, "_await", wait)
    monkeypatch.setattr(pace, "SECONDS_PER_CALL", 1e-9)
    monkeypatch.setattr(run.Run, "_loops_well", lambda *_: looped)
    fit(data=images(400), epochs=2)
    assert most == limit + 1 and inside == 0


def test_nothing_moves_implicitly_inside_the_loop(monkeypatch):
    real = run.Run._arguments
    monkeypatch.setattr(run.Run, "_arguments", lambda *a: jax.device_get(real(*a)))
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        fit(steps=3)


# Evaluation and prediction


@pytest.mark.parametrize("batch_size", [7, 4096])
def test_every_row_is_evaluated_once_and_predicted_in_order(batch_size):
    data = images(103)
    state = fit(data=data, steps=3)
    want = np.asarray(TASK.predict(state.params, state.extra, data))
    found = jo.predict(TASK, state, {"image": data["image"]}, batch_size=batch_size)
    np.testing.assert_allclose(found, want, atol=1e-6)
    result = jo.evaluate(TASK, state, data, batch_size=batch_size)
    own = want[np.arange(103), data["label"]]
    assert result["loss"] == pytest.approx(-np.log(own).mean(), rel=1e-5)
    assert result["accuracy"] == (want.argmax(1) == data["label"]).mean()
    stream = Batches(data, min(batch_size, 103))
    assert jo.evaluate(TASK, state, stream) == pytest.approx(result, rel=1e-6)
    np.testing.assert_allclose(jo.predict(TASK, state, stream), want, atol=1e-6)


def test_labels_and_features_of_64_bits():
    data = images(20)
    state = fit(data=data, steps=3)
    wide = fit(data={**data, "label": data["label"].astype(np.int64)}, steps=3)
    assert_equal(state, wide)
    rng = np.random.default_rng(0)
    rows = {"x": rng.normal(size=(20, 3)), "y": rng.normal(size=(20, 1))}
    assert rows["x"].dtype == np.float64
    state = fit(regression(nn.Dense(1)), rows, steps=3)
    assert np.isfinite(jo.evaluate(regression(nn.Dense(1)), state, rows)["loss"])


def test_columns_that_no_task_names_stay_away():
    data = images(20)
    named = {**data, "name": np.array(["x"] * 20, object)}
    assert_equal(fit(data=named, steps=3), fit(data=data, steps=3))
    state = fit(data=data, steps=1)
    assert jo.evaluate(TASK, state, named) == jo.evaluate(TASK, state, data)
    stream = [{k: v[i : i + 10] for k, v in named.items()} for i in (0, 10)]
    assert jo.evaluate(TASK, state, stream) == pytest.approx(jo.evaluate(TASK, state, data))
    fit(data=stream, steps=3)


# Going on from a state


def test_going_on_from_a_state():
    data = images(40)
    once = fit(data=data, epochs=4)
    state = fit(data=data, epochs=2)
    kept = jax.device_get(state.params)
    more = fit(data=data, epochs=2, state=state)
    assert more.step == 16 == once.step
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), kept, more.params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_going_on_from_a_state_with_checkpoints(tmp_path):
    data = images(40)
    want = fit(data=data, epochs=3, state=fit(data=data, epochs=2))
    for steps in (8, 12):  # stopped after two epochs, and started again
        found = fit(data=data, steps=steps, state=fit(data=data, epochs=2), checkpoints=tmp_path)
    assert_equal(found, want)


# Streams


def test_streams_of_every_kind_learn_the_same():
    data = images(43)
    batches = list(Batches(data, 10))

    class Own:
        def __iter__(self):
            return iter(batches)

    listed, records = log_of(data=batches, epochs=2)
    assert [(r["split"], r["step"]) for r in records] == [("train", 5), ("train", 10)]
    assert listed.step == 10
    assert_equal(fit(data=Own(), steps=10), listed)
    assert_equal(fit(data=Batches(data, 10), steps=10), listed)
    step = jax.jit(lambda s, b: jo.train_step(TASK, ADAM, s, b))
    state = jo.init_state(TASK, ADAM, 0, data)
    for batch in batches * 2:
        state, _ = step(state, batch)
    assert_close(state.params, listed.params, atol=1e-6)


def test_a_grain_stream():
    data = {**numbered(23), "label": np.zeros(23, np.int32)}
    task = counting(23)
    stream = grained(data, 5)
    _, records = log_of(task, stream, batch_size=5, steps=10, every=5)
    assert [(r["split"], r["step"]) for r in records] == [("train", 5), ("train", 10)]
    for record in records:  # the partial batch is padded and counts as it is
        np.testing.assert_array_equal(record["seen"], np.ones(23))


# What is refused, before anything compiles


def with_image(value):
    return {"image": value, "label": images(20)["label"]}


BYTES = images(20)["image"]
LABELS = images(20)["label"]
FLOATS = {"x": np.ones((20, 3), np.float32), "y": np.ones((20, 1), np.float32)}


def bad_float(value):
    x = FLOATS["x"].copy()
    x[7, 1] = value
    return {**FLOATS, "x": x}


def labelled(*values):
    return {"image": BYTES, "label": np.array([*LABELS[: 20 - len(values)], *values])}


REFUSED = {
    "batch > rows": (
        TASK,
        images(5),
        {"epochs": 1},
        "batch_size must be at most 5 .*rows.*, got 10",
    ),
    "batch of 0": (
        TASK,
        None,
        {"epochs": 1, "batch_size": 0},
        "batch_size must be at least 1, got 0",
    ),
    "negative steps": (TASK, None, {"steps": -1}, "steps must be at least 0, got -1"),
    "negative epochs": (TASK, None, {"epochs": -1}, "epochs must be at least 0, got -1"),
    "reports every -1": (
        TASK,
        None,
        {"epochs": 1, "reports": jo.Reports(every=-1)},
        "reports.every must be at least 1, got -1",
    ),
    "checkpoints every 0": (
        TASK,
        None,
        {"epochs": 1, "checkpoints": jo.Checkpoints("unused", every=0)},
        "checkpoints.every must be at least 1, got 0",
    ),
    "both": (TASK, None, {"epochs": 1, "steps": 1}, "one of epochs and steps must be given"),
    "neither": (TASK, None, {}, "one of epochs and steps must be given"),
    "stopping without validation": (
        TASK,
        None,
        {"epochs": 1, "early_stopping": jo.EarlyStopping()},
        "validation must be given for early_stopping",
    ),
    "stopping by nothing": (
        TASK,
        None,
        {"epochs": 1, "early_stopping": jo.EarlyStopping("auc"), "validation": images(9)},
        r"early_stopping.metric must be one of \['accuracy', 'loss'\], got 'auc'",
    ),
    "stopping mode": (
        TASK,
        None,
        {"epochs": 1, "early_stopping": jo.EarlyStopping(mode="up"), "validation": images(9)},
        'early_stopping.mode must be "min" or "max", got \'up\'',
    ),
    "label too large": (
        TASK,
        labelled(3, 4),
        {"epochs": 1},
        r"label must be .*, got 3 in row 18 \(2 such",
    ),
    "label negative": (TASK, labelled(-1), {"epochs": 1}, "label must be .*, got -1 in row 19"),
    "label float": (TASK, labelled(0.5), {"epochs": 1}, "label must have dtype int, got float64"),
    "bad validation": (
        TASK,
        None,
        {"epochs": 1, "validation": labelled(5)},
        "label must be .*, got 5 in row 19",
    ),
    "NaN": (
        regression(nn.Dense(1)),
        bad_float(np.nan),
        {"epochs": 1},
        "x must be finite, got NaN in row 7",
    ),
    "infinity": (
        regression(nn.Dense(1)),
        bad_float(-np.inf),
        {"epochs": 1},
        "x must be finite, got infinity in row 7",
    ),
    "rank": (TASK, with_image(BYTES[..., 0]), {"epochs": 1}, r"image\[..., None\]"),
    "dtype": (
        TASK,
        with_image(BYTES / np.float32(255)),
        {"epochs": 1},
        r"image must have dtype uint8, got float32; bring it back",
    ),
    "no column": (TASK, {"image": BYTES}, {"epochs": 1}, "columns must include 'label'"),
    "unequal": (
        TASK,
        {"image": BYTES, "label": LABELS[:9]},
        {"epochs": 1},
        "equal numbers of rows",
    ),
    "empty": (TASK, images(0), {"epochs": 1}, "must have at least 1 row, got 0"),
    "no columns": (TASK, {}, {"epochs": 1}, "columns must include 'image'"),
    "stream without length": (TASK, Batches(images(20), 10), {"epochs": 1}, "give steps instead"),
    "empty stream": (TASK, [], {"steps": 1}, "at least one batch, got an empty stream"),
    "stream used up by one pass": (
        TASK,
        iter(Batches(images(20), 10)),
        {"steps": 1},
        "data must give the same batches.*got a generator",
    ),
    "validation used up by one pass": (
        TASK,
        None,
        {"epochs": 1, "validation": iter(Batches(images(20), 10))},
        "validation must give the same batches.*got a generator",
    ),
    "bad stream": (
        TASK,
        [labelled(3)],
        {"steps": 1, "batch_size": 20},
        "label must be .*, got 3 in row 19",
    ),
    "large batch": (
        TASK,
        [images(20)],
        {"steps": 1},
        "at most 10 rows .batch_size. in a batch, got 20",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_compiles(case):
    task, data, changes, message = REFUSED[case]
    jax.clear_caches()
    with compilations() as names, pytest.raises(ValueError, match=message):
        fit(task, data, **changes)
    assert not names


def test_a_stream_that_turns_bad_later_is_refused():
    good, bad = images(10), images(13)
    with pytest.raises(ValueError, match=r"at most 10 rows .batch_size. in a batch, got 13"):
        fit(data=[good, bad], steps=4)


def test_evaluate_and_predict_refuse_wrong_data():
    state = fit(steps=1)
    for call in (jo.evaluate, jo.predict):
        with pytest.raises(ValueError, match="rows of shape"):
            call(TASK, state, with_image(BYTES[..., 0]))
        with pytest.raises(ValueError, match="at least 1 row, got 0"):
            call(TASK, state, images(0))
        with pytest.raises(ValueError, match="at least one batch, got an empty stream"):
            call(TASK, state, [])
    with pytest.raises(ValueError, match="columns must include 'label'"):
        jo.evaluate(TASK, state, {"image": BYTES})


# A loss that is not finite


@pytest.mark.slow  # test_survival.py shows it for a NaN
def test_a_loss_that_explodes_names_its_step_and_leaves_a_good_checkpoint(tmp_path):
    data = images(43)
    tx = optim.sgd(optim.phases((7, 0.1), (1, 1e30)))
    state = jo.init_state(TASK, tx, 0, data)
    step = jax.jit(lambda s, b: jo.train_step(TASK, tx, s, b))
    for i in itertools.count(1):
        order = np.random.default_rng((0, (i - 1) // 5)).permutation(43)
        rows = order[(i - 1) % 5 * 10 :][:10]
        state, out = step(state, {k: v[rows] for k, v in data.items()})
        if not np.isfinite(out["loss"].total):
            break
    assert i > 7
    with pytest.raises(FloatingPointError, match=rf"at step {i}; a smaller learning rate"):
        fit(data=data, optimizer=tx, epochs=10, checkpoints=jo.Checkpoints(tmp_path, every=7))
    with jo.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
    saved = fit(data=data, optimizer=tx, steps=7, checkpoints=tmp_path)
    assert saved.step == 7
    chex.assert_tree_all_finite(saved.params)


@pytest.mark.parametrize("saved", [True, False])
def test_parameters_that_are_not_finite_are_never_given_back(tmp_path, saved):
    with pytest.raises(FloatingPointError, match="a parameter is not finite after step 1"):
        fit(optimizer=optim.sgd(float("inf")), steps=1, checkpoints=tmp_path if saved else None)
    with jo.Checkpointer(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None


# Checkpoints of another run


def test_a_used_directory(tmp_path):
    fit(steps=3, checkpoints=tmp_path)
    wide = vision.classifier(vision.MLP((17,), classes=3), **SETTINGS)
    jax.clear_caches()
    with compilations() as names:
        with pytest.raises(ValueError, match="without checkpoints for resume=False, got"):
            fit(steps=3, checkpoints=jo.Checkpoints(tmp_path, resume=False))
        with pytest.raises(ValueError, match=r"batch_size must be 10, as in the run .*, got 11"):
            fit(steps=3, checkpoints=tmp_path, batch_size=11)
        with pytest.raises(ValueError, match=r"seed must be 0, as in the run .*, got 1"):
            fit(steps=3, checkpoints=tmp_path, seed=1)
        with pytest.raises(ValueError, match=r"rows must be 43, as in the run .*, got 44"):
            fit(data=images(44), steps=3, checkpoints=tmp_path)
        message = r"task argument 'module' must be MLP(.|\n)*16(.|\n)*got MLP(.|\n)*17"
        with pytest.raises(ValueError, match=message):
            fit(wide, steps=3, checkpoints=tmp_path)
        with pytest.raises(ValueError, match=r"opt_state.*another model or optimizer"):
            fit(steps=3, checkpoints=tmp_path, optimizer=optim.sgd(0.1))
    assert not names
    assert fit(steps=3, checkpoints=tmp_path).step == 3  # and it is as it was
