"""Explanations by gradients: of the numbers of rows, and of the embeddings of what is looked up."""

import math
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.explain.games import AT_ONCE, Form, Game, of_rows, padded
from jaxops.explain.points import starts
from jaxops.explain.results import Attributions

Array = jax.Array


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
        self._calls = tuple((one.call, one.size) for one in game.look_ups)
        vectors = [np.ones((), bool) for _ in game.look_ups]
        self.plain = {name: plain(game, name) for name in self.numbers}, vectors
        looked_up = sum(math.prod(one.shape) for one in game.look_ups)
        # rows of a batch
        self.size = min(game.batch(len(players.ids)), max(1, AT_ONCE // max(1, looked_up)))

    def batches(self, rows: np.ndarray | None = None, base: Any = None) -> list[Batch]:
        """Some rows of the game in batches.

        Args:
            rows: int (M,); by default all.
            base: one row of columns of numbers in place of the baseline.
        """
        players, made = self.game.players, []
        rows = np.arange(len(players.ids)) if rows is None else rows
        columns = {name: x[rows] for name, x in players.columns.items()}
        for name in players.owners:
            each = of_rows((base or players.baseline)[name], rows)
            columns[f"baseline {name}"] = np.broadcast_to(each, columns[name].shape)
        for i, noise in enumerate(self.game.noise or ()):
            columns[f"noise {i}"] = noise[rows]
        columns |= {"rows": rows, "target": self.game.target[rows]}
        for part, count in padded(columns, self.size):
            own = {name: part[name] for name in players.columns}
            absent = {name: part[f"baseline {name}"] for name in players.owners}
            full, none = [], []
            if self._calls:
                full, none = starts(self.form.function, self._calls, self.params, own)
                if self.game.given:
                    none, _ = starts(self.form.function, self._calls, self.params, own | absent)
            if self.game.noise is not None:
                every = zip(full, self.plain[1], strict=True)
                full = [x + part[f"noise {i}"] * spread(x, p) for i, (x, p) in enumerate(every)]
            numbers = {n: np.asarray(part[n], np.float32) for n in self.numbers}
            bases = {n: np.asarray(absent[n], np.float32) for n in self.numbers}
            made.append(
                Batch(part["rows"], count, (numbers, full), (bases, none), own, part["target"])
            )
        return made

    def along(self, batch: Batch, shares: np.ndarray, weights: np.ndarray) -> Any:
        """The weighted sum of the gradients on the line from the base to the points, as they are.

        Args:
            batch: of B rows.
            shares: (S,) or (S, B), the places on the line; 1 is at the points.
            weights: (S,) or (S, B).
        """
        total = jax.tree.map(jnp.zeros_like, batch.points)
        for share, weight in zip(shares, weights, strict=True):
            total, _ = self._at(batch, total, share, weight)
        return total

    def number(self, batch: Batch, share: Any) -> np.ndarray:
        """The number of each row at a place on the line, () or (B,), float64 (real,)."""
        zero = jax.tree.map(jnp.zeros_like, batch.points)
        return np.asarray(self._at(batch, zero, share, 0.0)[1][: batch.real], np.float64)

    def _at(self, batch: Batch, total: Any, share: Any, weight: Any) -> tuple[Any, Array]:
        rows = len(batch.rows)
        at = tuple(np.full(rows, x, np.float32) for x in (share, weight))
        return _along(self.form, self.params, total, batch.points, batch.base, batch.columns,
                      batch.target, at)  # fmt: skip

    def per_player(self, batch: Batch, elements: Any) -> np.ndarray:
        """Values of the elements, added up for each player, float64 (count, P).

        Args:
            batch: of B rows.
            elements: a value of each element: columns by name, and the look-ups' vectors.
        """
        players, count = self.game.players, batch.real
        numbers, vectors = jax.device_get(elements)
        values = np.zeros((count, players.real.shape[1]))
        each = [(name, x[:count].astype(np.float64)) for name, x in numbers.items()]
        for one, x in zip(self.game.look_ups, vectors, strict=True):
            there = one.places >= 0
            sums = x[:count].astype(np.float64).reshape(count, there.size, -1).sum(-1)
            of_column = np.zeros((count, math.prod(players.columns[one.column].shape[1:])))
            np.add.at(of_column.T, one.places[there], sums[:, there.reshape(-1)].T)
            each.append((one.column, of_column))
        for name, x in each:
            _add(values, of_rows(players.owners[name], batch.rows[:count]), x)
        return values

    @cached_property
    def base(self) -> np.ndarray:
        """The number of each row at the base, float64 (N,)."""
        return np.concatenate([self.number(batch, 0.0) for batch in self.batches()])


def has_gradient(column: np.ndarray) -> bool:
    """Whether a column is of numbers: floats, or the bytes of an image."""
    return column.dtype.kind == "f" or column.dtype == np.uint8


def plain(game: Game, name: str) -> np.ndarray:
    """Which elements of a column are numbers, and no codes of an embedding, bool (1, ...)."""
    found = np.ones((1, *game.players.columns[name].shape[1:]), bool)
    for one in game.look_ups:
        if one.column == name:
            found.reshape(-1)[one.places[one.places >= 0]] = False
    return found


def spread(x: Any, some: np.ndarray) -> Any:
    """The largest less the smallest of some elements of each row, (B, 1, ...); 0 without any.

    >>> spread(np.array([[1.0, 3.0, 90.0]]), np.array([[True, True, False]])).tolist()
    [[2.0]]
    """
    axes = tuple(range(1, x.ndim))
    high = x.max(axes, keepdims=True, initial=-np.inf, where=some)
    low = x.min(axes, keepdims=True, initial=np.inf, where=some)
    return (high - low).clip(0)


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
    for number, batch in enumerate(of.batches()):
        total = jax.tree.map(jnp.zeros_like, batch.points)
        for draw in range(samples):
            points = batch.points
            if noise:
                own = jax.random.fold_in(jax.random.fold_in(key, number), draw)
                points = _noisy(points, of.plain, own, noise)
            one = of.along(batch._replace(points=points), np.ones(1), np.full(1, 1 / samples))
            total = jax.tree.map(jnp.add, total, one)
        parts.append(np.sqrt(of.per_player(batch, jax.tree.map(jnp.square, total))))
    values = np.concatenate(parts)
    settings = {"samples": samples, "noise": noise, "seed": seed} if noise else {}
    return Attributions(values, np.full(len(values), np.nan), settings, signed=False)


@jax.jit
def _noisy(points: Any, plain: Any, key: Array, noise: Any) -> Any:
    leaves, tree = jax.tree.flatten(points)
    made = []
    for i, (x, some) in enumerate(zip(leaves, jax.tree.leaves(plain), strict=True)):
        drawn = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        made.append(x + jnp.where(some, noise * spread(x, some) * drawn, 0))
    return jax.tree.unflatten(tree, made)
