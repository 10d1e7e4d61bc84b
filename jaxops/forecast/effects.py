"""The effect of promotions and prices on demand: log-linear regression over many series.

    E[sales of series s at t] = exp(level_s + x_st . coefficients)

It is fitted by Poisson likelihood, with the levels solved in closed form. Only this mean is
assumed: the estimate is also consistent for sales with more variance than Poisson, and for sales
that are correlated over time within a series. Its interval is computed over series, each of which
may have its own variance. Two more things are assumed. First, x must contain everything that
influences both sales and promotions: if promotions are placed in the high season and x has no
columns for the season, the additional sales of the season are counted as their effect. Second,
series must not share shocks that x does not contain; otherwise intervals are too narrow.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import stdtrit

from jaxops.forecast.data.series import Series
from jaxops.trust.intervals import Interval

Array = jax.Array
STEPS = 50
dot = partial(jnp.matmul, precision="highest")  # statistics: no TF32 on GPUs


@dataclass(frozen=True)
class Effects:
    """A fitted regression.

    Attributes:
        names: the names of the K columns.
        coefficients: float64 (K,), the change of log demand with each column.
        by_series: float64 (S, K), jackknife values of each series; their mean is `coefficients`,
            and their spread gives the sampling error over series.
        level: float64 (S,), log demand of each series when all columns are 0.
    """

    names: tuple[str, ...]
    coefficients: np.ndarray
    by_series: np.ndarray
    level: np.ndarray


def log_linear(
    series: Series, channel: str | None = None, columns: Sequence[str] | None = None
) -> Effects:
    """Fit the regression, by Newton's method on the device.

    Args:
        series: values are sales, 0 or more; `known` has promotions, log prices, calendar columns.
        channel: the name of the sales; may be None for series of one channel.
        columns: columns of `known`; all by default.

    Raises:
        ValueError: an unknown name; sales that are negative or not finite; covariates that are not
            finite; a series without sales; fewer than two series; a column that is constant within
            every series, or a linear combination of others; a fit that does not converge, for
            example because sales are always 0 when a column is set.

    References:
        Hausman, Hall and Griliches 1984, Econometrica 52 (the fixed effects); Wooldridge 1999,
        Journal of Econometrics 90 (only the mean matters); MacKinnon, Nielsen and Webb 2023,
        Journal of Econometrics 232 (the jackknife by clusters).

    >>> from dataclasses import replace
    >>> from jaxops.forecast import from_arrays
    >>> rng = np.random.default_rng(0)
    >>> promotion = (rng.random((20, 200)) < 0.2).astype(np.float32)
    >>> sales = rng.poisson(np.exp(rng.normal(2, 1, (20, 1)) + 0.4 * promotion))
    >>> log = from_arrays(np.arange(20), sales)
    >>> fitted = log_linear(replace(log, known=promotion.reshape(-1, 1), known_names=("on",)))
    >>> interval = effect(fitted, {"on": 1})
    >>> interval.low < 0.4 < interval.high
    True
    """
    names, sales, x, index = _read(series, channel, columns)
    centre, size = x.mean(0), x.std(0)
    fit = _fit(
        jnp.asarray((x - centre[None]) / size[None], jnp.float32),
        jnp.asarray(sales, jnp.float32),
        jnp.asarray(index),
        len(series),
    )
    coefficients, left_out, level, step = (np.asarray(a, np.float64) for a in fit)
    if not np.isfinite(coefficients).all() or step > 1e-3:
        raise ValueError(
            f"columns must have finite best coefficients, got {list(names)}, whose fit does not "
            "converge; the cause may be a column with sales of 0 wherever it is set, or columns "
            "that are nearly a linear combination of others"
        )
    count = len(level)
    values = count * coefficients[None] - (count - 1) * left_out
    values += (coefficients - values.mean(0))[None]
    level = level - centre @ (coefficients / size)
    return Effects(names, coefficients / size, values / size[None], level)


def effect(fitted: Effects, change: Mapping[str, float], coverage: float = 0.95) -> Interval:
    """The change of log demand for a change of columns, while all other columns stay fixed.

    `np.expm1` of its mean and bounds is the relative change of demand. For a change of 1 in log
    price it is the price elasticity. The interval is Student's t with S - 1 degrees of freedom,
    from the jackknife values of the series. In a simulation (lognormal sizes of series, shocks that
    last a week) 95 % intervals covered the truth in 92.7 % of 400 data sets with 30 series, and in
    94.3 % with 100 series. The BCa bootstrap of the same values covered it in 88 and 92 %, because
    a few large series dominate.

    Args:
        fitted: the result of `log_linear`.
        change: column -> its change, such as {"promotion": 1, "log_price": -0.2}.
        coverage: coverage of the confidence interval.

    Returns:
        The mean and its bounds.

    Raises:
        ValueError: no column, or one that was not fitted; a coverage outside (0, 1).

    >>> by_series = np.array([[0.3], [0.4], [0.5]])
    >>> fitted = Effects(("promotion",), by_series.mean(0), by_series, np.zeros(3))
    >>> print(effect(fitted, {"promotion": 1}))
    0.4000 [0.1516, 0.6484]
    """
    odd = set(change) - set(fitted.names)
    if odd or not change:
        raise ValueError(f"change must have some of {list(fitted.names)}, got {sorted(change)}")
    direction = np.array([change.get(name, 0.0) for name in fitted.names])
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}")
    values = fitted.by_series @ direction
    half = stdtrit(len(values) - 1, (1 + coverage) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half))


@partial(jax.jit, static_argnums=3)
def _fit(x: Array, sales: Array, index: Array, count: int) -> tuple[Array, Array, Array, Array]:
    """Coefficients (K,); those without each series (S, K); levels (S,); the last step's size."""

    def sums(rows: Array) -> Array:
        return jax.ops.segment_sum(rows, index, count, indices_are_sorted=True)

    sold = sums(sales)

    def rates(beta: Array) -> tuple[Array, Array]:
        """Expected sales, with the same sum in each series as the sales; and the levels."""
        score = dot(x, beta)
        top = jax.ops.segment_max(score, index, count, indices_are_sorted=True)
        level = jnp.log(sold) - top - jnp.log(sums(jnp.exp(score - top[index])))
        return jnp.exp(score + level[index]), level

    def derivatives(beta: Array) -> tuple[Array, Array]:
        """The gradient (S, K) and minus the Hessian (S, K, K) of each series' log likelihood."""
        mu, _ = rates(beta)
        mean = sums(mu[:, None] * x) / sold[:, None]
        inner = x - mean[index]
        score = sums((sales - mu)[:, None] * inner)
        # K products of (R, K), instead of one array (R, K, K)
        second = jax.lax.map(lambda column: sums((mu * column)[:, None] * inner), inner.T)
        return score, second.transpose(1, 0, 2)

    def newton(state: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
        beta, _, steps = state
        score, second = derivatives(beta)
        step = jnp.linalg.solve(second.sum(0), score.sum(0))
        # far from the optimum the quadratic is wrong, so a step changes a rate at most e-fold
        step = step / jnp.maximum(1, jnp.abs(dot(x, step)).max())
        return beta + step, jnp.abs(step).max(), steps + 1

    beta, step, _ = jax.lax.while_loop(
        lambda state: (state[1] > 1e-5) & (state[2] < STEPS),
        newton,
        (jnp.zeros(x.shape[1]), jnp.float32(jnp.inf), 0),
    )
    score, second = derivatives(beta)
    # the optimum without series s is one Newton step away
    without = second.sum(0)[None] - second
    left_out = (
        beta[None] + jnp.linalg.solve(without, (score.sum(0)[None] - score)[..., None])[..., 0]
    )
    return beta, left_out, rates(beta)[1], step


def _read(
    series: Series, channel: str | None, columns: Sequence[str] | None
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray, np.ndarray]:
    """Names; sales (R,), covariates (R, K), float64; and each row's series, (R,)."""
    if channel is None and len(series.channels) != 1:
        raise ValueError(f"channel must be one of {list(series.channels)}, got None")
    channel = series.channels[0] if channel is None else channel
    if channel not in series.channels:
        raise ValueError(f"channel must be one of {list(series.channels)}, got {channel!r}")
    names = tuple(series.known_names if columns is None else columns)
    odd = [name for name in names if name not in series.known_names]
    if odd or not names:
        raise ValueError(f"columns must be some of {list(series.known_names)}, got {list(names)}")
    sales = series.values[:, series.channels.index(channel)].astype(np.float64)
    x = series.known[:, [series.known_names.index(name) for name in names]].astype(np.float64)
    index = series.index()
    if len(series) < 2:
        raise ValueError(f"series must be at least 2, for the interval, got {len(series)}")
    for name, rows in ((channel, sales), *zip(names, x.T, strict=True)):
        bad = ~np.isfinite(rows) | ((rows < 0) if rows is sales else False)
        if bad.any():
            row = int(bad.argmax())
            condition = "finite and at least 0" if rows is sales else "finite"
            where = f"row {row} (series {str(series.ids[index[row]])!r})"
            raise ValueError(f"{name} must be {condition}, got {rows[row]} in {where}")
    sold = np.bincount(index, sales, len(series))
    if not (sold > 0).all():
        raise ValueError(
            f"{channel} must have sales in each series, got none in series "
            f"{str(series.ids[sold.argmin()])!r}; leave it out"
        )
    means = np.stack([np.bincount(index, column) for column in x.T], 1) / series.lengths[:, None]
    inner = x - means[index]
    constant = [name for name, c in zip(names, inner.T, strict=True) if np.ptp(c) < 1e-6]
    if constant:
        raise ValueError(
            f"columns must vary within some series, got {constant[0]!r} constant; leave it out"
        )
    rank = np.linalg.matrix_rank(inner / inner.std(0)[None], tol=1e-5 * np.sqrt(len(x)))
    if rank < len(names):
        raise ValueError(
            f"columns must be linearly independent within series, got {list(names)} of rank {rank} "
            "(for example, all seven days of the week add up to a constant); leave some out"
        )
    return names, sales, x, index
