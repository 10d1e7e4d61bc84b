"""What another policy would have earned, from the log of the one that ran.

A log has, for each of N decisions, the arm taken, its reward, and the probability with which the
running policy took it (its propensity). A policy to evaluate says with which probabilities it
would take each of the A arms in the same situations, (N, A). All here is NumPy in float64.

    ips             unbiased if the propensities are right; wide where the policies differ much
    snips           the same over the weights' mean: a little biased, mostly narrower
    direct_method   the mean of a reward model's predictions: as biased as the model
    doubly_robust   the same, with the model's errors on the log put right by ips: unbiased if
                    either the propensities or the model are right, and mostly the narrowest

Where few rows decide the intervals are somewhat narrow: in simulation, with 110 effective rows of
400, those of 95 % held the truth in 91 to 93 %. Rows are taken as independent; several decisions
about one customer are not, and make the intervals too narrow. Choosing the best of many policies
by their values needs another log to evaluate it.
"""

from typing import NamedTuple

import numpy as np

from jaxops.trust.intervals import interval


class Value(NamedTuple):
    """A policy's value, a decision's mean reward.

    Attributes:
        mean: the estimate.
        low: where its interval begins; BCa bootstrap over rows, see `intervals.interval`.
        high: where it ends.
        effective: (sum w)^2 / sum w^2, as many rows would the estimate stand on if the log were
            the policy's own; N for `direct_method`. Far below N, a few rows decide.
        mean_weight: of w = policy / propensity, before clipping; 1 but for chance where the
            propensities are right and the running policy could take whatever this one does.
        clipped: the share of rows whose weight was cut.
    """

    mean: float
    low: float
    high: float
    effective: float
    mean_weight: float
    clipped: float

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def ips(
    policy: np.ndarray,
    arm: np.ndarray,
    reward: np.ndarray,
    propensity: np.ndarray,
    clip: float = np.inf,
) -> Value:
    """Inverse propensity score: mean of w r, w = policy[arm] / propensity.

    Args:
        policy: (N, A) probabilities of the policy to evaluate; rows sum to 1.
        arm: (N,) int, taken by the policy that ran.
        reward: (N,) of the arm taken.
        propensity: (N,) the probability with which it was taken; or (N, A), of each arm.
        clip: greatest weight; cutting weights lessens the variance and BIASES the estimate, for
            rewards that are not negative downwards.

    Raises:
        ValueError: shapes that do not fit, NaN, probabilities that are none, a propensity of 0, an
            arm that the policy takes and the running policy could not, or never did (no overlap).

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
    """Self-normalised: sum w r / sum w; adding a constant to all rewards adds it to the value.

    Biased by the order of 1 / `effective`; the interval is that of its linear part. Arguments and
    errors are those of `ips`; and at least one row must have a weight above 0.

    References:
        Swaminathan and Joachims 2015, The self-normalized estimator for counterfactual learning,
        NIPS 28.
    """
    log = _log(policy, arm, reward, propensity, clip)
    mean = log.weight @ log.reward / log.weight.sum()
    return _value(mean + log.weight * (log.reward - mean) / log.weight.mean(), log)


def direct_method(policy: np.ndarray, predicted: np.ndarray) -> Value:
    """The direct method: mean of the rewards predicted for the policy's arms.

    Its interval knows of other rows, not of the model's error, which no number of rows removes.

    Args:
        policy: (N, A), see `ips`.
        predicted: (N, A), each arm's reward by a model that was not fitted to these rows.

    Raises:
        ValueError: as `ips`.
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
    """Mean of sum_a policy_a predicted_a + w (r - predicted[arm]).

    Args:
        policy: (N, A), as the next three in `ips`.
        arm: likewise.
        reward: likewise.
        propensity: likewise.
        predicted: (N, A), each arm's reward by a model that was not fitted to these rows: of
            another log, or in folds, each predicted by the rest. Of its own rows a model knows the
            noise, which biases.
        clip: greatest weight; cut weights leave part of the model's errors in.

    Raises:
        ValueError: as `ips`.

    References:
        Dudik, Langford and Li 2011, arXiv:1103.4601.
    """
    log = _log(policy, arm, reward, propensity, clip)
    predicted = _predicted(predicted, log.policy)
    taken = predicted[np.arange(len(predicted)), np.asarray(arm)]
    return _value((log.policy * predicted).sum(1) + log.weight * (log.reward - taken), log)


class _Log(NamedTuple):
    reward: np.ndarray
    whole: np.ndarray  # weights before clipping
    weight: np.ndarray
    policy: np.ndarray
    clip: float


def _value(rows: np.ndarray, log: _Log) -> Value:
    found = interval(rows)
    effective = float(log.weight.sum() ** 2 / (log.weight**2).sum())
    clipped = float((log.whole > log.clip).mean())
    return Value(*found, effective, float(log.whole.mean()), clipped)


def _log(
    policy: np.ndarray, arm: np.ndarray, reward: np.ndarray, propensity: np.ndarray, clip: float
) -> _Log:
    policy, reward = _policy(policy), _finite("reward", reward)
    propensity, arm, (rows, arms) = _finite("propensity", propensity), np.asarray(arm), policy.shape
    for name, column in (("arm", arm), ("reward", reward)):
        if column.shape != (rows,):
            raise ValueError(f"{name}: found shape {column.shape}, wanted ({rows},) as of policy")
    if not np.issubdtype(arm.dtype, np.integer) or not 0 <= arm.min() <= arm.max() < arms:
        raise ValueError(
            f"arm: found {arm.min()} to {arm.max()} ({arm.dtype}), wanted 0 to {arms - 1}"
        )
    if propensity.shape not in ((rows,), (rows, arms)):
        wanted = f"({rows},) or ({rows}, {arms})"
        raise ValueError(f"propensity: found shape {propensity.shape}, wanted {wanted}")
    if not clip > 0:
        raise ValueError(f"clip: found {clip}, wanted a weight above 0")
    if propensity.ndim == 2:
        _overlap(policy, propensity)
        propensity = propensity[np.arange(rows), arm]
    odd = (propensity <= 0) | (propensity > 1 + 1e-6)  # float32 sums of probabilities
    if odd.any():
        found = f"{propensity[odd][0]} in row {int(odd.argmax())}"
        raise ValueError(f"propensity: found {found} for the arm taken there; wanted above 0, to 1")
    never = np.setdiff1d(np.flatnonzero(policy.any(0)), arm)
    if len(never):
        share = policy[:, never[0]].mean()
        raise ValueError(
            f"policy: takes arm {never[0]} ({share:.2%} of the time), which the log never has; "
            "nothing is known of it (no overlap)"
        )
    whole = policy[np.arange(rows), arm] / propensity
    if not whole.any():
        raise ValueError("policy: never takes the arm that was taken, in any row (no overlap)")
    return _Log(reward, whole, np.minimum(whole, clip), policy, clip)


def _overlap(policy: np.ndarray, propensity: np.ndarray) -> None:
    missing = (policy > 0) & (propensity <= 0)
    if missing.any():
        row, arm = np.argwhere(missing)[0]
        raise ValueError(
            f"propensity: 0 for arm {arm} in row {row}, where the policy takes it with probability "
            f"{policy[row, arm]:.3g}; so in {missing.any(1).sum():,} rows (no overlap)"
        )


def _policy(policy: np.ndarray) -> np.ndarray:
    policy = _finite("policy", policy)
    if policy.ndim != 2 or len(policy) < 2:
        raise ValueError(f"policy: found shape {policy.shape}, wanted (N, A), two rows or more")
    odd = (policy < 0).any(1) | (np.abs(policy.sum(1) - 1) > 1e-4)
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(f"policy: found {policy[row]} in row {row}, wanted probabilities, sum 1")
    return policy


def _predicted(predicted: np.ndarray, policy: np.ndarray) -> np.ndarray:
    predicted = _finite("predicted", predicted)
    if predicted.shape != policy.shape:
        raise ValueError(f"predicted: found shape {predicted.shape}, wanted {policy.shape}")
    return predicted


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        row = int(np.argwhere(~np.isfinite(values))[0, 0]) if values.ndim else 0
        raise ValueError(f"{name}: found NaN or infinity in row {row}, wanted finite numbers")
    return values
