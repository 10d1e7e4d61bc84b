import math
from collections import Counter

import numpy as np
import pytest

import jaxops as jo
from jaxops.task import Column, supervised
from jaxops.train.tune import LogUniform, Trial, best, random_search, sample, successive_halving

SPACE = {"rate": LogUniform(1e-4, 1e-1), "width": (64, 128, 256), "name": ("a", "b")}


class Objective:
    """Falls to `floor`, the sooner the larger the budget; notes every unit that is spent."""

    def __init__(self):
        self.spent = Counter()
        self.starts = Counter()

    def __call__(self, config, budget, state):
        done = 0 if state is None else state
        self.starts[config["floor"]] += state is None
        self.spent[config["floor"]] += budget - done
        return config["floor"] + 1 / budget, budget


FLOORS = [5.0, 3.0, 8.0, 1.0, 9.0, 7.0, 2.0, 4.0, 16.0, 15.0, 14.0, 13.0, 12.0, 11.0, 10.0, 6.0]
CONFIGS = [{"floor": floor} for floor in FLOORS]


def test_halving_keeps_the_best_and_goes_on_from_its_state():
    objective = Objective()
    trials = successive_halving(CONFIGS, objective)
    rungs = [[t.config["floor"] for t in trials if t.budget == b] for b in (1, 2, 4, 8)]
    assert rungs == [FLOORS, [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4], [1, 2]]
    assert len(trials) == 16 + 8 + 4 + 2
    assert best(trials) == Trial({"floor": 1.0}, 8, 1.125)
    # each was begun once and had 8, 4, 2 or 1 in all: nothing is trained twice
    assert set(objective.starts.values()) == {1}
    assert sorted(objective.spent.values()) == [1] * 8 + [2] * 4 + [4] * 2 + [8] * 2
    assert objective.spent.total() == 40


def test_halving_by_three_with_a_remainder():
    objective = Objective()
    trials = successive_halving(CONFIGS[:11], objective, budget=5, eta=3)
    assert Counter(t.budget for t in trials) == {5: 11, 15: 3}
    assert objective.spent.total() == 11 * 5 + 3 * 10


def test_a_slow_starter_is_lost_and_random_search_finds_it():
    def train(config, budget, state):  # "slow" is worst at first and best at last
        return {"slow": 10 / budget, "fast": 3.0, "middle": 4.0}[config["kind"]], None

    configs = [{"kind": kind} for kind in ("slow", "fast", "middle", "middle")]
    assert best(successive_halving(configs, train)).config == {"kind": "fast"}
    space = {"kind": ("slow", "fast", "middle")}
    trials = random_search(space, train, trials=12, budget=8)
    assert best(trials) == Trial({"kind": "slow"}, 8, 1.25)
    assert [t.config for t in trials] == sample(space, 12)
    assert {t.budget for t in trials} == {8}


def test_divergence_is_the_worst_value_and_does_not_survive():
    def train(config, budget, state):
        if config["x"] == 0:
            raise FloatingPointError("the loss is nan at step 3")
        return (math.nan if config["x"] == 1 else config["x"]), None

    configs = [{"x": x} for x in (0, 1, 3, 2)]
    trials = successive_halving(configs, train)
    assert [t.config["x"] for t in trials] == [0, 1, 3, 2, 2, 3]
    assert np.isnan([t.value for t in trials[:2]]).all()
    assert best(trials) == Trial({"x": 2}, 2, 2.0)
    assert len(successive_halving(configs[:3], train)) == 3  # one is left: nothing to compare
    with pytest.raises(ValueError, match="one with a value that is not NaN"):
        best(random_search({"x": (0, 1)}, train, trials=3, budget=1))


def test_the_best_is_of_the_largest_budget():
    trials = [Trial({"x": 1}, 1, 0.1), Trial({"x": 2}, 4, 0.3), Trial({"x": 3}, 4, 0.2)]
    assert best(trials).config == {"x": 3}


def test_samples_depend_on_the_seed_alone_and_are_plain_values():
    assert sample(SPACE, 8, seed=3) == sample(SPACE, 8, seed=3)
    assert sample(SPACE, 8, seed=3) != sample(SPACE, 8, seed=4)
    assert sample(SPACE, 8, seed=3)[:5] == sample(SPACE, 5, seed=3)
    assert [type(v) for v in sample(SPACE, 1)[0].values()] == [float, int, str]


def test_the_distribution_is_uniform_in_the_logarithm_and_over_the_choices():
    from scipy import stats

    configs = sample(SPACE, 3000)
    rates = np.array([c["rate"] for c in configs])
    logs = (np.log10(rates) + 4) / 3
    assert stats.kstest(logs, "uniform").pvalue > 0.01
    assert stats.kstest((rates - 1e-4) / (1e-1 - 1e-4), "uniform").pvalue < 1e-9
    table = [[(c["width"], c["name"]) for c in configs].count((w, n)) for w in (64, 128, 256)
             for n in ("a", "b")]  # fmt: skip
    assert stats.chisquare(table).pvalue > 0.01  # each alone, and independent of each other


@pytest.mark.parametrize(
    ("space", "found"),
    [
        ({}, "space must have a name and count must be at least 1, got {} and count=3"),
        ({"width": ()}, "width.* must be a tuple of values, got"),
        ({"optimizer": "adam"}, "optimizer.* must be a tuple of values, got 'adam'"),
        ({"rate": LogUniform(0.0, 1.0)}, "rate.* must have 0 < low < high"),
        ({"rate": LogUniform(1e-2, 1e-3)}, "rate.* must have 0 < low < high"),
        ({"rate": LogUniform(1e-2, math.nan)}, "rate.* must have 0 < low < high"),
    ],
)
def test_spaces_that_cannot_be_meant(space, found):
    with pytest.raises(ValueError, match=found):
        sample(space, 3)


def test_searches_that_cannot_be_meant():
    train = Objective()
    with pytest.raises(ValueError, match=r"count=0"):
        random_search(SPACE, train, trials=0, budget=1)
    with pytest.raises(ValueError, match="budget must be at least 1, got 0"):
        random_search(SPACE, train, trials=1, budget=0)
    with pytest.raises(ValueError, match="budget must be at least 1, got -1"):
        successive_halving(CONFIGS, train, budget=-1)
    for configs, eta in ((CONFIGS[:1], 2), (CONFIGS, 1)):
        with pytest.raises(ValueError, match="configs and eta must be at least 2"):
            successive_halving(configs, train, eta=eta)
    with pytest.raises(ValueError, match="one with a value that is not NaN"):
        best([])
    assert not train.spent


def test_a_halving_of_fits_goes_on_where_each_left_off():
    """The recipe of the module's docstring: steps and Adam's count go on, and the best is found."""
    import flax.linen as nn

    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype(np.float32)
    rows = {"x": x, "y": x @ np.float32([1, -2, 3])}
    task = supervised(
        nn.Dense(1, name="line"),
        lambda batch, key: batch["x"],
        lambda outputs, batch, train: (outputs[:, 0] - batch["y"]) ** 2,
        lambda outputs, batch, weights: {},
        lambda outputs: outputs[:, 0],
        (Column("x", (3,)), Column("y", (), target=True)),
    )
    counts = []

    def train(config, epochs, state):
        done, state = state or (0, None)
        state = jo.fit(
            task, rows, optimizer=jo.optim.adam(config["rate"]), batch_size=16,
            epochs=epochs - done, seed=done, state=state, progress=False,
        )  # fmt: skip
        counts.append((epochs, int(state.step), int(state.opt_state[0].count)))
        return jo.evaluate(task, state, rows)["loss"], (epochs, state)

    configs = [{"rate": rate, "twin": twin} for twin in (0, 1) for rate in (1e-4, 1e-1)]
    trials = successive_halving(configs, train, budget=10)
    assert counts == [(10, 40, 40)] * 4 + [(20, 80, 80)] * 2
    assert best(trials).config["rate"] == 1e-1
    assert best(trials).value < 0.1 * trials[1].value < 0.1 * trials[0].value
