"""Common mistakes of users, and promises easily broken: streams, masks, sizes, resuming."""

import time

import jax
import numpy as np
import optax
import pytest
from small import SETTINGS, images

import jaxops as jo
from jaxops import tabular, vision
from jaxops.model.predictors import _fastest
from jaxops.train import evaluation

TASK = vision.classifier(vision.MLP((8,), classes=3), **SETTINGS)
TX = jo.optim.adam(1e-2)


@pytest.fixture(scope="module")
def state():
    return jo.fit(TASK, images(20), optimizer=TX, batch_size=10, epochs=1, progress=False)


def test_every_batch_of_a_stream_is_checked(state):
    good, bad = images(4), images(4)
    bad["label"] = bad["label"] - 1
    wanted = r"label must be in \[0, 3\), got -1 in row .*"
    with pytest.raises(ValueError, match=wanted):
        jo.evaluate(TASK, state, [good, bad])
    with pytest.raises(ValueError, match=wanted):
        jo.fit(TASK, [good, bad], optimizer=TX, batch_size=4, steps=4, progress=False)
    floats = {"image": good["image"] / np.float32(255)}
    with pytest.raises(ValueError, match="image must have dtype uint8, got float32"):
        jo.predict(TASK, state, [{"image": good["image"]}, floats])


def test_predict_is_for_every_row_whatever_the_mask(state):
    data = images(7)
    whole = jo.predict(TASK, state, data)
    masked = jo.predict(TASK, state, {**data, "mask": np.arange(7) % 2})
    np.testing.assert_array_equal(masked, whole)


@pytest.mark.parametrize("mask", [np.array([1, np.nan]), np.array([1, -1]), np.ones((2, 1))])
def test_a_mask_that_cannot_be_meant(mask):
    with pytest.raises(ValueError, match=r"^mask must be .*, got "):
        jo.data.check({**images(2), "mask": mask}, TASK.columns)


def test_whole_numbers_that_a_device_would_wrap():
    column = jo.Column("id", (), "int")
    with pytest.raises(ValueError, match="id must be in the int32 range, got 2147483648"):
        jo.data.check({"id": np.array([0, 2**31])}, (column,))
    jo.data.check({"id": np.array([-(2**31), 2**31 - 1])}, (column,))


def test_a_predictor_keeps_the_faster_of_two_programs(monkeypatch):
    options = ({"speed": "slow"}, {"speed": "fast"}, {"speed": "slow"})
    monkeypatch.setattr("jaxops.model.predictors.PREDICTOR_OPTIONS", {"cpu": options})
    made = []

    class Lowered:
        def compile(self, compiler_options):
            def program(inputs):
                time.sleep(0.005 if compiler_options["speed"] == "slow" else 0)
                return inputs["x"]

            made.append(program)
            return program

    assert _fastest(Lowered(), lambda: ({"x": np.ones(3)},)) is made[1]


def test_a_predictor_gives_what_predict_gives(state):
    data = images(5)
    question = {"image": data["image"]}
    ask = jo.predictor(TASK, state, data)  # the labels are left out
    np.testing.assert_allclose(ask(question), jo.predict(TASK, state, data), rtol=1e-5)
    other = {"image": images(5, seed=1)["image"]}
    np.testing.assert_allclose(ask(other), jo.predict(TASK, state, other), rtol=1e-5)
    wanted = r"columns must be image uint8\(5, 4, 4, 1\), got image uint8\(4, 4, 4, 1\)"
    with pytest.raises(ValueError, match=wanted):
        ask({"image": question["image"][:4]})
    with pytest.raises(ValueError, match=r"got image float32\(5, 4, 4, 1\)"):
        ask({"image": question["image"].astype(np.float32)})
    with pytest.raises(ValueError, match="image must have dtype uint8, got float64"):
        jo.predictor(TASK, state, {"image": question["image"] / 255})


def test_few_sizes_are_compiled(state):
    program = evaluation._predict_program(TASK)
    before = program._cache_size()
    for count in range(17, 33):  # all padded to 32
        assert len(jo.predict(TASK, state, images(count))) == count
    stream = [images(32), images(9), images(32), images(1)]
    assert len(jo.predict(TASK, state, stream)) == 74
    assert program._cache_size() - before <= 1


def test_tuning_what_was_loaded(state, tmp_path):
    jo.save(tmp_path / "model", jo.Model(TASK, state))
    loaded = jo.load(tmp_path / "model")
    before = jax.device_get(loaded.state.params)
    tuned = jo.fit(
        TASK, images(20), optimizer=TX, batch_size=10, epochs=2, state=loaded.state, progress=False
    )
    fresh = TX.init(before)
    assert jax.tree.structure(tuned.opt_state) == jax.tree.structure(fresh)
    assert int(tuned.step) == int(state.step) + 4
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), before, tuned.params)
    assert 0 < max(jax.tree.leaves(moved)) < 0.1  # from there, not from a new start
    other = vision.classifier(vision.MLP((9,), classes=3), **SETTINGS)
    with pytest.raises(ValueError, match=r"must be float32\[9\] for the task .*, got float32\[8\]"):
        jo.fit(other, images(20), optimizer=TX, batch_size=10, epochs=1, state=tuned)


def test_a_data_set_or_a_frame_instead_of_columns():
    import pandas as pd

    data = jo.data.Dataset({"train": images(4)})
    settings = {"optimizer": TX, "batch_size": 2, "epochs": 1}
    with pytest.raises(
        ValueError, match=r"data must be one split, such as data\.train, got a Dataset"
    ):
        jo.fit(TASK, data, **settings)
    with pytest.raises(
        ValueError, match=r"must be columns or batches, got a data frame; Dataset\.from_arrays"
    ):
        jo.fit(TASK, pd.DataFrame({"x": [1, 2]}), **settings)
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        jo.fit(TASK, images(4), **settings, seed=-1)


def test_optimizers_take_what_cannot_be_a_key():
    params = {"kernel": np.ones((2, 2), np.float32), "bias": np.ones(2, np.float32)}
    tx = jo.optim.adamw(0.1, weight_decay=1.0, mask={"kernel": True, "bias": False})
    updates, _ = tx.update(jax.tree.map(np.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.1, rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], 0)


def test_resuming_says_so_and_by_which_rule(tmp_path, capsys):
    run = {"optimizer": TX, "batch_size": 10, "validation": images(9), "checkpoints": tmp_path}
    stopping = jo.EarlyStopping("loss", patience=5)
    jo.fit(TASK, images(20), epochs=1, early_stopping=stopping, **run)
    jo.fit(TASK, images(20), epochs=2, early_stopping=stopping, **run)
    assert f"resumed at step 2 of 4 from {tmp_path}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"early_stopping must be \['loss', 'min'\], as in"):
        jo.fit(TASK, images(20), epochs=3, early_stopping=jo.EarlyStopping("accuracy"), **run)


def test_the_bar_in_a_log_file_is_short(capfd):
    """Not a terminal: a few lines, and one line an epoch on standard output."""
    jo.fit(TASK, images(20), optimizer=TX, batch_size=2, epochs=30)
    out, err = capfd.readouterr()
    assert [
        line.split()[1] for line in out.replace("\r", "\n").splitlines() if "epoch" in line
    ] == [f"{n}/30" for n in range(1, 31)]
    assert err.count("step/s") < 100  # one for each line above, none for each of 300 steps


@pytest.mark.slow
def test_folds_estimate_what_fresh_rows_will_show():
    """Five-fold accuracy agrees with that on 2,000 new rows, where training rows flatter."""
    rng = np.random.default_rng(0)

    def draw(count):
        x = rng.normal(size=(count, 20)).astype(np.float32)
        label = (x[:, 0] + rng.normal(size=count) > 0).astype(np.int32)
        return {"features": x, "label": label}

    task = tabular.classifier(tabular.MLP((64,)), features=20)
    settings = {"optimizer": optax.adam(1e-2), "batch_size": 20, "epochs": 60, "progress": False}
    data, fresh = draw(200), draw(2000)
    folds = []
    for train, held_out in jo.data.k_fold(data["label"]):
        part, rest = ({k: v[i] for k, v in data.items()} for i in (train, held_out))
        folds.append(jo.evaluate(task, jo.fit(task, part, **settings), rest)["accuracy"])
    state = jo.fit(task, data, **settings)
    seen, new = (jo.evaluate(task, state, rows)["accuracy"] for rows in (data, fresh))
    assert seen > 0.95 and new < 0.8
    assert abs(np.mean(folds) - new) < 0.08
