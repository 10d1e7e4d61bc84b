"""Training over whole data sets: `fit`. All side effects of training begin here."""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops.devices import hosts
from jaxops.devices.plans import Plan, default
from jaxops.nn.packed import is_packed
from jaxops.nn.product import check_compute
from jaxops.optim import EmaState, LossScaleState, states_of
from jaxops.state import TrainState, init_state, state_shapes
from jaxops.task import Task
from jaxops.train import feed
from jaxops.train.checkpoint import Checkpointer, leaves
from jaxops.train.evaluation import Evaluation
from jaxops.train.feed import Data, check_task
from jaxops.train.fingerprints import functions, start
from jaxops.train.run import Run, RunSettings
from jaxops.train.settings import Checkpoints, EarlyStopping, Logs, Reports, whole
from jaxops.transforms import check_accumulate


def fit(
    task: Task,
    data: Data,
    *,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    epochs: int | None = None,
    steps: int | None = None,
    validation: Data = None,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    early_stopping: EarlyStopping | None = None,
    seed: int = 0,
    plan: Plan | None = None,
    compute: str = "float32",
    accumulate: int = 1,
    state: TrainState | None = None,
    checkpoints: Checkpoints | str | Path | None = None,
    reports: Reports | Logs = (),
    progress: bool = True,
) -> TrainState:
    """Train, and return the last state, or with early stopping the best state.

    Columns in memory are put on the devices once, if they fit, and shuffled anew each epoch. Every
    example is seen once in an epoch, and the last batch is padded (but see `batch_size`). Many
    steps run in one call. The result depends only on the arguments, not on how the steps were split
    into calls or interrupted.

    Args:
        task: what to learn.
        data: columns in memory, where a column `mask` (N,) holds the weights of the rows; or a
            stream: an iterable of batches, such as a batched `grain.IterDataset`, that gives the
            same batches each time it is iterated. A stream without a length is validated and
            reported every `reports.every` steps (100 by default).
        optimizer: any optax transformation; see `jaxops.optim`.
        batch_size: rows in one update, over all devices; of a private task the expected number
            (see `privacy.private`). A batch is padded if it does not divide
            evenly over them. A module with batch statistics that takes no `mask` never sees
            padding: rows that do not fill a batch at the end of an epoch are not used in that
            epoch, rows of weight 0 are left out, and a shorter batch of a stream is dropped.
        epochs: number of passes over the data; give this or `steps`.
        steps: number of updates.
        validation: columns or a stream. They are evaluated at the end of each epoch, with the
            averaged parameters if the optimizer keeps some (`optim.ema`).
        metrics: additional validation metrics by name: functions `(predictions, batch)` that return
            one value for each row, or a metric state. They see only the real rows; see `evaluate`.
        early_stopping: when to stop, by a validation metric.
        seed: determines the initial parameters, the order of the rows and the noise.
        plan: how state and batches lie on the devices; by default everything is on the first
            device, or with several processes (`devices.start`) rows are split over all devices.
        compute: "bfloat16" multiplies matrices in bfloat16 with float32 sums while training, in
            those layers of `jaxops.nn` whose `dtype` is not set; see `jaxops.nn.matmul`. "float16"
            does the same with float16, and needs an optimizer in `optim.loss_scale`.
        accumulate: number of microbatches that are processed one after the other in a step;
            see `train_step`.
        state: start from a copy of this state; by default from a new one. If it has no optimizer
            state, like that of a loaded model, the optimizer starts anew. The run counts its own
            steps from 0, so the order of the rows starts over; another seed gives another order.
        checkpoints: a directory, or `Checkpoints`, which has more settings. `fit` writes a
            checkpoint at the end of each epoch, and the same call continues from it. A call with
            another task, other data or fewer steps than the newest checkpoint is an error. If
            another function in a task of `supervised` or another `state` to start from is noticed,
            `fit` warns. Another optimizer is not noticed; but a call that makes no step says so.
        reports: a function or several, called with each `Record`; or `Reports`, which has more
            settings.
        progress: show a progress bar and print a line for each epoch.

    Raises:
        ValueError: before anything compiles, for invalid data or arguments.
        FloatingPointError: the loss or a parameter is not finite; the message names the step. The
            newest checkpoint is from before that step.
        KeyboardInterrupt: on Ctrl-C, after the calls in flight have ended and a checkpoint is
            written.
        SystemExit: on SIGTERM, in the same way, with code `jaxops.PREEMPTED` (75). Several
            processes all stop at the same step.

    With several processes, each of them calls `fit` with the same arguments. Columns in memory must
    be the same in each; of a stream each reads its own share (see `train.feed.Stream`).
    `checkpoints` must be a directory that all of them see.

    >>> import numpy as np
    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> x = np.random.default_rng(0).normal(size=(256, 3)).astype(np.float32)
    >>> train = {"features": x, "label": (x.sum(1) > 0).astype(np.int32)}
    >>> task = tabular.classifier(tabular.MLP((16,)), features=3)
    >>> state = fit(task, train, optimizer=jo.optim.adam(1e-2), batch_size=32, epochs=20,
    ...             plan=jo.devices.data_parallel(), progress=False)
    >>> jo.evaluate(task, state, train, metrics={"auc": tabular.auc})["auc"] > 0.99
    True
    >>> jo.predict(task, state, {"features": x[:5]}).shape
    (5,)
    """
    plan = plan or default()
    checkpoints, reports = Checkpoints.of(checkpoints), Reports.of(reports)
    hosts.check_mesh(plan.mesh)
    check_compute(compute)
    batch_size, seed = whole("batch_size", batch_size, 1), whole("seed", seed, 0)
    accumulate = whole("accumulate", accumulate, 1)
    epochs, steps = _length(epochs, steps)
    _check_kinds(task, optimizer, accumulate)
    _check_same(seed, accumulate, compute, checkpoints, reports)
    _check_validation(validation, early_stopping, metrics)
    source = feed.source(task, data, batch_size, seed, plan, accumulate)
    shapes = _shapes(task, optimizer, source, plan)
    period = source.steps_per_epoch or reports.every or 100
    total = _total(epochs, steps, source.steps_per_epoch)
    validate = None
    if validation is not None:
        validate = Evaluation(task, validation, plan, metrics, name="validation")
    hosts.check_same(**source.identity(), steps=total, period=period, data=source.sample())
    _check_loss_scale(compute, shapes)
    state = _checked_state(state, shapes, optimizer)
    if validate:
        _check_metric(early_stopping, validate.names(shapes))
    settings = RunSettings(
        task=task,
        optimizer=optimizer,
        plan=plan,
        compute=compute,
        accumulate=accumulate,
        source=source,
        period=period,
        total=total,
        validate=validate,
        early_stopping=early_stopping,
        checkpoints=checkpoints,
        reports=reports,
        progress=progress and hosts.first(),
    )
    run = Run(settings, *((start(state), functions(task)) if checkpoints else ()))
    with Checkpointer(checkpoints.directory) if checkpoints else nullcontext() as saved:
        return run.train(_first_state(run, shapes, saved, state, seed), saved)


def _check_kinds(task: Task, optimizer: Any, accumulate: int) -> None:
    check_task(task)
    if not callable(getattr(optimizer, "update", None)):
        raise ValueError(
            f"optimizer must be an optax transformation, such as jo.optim.adam(1e-3), got "
            f"{optimizer!r}"
        )
    check_accumulate(task, accumulate)


def _shapes(
    task: Task,
    optimizer: optax.GradientTransformation,
    source: feed.Resident | feed.Stream,
    plan: Plan,
) -> TrainState:
    """The shapes of the state; tells the source to give no padding if it would harm the task."""
    shapes = state_shapes(task, optimizer, source.example, plan)
    if any(jax.tree.leaves(shapes.extra.get(name)) for name in task.statistics):
        source.without_padding()
    _check_ema(shapes)
    return shapes


def _length(epochs: int | None, steps: int | None) -> tuple[int | None, int | None]:
    if (epochs is None) == (steps is None):
        raise ValueError(f"one of epochs and steps must be given, got {epochs=} and {steps=}")
    if steps is None:
        return whole("epochs", epochs, 0), None
    return None, whole("steps", steps, 0)


def _check_same(
    seed: int, accumulate: int, compute: str, checkpoints: Checkpoints | None, reports: Reports
) -> None:
    """Check that all processes have equal arguments; a stream has a seed of its own."""
    every = {
        "reports.every": reports.every,
        "checkpoints": checkpoints is not None,
        "checkpoints.every": checkpoints and checkpoints.every,
    }
    hosts.check_same(seed=seed, accumulate=accumulate, compute=compute, **every)


def _total(epochs: int | None, steps: int | None, steps_per_epoch: int | None) -> int:
    if steps is not None:
        return steps
    if steps_per_epoch is None:
        raise ValueError(
            f"epochs must be None for a stream without a length, got {epochs}; give steps instead"
        )
    return (epochs or 0) * steps_per_epoch


def _check_validation(validation: Data, rule: EarlyStopping | None, metrics: Any) -> None:
    if metrics and validation is None:
        raise ValueError("validation must be given for metrics, got None")
    if rule is None:
        return
    if not isinstance(rule, EarlyStopping):
        raise ValueError(f"early_stopping must be a jo.EarlyStopping, got {rule!r}")
    if validation is None:
        raise ValueError("validation must be given for early_stopping, got None")
    if rule.mode not in ("min", "max"):
        raise ValueError(f'early_stopping.mode must be "min" or "max", got {rule.mode!r}')
    if rule.patience != math.inf:  # with infinity all steps are made, and the best state is kept
        whole("early_stopping.patience", rule.patience, 0)
    if rule.seconds != rule.seconds:  # NaN; a negative number means that no time is left
        raise ValueError(f"early_stopping.seconds must be a number, got {rule.seconds}")


def _check_metric(rule: EarlyStopping | None, names: list[str]) -> None:
    if rule and rule.metric not in names:
        raise ValueError(f"early_stopping.metric must be one of {names}, got {rule.metric!r}")


def _check_loss_scale(compute: str, shapes: TrainState) -> None:
    if compute == "float16" and not states_of(shapes.opt_state, LossScaleState):
        raise ValueError(
            'optimizer must be in optim.loss_scale for compute="float16", got one without'
        )


def _check_ema(shapes: TrainState) -> None:
    """Raise `ValueError` if `optim.ema` does not average the parameters after the whole update."""
    for kept in states_of(shapes.opt_state, EmaState):
        if jax.tree.map(jnp.shape, kept.params) != jax.tree.map(jnp.shape, shapes.params):
            raise ValueError(
                "optim.ema must average all parameters, got it inside a transformation that masks "
                "some of them; put it last: optim.chain(language.frozen(...), optim.ema(...))"
            )
    if _ema_before_others(shapes.opt_state):
        raise ValueError("optim.ema must be last in its chain, got other parts after it")


def _ema_before_others(state: Any) -> bool:
    if isinstance(state, EmaState) or not isinstance(state, tuple | dict):
        return False
    if type(state) is tuple and any(states_of(part, EmaState) for part in state[:-1]):
        return True
    return any(map(_ema_before_others, state.values() if isinstance(state, dict) else state))


def _checked_state(
    state: TrainState | None, shapes: TrainState, optimizer: optax.GradientTransformation
) -> TrainState | None:
    """The given state, checked: its leaves must fit the task and the optimizer."""
    if state is None:
        return None
    if not isinstance(state, TrainState):
        raise ValueError(
            f"state must be a TrainState, such as jo.fit returns or model.state, got "
            f"{type(state).__name__}"
        )
    if any(map(is_packed, jax.tree.leaves(state.params, is_leaf=is_packed))):
        raise ValueError(
            "state must have float parameters to be trained, got those of compress.quantise; train "
            "the model from which it was made, see compress.aware"
        )
    if not jax.tree.leaves(state.opt_state):
        state = state._replace(opt_state=jax.jit(optimizer.init)(state.params))
    actual, expected = leaves({"state": state}), leaves({"state": shapes})
    for name in sorted(actual.keys() | expected.keys()):
        have, want = (tree.get(name, "nothing") for tree in (actual, expected))
        if have != want:
            other = "; for another optimizer give state._replace(opt_state=())"
            hint = other * name.startswith("['state'].opt_state")
            raise ValueError(
                f"{name} must be {want} for the task and the optimizer, got {have}{hint}"
            )
    return state


def _first_state(
    run: Run, shapes: TrainState, saved: Checkpointer | None, state: TrainState | None, seed: int
) -> TrainState:
    """The newest checkpoint's state; without one the given state; without either a new state."""
    settings = run.settings
    if settings.checkpoints and saved and _continues(settings.checkpoints, saved):
        return run.restore(shapes, saved)
    if state is None:
        example = settings.source.example
        state = init_state(settings.task, settings.optimizer, seed, example, settings.plan)
        _check_extra(state)
        return state
    placed = hosts.put(state, settings.plan.state_shardings(state))
    return jax.tree.map(jnp.copy, placed)  # the run donates its first state


def _check_extra(state: TrainState) -> None:
    """Raise `ValueError` if the task's own arrays, such as a forecast's series, are missing."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state.extra):
        if jnp.issubdtype(leaf.dtype, jnp.floating) and np.isnan(leaf.addressable_data(0)).any():
            raise ValueError(
                "state must be given for a task that was read from a file without its arrays, got "
                f"none: extra{jax.tree_util.keystr(path)} of a new state is NaN; "
                "use fit(..., state=model.state)"
            )


def _continues(checkpoints: Checkpoints, saved: Checkpointer) -> bool:
    """Whether there is a checkpoint to continue from."""
    newest = saved.latest_step()
    hosts.check_same(checkpoint=newest)
    if newest is not None and not checkpoints.resume:
        raise ValueError(
            f"checkpoints must name a directory without checkpoints for resume=False, got "
            f"{checkpoints.directory}, whose newest is of step {newest}"
        )
    return newest is not None
