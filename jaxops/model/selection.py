"""Functions that `fit` and `update` of all rooms use: choice of methods, training time, updates."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.checks import rows
from jaxops.devices import hosts
from jaxops.model.finished import Model, Program, fingerprint
from jaxops.model.players import program_of
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Batch, Extra, Params, Task, check_module, recorded
from jaxops.train import loop
from jaxops.train.settings import check_one_directory
from jaxops.trust.calibration import scaled
from jaxops.trust.evaluation import Evaluation, table

ROUNDS = 20  # rounds of the greedy selection
TIMED = 8  # number of steps to measure the speed


@recorded
class Blend(NamedTuple):
    """The weighted mean of the predictions of several tasks for the same columns.

    Attributes:
        tasks: M tasks, or closed forms with `outputs` and `classes`.
        params: their parameters; {} for a closed form.
        extras: their extra.
        weights: M numbers of at least 0 with sum 1.
        temperature: the temperature of the mean probabilities, see `trust.calibration.scaled`.

    >>> from jaxops import tabular
    >>> Blend((tabular.classifier(tabular.MLP(), 3),), ({},), ({},), (1.0,)).classes
    ('0', '1')
    """

    tasks: tuple[Any, ...]
    params: tuple[Params, ...]
    extras: tuple[Extra, ...]
    weights: tuple[float, ...]
    temperature: float = 1.0

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.tasks[0].classes

    @property
    def reads_table(self) -> bool:
        """Whether the members take the reader's table itself, and not its encoded columns."""
        return getattr(self.tasks[0], "reads_table", False)

    def models(self) -> list[Model]:
        """The members."""
        members = zip(self.tasks, self.params, self.extras, strict=True)
        return [
            Model(task, TrainState(jnp.int32(0), params, (), extra, jax.random.key(0)))
            if isinstance(task, Task)
            else Model(task)
            for task, params, extra in members
        ]

    def outputs(self, columns: Any, batch_size: int) -> np.ndarray:
        """The weighted mean of the members' predictions."""
        parts = [model.outputs(columns, batch_size) for model in self.models()]
        mean = np.sum([w * part for w, part in zip(self.weights, parts, strict=True)], axis=0)
        return tempered(mean, self.temperature)

    def exported(self) -> Program:
        """What the members predict, weighted, for `jaxops.export`.

        Raises:
            ValueError: a member that is no program of JAX, such as trees of another library.
        """
        programs = [_program(model) for model in self.models()]
        # members that read the table itself have columns of their own, with a number each
        ends = [f" {place}" if self.reads_table else "" for place in range(len(programs))]

        def function(params: Any, columns: Batch) -> jax.Array:
            parts = [
                w * program.function(own, {c.name: columns[c.name + end] for c in program.columns})
                for w, program, own, end in zip(self.weights, programs, params, ends, strict=True)
            ]
            mean = sum(parts[1:], parts[0])
            if self.temperature == 1:
                return mean
            both = jnp.stack([1 - mean, mean], -1) if mean.ndim == 1 else mean
            both = jax.nn.softmax(jnp.log(jnp.maximum(both, 1e-30)) / self.temperature)
            return both[:, 1] if mean.ndim == 1 else both

        columns = programs[0].columns
        reader: dict[str, Any] = {}
        if self.reads_table:
            pairs = zip(programs, ends, strict=True)
            columns = tuple(
                column._replace(name=column.name + end)
                for program, end in pairs
                for column in program.columns
            )
            reader = {"members": [program.reader for program in programs]}
        return Program(function, tuple(program.params for program in programs), columns, reader)

    @classmethod
    def of(
        cls, models: Sequence[Model], weights: Sequence[float], temperature: float = 1.0
    ) -> "Blend":
        """The blend of models; if a model is itself a blend, its members are taken instead."""
        parts = [
            (part, weight * share)
            for model, weight in zip(models, weights, strict=True)
            for part, share in (
                zip(model.task.models(), model.task.weights, strict=True)
                if isinstance(model.task, Blend)
                else [(model, 1.0)]
            )
        ]
        states = [part.state for part, _ in parts]
        return cls(
            tuple(part.task for part, _ in parts),
            tuple({} if state is None else state.params for state in states),
            tuple({} if state is None else state.extra for state in states),
            tuple(weight for _, weight in parts),
            temperature,
        )


def _program(member: Model) -> Program:
    """What a member of a blend computes."""
    found = program_of(member)
    if found is not None:
        return found
    if not hasattr(member.task, "exported"):
        raise ValueError(
            "model must be a blend of networks, and trees of HistGradientBoosting, to be exported, "
            f"got a member {type(member.task).__name__}; fit without it"
        )
    found = member.task.exported()
    assert found is not None
    return found


def tempered(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities (N, C), or (N,) for class 1, at a temperature; see `calibration.scaled`.

    >>> tempered(np.array([0.9]), 2.0).round(3).tolist()
    [0.75]
    """
    if temperature == 1:
        return probabilities
    if probabilities.ndim == 1:
        both = np.stack([1 - probabilities, probabilities], -1)
        return tempered(both, temperature)[:, 1]
    return scaled(probabilities, temperature).astype(probabilities.dtype)


def check_methods(
    method: Any, options: Mapping[str, Any], others: type | tuple[type, ...] = (), folds: int = 1
) -> None:
    """Raise `ValueError` for a method of a wrong type, or several in one checkpoint directory.

    Args:
        method: a Flax module, a list of them, or None for a room's default.
        options: options of `jaxops.fit`.
        others: types of methods that are not modules.
        folds: how often each method is trained.
    """
    several = list(method) if isinstance(method, list | tuple) else [method]
    for one in several:
        if one is not None and not isinstance(one, others):
            check_module("method", one)
    check_one_directory(dict(options), len(several) * folds)


def best_of(
    methods: Sequence[Any],
    fit: Callable[[Any, float], tuple[Model, Evaluation]],
    metric: str,
    loss: Callable[[np.ndarray], float] | None,
    budget: float,
    progress: bool,
    warmth: Callable[[np.ndarray], float] | None = None,
    figures: Callable[[np.ndarray], dict[str, float]] | None = None,
) -> Model:
    """Fit each method in turn; return the best by validation, or their blend if that is better.

    The weights of the blend are chosen by greedy selection with replacement: in each of 20 rounds
    the member that lowers the validation loss of the mean most is added. The best of these means is
    kept.

    Args:
        methods: M methods.
        fit: `(method, seconds) -> model, evaluation` of the validation rows, with the task's
            outputs among its `parts`.
        metric: the figure of the evaluation that is compared; smaller is better.
        loss: outputs (N, ...) of the validation rows -> that figure. None makes no blend, for
            methods that read different columns; then the parts need not have the outputs.
        budget: seconds for all methods. The remaining time is divided among the methods that are
            not trained yet; if no time is left for a method, it is not tried.
        progress: print the figure of each method when it is trained, and their table.
        warmth: outputs of the validation rows -> the temperature that they need, 1 for none.
        figures: outputs of the validation rows -> all figures, for `about`; by default only
            `metric`.

    Raises:
        ValueError: there are no methods.

    References:
        Caruana et al. 2004, Ensemble selection from libraries of models.
    """
    if not methods:
        raise ValueError("method must be at least 1, got an empty list")
    end = time.monotonic() + budget
    models: list[Model] = []
    scored: dict[str, Evaluation] = {}
    for place, method in enumerate(methods):
        start = time.monotonic()
        if models and start >= end:
            break
        model, one = fit(method, max(end - start, 1.0) / (len(methods) - place))
        models.append(model)
        name = f"{place + 1}: {type(method).__name__}"
        scored[name] = one
        if progress:  # intervals take time, so the table with them is printed at the end
            took = time.monotonic() - start
            print(f"{name}: {metric} {one.figures()[metric]:.4f} in {took:.0f} s", flush=True)
    if progress:
        print(table(scored), flush=True)
    losses = [one.figures()[metric] for one in scored.values()]
    best = int(np.argmin(losses))
    about = {"methods": dict(zip(scored, losses, strict=True))}
    single = replace(models[best], about=models[best].about | about)
    if progress and len(models) < len(methods):
        print(f"not tried, because no time was left: {len(methods) - len(models)} methods")
    if loss is None:
        return single
    outputs = [one.parts["outputs"] for one in scored.values()]
    weights = greedy(outputs, loss)
    mean = np.tensordot(weights, np.stack(outputs), 1)
    if loss(mean) >= losses[best]:
        weights, mean = np.eye(len(models))[best], outputs[best]
    heat = 1.0 if warmth is None else warmth(mean)
    if weights.max() == 1 and heat == 1:
        return single
    mean = tempered(mean, heat)
    blended = loss(mean)
    if progress:
        told = f"weights {', '.join(f'{w:.3g}' for w in weights)}"
        told += f", temperature {heat:.3g}" if heat != 1 else ""
        print(f"blend: {metric} {blended:.4f}, {told}")
    members = [(model, w) for model, w in zip(models, weights.tolist(), strict=True) if w > 0]
    blend = Blend.of([model for model, _ in members], [weight for _, weight in members], heat)
    about = single.about | {"validation": figures(mean) if figures else {metric: blended}}
    return replace(single, task=blend, state=None, about=about)


def trained_further(model: Model, columns: Batch, settings: Mapping[str, Any]) -> Model:
    """The model after more training from its present parameters, with the same reader.

    Its predictions are others now, so it has no `reference`.

    Args:
        model: a model with a task and its state, or with a `Blend`, whose members are all trained.
        columns: the columns of the task.
        settings: settings of `jaxops.fit`.
    """
    if isinstance(model.task, Blend):
        check_one_directory(dict(settings), len(model.task.tasks))
        further = [trained_further(part, columns, settings) for part in model.task.models()]
        about = {**model.about, "updated with": fingerprint(columns)}
        blend = Blend.of(further, model.task.weights, model.task.temperature)
        return replace(model, task=blend, about=about, reference=None)
    task, state = model.trained()
    state = jax.tree.map(jnp.copy, state)  # training donates the arrays of its first state
    state = averaged(loop.fit(task, columns, state=state, **settings))
    about = {**model.about, "updated with": fingerprint(columns)}
    return replace(model, state=state._replace(opt_state=()), about=about, reference=None)


def settings_within(
    seconds: float,
    task: Task,
    columns: Batch,
    recipe: Callable[..., dict[str, Any]],
    given: Mapping[str, Any],
) -> dict[str, Any]:
    """The settings of a recipe, with no more epochs than this machine can make in the given time.

    The speed is measured by a few steps from a new state, whose result is not used. The number of
    epochs is not changed if the user gives it, with `checkpoints` (a resumed run would measure
    another speed), and with several processes.

    Args:
        seconds: the time; a seventh of it is reserved for compilation and validation.
        task: what to learn.
        columns: the training rows.
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
    """The weights of greedy selection with replacement, (M,): the best mean of at most 20 picks.

    Args:
        outputs: the outputs of M members, each (N, ...).
        loss: the loss of a mean of these outputs.

    >>> target = np.array([0.0, 1.0])
    >>> members = [target + 1, target - 1, target + 5]
    >>> greedy(members, lambda mean: float(((mean - target) ** 2).mean())).tolist()
    [0.5, 0.5, 0.0]
    """
    counts, total = np.zeros(len(outputs)), np.zeros(outputs[0].shape)
    best, least = counts, np.inf
    for picked in range(1, ROUNDS + 1):
        losses = [loss((total + output) / picked) for output in outputs]
        member = int(np.argmin(losses))
        counts[member] += 1
        total = total + outputs[member]
        if losses[member] < least:
            best, least = counts / picked, losses[member]
    return best
