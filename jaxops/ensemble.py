"""Several trained members as one model: the mean of their predictions."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxops.state import TrainState
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task, recorded, row_weights


@recorded
def ensemble(task: Task, members: int) -> Task:
    """A task whose parameters are those of `members` states of `task`, put together by `stack`.

    It predicts the mean of the members' predictions (for a classifier, of their probabilities).
    Its loss is the mean of the members' losses, which the loss of the mean prediction does not
    exceed where the loss is convex in it, as cross-entropy is; metrics of the mean prediction
    are made by `evaluate(..., metrics=...)`. It cannot be trained.

    >>> from jaxops import vision
    >>> several = ensemble(vision.classifier(vision.MLP()), members=3)
    """

    def each(params: Params, extra: Extra, function: Any) -> Any:
        # one after the other: a member's activations are there once, and no operation is batched
        return jax.lax.map(lambda member: function(*member), (params, extra))

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        return jax.vmap(lambda k: task.init(k, batch))(jax.random.split(key, members))

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        if train:
            raise ValueError("ensemble: train its members one by one and `stack` their states")
        total = each(params, extra, lambda p, e: task.loss(p, e, batch, key, False)[0])
        return total.mean(0), Out(row_weights(batch).sum(), {}, extra)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        outputs = each(params, extra, lambda p, e: task.predict(p, e, batch))
        return jax.tree.map(lambda leaf: leaf.mean(0), outputs)

    return Task(init, loss, predict, task.columns, task.classes)


def stack(states: Sequence[TrainState]) -> TrainState:
    """The state of an `ensemble` from its members' states; without the optimizers' arrays."""
    kept = [state._replace(opt_state=()) for state in states]
    params, extra = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
        for trees in ([s.params for s in kept], [s.extra for s in kept])
    )
    return kept[0]._replace(params=params, extra=extra)
