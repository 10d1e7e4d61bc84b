"""Explanations by gradients: of the numbers of rows, and of the embeddings of what is looked up."""

import warnings
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.explain.games import AT_ONCE, Form, Game, padded
from jaxops.explain.points import sized, starts
from jaxops.explain.results import Attributions

Array = jax.Array
NODES, RAISED, MOST_NODES = 32, 4, 2048  # of an integral: at first, each time, at most
TOLERANCE = 1e-3


@partial(jax.jit, static_argnums=0)
def _along(
    form: Form, params: Any, total: Any, points: Any, base: Any, columns: Any, target: Any, at: Any
) -> tuple[Any, Array]:
    """The sum so far plus weight times the gradient at base + share (points - base).

    And the number at that place. `at` is (share, weight), each (B,).
    """
    share, weight = at

    def number(x: Any) -> tuple[Array, Array]:
        numbers = form(params, x, columns, target)
        return numbers.sum(), numbers

    def mixed(x: Array, b: Array) -> Array:
        return b + _over(share, x) * (x - b)

    gradient, numbers = jax.grad(number, has_aux=True)(jax.tree.map(mixed, points, base))
    return jax.tree.map(lambda t, g: t + _over(weight, g) * g, total, gradient), numbers


def _over(share: Array, x: Array) -> Array:
    return share.reshape(-1, *[1] * (x.ndim - 1))


class Batch(NamedTuple):
    """B rows, some of them padding, as the gradient takes them.

    Attributes:
        rows: int (B,), numbers of rows of the game; the last is repeated.
        real: how many are no padding.
        points: the numbers of the rows, and the vectors of their look-ups.
        base: the same of absent players.
        columns: all columns.
        target: int (B,).
    """

    rows: np.ndarray
    real: int
    points: Any
    base: Any
    columns: Any
    target: np.ndarray


class Gradients:
    """The gradient of a game's number, in batches of rows of one size.

    Args:
        game: of a model that is a function for JAX.
        method: the name of the method in messages.

    Raises:
        ValueError: a model without gradients.
    """

    def __init__(self, game: Game, method: str) -> None:
        self.game, players = game, game.players
        works = "occlusion, shapley and kernel_shap"
        if players.program is None:
            raise ValueError(
                f"method must be one of {works} for a model that is no function of JAX, such as "
                f"trees, got {method!r}"
            )
        self.numbers = [n for n in players.owners if has_gradient(players.columns[n])]
        reached = {one.column for one in game.look_ups} | {*self.numbers}
        if lost := [name for name in players.owners if name not in reached]:
            raise ValueError(
                f"method must be one of {works} for a model that reads the integers {lost[0]!r} "
                f"otherwise than by an embedding, got {method!r}"
            )
        self.form = game.form(tuple(one.call for one in game.look_ups))
        self.params = players.program.params
        self._calls = sized(players.program, game.look_ups)

    @cached_property
    def size(self) -> int:
        """The number of rows of a batch."""
        vectors = sum(int(np.prod(one.shape)) for one in self.game.look_ups)
        count = len(self.game.players.ids)
        return min(self.game.batch(count), max(1, AT_ONCE // max(1, vectors)))

    def batches(self, rows: np.ndarray, base: Any = None) -> list[Batch]:
        """Some rows of the game in batches.

        Args:
            rows: int (M,).
            base: columns of numbers of M rows in place of the baseline.
        """
        players, made = self.game.players, []
        columns = {name: x[rows] for name, x in players.columns.items()}
        for name in self.numbers:
            b = players.baseline[name] if base is None else base[name]
            per_row = (
                b[rows] if base is None and len(b) > 1 else np.broadcast_to(b, columns[name].shape)
            )
            columns[f"baseline {name}"] = per_row
        for i, noise in enumerate(self.game.noise or ()):
            columns[f"noise {i}"] = noise[rows]
        columns |= {"rows": rows, "target": self.game.target[rows]}
        for part, count in padded(columns, self.size):
            own = {name: part[name] for name in players.columns}
            full, none = ([], [])
            if self._calls:
                full, none = starts(self.form.function, self._calls, self.params, own)
            if self.game.noise is not None:
                full = [x + part[f"noise {i}"] * _range(x) for i, x in enumerate(full)]
            numbers = {n: np.asarray(part[n], np.float32) for n in self.numbers}
            bases = {n: np.asarray(part[f"baseline {n}"], np.float32) for n in self.numbers}
            made.append(
                Batch(part["rows"], count, (numbers, full), (bases, none), own, part["target"])
            )
        return made

    def along(self, batch: Batch, shares: np.ndarray, weights: np.ndarray) -> Any:
        """The weighted sum of the gradients on the line from the base to the points, as they are.

        Args:
            batch: of B rows.
            shares: (S,), the places on the line; 1 is at the points.
            weights: (S,).
        """
        total = jax.tree.map(jnp.zeros_like, batch.points)
        for share, weight in zip(shares, weights, strict=True):
            at = (np.full(len(batch.rows), share, np.float32),
                  np.full(len(batch.rows), weight, np.float32))  # fmt: skip
            total, _ = _along(self.form, self.params, total, batch.points, batch.base,
                              batch.columns, batch.target, at)  # fmt: skip
        return total

    def per_player(self, batch: Batch, elements: Any) -> np.ndarray:
        """Values of the elements, added up for each player, float64 (count, P).

        Args:
            batch: of B rows.
            elements: a value of each element: columns by name, and the look-ups' vectors.
        """
        players, count = self.game.players, batch.real
        numbers, vectors = jax.device_get(elements)
        values = np.zeros((count, players.real.shape[1]))
        rows = batch.rows[:count]
        for name, x in numbers.items():
            _add(values, _owner(players, name, rows), np.asarray(x[:count], np.float64))
        for one, x in zip(self.game.look_ups, vectors, strict=True):
            looked = one.places.ndim
            x = (
                np.asarray(x[:count], np.float64)
                .reshape(*x[:count].shape[: 1 + looked], -1)
                .sum(-1)
            )
            owner = _owner(players, one.column, rows)
            shared = owner.dtype.kind == "f"
            flat = owner.reshape(len(owner), -1, *([owner.shape[-1]] if shared else []))
            there = one.places >= 0
            picked = flat[:, np.maximum(one.places, 0)]
            none = 0.0 if shared else -1
            _add(values, np.where(there[..., None] if shared else there, picked, none), x)
        return values

    @cached_property
    def base(self) -> np.ndarray:
        """The number of each row at the base, float64 (N,)."""
        return self._numbers(0.0)

    @cached_property
    def full(self) -> np.ndarray:
        """The number of each row at its points, float64 (N,)."""
        return self._numbers(1.0)

    def _numbers(self, share: float) -> np.ndarray:
        parts = []
        for batch in self.batches(np.arange(len(self.game.players.ids))):
            at = (
                np.full(len(batch.rows), share, np.float32),
                np.zeros(len(batch.rows), np.float32),
            )
            zero = jax.tree.map(jnp.zeros_like, batch.points)
            _, numbers = _along(self.form, self.params, zero, batch.points, batch.base,
                                batch.columns, batch.target, at)  # fmt: skip
            parts.append(np.asarray(numbers[: batch.real], np.float64))
        return np.concatenate(parts)


def has_gradient(column: np.ndarray) -> bool:
    """Whether a column is of numbers: floats, or the bytes of an image."""
    return column.dtype.kind == "f" or column.dtype == np.uint8


def _range(x: Array) -> Array:
    """The largest less the smallest element of each row, (B, 1, ...)."""
    axes = tuple(range(1, x.ndim))
    return x.max(axes, keepdims=True) - x.min(axes, keepdims=True)


def _owner(players: Any, name: str, rows: np.ndarray) -> np.ndarray:
    owner: np.ndarray = players.owners[name]
    return owner[rows] if len(owner) > 1 else owner


def _add(values: np.ndarray, owner: np.ndarray, elements: np.ndarray) -> None:
    """Add elements (M, ...) to the values (M, P) of their owners, (M or 1, ...) or shares."""
    count, players = values.shape
    flat = elements.reshape(count, -1)
    if owner.dtype.kind == "f":
        shares = owner.reshape(len(owner), -1, players)
        values += np.einsum("me,mep->mp", flat, np.broadcast_to(shares, (count, *shares.shape[1:])))
        return
    place = np.broadcast_to(owner.reshape(len(owner), -1), flat.shape)
    row, element = np.nonzero(place >= 0)
    np.add.at(values, (row, place[row, element]), flat[row, element])


def _norms(gradient: Any) -> Any:
    """The squares of the elements of a gradient."""
    return jax.tree.map(jnp.square, gradient)


def gradient(game: Game) -> Attributions:
    """The length of the gradient of the number in each player's elements.

    For a player of one number x it is |dF / dx|, of an embedded one the length of the gradient in
    its vector. It says how much a small change would matter, not for what the player speaks.

    Args:
        game: of a model that is a function for JAX.

    References:
        Simonyan et al. 2014, arXiv:1312.6034.

    >>> from jaxops import Model, init_state, optim, tabular
    >>> from jaxops.explain import game
    >>> task, x = tabular.classifier(tabular.MLP(()), features=2), np.ones((1, 2), np.float32)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"features": x}))
    >>> kernel = np.asarray(model.state.params["logits"]["kernel"])[:, 0]
    >>> bool(np.allclose(gradient(game(model, x, "1")).values[0], np.abs(kernel)))
    True
    """
    return _lengths(Gradients(game, "gradient"), 1, 0.0, 0)


def smooth_grad(game: Game, samples: int = 32, noise: float = 0.15, seed: int = 0) -> Attributions:
    """The length of the mean gradient at points with normal noise.

    Args:
        game: of a model that is a function for JAX.
        samples: number of draws.
        noise: standard deviation of the noise, as a share of the range of a row's elements.
        seed: of the noise.

    Raises:
        ValueError: samples or noise that are not positive.

    References:
        Smilkov et al. 2017, arXiv:1706.03825.
    """
    if samples < 1 or not noise > 0:
        raise ValueError(f"samples must be at least 1 and noise above 0, got {samples} and {noise}")
    return _lengths(Gradients(game, "smooth_grad"), samples, noise, seed)


def _lengths(of: Gradients, samples: int, noise: float, seed: int) -> Attributions:
    parts, key = [], jax.random.key(seed)
    for number, batch in enumerate(of.batches(np.arange(len(of.game.players.ids)))):
        total: Any = None
        for draw in range(samples):
            points = batch.points
            if noise:
                points = _noisy(
                    points, jax.random.fold_in(jax.random.fold_in(key, number), draw), noise
                )
            one = of.along(batch._replace(points=points), np.ones(1), np.full(1, 1 / samples))
            total = one if total is None else jax.tree.map(jnp.add, total, one)
        parts.append(np.sqrt(of.per_player(batch, _norms(total))))
    values = np.concatenate(parts)
    settings = {"samples": samples, "noise": noise, "seed": seed} if noise else {}
    return Attributions(values, np.full(len(values), np.nan), settings, signed=False)


@jax.jit
def _noisy(points: Any, key: Array, noise: Any) -> Any:
    leaves, tree = jax.tree.flatten(points)
    made = []
    for i, x in enumerate(leaves):
        x = jnp.asarray(x)
        drawn = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        made.append(x + noise * _range(x) * drawn)
    return jax.tree.unflatten(tree, made)


def input_x_gradient(game: Game) -> Attributions:
    """The gradient in each player's elements times what they differ from the baseline.

    With a baseline of 0 it is "input x gradient"; for a linear model it is exact.

    Args:
        game: of a model that is a function for JAX.

    References:
        Shrikumar et al. 2017, arXiv:1704.02685.
    """
    of, parts = Gradients(game, "input_x_gradient"), []
    for batch in of.batches(np.arange(len(game.players.ids))):
        parts.append(_path(of, batch, np.ones(1), np.ones(1)))
    return Attributions(np.concatenate(parts), of.base)


def _path(of: Gradients, batch: Batch, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = of.along(batch, shares, weights)
    elements = jax.tree.map(lambda t, x, b: t * (x - b), total, batch.points, batch.base)
    return of.per_player(batch, elements)


def integrated_gradients(
    game: Game, steps: int = NODES, tolerance: float = TOLERANCE
) -> Attributions:
    """The gradient's integral on the line from the baseline to the row, times their difference.

    A player with elements x and baseline b has sum over its elements of
    (x - b) * integral over a from 0 to 1 of dF / dx (b + a (x - b)), by Gauss and Legendre's nodes.
    The values of a row add up to F(x) - F(b). Where they miss it by more than the tolerance, the
    row is computed again with four times as many nodes, up to 2,048.

    Args:
        game: of a model that is a function for JAX.
        steps: number of nodes at first.
        tolerance: the largest gap; of numbers that are no log-odds or probabilities it is a share
            of the largest |F(x) - F(b)| of the rows.

    Raises:
        ValueError: fewer than 1 step, a tolerance that is not positive, or several baseline rows.

    Warns:
        UserWarning: a row misses the tolerance with 2,048 nodes too.

    References:
        Sundararajan et al. 2017, arXiv:1703.01365.
    """
    if steps < 1 or not tolerance > 0:
        raise ValueError(
            f"steps must be at least 1 and tolerance above 0, got {steps} and {tolerance}"
        )
    if game.background is not None:
        count = len(next(iter(game.background.values())))
        raise ValueError(
            f"baseline must be one row for integrated_gradients, got {count}; take "
            "method='expected_gradients' for several"
        )
    of = Gradients(game, "integrated_gradients")
    left, wanted = np.arange(len(game.players.ids)), of.full - of.base
    values = np.zeros(game.players.real.shape)
    limit = tolerance * (1.0 if game.scale else max(np.abs(wanted).max(), 1e-30))
    while len(left):
        places, weights = np.polynomial.legendre.leggauss(steps)
        for batch in of.batches(left):
            found = _path(of, batch, (places + 1) / 2, weights / 2)
            values[batch.rows[: batch.real]] = found
        left = left[np.abs(values[left].sum(1) - wanted[left]) > limit]
        if not len(left) or steps >= MOST_NODES:
            break
        steps = min(RAISED * steps, MOST_NODES)
    if len(left):
        gap = np.abs(values[left].sum(1) - wanted[left]).max()
        warnings.warn(
            f"the values of {len(left)} rows miss their sum by up to {gap:.2g} with {steps} steps, "
            f"more than {limit:.2g}; row {left[0]} is the first",
            stacklevel=2,
        )
    return Attributions(values, of.base, {"steps": steps, "tolerance": float(limit)})


def expected_gradients(game: Game, samples: int = 256, seed: int = 0) -> Attributions:
    """Integrated gradients with each row of the background for a baseline, at random places.

    The values of a row add up, up to the error of the draws, to its number less the mean over the
    background. The draws go through the background in turn, and their places on the line are
    spread evenly.

    Args:
        game: of a model that is a function for JAX, with a background: `baseline` of several rows.
        samples: number of draws.
        seed: of the draws.

    Raises:
        ValueError: no samples, no background, or rows with embeddings.

    References:
        Erion et al. 2021, arXiv:1906.10670.
    """
    if samples < 1:
        raise ValueError(f"samples must be at least 1, got {samples}")
    if game.background is None:
        raise ValueError(
            "baseline must be several rows for expected_gradients, got none; take "
            "method='integrated_gradients' for a single one"
        )
    of = Gradients(game, "expected_gradients")
    if game.look_ups:
        raise ValueError(
            "method must be another than expected_gradients for rows with embeddings, whose "
            "baseline is no row"
        )
    rows, rng = np.arange(len(game.players.ids)), np.random.default_rng(seed)
    count = len(next(iter(game.background.values())))
    shares = rng.permutation((np.arange(samples) + rng.random(samples)) / samples)
    turns = np.concatenate([rng.permutation(count) for _ in range(-(-samples // count))])[:samples]
    values = np.zeros(game.players.real.shape)
    for share, turn in zip(shares, turns, strict=True):
        base = {name: game.background[name][[turn]] for name in of.numbers}
        for batch in of.batches(rows, base):
            found = _path(of, batch, np.array([share]), np.array([1 / samples]))
            values[batch.rows[: batch.real]] += found
    return Attributions(values, game.empty, {"samples": samples, "seed": seed})
