"""The parameters of a finished model of any room, and the columns from which it predicts."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxops.model.finished import Model
from jaxops.task import Task

PARTS = ("model", "models", "members", "tasks")  # of closed forms, with parameters of their own


def with_params(model: Model, change: Callable[[Any], Any]) -> Model:
    """The model with other parameters, in the same task or closed form.

    Args:
        model: a model with a task and its state; or a closed form that has its parameters in
            `params` or `variables`, or in parts such as `members` that have them.
        change: parameters -> parameters, which is called once for each part.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP((4,)), features=3), {"features": np.ones((2, 3))}
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch=x))
    >>> sorted(with_params(model, lambda params: {"only": 0, **params}).state.params)
    ['hidden_0', 'logits', 'only']
    """
    if isinstance(model.task, Task):
        _, state = model.trained()
        return replace(model, state=state._replace(params=change(state.params)))
    return replace(model, task=_with_params(model.task, change))


def _with_params(part: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(part, Task | type):
        return part
    if type(part) in (tuple, list):
        return type(part)(_with_params(one, change) for one in part)
    plain = dataclasses.is_dataclass(part)
    names = [f.name for f in dataclasses.fields(part)] if plain else getattr(part, "_fields", ())
    new = {name: _with_params(getattr(part, name), change) for name in names if name in PARTS}
    if "params" in names:
        new["params"] = change(part.params)
    if "variables" in names:
        new["variables"] = part.variables | {"params": change(part.variables.get("params", {}))}
    if not new:
        return part
    return replace(part, **new) if plain else part._replace(**new)


@dataclass(frozen=True, eq=False)
class Watched(Model):
    """A model that keeps the encoded columns from which it predicts.

    Attributes:
        seen: the columns of each call of `outputs`.
    """

    seen: list[Any] = field(default_factory=list)

    def outputs(self, columns: Any, batch_size: int = 1024) -> Any:
        """See `Model.outputs`."""
        self.seen.append(columns)
        return super().outputs(columns, batch_size)


def columns_of(model: Model, data: Any) -> dict[str, np.ndarray]:
    """The encoded columns from which a model predicts raw data.

    Args:
        model: a model whose reader calls `Model.outputs`, or without a reader.
        data: what `model.predict` takes.

    Raises:
        ValueError: the model does not predict by `outputs`.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP((4,)), features=3), np.ones((2, 3), np.float32)
    >>> state = init_state(task, optim.sgd(0.1), seed=0, batch={"features": x})
    >>> columns_of(Model(task, state), x)["features"].shape
    (2, 3)
    """
    watched = Watched(model.task, model.state, model.reader, model.about, model.versions)
    watched.predict(data)
    if not watched.seen:
        raise ValueError(
            f"model must predict from encoded columns, got one of the room {model.room!r}, which "
            "reads its data in another way"
        )
    return {
        name: np.concatenate([np.asarray(part[name]) for part in watched.seen])
        for name in watched.seen[0]
    }
