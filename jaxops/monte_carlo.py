"""Predictions with dropout on, many times: their mean and their spread."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task, recorded


@recorded
def monte_carlo(task: Task, samples: int = 30, seed: int = 0) -> Task:
    """The task with predictions `{"mean": ..., "std": ...}` over networks that dropout draws.

    Each sample is a prediction with dropout as in training; the spread says how sure the model is
    of its prediction (Gal and Ghahramani 2016, arXiv:1506.02142). Its parameters are those of
    `task`, and so are its loss and metrics, of the weights as they are; what is asked of the mean
    prediction is made by `evaluate(..., metrics=...)`. It cannot be trained.

    The draws depend on the seed, and on where a row stands in which batch size; samples are made
    one after the other, in the memory of one.

    Args:
        task: one whose predictions are arrays, made by `supervised` or `language.next_token` of a
            model that takes `train` and keeps no batch statistics.
        samples: how many, at least 2; the error of the mean is std / sqrt(samples).
        seed: of the draws.

    Raises:
        ValueError: fewer than 2 samples, or a task that has no dropout to turn on.

    >>> import numpy as np
    >>> from jaxops import tabular
    >>> from jaxops.optim import sgd
    >>> from jaxops.state import init_state
    >>> task = tabular.classifier(tabular.MLP(dropout=0.5), features=3)
    >>> state = init_state(task, sgd(0.1), seed=0, batch={"features": np.ones((1, 3), np.float32)})
    >>> sampled = monte_carlo(task, samples=10)
    >>> outputs = sampled.predict(state.params, state.extra, {"features": jnp.ones((4, 3))})
    >>> outputs["mean"].shape, bool((outputs["std"] > 0).all())
    ((4,), True)
    """
    if samples < 2:
        raise ValueError(f"samples: {samples} found, at least 2 wanted")
    if task.sample is None:
        raise ValueError("task: one with `sample` wanted, of a model that takes `train`")
    sample = task.sample

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        if train:
            raise ValueError("monte_carlo: train the task itself; its state is of this one as well")
        return task.loss(params, extra, batch, key, False)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        def add(sums: Any, i: Array) -> tuple[Any, None]:
            mean, squares = sums  # Welford 1962: no difference of large numbers
            new = sample(params, extra, batch, jax.random.fold_in(key, i))
            nearer = jax.tree.map(lambda m, x: m + (x - m) / (i + 1), mean, new)
            squares = jax.tree.map(
                lambda s, x, m, n: s + (x - m) * (x - n), squares, new, mean, nearer
            )
            return (nearer, squares), None

        key = jax.random.key(seed)
        shapes = jax.eval_shape(sample, params, extra, batch, key)
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        (mean, squares), _ = jax.lax.scan(add, (zeros, zeros), jnp.arange(samples))
        std = jax.tree.map(lambda s: jnp.sqrt(s / (samples - 1)), squares)
        return {"mean": mean, "std": std}

    return Task(task.init, loss, predict, task.columns, task.classes)
