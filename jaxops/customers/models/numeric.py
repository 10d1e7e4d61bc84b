"""Functions of gamma and beta distributions that are exact in float32, and blocks of rows.

Logarithms of gamma functions are large where their differences are small, and 1 - F(...) of a
hypergeometric function F near 1 loses its digits. Both are avoided: differences are written as sums
of small terms, and means over a distribution as sums of positive terms (quadrature).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaln, log_expit

Array = jax.Array
ROWS = 2**15  # the most of one call of the device
NODES = 48
TAIL = 18.0  # what is left out has less than e**-18 of the largest density
RIGHT = 16.0  # of y; 1 - p is then less than float32's precision
PIECE, POWERS = 0.5, 7  # length of the pieces of a curve, and coefficients of each polynomial
FEW = 2**12  # rows of which the step of a grid is guessed


def log_rising(u: Array, n: Array) -> Array:
    """log Γ(u + n) - log Γ(u) for u > 0 and n >= 0, and its derivatives, to float32's precision.

    With v = u + 8 it is the difference of Stirling's series at v + n and v, minus
    sum_j log(1 + n / (u + j)) for j < 8.

    Args:
        u: any shape.
        n: any shape that broadcasts.

    >>> print(f"{log_rising(jnp.array(0.5), jnp.array(3.0)):.4f}")  # log(0.5 * 1.5 * 2.5)
    0.6286
    """
    v = u + 8

    def rest(v: Array) -> Array:
        return (1 / 12 - (1 / 360 - 1 / 1260 / v**2) / v**2) / v

    stirling = (v - 0.5) * jnp.log1p(n / v) + n * jnp.log(v + n) - n + rest(v + n) - rest(v)
    # of one array: logarithms one by one, and their derivatives, compile for long
    return stirling - jnp.log1p(jnp.stack([n / (u + j) for j in range(8)])).sum(0)


def decayed(rate: Array, time: Array) -> Array:
    """(1 - exp(-rate * time)) / rate, also where the rate is 0.

    >>> print(f"{decayed(jnp.array(0.0), jnp.array(2.0)):.3f}")
    2.000
    >>> print(f"{decayed(jnp.array(1.0), jnp.array(2.0)):.3f}")
    0.865
    """
    x = rate * time
    small = jnp.abs(x) < 1e-3
    large = -jnp.expm1(-x) / jnp.where(small, 1, rate)
    return jnp.where(small, time * (1 - x / 2 + x**2 / 6), large)


def legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss and Legendre's nodes and weights on [0, 1], (count,) float64 each."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def beta_nodes(
    a: float, b: np.ndarray, least: float, nodes: int = NODES
) -> tuple[np.ndarray, np.ndarray]:
    """Nodes p and weights w of the mean over p ~ Beta(a, b_i): E[g(p)] is sum_k w_ik g(p_ik).

    The trapezoidal rule in y = log(p / (1 - p)), whose error falls exponentially with the number of
    nodes; the first weight has what lies before it, where g must be constant, and the last what
    lies after.

    Args:
        a: above 0.
        b: (U,), above 0.
        least: g is constant to float32's precision for p below it, above 0.
        nodes: how many there are for each b; a lower `least` needs more.

    Returns:
        p and w, (U, nodes) float64 each.

    References:
        Trefethen and Weideman 2014, The exponentially convergent trapezoidal rule.

    >>> p, w = beta_nodes(0.8, np.array([2.4]), 1e-9)
    >>> round(float((w * p).sum()), 6), 0.8 / 3.2
    (0.25, 0.25)
    """
    b = np.asarray(b, np.float64)[:, None]
    middle = np.log(a / b)
    rise = np.logaddexp(0, middle)  # -log(1 - p) there

    def log_density(y: np.ndarray) -> np.ndarray:
        return a * log_expit(y) + b * log_expit(-y)

    def edge(far: np.ndarray) -> np.ndarray:
        """Where the density has fallen by e**-TAIL, between `far` and its middle; bisection."""
        near = middle
        for _ in range(40):
            at = (far + near) / 2
            low_enough = log_density(middle) - log_density(at) > TAIL
            far, near = np.where(low_enough, at, far), np.where(low_enough, near, at)
        return far

    low = edge(middle - rise - (TAIL + b * rise) / a)
    high = edge(np.log(np.expm1(np.minimum(rise + (TAIL + a * np.log1p(b / a)) / b, 500.0))))
    high = np.minimum(high, RIGHT + np.log1p(a))
    low = np.minimum(np.maximum(low, np.log(least / (1 + b))), high - 1e-3)
    step = (high - low) / (nodes - 1)
    y = low + step * np.arange(nodes)
    weight = np.exp(log_density(y) - betaln(a, b)) * step
    weight[:, :1] /= -np.expm1(-a * step)  # geometric series
    weight[:, -1:] /= -np.expm1(-b * step)
    return np.exp(log_expit(y)), weight


def in_pieces(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray], place: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Curves by polynomials, of which one is fitted for many rows: function(place, at) of N rows.

    Each curve is cut into pieces of length 0.5 that begin at the least `at`. Where a piece has rows
    it is interpolated at seven nodes of Chebyshev, to 1e-8 of a curve that bends no more than
    powers and exponentials of `at`.

    Args:
        function: `(place, at) -> values`, (C,) each, C the number of pieces with rows.
        place: (N,) int, the number of each row's curve, at least 0.
        at: (N,).

    Returns:
        The coefficients (C, 7), highest power first, with rows of 0 up to a power of 2, so that few
        programs are compiled; the piece of each row (N,) int; and where the row is in it (N,), in
        [-1, 1].

    References:
        Trefethen 2013, Approximation theory and approximation practice, chapter 8.

    >>> at = np.linspace(0, 3, 100)
    >>> c, piece, z = in_pieces(lambda place, at: np.exp(at) + place, np.zeros(100, int), at)
    >>> told = (c[piece] * z[:, None] ** np.arange(6, -1, -1)).sum(1)
    >>> len(c), bool(np.abs(told / np.exp(at) - 1).max() < 1e-8)
    (8, True)
    """
    least = at.min()
    far = at - least
    far /= PIECE
    number = far.astype(np.int32)
    count = int(number.max()) + 1
    key = place * count + number
    there = np.bincount(key) > 0
    curve, part = np.divmod(np.flatnonzero(there), count)
    nodes = np.cos(np.pi * (np.arange(POWERS) + 0.5) / POWERS)
    values = [function(curve, least + PIECE * (part + (1 + z) / 2)) for z in nodes]
    coefficients = np.stack(values, 1) @ np.linalg.inv(np.vander(nodes)).T
    more = 2 ** len(curve).bit_length() - len(curve)
    coefficients = np.pad(coefficients, ((0, more), (0, 0)))
    far -= number
    far *= 2
    far -= 1
    return coefficients, (np.cumsum(there) - 1)[key], far


def counts_above(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The numbers 0, 1, ... up to the largest of x, and how many x are above each.

    A sum over j < x is so one over j: log Γ(u + x) - log Γ(u) is that of log(u + j).

    Args:
        x: (N,) whole numbers of at least 0.

    Raises:
        ValueError: other numbers.

    >>> counts_above(np.array([0.0, 2.0, 1.0, 2.0]))
    (array([0., 1., 2.]), array([3, 2, 0]))
    """
    whole = x.astype(np.int64)
    bad = whole != x
    if bad.any() or whole.min() < 0:
        row = int((bad | (whole < 0)).argmax())
        raise ValueError(
            f"frequency must be whole numbers of at least 0, got {x[row]:g} in row {row} (counted "
            "from 0)"
        )
    counts = np.bincount(whole)
    return np.arange(len(counts), dtype=float), len(x) - np.cumsum(counts)


def distinct(*columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row of each kind of some columns: in a log, whose times are whole days, kinds are few.

    Args:
        *columns: (N,) each.

    Returns:
        The numbers of rows of which each is of another kind, (U,), and the kind of each row, (N,).
        Where values are on no grid, or the kinds could be too many, each row is a kind.

    >>> rows, kind = distinct(np.array([5, 5, 7, 5]), np.array([1, 2, 1, 1]))
    >>> len(rows), kind.tolist()
    (3, [0, 1, 2, 0])
    """
    every = np.arange(len(columns[0]))
    grid = _on_grid(columns)
    if grid is None or grid.size > 2**24:
        return every, every
    row = np.full(grid.size, -1)
    row[grid.key] = every
    kinds = row >= 0
    return row[kinds], (np.cumsum(kinds) - 1)[grid.key]


def tally(*columns: np.ndarray) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """The distinct rows of some columns, (U,) each, and how often each is there, (U,).

    Args:
        *columns: (N,) each.

    >>> (x, T), counts = tally(np.array([5, 5, 7, 5]), np.array([1.0, 2.0, 1.0, 1.0]))
    >>> x.tolist(), T.tolist(), counts.tolist()
    ([5.0, 5.0, 7.0], [1.0, 2.0, 1.0], [2, 1, 1])
    """
    grid = _on_grid(columns)
    if grid is None:
        return columns, np.ones(len(columns[0]), int)
    key = grid.key.astype(np.int32) if grid.size < 2**31 else grid.key  # sorted faster
    keys, counts = np.unique(key, return_counts=True)
    codes = np.unravel_index(keys, grid.sizes)
    rows = (
        np.asarray(low + step * code)
        for low, step, code in zip(grid.low, grid.step, codes, strict=True)
    )
    return tuple(rows), counts


class _Grid(NamedTuple):
    """Rows by a number each, of columns whose values are low + step * (0, ..., size - 1)."""

    key: np.ndarray
    low: list[float]
    step: list[float]
    sizes: list[int]

    @property
    def size(self) -> int:
        return math.prod(self.sizes)


def _on_grid(columns: tuple[np.ndarray, ...]) -> _Grid | None:
    """The rows as numbers; None where values are on no grid, or the grid is too large."""
    grid = _Grid(np.zeros(len(columns[0]), np.int64), [], [], [])
    for column in columns:
        found = _codes(column)
        if found is None:
            return None
        low, step, code = found
        size = 1 if code is None else int(code.max()) + 1
        if code is not None:
            grid.key[:] *= size
            grid.key[:] += code
        grid.low.append(low)
        grid.step.append(step)
        grid.sizes.append(size)
        if grid.size > 2**62:
            return None
    return grid


def _codes(column: np.ndarray) -> tuple[float, float, np.ndarray | None] | None:
    """The least value, the step and the numbers of steps; None where values are on no grid."""
    low, high = float(column.min()), float(column.max())
    if low == high:
        return low, 1.0, None
    # the least step among some of the rows is that among all, or a multiple of it
    for rows in (slice(None, None, len(column) // FEW + 1), slice(None)):
        step = float(np.diff(np.unique(column[rows])).min(initial=high - low))
        if (high - low) / step > 2**20:
            return None
        code = column - low
        code /= step
        np.rint(code, out=code)
        off = step * code
        off += low
        off -= column
        if max(off.max(), -off.min()) <= 1e-6 * step:
            return low, step, code.astype(np.int32)
    return None


def call_size(count: int) -> int:
    """The rows of one call of the device, of few sizes so that few programs are compiled.

    >>> call_size(3), call_size(600), call_size(10**6)
    (512, 4096, 32768)
    """
    return min(ROWS, next((size for size in (2**9, 2**12) if count <= size), ROWS))


def in_blocks(function: Callable[..., Any], shared: Any, *columns: np.ndarray) -> list[np.ndarray]:
    """What `function(shared, *columns)` gives for N rows, computed for a block of rows at a time.

    Args:
        function: a pure function, the same object in each call, to several arrays (B,).
        shared: arrays that every block needs.
        *columns: (N,) each.

    >>> def twice(shared, x):
    ...     return (2 * x,)
    >>> in_blocks(twice, None, np.arange(3.0))[0].tolist()
    [0.0, 2.0, 4.0]
    """
    count = len(columns[0])
    size = call_size(count)
    shared = jax.device_put(jax.tree.map(_single, shared))
    found = []
    for first in range(0, count, size):
        part = [_single(column[first : first + size]) for column in columns]
        if first + size > count:
            part = [np.pad(column, (0, first + size - count), mode="edge") for column in part]
        found.append(_called(function, shared, *part))
    return [np.concatenate(parts)[:count] for parts in zip(*jax.device_get(found), strict=True)]


def _single(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.int32 if array.dtype.kind in "iu" else np.float32)


@functools.partial(jax.jit, static_argnums=0)
def _called(function: Callable[..., Any], shared: Any, *columns: Array) -> Any:
    return function(shared, *columns)
