"""Tasks that are learned for all groups: `group_dro`, and `adversarial`."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops.metrics import Mean
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import (
    Array,
    Batch,
    Column,
    Extra,
    Key,
    Out,
    Params,
    Task,
    _clean,
    check_not_private,
    masked_sum,
    row_weights,
)

GROUP = "group"  # the column of the number of each row's group
PRICES = "group_dro"  # in `extra`
SMALLEST = 1e-6  # probability whose logarithm is taken


class WorstGroup(NamedTuple):
    """The largest mean of a group; a state of metrics, see `jaxops.metrics`.

    Attributes:
        total: (G,), the sums of weight * value.
        weight: (G,), the sums of the weights.

    >>> half = WorstGroup(np.array([1.0, 3.0]), np.array([1.0, 4.0]))
    >>> half.compute(), half.merge(half).compute()
    (1.0, 1.0)
    """

    total: Any
    weight: Any

    def merge(self, other: "WorstGroup") -> "WorstGroup":
        """Of both sets of rows."""
        return WorstGroup(self.total + other.total, self.weight + other.weight)

    def fold(self) -> "WorstGroup":
        """(K, G) -> (G,)."""
        return WorstGroup(self.total.sum(0), self.weight.sum(0))

    def compute(self) -> float:
        """The mean of the worst group that has rows; NaN of none."""
        there = np.asarray(self.weight) > 0
        means = np.asarray(self.total)[there] / np.asarray(self.weight)[there]
        return float(means.max()) if there.any() else float("nan")


def group_dro(task: Task, shares: Sequence[float], rate: float = 0.01) -> Task:
    """The task with row losses weighted by group, so that the worst group's loss becomes small.

    It minimises max_q sum_g q_g L_g over distributions q on G groups, for the mean losses L_g. With
    the log-weights in the state's `extra`, a step multiplies q_g by exp(rate * L_g) for the mean
    loss L_g of the group in the batch (1 without rows), normalises q, and weighs the loss of each
    row by q_g / share_g. So the loss stays a sum over rows, whose mean is sum_g q_g L_g, in any
    batch, with padding, and on any number of devices. As q depends on all rows of the batch, the
    task is a coupled one: `accumulate` and `privacy.private` refuse it.

    A row's loss is the derivative of the task's summed loss by the row's weight, which every task
    gives. The metrics are those of the task, and "worst_group_loss". Evaluation has the task's own
    loss. Strong regularisation or early stopping by "worst_group_loss" is needed where the model
    can learn all rows by heart, since then no group is worse (Sagawa et al.).

    Args:
        task: any task whose loss does not couple rows.
        shares: (G,) of the rows of each group in the train rows, above 0 with sum 1.
        rate: of q, above 0.

    Returns:
        A task with a further column `group`, int (B,) in [0, G). Its state is made one of `task` by
        `inner_state`.

    Raises:
        ValueError: a coupled or private task; fewer than two groups, shares or a rate out of range.

    References:
        Sagawa et al. 2020, arXiv:1911.08731.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=3)
    >>> rows = {"features": np.eye(3, dtype=np.float32), "label": np.array([0, 1, 1])}
    >>> rows["group"] = np.array([0, 0, 1])
    >>> robust = group_dro(task, shares=(2 / 3, 1 / 3))
    >>> state = jo.fit(robust, rows, optimizer=jo.optim.adam(1e-2), batch_size=3, epochs=1,
    ...                progress=False)
    >>> jo.predict(task, inner_state(state), rows).shape
    (3,)
    """
    if task.coupled:
        raise ValueError("task must not couple the rows of a batch, got coupled=True")
    check_not_private(task)
    known = tuple(float(share) for share in shares)
    if len(known) < 2 or min(known) <= 0 or abs(sum(known) - 1) > 1e-3:
        raise ValueError(f"shares must be 2 or more above 0 with sum 1, got {known}")
    if not rate > 0:
        raise ValueError(f"rate must be above 0, got {rate}")
    return _group_dro(task, known, float(rate))


@functools.lru_cache(maxsize=64)
def _group_dro(task: Task, shares: tuple[float, ...], rate: float) -> Task:
    count = len(shares)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        params, extra = task.init(key, batch)
        if not isinstance(extra, Mapping) or PRICES in extra:
            raise ValueError(f"task must have a dict without {PRICES!r} as extra, got {extra!r}")
        return params, {**extra, PRICES: {"log_weights": jnp.full(count, -np.log(count))}}

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        weights = row_weights(batch)

        def summed(weights: Array) -> tuple[Array, tuple[Array, Out]]:
            own = {**batch, "mask": weights}
            total, out = task.loss(params, _inner(extra), own, key, train)
            return total, (total, out)

        losses, (total, out) = jax.grad(summed, has_aux=True)(weights)
        of_group = jax.nn.one_hot(batch[GROUP], count) * (weights > 0)[:, None]
        sums = of_group.T @ jnp.where(weights > 0, jax.lax.stop_gradient(losses) * weights, 0.0)
        rows = of_group.T @ weights
        metrics = out.metrics | {"worst_group_loss": WorstGroup(sums, rows)}
        log_weights = extra[PRICES]["log_weights"]
        if train:
            means = jnp.where(rows > 0, sums / jnp.where(rows > 0, rows, 1.0), 0.0)
            log_weights = jax.nn.log_softmax(log_weights + rate * means)
            each = of_group @ (jnp.exp(log_weights) / jnp.asarray(shares))
            total = masked_sum(losses * each, weights)
        kept = {**out.extra, PRICES: {"log_weights": log_weights}}
        return total, Out(out.weight, metrics, kept)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        return task.predict(params, _inner(extra), batch)

    columns = (*task.columns, Column(GROUP, (), "int", classes=count, target=True))
    return task._replace(
        init=init,
        loss=loss,
        predict=predict,
        columns=columns,
        recipe=None,
        sample=None,
        coupled=True,
    )


class Adversary(nn.Module):
    """A network that tells the group from a classifier's logits.

    Attributes:
        groups: G.
        width: of its hidden layer.
    """

    groups: int
    width: int = 16

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, d) -> logits (B, G)."""
        x = nn.relu(nn.Dense(self.width, name="hidden")(x))
        return nn.Dense(self.groups, name="logits")(x)


def adversarial(
    task: Task,
    groups: int,
    strength: float = 1.0,
    constraint: str = "demographic parity",
    width: int = 16,
) -> Task:
    """The task with an adversary that tells the group from the prediction, which it is to prevent.

    The adversary, a small network, sees the logits of the prediction (without dropout), for
    "equalised odds" with the label beside. It is trained on the cross-entropy of the group. Into
    the task's parameters its gradient flows with the factor -strength (gradient reversal), so that
    the prediction loses what tells the group. With strength 0 the task learns as it would alone.

    Args:
        task: a classifier, whose predictions are probabilities.
        groups: G.
        strength: at least 0; by itself it promises no level of fairness: measure it.
        constraint: "demographic parity", or "equalised odds".
        width: of the adversary's hidden layer.

    Returns:
        A task with a further column `group`, int (B,) in [0, G), and the metric "adversary_loss",
        which is the entropy of the groups' shares where the prediction tells nothing. Its state is
        made one of `task` by `inner_state`.

    Raises:
        ValueError: a task without classes, or a private one; a number out of range, or another
            constraint.

    References:
        Zhang, Lemoine and Mitchell 2018, arXiv:1801.07593; Ganin and Lempitsky 2015,
        arXiv:1409.7495 (gradient reversal).

    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=3)
    >>> [column.name for column in adversarial(task, groups=2).columns]
    ['features', 'label', 'group']
    """
    if not task.classes:
        raise ValueError("task must have classes, got none")
    check_not_private(task)
    if groups < 2 or strength < 0 or width < 1:
        raise ValueError(
            "groups must be at least 2, strength at least 0 and width at least 1, got "
            f"{groups}, {strength} and {width}"
        )
    if constraint not in ("demographic parity", "equalised odds"):
        raise ValueError(
            f"constraint must be demographic parity or equalised odds, got {constraint!r}"
        )
    return _adversarial(task, groups, float(strength), constraint == "equalised odds", width)


@functools.lru_cache(maxsize=64)
def _adversarial(task: Task, groups: int, strength: float, labelled: bool, width: int) -> Task:
    adversary = Adversary(groups, width)
    count = len(task.classes)
    label = next((c.name for c in task.columns if c.target and not c.shape), None)
    if label is None:
        raise ValueError("task must have one class a row as its target, got several or none")

    def seen(p: Array, batch: Batch) -> Array:
        """What the adversary sees, (B, d)."""
        p = jnp.clip(p, SMALLEST, 1 - SMALLEST)
        z = (jnp.log(p) - jnp.log1p(-p))[:, None] if p.ndim == 1 else jnp.log(p)
        if not labelled:
            return z
        y = jax.nn.one_hot(batch[label], count)
        return jnp.concatenate([y, (z[:, None] * y[:, :, None]).reshape(len(y), -1)], 1)

    def guessed(params: Params, extra: Extra, batch: Batch) -> Array:
        """The adversary's loss of each row."""
        z = seen(task.predict(params["task"], extra, batch), batch)
        z = jax.lax.stop_gradient((1 + strength) * z) - strength * z  # z, its gradient reversed
        logits = adversary.apply({"params": params["adversary"]}, z)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[GROUP])

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        params, extra = task.init(key, batch)
        z = seen(task.predict(params, extra, batch), batch)
        other = adversary.init(jax.random.fold_in(key, 1), z)["params"]
        return {"task": params, "adversary": other}, extra

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        total, out = task.loss(params["task"], extra, batch, key, train)
        weights = row_weights(batch)
        if "mask" in batch:
            batch = _clean(batch, weights > 0)
        lost = masked_sum(guessed(params, extra, batch), weights)
        total = total + lost if train else total
        metrics = out.metrics | {"adversary_loss": Mean(lost, weights.sum())}
        return total, out._replace(metrics=metrics)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        return task.predict(params["task"], extra, batch)

    columns = (*task.columns, Column(GROUP, (), "int", classes=groups, target=True))
    return task._replace(
        init=init, loss=loss, predict=predict, columns=columns, recipe=None, sample=None
    )


def inner_state(state: TrainState) -> TrainState:
    """The state of the task within, of a state of `group_dro` or `adversarial`.

    Args:
        state: as `jaxops.fit` returns it. Averaged parameters take the place of the others.

    Raises:
        ValueError: another state.

    >>> key, extra = jax.random.key(0), {PRICES: {"log_weights": jnp.zeros(2)}}
    >>> inner_state(TrainState(jnp.int32(0), {"w": jnp.ones(1)}, (), extra, key)).extra
    {}
    """
    state = averaged(state)._replace(opt_state=())
    params, extra = state.params, state.extra
    of_two = isinstance(params, Mapping) and set(params) == {"task", "adversary"}
    priced = isinstance(extra, Mapping) and PRICES in extra
    if not of_two and not priced:
        raise ValueError("state must be of a task of group_dro or adversarial, got another")
    return state._replace(
        params=params["task"] if of_two else params, extra=_inner(extra) if priced else extra
    )


def _inner(extra: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if name != PRICES}
