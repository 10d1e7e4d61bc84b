"""What the rooms' jobs share: blends, updates, and how many epochs a time allows."""

import jax
import numpy as np
import pytest
import scipy.optimize

import jaxops as jo
from jaxops import tabular
from jaxops.model import selection
from jaxops.train import loop
from jaxops.trust import calibration
from jaxops.trust.evaluation import Evaluation

RNG = np.random.default_rng(0)
TASK = tabular.regressor(tabular.MLP((2,)), features=1)
ROWS = {"features": np.zeros((600, 1), np.float32), "label": np.zeros(600, np.float32)}


def recipe(count, left, epochs=12, **options):
    return {
        "optimizer": jo.optim.sgd(0.1),
        "batch_size": 6,
        "epochs": epochs,
        "left": left,
    } | options


@pytest.mark.parametrize(
    ("seconds", "given", "epochs"),
    [
        (7.0, {}, 6),  # 600 examples of 600 rows a second, and a seventh of the time is left over
        (70.0, {}, 12),
        (0.1, {}, 1),
        (7.0, {"epochs": 9}, 9),
        (7.0, {"checkpoints": "runs/here"}, 12),
    ],
)
def test_epochs_that_a_time_allows(monkeypatch, seconds, given, epochs):
    calls = []

    def fit(task, columns, reports, **settings):
        calls.append(settings)
        reports({"examples_per_second": 600.0})

    monkeypatch.setattr(loop, "fit", fit)
    monkeypatch.setattr(selection.time, "monotonic", lambda: 5.0)  # the steps take no time
    given = {"state": "mine", "metrics": "mine", **given}
    found = selection.settings_within(seconds, TASK, ROWS, recipe, given)
    assert found["epochs"] == epochs and found["left"] == seconds
    assert len(calls) == (1 if len(given) == 2 else 0)
    for call in calls:  # it starts anew, and validates nothing
        assert (call["steps"], call["epochs"]) == (8, None)
        assert call["state"] is None and call["metrics"] is None


def test_the_blend_of_two_that_err_apart_is_better(capsys):
    target = np.linspace(-1, 1, 40).astype(np.float32)

    def fit(shift, left):
        outputs = target + np.float32(shift)
        state = jo.init_state(TASK, jo.optim.sgd(0.1), 0, {n: v[:1] for n, v in ROWS.items()})
        scored = Evaluation(
            "row", np.arange(40), {"mse": (outputs - target) ** 2}, parts={"outputs": outputs}
        )
        return jo.Model(TASK, state, None, {"validation": scored.figures()}), scored

    def loss(outputs):
        return float(((outputs - target) ** 2).mean())

    model = selection.best_of([1.0, -1.0, 3.0], fit, "mse", loss, 60.0, progress=True)
    assert isinstance(model.task, selection.Blend) and model.task.weights == (0.5, 0.5)
    assert model.about["validation"] == {"mse": pytest.approx(0.0, abs=1e-12)}
    assert "blend: mse 0.0000, weights 0.5, 0.5, 0" in capsys.readouterr().out
    alone = selection.best_of([1.0, 2.0], fit, "mse", None, 60.0, progress=False)
    assert alone.task is TASK and alone.about["methods"] == {"1: float": 1.0, "2: float": 4.0}
    with pytest.raises(ValueError, match="method must be at least 1, got an empty list"):
        selection.best_of([], fit, "mse", loss, 60.0, progress=False)


def test_the_weights_are_those_of_the_best_mean_on_the_way():
    target = RNG.normal(size=50)
    members = [target + 1, target - 0.5, target + 9]
    weights = selection.greedy(members, lambda mean: float(((mean - target) ** 2).mean()))
    np.testing.assert_allclose(weights, [1 / 3, 2 / 3, 0])  # 20 picks alone give 7 / 20


def test_probabilities_get_the_temperature_that_validation_needs(tmp_path):
    task = tabular.classifier(tabular.MLP(()), features=1)
    z = RNG.normal(size=(4000, 1)).astype(np.float32)
    label = (RNG.random(4000) < 1 / (1 + np.exp(-z[:, 0]))).astype(int)
    rows = {"features": z, "label": label}
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {n: v[:1] for n, v in rows.items()})
    state = state._replace(params=jax.tree.map(lambda leaf: 0 * leaf + 3, state.params))
    sure = jo.Model(task, state)  # logits 3 z + 3: too sure, and shifted

    def fit(method, left):
        p = sure.outputs({"features": z})
        both = np.where(label == 1, p, 1 - p)
        parts = {"outputs": p}
        return sure, Evaluation("row", np.arange(4000), {"log_loss": -np.log(both)}, parts=parts)

    def loss(p):
        return float(-np.log(np.where(label == 1, p, 1 - p)).mean())

    def warmth(p):
        return calibration.temperature(np.stack([1 - p, p], -1), label)

    model = selection.best_of([0], fit, "log_loss", loss, 60.0, False, warmth)
    logits = 3 * z[:, 0] + 3
    found = scipy.optimize.minimize_scalar(lambda t: loss(1 / (1 + np.exp(-logits / t))), (0.5, 9))
    assert model.task.temperature == pytest.approx(found.x, rel=1e-3) and found.x > 2
    p = model.outputs({"features": z})
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-logits / found.x)), atol=1e-3)
    assert model.about["validation"] == {"log_loss": pytest.approx(found.fun, rel=1e-4)}
    jo.save(tmp_path / "m.model", model)
    np.testing.assert_allclose(jo.load(tmp_path / "m.model").outputs({"features": z}), p, atol=1e-6)
    kept = selection.best_of([0], fit, "log_loss", loss, 60.0, False, lambda p: 1.0)
    assert kept.task is task


def test_a_blend_of_blends_is_one_of_all_their_members():
    first = {n: v[:1] for n, v in ROWS.items()}
    one, two, three = (
        jo.Model(TASK, jo.init_state(TASK, jo.optim.sgd(0.1), seed, first)) for seed in range(3)
    )
    inner = jo.Model(selection.Blend.of([one, two], (0.25, 0.75)))
    x = {"features": RNG.normal(size=(5, 1)).astype(np.float32)}
    blend = selection.Blend.of([inner, three], (0.4, 0.6))
    assert blend.weights == pytest.approx((0.1, 0.3, 0.6))
    wanted = 0.1 * one.outputs(x) + 0.3 * two.outputs(x) + 0.6 * three.outputs(x)
    np.testing.assert_allclose(blend.outputs(x, 10), wanted, rtol=1e-5)
