"""Shapley values: exact by all coalitions of few players, or KernelSHAP by some of many."""

import itertools
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.explain.games import Form, Game, padded
from jaxops.explain.results import Attributions

MOST = 12  # players whose 4,096 coalitions are all computed

MANY = 2**14  # coalitions of a size, of which all are listed to draw different ones
AT_ONCE = 2**19  # numbers of columns that are made at a time
Array = jax.Array

Value = Callable[[np.ndarray], Any]
"""What coalitions are worth: bool (C, M), who of M players is there, to float (C, ...)."""


class Shares(NamedTuple):
    """What each of M players contributes to what all are worth together.

    Attributes:
        values: float64 (M, ...); their sum over the players is `everybody - nobody`.
        errors: float64 (M, ...), standard errors from the sampling of coalitions; 0 if all were
            computed.
        nobody: float64 (...), the worth of no player.
        everybody: float64 (...), the worth of all players.
        coalitions: how many different ones were computed.
    """

    values: np.ndarray
    errors: np.ndarray
    nobody: np.ndarray
    everybody: np.ndarray
    coalitions: int


def shapley_values(value: Value, players: int) -> Shares:
    """The Shapley value of each player, from all 2^M coalitions.

    phi_i = sum over S without i of |S|! (M - |S| - 1)! / M! (v(S + i) - v(S)).

    Args:
        value: see `Value`; further axes, such as rows and outputs, are games of their own.
        players: M, from 1 to 12.

    Raises:
        ValueError: no player, or more than 12; worths of another shape, or not finite.

    References:
        Shapley 1953, A value for n-person games.

    >>> gloves = lambda there: there[:, 0] & (there[:, 1] | there[:, 2])  # one left, two right
    >>> shapley_values(gloves, players=3).values.round(4).tolist()
    [0.6667, 0.1667, 0.1667]
    """
    if not 1 <= players <= MOST:
        raise ValueError(
            f"players must be 1 to {MOST} for exact Shapley values, got {players:,}; use "
            "kernel_shap"
        )
    return _of_all(value, players)


def _of_all(value: Value, players: int) -> Shares:
    masks = (np.arange(2**players)[:, None] >> np.arange(players)) & 1 > 0
    worth, shape = _worth(value, masks)
    size = masks.sum(1)
    orders = [math.factorial(s) * math.factorial(players - s - 1) for s in range(players)]
    share = np.array([*orders, 0], np.float64) / math.factorial(players)
    weights = np.where(masks, share[size - 1][:, None], -share[size][:, None])
    values = (weights.T @ worth).reshape(players, *shape)
    ends = worth[0].reshape(shape), worth[-1].reshape(shape)
    return Shares(values, np.zeros_like(values), *ends, len(masks))


def kernel_shap_values(
    value: Value, players: int, samples: int | None = None, seed: int = 0
) -> Shares:
    """Estimates of the Shapley values by weighted least squares over some coalitions.

    They minimise sum_S w_S (v(S) - v(nobody) - sum of phi_i over S)^2 with the sum of all phi_i
    held at v(everybody) - v(nobody), where w_S is (M - 1) / (C(M, s) s (M - s)) for s of M players.
    Sizes of coalitions with few members, or lacking few, are computed completely. Of each other
    size pairs are drawn, a coalition and all players that are not in it, as many as its weight is
    of the rest. If `samples` reach for all 2^M - 2 coalitions, the result is exact. The same
    coalitions serve all further axes of `value`.

    Args:
        value: see `Value`.
        players: M, at least 1.
        samples: how many coalitions, drawn or complete, at least 4 M; by default 2,048 + 2 M, or
            4 M if that is more.
        seed: of the drawing.

    Raises:
        ValueError: no player, too few samples; worths of another shape, or not finite.

    References:
        Lundberg and Lee 2017, arXiv:1705.07874; Covert and Lee 2021, arXiv:2012.01536.

    >>> shares = kernel_shap_values(lambda there: 1.0 * there.sum(1) ** 2, players=15, samples=200)
    >>> shares.values.round(4).tolist() == [15.0] * 15
    True
    """
    if players < 1:
        raise ValueError(f"players must be at least 1, got {players}")
    samples = max(2048 + 2 * players, 4 * players) if samples is None else samples
    if players < 64 and samples >= 2**players - 2:
        return _of_all(value, players)
    if samples < 4 * players:
        raise ValueError(f"samples must be at least {4 * players} (4 a player), got {samples}")
    masks, weights, drawn = _coalitions(players, samples, np.random.default_rng(seed))
    ends = np.array([[False] * players, [True] * players])
    each, place = np.unique(np.concatenate([ends, masks]), axis=0, return_inverse=True)
    worth, shape = _worth(value, each)
    nobody, everybody = worth[place[:2]]
    gain = worth[place[2:]] - nobody
    z = masks.astype(np.float64)
    inverse = np.linalg.inv((weights[:, None] * z).T @ z)
    ones = inverse.sum(1)
    # takes what would change the sum of the values out of a change of them
    project = inverse - np.outer(ones, ones) / ones.sum()
    values = project @ ((weights[:, None] * z).T @ gain)
    values += ones[:, None] / ones.sum() * (everybody - nobody)[None]
    left, squares = gain - z @ values, np.zeros_like(values)
    for first, pairs, missing in drawn:
        one, two = slice(first, first + pairs), slice(first + pairs, first + 2 * pairs)
        pull, half = project @ z[one].T, (left[one] - left[two]) / 2  # of `two` it is the opposite
        spread = np.square(pull) @ np.square(half) - np.square(pull @ half) / pairs
        mass = weights[one].sum() * 2
        squares += missing * mass**2 * np.maximum(spread, 0) / (pairs * (pairs - 1))
    return Shares(
        values.reshape(players, *shape),
        np.sqrt(squares).reshape(players, *shape),
        nobody.reshape(shape),
        everybody.reshape(shape),
        len(each),
    )


def _coalitions(
    players: int, samples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int, float]]]:
    """Coalitions and their weights, whose sum is 1; and where those of each drawn size are.

    Of a drawn size there are the first of its pairs, how many pairs follow before their
    complements, and the share of all pairs that is not drawn.
    """
    sizes = np.arange(1, players // 2 + 1)
    mass = (players - 1) / (sizes * (players - sizes)) * np.where(2 * sizes == players, 1, 2)
    mass /= mass.sum()
    masks, weights, drawn = [], [], []
    left, first, whole = samples, 0, True
    for place, size in enumerate(sizes.tolist()):
        pairs = math.comb(players, size) // (2 if 2 * size == players else 1)
        share = left // 2 if size == 1 else math.floor(left / 2 * mass[place] / mass[place:].sum())
        whole = whole and pairs <= share
        count = pairs if whole else max(2, min(pairs, share))
        if pairs <= MANY:
            some = _all_of(players, size)
            some = some[some[:, 0]] if 2 * size == players else some
            some = some if whole else some[rng.permutation(pairs)[:count]]
        else:
            some = rng.random((count, players)).argsort(1) < size
        masks += [some, ~some]
        weights.append(np.full(2 * count, mass[place] / (2 * count)))
        if not whole:
            drawn.append((first, count, 1 - count / pairs))
        left, first = left - 2 * count, first + 2 * count
    return np.concatenate(masks), np.concatenate(weights), drawn


def _all_of(players: int, size: int) -> np.ndarray:
    """All coalitions of one size, bool (C, M)."""
    members = np.array([*itertools.combinations(range(players), size)])
    masks = np.zeros((len(members), players), bool)
    np.put_along_axis(masks, members, True, 1)
    return masks


def _worth(value: Value, masks: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """What coalitions are worth, float64 (C, K), and the shape of the K."""
    worth = np.asarray(value(masks), np.float64)
    if worth.shape[:1] != masks.shape[:1]:
        raise ValueError(f"value must give {len(masks):,} worths, got shape {worth.shape}")
    if not np.isfinite(worth).all():
        odd = masks[np.argwhere(~np.isfinite(worth))[0][0]]
        raise ValueError(
            f"value must be finite, got NaN or infinity for players {odd.nonzero()[0]}"
        )
    return worth.reshape(len(masks), -1), worth.shape[1:]


def exact_shapley(game: Game) -> Attributions:
    """Shapley values of the players of each row, from all coalitions; see `shapley_values`.

    With a background the worth of a coalition is the mean over it of the number of the row whose
    other players are those of a background row (interventional).

    Args:
        game: whose rows have at most 12 players each.

    Raises:
        ValueError: a row with more players.
    """
    return _explained(game, shapley_values, {})


def kernel_shap(game: Game, samples: int | None = None, seed: int = 0) -> Attributions:
    """KernelSHAP's estimates of the Shapley values of each row; see `kernel_shap_values`.

    Args:
        game: see `exact_shapley`; any number of players.
        samples: coalitions of each row, see `kernel_shap_values`.
        seed: of the drawing.

    Raises:
        ValueError: too few samples.
    """
    method = partial(kernel_shap_values, samples=samples, seed=seed)
    return _explained(game, method, {"samples": samples, "seed": seed})


def _explained(game: Game, method: Callable[..., Shares], settings: dict[str, Any]) -> Attributions:
    """What a method gives for all rows, those with equally many players together."""
    real = game.players.real
    values, errors, baseline = np.zeros(real.shape), np.zeros(real.shape), game.full.copy()
    counts, coalitions = real.sum(1), 0
    for count in sorted({*counts.tolist()} - {0}):
        rows = np.flatnonzero(counts == count)
        places = np.nonzero(real[rows])[1].reshape(len(rows), count)
        shares = method(partial(_worth_of_rows, game, rows, places), count)
        values[rows[:, None], places] = shares.values.T
        errors[rows[:, None], places] = shares.errors.T
        baseline[rows] = shares.nobody
        coalitions = max(coalitions, shares.coalitions)
    told = {**settings, "coalitions": coalitions, "errors": errors.tolist()}
    return Attributions(values, baseline, told)


def _worth_of_rows(
    game: Game, rows: np.ndarray, places: np.ndarray, masks: np.ndarray
) -> np.ndarray:
    """What coalitions (C, M) are worth in each of R rows with M players each, float64 (C, R)."""
    players = game.players
    owners = players.owners.values()
    single = all(len(owner) == 1 and owner.dtype.kind in "iu" for owner in owners)
    if game.background is None:
        single = single and all(len(x) == 1 for x in players.baseline.values())
    if players.program is not None and players.without is None and single:
        worth = _worth_by_jax(game, rows, places, masks)
    else:
        present = np.zeros((len(masks), len(rows), players.real.shape[1]), bool)
        present[:, np.arange(len(rows))[:, None], places] = masks[:, None]
        which = np.tile(rows, len(masks))
        flat = present.reshape(len(which), -1)
        worth = game.value(which, flat, game.background).reshape(len(masks), len(rows))
    worth[masks.all(1)] = game.full[rows]  # as it is explained, also where it is computed otherwise
    return worth


def _worth_by_jax(
    game: Game, rows: np.ndarray, places: np.ndarray, masks: np.ndarray
) -> np.ndarray:
    """`_worth_of_rows` of columns whose elements have the same players in all rows."""
    players = game.players
    others = players.baseline if game.background is None else game.background
    others = {name: x for name, x in others.items() if name in players.owners}
    elements = sum(math.prod(x.shape[1:]) for x in players.columns.values())
    each = max(len(x) for x in others.values()) * elements
    block = min(len(rows), max(1, AT_ONCE // each))
    at_once = min(len(masks), max(1, AT_ONCE // (each * block)))
    present = np.zeros((-(-len(masks) // at_once) * at_once, players.real.shape[1]), bool)
    present[: len(masks), places[0]] = masks
    means = partial(
        _means, game.form(), at_once, game.program.params, others, players.owners, present
    )
    parts, columns = [], {name: x[rows] for name, x in players.columns.items()}
    for part, count in padded({**columns, "": game.target[rows]}, block):
        target = part.pop("")
        parts.append(np.asarray(means(part, target), np.float64)[: len(masks), :count])
    return np.concatenate(parts, 1)


@partial(jax.jit, static_argnums=(0, 1))
def _means(
    form: Form,
    at_once: int,
    params: Any,
    others: Any,
    owners: Any,
    present: Array,
    columns: Any,
    target: Array,
) -> Array:
    """The mean number of R rows over K others that fill in for absent players, (C, R)."""
    count, filled = len(target), max(len(x) for x in others.values())

    def of_coalition(there: Array) -> Array:
        made = {}
        for name, x in columns.items():
            x = jnp.broadcast_to(x[:, None], (count, filled, *x.shape[1:]))
            if name in owners:
                kept = there[jnp.maximum(owners[name], 0)] | (owners[name] < 0)
                x = jnp.where(kept[:, None], x, others[name][None].astype(x.dtype))
            made[name] = x.reshape(count * filled, *x.shape[2:])
        numbers = form(params, ({}, []), made, jnp.repeat(target, filled))
        return numbers.reshape(count, filled).mean(1)

    return jax.lax.map(of_coalition, present, batch_size=at_once)
