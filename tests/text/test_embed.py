import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled

import jaxops as jo
from jaxops import nn, text
from jaxops.model.topk import top_k

CONFIG = nn.TransformerConfig(40, context=6, depth=1, heads=2, width=8, causal=False)
BAG = text.BagEncoder(40, features=16)
ENCODERS = {
    "bag": BAG,
    "cnn": text.TextCNN(40, classes=16, width=8, filters=8),
    "transformer": text.TransformerClassifier(CONFIG, classes=16),
}


def pairs(rows, seed=0):
    """A pair's texts share three of four words; the label is the first word's."""
    rng = np.random.default_rng(seed)
    first = rng.integers(1, 11, rows)
    rest = rng.integers(11, 40, (2, rows, 3))
    rest[1, :, :2] = rest[0, :, :2]
    both = np.zeros((2, rows, 6), np.int32)
    both[:, :, 0], both[:, :, 1:4] = first, rest
    return {"tokens": both[0], "positive": both[1], "label": first.astype(np.int32)}


def in_numpy(anchors, positives, temperature, label=None, weights=None):
    """The loss of each row, and its gradient to the anchors, one row and column at a time."""
    a, p = anchors.astype(np.float64), positives.astype(np.float64)
    count = len(a)
    weights = np.ones(count) if weights is None else weights
    losses, grads = np.zeros(count), np.zeros_like(a)
    for i in range(count):
        others = [j for j in range(count) if weights[j] > 0]
        own = [j for j in others if j == i or (label is not None and label[j] == label[i])]
        total = sum(np.exp(a[i] @ p[j] / temperature) for j in others)
        for j in own:
            losses[i] -= np.log(np.exp(a[i] @ p[j] / temperature) / total) / len(own)
            grads[i] -= p[j] / temperature / len(own)
        for j in others:
            grads[i] += np.exp(a[i] @ p[j] / temperature) / total * p[j] / temperature
    return losses, grads


@pytest.mark.parametrize("label", [None, np.array([3, 1, 3, 2, 1, 3])])
def test_the_loss_is_its_formula_and_so_is_its_gradient(label):
    rng = np.random.default_rng(0)
    a, p = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))

    def loss(a):
        losses, hits = text.info_nce(a, p, jnp.ones(6), 0.7, label)
        return losses.sum(), (losses, hits)

    found, (losses, hits) = jax.jit(jax.grad(loss, has_aux=True))(a)
    wanted, gradient = in_numpy(a, p, 0.7, label)
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5)
    near = (a @ p.T).argmax(1)
    rows = np.arange(6)
    np.testing.assert_array_equal(hits, near == rows if label is None else label[near] == label)


def test_distinct_labels_are_no_labels():
    rng = np.random.default_rng(1)
    a, p = (rng.normal(size=(5, 3)).astype(np.float32) for _ in range(2))
    plain = text.info_nce(a, p, jnp.ones(5), 0.5)
    labelled = text.info_nce(a, p, jnp.ones(5), 0.5, jnp.arange(5))
    jax.tree.map(np.testing.assert_array_equal, plain, labelled)


def variables(task, batch):
    return filled(task.init, batch)


@pytest.mark.parametrize("labelled", [pytest.param(False, marks=pytest.mark.slow), True])
def test_rows_of_weight_zero_are_nobodys_negatives(labelled):
    task = text.contrastive(BAG, 6, labelled=labelled)
    data = pairs(8)
    params, extra = variables(task, data)

    @jax.jit
    @jax.value_and_grad
    def loss(params, batch):
        return task.loss(params, extra, batch, jax.random.key(0), False)[0]

    few = {name: column[:5] for name, column in data.items()}
    padded = {**data, "mask": np.array([1, 1, 1, 1, 1, 0, 0, 0], np.float32)}
    a, b = (loss(params, batch) for batch in (few, padded))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), a, b)
    predict = jax.jit(task.predict)
    anchors, positives = (
        np.asarray(predict(params, extra, {"tokens": few[name]})) for name in ("tokens", "positive")
    )
    wanted, _ = in_numpy(anchors, positives, 0.05, few["label"] if labelled else None)
    # a loss near 0 is the difference of scores of about 20, whose rounding is 2e-6
    np.testing.assert_allclose(a[0], wanted.sum(), rtol=1e-4, atol=1e-5)


def test_a_batch_of_padding_has_no_gradient():
    task, data = text.contrastive(BAG, 6), {**pairs(4), "mask": np.zeros(4, np.float32)}
    params, extra = variables(task, data)
    total, grads = jax.jit(
        jax.value_and_grad(lambda p: task.loss(p, extra, data, jax.random.key(0), False)[0])
    )(params)
    assert float(total) == 0
    assert all(not np.asarray(g).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    "name", ["bag", "cnn", pytest.param("transformer", marks=pytest.mark.slow)]
)
def test_vectors_are_of_length_one_and_belong_to_tokens(name):
    task, data = text.contrastive(ENCODERS[name], 6), pairs(5)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, data)
    vectors = jo.predict(task, state, {"tokens": data["tokens"]})
    assert vectors.shape == (5, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    both = jo.predict(task, state, data)  # with the positives there as well
    np.testing.assert_allclose(both, vectors, rtol=1e-5, atol=1e-6)


def test_a_bag_is_the_weighted_sum():
    tokens = np.array([[3, 7, 7, 0], [9, 0, 0, 0], [0, 0, 0, 0]])
    params = jax.device_get(jax.jit(BAG.init)(jax.random.key(1), tokens)["params"])
    params["gate"] = np.random.default_rng(0).normal(size=40).astype(np.float32)
    found = BAG.apply({"params": params}, tokens)
    g, e = np.exp(params["gate"]), params["embedding"]
    wanted = (g[3] * e[3] + 2 * g[7] * e[7]) / np.sqrt(g[3] ** 2 + 2 * g[7] ** 2)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-5)
    np.testing.assert_allclose(found[1], e[9], rtol=1e-5)
    assert not np.asarray(found[2]).any()
    dropped = text.BagEncoder(40, 16, dropout=0.5)
    a, b = (
        dropped.apply({"params": params}, tokens, train=True, rngs={"dropout": jax.random.key(i)})
        for i in (0, 1)
    )
    assert np.abs(a - b).max() > 0.1


@pytest.mark.slow
def test_eight_devices_are_as_one():
    task = text.contrastive(BAG, 6, labelled=True)
    settings = {"optimizer": jo.optim.sgd(0.1), "batch_size": 12, "steps": 6, "progress": False}
    data = pairs(45)  # 12 rows are padded to 16, and the last batch has 9
    plans = jo.devices.single(), jo.devices.data_parallel()
    one, eight = (jo.fit(task, data, plan=plan, **settings) for plan in plans)
    fresh = jo.init_state(task, jo.optim.sgd(0.1), 0, data)
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), one.params, fresh.params)
    assert max(jax.tree.leaves(moved)) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, eight.params)
    found = [jo.evaluate(task, one, data, plan=plan, batch_size=24) for plan in plans]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_learns_which_words_matter():
    """Of the words of a text only the first is its meaning: labelled pairs say so."""
    train, test = pairs(400), pairs(100, seed=1)
    anchors, positives = text.partners(train["label"], count=2, seed=0)
    rows = {
        "tokens": train["tokens"][anchors],
        "positive": train["tokens"][positives],
        "label": train["label"][anchors],
    }
    task = text.contrastive(BAG, 6, labelled=True)
    settings = {"optimizer": jo.optim.adam(1e-2), "batch_size": 64, "progress": False}
    state = jo.fit(task, rows, epochs=10, **settings)

    def precision(state):
        parts = ({"tokens": part["tokens"]} for part in (test, train))
        vectors = [jo.predict(task, state, part, batch_size=100) for part in parts]
        _, near = top_k(*vectors, 1)
        return text.hit_rate(train["label"][np.asarray(near)] == test["label"][:, None], 1)

    before = precision(jo.init_state(task, settings["optimizer"], 0, rows))
    assert before < 0.8 and precision(state) > 0.97


def test_partners_share_the_label_and_are_drawn_evenly():
    label = np.array([5, 5, 5, 5, 2, 2, 9])
    anchors, positives = text.partners(label, count=3000, seed=1)
    np.testing.assert_array_equal(np.bincount(anchors), [3000] * 6)  # 9 has no other
    assert (label[anchors] == label[positives]).all() and (anchors != positives).all()
    counts = np.bincount(positives[anchors == 1], minlength=7)
    assert counts[[0, 2, 3]].min() > 900 and counts.sum() == 3000
    again = text.partners(label, count=3000, seed=1)
    np.testing.assert_array_equal(again, (anchors, positives))
    with pytest.raises(
        ValueError, match="label must have two rows of one value, got 4 values in 4 rows"
    ):
        text.partners(np.arange(4), count=1, seed=0)


def test_a_model_file_keeps_it(tmp_path):
    task, data = text.contrastive(BAG, 6, labelled=True), pairs(5)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, data)
    jo.save(tmp_path / "vectors.safetensors", jo.Model(task, state))
    model = jo.load(tmp_path / "vectors.safetensors")
    assert model.task is task
    np.testing.assert_array_equal(
        model.predict(data["tokens"]), jo.predict(task, state, {"tokens": data["tokens"]})
    )


def test_bad_input():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        text.contrastive(BAG, 6, temperature=0)
    task, data = text.contrastive(BAG, 6), pairs(8)
    fit = {"optimizer": jo.optim.sgd(0.1), "steps": 1, "progress": False}
    with pytest.raises(ValueError, match="coupled=True"):
        jo.fit(task, data, batch_size=4, accumulate=2, **fit)
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 40\), got 4\d"):
        jo.fit(task, {**data, "tokens": data["tokens"] + 10}, batch_size=4, **fit)
    with pytest.raises(ValueError, match="columns must include 'positive'"):
        jo.fit(task, {"tokens": data["tokens"]}, batch_size=4, **fit)
    with pytest.raises(ValueError, match="columns must include 'label'"):
        unlabelled = {name: data[name] for name in ("tokens", "positive")}
        jo.fit(text.contrastive(BAG, 6, labelled=True), unlabelled, batch_size=4, **fit)
    with pytest.raises(ValueError, match=r"rows of shape \(6,\), got \(5,\)"):
        jo.fit(task, {**data, "tokens": data["tokens"][:, :5]}, batch_size=4, **fit)


def test_one_row_has_no_negatives():
    """Nothing would be learned, and every evaluation would be perfect."""
    task, data = text.contrastive(BAG, 6), pairs(4)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, data)
    settings = {"optimizer": jo.optim.sgd(0.1), "steps": 1, "progress": False}
    for call in (
        lambda: jo.fit(task, data, batch_size=1, **settings),
        lambda: jo.evaluate(task, state, data, batch_size=1),
        lambda: jo.evaluate(task, state, pairs(1)),
    ):
        with pytest.raises(ValueError, match=r"batch_size must be at least 2 .*, got 1"):
            call()
