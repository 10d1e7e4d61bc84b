import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import assert_close, assert_equal

import jaxops as jo
from jaxops import language, nn

SMALL = {"vocabulary": 20, "context": 8, "layers": 3, "heads": 2, "width": 8}
TASKS = {
    scan: language.next_token(nn.Transformer(nn.TransformerConfig(**SMALL, scan=scan)))
    for scan in (False, True)
}
RNG = np.random.default_rng(0)
ROWS = language.pack([RNG.integers(0, 20, 9) for _ in range(24)], 9).columns


def fitted(task, optimizer, **settings):
    settings = {"steps": 5, "batch_size": 8, "progress": False, **settings}
    return jo.fit(task, ROWS, optimizer=optimizer, **settings)


def begun(task, optimizer=None, seed=0):
    return jo.init_state(task, optimizer or jo.optim.sgd(0.1), seed, ROWS)


def named(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_frozen_parameters_stay_and_the_optimizer_keeps_nothing_of_them():
    task = TASKS[False]
    optimizer = language.frozen(jo.optim.adamw(1e-2), "^embedding/|block_[01]/")
    assert optimizer is language.frozen(jo.optim.adamw(1e-2), "^embedding/|block_[01]/")
    before, after = begun(task, optimizer), fitted(task, optimizer)
    start, end = named(before.params), named(after.params)
    learns = {name for name in start if "block_2/" in name or name.startswith("stack/norm")}
    for name in start:
        same = np.array_equal(start[name], end[name])
        assert same != (name in learns), name
    kept = named(after.opt_state)
    for name in start:
        assert sum(path.endswith(name) for path in kept) == 2 * (name in learns), name


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("^head", "'.head' finds 0 of"), (".", "'.' finds 38 of 38 parameters")],
)
def test_a_pattern_that_finds_nothing_or_all_is_named(pattern, message):
    with pytest.raises(ValueError, match=message):
        begun(TASKS[False], language.frozen(jo.optim.sgd(0.1), pattern))


def test_rates_fall_from_layer_to_layer():
    rates = {"embedding": 0.5**4, "block_0": 0.5**3, "block_1": 0.5**2, "block_2": 0.5, "norm": 1.0}
    optimizer = language.layerwise(jo.optim.sgd(0.1), 0.5)
    for scan, task in TASKS.items():
        params = begun(task).params
        ones = jax.tree.map(jnp.ones_like, params)
        updates, _ = optimizer.update(ones, optimizer.init(params), params)
        for name, update in named(updates).items():
            layer = name.split("/")[name.startswith("stack/")]
            if layer == "blocks":
                for i in range(3):
                    np.testing.assert_allclose(update[i], -0.1 * rates[f"block_{i}"], rtol=1e-6)
            else:
                np.testing.assert_allclose(update, -0.1 * rates[layer], rtol=1e-6)
        assert scan == any("blocks/" in name for name in named(params))


def test_the_rates_are_those_of_optimizers_of_their_own():
    """Decay of weights, which goes by the rate as well, is multiplied with it."""
    task = TASKS[False]
    found = fitted(task, language.layerwise(jo.optim.adamw(1e-2, weight_decay=0.1), 0.5)).params

    def label(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        layer = name.split("/")[name.startswith("stack/")]
        return layer

    powers = {"embedding": 4, "block_0": 3, "block_1": 2, "block_2": 1, "norm": 0}
    own = optax.multi_transform(
        {name: optax.adamw(1e-2 * 0.5**n, weight_decay=0.1) for name, n in powers.items()},
        lambda params: jax.tree_util.tree_map_with_path(label, params),
    )
    assert_close(found, fitted(task, own).params, rtol=1e-5, atol=1e-7)


def test_a_model_without_blocks_has_no_layers():
    with pytest.raises(ValueError, match="block_0, ... or blocks wanted among dense/kernel"):
        language.layerwise(jo.optim.sgd(0.1), 0.9).init({"dense": {"kernel": jnp.ones((2, 2))}})
    with pytest.raises(ValueError, match="decay: 1.5 found"):
        language.layerwise(jo.optim.sgd(0.1), 1.5)


@pytest.mark.parametrize("scan", [False, True])
def test_lora_begins_at_the_base_trains_its_factors_alone_and_merges(scan, tmp_path):
    task = TASKS[scan]
    base = begun(task, seed=3)
    kept = jax.device_get(base.params)
    small = language.lora(task, rank=2, alpha=3.0, targets=r"(qkv|up)/kernel")
    state = language.adapt(small, base)
    shapes = {name: leaf.shape for name, leaf in named(state.params).items()}
    path, stacked = ("stack/blocks", (3,)) if scan else ("stack/block_1", ())
    assert len(shapes) == (4 if scan else 12)
    assert shapes[f"{path}/attention/qkv/kernel/a"] == (*stacked, 8, 2)
    assert shapes[f"{path}/attention/qkv/kernel/b"] == (*stacked, 2, 24)
    want = jo.predict(task, base, ROWS)
    np.testing.assert_array_equal(jo.predict(small, state, ROWS), want)

    begins = jax.device_get(state.params)
    after = fitted(small, jo.optim.adam(1e-2), state=state, steps=20)
    assert_equal(after.extra["base"], kept)
    assert_equal(base.params, kept)  # not donated
    assert not any(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (begins, after.params))))
    assert {leaf.shape for leaf in jax.tree.leaves(after.opt_state)} <= {(), *shapes.values()}
    applied = jo.predict(small, after, ROWS)
    assert abs(applied - want).max() > 0.01

    merged = language.merge(small, after)
    np.testing.assert_allclose(jo.predict(task, merged, ROWS), applied, rtol=1e-5, atol=1e-6)
    for name, leaf in named(merged.params).items():
        whole = np.asarray(named(kept)[name], np.float64)
        if name in after.params:
            factors = jax.device_get(after.params[name])
            whole = whole + 1.5 * factors["a"].astype(np.float64) @ factors["b"]
        np.testing.assert_allclose(leaf, whole, rtol=1e-5, atol=1e-6)

    jo.save(tmp_path / "small", small, after)
    np.testing.assert_array_equal(jo.load(tmp_path / "small").predict(ROWS), applied)


def test_a_small_rank_learns_what_the_base_does_not_know():
    task = TASKS[True]
    base = fitted(task, jo.optim.adam(1e-2), steps=30)
    before = jo.evaluate(task, base, ROWS)["loss"]
    small = language.lora(task, rank=4)
    after = fitted(small, jo.optim.adam(3e-2), state=language.adapt(small, base), steps=60)
    assert jo.evaluate(small, after, ROWS)["loss"] < before - 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank: 0 found"),
        ({"rank": 2, "targets": "query"}, "targets: 'query' finds none of"),
        ({"rank": 2, "targets": "bias"}, r"bias \(16,\) found, matrices of at least 2"),
        ({"rank": 9}, r"qkv/kernel \(8, 24\) found, matrices of at least 9"),
    ],
)
def test_a_change_that_cannot_be_made_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        begun(language.lora(TASKS[False], **settings))


def test_only_what_lora_made_is_merged():
    with pytest.raises(ValueError, match="one made by lora wanted"):
        language.merge(TASKS[False], begun(TASKS[False]))
