"""Shapley values against all orders by hand, linear models, shap's numbers, and their errors."""

import itertools
import math

import numpy as np
import pytest
from made_tables import by_hand, some_rows, untrained

from jaxops import explain
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
    estimates = [kernel_shap_values(hard, 16, samples=600, seed=seed) for seed in range(60)]
    values = np.stack([one.values for one in estimates])
    errors = np.stack([one.errors for one in estimates])
    z = (values - hard_truth()[None]) / errors
    assert 0.9 < (np.abs(z) < 1.96).mean() < 0.985  # 0.95
    np.testing.assert_allclose(values.std(0, ddof=1), errors.mean(0), rtol=0.35)
    np.testing.assert_allclose(values.mean(0), hard_truth(), atol=4 * errors.mean() / math.sqrt(60))
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
