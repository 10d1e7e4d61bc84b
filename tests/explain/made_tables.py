"""A table of numbers and texts, and models of it that need no training."""

import functools
import itertools
import math

import jax
import numpy as np

import jaxops as jo
from jaxops import tabular
from jaxops.data.encoders import fit_encoder

ROWS = 120


@functools.cache
def table():
    """Two numbers, two texts, and a label that depends on three of them."""
    rng = np.random.default_rng(0)
    age, spent = rng.integers(20, 60, ROWS).astype(float), rng.normal(3, 1, ROWS)
    plan = rng.choice(["a", "b"], ROWS).astype(object)
    city = rng.choice(["x", "y", "z"], ROWS).astype(object)
    logit = (age - 40) / 5 + 2 * (plan == "b") - 1.5 * (city == "z") - 0.5
    left = np.where(rng.random(ROWS) < 1 / (1 + np.exp(-logit)), "yes", "no").astype(object)
    return {"age": age, "spent": spent, "plan": plan, "city": city, "left": left}


@functools.cache
def untrained(widths=(8,), classes=True):
    """A network with random parameters, which is as good as another to be explained."""
    columns = table()
    if classes:
        encoder = fit_encoder(columns, label="left")
        width = len(encoder.names)
        task = tabular.classifier(tabular.MLP(widths), width, tuple(encoder.classes))
    else:
        encoder = fit_encoder({n: x for n, x in columns.items() if n != "left"})
        width = len(encoder.names)
        task = tabular.regressor(tabular.MLP(widths), width)
    some = {"features": np.zeros((1, width), np.float32)}
    state = jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=some)
    louder = jax.tree.map(lambda x: 2 * x + 0.1, state.params)
    return jo.Model(task, state._replace(params=louder), tabular.TableReader(encoder))


def some_rows(*numbers):
    """The rows of these numbers, without the label."""
    return {name: x[list(numbers)] for name, x in table().items() if name != "left"}


def log_odds(p):
    return np.log(p / (1 - p))


def by_hand(model, x, background, scale=log_odds):
    """Interventional Shapley values by all orders of the players, from raw rows, in NumPy."""
    names = [*x]
    count, own = len(names), len(x[names[0]])
    others = len(background[names[0]])

    def worth(there):
        mixed = {
            n: np.repeat(x[n], others) if n in there else np.tile(background[n], own) for n in names
        }
        p = model.predict(mixed).probabilities[:, 1].astype(np.float64)
        return scale(p).reshape(own, others).mean(1)

    known = {there: worth(there) for size in range(count + 1)
             for there in map(frozenset, itertools.combinations(names, size))}  # fmt: skip
    values = np.zeros((own, count))
    for order in itertools.permutations(range(count)):
        for place, player in enumerate(order):
            before = frozenset(names[i] for i in order[:place])
            values[:, player] += known[before | {names[player]}] - known[before]
    return values / math.factorial(count), known[frozenset()]
