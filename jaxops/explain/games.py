"""A prediction as a game: one number for each row, of which each player has its part."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops._shapes import next_power_of_two
from jaxops.data.checks import rows as count_of
from jaxops.explain.points import Call, LookUp, Watch, look_ups, watched
from jaxops.model.finished import Model, Program
from jaxops.model.players import Columns, Players, players_of

Array = jax.Array
AT_ONCE, MOST = 2**20, 1024  # numbers and rows that go into one call
SCALES = ("log-odds", "probability")
LEAST = 1e-30  # probability in a logarithm
CHECKED = 8  # rows on which the outputs are compared with the last module's


@dataclass(frozen=True)
class Form:
    """The explained number as a function for JAX; equal forms compile once.

    Attributes:
        function: see `jaxops.model.finished.Program`.
        calls: of the look-ups, whose vectors it takes.
        classes: see `Players`.
        scale: see `game`.
        logits: whether the outputs are the softmax or sigmoid of what the module gives, from which
            log-odds are then exact.
    """

    function: Callable[..., Any]
    calls: tuple[Call, ...]
    classes: str
    scale: str
    logits: bool

    def __call__(self, params: Any, points: Any, columns: Any, target: Array) -> Array:
        """The number of each row, (B,).

        Args:
            params: of the program.
            points: columns of numbers by name, and a list of the vectors of the look-ups.
            columns: all columns.
            target: int (B,).
        """
        numbers, vectors = points
        watch = Watch(dict(zip(self.calls, vectors, strict=True)))
        with nn.intercept_methods(watch):
            outputs = self.function(params, {**columns, **numbers})
        if self.logits:
            return _of_logits(watch.last.reshape(len(target), -1), target, self.classes)
        return scored(outputs, target, self.classes, self.scale, jnp)


def scored(outputs: Any, target: Any, classes: str, scale: str, xp: Any) -> Any:
    """The explained number of each row, (M,).

    Args:
        outputs: (M, K) or (M,), see `Players`.
        target: int (M,), the explained output.
        classes: see `Players`.
        scale: "log-odds", "probability", or "" for numbers as they are.
        xp: `numpy` or `jax.numpy`.

    >>> scored(np.array([0.8, 0.8]), np.array([1, 0]), "one", "log-odds", np).round(4).tolist()
    [1.3863, -1.3863]
    """
    if classes == "one" and outputs.ndim == 1:
        outputs = xp.stack([1 - outputs, outputs], -1)
    outputs = outputs.reshape(len(target), -1)
    own = xp.take_along_axis(outputs, target[:, None], 1)[:, 0]
    if scale != "log-odds":
        return own
    if classes == "each":
        rest = 1 - own
    else:
        others = xp.arange(outputs.shape[1])[None] != target[:, None]
        rest = xp.where(others, outputs, 0).sum(1)
    return xp.log(xp.maximum(own, LEAST)) - xp.log(xp.maximum(rest, LEAST))


def _of_logits(logits: Array, target: Array, classes: str) -> Array:
    """The log-odds of the targets from logits (B, K), or (B, 1) of the second of two classes."""
    if classes == "one" and logits.shape[1] == 1:
        return jnp.where(target == 1, logits[:, 0], -logits[:, 0])
    own = jnp.take_along_axis(logits, target[:, None], 1)[:, 0]
    if classes == "each":
        return own
    others = jnp.arange(logits.shape[1])[None] != target[:, None]
    return own - jax.nn.logsumexp(jnp.where(others, logits, -jnp.inf), axis=1)


@partial(jax.jit, static_argnums=0)
def _numbers(form: Form, params: Any, columns: Any, target: Array) -> Array:
    return form(params, ({}, []), columns, target)


@partial(jax.jit, static_argnums=0)
def _given(function: Any, params: Any, columns: Any) -> tuple[Any, Any]:
    """The outputs, and what the outermost module gave; None where there are several."""
    outputs, watch = watched(function, params, columns)
    return outputs, watch.last


@dataclass(frozen=True, eq=False)
class Game:
    """N rows, their players, and the number that is explained; see `game`.

    Attributes:
        players: of the rows.
        target: int (N,), the explained output of each row.
        scale: "log-odds", "probability", or "" for numbers as they are.
        logits: see `Form`.
        background: columns of K rows, with which absent players are filled in turn; or None.
        given: whether the baseline is a row of the user's, from which look-ups take theirs too.
        noise: of each look-up float (N, ...), which is added to its vectors, in units of the range
            of a row's; see `jaxops.explain.max_sensitivity`.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP(()), features=2), np.ones((1, 2), np.float32)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"features": x}))
    >>> one = game(model, x, target="1")
    >>> kernel = np.asarray(model.state.params["logits"]["kernel"])[:, 0]
    >>> without_first = one.value(np.array([0]), np.array([[False, True]]))
    >>> bool(np.isclose(one.full[0] - without_first[0], kernel[0])), one.scale
    (True, 'log-odds')
    """

    players: Players
    target: np.ndarray
    scale: str
    logits: bool = False
    background: Columns | None = None
    given: bool = False
    noise: tuple[np.ndarray, ...] | None = None

    @cached_property
    def look_ups(self) -> list[LookUp]:
        """The look-ups of the model."""
        return look_ups(self.program, self.players.columns)

    def but(self, **changes: Any) -> "Game":
        """The game with other values of some attributes, and the same look-ups."""
        other = replace(self, **changes)
        if "look_ups" in self.__dict__:  # they are costly to find
            other.__dict__["look_ups"] = self.look_ups
        return other

    @property
    def program(self) -> Program:
        """The model for JAX; see `Players`.

        Raises:
            ValueError: it has none.
        """
        if self.players.program is None:
            raise ValueError("model must be a function for JAX, got one without gradients")
        return self.players.program

    def form(self, calls: tuple[Call, ...] = ()) -> Form:
        """The number as a function for JAX."""
        classes = self.players.classes
        return Form(self.program.function, calls, classes, self.scale, self.logits)

    @cached_property
    def full(self) -> np.ndarray:
        """The number of each row, float64 (N,)."""
        return self.number(self.players.columns, self.target)

    @cached_property
    def empty(self) -> np.ndarray:
        """The number of each row without its players, float64 (N,)."""
        nobody = np.zeros(self.players.real.shape, bool)
        return self.value(np.arange(len(nobody)), nobody, self.background)

    def batch(self, count: int) -> int:
        """The number of rows of one call for `count` rows."""
        elements = sum(int(np.prod(x.shape[1:])) for x in self.players.columns.values())
        return min(MOST, next_power_of_two(count), max(1, AT_ONCE // max(1, elements)))

    def number(
        self, columns: Mapping[str, Any], target: np.ndarray, size: int | None = None
    ) -> np.ndarray:
        """The number of each of M rows of columns, float64 (M,).

        Args:
            columns: as `Players.columns`.
            target: int (M,).
            size: rows of one call, for which it is compiled; by default see `batch`.
        """
        players = self.players
        if players.program is None:
            outputs = np.asarray(players.predict(columns), np.float64)
            return np.asarray(scored(outputs, target, players.classes, self.scale, np), np.float64)
        form, parts = self.form(), []
        for part, count in padded({**columns, "": target}, size or self.batch(len(target))):
            own = part.pop("")
            parts.append(_numbers(form, players.program.params, part, own)[:count])
        return np.concatenate([np.asarray(part, np.float64) for part in parts])

    def value(
        self, rows: np.ndarray, present: np.ndarray, background: Columns | None = None
    ) -> np.ndarray:
        """The number of rows of which only some players are present, float64 (M,).

        Args:
            rows: int (M,), numbers of rows.
            present: bool (M, P).
            background: columns of K rows: the mean over absent players as in each of these; without
                it they are as the baseline says.
        """
        rows, present = np.asarray(rows), np.asarray(present)
        size, total = self.batch(len(rows)), np.zeros(len(rows))
        count = 1 if background is None else count_of(background)
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            for k in range(count):
                other = None if background is None else {n: x[k] for n, x in background.items()}
                columns = self.columns(rows[part], present[part], other)
                total[part] += self.number(columns, self.target[rows[part]], size)
        return total / count

    def columns(
        self, rows: np.ndarray, present: np.ndarray, other: Mapping[str, Any] | None = None
    ) -> Columns:
        """The columns of M rows of which only some players are present.

        Args:
            rows: int (M,), numbers of rows.
            present: bool (M, P).
            other: one row of columns, from which absent players come; by default the baseline.
        """
        players, made = self.players, {}
        if players.without is not None:
            return players.without(rows, present)
        for name, column in players.columns.items():
            x = made[name] = column[rows]
            if name not in players.owners:
                continue
            absent = players.baseline if other is None else {name: np.asarray(other[name])[None]}
            owner, base = of_rows(players.owners[name], rows), of_rows(absent[name], rows)
            if len(owner) == 1:
                there = present[:, np.maximum(owner[0], 0)] | (owner < 0)
            else:
                flat = np.maximum(owner, 0).reshape(len(x), -1)
                there = np.take_along_axis(present, flat, 1).reshape(owner.shape) | (owner < 0)
            made[name] = np.where(there, x, base).astype(x.dtype, copy=False)
        return made


def of_rows(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """What some rows have in an array (N or 1, ...); of a single row it stays as it is."""
    return x[rows] if len(x) > 1 else x


def padded(columns: Mapping[str, Any], size: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Batches of `size` rows, the last one filled by its last row, each with its own rows' number.

    >>> [(part["x"].tolist(), count) for part, count in padded({"x": np.arange(3)}, 2)]
    [([0, 1], 2), ([2, 2], 1)]
    """
    count = count_of(columns)
    for first in range(0, count, size):
        rows = np.minimum(np.arange(first, first + size), count - 1)
        yield {name: x[rows] for name, x in columns.items()}, min(size, count - first)


def game(
    model: Model,
    rows: Any,
    target: Any = None,
    scale: str | None = None,
    baseline: Any = None,
    patch: int = 1,
) -> Game:
    """Rows and their players, and the number of each row that is explained.

    Args:
        model: a finished model.
        rows: as `model.predict` takes them.
        target: the output that is explained: a class or another output by its name or number, or
            one for each row. By default the likeliest class of each row, or the first output.
        scale: of a class "log-odds" (in nats, the default) or "probability" (the default of a model
            that is no function of JAX, such as trees, whose probabilities may be 0). None of
            numbers.
        baseline: rows as `model.predict` takes them, which say what an absent player is: one row,
            or several, the background. By default see `Players.baseline`.
        patch: of an image, the side of the squares of pixels that are one player.

    Raises:
        ValueError: rows that the model cannot read, an unknown target or scale, a baseline for
            words, which are left out, or a patch for what is no image.
    """
    players = players_of(model, rows)
    number = numbered(players, target)
    if scale is None and players.classes:
        scale = "probability" if players.program is None else "log-odds"
    if players.classes and scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    if not players.classes and scale is not None:
        raise ValueError(f"scale must be None for a model without classes, got {scale!r}")
    background, given = None, False
    if baseline is not None:
        if players.without is not None:
            raise ValueError(f"baseline must be None for {players.kind}, which are left out")
        absent = players_of(model, baseline).columns
        given = count_of(absent) == 1
        if given:
            players = players._replace(baseline=absent)
        else:
            background = absent
    if patch != 1:
        players = patched(players, patch)
    one = Game(players, number, scale or "", background=background, given=given)
    if scale != "log-odds" or players.program is None:
        return one
    return replace(one, logits=_gives_logits(players))


def numbered(players: Players, target: Any) -> np.ndarray:
    """The number of the explained output of each row, (N,); see `game`.

    Raises:
        ValueError: an output that the model does not have, or another number of them than of rows.
    """
    count = len(players.ids)
    if target is None:
        return players.target
    several = isinstance(target, Sequence | np.ndarray) and not isinstance(target, str)
    given = list(target) if several else [target] * count
    if len(given) != count:
        raise ValueError(f"target must be one output, or {count} of them, got {len(given)}")
    place: dict[str, int] = {name: i for i, name in enumerate(map(str, players.outputs))}
    for one in given:
        whole = isinstance(one, int | np.integer) and 0 <= one < len(place)
        if str(one) not in place and not whole:
            some = ", ".join([*place][:10]) + ", ..." * (len(place) > 10)
            raise ValueError(f"target must be one of {some}, got {one!r}")
    return np.array([place.get(str(one), one) for one in given], int)


def patched(players: Players, patch: int) -> Players:
    """The players of an image with squares of pixels for players; see `game`."""
    if players.shape is None or not 1 <= patch <= min(players.shape):
        size = "1 for what is no image" if players.shape is None else f"1 to {min(players.shape)}"
        raise ValueError(f"patch must be {size}, got {patch}")
    height, width = (-(-n // patch) for n in players.shape)
    (name,) = players.owners
    y, x = np.unravel_index(players.owners[name], players.shape)
    names = np.array([f"{i},{j}" for i in range(height) for j in range(width)], object)
    every = np.broadcast_to(names, (len(players.ids), len(names)))
    return players._replace(
        names=every,
        real=np.ones(every.shape, bool),
        owners={name: y // patch * width + x // patch},
        shape=(height, width),
    )


def _gives_logits(players: Players) -> bool:
    """Whether the outputs are the softmax or sigmoid of what the outermost module gives."""
    program = players.program
    assert program is not None  # of `game`
    some = {name: x[:CHECKED] for name, x in players.columns.items()}
    outputs, last = jax.device_get(_given(program.function, program.params, some))
    if last is None or np.ndim(last) > 2 or np.size(last) != np.size(outputs):
        return False
    last = last.reshape(outputs.shape)
    sigmoid = players.classes == "each" or outputs.ndim == 1
    again = jax.nn.sigmoid(last) if sigmoid else jax.nn.softmax(last)
    return bool(np.allclose(np.asarray(again), outputs, rtol=1e-4, atol=1e-6))
