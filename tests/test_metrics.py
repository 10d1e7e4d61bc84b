"""Metric states against scikit-learn, against hand-worked values, and against their own splits."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxops import metrics

CLASSES = 5


def make_rows(seed, n, classes=CLASSES):
    """Scores with ties, masked rows that hold NaN, and non-0/1 weights."""
    rng = np.random.default_rng(seed)
    weights = rng.choice([0.0, 1.0, 0.5, 2.25], n, p=[0.3, 0.4, 0.2, 0.1]).astype(np.float32)
    logits = (rng.integers(-8, 8, (n, classes)) / 4).astype(np.float32)
    target = rng.normal(size=(n, 3)).astype(np.float32)
    labels = rng.integers(0, classes, n).astype(np.int32)
    logits[weights == 0], target[weights == 0], labels[weights == 0] = np.nan, np.inf, -1
    return {"logits": logits, "target": target, "labels": labels, "mask": weights}


def every_state(rows):
    logits, labels, weights = rows["logits"], rows["labels"], rows["mask"]
    classes = logits.shape[1]
    binary = jnp.where(labels == 1, 1, 0)
    return {
        "loss": metrics.mean(logits[:, 0], weights),
        "top_1": metrics.accuracy(logits, labels, weights),
        "top_2": metrics.top_k(logits, labels, 2, weights),
        "binary": metrics.binary_accuracy(logits[:, 1], binary, weights),
        "mse": metrics.squared_error(logits[:, :3], rows["target"], weights),
        "mae": metrics.absolute_error(logits[:, :3], rows["target"], weights),
        "classes": metrics.confusion(logits.argmax(1), labels, classes, weights),
        "auc": metrics.scores(logits[:, 1], binary, weights),
    }


compute_states = jax.jit(every_state)


def summary(states):
    return metrics.summarize(metrics.to_host(states))


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-6, atol=1e-7, err_msg=name)


def pad(rows, n):
    """n rows more of weight 0 and of nonsense."""
    fill = {"logits": np.inf, "target": np.nan, "labels": 99, "mask": 0}
    return {
        k: np.concatenate([v, np.full((n, *v.shape[1:]), fill[k], v.dtype)])
        for k, v in rows.items()
    }


def test_agrees_with_sklearn_under_a_mask():
    rows = make_rows(0, 400)
    got = summary(compute_states(rows))
    kept = {k: v[rows["mask"] > 0] for k, v in rows.items()}
    logits, labels, w = kept["logits"], kept["labels"], kept["mask"]
    predicted, binary = logits.argmax(1), labels == 1
    want = {
        "loss": np.average(logits[:, 0], weights=w),
        "top_1": sk.accuracy_score(labels, predicted, sample_weight=w),
        "binary": sk.accuracy_score(binary, logits[:, 1] > 0, sample_weight=w),
        "mse": sk.mean_squared_error(kept["target"], logits[:, :3], sample_weight=w),
        "mae": sk.mean_absolute_error(kept["target"], logits[:, :3], sample_weight=w),
        "confusion": sk.confusion_matrix(labels, predicted, sample_weight=w),
        "accuracy": sk.accuracy_score(labels, predicted, sample_weight=w),
        "auc": sk.roc_auc_score(binary, logits[:, 1], sample_weight=w),
    }
    for average in ("macro", "micro"):
        for name, f in SKLEARN.items():
            want[f"{name}_{average}"] = f(labels, predicted, average=average, sample_weight=w)
    assert_same({k: v for k, v in got.items() if k != "top_2"}, want)


SKLEARN = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}


@pytest.mark.parametrize("seed", range(4))
def test_any_split_gives_the_same(seed):
    rng = np.random.default_rng(seed)
    rows = make_rows(seed, 96)
    whole = summary(compute_states(rows))
    cuts = np.sort(rng.integers(0, 97, 4))  # equal cuts give empty batches
    total = None
    for start, stop in zip([0, *cuts], [*cuts, 96], strict=True):
        batch = {k: v[start:stop] for k, v in rows.items()}
        batch = pad(batch, 96 - (stop - start))
        states = metrics.to_host(compute_states(batch))
        total = states if total is None else metrics.merge(total, states)
    assert_same(metrics.summarize(total), whole)


@pytest.mark.parametrize("on_host", [True, False])
def test_a_scan_folds_to_the_same(on_host):
    rows = make_rows(7, 120)
    stacked = {k: v.reshape(6, 20, *v.shape[1:]) for k, v in rows.items()}
    _, states = jax.jit(lambda x: jax.lax.scan(lambda c, b: (c, every_state(b)), 0, x))(stacked)
    states = metrics.fold(metrics.to_host(states)) if on_host else metrics.fold(states)
    assert_same(summary(states), summary(compute_states(rows)))


def test_eight_devices_give_the_same():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = make_rows(3, 160)
    sharded = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data")))
    states = compute_states(sharded)
    assert len(sharded["logits"].sharding.device_set) == 8
    assert_same(summary(states), summary(compute_states(rows)))


def test_merge_works_on_device_too():
    rows = make_rows(4, 64)
    half = [{k: v[i : i + 32] for k, v in rows.items()} for i in (0, 32)]
    merged = jax.jit(metrics.merge)(*(compute_states(h) for h in half))
    assert_same(summary(merged), summary(compute_states(rows)))


def test_host_sums_are_float64():
    one = metrics.to_host({"n": metrics.Mean(jnp.float32(2**24), jnp.float32(2**24))})
    more = metrics.to_host({"n": metrics.Mean(jnp.float32(1), jnp.float32(1))})
    assert int(metrics.merge(one, more)["n"].weight) == 2**24 + 1  # float32 would lose the 1


def test_mean_by_hand():
    values, weights = jnp.array([1.0, 5.0, jnp.inf]), jnp.array([3.0, 1.0, 0.0])
    assert metrics.mean(values, weights).compute() == 2.0
    tokens = jnp.array([[1.0, 2.0], [4.0, jnp.nan]])
    assert metrics.mean(tokens[:, :1], jnp.ones(2)).compute() == 2.5
    per_token = metrics.mean(tokens, jnp.array([[1.0, 0.0], [1.0, 0.0]]))
    assert per_token.compute() == 2.5
    assert np.isnan(metrics.mean(jnp.zeros((0,)), jnp.zeros((0,))).compute())
    with pytest.raises(ValueError, match=r"weights must .* values \(2, 2\), got \(3,\)"):
        metrics.mean(tokens, jnp.ones(3))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_top_k_agrees_with_sklearn_without_ties(k):
    rng = np.random.default_rng(k)
    logits, labels = rng.normal(size=(200, 6)).astype(np.float32), rng.integers(0, 6, 200)
    weights = rng.random(200).astype(np.float32)
    want = sk.top_k_accuracy_score(labels, logits, k=k, sample_weight=weights, labels=range(6))
    got = metrics.top_k(jnp.array(logits), jnp.array(labels), k, jnp.array(weights))
    assert got.compute() == pytest.approx(want, abs=1e-6)


def test_top_k_ties_rank_by_class():
    logits = jnp.array([[1.0, 3.0, 1.0, 1.0]] * 4)  # the order is 1, 0, 2, 3
    hits = [
        [float(metrics.top_k(logits[:1], jnp.array([c]), k, jnp.ones(1)).total) for c in range(4)]
        for k in (1, 2, 3, 4)
    ]
    assert hits == [[0, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
    # logits that say nothing earn k / C
    assert metrics.top_k(jnp.zeros((4, 4)), jnp.arange(4), 2, jnp.ones(4)).compute() == 0.5


def test_nan_logits_are_never_right():
    logits = jnp.full((3, 3), jnp.nan)
    assert metrics.accuracy(logits, jnp.arange(3), jnp.ones(3)).compute() == 0
    assert metrics.top_k(logits, jnp.arange(3), 2, jnp.ones(3)).compute() == 0
    assert metrics.binary_accuracy(logits[0], jnp.array([0, 1, 0]), jnp.ones(3)).compute() == 0


def confuse(true, predicted, classes, weights=None):
    weights = np.ones(len(true), np.float32) if weights is None else weights
    true, predicted = np.array(true, np.int32), np.array(predicted, np.int32)
    return metrics.confusion(jnp.array(predicted), jnp.array(true), classes, jnp.array(weights))


@pytest.mark.parametrize(
    ("true", "predicted", "classes"),
    [
        ([0, 1, 2, 2, 1], [0, 2, 2, 1, 1], 3),
        ([0, 0, 1, 3, 3], [0, 1, 1, 3, 0], 5),  # 2 and 4 never occur
        ([0, 0, 2], [1, 1, 1], 3),  # nothing right: zero division everywhere
        ([1, 1, 1], [1, 1, 1], 3),  # one single class
        ([0, 0], [0, 0], 2),
        ([1, 1], [1, 1], 2),
        ([0, 1, 1, 0], [1, 1, 0, 0], 2),
    ],
)
def test_confusion_averages_agree_with_sklearn(true, predicted, classes):
    state = confuse(true, predicted, classes)
    got = state.compute()
    averages = {"_macro": "macro", "_micro": "micro"} | ({"": "binary"} if classes == 2 else {})
    for name, f in SKLEARN.items():
        for suffix, average in averages.items():
            want = f(true, predicted, average=average, zero_division=0)
            assert got[name + suffix] == pytest.approx(want, abs=1e-6), (name, average)
        want = f(true, predicted, average=None, labels=range(classes), zero_division=0)
        np.testing.assert_allclose(getattr(state, name)(None), want, atol=1e-6)
    assert got["accuracy"] == pytest.approx(sk.accuracy_score(true, predicted))
    assert ("precision" in got) == (classes == 2)


def test_confusion_of_an_empty_set_is_nan():
    got = confuse([0, 1], [1, 1], 2, np.zeros(2, np.float32)).compute()
    assert not got.pop("confusion").any()
    assert len(got) == 10 and all(np.isnan(v) for v in got.values())


def test_confusion_leaves_out_labels_beyond_the_classes():
    got = confuse([0, -1, 7, 1], [0, 0, 1, -1], 2).counts
    assert got.tolist() == [[1, 0], [0, 0]]


def test_confusion_refuses_other_averages():
    state = confuse([0, 1, 2], [0, 1, 2], 3)
    with pytest.raises(ValueError, match=r"average must not be .* for 3 classes"):
        state.f1("binary")
    with pytest.raises(ValueError, match=r"average must be None, .* got 'weighted'"):
        state.recall("weighted")


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("levels", [2, 10, 10**6])
def test_roc_agrees_with_sklearn(levels, weighted):
    rng = np.random.default_rng(levels)
    score = (rng.integers(0, levels, 300) / levels).astype(np.float32)
    label = (rng.random(300) < 0.3 + 0.4 * score).astype(np.int32)
    weight = rng.choice([0, 0.5, 1, 3], 300).astype(np.float32) if weighted else np.ones(300)
    state = metrics.scores(jnp.array(score), jnp.array(label), jnp.array(weight))
    want = sk.roc_curve(label, score, sample_weight=weight, drop_intermediate=False)
    for a, b in zip(state.roc_curve(), want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert state.compute() == pytest.approx(
        sk.roc_auc_score(label, score, sample_weight=weight), abs=1e-6
    )


def test_auc_is_mann_whitney():
    rng = np.random.default_rng(0)
    score, label = rng.integers(0, 6, 80) / 2.0, rng.integers(0, 2, 80)
    above = score[label == 1][:, None] - score[label == 0][None]
    want = ((above > 0) + 0.5 * (above == 0)).mean()
    assert metrics.Scores(score, label, np.ones(80)).auc() == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("label", [[], [0, 0, 0], [1, 1, 1]])
def test_auc_without_both_classes_is_nan(label):
    n = len(label)
    state = metrics.Scores(np.arange(float(n)), np.array(label), np.ones(n))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(state.auc())
        assert len(state.roc_curve()[0]) == n + 1


def test_auc_of_a_nan_score_is_nan_but_not_under_the_mask():
    score, label = np.array([0.1, np.nan, 0.9]), np.array([0, 1, 1])
    assert np.isnan(metrics.Scores(score, label, np.ones(3)).auc())
    assert metrics.Scores(score, label, np.array([1, 0, 1])).auc() == 1


def test_infinite_scores_tie():
    score, label = np.array([np.inf, np.inf, -np.inf]), np.array([0, 1, 0])
    assert metrics.Scores(score, label, np.ones(3)).auc() == 0.75


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b, w: metrics.binary_accuracy(a, b, w),
        lambda a, b, w: metrics.squared_error(a, b, w),
        lambda a, b, w: metrics.absolute_error(a, b, w),
        lambda a, b, w: metrics.scores(a, b, w),
        lambda a, b, w: metrics.confusion(a, b, 2, w),
    ],
)
def test_columns_of_different_shape_are_refused(make):
    with pytest.raises(ValueError, match=r"must have shape \(4, 1\), got \(4,\)"):
        make(jnp.ones((4, 1)), jnp.ones(4), jnp.ones(4))


def test_summarize_merges_dicts_without_prefix():
    states = {"loss": metrics.Mean(np.array(1.0), np.array(2.0)), "c": metrics.Confusion(np.eye(2))}
    got = metrics.summarize(states)
    assert got["loss"] == 0.5 and got["f1"] == 1 and "c" not in got
