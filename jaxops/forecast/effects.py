"""What a promotion or a price does to demand: log-linear regression over many series.

    E[sales of series s at t] = exp(level_s + x_st . coefficients)

fitted by Poisson likelihood, the levels solved for in closed form. All that it takes of the Poisson
is this mean: sales that vary more (negative binomial), or that hang together over time within
their series, leave the estimate consistent, and its interval is by series, which may each be as
they like. What it does take: that x has whatever moves both sales and promotions (a promotion is
placed in high season: without columns of the season, the season's sales are counted as its
effect), and that series do not share shocks which x lacks; then intervals are too narrow.
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
        names: of the K columns.
        coefficients: (K,), the change of log demand with each.
        by_series: (S, K), jackknife values: each series' part, whose mean is `coefficients`, and
            whose spread is what another draw of series would change.
        level: (S,), log demand of each series where all columns are 0.
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
        channel: which channel are the sales; may be left out where there is one.
        columns: of `known`; all by default.

    Raises:
        ValueError: a name that is none; sales that are negative or not finite; covariates that are
            not finite; a series that sold nothing; fewer than two series; a column that is
            constant within every series, or a combination of others; a fit that does not converge,
            as where a column's presence always means sales of 0.

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
    >>> found = effect(fitted, {"on": 1})
    >>> found.low < 0.4 < found.high
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
            f"columns: no finite coefficients of {list(names)} fit best; a column's presence that "
            "always means sales of 0 does that, and so do columns that nearly add up to others"
        )
    count = len(level)
    values = count * coefficients[None] - (count - 1) * left_out
    values += (coefficients - values.mean(0))[None]
    level = level - centre @ (coefficients / size)
    return Effects(names, coefficients / size, values / size[None], level)


def effect(fitted: Effects, change: Mapping[str, float], level: float = 0.95) -> Interval:
    """The change of log demand that a change of columns makes, others held fixed.

    `np.expm1` of its mean and bounds is the share by which demand rises. Of log price 1 it is the
    elasticity. The interval is Student's with S - 1 degrees of freedom about the jackknife values
    of the series. In simulation (sizes of series lognormal, shocks that last a week) those of 95 %
    held the truth in 92.7 % of 400 worlds of 30 series, and 94.3 % of 100 series; the BCa bootstrap
    of the same values in 88 and 92 %, for a few large series decide.

    Args:
        fitted: by `log_linear`.
        change: column -> by how much it changes, such as {"promotion": 1, "log_price": -0.2}.
        level: of confidence.

    Raises:
        ValueError: a column that was not fitted, or none; a level outside 0 to 1.
    """
    odd = set(change) - set(fitted.names)
    if odd or not change:
        raise ValueError(f"change: found {sorted(change)}, wanted some of {list(fitted.names)}")
    direction = np.array([change.get(name, 0.0) for name in fitted.names])
    if not 0 < level < 1:
        raise ValueError(f"level: found {level}, wanted 0 to 1")
    values = fitted.by_series @ direction
    half = stdtrit(len(values) - 1, (1 + level) / 2) * values.std(ddof=1) / np.sqrt(len(values))
    mean = float(values.mean())
    return Interval(mean, mean - float(half), mean + float(half))


@partial(jax.jit, static_argnums=3)
def _fit(x: Array, sales: Array, index: Array, count: int) -> tuple[Array, Array, Array, Array]:
    """Coefficients (K,); those without each series (S, K); levels (S,); the last step's size."""

    def sums(rows: Array) -> Array:
        return jax.ops.segment_sum(rows, index, count, indices_are_sorted=True)

    sold = sums(sales)

    def rates(beta: Array) -> tuple[Array, Array]:
        """Expected sales, their sum in each series being that of the sales; and the levels."""
        score = dot(x, beta)
        top = jax.ops.segment_max(score, index, count, indices_are_sorted=True)
        level = jnp.log(sold) - top - jnp.log(sums(jnp.exp(score - top[index])))
        return jnp.exp(score + level[index]), level

    def derivatives(beta: Array) -> tuple[Array, Array]:
        """Of each series' log likelihood: (S, K), and minus the second, (S, K, K)."""
        mu, _ = rates(beta)
        mean = sums(mu[:, None] * x) / sold[:, None]
        inner = x - mean[index]
        score = sums((sales - mu)[:, None] * inner)
        # K products of (R, K) rather than (R, K, K) at once
        second = jax.lax.map(lambda column: sums((mu * column)[:, None] * inner), inner.T)
        return score, second.transpose(1, 0, 2)

    def newton(state: tuple[Array, Any, Any]) -> tuple[Array, Any, Any]:
        beta, _, steps = state
        score, second = derivatives(beta)
        step = jnp.linalg.solve(second.sum(0), score.sum(0))
        # far from the best the quadratic is wrong: no step changes a rate more than e-fold
        step = step / jnp.maximum(1, jnp.abs(dot(x, step)).max())
        return beta + step, jnp.abs(step).max(), steps + 1

    beta, step, _ = jax.lax.while_loop(
        lambda state: (state[1] > 1e-5) & (state[2] < STEPS),
        newton,
        (jnp.zeros(x.shape[1]), jnp.float32(jnp.inf), 0),
    )
    score, second = derivatives(beta)
    # without series s the best is one Newton step away
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
        raise ValueError(f"channel: left out, wanted one of {list(series.channels)}")
    channel = series.channels[0] if channel is None else channel
    if channel not in series.channels:
        raise ValueError(f"channel: found {channel!r}, wanted one of {list(series.channels)}")
    names = tuple(series.known_names if columns is None else columns)
    odd = [name for name in names if name not in series.known_names]
    if odd or not names:
        raise ValueError(f"columns: found {list(names)}, wanted some of {list(series.known_names)}")
    sales = series.values[:, series.channels.index(channel)].astype(np.float64)
    x = series.known[:, [series.known_names.index(name) for name in names]].astype(np.float64)
    index = series.index()
    if len(series) < 2:
        raise ValueError(f"series: found {len(series)}, wanted two or more, for the interval")
    for name, rows in ((channel, sales), *zip(names, x.T, strict=True)):
        bad = ~np.isfinite(rows) | ((rows < 0) if rows is sales else False)
        if bad.any():
            row = int(bad.argmax())
            wanted = "0 or more" if rows is sales else "a finite number"
            where = f"row {row}, series {series.ids[index[row]]}"
            raise ValueError(f"{name}: found {rows[row]} in {where}, wanted {wanted}")
    sold = np.bincount(index, sales, len(series))
    if not (sold > 0).all():
        raise ValueError(
            f"{channel}: series {series.ids[sold.argmin()]} sold nothing; leave it out"
        )
    means = np.stack([np.bincount(index, column) for column in x.T], 1) / series.lengths[:, None]
    inner = x - means[index]
    constant = [name for name, c in zip(names, inner.T, strict=True) if np.ptp(c) < 1e-6]
    if constant:
        raise ValueError(f"columns: {constant[0]} does not change within any series; leave it out")
    rank = np.linalg.matrix_rank(inner / inner.std(0)[None], tol=1e-5 * np.sqrt(len(x)))
    if rank < len(names):
        raise ValueError(
            f"columns: {list(names)} are {rank} different ones, others are sums of these within "
            "every series (as all seven days of the week are); leave some out"
        )
    return names, sales, x, index
