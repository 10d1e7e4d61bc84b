"""Off-policy evaluation: the value of another policy, from the log of the policy that ran.

A log has, for each of N decisions, the arm taken, its reward, and the probability with which the
logging policy took it (the propensity). The policy to evaluate is given by the probabilities with
which it would take each of the A arms in the same situations, (N, A). All computation is NumPy in
float64.

    ips             unbiased if the propensities are right; a large variance where policies differ
    snips           ips divided by the mean weight: slightly biased, mostly less variance
    direct_method   the mean of a reward model's predictions: as biased as the model
    doubly_robust   direct_method, with the model's errors on the log corrected by ips: unbiased if
                    the propensities or the model are right, and mostly of the least variance

With few effective rows the intervals are somewhat too narrow: in a simulation with 110 effective
rows of 400, 95 % intervals covered the truth in 91 to 93 % of cases. With fewer than 10 effective
rows they are infinite, because one or two rows decide the estimate, and the others do not show how
wrong it is. Rows are assumed to be independent. Several decisions about one customer are not, and
make the intervals too narrow. If you choose the best of many policies by these values, evaluate it
on another log.

If the log has no propensities, `estimated_propensity` estimates them.
"""

from typing import NamedTuple

import numpy as np
import scipy
from scipy.special import log_softmax, softmax

from jaxops.decide import _checks as checks
from jaxops.trust.intervals import interval

FEWEST = 10
"""The smallest number of effective rows for which an estimate has an interval."""


class Value(NamedTuple):
    """A policy's value: its mean reward per decision.

    Attributes:
        mean: the estimate.
        low: lower bound of its 95 % interval, by BCa bootstrap over rows; see
            `jaxops.trust.intervals.interval`; minus infinity below 10 effective rows.
        high: the upper bound.
        effective: the effective number of rows, (sum w)^2 / sum w^2; N for `direct_method`. If it
            is far below N, a few rows decide the estimate.
        mean_weight: mean of w = policy / propensity, before clipping. Except for sampling error it
            is 1, if the propensities are right and the logging policy takes every arm that the
            policy takes.
        clipped: the share of rows whose weight was clipped.
    """

    mean: float
    low: float
    high: float
    effective: float
    mean_weight: float
    clipped: float

    def __str__(self) -> str:
        text = f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"
        return (
            text if self.effective >= FEWEST else f"{text} of {self.effective:.1f} effective rows"
        )


def ips(
    policy: np.ndarray,
    arm: np.ndarray,
    reward: np.ndarray,
    propensity: np.ndarray,
    clip: float = np.inf,
) -> Value:
    """Inverse propensity scoring: the mean of w r, with w = policy[arm] / propensity.

    Args:
        policy: (N, A), probabilities of the policy to evaluate; each row has sum 1.
        arm: int (N,), the arm that the logging policy took.
        reward: (N,), the reward of that arm.
        propensity: (N,), the probability with which it was taken; or (N, A), that of every arm.
        clip: the largest weight. Clipping lowers the variance and biases the estimate, downwards if
            rewards are at least 0.

    Raises:
        ValueError: shapes that do not fit; values that are not finite; rows of `policy` that are
            not probabilities; a propensity of 0; an arm that the policy takes and the logging
            policy could not take, or never took (no overlap).

    References:
        Horvitz and Thompson 1952, JASA 47; Bottou et al. 2013, arXiv:1209.2355.

    >>> policy = np.tile([0.0, 1.0], (6, 1))  # always the second
    >>> arm, reward = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1, 0])
    >>> round(ips(policy, arm, reward, np.full(6, 0.5)).mean, 4)
    0.6667
    """
    log = _log(policy, arm, reward, propensity, clip)
    return _value(log.weight * log.reward, log)


def snips(
    policy: np.ndarray,
    arm: np.ndarray,
    reward: np.ndarray,
    propensity: np.ndarray,
    clip: float = np.inf,
) -> Value:
    """Self-normalised inverse propensity scoring: sum w r / sum w.

    Adding a constant to all rewards adds it to the value. Its bias is of the order 1 / `effective`;
    the interval is that of its linear approximation.

    Args:
        policy: (N, A), see `ips`.
        arm: int (N,), see `ips`.
        reward: (N,), see `ips`.
        propensity: (N,) or (N, A), see `ips`.
        clip: the largest weight, see `ips`.

    Raises:
        ValueError: see `ips`.

    References:
        Swaminathan and Joachims 2015, The self-normalized estimator for counterfactual learning,
        NIPS 28.

    >>> policy = np.tile([0.0, 1.0], (6, 1))
    >>> arm, reward = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1, 0])
    >>> round(snips(policy, arm, reward, np.full(6, 0.5)).mean, 4)
    0.6667
    """
    log = _log(policy, arm, reward, propensity, clip)
    mean = log.weight @ log.reward / log.weight.sum()
    return _value(mean + log.weight * (log.reward - mean) / log.weight.mean(), log)


def direct_method(policy: np.ndarray, predicted: np.ndarray) -> Value:
    """The direct method: the mean of the rewards that a model predicts for the policy's arms.

    Its interval describes the sampling of rows, but not the error of the reward model, which does
    not shrink with more rows.

    Args:
        policy: (N, A), see `ips`.
        predicted: (N, A), the reward of each arm, by a model that was not fitted to these rows.

    Raises:
        ValueError: see `ips`.
    """
    policy, predicted = _policy(policy), _predicted(predicted, policy)
    return Value(*interval((policy * predicted).sum(1)), len(policy), 1.0, 0.0)


def doubly_robust(
    policy: np.ndarray,
    arm: np.ndarray,
    reward: np.ndarray,
    propensity: np.ndarray,
    predicted: np.ndarray,
    clip: float = np.inf,
) -> Value:
    """Doubly robust: the mean of sum_a policy_a predicted_a + w (r - predicted[arm]).

    Args:
        policy: (N, A), see `ips`.
        arm: int (N,), see `ips`.
        reward: (N,), see `ips`.
        propensity: (N,) or (N, A), see `ips`.
        predicted: (N, A), the reward of each arm, by a model that was not fitted to these rows:
            from another log, or by cross-fitting in folds. A model fitted to these rows has also
            fitted their noise, which biases the estimate.
        clip: the largest weight; with clipping, a part of the model's errors remains.

    Raises:
        ValueError: see `ips`.

    References:
        Dudik, Langford and Li 2011, arXiv:1103.4601.

    >>> policy = np.tile([0.0, 1.0], (6, 1))
    >>> arm, reward = np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 0, 1, 1, 0])
    >>> predicted = np.full((6, 2), 0.5)
    >>> round(doubly_robust(policy, arm, reward, np.full(6, 0.5), predicted).mean, 4)
    0.6667
    """
    log = _log(policy, arm, reward, propensity, clip)
    predicted = _predicted(predicted, log.policy)
    taken = predicted[np.arange(len(predicted)), np.asarray(arm)]
    return _value((log.policy * predicted).sum(1) + log.weight * (log.reward - taken), log)


def estimated_propensity(
    context: np.ndarray, arm: np.ndarray, arms: int, folds: int = 5, seed: int = 0
) -> np.ndarray:
    """Estimate missing propensities of a log by cross-fitted multinomial logistic regression.

    The probabilities of a row come from a model that was fitted to the other folds and has not seen
    the row's arm (Chernozhukov et al. 2018). The columns are standardised, and their weights have
    the penalty |w|^2 / 2, as in scikit-learn with C = 1.

    The error of the estimate affects the value. A propensity that is half of the true one doubles
    the row's weight in `ips` and `snips`, and the mean of `ips` is only as right as the model. In
    `doubly_robust` the errors of propensities and of predicted rewards are multiplied, so two
    fairly good models are enough. No estimator can correct for information that the logging policy
    used and that is not in `context`: if it also affects the reward, the value is biased, and
    nothing in the log shows this. The intervals do not include the error of the estimate. A
    `mean_weight` far from 1 is a sign of a wrong model.

    Args:
        context: float (N, D), everything that the logging policy may have used.
        arm: int (N,), the arm that it took. Each arm that occurs must occur at least twice.
        arms: A, the number of arms.
        folds: number of parts of the log, each with its share of every arm's rows; at least 2.
        seed: the seed of the folds.

    Returns:
        float64 (N, A), rows with sum 1; 0 for arms that never occur.

    Raises:
        ValueError: shapes that do not fit; a context that is not finite; arms that are not integers
            in [0, A), or occur only once; fewer than 2 folds, or fewer than 2 arms in the log.

    References:
        Rosenbaum and Rubin 1983, The central role of the propensity score in observational studies
        for causal effects, Biometrika 70; Chernozhukov et al. 2018, Double/debiased machine
        learning for treatment and structural parameters, arXiv:1608.00060.

    >>> rng = np.random.default_rng(0)
    >>> context = rng.normal(size=(2000, 1))
    >>> true = 1 / (1 + np.exp(-context[:, 0]))  # of arm 1
    >>> arm = (rng.random(2000) < true).astype(int)
    >>> estimate = estimated_propensity(context, arm, arms=2)
    >>> bool(np.abs(estimate[:, 1] - true).max() < 0.05)
    True
    """
    context, arm = _finite("context", context), np.asarray(arm)
    if context.ndim != 2 or arm.shape != (len(context),):
        raise ValueError(
            f"context and arm must have shapes (N, D) and (N,), got {context.shape} and {arm.shape}"
        )
    if folds < 2:
        raise ValueError(f"folds must be at least 2, got {folds}")
    checks.arms(arm, arms)
    seen, place, count = np.unique(arm, return_inverse=True, return_counts=True)
    if len(seen) < 2 or count.min() < 2:
        raise ValueError(
            "arm must have at least 2 arms, each in at least 2 rows, got "
            f"{len(seen)} arms, and arm {seen[count.argmin()]} in {count.min()} rows"
        )
    # the rows of each arm in random order, given to the folds in turn
    order = np.random.default_rng(seed).permutation(len(arm))
    order = order[np.argsort(place[order], kind="stable")]
    fold = np.empty(len(arm), int)
    fold[order] = np.arange(len(arm)) % folds
    spread = context.std(0)
    x = (context - context.mean(0)) / np.where(spread > 0, spread, 1)
    x = np.concatenate([np.ones((len(x), 1)), x], 1)
    estimate = np.zeros((len(arm), arms))
    for k in range(folds):
        out = fold == k
        weights = _logistic(x[~out], place[~out], len(seen))
        estimate[np.ix_(out, seen)] = softmax(x[out] @ weights, 1)
    return estimate


def _logistic(x: np.ndarray, label: np.ndarray, classes: int) -> np.ndarray:
    """Weights (D, classes) of multinomial logistic regression; no penalty for the first column."""
    shape, one = (x.shape[1], classes), np.eye(classes)[label]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(shape)
        scores = log_softmax(x @ weights, 1)
        kept = np.concatenate([np.zeros((1, classes)), weights[1:]])
        slope = x.T @ (np.exp(scores) - one) + kept
        return -(scores * one).sum() + (kept**2).sum() / 2, slope.ravel()

    found = scipy.optimize.minimize(
        loss, np.zeros(x.shape[1] * classes), jac=True, method="L-BFGS-B"
    )
    return np.asarray(found.x).reshape(shape)


class _Log(NamedTuple):
    reward: np.ndarray
    whole: np.ndarray  # weights before clipping
    weight: np.ndarray
    policy: np.ndarray
    clip: float


def _value(rows: np.ndarray, log: _Log) -> Value:
    effective = float(log.weight.sum() ** 2 / (log.weight**2).sum())
    estimate = interval(rows) if effective >= FEWEST else (float(rows.mean()), -np.inf, np.inf)
    clipped = float((log.whole > log.clip).mean())
    return Value(*estimate, effective, float(log.whole.mean()), clipped)


def _log(
    policy: np.ndarray, arm: np.ndarray, reward: np.ndarray, propensity: np.ndarray, clip: float
) -> _Log:
    policy, reward = _policy(policy), _finite("reward", reward)
    propensity, arm, (rows, arms) = _finite("propensity", propensity), np.asarray(arm), policy.shape
    for name, column in (("arm", arm), ("reward", reward)):
        if column.shape != (rows,):
            raise ValueError(
                f"{name} must have shape ({rows},), as policy has rows, got {column.shape}"
            )
    checks.arms(arm, arms)
    if propensity.shape not in ((rows,), (rows, arms)):
        shapes = f"({rows},) or ({rows}, {arms})"
        raise ValueError(f"propensity must have shape {shapes}, got {propensity.shape}")
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}")
    if propensity.ndim == 2:
        _overlap(policy, propensity)
        propensity = propensity[np.arange(rows), arm]
    odd = (propensity <= 0) | (propensity > 1 + 1e-6)  # rounding of float32 sums is allowed
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(
            f"propensity must be in (0, 1], got {propensity[row]} for the arm taken in row {row}"
        )
    never = np.setdiff1d(np.flatnonzero(policy.any(0)), arm)
    if len(never):
        share = policy[:, never[0]].mean()
        raise ValueError(
            f"policy must take arms of the log only, got arm {never[0]} ({share:.2%} of the time), "
            "which is never in the log; its reward is unknown (no overlap)"
        )
    whole = policy[np.arange(rows), arm] / propensity
    if not whole.any():
        raise ValueError(
            "policy must take the logged arm in some row, got no such row (no overlap)"
        )
    return _Log(reward, whole, np.minimum(whole, clip), policy, clip)


def _overlap(policy: np.ndarray, propensity: np.ndarray) -> None:
    missing = (policy > 0) & (propensity <= 0)
    if missing.any():
        row, arm = np.argwhere(missing)[0]
        raise ValueError(
            f"propensity must be above 0 where the policy takes an arm, got 0 for arm {arm} in row "
            f"{row}, which the policy takes with probability {policy[row, arm]:.3g} "
            f"({missing.any(1).sum():,} such rows; no overlap)"
        )


def _policy(policy: np.ndarray) -> np.ndarray:
    policy = _finite("policy", policy)
    if policy.ndim != 2 or len(policy) < 2:
        raise ValueError(f"policy must have shape (N, A), N at least 2, got {policy.shape}")
    odd = (policy < 0).any(1) | (np.abs(policy.sum(1) - 1) > 1e-4)
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(
            f"policy must be probabilities with sum 1, got {policy[row].tolist()} in row {row}"
        )
    return policy


def _predicted(predicted: np.ndarray, policy: np.ndarray) -> np.ndarray:
    predicted = _finite("predicted", predicted)
    if predicted.shape != policy.shape:
        raise ValueError(
            f"predicted must have shape {policy.shape}, as policy, got {predicted.shape}"
        )
    return predicted


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    given = values
    try:
        values = np.asarray(given, np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"{name} must be numbers, got {given!r:.60}") from None
    if values.ndim == 0:
        raise ValueError(f"{name} must be an array with a number for each row, got {given!r}")
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}")
    return values
