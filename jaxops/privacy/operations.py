"""A function of parameters and one row as a list of operations: where the two meet."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun

Array = jax.Array
CALLS = {"jit", "pjit", "closed_call"}
"""Calls without a derivative of their own, whose operations are taken one by one."""
SAME_ENTRIES = {"reshape", "squeeze", "expand_dims", "transpose", "rev", "copy", "copy_p"}


@dataclass(frozen=True)
class View:
    """A parameter whose entries are arranged otherwise, each once: what a layer reads of it.

    Attributes:
        leaf: the number of the parameter.
        axes: for each axis of the view, the axes of the parameter that it runs over, in order;
            `None` if an axis is no such run.
    """

    leaf: int
    axes: tuple[tuple[int, ...], ...] | None


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of a program.

    Attributes:
        name: the name of its primitive.
        params: the parameters of its primitive.
        operands: the numbers of the values that it reads; `None` for a literal.
        results: the numbers of its values.
        call: the values of `arguments` to the values of `results`, with a derivative.
    """

    name: str
    params: dict[str, Any]
    operands: tuple[int | None, ...]
    results: tuple[int, ...]
    call: Callable[..., Sequence[Any]]

    @property
    def arguments(self) -> tuple[int, ...]:
        """The numbers of the values that it reads, each once."""
        return tuple(dict.fromkeys(n for n in self.operands if n is not None))


@dataclass(eq=False)
class Program:
    """A traced function `(parameters, row) -> results`, with the calls in it inlined.

    Attributes:
        rowwise: the operations that depend on the row, in order.
        own: those that do not: they are the same for every row.
        uses: those of a parameter and a row, with a float result: where a row's gradient arises.
        shapes: number of a value -> its shape and dtype.
        constants: number of a value -> a constant.
        parameters: numbers of the parameters.
        fixed: numbers of arguments that are no parameters and the same for every row.
        inputs: numbers of the row's values.
        outputs: numbers of the results.
        views: number of a value -> what it is of one parameter.
        leaves: number of a value of parameters alone -> the parameters that it depends on.
        of_row: numbers of the values that depend on the row.
    """

    rowwise: list[Operation] = field(default_factory=list)
    own: list[Operation] = field(default_factory=list)
    uses: list[Operation] = field(default_factory=list)
    shapes: list[Any] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    parameters: list[int] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    views: dict[int, View] = field(default_factory=dict)
    leaves: dict[int, frozenset[int]] = field(default_factory=dict)
    of_row: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, closed: ClosedJaxpr, parameters: int, fixed: int) -> "Program":
        """The program of a closed jaxpr.

        Args:
            closed: of a function of parameters, of what is the same for every row, and of a row.
            parameters: how many arguments are parameters.
            fixed: how many after them are the same for every row.
        """
        program = cls()
        numbers = [program._new(v.aval) for v in closed.jaxpr.invars]
        program.parameters, rest = numbers[:parameters], numbers[parameters:]
        program.fixed, program.inputs = rest[:fixed], rest[fixed:]
        for leaf, number in enumerate(program.parameters):
            axes = tuple((axis,) for axis in range(program.shapes[number].ndim))
            program.views[number] = View(leaf, axes)
            program.leaves[number] = frozenset([leaf])
        program.of_row = set(program.inputs)
        program.outputs = program._inline(closed.jaxpr, closed.consts, numbers)
        return program

    def _new(self, aval: Any) -> int:
        self.shapes.append(aval)
        return len(self.shapes) - 1

    def _constant(self, value: Any) -> int:
        number = self._new(jax.typeof(value))
        self.constants[number] = value
        return number

    def _inline(self, jaxpr: Jaxpr, consts: Iterable[Any], numbers: list[Any]) -> list[int]:
        """Append a jaxpr's operations, and return the numbers of its results."""
        known = dict(zip(jaxpr.constvars, map(self._constant, consts), strict=True))
        known |= dict(zip(jaxpr.invars, numbers, strict=True))

        def number(atom: Any) -> int:
            return self._constant(atom.val) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            if equation.primitive.name in CALLS:
                inner = equation.params.get("jaxpr") or equation.params["call_jaxpr"]
                given = [number(atom) for atom in equation.invars]
                results = self._inline(inner.jaxpr, inner.consts, given)
            else:
                operands = [None if hasattr(a, "val") else known[a] for a in equation.invars]
                results = [self._new(v.aval) for v in equation.outvars]
                self._append(_operation(jaxpr, equation, operands, results))
            known |= dict(zip(equation.outvars, results, strict=True))
        return [number(atom) for atom in jaxpr.outvars]

    def _append(self, operation: Operation) -> None:
        arguments = operation.arguments
        none: frozenset[int] = frozenset()
        of_parameters = none.union(*(self.leaves.get(n, none) for n in arguments))
        if self.of_row.isdisjoint(arguments):
            self.own.append(operation)
            if of_parameters:
                self.leaves |= dict.fromkeys(operation.results, of_parameters)
                self._look(operation)
            return
        self.rowwise.append(operation)
        self.of_row.update(operation.results)
        if of_parameters and any(self.is_float(n) for n in operation.results):
            self.uses.append(operation)

    def _look(self, operation: Operation) -> None:
        """Remember what the result of an operation on one parameter is of it."""
        first = operation.operands[0]
        if operation.name not in SAME_ENTRIES or len(operation.arguments) > 1:
            return
        if first is None or first not in self.views:
            return
        view, (result,) = self.views[first], operation.results
        axes = view.axes
        if axes is None or operation.name == "rev":
            axes = None
        elif operation.name == "transpose":
            axes = tuple(axes[i] for i in operation.params["permutation"])
        else:
            axes = _reshaped(axes, self.shapes[first].shape, self.shapes[result].shape)
        self.views[result] = dataclasses.replace(view, axes=axes)

    def is_float(self, number: int) -> bool:
        """Whether a value is of a type that has gradients."""
        return jnp.issubdtype(self.shapes[number].dtype, jnp.floating)

    def floats(self, operation: Operation) -> list[int]:
        """Those results of an operation that are float."""
        return [n for n in operation.results if self.is_float(n)]

    def values(self, parameters: Sequence[Any], fixed: Sequence[Any]) -> dict[int, Any]:
        """The values of all that does not depend on the row."""
        values = self.constants | dict(zip(self.parameters, parameters, strict=True))
        values |= dict(zip(self.fixed, fixed, strict=True))
        self.run(self.own, values)
        return values

    def compute(self, operation: Operation, values: dict[int, Any]) -> Sequence[Any]:
        """The results of one operation on the values."""
        return operation.call(*(values[n] for n in operation.arguments))

    def run(
        self, operations: Iterable[Operation], values: dict[int, Any], probes: Any = None
    ) -> None:
        """Compute operations, and put their results among the values.

        Args:
            operations: those to compute.
            values: number -> value of all that they read.
            probes: number of a result -> what is added to it; nothing by default.
        """
        for operation in operations:
            results = self.compute(operation, values)
            for number, result in zip(operation.results, results, strict=True):
                added = (probes or {}).get(number)
                values[number] = result if added is None else result + added


def _operation(
    jaxpr: Jaxpr, equation: Any, operands: list[int | None], results: list[int]
) -> Operation:
    """An equation of a jaxpr as an operation."""
    variables = list(dict.fromkeys(a for a in equation.invars if not hasattr(a, "val")))
    alone = jaxpr.replace(constvars=[], invars=variables, outvars=equation.outvars, eqns=[equation])
    name, params = equation.primitive.name, equation.params
    call = jaxpr_as_fun(ClosedJaxpr(alone, []))
    return Operation(name, params, tuple(operands), tuple(results), call)


def _reshaped(
    axes: tuple[tuple[int, ...], ...], old: tuple[int, ...], new: tuple[int, ...]
) -> tuple[tuple[int, ...], ...] | None:
    """The axes after a reshape that joins axes and adds or drops those of length 1.

    >>> _reshaped(((0,), (1,), (2,)), (2, 3, 4), (6, 1, 4)), _reshaped(((0,),), (6,), (2, 3))
    (((0, 1), (), (2,)), None)
    """
    left = [(run, size) for run, size in zip(axes, old, strict=True) if size > 1]
    found = []
    for size in new:
        joined: tuple[int, ...] = ()
        have = 1
        while have < size and left:
            run, length = left.pop(0)
            joined, have = joined + run, have * length
        if have != size:
            return None
        found.append(joined)
    return tuple(found)
