"""`adversarial`: a task whose loss in training is taken at the worst rows nearby."""

import functools
from dataclasses import dataclass
from typing import Any

import jax

from jaxops.robustness.attacks import Attack, attack_of, changed
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task


@functools.lru_cache(maxsize=64)
def adversarial(
    task: Task,
    epsilon: float,
    *,
    norm: str = "inf",
    steps: int = 7,
    step_size: float | None = None,
    column: str | None = None,
    bounds: tuple[float, float] | None = None,
) -> Task:
    """The task that learns from adversarial examples: min over parameters of max over the ball.

    In training the loss is that of the rows which `pgd` finds with the parameters of the step, from
    a random place in the ball. The search takes the loss of evaluation, so a step costs `steps`
    more gradients. Evaluation and prediction are those of the task itself, and `save` writes it.

    It costs accuracy on clean rows. Robustness is to be measured by `pgd` with more steps.

    Args:
        task: see `pgd`.
        epsilon: see `pgd`; of bytes it may be below 1, since training takes any number.
        norm: see `pgd`.
        steps: number of steps; 1 is FGSM from a random place.
        step_size: see `pgd`.
        column: see `pgd`.
        bounds: see `pgd`.

    Raises:
        ValueError: see `pgd`.

    References:
        Madry et al. 2018, arXiv:1706.06083; Wong et al. 2020, arXiv:2001.03994 (one step).

    >>> import numpy as np
    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> x = np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    >>> rows = {"features": x, "label": (x[:, 0] > 0).astype(np.int32)}
    >>> task = adversarial(tabular.classifier(tabular.MLP(()), features=2), 0.1, steps=2)
    >>> state = jo.fit(task, rows, optimizer=jo.optim.sgd(1.0), batch_size=64, steps=20,
    ...                progress=False)
    >>> jo.evaluate(task, state, rows)["accuracy"] > 0.8
    True
    """
    attack = attack_of(task, epsilon, norm, steps, step_size, column, bounds)
    return task._replace(loss=AtTheWorst(task.loss, attack._replace(scattered=True)))


@dataclass(frozen=True)
class AtTheWorst:
    """A loss that in training is taken at the place which an attack finds.

    Attributes:
        loss: the loss of a task.
        attack: the attack.
    """

    loss: Any
    attack: Attack

    def __call__(
        self, params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        """The loss."""
        if train:
            own = jax.random.fold_in(key, 1)
            x = changed(self.loss, self.attack, jax.lax.stop_gradient(params), extra, batch, own)
            batch = {**batch, self.attack.column: jax.lax.stop_gradient(x)}
        found: tuple[Array, Out] = self.loss(params, extra, batch, key, train)
        return found
