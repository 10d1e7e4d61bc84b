"""Tests of explanations: curves of deletion and insertion, random parameters, small changes."""

import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxops.explain.explaining import METHODS, check_settings, of_game
from jaxops.explain.games import Game, game
from jaxops.explain.gradients import has_gradient, plain, spread
from jaxops.explain.points import traced
from jaxops.explain.results import Explanation
from jaxops.model.finished import Model

PARTS, LAYERS = 20, 4  # of a curve; how often `checked` explains a model with random parameters
GRADIENTS = ("integrated_gradients", "gradient", "input_x_gradient", "smooth_grad")


class Curve(NamedTuple):
    """The explained number while players leave or come, those of the largest values first.

    Attributes:
        shares: (S + 1,), the share of a row's players that has left or come, from 0 to 1.
        numbers: float64 (N, S + 1), the explained number.
        area: float64 (N,), under the curve.
        chance: float64 (N,), the area where players leave or come in a random order.

    >>> Curve(np.array([0.0, 1.0]), np.array([[2.0, 0.0]]), np.ones(1), np.ones(1)).told("x", 0)
    {'x': 1.0, 'x at random': 1.0}
    """

    shares: np.ndarray
    numbers: np.ndarray
    area: np.ndarray
    chance: np.ndarray

    def told(self, name: str, row: int) -> dict[str, float]:
        """The areas of a row, for a table."""
        return {name: float(self.area[row]), f"{name} at random": float(self.chance[row])}


class Randomisation(NamedTuple):
    """How much an explanation changes when the parameters of layers become random.

    Attributes:
        layers: the layers in the order in which they became random, from the output to the input;
            each stays random.
        correlations: float64 (N, L), Spearman's rank correlation of the absolute values of a row's
            players with those of the model as it is; near 0 where the explanation depends on what
            was learned. Chance alone spreads that of P players by 1 / sqrt(P - 1), their standard
            deviation; NaN of a single player.

    >>> Randomisation(("logits",), np.array([[0.1]])).told("random parameters", 0)
    {'random parameters': 0.1}
    """

    layers: tuple[str, ...]
    correlations: np.ndarray

    def told(self, name: str, row: int) -> dict[str, float]:
        """The correlation of a row where all layers are random, for a table."""
        return {name: float(self.correlations[row, -1])}


class Sensitivity(NamedTuple):
    """The largest change of an explanation by small changes of the rows.

    Attributes:
        largest: float64 (N,), the largest |values' - values| / |values| over the draws, by their
            Euclidean lengths.
        mean: float64 (N,), the mean.

    >>> Sensitivity(np.array([0.2]), np.array([0.1])).told("sensitivity", 0)
    {'sensitivity': 0.2}
    """

    largest: np.ndarray
    mean: np.ndarray

    def told(self, name: str, row: int) -> dict[str, float]:
        """The largest change of a row, for a table."""
        return {name: float(self.largest[row])}


def curve(
    game: Game, values: np.ndarray, insert: bool = False, parts: int = PARTS, seed: int = 0
) -> Curve:
    """The curve of deletion: the number while the players with the largest values leave.

    A good explanation makes it fall quickly, to a small area; with `insert` the players come into
    an empty row, and the area is to be large.

    Args:
        game: of the rows.
        values: (N, P), of an explanation of the same game.
        insert: whether players come, instead of leaving.
        parts: S, number of points of the curve after the first; at most the number of players.
        seed: of the random order.

    Raises:
        ValueError: values of another shape, or fewer than 1 part.

    References:
        Petsiuk et al. 2018, arXiv:1806.07421; Samek et al. 2017, arXiv:1509.06321.

    >>> from jaxops import Model, init_state, optim, tabular
    >>> from jaxops.explain import game
    >>> task, x = tabular.classifier(tabular.MLP(()), features=2), np.ones((1, 2), np.float32)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"features": x}))
    >>> one = game(model, x, "1")
    >>> found = curve(one, np.array([[1.0, 0.0]]))
    >>> found.shares.tolist(), bool(found.numbers[0, 0] == one.full[0])
    ([0.0, 0.5, 1.0], True)
    """
    real = game.players.real
    if values.shape != real.shape:
        raise ValueError(f"values must have shape {real.shape}, got {values.shape}")
    if parts < 1:
        raise ValueError(f"parts must be at least 1, got {parts}")
    shares = np.linspace(0, 1, min(parts, real.shape[1]) + 1)
    numbers = _curve(game, np.where(real, values, -np.inf), shares, insert)
    order = np.random.default_rng(seed).random(real.shape)
    chance = _curve(game, np.where(real, order, -np.inf), shares, insert)
    return Curve(
        shares, numbers, np.trapezoid(numbers, shares, axis=1), np.trapezoid(chance, shares, axis=1)
    )


def _curve(game: Game, values: np.ndarray, shares: np.ndarray, insert: bool) -> np.ndarray:
    """The numbers (N, S + 1) while players go in the order of their values."""
    rank = np.argsort(np.argsort(-values, axis=1, kind="stable"), axis=1)
    every, count = np.arange(len(values)), game.players.real.sum(1)
    numbers = []
    for share in shares:
        gone = rank < np.round(share * count)[:, None]
        numbers.append(game.value(every, gone if insert else ~gone, game.background))
    return np.stack(numbers, 1)


def randomisation(
    game: Game, explanation: Explanation, seed: int = 0, layers: int | None = None
) -> Randomisation:
    """Explain with random parameters, one layer after the other from the output to the input.

    The numbers in each array of a layer are shuffled, so that they keep their distribution. An
    explanation whose values stay nearly the same shows the row, and not what the model learned.

    Args:
        game: of the rows.
        explanation: of the same game.
        seed: of the shuffles.
        layers: explain only so many times, evenly spaced, the last time after all layers; by
            default after every one.

    Raises:
        ValueError: a model that is no function for JAX, or fewer than 1 layer.

    References:
        Adebayo et al. 2018, arXiv:1810.03292 (cascading randomisation).
    """
    program, rng = game.program, np.random.default_rng(seed)
    if layers is not None and layers < 1:
        raise ValueError(f"layers must be at least 1, or None for every one, got {layers}")
    groups = layers_of(game)
    names = list(reversed(groups))
    at = np.unique(np.linspace(len(names), 1, layers or len(names)).round().astype(int))
    leaves, tree = jax.tree.flatten(program.params)
    settings = again(explanation)
    correlations = []
    for number, name in enumerate(names, 1):
        for place in groups[name]:
            leaf = np.asarray(leaves[place])
            leaves[place] = jnp.asarray(rng.permutation(leaf.reshape(-1)).reshape(leaf.shape))
        if number in at:
            other = program._replace(params=jax.tree.unflatten(tree, leaves))
            other_game = game.but(players=game.players._replace(program=other))
            found = METHODS[explanation.method](other_game, **settings).values
            correlations.append(rank_correlation(explanation.values, found, explanation.real))
    return Randomisation(tuple(names[i - 1] for i in at), np.stack(correlations, 1))


def again(explanation: Explanation) -> dict[str, Any]:
    """The settings with which a changed game is explained: as before, with as many steps."""
    known = inspect.signature(METHODS[explanation.method]).parameters
    settings = {name: value for name, value in explanation.settings.items() if name in known}
    return settings | ({"tolerance": np.inf} if "tolerance" in known else {})


def rank_correlation(one: np.ndarray, other: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Spearman's correlation of absolute values for each row, (N,).

    It is 0 where all values are equal, and NaN of fewer than 2 players.

    >>> rank_correlation(np.eye(1, 3), -np.eye(1, 3), np.ones((1, 3), bool)).tolist()
    [1.0]
    """
    found = np.full(len(real), np.nan)
    for row in np.flatnonzero(real.sum(1) > 1):
        a, b = np.abs(one[row, real[row]]), np.abs(other[row, real[row]])
        varied = np.ptp(a) > 0 and np.ptp(b) > 0
        found[row] = scipy.stats.spearmanr(a, b).statistic if varied else 0.0
    return found


def layers_of(game: Game) -> dict[str, list[int]]:
    """The layers with parameters in the order of their calls -> the places of their arrays.

    >>> from jaxops import Model, init_state, optim, tabular
    >>> from jaxops.explain import game
    >>> task, x = tabular.classifier(tabular.MLP((4,)), features=2), np.ones((1, 2), np.float32)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"features": x}))
    >>> list(layers_of(game(model, x)))
    ['hidden_0', 'logits']
    """
    order: dict[str, int] = {}
    groups: dict[str, list[int]] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        order.setdefault("/".join(context.module.path), len(order))
        return call(*args, **kwargs)

    traced(game.program, {name: x[:1] for name, x in game.players.columns.items()}, watch)
    leaves = jax.tree_util.tree_leaves_with_path(game.program.params)
    for place, (path, leaf) in enumerate(leaves):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            name = "/".join(str(key.key) for key in path[:-1] if hasattr(key, "key"))
            groups.setdefault(name, []).append(place)

    def called_at(name: str) -> int:
        parts = name.split("/")  # of which the first may be a collection, such as "params"
        tails = ("/".join(parts[i:]) for i in range(len(parts)))
        return next((order[tail] for tail in tails if tail in order), -1)

    return dict(sorted(groups.items(), key=lambda one: called_at(one[0])))


def max_sensitivity(
    game: Game,
    explanation: Explanation,
    radius: float = 0.02,
    samples: int = 8,
    seed: int = 0,
) -> Sensitivity:
    """How much the values change when the row's numbers change a little.

    Each number, or each number of an embedding, is changed by a uniform draw of at most `radius`
    times the range of its row. It is a lower bound of the sensitivity, since draws are few.

    Args:
        game: of the rows.
        explanation: of the same game.
        radius: of the change, as a share of the range of a row's elements.
        samples: number of draws.
        seed: of the draws.

    Raises:
        ValueError: a radius or samples that are not positive, a model that is no function for JAX,
            or rows without numbers for a method that reads no embeddings.

    References:
        Yeh et al. 2019, arXiv:1901.09392.
    """
    if samples < 1 or not radius > 0:
        raise ValueError(
            f"samples must be at least 1 and radius above 0, got {samples} and {radius}"
        )
    settings = again(explanation)
    length = np.maximum(np.linalg.norm(explanation.values, axis=1), 1e-30)
    changes = []
    for draw in range(samples):
        near = changed(game, explanation.method, radius, np.random.default_rng([seed, draw]))
        found = METHODS[explanation.method](near, **settings).values
        changes.append(np.linalg.norm(found - explanation.values, axis=1) / length)
    return Sensitivity(np.max(changes, 0), np.mean(changes, 0))


def changed(game: Game, method: str, radius: float, rng: np.random.Generator) -> Game:
    """The game of rows whose numbers, and embeddings, are a little different; see above."""
    players, columns = game.players, dict(game.players.columns)
    numbers = [name for name in players.owners if has_gradient(columns[name])]
    for name in numbers:
        x, some = np.asarray(columns[name], np.float32), plain(game, name)
        drawn = radius * spread(x, some) * rng.uniform(-1, 1, x.shape)
        columns[name] = x + np.where(some, drawn, 0).astype(np.float32)
    noise = None
    if method in GRADIENTS and game.look_ups:
        noise = tuple(
            radius * rng.uniform(-1, 1, (len(players.ids), *one.shape)).astype(np.float32)
            for one in game.look_ups
        )
    if not numbers and noise is None:
        raise ValueError(
            f"method must be one of {', '.join(GRADIENTS)} to change {players.kind} a little, got "
            f"{method!r}"
        )
    return game.but(players=players._replace(columns=columns), noise=noise)


def checked(
    model: Model,
    rows: Any,
    method: str = "integrated_gradients",
    target: Any = None,
    *,
    scale: str | None = None,
    baseline: Any = None,
    patch: int = 1,
    seed: int = 0,
    **settings: Any,
) -> Explanation:
    """`explain`, with all tests of the explanation that apply to the model.

    Args:
        model: see `explain`; so are all others but the baseline and the seed.
        rows: N rows.
        method: see `explain`.
        target: see `explain`.
        scale: see `explain`.
        baseline: see `explain`; in deletion and insertion every method has one.
        patch: see `explain`.
        seed: of the method where it draws, and of random orders, parameters and changes.
        **settings: of the method.

    Returns:
        An `Explanation` whose `checks` hold "deletion" and "insertion" (`Curve`), for networks
        "random parameters" (`Randomisation`), and for rows of numbers or embeddings "sensitivity"
        (`Sensitivity`); its `summary()` is a table of them.

    Raises:
        ValueError: see `explain`.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(40.0), "size": np.arange(40) % 7, "left": np.arange(40) // 20}
    >>> model = tabular.fit(table, tabular.MLP((4,)), label="left", epochs=1, progress=False)
    >>> told = checked(model, {"age": [30.0], "size": [2]})
    >>> list(told.checks)
    ['deletion', 'insertion', 'random parameters', 'sensitivity']
    """
    check_settings(method, settings)
    one = game(model, rows, target, scale, baseline, patch)
    if "seed" in inspect.signature(METHODS[method]).parameters:
        settings["seed"] = seed
    told = of_game(one, method, settings)
    checks: dict[str, Any] = {
        "deletion": curve(one, told.values, seed=seed),
        "insertion": curve(one, told.values, insert=True, seed=seed),
    }
    if one.players.program is not None:
        checks["random parameters"] = randomisation(one, told, seed, layers=LAYERS)
        numbers = any(has_gradient(one.players.columns[name]) for name in one.players.owners)
        if numbers or (method in GRADIENTS and one.look_ups):
            checks["sensitivity"] = max_sensitivity(one, told, seed=seed)
    return told._replace(checks=checks)
