"""Explanations of recommenders by past events and of forecasts by lags."""

import jax
import numpy as np
import pytest

import jaxops as jo
from jaxops import explain, forecast, recommend
from jaxops.recommend.models.sequence import SequenceModel


@pytest.fixture(scope="module")
def sasrec():
    """A small SASRec with random parameters for ten items."""
    items = np.array([f"item {i}" for i in range(10)], object)
    module = recommend.sasrec(items=10, context=5, width=8, depth=1)
    params = module.init(jax.random.key(0), np.zeros((1, 5), np.int32))["params"]
    rng = np.random.default_rng(0)
    params["embedding"]["tokens"] = rng.normal(size=(11, 8)).astype(np.float32)
    closed = recommend.Recommender(SequenceModel(module), params, items, np.ones(10))
    return jo.Model(closed, None, recommend.LogReader())


@pytest.mark.slow
def test_events_left_out_change_the_score_as_recommend_says(sasrec):
    histories = [["item 3", "item 7", "item 1"], ["item 2"]]
    told = explain.explain(sasrec, histories, "occlusion")
    best = sasrec.predict(histories, k=1)
    assert told.targets.tolist() == [one for (one,) in best.ids()]
    np.testing.assert_allclose(told.outputs, best.scores[:, 0], rtol=1e-5)
    assert told.names.tolist() == [histories[0], ["item 2", "", ""]]

    def score(history, item):
        every = sasrec.predict([history], k=10, exclude_seen=False)
        return every.scores[0][every.ids()[0].index(item)]

    for i in range(3):
        left = histories[0][:i] + histories[0][i + 1 :]
        fall = told.outputs[0] - score(left, told.targets[0])
        np.testing.assert_allclose(told.values[0, i], fall, atol=1e-4)


@pytest.mark.slow
def test_events_by_gradients_are_complete_and_may_have_any_target(sasrec):
    histories = [["item 3", "item 7", "item 1"], ["item 2"]]
    told = explain.explain(sasrec, histories, target="item 9")
    assert told.gap.max() < 1e-3 * np.abs(told.outputs - told.baseline).max() + 1e-6
    assert told.unit() == "item 9" and (told.values[1, 1:] == 0).all()
    assert np.abs(told.values[0]).min() > 0
    checked = explain.checked(sasrec, histories[:1])
    assert [*checked.checks] == ["deletion", "insertion", "random parameters", "sensitivity"]


def test_a_recommender_without_embeddings_is_explained_by_leaving_out():
    log = recommend.events({"user": list("aabbc"), "item": list("xyxyz")}, time=None)
    model = jo.Model(
        recommend.fitted(recommend.ItemKNN(neighbours=2, shrink=0.0), log),
        None,
        recommend.LogReader(),
    )
    told = explain.explain(model, [["x"]], "occlusion", target="y")
    # without a history, a user is scored by the items' shares of the events
    np.testing.assert_allclose(told.values[0, 0], told.outputs[0] - 2 / 5, rtol=1e-6)
    with pytest.raises(ValueError, match="reads the integers 'history' otherwise"):
        explain.explain(model, [["x"]])
    with pytest.raises(ValueError, match="histories must have an item of the catalogue each"):
        explain.explain(model, [["never seen"]], "occlusion")


def test_lags_of_a_linear_forecaster_are_its_weights():
    rng = np.random.default_rng(0)
    series = forecast.from_arrays(
        ["a", "b"], rng.normal(5, 2, (2, 20)), start="2024-01-01", frequency="D"
    )
    module = forecast.NLinear(context=6, horizon=2)
    kernel, bias = rng.normal(size=(6, 2)).astype(np.float32), np.ones(2, np.float32)
    scaling = forecast.Scaling("none", np.zeros((1, 1)), np.ones((1, 1)), np.zeros(0))
    closed = forecast.Forecaster(
        module, {"params": {"kernel": kernel, "bias": bias}}, scaling,
        ("value",), (), (), (), "D",
    )  # fmt: skip
    model = jo.Model(closed, None, forecast.SeriesReader(2, "D"))
    told = explain.explain(model, series, target="step 2")
    x = series.values.reshape(2, 20)[:, -6:]
    weights = kernel[:, 1].copy()
    weights[-1] += 1 - kernel[:, 1].sum()  # y = last + (x - last) @ kernel + bias
    np.testing.assert_allclose(told.outputs, x @ weights + 1, rtol=1e-5)
    np.testing.assert_allclose(told.values, weights * (x - x.mean(1, keepdims=True)), atol=1e-5)
    assert told.names[0].tolist() == [f"lag {lag}" for lag in range(6, 0, -1)]
    np.testing.assert_allclose(told.cells.astype(float), x, rtol=1e-6)
    bars = told.plot(row=1).axes[0].patches
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in bars] == [-6, -5, -4, -3, -2, -1]
    other = jo.Model(forecast.Baseline("repeat_last"), None, forecast.SeriesReader(2, "D"))
    with pytest.raises(ValueError, match="model must be a Forecaster to be explained"):
        explain.explain(other, series)
