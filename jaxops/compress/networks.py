"""The networks in a finished model of any room, each with its arrays."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.core import meta

from jaxops import optim
from jaxops.data.checks import rows
from jaxops.model.finished import Model
from jaxops.model.selection import Blend
from jaxops.task import Extra, Params, Task


class Network(NamedTuple):
    """One network of a model.

    Attributes:
        module: the Flax module; None if the task was made by hand.
        params: its parameters.
        extra: its other variables.
        task: the task, if there is one.
    """

    module: Any
    params: Params
    extra: Extra
    task: Task | None = None


Change = Callable[[Network], Network]


def changed(model: Model, change: Change, done: dict[str, Any]) -> Model:
    """The model with each of its networks changed.

    Args:
        model: a task with its parameters, a `Blend`, or a closed form that has a module and its
            parameters, such as a recommender or a forecaster.
        change: takes a network and returns it with another module, parameters or variables.
        done: JSON-like data about the change, put at the end of the list `about["compressed"]`. The
            validation figures of `about` are left out, since they are of the model before.

    Raises:
        ValueError: a closed form without a network.
    """
    if not isinstance(model, Model):
        raise ValueError(f"model must be a jo.Model, got {type(model).__name__}")
    task, state = model.task, model.state
    change = functools.partial(_of_arrays, change)
    if isinstance(task, Task):
        task, state = model.trained()
        task, params, extra = _of_task(task, state.params, state.extra, change)
        state = state._replace(params=params, extra=extra, opt_state=())
    else:
        task = _of_form(task, change)
    about = {name: value for name, value in model.about.items() if name != "validation"}
    about["compressed"] = [*about.get("compressed", []), done]
    return dataclasses.replace(model, task=task, state=state, about=about)


def _of_arrays(change: Change, network: Network) -> Network:
    """What a change makes of a network whose parameters are arrays."""
    leaves = jax.tree.leaves(network.params, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
    packed = next((leaf for leaf in leaves if isinstance(leaf, meta.AxisMetadata)), None)
    if packed is not None:
        raise ValueError(
            "model must have float parameters, so quantise it last, got parameters in a "
            f"{type(packed).__name__}"
        )
    return change(network)


def module_of(task: Task) -> Any:
    """The module among the arguments that a task was made of; None if there is none.

    >>> from jaxops import vision
    >>> module_of(vision.classifier(vision.MLP((8,)))).widths
    (8,)
    """
    arguments = task.recipe[1] if task.recipe else ()
    return next((value for _, value in arguments if hasattr(value, "apply")), None)


def with_module(task: Task, module: Any) -> Task:
    """The task of another module, made with the same settings.

    Raises:
        ValueError: a task made by hand, or not of a module.

    >>> from jaxops import vision
    >>> task = with_module(vision.classifier(vision.MLP((8,)), mean=0.5), vision.CNN())
    >>> dict(task.recipe[1])["mean"]
    0.5
    """
    before = module_of(task)
    if task.recipe is None or before is None:
        raise ValueError(
            "model must have a task that a function of jaxops made of a module, got "
            f"{'one made by hand' if task.recipe is None else task.recipe[0].__name__}"
        )
    make, arguments = task.recipe
    given = {name: module if value is before else value for name, value in arguments}
    new: Task = make(**given)
    return new


def _of_task(
    task: Task, params: Params, extra: Extra, change: Change
) -> tuple[Task, Params, Extra]:
    module = module_of(task)
    new = change(Network(module, params, extra, task))
    if new.module != module:
        task = with_module(task, new.module)
    return task, new.params, new.extra


def _of_form(form: Any, change: Change) -> Any:
    """A closed form whose networks are changed."""
    if isinstance(form, Blend):
        members = [
            _of_task(task, params, extra, change)
            if isinstance(task, Task)
            else (_of_form(task, change), params, extra)
            for task, params, extra in zip(form.tasks, form.params, form.extras, strict=True)
        ]
        tasks, params, extras = zip(*members, strict=True)
        return form._replace(tasks=tasks, params=params, extras=extras)
    fields = {f.name: getattr(form, f.name) for f in dataclasses.fields(form)} if (
        dataclasses.is_dataclass(form)
    ) else {}  # fmt: skip
    if {"module", "variables"} <= fields.keys():  # a forecaster
        extra = dict(fields["variables"])
        new = change(Network(fields["module"], extra.pop("params"), extra))
        variables = {"params": new.params, **new.extra}
        return dataclasses.replace(form, module=new.module, variables=variables)
    if "params" in fields and hasattr(fields.get("model"), "module"):  # a recommender
        method = fields["model"]
        new = change(Network(method.module, fields["params"], {}))
        method = dataclasses.replace(method, module=new.module)
        return dataclasses.replace(form, model=method, params=new.params)
    if fields.keys() == {"model"}:  # a forecaster on a scale of its own
        return dataclasses.replace(form, model=_of_form(fields["model"], change))
    raise ValueError(
        "model must have a network: a task, a blend of such, a recommender of a sequence model or "
        f"a forecaster, without conformal margins, got {type(form).__name__}"
    )


def tuning(data: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of `jaxops.fit` for training a changed model further.

    >>> tuning({"x": jnp.ones(40)}, {"steps": 9})["batch_size"]
    40
    """
    length = {} if "steps" in settings else {"epochs": 5}
    size = {"batch_size": min(128, rows(data)), "progress": False}
    return {"optimizer": optim.adam(1e-3), **length, **size, **settings}


def path_of(path: Any) -> str:
    """The path of a leaf as text, such as "hidden_0/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matched(params: Params, pattern: str) -> dict[str, Any]:
    """The float arrays of two axes and more whose path has a pattern, by path.

    Args:
        params: the parameters.
        pattern: a regular expression that is searched for in paths such as "hidden_0/kernel".

    Raises:
        ValueError: there are none.

    >>> params = {"hidden": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> list(matched(params, "kernel"))
    ['hidden/kernel']
    """
    leaves = {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}
    found = {
        name: leaf
        for name, leaf in leaves.items()
        if re.search(pattern, name)
        and jnp.ndim(leaf) > 1
        and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    }
    if not found:
        raise ValueError(
            f"kernels must match a float array of 2 axes or more, got {pattern!r}; the parameters "
            f"are {', '.join(leaves)}"
        )
    return found
