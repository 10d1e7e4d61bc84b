"""Weights of rows and of classes, held to scikit-learn."""

from dataclasses import replace

import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.utils.class_weight import compute_sample_weight

import jaxops as jo
from jaxops import tabular
from jaxops.tabular.parts import Roles, parts_of

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)
N = 240
X = RNG.normal(size=(N, 2))
SCORE = X @ [1.0, -0.7] + RNG.normal(0, 1, N)
TABLE = {
    "a": X[:, 0],
    "b": X[:, 1],
    "two": np.where(SCORE > 1.2, "yes", "no").astype(object),
    "three": np.array(["low", "middle", "high"], object)[np.digitize(SCORE, [-1.5, 1])],
}
TRAIN, HELD = ({n: c[rows] for n, c in TABLE.items()} for rows in (slice(200), slice(200, N)))
ADAM = optax.adam(0.05)  # of several tests, which so share their programs
UNEVEN = {"low": 5, "high": 0.3, "middle": 1}


def of(label, part):
    return {name: column for name, column in part.items() if name in ("a", "b", label)}


@pytest.mark.parametrize(("label", "given"), [("two", "balanced"), ("three", UNEVEN)])
def test_a_linear_model_is_the_logistic_regression_of_these_weights(label, given):
    train, held = of(label, TRAIN), of(label, HELD)
    whole = {
        "optimizer": optax.sgd(1.0, 0.8),
        "batch_size": 200,
        "epochs": 100,
        "early_stopping": None,
    }
    model = tabular.fit(
        train, tabular.MLP((), reads=tabular.Reads("standard")), label=label, validation=held,
        class_weights=given, budget=np.inf, progress=False, **whole,
    )  # fmt: skip
    x, other = ((part - X[:200].mean(0)) / X[:200].std(0) for part in (X[:200], X[200:]))
    rival = LogisticRegression(C=1e5, max_iter=1000, class_weight=given).fit(x, train[label])
    assert rival.classes_.tolist() == list(model.task.classes)
    p, answer = rival.predict_proba(other), model.predict(held)
    np.testing.assert_allclose(answer.probabilities, p, atol=2e-3)
    assert (answer.labels == rival.predict(other)).mean() > 0.95
    plain = LogisticRegression(C=1e5).fit(x, train[label]).predict_proba(other)
    assert np.abs(p - plain).max() > 0.2
    # the figures are of the rows as they are
    wanted = log_loss(held[label], answer.probabilities)
    assert model.about["validation"]["log_loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (tabular.MLP((4,)), {"epochs": 2, "optimizer": ADAM}),
        (tabular.HistGradientBoosting(max_iter=5), {}),
    ],
)
def test_weights_of_rows_and_classes_multiply_in_training_alone(method, options):
    weights = RNG.uniform(0.2, 2, 200)
    of_class = compute_sample_weight("balanced", TRAIN["two"])
    held = {**of("two", HELD), "w": np.ones(40)}
    options |= {"label": "two", "weights": "w", "validation": held, "progress": False}
    both, column, plain = (
        tabular.fit({**of("two", TRAIN), "w": w}, method, class_weights=given, **options)
        .predict(HELD).probabilities
        for w, given in (
            (weights, "balanced"), (weights * of_class, None), (np.ones(200), None)
        )
    )  # fmt: skip
    np.testing.assert_allclose(both, column, atol=1e-5)
    assert np.abs(both - plain).max() > 0.02


def test_new_rows_have_the_weights_of_fit(tmp_path):
    w = RNG.uniform(0.2, 2, 200)
    options = {"epochs": 1, "optimizer": ADAM, "progress": False}
    held = {**of("two", HELD), "w": np.ones(40)}
    model = tabular.fit(
        {**of("two", TRAIN), "w": w}, tabular.MLP((4,)), label="two", weights="w",
        class_weights="balanced", validation=held, **options,
    )  # fmt: skip
    jo.save(tmp_path / "m", model)
    model = jo.load(tmp_path / "m")
    of_class = compute_sample_weight("balanced", TRAIN["two"])[:32]
    np.testing.assert_allclose(sorted(model.reader.class_weights), np.unique(of_class), rtol=1e-6)
    alone = replace(model, reader=replace(model.reader, class_weights=()))
    new = {name: column[:32] for name, column in of("two", TRAIN).items()}
    own, product, plain = (
        tabular.update(one, {**new, "w": w}, **options | {"epochs": 9}).predict(HELD).probabilities
        for one, w in ((model, w[:32]), (alone, w[:32] * of_class), (alone, np.ones(32)))
    )
    np.testing.assert_allclose(own, product, atol=1e-5)
    assert np.abs(own - plain).max() > 0.02
    with pytest.raises(ValueError, match="must have a column 'w'"):
        tabular.update(model, new, **options)


def test_classes_weigh_nothing_in_validation():
    roles = Roles("two", None, (), None, None, "w", (), class_weights={"yes": 5})
    w, w_held = RNG.uniform(0.2, 2, 200), RNG.uniform(0.2, 2, 40)
    held = {**of("two", HELD), "w": w_held}
    train, other = parts_of({**of("two", TRAIN), "w": w}, roles, held, None, 0, False).row_weights()
    np.testing.assert_allclose(train, np.where(TRAIN["two"] == "yes", 5 * w, w), rtol=1e-6)
    np.testing.assert_allclose(other, w_held, rtol=1e-6)


def test_recall_rises_where_plain_validation_stops_training():
    options = {"label": "two", "validation": of("two", HELD), "progress": False, "epochs": 12}
    options |= {"optimizer": ADAM}
    rare, (plain, weighted) = TABLE["two"] == "yes", (
        tabular.fit(of("two", TRAIN), tabular.MLP((4,)), class_weights=given, **options)
        .predict(TABLE).labels == "yes"
        for given in ({"no": 1}, {"yes": 8})
    )  # fmt: skip
    assert weighted[rare].mean() > plain[rare].mean() + 0.2


def test_balanced_weights_of_a_fold_are_of_its_train_rows():
    roles = Roles("three", None, (), None, None, None, (), class_weights="balanced")
    parts = parts_of(of("three", TABLE), roles, 0.15, 3, 0, False)
    for rows, held in parts.folds:
        train, none = parts.fold(rows, held).row_weights()
        wanted = compute_sample_weight("balanced", TABLE["three"][rows])
        np.testing.assert_allclose(train, wanted, rtol=1e-6)
        assert none is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_weights": {"maybe": 2}}, "class_weights must be of no, yes, got 'maybe'"),
        ({"class_weights": {"yes": 0}}, "class_weights must be numbers above 0, got 0 for 'yes'"),
        ({"class_weights": {"yes": np.nan}}, "numbers above 0, got nan for 'yes'"),
        ({"class_weights": "even"}, 'class_weights must be "balanced" or weights by class, got'),
        ({"label": "a"}, r"must be None where the label \(a\) is not one class, got 'balanced'"),
        (
            {"label": ["two", "four"]},
            r"must be None where the label \(two, four\) is not one class",
        ),
    ],
)
def test_weights_that_cannot_be(change, message):
    table = {**TABLE, "four": np.where(X[:, 0] > 0, 1, 0)}
    options = {"label": "two", "class_weights": "balanced", "progress": False, **change}
    with pytest.raises(ValueError, match=message):
        tabular.fit(table, tabular.MLP(()), **options)
