"""A user's metrics: functions that see the real rows of a batch, without its padding."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxops import metrics as m
from jaxops.task import Batch, row_weights

Metrics = Mapping[str, Callable[[Any, Any], Any]]
"""Name -> `(predictions, batch) -> metric state`, or one value a row."""


def check(metrics: Metrics | None) -> Metrics:
    """The metrics; raise `ValueError` for names that are taken, and for what is no function."""
    if not isinstance(metrics or {}, Mapping):
        raise ValueError(f"metrics must be functions by name, got {type(metrics).__name__}")
    for name, function in (metrics or {}).items():
        if name == "loss":
            raise ValueError('metrics must have other names than "loss", which is the task\'s own')
        if not callable(function):
            raise ValueError(f"metrics[{name!r}] must be a function, got {function!r}")
    return metrics or {}


def program(metrics: Metrics) -> Callable[[Any, Batch, Any], dict[str, Any]]:
    """A jitted `(predictions, batch, index) -> states`: the functions, on the rows of `index`.

    Functions of the same code and the same values share one, so that a lambda which is written in
    a loop compiles once.
    """
    return _program(tuple(_Function(name, function) for name, function in metrics.items()))


class _Function:
    """A named function, equal to others that compute the same."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        try:
            self.key: Any = (name, _key(function))
            hash(self.key)
        except (TypeError, ValueError):  # what cannot be compared, or a cell without a value yet
            self.key = (name, id(function))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _key(value: Any) -> Any:
    """What the result of a function depends on: its code, and the values that it names."""
    if isinstance(value, types.FunctionType):
        known = value.__globals__
        named = tuple((name, _constant(known[name])) for name in _names(value.__code__, known))
        cells = tuple(_key(cell.cell_contents) for cell in value.__closure__ or ())
        defaults = _key(value.__defaults__), _key(tuple((value.__kwdefaults__ or {}).items()))
        return value.__code__, cells, named, defaults
    if isinstance(value, tuple) and type(value) is tuple:
        return tuple(map(_key, value))
    return _constant(value)


def _constant(value: Any) -> Any:
    """A key in which 1, 1.0 and True differ, as they do to a trace."""
    return (type(value), repr(value) if isinstance(value, float | complex) else value)


def _names(code: types.CodeType, known: Mapping[str, Any]) -> list[str]:
    """The names of `known` that the code has in it, and the code of functions inside of it."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return [n for n in code.co_names if n in known] + [n for c in inner for n in _names(c, known)]


@functools.lru_cache(maxsize=32)
def _program(functions: tuple[_Function, ...]) -> Callable[[Any, Batch, Any], dict[str, Any]]:
    def states(predictions: Any, batch: Batch, index: Any) -> dict[str, Any]:
        predictions, batch = jax.tree.map(lambda leaf: leaf[index], (predictions, dict(batch)))
        return {f.name: _state(f, predictions, batch, len(index)) for f in functions}

    return jax.jit(states)


def _state(one: _Function, predictions: Any, batch: Batch, rows: int) -> Any:
    state = one.function(predictions, batch)
    if hasattr(state, "merge"):
        return state
    if getattr(state, "shape", None) == (rows,):
        return m.mean(state, row_weights(batch))
    given = f"shape {state.shape}" if hasattr(state, "shape") else type(state).__name__
    raise ValueError(
        f"metrics[{one.name!r}] must return one value a row, ({rows},), or a state such as that of "
        f"jaxops.metrics.mean, got {given}"
    )
