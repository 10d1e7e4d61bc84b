"""An audit of a private step: can one tell from its result which canaries it was trained on?

The claim of epsilon bounds how often a guess may be right. Canaries are rows that are put in or
left out by the toss of a coin; from the trained parameters each gets a score, and the audit guesses
"in" for the highest and "out" for the lowest. More right guesses than the claim allows refute it.
An audit cannot prove a claim: it finds bugs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
import scipy

from jaxops.task import Column, Task, supervised


class Audit(NamedTuple):
    """What an audit found.

    Attributes:
        epsilon: epsilon is at least this, with the confidence asked for; 0 if nothing was found.
        claimed: the epsilon that was claimed.
        right: number of right guesses.
        guesses: number of guesses.
        canaries: number of canaries.

    >>> Audit(epsilon=2.1, claimed=1.0, right=60, guesses=64, canaries=1000).refuted
    True
    """

    epsilon: float
    claimed: float
    right: int
    guesses: int
    canaries: int

    @property
    def refuted(self) -> bool:
        """Whether the claim is wrong."""
        return self.epsilon > self.claimed


def audit(
    run: Callable[[np.ndarray], Any],
    *,
    canaries: int,
    epsilon: float,
    delta: float,
    guesses: int | None = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> Audit:
    """A lower bound of epsilon from one training run with many canaries.

    Args:
        run: `(included: (canaries,) bool) -> (canaries,) scores`. It trains, with the canaries that
            are included among its rows, and gives a score for each canary, higher for those that
            look included: minus its loss, say, or what the parameters say of it.
        canaries: number of canaries, a thousand or more.
        epsilon: the claim.
        delta: that of the claim.
        guesses: how many canaries to guess, half of them from each end of the scores; a tenth of
            the canaries by default. Decide before the run: the best of several is no bound.
        confidence: with which the bound holds.
        seed: of the coins.

    Raises:
        ValueError: an argument is out of its range, or the scores are not finite numbers, one for
            each canary.

    References:
        Steinke, Nasr and Jagielski 2023, Privacy auditing with one (1) training run,
        arXiv:2305.08846.

    A "training" that gives all canaries away:

    >>> audit(lambda included: included * 1.0, canaries=1000, epsilon=1.0, delta=1e-5).refuted
    True
    """
    guesses = canaries // 10 if guesses is None else guesses
    if canaries < 2 or not 2 <= guesses <= canaries:
        raise ValueError(
            f"guesses must be in [2, {canaries}] (the number of canaries), got {guesses}"
        )
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, got {epsilon}")
    _check_chances(delta, confidence)  # before it trains
    rng = np.random.default_rng(seed)
    included = rng.random(canaries) < 0.5
    scores = np.asarray(run(included), np.float64)
    if scores.shape != (canaries,) or not np.isfinite(scores).all():
        raise ValueError(
            f"run must return finite scores of shape ({canaries},), got shape {scores.shape}"
        )
    order = rng.permutation(canaries)  # ties are broken by chance, not by place
    order = order[np.argsort(scores[order], kind="stable")]
    each = guesses // 2
    right = int((~included[order[:each]]).sum() + included[order[-each:]].sum())
    bound = one_run_bound(right, 2 * each, canaries, delta, confidence)
    return Audit(bound, epsilon, right, 2 * each, canaries)


def one_run_bound(
    right: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """The least epsilon that does not contradict so many right guesses of canaries in one run.

    Under (epsilon, delta), with q = 1 / (1 + exp(-epsilon)) and a binomial variable W of `guesses`
    trials with q, the chance of v right guesses or more is at most
    P(W >= v) + 2 canaries delta max over i of P(v > W >= v - i) / i. The bound is the epsilon at
    which that is 1 - confidence.

    Args:
        right: v, the number of right guesses.
        guesses: number of canaries that were guessed.
        canaries: number of canaries, each included with probability 0.5.
        delta: of the claim, in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    References:
        Steinke, Nasr and Jagielski 2023, arXiv:2305.08846, theorem 5.2 and appendix D.

    >>> round(one_run_bound(right=100, guesses=100, canaries=100, delta=0.0), 2)
    3.49
    """
    if not 0 <= right <= guesses <= canaries:
        raise ValueError(
            f"right, guesses and canaries must not fall, got {right}, {guesses} and {canaries}"
        )
    _check_chances(delta, confidence)

    def chance(epsilon: float) -> float:
        q = 1 / (1 + np.exp(-epsilon))
        i = np.arange(1, right + 1)
        between = scipy.stats.binom.pmf(right - i, guesses, q).cumsum()
        more = (between / i).max(initial=0.0)
        return float(scipy.stats.binom.sf(right - 1, guesses, q) + 2 * canaries * delta * more)

    return _largest_refuted(lambda epsilon: chance(epsilon) < 1 - confidence)


def many_runs_bound(
    right_in: int,
    runs_in: int,
    right_out: int,
    runs_out: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """The least epsilon that does not contradict guesses of one canary in many runs.

    With a = P(guess "in" | in) and b = P(guess "in" | out), (epsilon, delta) demands
    a <= exp(epsilon) b + delta and 1 - b <= exp(epsilon) (1 - a) + delta. The rates are bounded by
    Clopper and Pearson's intervals, which hold together with the confidence.

    Args:
        right_in: number of runs with the canary in which it was guessed to be in.
        runs_in: number of runs with it.
        right_out: number of runs without it in which it was guessed to be out.
        runs_out: number of runs without it.
        delta: of the claim, in [0, 1).
        confidence: in (0, 1).

    Raises:
        ValueError: an argument is out of its range.

    References:
        Jagielski, Ullman and Oprea 2020, Auditing differentially private machine learning,
        arXiv:2006.07709.

    >>> round(many_runs_bound(500, 500, 500, 500, delta=1e-5), 2)
    4.91
    """
    if not (0 <= right_in <= runs_in and 0 <= right_out <= runs_out and runs_in and runs_out):
        raise ValueError(
            "right guesses must be at most the runs, at least 1 of each kind, got "
            f"{right_in} of {runs_in} and {right_out} of {runs_out}"
        )
    _check_chances(delta, confidence)
    alpha = (1 - confidence) / 2  # for each of the two rates

    def at_least(right: int, runs: int) -> float:
        return float(scipy.stats.beta.ppf(alpha, right, runs - right + 1)) if right else 0.0

    hit, reject = at_least(right_in, runs_in), at_least(right_out, runs_out)
    odds = [(hit - delta) / (1 - reject), (reject - delta) / (1 - hit)]
    return float(np.log(max(1.0, *odds)))


def canary_task(canaries: int) -> Task:
    """A task whose rows are canaries in the space of gradients, for an audit of a step.

    The loss of a row is -scale w[canary], so its gradient has the norm `scale` in a coordinate
    of its own, and w[canary] of the trained parameters is its score. A step that clips and adds
    noise as it should hides the scale. Such rows are what the proof of DP-SGD has in mind, so what
    the audit finds is close to what anybody can find.

    Args:
        canaries: number of canaries.

    Returns:
        A task with the columns `canary`, int (B,), and `scale`, float (B,). Its parameters are an
        embedding w, (canaries, 1), zeros at the start, and its predictions the scores.

    Raises:
        ValueError: no canaries.

    >>> import jax
    >>> task = canary_task(3)
    >>> batch = {"canary": np.array([2]), "scale": np.array([5.0], np.float32)}
    >>> params, extra = task.init(jax.random.key(0), batch)
    >>> loss = lambda params: task.loss(params, extra, batch, jax.random.key(0), True)[0]
    >>> jax.grad(loss)(params)["embedding"][:, 0].tolist()
    [0.0, 0.0, -5.0]
    """
    if canaries < 1:
        raise ValueError(f"canaries must be at least 1, got {canaries}")
    return supervised(
        nn.Embed(canaries, 1, embedding_init=nn.initializers.zeros),
        inputs=lambda batch, key: batch["canary"],
        loss=lambda outputs, batch, train: -batch["scale"] * outputs[:, 0],
        metrics=lambda outputs, batch, weights: {},
        predict=lambda outputs: outputs[:, 0],
        columns=(Column("canary", (), "int", classes=canaries), Column("scale", target=True)),
    )


def _check_chances(delta: float, confidence: float) -> None:
    if not 0 <= delta < 1:
        raise ValueError(f"delta must be in [0, 1), got {delta}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")


def _largest_refuted(refuted: Callable[[float], bool]) -> float:
    """The largest epsilon, to 0.0001, that is refuted, where smaller ones are too; 0 for none."""
    low, high = 0.0, 1.0
    while high < 50 and refuted(high):
        high *= 2
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
