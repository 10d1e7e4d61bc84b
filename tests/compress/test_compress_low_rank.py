import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import filled

import jaxops as jo
from jaxops import compress, language, tabular, vision
from jaxops.model.exported import run
from jaxops.nn import Transformer, TransformerConfig
from jaxops.task import example

TASK = vision.classifier(vision.MLP((24, 20), classes=3), **small.SETTINGS)


def model_of(task):
    params, extra = filled(task.init, example(task.columns))
    return jo.Model(task, jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0)))


def truncated(kernel, rank):
    u, s, v = np.linalg.svd(np.asarray(kernel, np.float64), full_matrices=False)
    return u[:, :rank] * s[None, :rank] @ v[:rank]


def test_factors_are_the_truncated_decomposition_and_run_as_such():
    model = model_of(TASK)
    less = compress.low_rank(model, rank=4)
    params = jax.tree.map(np.asarray, model.state.params)
    for name in ("hidden_0", "hidden_1"):
        factors = less.state.params[name]
        product = np.asarray(factors["in_kernel"]) @ np.asarray(factors["out_kernel"])
        wanted = truncated(params[name]["kernel"], 4)
        np.testing.assert_allclose(product, wanted, atol=1e-5)
        params[name]["kernel"] = wanted.astype(np.float32)
    assert "kernel" in less.state.params["logits"]  # 20 x 3, where factors would be larger
    image = small.images(7)["image"]
    dense = jo.Model(TASK, model.state._replace(params=params))
    np.testing.assert_allclose(less.predict(image), dense.predict(image), atol=1e-5)
    assert less.about["compressed"][0]["ranks"] == {"hidden_0": 4, "hidden_1": 4}


def test_energy_takes_the_least_rank_that_keeps_the_share():
    model = model_of(TASK)
    ranks = compress.low_rank(model, energy=0.5).about["compressed"][0]["ranks"]
    for name, rank in ranks.items():
        kernel = np.asarray(model.state.params[name]["kernel"], np.float64)
        error = [((kernel - truncated(kernel, r)) ** 2).sum() for r in (rank - 1, rank)]
        assert error[1] <= 0.5 * (kernel**2).sum() < error[0]
    assert ranks


def test_no_product_of_the_whole_kernel_is_left():
    less = compress.low_rank(model_of(TASK), rank=4)
    image = {"image": small.images(2)["image"]}
    shapes = {
        tuple(v.aval.shape)
        for equation in jax.make_jaxpr(less.apply)(image).eqns
        for v in equation.outvars
    }
    assert (16, 24) not in shapes and (2, 4) in shapes


@pytest.mark.slow
def test_it_is_saved_exported_trained_and_factored_again(tmp_path):
    data = small.images(256)
    less = compress.low_rank(model_of(TASK), rank=6)
    jo.save(tmp_path / "model.safetensors", less)
    read = jo.load(tmp_path / "model.safetensors")
    assert read.task == less.task
    image = data["image"][:9]
    np.testing.assert_array_equal(read.predict(image), less.predict(image))
    folder = jo.export(read, tmp_path / "exported")
    outputs = run.load(folder).apply({"image": image})
    np.testing.assert_allclose(outputs, less.predict(image), atol=1e-6)
    settings = {"optimizer": jo.optim.adam(1e-2), "batch_size": 64, "progress": False}
    state = jo.fit(read.task, data, state=read.state, epochs=3, **settings)
    losses = [jo.evaluate(read.task, s, data)["loss"] for s in (read.state, state)]
    assert losses[1] < losses[0]
    pruned = compress.prune(jo.Model(read.task, state), 0.5)
    assert int((pruned.state.params["hidden_0"]["in_kernel"] == 0).sum()) > 0
    with pytest.raises(ValueError, match="model must be one before low_rank"):
        compress.structured(read)


@pytest.mark.slow
def test_dense_layers_of_flax_and_of_transformers_run_their_factors():
    class Own(nn.Module):
        outputs: int = 1

        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(32, use_bias=False, name="hidden")(x))
            return nn.Dense(1, name="logits")(x)

    model = model_of(tabular.classifier(Own(), 30))
    less = compress.low_rank(model, rank=3)
    kernel = truncated(model.state.params["hidden"]["kernel"], 3).astype(np.float32)
    params = {**model.state.params, "hidden": {"kernel": kernel}}
    x = np.random.default_rng(0).normal(size=(5, 30)).astype(np.float32)
    dense = jo.Model(model.task, model.state._replace(params=params))
    np.testing.assert_allclose(less.predict(x), dense.predict(x), atol=1e-5)

    config = TransformerConfig(vocabulary=12, context=8, depth=1, heads=2, width=16)
    model = compress.structured(model_of(language.next_token(Transformer(config))), 0.5)
    less = compress.low_rank(model, rank=3)
    assert len(less.about["compressed"][1]["ranks"]) == 4  # qkv, out, up, down
    answers = language.generate(less, [[1, 2, 3]], new_tokens=3, temperature=0.0)
    module = dict(less.task.recipe[1])["module"]
    logits = jax.jit(module.apply)({"params": less.state.params}, jnp.array([[1, 2, 3]]))
    assert answers[0].tokens[0] == np.asarray(logits)[0, -1].argmax()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "one of rank and energy must be given, got rank=None and energy=None"),
        ({"rank": 2, "energy": 0.9}, "one of rank and energy must be given"),
        ({"rank": 0}, "rank must be a number of at least 1, got 0"),
        ({"energy": 1.0}, r"energy must be in \(0, 1\), got 1\.0"),
        ({"rank": 12}, r"rank must be less .* \(ranks up to 10 do, of 3 dense layers\), got 12"),
        ({"energy": 0.999999}, "energy must be less for factors to save anything"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        compress.low_rank(model_of(TASK), **given)
