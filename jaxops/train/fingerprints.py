"""Fingerprints that compare a resumed run with its checkpoint: task, functions, first state."""

import contextlib
import dataclasses
import functools
import platform
import re
import types
import zlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxops._modules import Called
from jaxops.devices import hosts
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train.own_metrics import NUMBERS, names_in, of_a_library

SAMPLE = 1000  # number of values of each array of the first state that are compared
LONGEST = 10_000  # longer lists are compared by their type and length


def described(task: Task) -> dict[str, str]:
    """How the task was made, as texts by name; for a task made by hand, its own fields.

    A long text is replaced by its checksum.

    >>> from jaxops import tabular
    >>> described(tabular.classifier(tabular.MLP((8,)), features=4))["features"]
    '4'
    """
    make, arguments = task.recipe or (None, task._asdict().items())
    texts = {name: _plain(value) for name, value in arguments}
    made = {"function": f"{make.__module__}.{make.__qualname__}"} if make else {}
    if task.release is not None:  # a private task has the recipe of the task that it was made of
        made["release"] = _plain(task.release)
    return made | {
        name: text if len(text) < 1000 else f"{_checksum(text)}" for name, text in texts.items()
    }


def functions(task: Task) -> dict[str, str]:
    """Checksums of the parts of a task that was made by hand, by name; empty for other tasks.

    The checksum of a function covers its code and the values that it names. The same function has
    other code in another version of Python, so that version is one of the parts.

    >>> by_hand = Task(lambda key, batch: ({}, {}), lambda *_: 0.0, lambda *_: 0.0)
    >>> sorted(functions(by_hand))
    ['init', 'loss', 'predict', 'python']
    """
    if task.recipe:
        return {}
    parts: dict[str, Any] = {"init": task.init, "loss": task.loss, "predict": task.predict}
    cells = _cells(task.loss)
    if isinstance(cells.get("called"), Called):  # the arguments of `supervised`
        parts = {**_cells(task.predict), **cells}
        parts["module"] = parts.pop("called").module
    checksums = {name: _checksum(_key(part)) for name, part in parts.items()}
    return {"python": platform.python_version(), **checksums}


def start(state: TrainState | None) -> str:
    """A checksum of the first values of each array of a run's first state; "" if none is given.

    >>> start(None)
    ''
    """
    if state is None or hosts.count() > 1:
        return ""
    leaves = jax.tree.leaves(state.params)
    return _checksum([_key(np.asarray(leaf.reshape(-1)[:SAMPLE])) for leaf in leaves])


def _key(value: Any, inside: tuple[Any, ...] = ()) -> Any:
    """Nested lists of texts, which are equal in two processes if the value is.

    Of an object of unknown type only the type is compared, because a false alarm would be worse.
    """
    if any(value is one for one in inside):
        return "itself"
    every = functools.partial(_key, inside=(*inside, value))
    if isinstance(value, types.FunctionType):
        cells = every(_cells(value))
        if of_a_library(value):
            return [value.__module__, value.__qualname__, cells]
        known = value.__globals__
        named = {name: known[name] for name in names_in(value.__code__, known)}
        return [every(value.__code__), cells, every(named), every(value.__defaults__)]
    if isinstance(value, types.CodeType):
        return [value.co_code.hex(), value.co_names, every(value.co_consts)]
    if isinstance(value, functools.partial):
        return every([value.func, value.args, value.keywords])
    if isinstance(value, list | tuple | frozenset | dict) and len(value) > LONGEST:
        return [type(value).__qualname__, len(value)]
    if isinstance(value, list | tuple):
        return [*map(every, value)]
    if isinstance(value, frozenset):
        return sorted(map(str, map(every, value)))
    if isinstance(value, dict):
        return sorted((str(name), str(every(one))) for name, one in value.items())
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [str(value.dtype), value.shape, zlib.crc32(value.tobytes())]
    if isinstance(value, np.ndarray):
        return every(value.tolist())
    if isinstance(value, Called):
        return _plain(value.module)
    if isinstance(value, NUMBERS | nn.Module):
        return _plain(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return [type(value).__qualname__, every(fields)]
    return type(value).__qualname__


def _cells(function: Any) -> dict[str, Any]:
    """The variables of a function's closure by name; {} if the object is not a function."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    cells = {}
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        with contextlib.suppress(ValueError):  # the variable has no value yet
            cells[name] = cell.cell_contents
    return cells


def _plain(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _checksum(key: Any) -> str:
    return f"{zlib.crc32(str(key).encode()):08x}"
