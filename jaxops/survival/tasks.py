"""Tasks on times: Cox's loss, discrete hazards, and DeepHit; any module of features is the trunk.

A module with members, such as `tabular.TabM`, gives outputs (B, members, outputs): the loss is the
mean over the members, and so is the prediction.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.losses import over_members
from jaxops.survival.curves import kaplan_meier
from jaxops.survival.outcomes import outcome
from jaxops.task import Array, Batch, Column, Task, recorded, row_weights, supervised

NEVER = -1e9  # the log hazard of a row of padding


@recorded
def deep_surv(module: Any, features: int, entry: bool = False) -> Task:
    """Cox's regression with a network for the log hazard.

    The loss of a row with an event is -(s - log sum over the rows at risk in the batch of exp(s)),
    ties by Breslow's method; that of a censored row is 0. The loss couples the rows of a batch, so
    a batch should be large: all rows, or several hundred. A batch holds `features`, `time` and
    `event`, and with entry times `entry`: a row is at risk at t if entry < t <= time. The sums over
    the rows at risk are then those of B x B matrices, as running sums that rows leave as well would
    lose the digits of small ones.

    Args:
        module: a Flax module, (B, features) float32 to (B, 1).
        features: number of features of a row.
        entry: whether rows are watched from times of their own on (left truncation).

    Returns:
        A task that predicts log hazards (B,), up to a constant; see `survival.breslow` for curves.

    Raises:
        ValueError: a module whose `outputs` is not 1.

    References:
        Katzman et al. 2018, DeepSurv, arXiv:1606.00931.

    >>> from jaxops import survival
    >>> survival.deep_surv(survival.MLP((8,)), features=3).coupled
    True
    """
    _check_outputs(module, 1)

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        one = _truncated_likelihood if entry else _partial_likelihood
        return _of_members(lambda out: one(out[:, 0], batch), outputs)

    def predict(outputs: Array) -> Array:
        return over_members(outputs[..., 0], rank=1)

    columns = _columns(features, 1)
    columns += (Column("entry", (), "float", target=True),) * entry
    return supervised(module, _inputs, loss, _no_metrics, predict, columns, coupled=True)


def _partial_likelihood(score: Array, batch: Batch) -> Array:
    """The loss (B,) of log hazards (B,)."""
    order = jnp.argsort(-jnp.asarray(batch["time"], jnp.float32))
    time = -jnp.asarray(batch["time"], jnp.float32)[order]
    score = jnp.where(row_weights(batch) > 0, score, NEVER)[order]
    last = jnp.searchsorted(time, time, side="right") - 1
    at_risk = jax.lax.cumlogsumexp(score)[last]
    losses = jnp.where(batch["event"][order] > 0, at_risk - score, 0.0)
    return jnp.zeros_like(losses).at[order].set(losses)


def _truncated_likelihood(score: Array, batch: Batch) -> Array:
    """The loss (B,) of log hazards (B,) of rows that enter at times of their own."""
    time, entry = (jnp.asarray(batch[name], jnp.float32) for name in ("time", "entry"))
    score = jnp.where(row_weights(batch) > 0, score, NEVER)
    at_risk = (entry[None] < time[:, None]) & (time[:, None] <= time[None])
    at_risk |= jnp.eye(len(time), dtype=bool)  # float32 may round entry and time to one number
    total = jax.nn.logsumexp(jnp.where(at_risk, score[None], NEVER), axis=1)
    return jnp.where(batch["event"] > 0, total - score, 0.0)


@recorded
def logistic_hazard(module: Any, features: int, cuts: Sequence[float]) -> Task:
    """Discrete hazards: the logit of an event in each interval, given none before.

    With the cuts c_1 < ... < c_T interval k is (c_k-1, c_k], and c_0 is 0. The loss of a row is the
    negative log-likelihood: an event in interval k has -log h_k - sum before k of log(1 - h_j); a
    censored row has the sum over the intervals that it outlived. Events after the last cut count as
    censored there. A batch holds `features`, `time` and `event`.

    Args:
        module: a Flax module, (B, features) float32 to (B, T).
        features: number of features of a row.
        cuts: T of them, sorted, above 0; see `survival.cut_times`.

    Returns:
        A task that predicts the survival curve at the cuts, (B, T).

    Raises:
        ValueError: cuts that are not sorted or not above 0; a module with other `outputs`.

    References:
        Brown 1975; Gensheimer and Narasimhan 2019, arXiv:1805.00917; Kvamme and Borgan 2021,
        arXiv:1910.06724.

    >>> from jaxops import survival
    >>> task = survival.logistic_hazard(survival.MLP((8,), outputs=2), 3, cuts=[1.0, 2.0])
    >>> [column.name for column in task.columns]
    ['features', 'time', 'event']
    """
    edges = _checked_cuts(cuts)
    _check_outputs(module, len(edges))

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        passed, event = _interval(batch, edges)
        number = jnp.arange(len(edges))[None]
        outlived = number < passed[:, None]
        hit = (number == passed[:, None]) & event[:, None]

        def one(logits: Array) -> Array:
            softplus = jax.nn.softplus(jnp.where(hit, -logits, logits))
            return jnp.where(outlived | hit, softplus, 0.0).sum(1)

        return _of_members(one, outputs)

    def predict(outputs: Array) -> Array:
        return over_members(jnp.exp(-jnp.cumsum(jax.nn.softplus(outputs), -1)), rank=2)

    return supervised(module, _inputs, loss, _no_metrics, predict, _columns(features, 1))


@recorded
def deep_hit(
    module: Any,
    features: int,
    cuts: Sequence[float],
    causes: int = 1,
    alpha: float = 0.2,
    sigma: float = 0.1,
) -> Task:
    """DeepHit: the joint law of the interval and the cause of an event, also ranked.

    A softmax over T intervals of K causes, and over no event until the last cut. The loss of a row
    is alpha times its negative log-likelihood plus (1 - alpha) times the mean over the rows j of
    the batch that were still at risk of exp(-(F(x) - F(x_j)) / sigma), with F the incidence of the
    row's cause at its time. Intervals as for `logistic_hazard`. A batch holds `features`, `time`
    and `event`.

    Args:
        module: a Flax module, (B, features) float32 to (B, K T).
        features: number of features of a row.
        cuts: T of them, sorted, above 0; see `survival.cut_times`.
        causes: K; `event` is 0, or the number of a cause.
        alpha: the weight of the likelihood, in [0, 1]; below 1 the loss couples the rows of a
            batch.
        sigma: how far incidences must differ, above 0.

    Returns:
        A task that predicts the survival curve at the cuts, (B, T), for one cause; for several
        their incidences (B, K, T).

    Raises:
        ValueError: cuts that are not sorted or not above 0; causes, alpha or sigma out of bounds; a
            module with other `outputs`.

    References:
        Lee et al. 2018, DeepHit: a deep learning approach to survival analysis with competing
        risks.

    >>> from jaxops import survival
    >>> survival.deep_hit(survival.MLP((8,), outputs=4), 3, [1.0, 2.0], causes=2).coupled
    True
    """
    edges = _checked_cuts(cuts)
    if causes < 1 or not 0 <= alpha <= 1 or not sigma > 0:
        raise ValueError(
            "causes must be at least 1, alpha in [0, 1] and sigma above 0, got "
            f"{causes}, {alpha} and {sigma}"
        )
    T = len(edges)
    _check_outputs(module, causes * T)

    def law(outputs: Array) -> Array:
        """The log probabilities (..., K, T); what is left is that of no event."""
        none = jnp.zeros((*outputs.shape[:-1], 1), outputs.dtype)
        logs = jax.nn.log_softmax(jnp.concatenate([outputs, none], -1))[..., :-1]
        return logs.reshape(*outputs.shape[:-1], causes, T)

    def loss(outputs: Array, batch: Batch, train: bool) -> Array:
        def one(out: Array) -> Array:
            value = _likelihood(out, batch, edges, causes)
            if alpha == 1:
                return value
            incidence = jnp.cumsum(jnp.exp(law(out)), -1)
            return alpha * value + (1 - alpha) * _ranked(incidence, batch, edges, sigma)

        return _of_members(one, outputs)

    def predict(outputs: Array) -> Array:
        incidence = over_members(jnp.cumsum(jnp.exp(law(outputs)), -1), rank=3)
        return 1 - incidence[:, 0] if causes == 1 else incidence

    columns = _columns(features, causes)
    return supervised(module, _inputs, loss, _no_metrics, predict, columns, coupled=alpha < 1)


def _likelihood(outputs: Array, batch: Batch, edges: np.ndarray, causes: int) -> Array:
    """DeepHit's negative log-likelihood (B,) of logits (B, K T)."""
    passed, event = _interval(batch, edges)
    logits = outputs.reshape(len(outputs), causes, len(edges))
    number = jnp.arange(len(edges))[None, None]
    cause = jnp.arange(1, causes + 1)[None, :, None]
    place = passed[:, None, None]
    hit = (number == place) & (cause == batch["event"][:, None, None])
    known = jnp.where(event[:, None, None], hit, number >= place).reshape(len(outputs), -1)
    own = jnp.where(known, logits.reshape(len(outputs), -1), NEVER)
    never = jnp.zeros((len(outputs), 1), outputs.dtype)  # no event until the last cut
    every = jnp.concatenate([outputs, never], 1)
    own = jnp.concatenate([own, jnp.where(event[:, None], NEVER, never)], 1)
    return jax.nn.logsumexp(every, 1) - jax.nn.logsumexp(own, 1)


def _ranked(incidence: Array, batch: Batch, edges: np.ndarray, sigma: float) -> Array:
    """DeepHit's ranking loss (B,) of incidences (B, K, T)."""
    passed, event = _interval(batch, edges)
    place = jnp.minimum(passed, len(edges) - 1)
    cause = jnp.maximum(batch["event"] - 1, 0)
    theirs = incidence[:, cause, place].T  # (i, j): of row j, the cause of row i at i's time
    own = jnp.diagonal(theirs)[:, None]
    later = passed[:, None] < passed[None]
    outlived = (passed[:, None] == passed[None]) & ~event[None]
    weights = row_weights(batch)
    pairs = event[:, None] & (later | outlived) & (weights[None] > 0)
    losses = jnp.where(pairs, jnp.exp((theirs - own) / sigma), 0.0)
    return losses.sum(1) / jnp.maximum((weights > 0).sum(), 1)


def _interval(batch: Batch, edges: np.ndarray) -> tuple[Array, Array]:
    """How many intervals each row outlived (B,), and whether it has an event in the next (B,)."""
    time = jnp.asarray(batch["time"], jnp.float32)
    event = batch["event"] > 0
    before = jnp.searchsorted(edges, time, side="left")
    passed = jnp.where(event, before, jnp.searchsorted(edges, time, side="right"))
    return passed, event & (before < len(edges))


def cut_times(time: Any, event: Any, count: int = 20) -> np.ndarray:
    """The ends of intervals in which about equally many rows have an event.

    They are the times at which the Kaplan-Meier curve has fallen by a further 1 / count of its
    whole fall; fewer where many events are at one time.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or the number of a cause.
        count: of the intervals, at least 1.

    Returns:
        At most `count` times above 0, sorted; the last is that of the last event.

    Raises:
        ValueError: as `survival.outcome`; no event after time 0.

    References:
        Kvamme and Borgan 2021, arXiv:1910.06724.

    >>> cut_times([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1], count=2).tolist()
    [2.0, 4.0]
    """
    rows = outcome(time, event, causes=None, some=True)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    curve = kaplan_meier(rows.time, rows.event > 0)
    fallen, last = 1 - curve.estimate, 1 - curve.estimate[-1]
    wanted = last * np.arange(1, count + 1) / count
    place = np.searchsorted(fallen, wanted * (1 - 1e-9))
    cuts = np.unique(curve.times[place])
    cuts = cuts[cuts > 0]
    if len(cuts) == 0:
        raise ValueError("event must be after time 0 in some row, got events at time 0 alone")
    return cuts


def _checked_cuts(cuts: Sequence[float]) -> np.ndarray:
    edges = np.asarray(cuts, np.float32)
    rising = edges.ndim == 1 and len(edges) > 0 and (np.diff(edges, prepend=0) > 0).all()
    if not rising or not np.isfinite(edges).all():
        raise ValueError(f"cuts must be sorted numbers above 0, got {cuts}")
    return edges


def _check_outputs(module: Any, outputs: int) -> None:
    if getattr(module, "outputs", outputs) != outputs:
        raise ValueError(f"module.outputs must be {outputs}, got {module.outputs}")


def _columns(features: int, causes: int) -> tuple[Column, ...]:
    return (
        Column("features", (features,), "float"),
        Column("time", (), "float", target=True),
        Column("event", (), "int", classes=causes + 1, target=True),
    )


def _inputs(batch: Batch, key: Any) -> Array:
    return jnp.asarray(batch["features"], jnp.float32)


def _no_metrics(outputs: Array, batch: Batch, weights: Array) -> dict[str, Any]:
    return {}


def _of_members(loss: Callable[[Array], Array], outputs: Array) -> Array:
    """The loss (B,) of outputs (B, O), or its mean over members (B, M, O)."""
    if outputs.ndim == 2:
        return loss(outputs)
    return jax.vmap(loss, in_axes=1)(outputs).mean(0)
