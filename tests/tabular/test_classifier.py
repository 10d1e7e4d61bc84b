import jax
import numpy as np
import optax
import pytest
from sklearn.metrics import accuracy_score, log_loss, roc_auc_score

from jaxops import tabular
from jaxops.state import init_state
from jaxops.train.evaluation import evaluate, predict
from jaxops.train.loop import fit


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(700, 5)).astype(np.float32)
    odds = features @ np.array([2.0, -1.0, 0.5, 0, 0]) + 0.3
    label = (rng.random(700) < 1 / (1 + np.exp(-odds))).astype(np.int32)
    return {"features": features, "label": label}


TASK = tabular.classifier(tabular.MLP(), features=5)


@pytest.fixture(scope="module")
def state(data):
    return init_state(TASK, optax.sgd(0.1), 0, data)


@pytest.mark.parametrize("features", [1, 20, 46])
def test_parameter_count_of_article_003(features):
    shapes = jax.eval_shape(tabular.MLP().init, jax.random.key(0), np.ones((1, features)))
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 128 * features + 8449


def test_begins_as_keras_does(state):
    params = jax.device_get(state.params)
    for layer in params.values():
        fan_in, fan_out = layer["kernel"].shape
        bound = np.sqrt(6 / (fan_in + fan_out))
        assert 0.9 * bound < np.abs(layer["kernel"]).max() <= bound
        assert not layer["bias"].any()


def test_forward_pass_agrees_with_numpy(state, data):
    x = data["features"]
    params = jax.device_get(state.params)
    for name in ("hidden_0", "hidden_1"):
        x = np.maximum(x @ params[name]["kernel"] + params[name]["bias"], 0)
    logit = (x @ params["logits"]["kernel"] + params["logits"]["bias"])[:, 0]
    probability = predict(TASK, state, {"features": data["features"]})
    assert probability.shape == (700,)
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-logit)), rtol=1e-5)


def test_metrics_agree_with_scikit_learn(state, data):
    probability = predict(TASK, state, data).astype(float)
    found = evaluate(TASK, state, data, batch_size=256, metrics={"auc": tabular.auc})
    label = data["label"]
    assert found == pytest.approx(
        {
            "loss": log_loss(label, probability),
            "accuracy": accuracy_score(label, probability > 0.5),
            "auc": roc_auc_score(label, probability),
        },
        rel=1e-6,
    )


def test_loss_of_very_large_logits_is_finite():
    task = tabular.classifier(tabular.MLP(widths=()), features=1)
    params = {"logits": {"kernel": np.ones((1, 1), np.float32), "bias": np.zeros(1, np.float32)}}
    batch = {"features": np.array([[500.0], [-500.0]], np.float32), "label": np.array([0, 1])}
    loss = jax.jit(task.loss, static_argnums=4)
    total, out = loss(params, {}, batch, jax.random.key(0), False)
    assert float(total) == 1000 and float(out.weight) == 2


def test_dropout_only_while_training():
    model = tabular.MLP(dropout=0.5)
    x = np.ones((4, 3), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    @jax.jit
    def run(key):
        drawn = model.apply(variables, x, train=True, rngs={"dropout": key})
        return drawn, model.apply(variables, x), tabular.MLP().apply(variables, x)

    (a, evaluated, plain), (b, _, _) = (run(jax.random.key(i)) for i in (1, 2))
    assert np.abs(a - b).max() > 1e-3
    np.testing.assert_array_equal(evaluated, plain)


def test_equal_calls_give_one_task():
    assert tabular.classifier(tabular.MLP(), features=5) is TASK


def test_refuses_what_does_not_fit(data):
    with pytest.raises(ValueError, match="classes must be at least 2 names, got 1"):
        tabular.classifier(tabular.MLP(), features=5, classes=("a",))
    with pytest.raises(ValueError, match=r"module.outputs must be 3, got 1"):
        tabular.classifier(tabular.MLP(), features=5, classes=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"module.outputs must be 1, got 2"):
        tabular.classifier(tabular.MLP(outputs=2), features=5)
    unlabelled = {**data, "label": data["label"] - 1}
    with pytest.raises(ValueError, match=r"label must be .*, got -1 .*unlabelled"):
        fit(TASK, unlabelled, optimizer=optax.sgd(0.1), batch_size=10, steps=1)
    short = {**data, "features": data["features"][:, :4]}
    with pytest.raises(ValueError, match=r"features must have rows of shape \(5,\), got \(4,\)"):
        fit(TASK, short, optimizer=optax.sgd(0.1), batch_size=10, steps=1)
