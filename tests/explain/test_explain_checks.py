"""The tests that an explanation carries, by hand and as Quantus computes them."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxops as jo
from jaxops import explain, tabular
from jaxops.explain.checking import changed, layers_of, rank_correlation
from jaxops.model.finished import Program


def of(weights, x):
    """A regression with these weights, for rows x."""
    task = tabular.regressor(tabular.MLP(()), features=len(weights))
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {"features": x})
    params = {"logits": {"kernel": np.asarray(weights, np.float32)[:, None],
                         "bias": np.zeros(1, np.float32)}}  # fmt: skip
    return jo.Model(task, state._replace(params=params))


def test_the_curves_of_a_linear_model_by_hand():
    x = np.ones((1, 4), np.float32)
    one = explain.game(of([4.0, 1.0, 3.0, 2.0], x), x)
    values = np.array([[4.0, 1.0, 3.0, 2.0]])
    out = explain.curve(one, values)
    assert out.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(out.numbers, [[10, 6, 3, 1, 0]], atol=1e-5)
    np.testing.assert_allclose(out.area, [15 / 4], rtol=1e-6)  # (5 + 6 + 3 + 1 + 0) / 4
    into = explain.curve(one, values, insert=True)
    np.testing.assert_allclose(into.numbers, [[0, 4, 7, 9, 10]], atol=1e-5)
    assert out.area < out.chance < into.area
    worst = explain.curve(one, -values)
    np.testing.assert_allclose(worst.area, [25 / 4], rtol=1e-6)  # (5 + 9 + 7 + 4 + 0) / 4


def test_random_parameters_and_small_changes_of_a_linear_model():
    """|values| are |w x|: shuffled weights give another order, and a change of x one of w dx."""
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=12), rng.normal(size=(3, 12)).astype(np.float32)
    model = of(weights, x)
    one = explain.game(model, x)
    told = explain.explain(model, x, "input_x_gradient")
    found = explain.randomisation(one, told, seed=3)
    shuffled = np.random.default_rng(3)
    shuffled.permutation(1)  # the bias comes first
    other = shuffled.permutation(weights.astype(np.float32)) * x
    np.testing.assert_allclose(
        found.correlations[:, 0], rank_correlation(told.values, other, told.real), atol=1e-9
    )
    assert found.layers == ("logits",)
    near = explain.max_sensitivity(one, told, radius=0.1, samples=4, seed=5)
    lengths = []
    for draw in range(4):
        moved = changed(one, "input_x_gradient", 0.1, np.random.default_rng([5, draw]))
        change = moved.players.columns["features"] - x
        assert np.abs(change).max() <= 0.1 * np.ptp(x, axis=1).max()
        lengths.append(np.linalg.norm(weights * change, axis=1))
    expected = np.max(lengths, 0) / np.linalg.norm(weights * x, axis=1)
    np.testing.assert_allclose(near.largest, expected, rtol=1e-4)


def test_an_untrained_constant_has_no_correlation():
    assert rank_correlation(np.ones((1, 3)), np.eye(1, 3), np.ones((1, 3), bool)).tolist() == [0.0]
    assert np.isnan(rank_correlation(np.ones((1, 3)), np.ones((1, 3)), np.eye(1, 3) > 0)).all()


def test_layers_come_in_the_order_of_their_calls():
    x = np.ones((1, 3), np.float32)
    task = tabular.classifier(tabular.MLP((4, 2)), features=3)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {"features": x})
    one = explain.game(jo.Model(task, state), x)
    groups = layers_of(one)
    assert [*groups] == ["hidden_0", "hidden_1", "logits"]
    shapes = [leaf.shape for leaf in jax.tree.leaves(one.program.params)]
    assert {shapes[i] for i in groups["hidden_1"]} == {(4, 2), (2,)}
    told = explain.explain(jo.Model(task, state), x, "occlusion")
    assert explain.randomisation(one, told, layers=2).layers == ("logits", "hidden_0")
    # once is where all layers are random, as `told` says
    assert explain.randomisation(one, told, layers=1).layers == ("hidden_0",)
    with pytest.raises(ValueError, match="layers must be at least 1, or None for every one, got 0"):
        explain.randomisation(one, told, layers=0)


class Backwards(nn.Module):
    """Layers whose names are not in the order of their calls."""

    @nn.compact
    def __call__(self, x):
        """Numbers (B, 1)."""
        return nn.Dense(1, name="a")(nn.Dense(2, name="b")(x))


def test_layers_of_variables_come_in_the_order_of_their_calls():
    """As forecasters have them: the collection "params" is no layer."""
    x, module = np.ones((1, 3), np.float32), Backwards()
    one = explain.game(of([1.0, 2.0, 3.0], x), x)
    layer = {name: {"kernel": np.ones(shape, np.float32), "bias": np.zeros(shape[1], np.float32)}
             for name, shape in {"a": (2, 1), "b": (3, 2)}.items()}  # fmt: skip
    variables = {"params": layer}
    program = Program(lambda params, columns: module.apply(params, columns["features"]), variables,
                      one.program.columns)  # fmt: skip
    other = one.but(players=one.players._replace(program=program))
    assert [*layers_of(other)] == ["params/b", "params/a"]


def test_the_seed_is_also_the_method_s(monkeypatch):
    def drawing(game, method, settings):
        raise InterruptedError(f"{method} {settings['seed']} {settings['samples']}")

    monkeypatch.setattr("jaxops.explain.checking.of_game", drawing)
    x = np.ones((1, 2), np.float32)
    with pytest.raises(InterruptedError, match="smooth_grad 5 2"):
        explain.checked(of([1.0, 2.0], x), x, "smooth_grad", seed=5, samples=2)


@pytest.mark.parametrize("given", [{"radius": 0.0}, {"samples": 0}])
def test_settings_out_of_range_are_refused(given):
    x = np.ones((1, 2), np.float32)
    model = of([1.0, 2.0], x)
    told = explain.explain(model, x)
    with pytest.raises(ValueError, match="samples must be at least 1 and radius above 0"):
        explain.max_sensitivity(explain.game(model, x), told, **given)
    with pytest.raises(ValueError, match=r"values must have shape \(1, 2\), got \(2, 2\)"):
        explain.curve(explain.game(model, x), np.ones((2, 2)))
