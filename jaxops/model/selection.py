"""What the rooms' jobs share: the best of several methods, how long to train, and updates."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.checks import rows
from jaxops.devices import hosts
from jaxops.model.finished import Model, fingerprint
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Batch, Extra, Params, Task, check_module, recorded
from jaxops.train import loop
from jaxops.train.settings import check_one_directory
from jaxops.trust.evaluation import Evaluation, table

ROUNDS = 20  # of the greedy selection
TIMED = 8  # steps by which the speed is measured


@recorded
class Blend(NamedTuple):
    """The weighted mean of what several tasks predict of the same columns.

    Attributes:
        tasks: M tasks.
        params: their parameters.
        extras: their extra.
        weights: M numbers of at least 0 with sum 1.

    >>> from jaxops import tabular
    >>> Blend((tabular.classifier(tabular.MLP(), 3),), ({},), ({},), (1.0,)).classes
    ('0', '1')
    """

    tasks: tuple[Task, ...]
    params: tuple[Params, ...]
    extras: tuple[Extra, ...]
    weights: tuple[float, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.tasks[0].classes

    def models(self) -> list[Model]:
        """The members."""
        return [
            Model(task, TrainState(jnp.int32(0), params, (), extra, jax.random.key(0)))
            for task, params, extra, _ in zip(*self, strict=True)
        ]

    def outputs(self, columns: Any, batch_size: int) -> np.ndarray:
        """What the members predict, weighted."""
        parts = [model.outputs(columns, batch_size) for model in self.models()]
        return np.sum([w * part for w, part in zip(self.weights, parts, strict=True)], axis=0)

    @classmethod
    def of(cls, models: Sequence[Model], weights: Sequence[float]) -> "Blend":
        """The blend of trained models."""
        states = [model.state for model in models]
        params, extras = tuple(s.params for s in states), tuple(s.extra for s in states)
        return cls(tuple(model.task for model in models), params, extras, tuple(weights))


def check_methods(method: Any, options: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a method that is no module, and for several in one checkpoint folder.

    Args:
        method: a Flax module, a list of them, or None for a room's default.
        options: of `jaxops.fit`.
    """
    several = list(method) if isinstance(method, list | tuple) else [method]
    for one in several:
        if one is not None:
            check_module("method", one)
    check_one_directory(dict(options), len(several))


def best_of(
    methods: Sequence[Any],
    fit: Callable[[Any, float], tuple[Model, Evaluation]],
    metric: str,
    loss: Callable[[np.ndarray], float] | None,
    budget: float,
    progress: bool,
) -> Model:
    """Fit each method in turn; the one with the best validation, or their blend if it is better.

    The weights of the blend are chosen by greedy selection with replacement: the member that
    lowers the validation loss of the mean most is added, 20 times.

    Args:
        methods: M of them.
        fit: `(method, seconds) -> model, evaluation` of the validation rows, with the task's
            outputs among its `parts`.
        metric: the figure of the evaluation to compare by, of which smaller is better.
        loss: outputs (N, ...) of the validation rows -> that figure. None for no blend, as of
            methods that read other columns; then the parts need not have the outputs.
        budget: seconds for all of them; what is left is divided among those still to come, and a
            method for which nothing is left is not tried.
        progress: print the table of the methods.

    Raises:
        ValueError: no methods.

    References:
        Caruana et al. 2004, Ensemble selection from libraries of models.
    """
    if not methods:
        raise ValueError("method must be at least 1, got an empty list")
    end = time.monotonic() + budget
    models: list[Model] = []
    scored: dict[str, Evaluation] = {}
    for place, method in enumerate(methods):
        left = end - time.monotonic()
        if models and left <= 0:
            break
        model, one = fit(method, max(left, 1.0) / (len(methods) - place))
        models.append(model)
        scored[f"{place + 1}: {type(method).__name__}"] = one
        if progress:
            print(table(scored), flush=True)
    losses = [one.figures()[metric] for one in scored.values()]
    best = int(np.argmin(losses))
    about = {"methods": dict(zip(scored, losses, strict=True))}
    single = replace(models[best], about=models[best].about | about)
    if progress and len(models) < len(methods):
        print(f"not tried, as the time was over: {len(methods) - len(models)} methods")
    if loss is None:
        return single
    outputs = [one.parts["outputs"] for one in scored.values()]
    weights = greedy(outputs, loss)
    blended = loss(np.tensordot(weights, np.stack(outputs), 1))
    if blended >= losses[best]:
        return single
    if progress:
        print(f"blend: {metric} {blended:.4f}, weights {', '.join(f'{w:g}' for w in weights)}")
    members = [(model, w) for model, w in zip(models, weights.tolist(), strict=True) if w > 0]
    blend = Blend.of([model for model, _ in members], [weight for _, weight in members])
    about = single.about | {"validation": {metric: blended}}
    return replace(single, task=blend, state=None, about=about)


def trained_further(model: Model, columns: Batch, settings: Mapping[str, Any]) -> Model:
    """The model after more training from its present parameters, with the same reader.

    Args:
        model: with a task and its state, or with a `Blend`, each of whose members is trained.
        columns: of the task.
        settings: of `jaxops.fit`.
    """
    if isinstance(model.task, Blend):
        check_one_directory(dict(settings), len(model.task.tasks))
        further = [trained_further(part, columns, settings) for part in model.task.models()]
        about = {**model.about, "updated with": fingerprint(columns)}
        return replace(model, task=Blend.of(further, model.task.weights), about=about)
    task, state = model.trained()
    state = jax.tree.map(jnp.copy, state)  # training donates the arrays that it starts from
    state = averaged(loop.fit(task, columns, state=state, **settings))
    about = {**model.about, "updated with": fingerprint(columns)}
    return replace(model, state=state._replace(opt_state=()), about=about)


def settings_within(
    seconds: float,
    task: Task,
    columns: Batch,
    recipe: Callable[..., dict[str, Any]],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of a recipe, with no more epochs than this machine makes in a time.

    The speed is measured by a few steps, which start anew and are thrown away. The number of epochs
    stays as it is where the user gives it, where a resumed run would have to measure the same once
    more (checkpoints), and with several processes.

    Args:
        seconds: the time; a seventh of it is left for compilation and validation.
        task: what to learn.
        columns: the train rows.
        recipe: `(rows, seconds, **given) -> settings` of `jaxops.fit`, with `epochs`.
        given: the user's options.
    """
    count = rows(columns)
    settings = recipe(count, seconds, **given)
    if {"epochs", "steps", "checkpoints"} & given.keys() or hosts.count() > 1:
        return settings
    start, records = time.monotonic(), list[Mapping[str, Any]]()
    timed = settings | dict.fromkeys(("early_stopping", "metrics", "state", "epochs"))
    timed |= {"steps": TIMED, "reports": records.append, "progress": False}
    loop.fit(task, columns, **timed)
    left = seconds - (time.monotonic() - start)
    epochs = left * 6 / 7 * (records[-1]["examples_per_second"] or np.inf) / count
    if epochs < settings["epochs"]:
        settings = recipe(count, left, epochs=max(1, int(epochs)), **given)
    return settings


def greedy(outputs: Sequence[np.ndarray], loss: Callable[[np.ndarray], float]) -> np.ndarray:
    """The weights of greedy selection with replacement, (M,).

    Args:
        outputs: of M members, (N, ...) each.
        loss: of a mean of them.

    >>> target = np.array([0.0, 1.0])
    >>> members = [target + 1, target - 1, target + 5]
    >>> greedy(members, lambda mean: float(((mean - target) ** 2).mean())).tolist()
    [0.5, 0.5, 0.0]
    """
    counts, total = np.zeros(len(outputs)), np.zeros(outputs[0].shape)
    for picked in range(ROUNDS):
        losses = [loss((total + output) / (picked + 1)) for output in outputs]
        best = int(np.argmin(losses))
        counts[best] += 1
        total = total + outputs[best]
    return counts / ROUNDS
