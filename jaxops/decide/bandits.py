"""Contextual bandits, which learn which arm to show while they show arms; pure functions.

A bandit computes the probability of taking each arm, and draws from exactly these probabilities.
So the logged `Choice.propensity` is exact, and `jaxops.decide.off_policy` can use it to evaluate
other policies.

    bandit = thompson(arms=4, features=8)
    state = bandit.init()
    arm, propensity = bandit.choose(state, context, key)      # a batch of decisions at once
    state = bandit.update(state, context, arm, reward)        # now, or when the feedback arrives

All functions may be jitted, scanned over and mapped (`vmap` over states runs a thousand bandits in
one program). A linear state holds sums over rows, so feedback that arrives late, in any order and
in any batches, gives the same posterior, and an update is one matrix product. A choice factorises
the sums, once for a batch of decisions. In float32 this is as exact as Sherman-Morrison updates of
the inverse, one row at a time. After 20,000 rows of 8 correlated features, both are wrong by 1 % of
a weight's standard deviation; with independent features, by 0.1 %.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special
from jax.scipy.linalg import cho_solve, solve_triangular

from jaxops.decide import _checks as checks

Array = jax.Array
State = Any
NODES = np.linspace(-6, 6, 33)  # standard deviations about each arm's mean


class Choice(NamedTuple):
    """The decisions for B rows.

    Attributes:
        arm: int32 (B,), the arm to take.
        propensity: float32 (B,), the probability with which it was drawn.
    """

    arm: Array
    propensity: Array


class Bandit(NamedTuple):
    """A way to choose among A arms.

    Attributes:
        init: `() -> state`.
        probabilities: `(state, context, allowed=None) -> (B, A)`, the probability of taking each
            arm. `context` is float (B, D), a row for each decision; a bandit without features uses
            only B. `allowed` is bool (A,) or (B, A), the arms on offer; other arms get 0.
        update: `(state, context, arm, reward, mask=None) -> state`, from rows whose reward is
            known. `arm` is int (B,) and `reward` is float (B,); `mask` (B,) is 0 for a row that is
            padding or whose reward is not yet known. Outside of jit it raises ValueError for an arm
            outside [0, A), and for a reward or context that is not finite.
    """

    init: Callable[[], State]
    probabilities: Callable[..., Array]
    update: Callable[..., State]

    def choose(
        self, state: State, context: Array, key: Array, allowed: Array | None = None
    ) -> Choice:
        """Draw an arm from `probabilities` for each row of a context.

        Args:
            state: the state of the bandit.
            context: float (B, D).
            key: a key of `jax.random`.
            allowed: bool (A,) or (B, A), the arms on offer, at least one in each row; None for all.
                If arms come and go, make a bandit with spare arms, and allow those that are in use.

        Raises:
            ValueError: `allowed` is not bool, or has a row without an arm; outside of jit also a
                context that is not finite.
        """
        checks.finite(context=context)
        if allowed is None:
            return _drawn(self.probabilities(state, context), key)
        if not isinstance(allowed, jax.core.Tracer):
            given = np.asarray(allowed)
            if given.dtype != bool or not given.any(-1).all():
                raise ValueError(
                    "allowed must be bool with at least 1 arm in each row, got "
                    f"{given.dtype} with {given.sum(-1).min()} arms in some row"
                )
        return _drawn(self.probabilities(state, context, allowed), key)


def offers(allowed: Array | None, count: int, arms: int) -> Array:
    """Bool (count, arms), the arms on offer; None allows all."""
    return jnp.broadcast_to(True if allowed is None else jnp.asarray(allowed), (count, arms))


@jax.jit
def _drawn(p: Array, key: Array) -> Choice:
    arm = jax.random.categorical(key, jnp.log(p)).astype(jnp.int32)
    return Choice(arm, jnp.take_along_axis(p, arm[:, None], axis=1)[:, 0])


class Linear(NamedTuple):
    """Sums over rows x with rewards r, for the regression r ~ x . weights of each arm.

    Attributes:
        precision: (A, D, D), ridge I + sum x x'.
        moment: (A, D), sum r x.
        squares: (), the minimum of sum (r - x . weights)^2 + ridge |weights|^2 over all arms.
        rows: (), the number of rows.
    """

    precision: Array
    moment: Array
    squares: Array
    rows: Array


def start(arms: int, features: int, ridge: float) -> Linear:
    """The state before the first row."""
    eye = jnp.broadcast_to(ridge * jnp.eye(features), (arms, features, features))
    return Linear(eye, jnp.zeros((arms, features)), jnp.zeros(()), jnp.zeros(()))


def posterior(state: Linear) -> tuple[Array, Array]:
    """Each arm's weights, (A, D), and the lower Cholesky factor of their precision, (A, D, D)."""
    factor = jnp.linalg.cholesky(state.precision)
    return cho_solve((factor, True), state.moment[..., None])[..., 0], factor


def values(state: Linear, context: Array) -> tuple[Array, Array]:
    """Mean x . weights of each arm, (B, A), and sqrt(x' precision^-1 x), (B, A)."""
    mean, factor = posterior(state)
    rows = jnp.broadcast_to(context.T, (len(mean), *context.T.shape))
    half = solve_triangular(factor, rows, lower=True)
    return dot("bd,ad->ba", context, mean), jnp.sqrt((half**2).sum(1)).T


def noise_of(state: Linear, noise: float | None) -> Array:
    """The rewards' standard deviation: `noise`, or an estimate.

    The estimate is the root mean square of the residuals and one pseudo-residual of 1.
    """
    return jnp.sqrt((1 + state.squares) / (1 + state.rows)) if noise is None else jnp.float32(noise)


def learn(
    state: Linear, context: Array, arm: Array, reward: Array, mask: Array | None = None
) -> Linear:
    """The state after B more rows."""
    arms, features = state.moment.shape
    return _learn(state, *checked(arms, features, context, arm, reward, mask))


@jax.jit
def _learn(state: Linear, context: Array, arm: Array, reward: Array, weight: Array) -> Linear:
    chosen = jax.nn.one_hot(arm, len(state.moment)) * weight[:, None]
    rows = chosen[:, :, None] * context[:, None, :]
    new = state._replace(
        precision=state.precision + dot("bad,be->ade", rows, context),
        moment=state.moment + dot("bad,b->ad", rows, reward),
        rows=state.rows + weight.sum(),
    )
    before, after = posterior(state)[0], posterior(new)[0]
    # equal to sum r^2 - weights . moment, which is a small difference of large numbers
    error = reward - (context * after[arm]).sum(1)
    change = after - before
    squares = (weight * error**2).sum() + dot("ad,ade,ae->", change, state.precision, change)
    return new._replace(squares=state.squares + squares)


@lru_cache(maxsize=64)
def linucb(arms: int, features: int, alpha: float = 1.0, ridge: float = 1.0) -> Bandit:
    """LinUCB: the arm with the largest upper bound, x . weights_a + alpha sqrt(x' A_a^-1 x).

    A_a = ridge I + sum x x' over the rows of arm a.

    Its propensities are 1 (or 1 / T if T arms are tied, as at the start), so other policies cannot
    be evaluated from its log. To make this possible, randomise it with `explore`. With alpha 0 it
    is greedy, and together with `explore` epsilon-greedy.

    Args:
        arms: A, each with its own weights.
        features: D. If the mean of the rewards is not 0, one feature must be constant (ones).
        alpha: weight of the uncertainty; about the standard deviation of a reward.
        ridge: penalty of the regression.

    References:
        Li et al. 2010, arXiv:1003.0146, algorithm 1 (disjoint linear models).

    >>> bandit = linucb(arms=2, features=1, alpha=0.5)
    >>> x = jnp.ones((3, 1))
    >>> state = bandit.update(bandit.init(), x, np.array([0, 0, 1]), np.array([1.0, 1.0, 0.0]))
    >>> bandit.choose(state, x[:1], jax.random.key(0)).arm.tolist()
    [0]
    """
    checks.some(arms=arms)
    checks.not_negative(alpha=alpha)
    checks.positive(ridge=ridge)

    @jax.jit
    def probabilities(state: Linear, context: Array, allowed: Array | None = None) -> Array:
        mean, spread = values(state, _context(features, context))
        bound = jnp.where(offers(allowed, *mean.shape), mean + alpha * spread, -jnp.inf)
        # A sort does not change its numbers. Without it the compiler may compute `upper` once for
        # the maximum and again, with other rounding, for the comparison; then no arm would be best.
        upper, arm = jax.lax.top_k(bound, arms)
        best = (upper == upper[:, :1]).astype(jnp.float32)
        p = best / best.sum(1, keepdims=True)
        return jnp.take_along_axis(p, jnp.argsort(arm, axis=1), axis=1)

    return Bandit(lambda: start(arms, features, ridge), probabilities, learn)


@lru_cache(maxsize=64)
def thompson(arms: int, features: int, noise: float | None = None, ridge: float = 1.0) -> Bandit:
    """Thompson sampling: each arm with the posterior probability that it is the best.

    Rewards are x . weights_a + noise. weights_a has the prior N(0, noise^2 / ridge I), so the
    values of the arms for a row are independent N(m_a, s_a^2), and arm a is the best with
    probability

        integral prod_{b != a} F_b(v) dF_a(v).

    This integral is computed, to about 0.001, instead of drawing weights, so that propensities are
    known.

    Args:
        arms: A, each with its own weights.
        features: D. If the mean of the rewards is not 0, one feature must be constant (ones).
        noise: standard deviation of a reward. By default it is learned, from an initial value of 1
            that has the weight of one row; so scale rewards to about that size.
        ridge: precision of the prior, relative to that of a row.

    References:
        Agrawal and Goyal 2013, arXiv:1209.3352; Thompson 1933, Biometrika 25.

    >>> bandit = thompson(arms=2, features=1, noise=1.0)
    >>> x = jnp.ones((4, 1))
    >>> state = bandit.update(bandit.init(), x, np.array([0, 0, 0, 1]), np.array([2.0, 2, 2, 0]))
    >>> # 1.5 +- 0.5 against 0 +- 0.707: Phi(1.5 / sqrt(0.75)) = 0.9584
    >>> print(np.asarray(bandit.probabilities(state, x[:1])).round(3))
    [[0.958 0.042]]
    """
    checks.some(arms=arms)
    checks.positive(ridge=ridge, **({} if noise is None else {"noise": noise}))

    @jax.jit
    def probabilities(state: Linear, context: Array, allowed: Array | None = None) -> Array:
        mean, spread = values(state, _context(features, context))
        spread = spread * noise_of(state, noise)
        nodes = mean[..., None] + spread[..., None] * jnp.asarray(NODES, jnp.float32)[None, None]
        nodes = jnp.sort(nodes.reshape(len(mean), 1, -1))
        log_cdf = special.log_ndtr((nodes - mean[..., None]) / spread[..., None])
        return _best(log_cdf, offers(allowed, *mean.shape))

    return Bandit(lambda: start(arms, features, ridge), probabilities, learn)


class Counts(NamedTuple):
    """1 + successes and 1 + failures of each arm, (A,) each."""

    successes: Array
    failures: Array


@lru_cache(maxsize=64)
def beta_thompson(arms: int) -> Bandit:
    """Thompson sampling for rewards from 0 to 1, such as clicks, without context.

    The rate of an arm has the prior Beta(1, 1) and the posterior Beta(1 + successes, 1 + failures);
    the probability of being the best is computed as in `thompson`. A reward between 0 and 1 counts
    as a fraction of a success.

    Args:
        arms: A, the number of arms.

    References:
        Chapelle and Li 2011, An empirical evaluation of Thompson sampling, NIPS 24.

    >>> bandit = beta_thompson(2)
    >>> nothing = jnp.zeros((1, 0))
    >>> state = bandit.update(bandit.init(), nothing, np.array([1]), np.array([1.0]))
    >>> # Beta(2, 1) exceeds Beta(1, 1) with probability 2 / 3
    >>> print(np.asarray(bandit.probabilities(state, nothing)).round(2))
    [[0.33 0.67]]
    """
    checks.some(arms=arms)

    def update(
        state: Counts, context: Array, arm: Array, reward: Array, mask: Array | None = None
    ) -> Counts:
        return _count(state, *checked(arms, None, context, arm, reward, mask, unit=True)[1:])

    @jax.jit
    def probabilities(state: Counts, context: Array, allowed: Array | None = None) -> Array:
        a, b = state
        # the logit of a Beta variable is nearly normal, with known moments
        mean = special.digamma(a) - special.digamma(b)
        spread = jnp.sqrt(special.polygamma(1, a) + special.polygamma(1, b))
        nodes = mean[:, None] + spread[:, None] * jnp.asarray(NODES, jnp.float32)[None]
        nodes = jax.nn.sigmoid(jnp.sort(nodes.ravel()))
        grid = jnp.broadcast_to(nodes, (arms, nodes.size))
        a, b = (jnp.broadcast_to(x[:, None], grid.shape) for x in state)
        cdf = special.betainc(a, b, grid)
        log_cdf = jnp.log(jnp.maximum(cdf, 1e-30))[None]
        if allowed is None:
            return jnp.broadcast_to(_best(log_cdf), (len(context), arms))
        return _best(log_cdf, offers(allowed, len(context), arms))

    return Bandit(lambda: Counts(jnp.ones(arms), jnp.ones(arms)), probabilities, update)


@jax.jit
def _count(state: Counts, arm: Array, reward: Array, weight: Array) -> Counts:
    chosen = jax.nn.one_hot(arm, len(state.successes)) * weight[:, None]
    return Counts(
        state.successes + dot("ba,b->a", chosen, reward),
        state.failures + dot("ba,b->a", chosen, 1 - reward),
    )


@lru_cache(maxsize=64)
def explore(bandit: Bandit, epsilon: float) -> Bandit:
    """The bandit, which with probability epsilon takes a uniformly random arm instead.

    So every propensity is at least epsilon / A, and every off-policy weight at most A / epsilon.

    Args:
        bandit: any bandit.
        epsilon: in [0, 1].

    Raises:
        ValueError: an epsilon outside [0, 1].

    >>> bandit = explore(linucb(arms=4, features=1, alpha=0), 0.2)  # epsilon-greedy
    >>> x = jnp.ones((1, 1))
    >>> state = bandit.update(bandit.init(), x, np.array([2]), np.array([1.0]))
    >>> print(np.asarray(bandit.probabilities(state, x)).round(3))
    [[0.05 0.05 0.85 0.05]]
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must be in [0, 1], got {epsilon}")

    @jax.jit
    def probabilities(state: State, context: Array, allowed: Array | None = None) -> Array:
        if allowed is None:
            p = bandit.probabilities(state, context)
        else:
            p = bandit.probabilities(state, context, allowed)
        some = offers(allowed, *p.shape).astype(p.dtype)
        return (1 - epsilon) * p + epsilon * some / some.sum(1, keepdims=True)

    return bandit._replace(probabilities=probabilities)


def _best(log_cdf: Array, allowed: Array | None = None) -> Array:
    """The probability that each arm is the best, (B, A), from log F_a at sorted nodes (B, A, J)."""
    if allowed is not None:  # an arm that is not on offer is always below all others
        log_cdf = jnp.where(allowed[..., None], log_cdf, 0)
    others = jnp.exp(log_cdf.sum(1, keepdims=True) - log_cdf)
    steps = jnp.diff(jnp.exp(log_cdf))
    p = (steps * (others[..., 1:] + others[..., :-1]) / 2).sum(-1)
    return p / p.sum(1, keepdims=True)


def dot(subscripts: str, *arrays: Array) -> Array:
    """`einsum` in full float32, also on an accelerator."""
    return jnp.einsum(subscripts, *arrays, precision="highest")


def checked(
    arms: int,
    features: int | None,
    context: Array,
    arm: Array,
    reward: Array,
    mask: Array | None,
    unit: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Checked context, arm, reward and weight of rows; zeros where the weight is 0.

    Raises:
        ValueError: shapes that do not fit; outside of jit also an arm outside [0, arms), a reward
            or context that is not finite, or (with `unit`) a reward outside [0, 1].
    """
    context, weight = _context(features, context), _weights(mask, len(context))
    for name, column in (("arm", arm), ("reward", reward), ("mask", weight)):
        if jnp.shape(column) != (len(context),):
            shape = f"({len(context)},), as context has rows"
            raise ValueError(f"{name} must have shape {shape}, got {jnp.shape(column)}")
    if not any(isinstance(x, jax.core.Tracer) for x in (context, arm, reward, weight)):
        real = np.asarray(weight) > 0
        a, r, x = np.asarray(arm)[real], np.asarray(reward)[real], np.asarray(context)[real]
        if a.size:
            checks.arms(a, arms)
        for name, rows in (("context", x), ("reward", r)):
            if not np.isfinite(rows).all():
                raise ValueError(f"{name} must be finite where mask is not 0, got NaN or infinity")
        if unit and r.size and not 0 <= r.min() <= r.max() <= 1:
            raise ValueError(f"reward must be in [0, 1], got {r.min()} to {r.max()}")
    context, reward = _zeroed(context, jnp.asarray(reward, jnp.float32), weight)
    return context, jnp.asarray(arm), reward, weight


@jax.jit
def _zeroed(context: Array, reward: Array, weight: Array) -> tuple[Array, Array]:
    keep = weight > 0
    return jnp.where(keep[:, None], context, 0), jnp.where(keep, reward, 0)


def _context(features: int | None, context: Array) -> Array:
    if jnp.ndim(context) != 2 or features not in (None, jnp.shape(context)[1]):
        shape = "(B, D)" if features is None else f"(B, {features})"
        raise ValueError(f"context must have shape {shape}, got {jnp.shape(context)}")
    return jnp.asarray(context, jnp.float32)


def _weights(mask: Array | None, count: int) -> Array:
    return jnp.ones(count) if mask is None else jnp.asarray(mask, jnp.float32)
