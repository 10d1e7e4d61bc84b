"""What a run leaves behind: the state it began with, a checkpoint, averages, frozen statistics."""

import os
import stat

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ADAM, LINEAR, TASK, assert_equal, compilations, images

import jaxops as jo
from jaxops import language, vision
from jaxops.state import Stays

ROWS = images(40)


def fit(task=TASK, **changes):
    settings = {"optimizer": ADAM, "batch_size": 10, "epochs": 2, "progress": False}
    return jo.fit(task, ROWS, **settings | changes)


def test_a_state_survives_the_run_that_starts_from_it():
    start = fit(epochs=1)
    before = jax.device_get((start.params, start.opt_state))
    with pytest.raises(KeyError):
        fit(state=start, reports=lambda record: {}["stop"])
    assert_equal((start.params, start.opt_state), before)
    assert int(fit(state=start).step) == int(fit(state=start).step) == 12
    assert jo.predict(TASK, start, ROWS).shape == (40, 3)


def test_an_exception_of_a_logger_does_not_cost_the_epoch(tmp_path):
    def fails(record):
        if record["step"] == 8:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        fit(epochs=3, checkpoints=tmp_path, reports=fails)
    assert {"4", "8"} <= set(os.listdir(tmp_path))
    assert_equal(fit(epochs=3, checkpoints=tmp_path).params, fit(epochs=3).params)


class Shuffled:
    """Batches in an order that only the global seed determines."""

    def __len__(self):
        return 4

    def __iter__(self):
        for rows in np.random.permutation(40).reshape(4, 10):
            yield {name: value[rows] for name, value in ROWS.items()}


def test_a_stream_whose_order_differs_cannot_be_resumed(tmp_path):
    settings = {"optimizer": ADAM, "batch_size": 10, "progress": False, "checkpoints": tmp_path}
    jo.fit(TASK, Shuffled(), epochs=1, **settings)
    with pytest.raises(ValueError, match=r"column 'image' must be .* same batches each time"):
        jo.fit(TASK, Shuffled(), epochs=2, **settings)


@pytest.mark.slow
def test_without_jit():
    with jax.disable_jit():
        state = fit(LINEAR, epochs=None, steps=1)
    jitted = fit(LINEAR, epochs=None, steps=1)
    for ours, same in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(jitted.params), strict=True
    ):
        np.testing.assert_allclose(ours, same, rtol=1e-4, atol=1e-6)


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x, train=False, mask=None):
        x = x.reshape(len(x), -1)
        x = jo.nn.BatchNorm(name="trunk")(x, train=train, mask=mask)
        x = jo.nn.BatchNorm(name="head")(x, train=train, mask=mask)
        return nn.Dense(3, name="logits")(x)


def test_frozen_layers_keep_their_statistics(tmp_path):
    task = vision.classifier(Norms(), image_shape=(4, 4, 1), classes=3)
    tx = jo.optim.chain(language.frozen(ADAM, "^trunk/"), jo.optim.ema(0.9))
    fit(task, optimizer=tx, checkpoints=tmp_path, epochs=1)
    state = fit(task, optimizer=tx)
    assert_equal(fit(task, optimizer=tx, checkpoints=tmp_path).params, state.params)
    stats = state.extra["batch_stats"]
    assert (stats["trunk"]["mean"] == 0).all() and (stats["trunk"]["var"] == 1).all()
    assert (stats["head"]["var"] != 1).any()
    # where the pattern does not match all of a layer, the layer learns
    before = {"batch_stats": {"trunk": {"mean": 0}, "plain": {"mean": 0}}}
    after = {"batch_stats": {"trunk": {"mean": 1}, "plain": {"mean": 1}}}
    params = {"trunk": {"bias": 2, "scale": 2}}
    assert Stays("^trunk/bias").of(params, before, after) == after
    kept = Stays("^(trunk|plain)/").of(params, before, after)  # "plain" has no parameters
    assert kept == before


def test_a_model_file_has_the_usual_rights_and_follows_a_link(tmp_path):
    model = jo.Model(TASK, jo.init_state(TASK, ADAM, 0, images(1)), about={"a": np.float32(0.5)})
    before = os.umask(0o027)
    try:
        jo.save(tmp_path / "one", model)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o640
    (tmp_path / "link").symlink_to(tmp_path / "one")
    jo.save(tmp_path / "link", jo.Model(TASK, model.state, about={"b": jnp.int32(3)}))
    assert (tmp_path / "link").is_symlink()
    assert jo.load(tmp_path / "one").about == {"b": 3}
    with pytest.raises(ValueError, match=r"about must be JSON-like data, got .* of set"):
        jo.save(tmp_path / "two", jo.Model(TASK, model.state, about={"a": {1, 2}}))


@pytest.mark.parametrize("number", [np.float32(0.5), jnp.float32(0.5), np.float64(0.5)])
def test_numbers_of_any_kind_make_the_same_task(number):
    made = vision.classifier(vision.MLP((2,)), mean=number)
    assert made is vision.classifier(vision.MLP((2,)), mean=0.5)


def test_data_of_about_the_same_length_share_a_program():
    """200 to 208 rows have room for 208; and a stream's batches of 17 and 18 rows for 18."""
    image, label = images(208).values()

    def trained(rows):
        data = {"image": image[:rows], "label": label[:rows]}
        settings = {"optimizer": jo.optim.sgd(0.1), "batch_size": 32, "progress": False}
        return jo.fit(LINEAR, data, epochs=1, **settings).params["logits"]["kernel"]

    def predicted(rows):
        return jo.predict(LINEAR, start, [{"image": image[:rows]}])

    longest, start = trained(208), jo.init_state(LINEAR, ADAM, 0, images(1))
    assert predicted(18).shape == (18, 3)
    with compilations() as names:
        shorter = trained(200)
        assert predicted(17).shape == (17, 3)
    assert not names
    assert (shorter != longest).any()
    # the rows of zeros are in no batch: the same by hand
    params = jax.device_get(start.params)
    weights = params["logits"]["kernel"].astype(np.float64), params["logits"]["bias"]
    order = np.random.default_rng((0, 0)).permutation(200)
    for batch in np.split(order, range(32, 200, 32)):
        x = image[batch].reshape(len(batch), -1) / 255
        logits = x @ weights[0] + weights[1]
        p = np.exp(logits - logits.max(1, keepdims=True))
        error = (p / p.sum(1, keepdims=True) - np.eye(3)[label[batch]]) / len(batch)
        weights = weights[0] - 0.1 * x.T @ error, weights[1] - 0.1 * error.sum(0)
    np.testing.assert_allclose(shorter, weights[0], rtol=1e-3, atol=1e-5)
