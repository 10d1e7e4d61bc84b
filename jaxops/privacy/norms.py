"""Norms of the gradients of single rows, in closed form where that is cheaper than the gradients.

A row's gradient of a parameter that is multiplied with the row's values is a product of two
matrices, G = A^T B: A has what the parameter is multiplied with and B has the gradients of the
results, both with a line for each place (token, pixel) of the row. Its norm follows from the inner
products of those lines, and G is not needed:

    |G|^2 = sum_{s,t} (A A^T)_{st} (B B^T)_{st}

A parameter that is used at several places has the sum of several such products; stacked, they are
one product (A has the lines of all uses), so it counts once. The same holds for a table that is
read at tokens, where A A^T says which tokens are equal.

References:
    Goodfellow 2015, arXiv:1510.01799 (dense layers).
    Lee and Kifer 2021, arXiv:2009.03106 (convolution, recurrence, normalisation).
    Li et al. 2022, arXiv:2110.05679 (sequences, embeddings: "ghost clipping").
    Bu et al. 2022, arXiv:2205.10683 (the cheaper of two forms for each layer).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxops.privacy.operations import Operation, Program

Array = jax.Array
GRAM, PRODUCT, REPLAY = "closed form", "gradient of the layer", "gradient of the operation"
ROUNDING = 1e-6  # of a sum of products in float32
MEMORY = 4
"""How many operations on numbers in a cache one number that is written to memory and read costs."""


class Factors(NamedTuple):
    """How the gradient of a parameter, from one use, is a product A^T B.

    Attributes:
        axes: the parameter's axes along the columns of A, and along those of B.
        lines: the number of lines of A and B.
        widths: the numbers of their columns.
        lookup: whether A has a single one in each line: it is given as tokens (lines,).
        of: `(values, gradients of the use's results) -> (A, B)`.
    """

    axes: tuple[Any, Any]
    lines: int
    widths: tuple[int, int]
    lookup: bool
    of: Callable[[dict[int, Any], dict[int, Any]], tuple[Array, Array]]

    def swapped(self) -> "Factors":
        """The transposed gradient, B^T A."""
        return Factors(
            self.axes[::-1], self.lines, self.widths[::-1], False, lambda *x: self.of(*x)[::-1]
        )


@dataclass(frozen=True, eq=False)
class Rule:
    """How a parameter's part of a row's norm is computed.

    Attributes:
        name: GRAM, PRODUCT or REPLAY.
        uses: where the parameter and the row meet.
        factors: of each use; empty for REPLAY.
    """

    name: str
    uses: tuple[Operation, ...]
    factors: tuple[Factors, ...] = ()


def rules(program: Program) -> list[Rule]:
    """The rule of each parameter of a program."""
    found = []
    for leaf in range(len(program.parameters)):
        uses = [
            use
            for use in program.uses
            if any(leaf in program.leaves.get(n, ()) for n in use.arguments)
        ]
        factors = _matched([_factors(program, use, leaf) for use in uses])
        if not factors:
            found.append(Rule(REPLAY, tuple(uses)))
            continue
        size = math.prod(program.shapes[program.parameters[leaf]].shape)
        name = GRAM if _gram_cost(factors) <= _product_cost(factors, size) else PRODUCT
        found.append(Rule(name, tuple(uses), factors))
    return found


def squared_norms(
    program: Program,
    chosen: Sequence[Rule],
    parameters: Sequence[Any],
    values: dict[int, Any],
    gradients: dict[int, Any],
) -> Array:
    """|G|^2 of each parameter for one row, float32 (number of parameters,).

    Args:
        program: the program.
        chosen: its `rules`.
        parameters: their values.
        values: number -> value of all that the uses read.
        gradients: number -> gradient of the uses' results.
    """
    squares: list[Any] = [jnp.zeros(())] * len(chosen)
    for leaf, rule in enumerate(chosen):
        if rule.name == REPLAY:
            continue
        parts = [(f, *f.of(values, gradients)) for f in rule.factors]
        squares[leaf] = _by_gram(parts) if rule.name == GRAM else _by_product(parts)
    replayed = [leaf for leaf, rule in enumerate(chosen) if rule.name == REPLAY and rule.uses]
    if replayed:
        grads = _replayed(program, chosen, replayed, parameters, values, gradients)
        for leaf, grad in zip(replayed, grads, strict=True):
            squares[leaf] = jnp.square(grad.astype(jnp.float32)).sum()
    return jnp.stack(squares)


def _replayed(
    program: Program,
    chosen: Sequence[Rule],
    leaves: list[int],
    parameters: Sequence[Any],
    values: dict[int, Any],
    gradients: dict[int, Any],
) -> Sequence[Any]:
    """The row's gradients of some parameters: their uses are computed again, and pulled back."""
    uses = list(dict.fromkeys(use for leaf in leaves for use in chosen[leaf].uses))
    fixed = [values[n] for n in program.fixed]

    def run(some: list[Any]) -> list[Any]:
        changed = dict(zip(leaves, some, strict=True))
        whole = [changed.get(i, p) for i, p in enumerate(parameters)]
        again = values | program.values(whole, fixed)
        # each from the row's recorded values, also where it reads the result of another use
        results = [zip(use.results, program.compute(use, again), strict=True) for use in uses]
        return [x for pairs in results for n, x in pairs if program.is_float(n)]

    _, pull = jax.vjp(run, [parameters[i] for i in leaves])
    (grads,) = pull([gradients[n] for use in uses for n in program.floats(use)])
    return grads


def _gram_cost(factors: Sequence[Factors]) -> float:
    """Operations on numbers for the inner products of all lines."""
    total = 0.0
    for a, b in itertools.combinations_with_replacement(factors, 2):
        width = b.widths[1] + (0 if a.lookup or b.lookup else b.widths[0])
        total += a.lines * b.lines * (width + MEMORY)
    return total


def _product_cost(factors: Sequence[Factors], size: int) -> float:
    """The same for the gradient itself, which is written to memory."""
    products = sum(f.lines * f.widths[1] * (1 if f.lookup else f.widths[0]) for f in factors)
    return products + MEMORY * size


def _by_gram(parts: Sequence[tuple[Factors, Array, Array]]) -> Array:
    total, longest = jnp.zeros(()), jnp.zeros(())
    for i, (first, a, b) in enumerate(parts):
        lengths: Any = 1 if first.lookup else jnp.linalg.norm(a, axis=1)
        longest += (lengths * jnp.linalg.norm(b, axis=1)).sum()  # |G| if no line cancels another
        for j, (second, c, d) in enumerate(parts[i:]):
            if len(b) == len(d) == 1 and not (first.lookup or second.lookup):
                inner = (a * c).sum() * (b * d).sum()
            else:
                inner = (_inner(first.lookup, a, second.lookup, c) * _lines(b, d)).sum()
            total += inner * (2 if j else 1)
    # where lines nearly cancel, the sum is of rounding errors; a norm that is told too small would
    # leave a row unclipped
    return jnp.maximum(total, ROUNDING * jnp.square(longest))


def _lines(a: Array, b: Array) -> Array:
    """The inner products of all lines of two matrices, without the rounding of fast products."""
    return jnp.matmul(a, b.T, precision=lax.Precision.HIGHEST)


def _inner(a_lookup: bool, a: Array, b_lookup: bool, b: Array) -> Array:
    """The same where a matrix may be given by tokens."""
    if a_lookup and b_lookup:
        return (a[:, None] == b[None]).astype(jnp.float32)
    if a_lookup:
        return b[:, a].T
    return a[:, b] if b_lookup else _lines(a, b)


def _by_product(parts: Sequence[tuple[Factors, Array, Array]]) -> Array:
    total: Any = 0.0
    for factors, a, b in parts:
        if factors.lookup:
            total += jnp.zeros(factors.widths).at[a].add(b)
        else:
            total += jnp.matmul(a.T, b, precision=lax.Precision.HIGHEST)
    return jnp.square(total).sum()


def _matched(found: list[Factors | None]) -> tuple[Factors, ...]:
    """The factors of all uses with the same axes on the same side; empty if that cannot be."""
    factors = [f for f in found if f is not None]
    if len(factors) < len(found) or not found:
        return ()
    first = next((f for f in factors if f.lookup), factors[0])
    if len(factors) > 1 and None in first.axes:
        return ()
    matched = [f.swapped() if f.axes != first.axes and not f.lookup else f for f in factors]
    return tuple(matched) if all(f.axes == first.axes for f in matched) else ()


def _factors(program: Program, use: Operation, leaf: int) -> Factors | None:
    """The factors of one use of a parameter, if it is a product, a convolution or a look-up."""
    none: frozenset[int] = frozenset()
    places = [
        i for i, n in enumerate(use.operands)
        if n is not None and leaf in program.leaves.get(n, none)
    ]  # fmt: skip
    make = {"dot_general": _of_product, "conv_general_dilated": _of_conv, "gather": _of_lookup}
    if len(places) > 1 or use.name not in make or use.operands[places[0]] not in program.views:
        return None
    return make[use.name](program, use, places[0])


def _joined(axes: Any, places: Sequence[int]) -> Any:
    """The parameter's axes along some axes of a view; `None` if they are not known."""
    return None if axes is None else tuple(itertools.chain(*(axes[i] for i in places)))


def _rest(ndim: int, without: Sequence[int]) -> list[int]:
    return [axis for axis in range(ndim) if axis not in without]


def _of_product(program: Program, use: Operation, side: int) -> Factors | None:
    contracted, batched = use.params["dimension_numbers"]
    x, v = use.operands[1 - side], use.operands[side]
    if batched[0] or x is None or v is None:
        return None
    shape, seen = program.shapes[v].shape, program.shapes[x].shape
    free, outside = _rest(len(shape), contracted[side]), _rest(len(seen), contracted[1 - side])
    k, p, t = (math.prod(s[i] for i in axes) for s, axes in (
        (shape, contracted[side]), (shape, free), (seen, outside)
    ))  # fmt: skip
    order = (*outside, *contracted[1 - side])

    def of(values: dict[int, Any], gradients: dict[int, Any]) -> tuple[Array, Array]:
        g = gradients[use.results[0]]
        b = g.reshape(t, p) if side == 1 else g.reshape(p, t).T
        return values[x].transpose(order).reshape(t, k), b

    axes = program.views[v].axes
    return Factors((_joined(axes, contracted[side]), _joined(axes, free)), t, (k, p), False, of)


def _of_conv(program: Program, use: Operation, side: int) -> Factors | None:
    settings = use.params
    x, v = use.operands[0], use.operands[1]
    if side == 0 or x is None or v is None:
        return None
    if settings["feature_group_count"] > 1 or settings["batch_group_count"] > 1:
        return None
    numbers, shape = settings["dimension_numbers"], program.shapes[v].shape
    outputs, inputs, *window = numbers.rhs_spec
    channel, result = numbers.out_spec[1], use.results[0]
    p = shape[outputs]
    k, t = math.prod(shape) // p, math.prod(program.shapes[result].shape) // p

    def of(values: dict[int, Any], gradients: dict[int, Any]) -> tuple[Array, Array]:
        patches = lax.conv_general_dilated_patches(
            values[x],
            [shape[i] for i in window],
            settings["window_strides"],
            settings["padding"],
            settings["lhs_dilation"],
            settings["rhs_dilation"],
            numbers,
            precision=lax.Precision.HIGHEST,
        )
        a, b = (jnp.moveaxis(y, channel, -1) for y in (patches, gradients[result]))
        return a.reshape(t, k), b.reshape(t, p)

    axes = program.views[v].axes
    sides = _joined(axes, (inputs, *window)), _joined(axes, (outputs,))
    return Factors(sides, t, (k, p), False, of)


def _of_lookup(program: Program, use: Operation, side: int) -> Factors | None:
    settings, (v, x) = use.params, use.operands
    if side == 1 or x is None or v is None:
        return None
    shape, seen = program.shapes[v].shape, program.shapes[x].shape
    numbers, result = settings["dimension_numbers"], program.shapes[use.results[0]].shape
    expected = lax.GatherDimensionNumbers(
        offset_dims=tuple(range(len(seen) - 1, len(result))),
        collapsed_slice_dims=(0,),
        start_index_map=(0,),
    )
    if numbers != expected or tuple(settings["slice_sizes"]) != (1, *shape[1:]) or seen[-1] != 1:
        return None
    t, p, count = math.prod(seen), math.prod(shape[1:]), shape[0]
    drops = settings["mode"] == lax.GatherScatterMode.FILL_OR_DROP

    def of(values: dict[int, Any], gradients: dict[int, Any]) -> tuple[Array, Array]:
        tokens, b = values[x].reshape(t), gradients[use.results[0]].reshape(t, p)
        if drops:  # what is outside of the table has no gradient
            b = jnp.where(((tokens >= 0) & (tokens < count))[:, None], b, 0)
        return jnp.clip(tokens, 0, count - 1), b

    axes = program.views[v].axes
    sides = _joined(axes, (0,)), _joined(axes, range(1, len(shape)))
    return Factors(sides, t, (count, p), True, of)
