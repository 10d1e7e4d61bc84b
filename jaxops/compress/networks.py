"""The networks in a finished model of any room, each with its arrays."""

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxops import optim
from jaxops.data.checks import rows
from jaxops.model.finished import Model
from jaxops.model.selection import Blend
from jaxops.nn.packed import is_packed
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
PARTS = ("model", "models", "members")  # of closed forms, which have networks of their own


def walked(model: Model, change: Change) -> Model:
    """The model with each of its networks changed; one without networks stays as it is.

    Args:
        model: a task with its parameters, a `Blend`, or another closed form of a room that has
            parameters, or parts with parameters.
        change: takes a network and returns it with another module, parameters or variables.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP((4,)), features=3), {"features": jnp.ones((2, 3))}
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch=x))
    >>> more = walked(model, lambda part: part._replace(params={"only": 0, **part.params}))
    >>> sorted(more.state.params)
    ['hidden_0', 'logits', 'only']
    """
    if not isinstance(model.task, Task):
        return dataclasses.replace(model, task=_of_form(model.task, change))
    task, state = model.trained()
    task, params, extra = _of_task(task, state.params, state.extra, change)
    state = state._replace(params=params, extra=extra, opt_state=())
    return dataclasses.replace(model, task=task, state=state)


def changed(model: Model, change: Change, done: dict[str, Any], alike: bool = False) -> Model:
    """The model with each of its networks changed, and what `about` then says.

    Args:
        model: see `walked`.
        change: see `walked`.
        done: JSON-like data about the change, put at the end of the list `about["compressed"]`. The
            validation figures of `about` are left out, since they are of the model before.
        alike: whether the new model answers nearly as before. Otherwise its `reference` is left
            out, and conformal margins are refused, since they are of the answers before.

    Raises:
        ValueError: a closed form without a network; a quantised model.
    """
    if not isinstance(model, Model):
        raise ValueError(f"model must be a jo.Model, got {type(model).__name__}")
    if not alike:
        check_no_margins(model)
    found = []

    def one(part: Network) -> Network:
        if not jax.tree.leaves(part.params):
            return part
        found.append(part)
        check_floats(part.params)
        return change(part)

    new = walked(model, one)
    if not found:
        raise ValueError(
            "model must have a network, or a closed form with parameters that JAX reads, got "
            f"{type(model.task).__name__}"
        )
    return dataclasses.replace(
        new, about=about_of(model, done), reference=model.reference if alike else None
    )


def check_no_margins(model: Model) -> None:
    """Raise `ValueError` for a model with conformal margins, which are of its answers alone."""
    wanted = "model must have no conformal margins, which are of its"
    if hasattr(model.task, "offsets"):
        raise ValueError(
            f"{wanted} forecasts before, got {type(model.task).__name__}; replace the task by its "
            "`model`, and calibrate it anew"
        )
    if hasattr(model.reader, "margins"):
        raise ValueError(
            f"{wanted} answers before, got {type(model.reader).__name__}; replace the reader by "
            "its `reader`, and calibrate it anew"
        )


def about_of(model: Model, done: dict[str, Any]) -> dict[str, Any]:
    """What `about` says of a model after another step, without the figures of the model before."""
    about = {name: value for name, value in model.about.items() if name != "validation"}
    return about | {"compressed": [*about.get("compressed", []), done]}


def check_floats(params: Params) -> None:
    """Raise `ValueError` if there are quantised arrays among the parameters."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_packed):
        if is_packed(leaf):
            raise ValueError(
                f"model must have float parameters, so quantise it last, got {path_of(path)} in "
                f"{leaf.form}"
            )


def module_of(task: Task) -> Any:
    """The module among the arguments that a task was made of; None if there is none.

    >>> from jaxops import vision
    >>> module_of(vision.classifier(vision.MLP((8,)))).widths
    (8,)
    """
    arguments = dict(task.recipe[1]) if task.recipe else {}
    if isinstance(arguments.get("task"), Task):  # of `aware`
        return module_of(arguments["task"])
    return next((value for value in arguments.values() if hasattr(value, "apply")), None)


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

    def one(value: Any) -> Any:
        if isinstance(value, Task):
            return with_module(value, module)
        return module if value is before else value

    new: Task = make(**{name: one(value) for name, value in arguments})
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
    if isinstance(form, Task | type):
        return form
    if type(form) in (tuple, list):
        return type(form)(_of_form(one, change) for one in form)
    if isinstance(form, Blend):
        members = [
            _of_task(task, params, extra, change)
            if isinstance(task, Task)
            else (_of_form(task, change), params, extra)
            for task, params, extra in zip(form.tasks, form.params, form.extras, strict=True)
        ]
        tasks, params, extras = zip(*members, strict=True)
        return form._replace(tasks=tasks, params=params, extras=extras)
    names = [f.name for f in dataclasses.fields(form)] if dataclasses.is_dataclass(form) else []
    fields = {name: getattr(form, name) for name in names}
    if {"task", "params", "extra"} <= fields.keys():  # a member that reads a table
        task, params, extra = _of_task(form.task, form.params, form.extra, change)
        return dataclasses.replace(form, task=task, params=params, extra=extra)
    if {"module", "variables"} <= fields.keys():  # a forecaster
        extra = dict(fields["variables"])
        new = change(Network(fields["module"], extra.pop("params", {}), extra))
        variables = {"params": new.params, **new.extra}
        return dataclasses.replace(form, module=new.module, variables=variables)
    if "params" in fields:  # a recommender
        method: Any = fields.get("model")
        module = getattr(method, "module", None)
        new = change(Network(module, fields["params"], {}))
        if new.module == module:
            return dataclasses.replace(form, params=new.params)
        method = dataclasses.replace(method, module=new.module)
        return dataclasses.replace(form, model=method, params=new.params)
    parts = {name: _of_form(fields[name], change) for name in PARTS if name in fields}
    return dataclasses.replace(form, **parts) if parts else form


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
