"""Explanations by the gradient along a line from a baseline to the row, whose values add up."""

import warnings

import jax
import numpy as np

from jaxops.data.checks import rows as count_of
from jaxops.explain.games import Game
from jaxops.explain.gradients import Batch, Gradients
from jaxops.explain.results import Attributions

NODES, MOST_NODES = 32, 2048  # of an integral, at first and at most
TOLERANCE = 1e-3


def input_x_gradient(game: Game) -> Attributions:
    """The gradient in each player's elements times what they differ from the baseline.

    With a baseline of 0 it is "input x gradient"; for a linear model it is exact.

    Args:
        game: of a model that is a function for JAX.

    Raises:
        ValueError: several baseline rows.

    References:
        Shrikumar et al. 2017, arXiv:1704.02685.
    """
    of = _with_one_baseline(game, "input_x_gradient")
    parts = [_path(of, batch, np.ones(1), np.ones(1)) for batch in of.batches()]
    return Attributions(np.concatenate(parts), of.base)


def _with_one_baseline(game: Game, method: str) -> Gradients:
    if game.background is not None:
        raise ValueError(
            f"baseline must be one row for {method}, got {count_of(game.background)}; take "
            "method='expected_gradients' for several"
        )
    return Gradients(game, method)


def _path(of: Gradients, batch: Batch, shares: np.ndarray, weights: np.ndarray) -> np.ndarray:
    total = of.along(batch, shares, weights)
    elements = jax.tree.map(lambda t, x, b: t * (x - b), total, batch.points, batch.base)
    return of.per_player(batch, elements)


def integrated_gradients(
    game: Game, steps: int = NODES, tolerance: float = TOLERANCE
) -> Attributions:
    """The gradient's integral on the line from the baseline to the row, times their difference.

    A player with elements x and baseline b has the sum over its elements of
    (x - b) * integral over a from 0 to 1 of dF / dx (b + a (x - b)), by Gauss and Legendre's nodes.
    The values of a row add up to F(x) - F(b). The same holds for each part of the line. So where a
    row misses its sum by more than the tolerance, the parts that miss theirs are halved, each half
    with as many nodes, until it holds or the row has had 2,048 nodes.

    Args:
        game: of a model that is a function for JAX.
        steps: number of nodes of the whole line, and then of each part.
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
    of, count = _with_one_baseline(game, "integrated_gradients"), len(game.players.ids)
    limit = tolerance * (1.0 if game.scale else max(np.abs(game.full - of.base).max(), 1e-30))
    row, nodes = np.arange(count), np.full(count, steps)
    ends = np.tile([0.0, 1.0], (count, 1))
    parts, gaps = _parts(of, row, ends, steps)
    while True:
        missed = np.abs(np.bincount(row, gaps, count))
        more = (missed > limit) & (nodes < MOST_NODES)
        if not more.any():
            break
        split = more[row] & (np.abs(gaps) >= missed[row] / (2 * np.bincount(row)[row]))
        low, high = ends[split].T
        middle, halved = (low + high) / 2, np.tile(row[split], 2)
        halves = np.stack([np.append(low, middle), np.append(middle, high)], 1)
        found = _parts(of, halved, halves, steps)
        nodes += steps * np.bincount(halved, minlength=count)
        row, ends = np.append(row[~split], halved), np.concatenate([ends[~split], halves])
        parts, gaps = (np.concatenate([old[~split], new])
                       for old, new in zip((parts, gaps), found, strict=True))  # fmt: skip
    if (missed > limit).any():
        warnings.warn(
            f"the values of {(missed > limit).sum()} rows miss their sum by up to "
            f"{missed.max():.2g} with {nodes.max()} steps, more than {limit:.2g}; row "
            f"{missed.argmax()} by most",
            stacklevel=2,
        )
    values = np.zeros(game.players.real.shape)
    np.add.at(values, row, parts)
    settings = {"steps": steps, "most steps": int(nodes.max()), "tolerance": float(limit)}
    return Attributions(values, of.base, settings)


def _parts(
    of: Gradients, rows: np.ndarray, ends: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """The values (M, P) of parts of the lines of M rows, and by how much they miss their sum, (M,).

    `ends` are where the parts begin and end, (M, 2).
    """
    places, weights = np.polynomial.legendre.leggauss(steps)
    values, gaps = [], []
    for first, batch in zip(range(0, len(rows), of.size), of.batches(rows), strict=True):
        index = np.minimum(np.arange(first, first + of.size), len(rows) - 1)
        low, high = ends[index].T
        shares = low + (high - low) * (places[:, None] + 1) / 2
        found = _path(of, batch, shares, weights[:, None] * (high - low) / 2)
        values.append(found)
        gaps.append(found.sum(1) - of.number(batch, high) + of.number(batch, low))
    return np.concatenate(values), np.concatenate(gaps)


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
    rng, count = np.random.default_rng(seed), count_of(game.background)
    shares = rng.permutation((np.arange(samples) + rng.random(samples)) / samples)
    turns = np.concatenate([rng.permutation(count) for _ in range(-(-samples // count))])[:samples]
    values = np.zeros(game.players.real.shape)
    for share, turn in zip(shares, turns, strict=True):
        base = {name: game.background[name][[turn]] for name in of.numbers}
        for batch in of.batches(base=base):
            found = _path(of, batch, np.array([share]), np.array([1 / samples]))
            values[batch.rows[: batch.real]] += found
    return Attributions(values, game.empty, {"samples": samples, "seed": seed})
