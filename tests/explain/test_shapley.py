"""Shapley values against all orders by hand, linear models, shap's numbers, and their errors."""

import itertools
import math

import numpy as np
import pytest
from made_tables import by_hand, some_rows, table, untrained

import jaxops as jo
from jaxops import explain, tabular, text
from jaxops.explain.shapley import kernel_shap_values, shapley_values


def random_game(players, outputs=2, seed=0):
    """A game with a random worth for each coalition; and its table."""
    worth = np.random.default_rng(seed).normal(size=(2**players, outputs))
    return lambda there: worth[there @ (2 ** np.arange(players))]


def orders(value, players):
    """The Shapley values by the average over all orders."""
    total, count = 0, 0
    for order in itertools.permutations(range(players)):
        there = np.zeros((players + 1, players), bool)
        for place, player in enumerate(order):
            there[place + 1 :, player] = True
        gains = np.diff(value(there), axis=0)
        total, count = total + gains[np.argsort(order)], count + 1
    return total / count


@pytest.mark.parametrize("players", [1, 2, 5])
def test_exact_values_are_the_mean_over_all_orders(players):
    value = random_game(players)
    found = shapley_values(value, players)
    np.testing.assert_allclose(found.values, orders(value, players), atol=1e-12)
    np.testing.assert_allclose(found.values.sum(0), found.everybody - found.nobody, atol=1e-12)
    assert found.coalitions == 2**players
    # least squares over all coalitions is the same
    again = kernel_shap_values(value, players)
    np.testing.assert_allclose(again.values, found.values, atol=1e-12)


def test_players_that_are_alike_and_players_that_do_nothing():
    """The axioms, and the glove game."""
    found = shapley_values(lambda there: there[:, 0] & (there[:, 1] | there[:, 2]), 4).values
    np.testing.assert_allclose(found, [2 / 3, 1 / 6, 1 / 6, 0], atol=1e-12)


def additive_with_pairs(players, seed=0):
    """A game of single players and pairs, whose Shapley values are known: half of each pair."""
    rng = np.random.default_rng(seed)
    alone, pairs = rng.normal(size=players), np.triu(rng.normal(size=(players, players)), 1)
    truth = alone + (pairs.sum(0) + pairs.sum(1)) / 2

    def value(there):
        z = there.astype(float)
        return 3 + z @ alone + np.einsum("ci,ij,cj->c", z, pairs, z)

    return value, truth


def test_paired_samples_are_exact_for_pairs_of_players():
    """Covert and Lee: a game of pairs is fitted without an error by pairs of coalitions.

    A coalition and its complement have the same interactions of pairs, less what is linear.
    """
    value, truth = additive_with_pairs(20)
    found = kernel_shap_values(value, 20, samples=400)
    np.testing.assert_allclose(found.values, truth, atol=1e-9)
    np.testing.assert_allclose(found.values.sum(), found.everybody - found.nobody, atol=1e-12)
    assert found.errors.max() < 1e-9 and found.coalitions <= 402


def test_thousands_of_players_have_enough_samples_by_default(monkeypatch):
    def drawing(players, samples, rng):
        raise InterruptedError(str(samples))

    monkeypatch.setattr("jaxops.explain.shapley._coalitions", drawing)
    with pytest.raises(InterruptedError, match=r"^12288$"):  # 4 a player; 2,048 + 2 M is fewer
        kernel_shap_values(lambda there: there.sum(1), 3072)


def hard(there):
    """A game of 16 players whose worth is no sum: the product over groups of three, and a limit."""
    z = there.astype(float)
    triples = sum((i + 1) * z[:, 3 * i : 3 * i + 3].prod(1) for i in range(5))
    return triples + np.maximum(z.sum(1) - 8, 0)


def hard_truth():
    """Each product is shared by its three; the limit, which is alike for all, by 16."""
    each = np.repeat(np.arange(1, 6) / 3, 3) + 8 / 16
    return np.append(each, 8 / 16)


def test_errors_say_how_far_the_estimates_are():
    estimates = [kernel_shap_values(hard, 16, samples=600, seed=seed) for seed in range(40)]
    values = np.stack([one.values for one in estimates])
    errors = np.stack([one.errors for one in estimates])
    z = (values - hard_truth()[None]) / errors
    assert 0.9 < (np.abs(z) < 1.96).mean() < 0.985  # 0.95
    np.testing.assert_allclose(values.std(0, ddof=1), errors.mean(0), rtol=0.35)
    np.testing.assert_allclose(values.mean(0), hard_truth(), atol=4 * errors.mean() / math.sqrt(40))
    far = kernel_shap_values(hard, 16, samples=6000)
    assert (
        far.errors.mean() < errors.mean() / 2.5
    )  # more than by the root of 10, less what is whole


def test_a_table_s_cells_by_hand():
    """The model, its encoder and the background, by NumPy and all orders: exact and KernelSHAP."""
    model, rows, background = untrained(), some_rows(3, 77), some_rows(*range(0, 120, 12))
    want, base = by_hand(model, rows, background)
    found = explain.explain(model, rows, "shapley", "yes", baseline=background)
    assert [*found.names[0]] == ["age", "spent", "plan", "city"] and found.kind == "cells"
    np.testing.assert_allclose(found.values, want, atol=2e-5)
    np.testing.assert_allclose(found.baseline, base, atol=2e-5)
    np.testing.assert_allclose(found.values.sum(1) + found.baseline, found.outputs, atol=1e-10)
    again = explain.explain(model, rows, "kernel_shap", "yes", baseline=background)
    np.testing.assert_allclose(again.values, found.values, atol=1e-6)
    assert again.settings["coalitions"] == 16


def test_a_linear_model_s_values_are_its_weights_times_the_distances():
    """w (x - mean of the background), in log-odds, summed over the features of a column."""
    model, rows, background = untrained(()), some_rows(5), some_rows(*range(40))
    features = lambda some: model.reader.columns(some)[1]["features"].astype(np.float64)  # noqa: E731
    kernel = np.asarray(model.state.params["logits"]["kernel"], np.float64)[:, 0]
    each = kernel * (features(rows)[0] - features(background).mean(0))
    want = [each[0], each[1], each[2:4].sum(), each[4:].sum()]
    assert model.reader.encoder.names == [
        *("age", "spent", "plan=a", "plan=b", "city=x", "city=y", "city=z")
    ]
    for method in ("shapley", "kernel_shap"):
        found = explain.explain(model, rows, method, "yes", baseline=background)
        np.testing.assert_allclose(found.values[0], want, atol=1e-5)


def interventional(function, x, background):
    """The worth of coalitions of the columns of each row: the mean over the background."""

    def value(there):
        mixed = np.where(there[:, None, None], x[None, :, None], background[None, None])
        flat = mixed.reshape(-1, x.shape[1])
        return function(flat).reshape(*mixed.shape[:3]).mean(2)

    return value


# shap 0.51.0, ExactExplainer(few, maskers.Independent(BACKGROUND))(X).values, from which
# KernelExplainer(few, BACKGROUND).shap_values(X, nsamples=1000, l1_reg=False) is 6e-15 apart
X = np.array([
    [0.13, -0.13, 0.64, 0.1, -0.54],
    [0.36, 1.3, 0.95, -0.7, -1.27],
    [-0.62, 0.04, -2.33, -0.22, -1.25],
])  # fmt: skip
BACKGROUND = np.array([
    [-0.73, -0.54, -0.32, 0.41, 1.04],
    [-0.13, 1.37, -0.67, 0.35, 0.9],
    [0.09, -0.74, -0.92, -0.46, 0.22],
    [-1.01, -0.21, -0.16, 0.54, 0.21],
    [0.36, -0.65, -0.13, 0.78, 1.49],
    [-1.26, 1.51, 1.35, 0.78, 0.26],
    [-0.31, 1.46, 1.96, 1.8, 1.32],
    [0.36, -1.21, -0.0, 0.66, -1.29],
])  # fmt: skip
BY_SHAP = np.array([
    [0.5417787001, 0.1099598773, -0.4784375, 0.2469125, 0.3149125],
    [1.1594087381, 0.1758101673, 0.0144625, 0.5189125, 0.0429125],
    [-0.2073749777, 0.1012170295, 4.5408625, 0.3557125, 0.2061125],
])  # fmt: skip


def few(z):
    product = np.tanh(z[:, 0] * z[:, 1]) - z[:, 3] * np.maximum(z[:, 4], 0)
    return product + z[:, 2] ** 2 + z[:, 0]


def test_exact_values_are_shap_s():
    found = shapley_values(interventional(few, X, BACKGROUND), 5)
    np.testing.assert_allclose(found.values.T, BY_SHAP, atol=1e-9)
    np.testing.assert_allclose(found.nobody, -0.2124244687, atol=1e-9)


# the mean and the standard deviation of 20 estimates by shap 0.51.0 (seeds 0 to 19),
# KernelExplainer(many, np.array(OTHERS)).shap_values(np.array([ROW]), nsamples=400, l1_reg=False)
ROW = [0.4, 0.43, 0.7, -1.18, -0.66, -0.44, -1.17, 1.74, -0.5, 0.33, -0.26, 1.58, 1.32]
OTHERS = [
    [-0.63, -0.38, -1.09, -1.28, 0.63, 0.58, 1.29, -0.75, 1.69, -0.29, 1.57, -0.43, -0.74],
    [0.25, 1.03, 0.16, -0.59, -1.34, -1.4, 0.5, 0.99, -0.16, -1.07, 0.87, -1.28, -0.71],
    [0.62, -2.25, 0.39, -0.58, 0.11, -0.08, 0.2, 0.69, -0.76, 1.42, 0.73, 0.84, 1.16],
    [0.79, 0.84, 0.08, -1.43, -0.14, -0.77, -1.42, 0.26, -0.57, -1.03, -1.04, 0.27, 0.36],
    [1.32, -0.01, 1.04, 1.4, 1.15, -2.37, 1.23, 0.34, 0.42, 0.37, 0.38, 0.32, -0.36],
]
MEAN_OF_SHAP = [
    *(-0.0022843065, 0.0062073875, -0.1433967382, 0.0740348715, -0.0437405843, 0.0289372474),
    *(-0.0719925957, -0.0331606772, -0.0075120264, -0.2461531587, -0.3736607969, -0.048096164),
    1.3814004906,
]
SD_OF_SHAP = [
    *(0.013579805, 0.0150235325, 0.0153952142, 0.0166056443, 0.0130694006, 0.0132172698),
    *(
        0.0170845802,
        0.015673556,
        0.019170138,
        0.013537547,
        0.0133745311,
        0.0169476871,
        0.0165089529,
    ),
]


def many(z):
    waves = np.tanh(z[:, :4].sum(1)) * z[:, 4] + np.sin(z[:, 5:9]).prod(1)
    return waves + z[:, 9] * z[:, 10] * z[:, 11] + z[:, 12]


def test_estimates_are_shap_s_within_the_errors_of_both():
    value = interventional(many, np.array([ROW]), np.array(OTHERS))
    found = kernel_shap_values(value, 13, samples=400)
    error = np.hypot(found.errors[:, 0], np.array(SD_OF_SHAP) / np.sqrt(20))
    assert (np.abs(found.values[:, 0] - MEAN_OF_SHAP) < 4 * error).all()
    exact = kernel_shap_values(value, 13, samples=2**13)
    assert exact.coalitions == 2**13 and exact.errors.max() == 0
    assert (np.abs(found.values - exact.values)[:, 0] < 4 * found.errors[:, 0]).all()
    # as exact as shap with as many coalitions
    assert found.coalitions <= 402 and found.errors.mean() < 1.05 * np.mean(SD_OF_SHAP)


@pytest.mark.slow
def test_trees_by_hand(one_thread):
    """No function of JAX: their probabilities, and counterfactuals that they themselves say."""
    method = tabular.HistGradientBoosting(max_iter=20, learning_rate=0.3)
    model = tabular.fit(table(), method, label="left", progress=False)
    rows, background = some_rows(3, 77), some_rows(1, 5, 60)
    want, base = by_hand(model, rows, background, scale=lambda p: p)
    for name in ("shapley", "kernel_shap"):
        found = explain.explain(model, rows, name, "yes", baseline=background)
        np.testing.assert_allclose(found.values, want, atol=1e-6)
        np.testing.assert_allclose(found.baseline, base, atol=1e-6)
    label = model.predict(some_rows(3)).labels[0]
    other = "yes" if label == "no" else "no"
    changed = explain.counterfactuals(model, some_rows(3), table(), other, count=1).rows
    assert model.predict(changed).labels[0] == other


def test_words_left_out_are_players_too():
    """A text model, whose texts have other numbers of words: by hand over all orders."""
    texts = ["my card is lost", "lost card"]
    read = text.NGrams(context=8, vocabulary=64, words=(1, 2), characters=(0, 0))
    task = text.classifier(text.NGramBag(64, classes=3, width=4), 8, ("card", "lost", "rate"))
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, read(texts))
    rng = np.random.default_rng(0)
    params = {
        "embedding": rng.normal(size=(64, 4)).astype(np.float32),
        "gate": rng.normal(size=64).astype(np.float32),
        "logits": {"kernel": rng.normal(size=(4, 3)).astype(np.float32), "bias": np.zeros(3)},
    }
    model = jo.Model(task, state._replace(params=params), text.TextReader(read))
    found = explain.explain(model, texts, "shapley", target="lost")
    again = explain.explain(model, texts, "kernel_shap", target="lost")
    assert found.names[1].tolist()[:2] == ["lost", "card"] and found.real.sum(1).tolist() == [4, 2]
    np.testing.assert_allclose(found.values, again.values, atol=1e-9)
    np.testing.assert_allclose(found.values.sum(1) + found.baseline, found.outputs, atol=1e-9)
    assert (found.values[1, 2:] == 0).all()
    one = explain.game(model, texts, target="lost")

    def value(there):
        return one.value(np.ones(len(there), int), np.pad(there, ((0, 0), (0, 2))))

    np.testing.assert_allclose(found.values[1, :2], orders(value, 2), atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shapley_values(hard, 16), "players must be 1 to 12 for exact Shapley values, got"),
        (lambda: kernel_shap_values(hard, 16, 63), "samples must be at least 64"),
        (lambda: kernel_shap_values(hard, 0), "players must be at least 1, got 0"),
        (lambda: shapley_values(lambda there: np.ones(3), 2), "value must give 4 worths"),
        (lambda: shapley_values(lambda t: t[:, 0] / (t.sum(1) - 1), 2), "value must be finite"),
    ],
)
def test_what_cannot_be_shared_is_refused(call, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message):
        call()
