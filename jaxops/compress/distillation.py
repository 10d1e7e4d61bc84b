"""Distillation: a small network learns from the answers of a finished model."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops.compress.networks import check_no_margins, module_of, tuning, with_module
from jaxops.losses import over_members
from jaxops.model.finished import Model, fingerprint
from jaxops.model.selection import Blend
from jaxops.optim import averaged
from jaxops.task import (
    Array,
    Batch,
    Column,
    Extra,
    Key,
    Out,
    Params,
    Task,
    masked_sum,
    row_weights,
)
from jaxops.train import loop
from jaxops.train.evaluation import predict

TEACHER, FEATURES = "teacher", "teacher_features"
SET_BY_ROOMS = ("classes", "outputs", "vocabulary", "numbers")
SMALLEST = 1e-7  # probability whose logarithm is taken


def distil(
    teacher: Model,
    student: Any,
    data: Mapping[str, Any],
    temperature: float = 2.0,
    hard: float = 0.1,
    features: tuple[str, str] | None = None,
    validation: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Model:
    """Train a small module on what a finished model answers, and on the labels.

    For classes, with logits z of the student, probabilities p of the teacher, T the temperature and
    the task's own loss,

        loss = hard * own + (1 - hard) T^2 CE(softmax(log(p) / T), softmax(z / T)),

    and the same with a sigmoid for two classes by one logit, or for several labels. Where the
    target is a number, the second term is the task's own loss with the teacher's answer in place of
    the target. With `features`, the mean squared difference between a layer of the teacher and a
    learned linear map of a layer of the student is added.

    Args:
        teacher: a model whose task answers with classes or with a number, or a `Blend` of such, as
            ensembles of tables are.
        student: a Flax module of the same room. Its number of classes or outputs, of tokens and of
            numbers are set to those of the teacher's.
        data: columns of the task, as `jaxops.fit` takes them.
        temperature: T, above 0; it has no effect where the target is a number, and must then be 2.
        hard: the share of the task's own loss, in [0, 1).
        features: a layer of the teacher and one of the student, by their paths, such as
            ("hidden_0", "hidden_0"); the teacher must then be one network.
        validation: columns for validation, by the student's own loss and metrics.
        **settings: of `jaxops.fit`: by default Adam at 1e-3, 5 epochs, 128 rows a batch.

    Returns:
        A model of the student, with the teacher's reader. `about["compressed"]` says what was done.

    Raises:
        ValueError: a teacher of another kind; a number out of range; a layer that there is not.

    References:
        Hinton et al. 2015, arXiv:1503.02531; Romero et al. 2015, arXiv:1412.6550 (features).

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((8,)), features=4)
    >>> rows = {"features": np.eye(4, dtype=np.float32), "label": np.array([0, 1, 0, 1])}
    >>> teacher = Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows))
    >>> small = distil(teacher, tabular.MLP((2,)), rows, epochs=1)
    >>> small.predict(rows).shape, small.state.params["hidden_0"]["kernel"].shape
    ((4,), (4, 2))
    """
    check_no_margins(teacher)
    own = _task_of(teacher)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if not 0 <= hard < 1:
        raise ValueError(f"hard must be in [0, 1), got {hard}")
    if not own.classes and temperature != 2.0:
        raise ValueError(
            f"temperature must be left out for a target that is a number, got {temperature}"
        )
    task = with_module(own, _sized(student, module_of(own)))
    given = _with_answers(teacher, own, data, features)
    columns = _columns(own, given)
    learned = _distilled(task, columns, temperature, hard, features)
    chosen = tuning(given, settings)
    if validation is not None:
        chosen["validation"] = _with_answers(teacher, own, validation, features)
    state = averaged(loop.fit(learned, given, **chosen))
    params = state.params["student"] if features else state.params
    done: dict[str, Any] = {"method": "distil", "temperature": temperature, "hard": hard}
    if features:
        done["features"] = list(features)
    about = {"data": fingerprint(data), "compressed": [done]}
    state = state._replace(params=params, opt_state=())
    return Model(task, state, teacher.reader, about)


def _task_of(teacher: Model) -> Task:
    """The task of a model, or of the first network of a blend."""
    tasks = teacher.task.tasks if isinstance(teacher.task, Blend) else (teacher.task,)
    task = next((one for one in tasks if isinstance(one, Task)), None)
    if task is None:
        raise ValueError(
            "teacher must have a task, or be a blend with one, of which the student learns, got "
            f"{type(teacher.task).__name__}"
        )
    return task


def _sized(student: Any, module: Any) -> Any:
    """The student with the sizes that a room sets."""
    sizes = {
        name: getattr(module, name)
        for name in SET_BY_ROOMS
        if name in getattr(student, "__dataclass_fields__", ()) and hasattr(module, name)
    }
    return student.clone(**sizes) if sizes else student


def _target(task: Task) -> Column:
    """The column of the labels."""
    found = [c for c in task.columns if c.target]
    many = [c for c in found if c.shape]
    if len(found) != 1 or (many and not task.classes):
        raise ValueError(
            "teacher must have one target, classes or a number, got "
            f"{', '.join(c.name for c in found) or 'none'}"
        )
    return found[0]


def _with_answers(
    teacher: Model, task: Task, data: Mapping[str, Any], features: tuple[str, str] | None
) -> dict[str, np.ndarray]:
    """The columns with the teacher's answers and features beside them."""
    _target(task)
    inputs = {c.name: data[c.name] for c in task.columns if not c.target and c.name in data}
    given = {**data, TEACHER: np.asarray(teacher.outputs(inputs), np.float32)}
    if features is not None:
        if not isinstance(teacher.task, Task):
            raise ValueError("features must be None for a teacher of several networks")
        _, state = teacher.trained()

        def layer(params: Params, extra: Extra, batch: Batch) -> Array:
            return _watched(features[0], lambda: task.predict(params, extra, batch))[1]

        given[FEATURES] = np.asarray(predict(task._replace(predict=layer), state, inputs))
    return given


def _columns(task: Task, given: Mapping[str, np.ndarray]) -> tuple[Column, ...]:
    answers = given[TEACHER]
    wanted = _shape_of_answers(task, answers)
    if answers.shape[1:] != wanted:
        raise ValueError(
            f"teacher must answer with arrays (N, {', '.join(map(str, wanted))}), got "
            f"{answers.shape}"
        )
    more = [
        Column(name, given[name].shape[1:], "float", target=True)
        for name in (TEACHER, FEATURES)
        if name in given
    ]
    return (*task.columns, *more)


def _shape_of_answers(task: Task, answers: np.ndarray) -> tuple[int, ...]:
    if not task.classes or (len(task.classes) == 2 and answers.ndim == 1):
        return ()
    return (len(task.classes),)


def _distilled(
    task: Task,
    columns: tuple[Column, ...],
    temperature: float,
    hard: float,
    features: tuple[str, str] | None,
) -> Task:
    """The task of the student with the teacher's part of the loss; evaluations have its own."""
    target = _target(task)

    def soft(logits: Array, batch: Batch) -> Array:
        return _soft(logits, batch[TEACHER], temperature, bool(target.shape))

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        if features is None:
            return task.init(key, batch)
        own, other = jax.random.split(key)
        (params, extra), seen = _watched(features[1], lambda: task.init(own, batch))
        shape = (seen.shape[-1], batch[FEATURES].shape[-1])
        return {"student": params, "map": nn.initializers.lecun_normal()(other, shape)}, extra

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        own = params["student"] if features else params
        if not train:
            return task.loss(own, extra, batch, key, train)
        weights = row_weights(batch)
        layers = ("", features[1]) if features else ("",)
        (total, out), *seen = _watched_all(layers, lambda: task.loss(own, extra, batch, key, True))
        if task.classes:
            learned = masked_sum(soft(seen[0], batch), weights)
        else:  # XLA computes the outputs, which are the same, only once
            learned, _ = task.loss(own, extra, {**batch, target.name: batch[TEACHER]}, key, True)
        total = hard * total + (1 - hard) * learned
        if features:
            difference = jnp.matmul(seen[1], params["map"]) - batch[FEATURES]
            axes = tuple(range(1, difference.ndim))
            total += masked_sum(jnp.square(difference).mean(axes), weights)
        return total, out

    def predicted(params: Params, extra: Extra, batch: Batch) -> Any:
        return task.predict(params["student"] if features else params, extra, batch)

    return task._replace(
        init=init, loss=loss, predict=predicted, columns=columns, recipe=None, sample=None
    )


def _soft(logits: Array, p: Array, temperature: float, many: bool) -> Array:
    """T^2 times the cross-entropy of the student to the teacher, both at the temperature, (B,).

    >>> row = _soft(jnp.array([[0.0, 0.0]]), jnp.array([[0.5, 0.5]]), 1.0, False)
    >>> round(float(row[0]), 4)  # log 2
    0.6931
    """
    p = jnp.clip(p, SMALLEST, 1 - SMALLEST)
    if many or p.ndim == 1:
        wanted = jax.nn.sigmoid((jnp.log(p) - jnp.log1p(-p)) / temperature)
        logits = logits if many else logits[..., 0]
        if logits.ndim > wanted.ndim:
            wanted = wanted[:, None]
        losses = optax.sigmoid_binary_cross_entropy(logits / temperature, wanted)
        losses = losses.sum(-1) if many else losses
    else:
        wanted = jax.nn.softmax(jnp.log(p) / temperature)
        wanted = wanted[:, None] if logits.ndim > wanted.ndim else wanted
        wanted = jnp.broadcast_to(wanted, logits.shape)
        losses = optax.softmax_cross_entropy(logits / temperature, wanted)
    return temperature**2 * over_members(losses, rank=1)


def _watched(path: str, run: Any) -> Any:
    """What a function returns, and the output of the layer at a path while it ran."""
    return _watched_all((path,), run)


def _watched_all(paths: tuple[str, ...], run: Any) -> Any:
    """What a function returns, and the outputs of the layers at some paths while it ran.

    Raises:
        ValueError: there is no such layer; the path of the module itself is "".
    """
    seen: dict[str, Any] = {}
    known: dict[str, None] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__":
            path = "/".join(context.module.path)
            known[path] = None
            if path in paths:
                seen[path] = outputs
        return outputs

    with nn.intercept_methods(watch):
        result = run()
    for path in paths:
        if path not in seen:
            raise ValueError(
                f"features must be layers among {', '.join(filter(None, known))}, got {path!r}"
            )
    return (result, *(seen[path] for path in paths))
