"""Detectors of concept drift on a stream: ADWIN, Page-Hinkley and DDM, each by its paper.

A stream is a model's error for each request, in the order of time. Each detector takes the stream
in parts of any length: it returns a state that goes into the call for the next part. After an alarm
Page-Hinkley and DDM start anew, and ADWIN keeps the rows since the change. None of them holds a
level over time, as the tests of `jaxops.monitor.mean_changed` do: their settings trade false alarms
for delay.
"""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

DIRECTIONS = ("up", "down", "both")


class Alarms(NamedTuple):
    """What a detector says of each value of a part of a stream, and its state after it.

    Attributes:
        drift: (T, ...) bool, whether there is an alarm at the value.
        warning: (T, ...) bool, whether the value is in the warning zone; only DDM has one.
        state: for the next part.

    >>> np.flatnonzero(ddm(np.repeat([0, 1, 0, 1], [40, 10, 40, 10])).drift).tolist()
    [40, 97]
    """

    drift: np.ndarray
    warning: np.ndarray
    state: Any


def page_hinkley(
    values: np.ndarray,
    state: Any = None,
    threshold: float = 50.0,
    delta: float = 0.005,
    forget: float = 0.9999,
    least: int = 30,
    direction: str = "both",
) -> Alarms:
    """The Page-Hinkley test of a change of the mean, in one compiled pass.

    With the running mean x̄, the sum U_t = forget U_(t-1) + x_t - x̄_t - delta gives an alarm for a
    higher mean when it is more than `threshold` above its smallest value, and that with + delta for
    a lower mean when it is more than `threshold` below its largest.

    Args:
        values: (T,), or (T, S) for S streams at once.
        state: that of the part before; None starts anew.
        threshold: λ, in the unit of the values; larger means fewer alarms.
        delta: the change that is tolerated.
        forget: the factor by which a sum shrinks at each value; 1 in the paper.
        least: number of values before an alarm.
        direction: "up" for a higher mean, "down" for a lower one, or "both".

    Raises:
        ValueError: a value is not finite, or a setting is out of its range.

    References:
        Page 1954, Continuous inspection schemes, Biometrika 41; Hinkley 1971, Inference about the
        change-point from cumulative sum tests, Biometrika 58.

    >>> stream = np.repeat([0.0, 1.0], [100, 100])
    >>> np.flatnonzero(page_hinkley(stream, threshold=10.0).drift).tolist()
    [110]
    """
    values = _checked(values)
    if not (threshold > 0 and delta >= 0 and 0 < forget <= 1 and least >= 1):
        raise ValueError(
            "threshold must be above 0, delta at least 0, forget in (0, 1] and least at least 1, "
            f"got {threshold}, {delta}, {forget} and {least}"
        )
    if direction not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {direction!r}")
    zero = np.zeros(values.shape[1:])
    start = (zero, zero, zero, zero, zero + np.inf, zero - np.inf)
    sides = np.array([direction != "down", direction != "up"])
    # the mean of a long stream needs more digits than float32 has
    with jax.enable_x64(True):
        settings = (threshold, delta, forget, least)
        after, drift = _page_hinkley(start if state is None else state, values, sides, settings)
    drift = np.asarray(drift)
    return Alarms(drift, np.zeros_like(drift), jax.tree.map(np.asarray, after))


@jax.jit
def _page_hinkley(start: Any, values: jax.Array, sides: jax.Array, settings: Any) -> Any:
    threshold, delta, forget, least = settings
    fresh = _fresh(values, (0, 0, 0, 0, jnp.inf, -jnp.inf))

    def one(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        count, mean, up, down, lowest, highest = state
        count += 1
        mean += (x - mean) / count
        up = forget * up + x - mean - delta
        down = forget * down + x - mean + delta
        lowest, highest = jnp.minimum(lowest, up), jnp.maximum(highest, down)
        far = (sides[0] & (up - lowest > threshold)) | (sides[1] & (highest - down > threshold))
        drift = far & (count >= least)
        state = (count, mean, up, down, lowest, highest)
        return _or_fresh(drift, fresh, state), drift

    return jax.lax.scan(one, start, values)


def ddm(
    errors: np.ndarray, state: Any = None, warning: float = 2.0, drift: float = 3.0, least: int = 30
) -> Alarms:
    """The drift detection method: alarms when a classifier's error rate rises, in one pass.

    With the error rate p and its standard deviation s = √(p (1 - p) / t) since the start, the
    smallest p + s so far is kept as p_min and s_min. There is a warning when p + s is above
    p_min + 2 s_min, and an alarm above p_min + 3 s_min.

    Args:
        errors: (T,) of 0 (right) and 1 (wrong), or (T, S) for S streams at once.
        state: that of the part before; None starts anew.
        warning: the number of standard deviations for a warning.
        drift: that for an alarm, above `warning`.
        least: alarms are possible after this number of values.

    Raises:
        ValueError: an error is not 0 or 1, or a setting is out of its range.

    References:
        Gama et al. 2004, Learning with drift detection, SBIA.

    >>> told = ddm(np.repeat([[0, 1, 1, 1], [1, 1, 1, 0]], [60, 60], axis=0))
    >>> told.drift.any(0).tolist()
    [True, False, False, False]
    """
    errors = _checked(errors)
    if ((errors != 0) & (errors != 1)).any():
        raise ValueError("errors must be 0 (right) or 1 (wrong), got others")
    if not (0 < warning < drift and least >= 1):
        raise ValueError(
            "warning must be above 0, drift above warning and least at least 1, got "
            f"{warning}, {drift} and {least}"
        )
    zero = np.zeros(errors.shape[1:])
    start = (zero, zero, zero + np.inf, zero + np.inf)
    with jax.enable_x64(True):
        settings = (warning, drift, least)
        after, (alarm, near) = _ddm(start if state is None else state, errors, settings)
    return Alarms(np.asarray(alarm), np.asarray(near), jax.tree.map(np.asarray, after))


@jax.jit
def _ddm(start: Any, errors: jax.Array, settings: Any) -> Any:
    warning, drift, least = settings
    fresh = _fresh(errors, (0, 0, jnp.inf, jnp.inf))

    def one(state: Any, x: jax.Array) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        count, wrong, p_min, s_min = state
        count, wrong = count + 1, wrong + x
        p = wrong / count
        s = jnp.sqrt(p * (1 - p) / count)
        known = count > least
        better = known & (p + s <= p_min + s_min)
        p_min, s_min = jnp.where(better, p, p_min), jnp.where(better, s, s_min)
        alarm = known & (p + s > p_min + drift * s_min)
        near = known & (p + s > p_min + warning * s_min) & ~alarm
        return _or_fresh(alarm, fresh, (count, wrong, p_min, s_min)), (alarm, near)

    return jax.lax.scan(one, start, errors)


def _fresh(values: jax.Array, start: tuple[float, ...]) -> Any:
    return tuple(jnp.full(values.shape[1:], number, values.dtype) for number in start)


def _or_fresh(alarm: jax.Array, fresh: Any, state: Any) -> Any:
    """A new start of the streams with an alarm."""
    return jax.tree.map(partial(jnp.where, alarm), fresh, state)


@dataclass
class Window:
    """ADWIN's window: buckets of 1, 2, 4, ... values, at most a few of each size.

    Attributes:
        buckets: for each size, the (sum, sum of squares about the mean) of each bucket, oldest
            first.
        width: number of values in the window.
        total: their sum.
        squares: the sum of squares about their mean.
        seen: number of values of the whole stream.

    >>> window = adwin(np.ones(100), Window()).state
    >>> window.width, window.total, [len(size) for size in window.buckets]
    (100, 100.0, [4, 4, 4, 5, 2])
    """

    buckets: list[list[tuple[float, float]]] = field(default_factory=lambda: [[]])
    width: int = 0
    total: float = 0.0
    squares: float = 0.0
    seen: int = 0


def adwin(
    values: np.ndarray,
    state: Window | None = None,
    delta: float = 0.002,
    clock: int = 32,
    buckets: int = 5,
    least: int = 5,
) -> Alarms:
    """Adaptive windowing: a window that grows while its mean is constant, and else drops its start.

    The window W of n values is cut at each border of two buckets. There is an alarm where the means
    of the two parts differ by more than

        ε = √(2 σ² ln(2 ln n / δ) / m) + 2 ln(2 ln n / δ) / (3 m)

    for the variance σ² of W and 1 / m = 1 / (n₀ - least + 1) + 1 / (n₁ - least + 1). Then the
    oldest bucket is dropped until no cut differs. The window takes memory for log n buckets. This
    is the paper's ADWIN2, with the corrected lengths of its authors' program.

    Args:
        values: (T,) numbers, such as errors; the bound supposes a range of about 1.
        state: that of the part before, which is kept as it was; None starts anew.
        delta: δ in (0, 1), smaller means fewer alarms.
        clock: the number of values after which cuts are looked for.
        buckets: number of buckets of each size, at least 1.
        least: the smallest length of a part.

    Raises:
        ValueError: a value is not finite, there are several streams, or a setting is out of range.

    References:
        Bifet and Gavaldà 2007, Learning from time-changing data with adaptive windowing, SDM.

    >>> alarms = adwin(np.repeat([0.0, 1.0], [1000, 1000]))
    >>> int(np.flatnonzero(alarms.drift)[0]), alarms.state.total / alarms.state.width
    (1023, 1.0)
    """
    values = _checked(values)
    if values.ndim != 1:
        raise ValueError(f"values must be (T,), one stream, got shape {values.shape}")
    if not (0 < delta < 1 and clock >= 1 and buckets >= 1 and least >= 1):
        raise ValueError(
            "delta must be in (0, 1) and clock, buckets and least at least 1, got "
            f"{delta}, {clock}, {buckets} and {least}"
        )
    window = Window() if state is None else copy.deepcopy(state)
    drift = np.zeros(len(values), bool)
    for i, value in enumerate(values.tolist()):
        _insert(window, value, buckets)
        window.seen += 1
        if window.seen % clock == 0:
            while window.width >= 2 * least and _differs(window, delta, least):
                drift[i] = True
                _drop(window)
    return Alarms(drift, np.zeros_like(drift), window)


def _insert(window: Window, value: float, most: int) -> None:
    """Add a value; join the two oldest buckets of each size that has too many."""
    if window.width:
        gap = value - window.total / window.width
        window.squares += gap**2 * window.width / (window.width + 1)
    window.width += 1
    window.total += value
    window.buckets[0].append((value, 0.0))
    for i, of_size in enumerate(window.buckets):
        if len(of_size) <= most:
            return
        (a, a_squares), (b, b_squares) = of_size[:2]
        del of_size[:2]
        # (a / size - b / size)² size / 2
        joined = (a + b, a_squares + b_squares + (a - b) ** 2 / 2 ** (i + 1))
        if i + 1 == len(window.buckets):
            window.buckets.append([])
        window.buckets[i + 1].append(joined)


def _drop(window: Window) -> None:
    """Remove the oldest bucket."""
    size = 2 ** (len(window.buckets) - 1)
    total, squares = window.buckets[-1].pop(0)
    while not window.buckets[-1]:
        window.buckets.pop()
    window.width -= size
    window.total -= total
    gap = total / size - window.total / window.width
    window.squares -= squares + gap**2 * size * window.width / (size + window.width)


def _parts(window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Sizes and sums of the buckets, oldest first."""
    sums = [np.array(of_size)[:, 0] for of_size in window.buckets[::-1] if of_size]
    sizes = [2**i for i, of_size in reversed(list(enumerate(window.buckets))) for _ in of_size]
    return np.array(sizes), np.concatenate(sums)


def _differs(window: Window, delta: float, least: int) -> bool:
    """Whether the means of the two parts differ at one of the cuts."""
    sizes, sums = _parts(window)
    n0, u0 = np.cumsum(sizes), np.cumsum(sums)
    n1, u1 = window.width - n0, window.total - u0
    able = (n0 >= least) & (n1 >= least)
    n0, n1, u0, u1 = (x[able] for x in (n0, n1, u0, u1))
    strict = np.log(2 * np.log(window.width) / delta)
    share = 1 / (n0 - least + 1) + 1 / (n1 - least + 1)
    variance = max(window.squares, 0.0) / window.width
    bound = np.sqrt(2 * share * variance * strict) + 2 / 3 * strict * share
    return bool((np.abs(u0 / n0 - u1 / n1) > bound).any())


def _checked(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2):
        raise ValueError(f"values must be (T,) or (T, S), got shape {values.shape}")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise ValueError(f"values must be finite, got {values[row]} in row {row}")
    return values
