"""A user's metrics: functions that see the real rows of a batch, without its padding."""

import dis
import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxops import metrics as m
from jaxops.task import Batch, check_function, row_weights

LIBRARIES = ("builtins", "jax", "jaxops", "math", "numpy", "optax")  # their code does not change
NUMBERS = bool | int | float | complex | str | bytes | None

Metrics = Mapping[str, Callable[[Any, Any], Any]]
"""Name -> `(predictions, batch) -> metric state`, or one value a row."""


def check(metrics: Metrics | None) -> Metrics:
    """The metrics; raise `ValueError` for a name that is taken or what is not a function."""
    if not isinstance(metrics or {}, Mapping):
        raise ValueError(f"metrics must be functions by name, got {type(metrics).__name__}")
    for name, function in (metrics or {}).items():
        if name == "loss":
            raise ValueError('metrics must have other names than "loss", which is the task\'s own')
        check_function(f"metrics[{name!r}]", function, "predictions", "batch")
    return metrics or {}


def program(metrics: Metrics) -> Callable[[Any, Batch, Any], dict[str, Any]]:
    """A jitted `(predictions, batch, index) -> states`, which calls them on the rows of `index`.

    Functions with the same code and the same values share one program, so that a lambda which is
    written in a loop compiles once.
    """
    return _program(tuple(_Function(name, function) for name, function in metrics.items()))


class _Function:
    """A named function, equal to others that compute the same."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        try:
            self.key: Any = (name, _key(function))
            hash(self.key)
        except (TypeError, ValueError):  # a value that cannot be compared, or has no value yet
            self.key = (name, id(function))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Function) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _key(value: Any, inside: tuple[Any, ...] = ()) -> Any:
    """A key of everything that a function's result depends on: its code and the values it names.

    Raises:
        TypeError: a value that can change, so that the result can change too.
    """
    if isinstance(value, types.FunctionType):
        if value in inside or of_a_library(value):
            return id(value)
        inside, known = (*inside, value), value.__globals__
        names = names_in(value.__code__, known)
        named = tuple((name, _key(known[name], inside)) for name in names)
        cells = tuple(_key(cell.cell_contents, inside) for cell in value.__closure__ or ())
        more = value.__defaults__, tuple((value.__kwdefaults__ or {}).items())
        return value.__code__, cells, named, _key(more, inside)
    if type(value) is tuple:
        return tuple(_key(one, inside) for one in value)
    if isinstance(value, NUMBERS):
        return type(value), repr(value)  # 1, 1.0 and True give different traces
    if of_a_library(value):
        return id(value)
    raise TypeError(f"{value!r} can change")


def of_a_library(value: Any) -> bool:
    """Whether a value is a module, a class or a function of one of `LIBRARIES`."""
    module = isinstance(value, types.ModuleType)
    name = getattr(value, "__name__" if module else "__module__", None) or ""
    return (module or callable(value)) and name.split(".")[0] in LIBRARIES


def names_in(code: types.CodeType, known: Mapping[str, Any]) -> list[str]:
    """The names of `known` that the code, or the code of functions inside it, reads."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    reads = [i for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    names = [name for name in dict.fromkeys(i.argval for i in reads) if name in known]
    return names + [name for c in inner for name in names_in(c, known)]


@functools.lru_cache(maxsize=32)
def _program(functions: tuple[_Function, ...]) -> Callable[[Any, Batch, Any], dict[str, Any]]:
    def states(predictions: Any, batch: Batch, index: Any) -> dict[str, Any]:
        predictions, batch = jax.tree.map(lambda leaf: leaf[index], (predictions, dict(batch)))
        return {f.name: _state(f, predictions, batch, len(index)) for f in functions}

    return jax.jit(states)


def _state(one: _Function, predictions: Any, batch: Batch, rows: int) -> Any:
    try:
        state = one.function(predictions, batch)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            f"metrics[{one.name!r}] must compute with jax.numpy, because it is compiled, got a "
            "function that needs NumPy values; to use NumPy or scikit-learn, call them on the "
            "result of jo.predict"
        ) from error
    except KeyError as error:
        if error.args != ("mask",):
            raise
        raise ValueError(
            f"metrics[{one.name!r}] must take the weights of the rows from jo.row_weights(batch), "
            "got a batch without mask, because the data have none"
        ) from error
    if hasattr(state, "merge"):
        return state
    if getattr(state, "shape", None) == (rows,):
        return m.mean(state, row_weights(batch))
    given = f"shape {state.shape}" if hasattr(state, "shape") else type(state).__name__
    raise ValueError(
        f"metrics[{one.name!r}] must return one value a row, ({rows},), or a state such as "
        f"jaxops.metrics.mean returns, got {given}"
    )
