import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import assert_close, assert_equal, filled

import jaxops as jo
from jaxops import language, nn

SMALL = {"vocabulary": 20, "context": 8, "depth": 2, "heads": 2, "width": 8}
TASKS = {
    scan: language.next_token(nn.Transformer(nn.TransformerConfig(**SMALL, scan=scan)))
    for scan in (False, True)
}
RNG = np.random.default_rng(0)
ROWS = language.pack([RNG.integers(0, 20, 9) for _ in range(24)], 9).columns


def fitted(task, optimizer, **settings):
    settings = {"steps": 5, "batch_size": 8, "progress": False, **settings}
    return jo.fit(task, ROWS, optimizer=optimizer, **settings)


def begun(task):
    params, extra = filled(task.init, ROWS)
    return jo.TrainState(np.int32(0), params, (), extra, jax.random.key(0))


def named(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_frozen_parameters_stay_and_the_optimizer_keeps_nothing_of_them():
    task = TASKS[False]
    optimizer = language.frozen(jo.optim.adamw(1e-2), "^embedding/|block_0/")
    assert optimizer is language.frozen(jo.optim.adamw(1e-2), "^embedding/|block_0/")
    before = begun(task).params

    @jax.jit
    def stepped(params):
        grads = jax.tree.map(jnp.ones_like, params)
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates), state

    after, state = stepped(before)
    start, end, kept = named(before), named(after), named(state)
    learns = {name for name in start if "block_1/" in name or name.startswith("stack/norm")}
    for name in start:
        same = np.array_equal(start[name], end[name])
        assert same != (name in learns), name
    for name in start:
        assert sum(path.endswith(name) for path in kept) == 2 * (name in learns), name


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("^head", "some of 28 parameters .*, got '.head', which matches 0"),
        (".", "got '.', which matches 28"),
    ],
)
def test_a_pattern_that_finds_nothing_or_all_is_named(pattern, message):
    with pytest.raises(ValueError, match=message):
        language.frozen(jo.optim.sgd(0.1), pattern).init(of_ones(TASKS[False]))


def of_ones(task):
    """Parameters, all 1."""
    shapes, _ = jax.eval_shape(task.init, jax.random.key(0), ROWS)
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)


def layer(name):
    return name.split("/")[name.startswith("stack/")]


def test_rates_fall_from_layer_to_layer():
    rates = {"embedding": 0.5**3, "block_0": 0.5**2, "block_1": 0.5, "norm": 1.0}
    optimizer = language.layerwise(jo.optim.sgd(0.1), 0.5)
    for scan, task in TASKS.items():
        params = of_ones(task)
        updates = jax.jit(lambda p: optimizer.update(p, optimizer.init(p), p)[0])(params)
        assert scan == any("blocks/" in name for name in named(params))
        for name, update in named(updates).items():
            if layer(name) == "blocks":
                for i in range(2):
                    np.testing.assert_allclose(update[i], -0.1 * rates[f"block_{i}"], rtol=1e-6)
            else:
                np.testing.assert_allclose(update, -0.1 * rates[layer(name)], rtol=1e-6)


def test_the_rates_are_those_of_optimizers_of_their_own():
    """Decay of weights, which goes by the rate as well, is multiplied with it."""

    def label(path, leaf):
        return layer(jax.tree_util.keystr(path, simple=True, separator="/"))

    powers = {"embedding": 3, "block_0": 2, "block_1": 1, "norm": 0}
    own = optax.multi_transform(
        {name: optax.adamw(1e-2 * 0.5**n, weight_decay=0.1) for name, n in powers.items()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    params = of_ones(TASKS[False])

    def stepped(tx):
        @jax.jit
        def two_steps(params):
            state = tx.init(params)
            for scale in (1.0, -0.3):
                grads = jax.tree.map(lambda p: scale * p, params)
                updates, state = tx.update(grads, state, params)
                params = optax.apply_updates(params, updates)
            return params

        return two_steps(params)

    mine = language.layerwise(jo.optim.adamw(1e-2, weight_decay=0.1), 0.5)
    assert_close(stepped(mine), stepped(own), rtol=1e-6)


def test_a_model_without_blocks_has_no_layers():
    with pytest.raises(
        ValueError, match=r"params must have block_0, \.\.\. or blocks .*, got dense/kernel"
    ):
        language.layerwise(jo.optim.sgd(0.1), 0.9).init({"dense": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(ValueError, match=r"decay must be in \(0, 1\], got 1\.5"):
        language.layerwise(jo.optim.sgd(0.1), 1.5)


@pytest.mark.parametrize("scan", [pytest.param(False, marks=pytest.mark.slow), True])
def test_lora_begins_at_the_base_trains_its_factors_alone_and_merges(scan, tmp_path):
    task = TASKS[scan]
    base = begun(task)
    kept = jax.device_get(base.params)
    small = language.lora(task, rank=2, alpha=3.0, targets=r"(qkv|up)/kernel")
    state = language.adapt(small, base)
    shapes = {name: leaf.shape for name, leaf in named(state.params).items()}
    path, stacked = ("stack/blocks", (2,)) if scan else ("stack/block_1", ())
    assert len(shapes) == (4 if scan else 8)
    assert shapes[f"{path}/attention/qkv/kernel/a"] == (*stacked, 8, 2)
    assert shapes[f"{path}/attention/qkv/kernel/b"] == (*stacked, 2, 24)
    want = jo.predict(task, base, ROWS)
    np.testing.assert_array_equal(jo.predict(small, state, ROWS), want)

    begins = jax.device_get(state.params)
    after = fitted(small, jo.optim.adam(1e-2), state=state, steps=20)
    assert_equal(after.extra["base"], kept)
    assert_equal(base.params, kept)  # not donated
    assert not any(
        np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (begins, after.params)))
    )
    assert {leaf.shape for leaf in jax.tree.leaves(after.opt_state)} <= {(), *shapes.values()}
    applied = jo.predict(small, after, ROWS)
    assert abs(applied - want).max() > 0.01
    assert applied.sum() > want.sum()  # the text has become likelier

    merged = language.merge(small, after)
    np.testing.assert_allclose(jo.predict(task, merged, ROWS), applied, rtol=1e-5, atol=1e-6)
    for name, leaf in named(merged.params).items():
        whole = np.asarray(named(kept)[name], np.float64)
        if name in after.params:
            factors = jax.device_get(after.params[name])
            whole = whole + 1.5 * factors["a"].astype(np.float64) @ factors["b"]
        np.testing.assert_allclose(leaf, whole, rtol=1e-5, atol=1e-6)

    jo.save(tmp_path / "small", jo.Model(small, after))
    np.testing.assert_array_equal(jo.load(tmp_path / "small").predict(ROWS), applied)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 2, "targets": "query"}, "targets must match one of .*, got 'query'"),
        ({"rank": 2, "targets": "bias"}, r"matrices of at least 2 .*bias \(8,\)"),
        ({"rank": 9}, r"matrices of at least 9 .*qkv/kernel \(8, 24\)"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        begun(language.lora(TASKS[False], **settings))


def test_only_what_lora_made_is_merged():
    with pytest.raises(ValueError, match="task must be made by lora, got one made by next_token"):
        language.merge(TASKS[False], begun(TASKS[False]))
