"""Hyper-parameter search: random search and successive halving.

Both take a function of the user, `train(config, budget, state) -> (value, state)`. It trains a
configuration until it has had `budget` in total (epochs, steps or rows). `state` is what the
previous call for this configuration returned, or `None` at the first call. The function returns a
validation value (lower is better) and the state that the next call needs. With `jaxops.fit`:

    def train(config, epochs, state):
        done, state = state or (0, None)
        state = jo.fit(task, train_rows, optimizer=jo.optim.adam(config["learning_rate"]),
                       batch_size=64, epochs=epochs - done, seed=done, state=state)
        return 1 - jo.evaluate(task, state, validation_rows)["accuracy"], (epochs, state)

This keeps parameters, moments and schedules, and the new seed gives the new epochs another order of
the rows. (To get the results of an uninterrupted run, bit for bit, give each configuration its own
`checkpoints`, and call `fit` with `epochs=budget`, which then resumes.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "LogUniform",
    "Trial",
    "best",
    "random_search",
    "sample",
    "successive_halving",
]

Config = dict[str, Any]
Train = Callable[[Config, int, Any], tuple[float, Any]]


class LogUniform(NamedTuple):
    """A number between `low` and `high` whose logarithm is uniform, such as a learning rate.

    Attributes:
        low: the smallest value, above 0.
        high: the largest value.

    >>> sample({"rate": LogUniform(1e-4, 1e-2)}, 1)[0]["rate"] < 1e-2
    True
    """

    low: float
    high: float


Space = Mapping[str, LogUniform | Sequence[Any]]
"""Name -> a range, or the values to choose from."""


class Trial(NamedTuple):
    """One validation of one configuration.

    Attributes:
        config: name -> value.
        budget: the configuration's total budget so far.
        value: the validation value, lower is better; NaN if training diverged.
    """

    config: Config
    budget: int
    value: float


def sample(space: Space, count: int, seed: int = 0) -> list[Config]:
    """`count` configurations with independent values; a longer list begins with the shorter one.

    Raises:
        ValueError: the space is empty, a name has no values, or a range is not 0 < low < high.

    >>> configs = sample({"rate": LogUniform(1e-4, 1e-2), "width": (128, 256)}, 2)
    >>> [(round(config["rate"], 5), config["width"]) for config in configs]
    [(0.00188, 256), (0.00012, 128)]
    """
    if not space or count < 1:
        raise ValueError(
            f"space must have a name and count must be at least 1, got {space} and {count=}"
        )
    for name, values in space.items():
        if isinstance(values, LogUniform):
            if not 0 < values.low < values.high < math.inf:
                raise ValueError(f"space[{name!r}] must have 0 < low < high, got {values}")
        elif isinstance(values, str) or len(values) == 0:
            raise ValueError(f"space[{name!r}] must be a tuple of values, got {values!r}")
    rng = np.random.default_rng(seed)
    return [{name: _draw(values, rng) for name, values in space.items()} for _ in range(count)]


def _draw(values: LogUniform | Sequence[Any], rng: np.random.Generator) -> Any:
    if isinstance(values, LogUniform):
        return math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    return values[int(rng.integers(len(values)))]


def random_search(
    space: Space, train: Train, *, trials: int, budget: int, seed: int = 0
) -> list[Trial]:
    """Train `trials` configurations drawn from `space`, each for the whole `budget`.

    A grid of equal size tries only a few values of each parameter; random draws try a new value
    each time (Bergstra & Bengio 2012, JMLR 13). A trial that raises FloatingPointError, as `fit`
    does when the loss is not finite, has the value NaN.

    >>> space = {"x": (1, 2, 3)}
    >>> best(random_search(space, lambda c, budget, state: (c["x"], None), trials=9, budget=1))
    Trial(config={'x': 1}, budget=1, value=1.0)
    """
    _check_budget(budget)
    return [_trial(train, config, None, budget)[0] for config in sample(space, trials, seed)]


def successive_halving(
    configs: Sequence[Config], train: Train, *, budget: int = 1, eta: int = 2
) -> list[Trial]:
    """Train all configurations a little, then repeatedly the best `1 / eta` for `eta` times longer.

    Rung k continues the best `n // eta**k` configurations from their states up to a budget of
    `budget * eta**k`, as long as there are two to compare (Jamieson & Talwalkar 2016,
    arXiv:1502.07943; a bracket of Hyperband, Li et al. 2018, arXiv:1603.06560). The states of the
    others are released. A rung costs at most `n * budget`, so 16 configurations cost 40 budgets,
    and the last two get 8 each. A trial that raises FloatingPointError counts as the worst value.

    Args:
        configs: the configurations to compare; see `sample`.
        train: the user's function; see the module.
        budget: the budget of each configuration in the first rung.
        eta: one of `eta` configurations continues.

    Returns:
        The trials of all rungs in order; see `best`.

    Raises:
        ValueError: fewer than two configurations, a budget below 1, or an eta below 2.

    >>> configs = [{"x": x} for x in (3, 1, 4, 2)]
    >>> [trial.config["x"] for trial in successive_halving(configs, lambda c, *_: (c["x"], None))]
    [3, 1, 4, 2, 1, 2]
    """
    _check_budget(budget)
    if len(configs) < 2 or eta < 2:
        raise ValueError(
            f"configs and eta must be at least 2, got {len(configs)} configs and eta {eta}"
        )
    trials: list[Trial] = []
    alive: list[tuple[Config, Any]] = [(config, None) for config in configs]
    kept = len(configs)
    while len(alive) > 1:
        # popped, so that no second reference keeps the old state in memory
        rung = [_trial(train, *alive.pop(0), budget) for _ in range(len(alive))]
        trials += [trial for trial, _ in rung]
        rung = [pair for pair in rung if not math.isnan(pair[0].value)]
        rung.sort(key=lambda pair: pair[0].value)
        kept, budget = kept // eta, budget * eta
        alive = [(trial.config, state) for trial, state in rung[:kept]]
    return trials


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the lowest value among those with the largest budget.

    Trials with smaller budgets are not comparable.

    Raises:
        ValueError: there are no trials, or none has a value that is not NaN.

    >>> best([Trial({"x": 1}, 1, 0.1), Trial({"x": 2}, 4, 0.3)]).config
    {'x': 2}
    """
    longest = max((trial.budget for trial in trials), default=0)
    valued = [t for t in trials if t.budget == longest and not math.isnan(t.value)]
    if not valued:
        raise ValueError(f"trials must have one with a value that is not NaN, got {list(trials)}")
    return min(valued, key=lambda trial: trial.value)


def _trial(train: Train, config: Config, state: Any, budget: int) -> tuple[Trial, Any]:
    try:
        value, state = train(config, budget, state)
    except FloatingPointError:
        value, state = math.nan, None
    return Trial(config, budget, float(value)), state


def _check_budget(budget: int) -> None:
    if budget < 1:
        raise ValueError(f"budget must be at least 1, got {budget}")
