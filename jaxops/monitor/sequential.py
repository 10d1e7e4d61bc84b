"""Tests of drift that stay valid when they are looked at every day, or after every batch.

An e-process E_t is at most a martingale that starts at 1 if there is no drift. By Ville's
inequality the probability that it ever reaches 1 / level is then at most `level`, however often one
looks and whenever one stops. So 1 / max E is a p-value at any time (`anytime_p`).

The reference is a sample too, and its own error must not look like drift once there are more rows
than it has. Therefore the null hypothesis is that reference and new rows have the *same unknown*
shares, or the same unknown mean: universal inference, where the least favourable of them counts.

References:
    Ville 1939; Wasserman, Ramdas and Balakrishnan 2020, Universal inference, PNAS 117;
    Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting, JRSSB 86;
    Ramdas et al. 2023, Game-theoretic statistics and safe anytime-valid inference.
"""

import numpy as np
from scipy import special

BETS = 0.5 * 0.25 ** np.arange(7)  # shares of the capital that is bet
NEAR, FINE, COARSE = 6.0, 121, 24  # cells of means: in standard errors, and their numbers
POWERS = 0.25 ** np.arange(6)  # of the reference's evidence
ROWS = (10.0, 100.0, 1000.0)  # how many rows the shares of an alternative near the reference count
AT_ONCE = 2**22  # numbers held at a time


def categories_changed(reference: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The logarithm of an e-process for categories, or bins, against a reference sample.

    Let D(r) be the probability of the reference, with counts r, under the Dirichlet mixture with
    parameters 1/2, and Q(c) that of the new rows under the mean of four such mixtures: that one,
    and three with means at the reference's shares, worth 10, 100 and 1,000 rows. For w in (0, 1],

        E_w = Q(c) D(r)^w / sup_θ Π θ_k^(c_k + w r_k)

    where the supremum over the shares is at (c + w r) / (m + w n). At the true θ, Q(c) / Π θ^c is a
    martingale, and (D(r) / Π θ^r)^w has a mean of at most 1 (Jensen). So E_w is an e-process, and
    so is the mean over w = 1, 1/4, ..., 1/1024 that is returned. Small w lose less evidence where
    the reference is much larger than the new sample; a reference of many rows makes it stronger.

    Args:
        reference: (..., K) counts of the reference.
        counts: (..., T, K), the counts of all new rows up to each of T looks.

    Returns:
        (..., T) logarithms of E, for `anytime_p`.

    Raises:
        ValueError: the categories differ, a count is negative or not whole, the reference is empty,
            or counts fall from one look to the next.

    >>> looks = np.cumsum([[60, 40], [61, 39], [20, 80], [20, 80]], 0)
    >>> anytime_p(categories_changed(np.array([600, 400]), looks)).round(3).tolist()
    [1.0, 1.0, 0.981, 0.0]
    """
    r, c = _checked(reference, counts)
    r = r[..., None, :]
    flat = np.full(r.shape[-1], 0.5)
    near = (r + flat) / (r + flat).sum(-1, keepdims=True)
    alternatives = [_dirichlet(c, prior) for prior in (flat, *(rows * near for rows in ROWS))]
    now, before = np.logaddexp.reduce(alternatives) - np.log(4), _dirichlet(r, flat)
    logs = []
    for power in POWERS:
        both = c + power * r
        share = both / both.sum(-1, keepdims=True)
        logs.append(now + power * before - special.xlogy(both, share).sum(-1))
    return np.logaddexp.reduce(logs) - np.log(len(POWERS))


def mean_changed(reference: np.ndarray, counts: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The logarithm of an e-process for the mean of bounded values, against a reference sample.

    For a mean m of values in [0, 1], bets of shares c of the capital on a higher or a lower mean
    have the capital Π (1 - c + c x / m) or Π (1 - c + c (1 - x) / (1 - m)), a martingale if m is
    the mean. Let K(m) be the mean over seven shares and both sides. With K of the new rows and K_r
    of the reference,

        E = inf_m K(m) K_r(m)

    is an e-process, as it is at most its value at the true mean. Bets on a higher mean fall with m,
    and those on a lower one rise, so a bound from the ends of a cell of means holds for all means
    in it. The smallest bound is returned, over cells of a tenth of a standard error near the
    reference's mean, and wider ones further off.

    The test needs no shape of the distribution. It sees only the mean, so it suits shares, scores,
    probabilities and errors (0 and 1); for other changes there is `categories_changed`.

    Args:
        reference: (..., K) how often each value is in the reference.
        counts: (..., T, K), how often each is in all new rows up to each of T looks.
        values: (K,) the values, in [0, 1]. Scale others by bounds that are known beforehand.

    Returns:
        (..., T) logarithms of E, for `anytime_p`.

    Raises:
        ValueError: a value is outside [0, 1], or all values are equal; see `categories_changed`.

    >>> looks = np.cumsum([[95, 5], [94, 6], [70, 30], [70, 30]], 0)
    >>> log_e = mean_changed(np.array([950, 50]), looks, np.array([0.0, 1.0]))
    >>> (anytime_p(log_e) < 0.01).tolist()
    [False, False, False, True]
    """
    r, c = _checked(reference, counts)
    x = np.asarray(values, np.float64)
    if x.shape != r.shape[-1:] or not ((x >= 0) & (x <= 1)).all() or not np.ptp(x) > 0:
        raise ValueError(
            f"values must be {r.shape[-1]} different numbers in [0, 1], got {x.tolist()}"
        )
    if r.ndim > 1:  # the cells depend on the reference
        c = np.broadcast_to(c, (*r.shape[:-1], *c.shape[-2:]))
        columns = [_mean_changed(r[i], c[i], x) for i in np.ndindex(r.shape[:-1])]
        return np.reshape(columns, c.shape[:-1])
    return _mean_changed(r, c, x)


def anytime_p(log_e: np.ndarray) -> np.ndarray:
    """1 / max E up to each look, at most 1: a p-value that is valid at every look.

    Args:
        log_e: (..., T) logarithms of an e-process.

    Raises:
        ValueError: a value is NaN.

    >>> anytime_p(np.log([0.5, 20.0, 2.0])).round(2).tolist()
    [1.0, 0.05, 0.05]
    """
    log_e = np.asarray(log_e, np.float64)
    if np.isnan(log_e).any():
        raise ValueError("log_e must be without NaN, got NaN")
    return np.exp(-np.maximum(np.maximum.accumulate(log_e, -1), 0))


def _mean_changed(r: np.ndarray, c: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of one reference (K,), for counts (..., K)."""
    n = r.sum()
    middle = r @ x / n
    error = np.sqrt(max(r @ (x - middle) ** 2 / n, 1 / n) / n)
    far = np.geomspace(NEAR, max(2 * NEAR, 1 / error), COARSE)
    places = np.concatenate([-far, np.linspace(-NEAR, NEAR, FINE), far])
    edges = np.unique(np.clip(np.append(middle + error * places, [0.0, 1.0]), 0, 1))
    low, high = edges[:-1], edges[1:]
    bets = BETS[:, None, None]
    # each capital is smallest at one end of its cell
    up = np.log1p(bets * (x / high[:, None] - 1))
    down = np.log1p(bets * ((1 - x) / (1 - low[:, None]) - 1))
    table = np.concatenate([up, down]).transpose(2, 0, 1)  # (K, 2 * bets, cells)

    def capital(counts: np.ndarray) -> np.ndarray:
        each = (counts @ table.reshape(len(x), -1)).reshape(-1, *table.shape[1:])
        most = each.max(1, keepdims=True)  # SciPy's logsumexp takes five times as long
        return most[:, 0] + np.log(np.exp(each - most).mean(1))

    before, flat = capital(r[None]), c.reshape(-1, len(x))
    size = max(1, AT_ONCE // table[0].size)
    parts = [
        (before + capital(flat[i : i + size])).min(-1) for i in range(0, max(len(flat), 1), size)
    ]
    return np.concatenate(parts).reshape(c.shape[:-1])


def _dirichlet(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """The log-probability of a sequence with these counts, for Dirichlet parameters (..., K)."""
    each = (special.gammaln(counts + prior) - special.gammaln(prior)).sum(-1)
    size = prior.sum(-1)
    return each + special.gammaln(size) - special.gammaln(counts.sum(-1) + size)


def _checked(reference: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    r, c = np.asarray(reference, np.float64), np.asarray(counts, np.float64)
    if r.ndim < 1 or c.ndim < 2 or r.shape[-1] != c.shape[-1] or r.shape[-1] < 2:
        raise ValueError(
            "reference and counts must be (..., K) and (..., T, K) of the same two categories or "
            f"more, got shapes {r.shape} and {c.shape}"
        )
    for name, x in (("reference", r), ("counts", c)):
        if not np.isfinite(x).all() or (x < 0).any() or (x % 1 != 0).any():
            raise ValueError(f"{name} must be whole numbers of at least 0, got others")
    if (r.sum(-1) <= 0).any():
        raise ValueError("reference must have rows, got none")
    if (np.diff(c, axis=-2) < 0).any():
        raise ValueError("counts must be those of all rows up to each look, got counts that fall")
    return r, c
