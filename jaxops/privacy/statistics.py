"""Counts, means and quantiles with noise, for what a reader learns of its train rows.

Neighbours are two tables of which one has one row more; with `at_most=m`, two logs of which one
has the rows of one user more, at most m of them, see `bounded`. What a statistic is released *of*,
its categories, bounds and candidates, must be public: not looked up in the rows.

Noise is drawn in whole numbers by the system's source of random bits. A seed is for tests: who
knows it can take the noise away.
"""

import math
import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data.columns import frame_of
from jaxops.data.tables import Source
from jaxops.privacy.accounting import Ledger, Pure
from jaxops.privacy.noise_of_integers import Coins, bernoulli_exp, discrete_laplace
from jaxops.train.settings import whole

GRID = 2**20  # steps between the bounds of a mean, to which values are rounded


class Released(NamedTuple):
    """A statistic with noise, and what it cost.

    Attributes:
        value: the statistic.
        ledger: add it to that of the training.

    >>> told = counts(["a", "b", "a"], ["a", "b", "c"], epsilon=50.0, seed=0)
    >>> told == Released({"a": 2, "b": 1, "c": 0}, Ledger((Pure(50.0),)))
    True
    """

    value: Any
    ledger: Ledger


def counts(
    column: Any,
    categories: Sequence[Any],
    *,
    epsilon: float,
    at_most: int = 1,
    seed: int | None = None,
) -> Released:
    """How many rows have each category, with discrete Laplace noise of scale at_most / epsilon.

    A row is in one category at most, so all counts together cost epsilon once. Counts may be
    negative: set them to 0 afterwards if need be, which costs nothing. For the number of rows alone
    give one category.

    Args:
        column: (N,), the category of each row. Rows with another one are not counted.
        categories: distinct; public, not taken from the rows.
        epsilon: above 0.
        at_most: most rows of one user.
        seed: for tests only.

    Returns:
        A dictionary, category -> int.

    Raises:
        ValueError: epsilon or `at_most` is out of its range, or a category is there twice.

    References:
        Ghosh, Roughgarden and Sundararajan 2009, Universally utility-maximizing privacy
        mechanisms, arXiv:0811.2841.

    >>> counts(np.repeat(["tea", "milk"], 50), ["tea"], epsilon=20.0, seed=0).value
    {'tea': 50}
    """
    coins, scale = _coins(seed), _scale(epsilon, at_most)
    names = [*categories]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"categories must be distinct, at least one, got {names}")
    exact = Counter(np.asarray(column).tolist())
    noisy = {name: exact[name] + discrete_laplace(scale, coins) for name in names}
    return Released(noisy, Ledger((Pure(float(epsilon)),)))


def mean(
    values: Any,
    *,
    low: float,
    high: float,
    epsilon: float,
    at_most: int = 1,
    seed: int | None = None,
) -> Released:
    """The mean of numbers that are moved into [low, high], by a sum and a count with noise.

    Half of epsilon goes into the sum of the distances from the middle, which are rounded to whole
    numbers of (high - low) / 2²⁰, and half into the count. The result is moved into [low, high].

    Args:
        values: (N,); NaN is a missing value and does not count.
        low: public, not taken from the rows.
        high: above `low`, also public.
        epsilon: above 0.
        at_most: most rows of one user.
        seed: for tests only.

    Returns:
        A float.

    Raises:
        ValueError: epsilon, `at_most` or the bounds are out of their range.

    >>> released = mean(np.full(1000, 30.0), low=0.0, high=100.0, epsilon=1.0, seed=0)
    >>> abs(released.value - 30) < 1
    True
    """
    if not (low < high and 0 < (high - low) / GRID < math.inf):
        raise ValueError(f"low must be below high, both finite, got {low} and {high}")
    coins, scale = _coins(seed), _scale(epsilon, at_most) * 2
    numbers = np.asarray(values, np.float64)
    numbers = numbers[~np.isnan(numbers)].clip(low, high)
    middle, step = (low + high) / 2, (high - low) / GRID
    steps = np.rint((numbers - middle) / step).clip(-GRID // 2, GRID // 2)
    # one row changes the sum by at most GRID / 2
    total = int(steps.astype(np.int64).sum()) + discrete_laplace(scale * (GRID // 2), coins)
    rows = len(numbers) + discrete_laplace(scale, coins)
    value = middle + total * step / max(rows, 1)
    return Released(min(max(value, low), high), Ledger((Pure(float(epsilon)),)))


def quantile(
    values: Any,
    level: float,
    *,
    candidates: Sequence[float],
    epsilon: float,
    at_most: int = 1,
    seed: int | None = None,
) -> Released:
    """One of the candidates, most likely one near the quantile.

    With b values below a candidate and a above it, its score is
    -max(0, (1 - level) b - level (n - b), level a - (1 - level) (n - a)), which one row changes by
    at most max(level, 1 - level). Permute-and-flip draws the candidate: it is never further from
    the best on average than the exponential mechanism.

    Args:
        values: (N,); NaN is a missing value and does not count.
        level: in (0, 1), such as 0.5 for the median.
        candidates: distinct and public, not taken from the rows, such as
            `np.linspace(0, 100, 1001)`. A thousand times as many cost as much as 14 / epsilon rows.
        epsilon: above 0.
        at_most: most rows of one user.
        seed: for tests only.

    Returns:
        A float, one of the candidates.

    Raises:
        ValueError: epsilon, `at_most` or `level` is out of its range, or a candidate is there
            twice.

    References:
        Smith 2011, Privacy-preserving statistical estimation with optimal convergence rates, STOC
        (the score); McKenna and Sheldon 2020, Permute-and-flip, arXiv:2010.12603.

    >>> ages = np.arange(1000) % 90
    >>> median = quantile(ages, 0.5, candidates=np.arange(121.0), epsilon=2.0, seed=0)
    >>> 40 <= median.value <= 50
    True
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}")
    places = np.sort(np.asarray(candidates, np.float64))
    if len(places) < 1 or not np.isfinite(places).all() or (np.diff(places) == 0).any():
        raise ValueError("candidates must be distinct and finite, at least one")
    coins, scale = _coins(seed), _scale(epsilon, at_most)
    numbers = np.asarray(values, np.float64)
    numbers = np.sort(numbers[~np.isnan(numbers)])
    share = Fraction(level)
    scores = [_score(numbers, place, share) for place in places.tolist()]
    best = max(scores)
    unit = 2 * scale * max(share, 1 - share)
    order = [*range(len(places))]
    coins.shuffle(order)
    # the best one is always taken, so the loop ends
    chosen = next(i for i in order if bernoulli_exp((best - scores[i]) / unit, coins))
    return Released(float(places[chosen]), Ledger((Pure(float(epsilon)),)))


def _score(numbers: np.ndarray, place: float, level: Fraction) -> Fraction:
    """See `quantile`; `numbers` are sorted."""
    n = len(numbers)
    below = int(np.searchsorted(numbers, place, side="left"))
    above = n - int(np.searchsorted(numbers, place, side="right"))
    too_many_below = (1 - level) * below - level * (n - below)
    too_many_above = level * above - (1 - level) * (n - above)
    return -max(Fraction(0), too_many_below, too_many_above)


def bounded(log: Source, *, user: str, at_most: int, seed: int) -> Any:
    """At most so many rows of each user of an event log, chosen by chance.

    Then statistics with `at_most` and a training with `rows_per_user` protect users: epsilon speaks
    of two logs of which one has all rows of one user more. Without it, epsilon speaks of one event,
    and who has a thousand events is hardly protected. Which rows of a user are kept does not depend
    on other users, so that one user more or less changes no other's rows.

    Args:
        log: a CSV or Parquet file, a frame, or arrays by name; one row for each event.
        user: the column with the user.
        at_most: rows that are kept of each user, at least 1.
        seed: of the choice. It need not be secret.

    Returns:
        A pandas frame, in the log's order and with its index.

    Raises:
        ValueError: no column `user`, a row without a user, or `at_most` below 1.

    >>> log = {"user": ["a", "a", "a", "b"], "item": [1, 2, 3, 4]}
    >>> bounded(log, user="user", at_most=2, seed=0)["user"].tolist()
    ['a', 'a', 'b']
    """
    at_most = whole("at_most", at_most, 1)
    name, frame = frame_of(log)
    if user not in frame.columns:
        raise ValueError(f"{name} must have a column {user!r}, got {', '.join(frame.columns)}")
    return frame.iloc[kept_rows(frame[user], at_most, seed, f"column {user!r}")]


def kept_rows(users: Any, at_most: int, seed: int, name: str) -> np.ndarray:
    """The numbers of at most so many rows of each user (N,), ascending; see `bounded`.

    `name` is what an error calls the users.

    >>> kept_rows(["a", "a", "b"], at_most=1, seed=0, name="users").tolist()
    [0, 2]
    """
    pd = require("pandas", extra="data")
    column = pd.Series(users).reset_index(drop=True)
    absent = column.isna().to_numpy()
    if absent.any():
        raise ValueError(
            f"{name} must have a user in every row, got none in row {absent.argmax()} "
            "(counted from 0)"
        )
    codes = pd.factorize(column)[0]
    # a row's lot depends on its user and its place among that user's rows, and on no other user
    own = pd.DataFrame({"user": column.to_numpy(), "seed": seed})
    own["place"] = own.groupby(codes).cumcount()
    order = np.argsort(pd.util.hash_pandas_object(own, index=False).to_numpy(), kind="stable")
    kept = order[own.iloc[order].groupby(codes[order]).cumcount().to_numpy() < at_most]
    return np.sort(kept)


def _coins(seed: int | None) -> Coins:
    return random.SystemRandom() if seed is None else random.Random(seed)


def _scale(epsilon: float, at_most: int) -> Fraction:
    """at_most / epsilon."""
    if not (epsilon > 0 and math.isfinite(epsilon)):
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    return whole("at_most", at_most, 1) / Fraction(float(epsilon))
