"""The numbers by which a model is explained: its columns of numbers, and its looked-up embeddings.

What an integer such as a token stands for is a row of a table. An explanation takes that row, where
a module has looked it up, as the input, by Flax's `intercept_methods`; no model knows of it.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.model.finished import Program
from jaxops.model.players import Columns, column_of

Call = tuple[tuple[str, ...], str, int]
"""Which call of a module: its path, the method, and how many such calls were before."""


class LookUp(NamedTuple):
    """A call of a module that turns integers (B, ...) into vectors (B, ..., d).

    Attributes:
        call: which.
        column: the column whose elements it looks up.
        places: int (...), which element of a row of the column, flat, each of them is; -1 for none.
        shape: of the vectors of one row.
        size: the number of rows of the table, where it is known.
    """

    call: Call
    column: str
    places: np.ndarray
    shape: tuple[int, ...]
    size: int | None


class Watch:
    """An interceptor of Flax that records the calls of look-ups, and may replace their results.

    Attributes:
        instead: call -> what it is to return.
        inputs: call -> the integers that were looked up.
        outputs: call -> the vectors.
        last: what the outermost call returned; None if there were several.
    """

    def __init__(self, instead: Mapping[Call, Any] | None = None) -> None:
        self.instead = instead or {}
        self.inputs: dict[Call, Any] = {}
        self.outputs: dict[Call, Any] = {}
        self.last: Any = None
        self._outermost = 0
        self._counts: dict[tuple[tuple[str, ...], str], int] = {}
        self._inside: list[bool] = []  # of each open call, whether it has looked something up

    def __call__(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """Run a call; see `flax.linen.intercept_methods`."""
        name = (tuple(context.module.path), context.method_name)
        number = self._counts.get(name, 0)
        self._counts[name] = number + 1
        self._inside.append(False)
        result = call(*args, **kwargs)
        found = self._inside.pop()
        if not found and _looks_up(args, result):
            key = (*name, number)
            self.inputs[key], self.outputs[key] = args[0], result
            result = self.instead.get(key, result)
            found = True
        if self._inside:
            self._inside[-1] |= found
        else:
            self._outermost += 1
            self.last = result if self._outermost == 1 else None
        return result


def _looks_up(args: Any, result: Any) -> bool:
    """Whether integers of B rows went in, and floats for each of them came out."""
    if not args or not hasattr(args[0], "dtype") or not hasattr(result, "dtype"):
        return False
    integers = jnp.issubdtype(args[0].dtype, jnp.integer) and args[0].ndim > 1
    shape = result.shape[: args[0].ndim]
    return integers and jnp.issubdtype(result.dtype, jnp.floating) and shape == args[0].shape


def look_ups(program: Program, columns: Columns) -> list[LookUp]:
    """The look-ups of a model, found by what it looks up for columns of consecutive numbers.

    Args:
        program: of the model.
        columns: of at least 1 row.
    """
    sizes: list[dict[Call, Any]] = []
    for rows in (2, 3):  # what has another leading axis than the rows belongs to no row
        watch = Watch()
        traced(program, {n: _shape(x, rows) for n, x in columns.items()}, watch)
        sizes.append({k: x.shape[1:] for k, x in watch.outputs.items() if x.shape[0] == rows})
    calls = [call for call in sizes[0] if call in sizes[1]]
    found = []
    for name in columns if calls else ():
        column = column_of(program, name)
        size = None if column is None else column.classes
        for call, places in _places(program, columns, name, size, calls).items():
            if (places >= 0).any():
                found.append(LookUp(call, name, places, sizes[0][call], size))
    return found


def traced(program: Program, columns: Any, watch: Any) -> None:
    """Let an interceptor of Flax see all calls of a model, without computing anything."""
    with nn.intercept_methods(watch):
        # a function of its own, since JAX does not call one again that it has traced before
        jax.eval_shape(lambda params, x: program.function(params, x), program.params, columns)


def _shape(column: Any, rows: int) -> jax.ShapeDtypeStruct:
    dtype = jax.dtypes.canonicalize_dtype(column.dtype)
    return jax.ShapeDtypeStruct((rows, *column.shape[1:]), dtype)


def _places(
    program: Program, columns: Columns, name: str, size: int | None, calls: list[Call]
) -> dict[Call, np.ndarray]:
    """call -> the places in a row of a column that it looks up; by their digits, 1 and up."""
    elements = math.prod(columns[name].shape[1:])
    base = max(2, elements if size is None else size - 2)
    empty = {n: np.zeros((1, *x.shape[1:]), x.dtype) for n, x in columns.items()}
    places: dict[int, Any] = {}
    weight = 1
    while True:
        digits = 1 + np.arange(elements) // weight % base
        probe = digits.reshape(1, *columns[name].shape[1:]).astype(columns[name].dtype)
        given = _looked_up(program.function, tuple(calls), program.params, empty | {name: probe})
        for i, x in given.items():
            digit = np.asarray(x).astype(int) - 1
            before = places.get(i, 0)
            none = (digit < 0) | (digit >= base) | (before < 0)
            places[i] = np.where(none, -1, before + weight * digit)
        weight *= base
        if weight >= elements:
            return {calls[i]: np.where(p < elements, p, -1) for i, p in places.items()}


@partial(jax.jit, static_argnums=(0, 1))
def _looked_up(function: Any, calls: tuple[Call, ...], params: Any, columns: Any) -> dict[int, Any]:
    """What each call looks up for the first row."""
    inputs = watched(function, params, columns)[1].inputs
    return {i: inputs[call][0] for i, call in enumerate(calls) if call in inputs}


def watched(function: Any, params: Any, columns: Any) -> tuple[Any, Watch]:
    """The outputs of a program's function, and what was seen on the way."""
    watch = Watch()
    with nn.intercept_methods(watch):
        return function(params, columns), watch


Sized = tuple[tuple[Call, int | None], ...]
"""Calls of look-ups, each with the number of rows of its table, where it is known."""


@partial(jax.jit, static_argnums=(0, 1))
def starts(function: Any, calls: Sized, params: Any, columns: Any) -> tuple[Any, Any]:
    """The vectors of the look-ups, and those of nothing, two lists.

    The vectors of nothing are what a look-up gives where its table is 0, so that an embedding of
    positions, for example, stays.

    Args:
        function: of the program.
        calls: its look-ups.
        params: of the program.
        columns: of B rows.
    """
    zeroed, emptied = _without_tables(calls, params)
    full = watched(function, params, columns)[1].outputs
    empty = watched(function, zeroed, columns)[1].outputs
    none = [empty[call] if call in emptied else jnp.zeros_like(full[call]) for call, _ in calls]
    return [full[call] for call, _ in calls], none


def _without_tables(calls: Sized, params: Any) -> tuple[Any, set[Call]]:
    """The parameters with zeros for the tables of look-ups, and the look-ups that have any."""
    emptied: set[Call] = set()

    def one(path: Any, leaf: Any) -> Any:
        names = tuple(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
        for call, size in calls:
            module = call[0]
            places = range(len(names) - len(module))
            inside = any(names[i : i + len(module)] == module for i in places)
            if inside and size is not None and jnp.shape(leaf)[:1] == (size,):
                emptied.add(call)
                return jnp.zeros_like(leaf)
        return leaf

    return jax.tree_util.tree_map_with_path(one, params), emptied
