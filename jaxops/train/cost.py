"""The cost of a traced function on one device: FLOPs, bytes moved, bytes alive. Nothing is run.

The model of the compiler is: matrix products, reductions and similar operations write their results
to memory; cheap elementwise operations between them are computed where they are used.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Split = tuple[bool, ...]
"""For each axis of a parameter, whether it is split over the mesh's axis "tensor"."""


class Cost(NamedTuple):
    """The cost of one call on one device.

    Attributes:
        flops: operations of the whole function; a multiplication and an addition count as two.
        products: dtype of the factors -> operations in matrix products and convolutions on one
            device; the rest of `flops` is elementwise.
        moved: bytes read from and written to memory.
        alive: the peak of the bytes in use, without those of the arguments.
        activations: the same peak without the results that `shares` names.
        reduced: bytes of the results that devices must sum, because they share a product.
    """

    flops: float
    products: dict[str, float]
    moved: float
    alive: float
    activations: float
    reduced: float = 0.0


class _Op(NamedTuple):
    name: str
    params: dict[str, Any]
    inputs: list[int | None]  # None is a constant of the program
    outputs: list[int]


_CALLS = {"jit", "pjit", "closed_call", "core_call", "checkpoint", "remat", "remat2"} | {
    "custom_jvp_call", "custom_vjp_call"
}  # fmt: skip
_VIEWS = {"reshape", "squeeze", "expand_dims", "stop_gradient", "copy", "layout_constraint"} | {
    "optimization_barrier", "sharding_constraint", "reduce_precision"
}  # fmt: skip
_PRODUCTS = {"dot_general", "conv_general_dilated"}
# read whole arrays and write whole arrays
_OPAQUE = _PRODUCTS | {"concatenate", "sort", "top_k", "fft", "scan", "while", "cond"} | {
    "select_and_scatter_add", "dynamic_update_slice", "threefry2x32", "random_bits", "pallas_call"
}  # fmt: skip
_OPAQUE_PREFIXES = ("reduce_window", "scatter", "cum")
_WRITES_PREFIXES = ("reduce_", "arg", "gather")  # fuse what they read, not what they write
# kept if they are used twice; others are computed again
_COSTLY = {"exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "erf", "rsqrt", "sqrt"} | {
    "pow", "div", "sin", "cos"
}  # fmt: skip
_ELEMENTWISE = _COSTLY | {"add", "sub", "mul", "max", "min", "select_n", "add_any"}


def cost(
    closed: Any,
    platform: str = "default",
    splits: Sequence[Split | None] = (),
    parts: int = 1,
    shares: Sequence[float | None] = (),
) -> Cost:
    """The cost of a jaxpr, such as `jax.make_jaxpr` returns.

    A `while` loop without a known number of iterations counts once, and a `cond` counts as its most
    expensive branch.

    Args:
        closed: the jaxpr.
        platform: "cpu", "cuda" or "tpu", which decides `jax.lax.platform_dependent`.
        splits: for each argument, which of its axes are split into `parts`; products with it are
            divided accordingly, and so are the operations on their results.
        parts: size of the mesh's axis "tensor".
        shares: for each result, the share of it that one device keeps; `None` for all of it.

    >>> import jax.numpy as jnp
    >>> traced = jax.make_jaxpr(lambda x, w: jnp.tanh(x @ w))(jnp.ones((8, 16)), jnp.ones((16, 4)))
    >>> one = cost(traced)
    >>> one.products, one.flops - 2 * 8 * 16 * 4, one.moved
    ({'float32': 1024.0}, 32.0, 1152.0)
    """
    program = _Program(platform, parts)
    inputs = [program.new(v.aval) for v in closed.jaxpr.invars]
    for value, split in zip(inputs, splits, strict=False):
        if split and any(split):
            program.split[value] = split
            program.parts[value] = parts
    return program.cost(inputs, program.inline(closed.jaxpr, inputs), shares)


def _bytes(aval: Any) -> int:
    if not hasattr(aval, "shape") or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
        return 0  # a PRNG key
    return math.prod(aval.shape) * aval.dtype.itemsize


class _Program:
    """The operations of a jaxpr in order, with all calls inlined; each value has a number."""

    def __init__(self, platform: str, parts: int) -> None:
        self.platform, self.over = platform, parts
        self.avals: list[Any] = []
        self.root: list[int] = []  # the value whose memory a value is
        self.ops: list[_Op] = []
        self.split: dict[int, Split] = {}
        self.parts: dict[int, int] = {}  # root -> over how many devices it is divided
        self.broadcasts: dict[tuple[int, Any], int] = {}

    def new(self, aval: Any, root: int | None = None) -> int:
        self.avals.append(aval)
        self.root.append(len(self.root) if root is None else root)
        return len(self.avals) - 1

    def inline(self, jaxpr: Any, inputs: list[Any]) -> list[Any]:
        """Append a jaxpr's operations, and return its results."""
        values = dict(zip(jaxpr.invars, inputs, strict=True))
        values |= {v: self.new(v.aval) for v in jaxpr.constvars}
        for equation in jaxpr.eqns:
            name, params = equation.primitive.name, equation.params
            operands = [values.get(v) if not hasattr(v, "val") else None for v in equation.invars]
            if name == "cond" and params.get("branches_platforms"):
                platforms = params["branches_platforms"]
                fits = [i for i, p in enumerate(platforms) if p is None or self.platform in p]
                branch = fits[0] if fits else -1
                results = self.inline(params["branches"][branch].jaxpr, operands[1:])
            elif name in _CALLS:
                inner = params.get("jaxpr") or params.get("call_jaxpr")
                results = self.inline(getattr(inner, "jaxpr", inner), operands)
            else:
                results = self._append(equation, name, operands)
            values |= dict(zip(equation.outvars, results, strict=True))
        return [values.get(v) if not hasattr(v, "val") else None for v in jaxpr.outvars]

    def _append(self, equation: Any, name: str, operands: list[Any]) -> list[int]:
        avals = [v.aval for v in equation.outvars]
        # the transpose of a matrix is another way to read it
        view = name in _VIEWS or (name == "transpose" and avals[0].ndim == 2)
        if view and len(operands) == len(avals) and None not in operands:
            results = [self.new(a, self.root[x]) for a, x in zip(avals, operands, strict=True)]
        else:
            results = [self.new(a) for a in avals]
            if self.platform == "cpu" and name in _ELEMENTWISE:
                operands = [self._broadcast(x, avals[0]) for x in operands]
            self.ops.append(_Op(name, equation.params, operands, results))
        if operands and operands[0] in self.split and len(results) == 1:
            split = self.split[operands[0]]
            if name == "transpose":
                self.split[results[0]] = tuple(split[i] for i in equation.params["permutation"])
            elif avals[0].shape == self.avals[operands[0]].shape:  # a cast, say
                self.split[results[0]] = split
        return results

    def _broadcast(self, value: int | None, like: Any) -> int | None:
        """Broadcast an operand, which JAX does implicitly; XLA:CPU keeps one that is used twice."""
        if value is None or self.avals[value].shape == like.shape or not self.avals[value].shape:
            return value
        key = (value, like.shape)
        if key not in self.broadcasts:
            aval = jax.ShapeDtypeStruct(like.shape, self.avals[value].dtype)
            self.broadcasts[key] = self.new(aval)
            self.ops.append(_Op("broadcast_in_dim", {}, [value], [self.broadcasts[key]]))
        return self.broadcasts[key]

    def cost(self, inputs: list[int], outputs: list[Any], shares: Sequence[float | None]) -> Cost:
        """The cost of the operations that the results need."""
        self.ops = list(self._needed(outputs))
        kept = {self.root[v] for v in outputs if v is not None}
        leaves = self._leaves({self.root[v] for v in inputs}, kept)
        total, moved, reduced, within = 0.0, 0.0, 0.0, defaultdict(float)
        products: dict[str, float] = defaultdict(float)
        for i, op in enumerate(self.ops):
            read, written = self._sources(op, leaves), self._stored(op, leaves)
            inner = self._inner(op)
            mine = self._divide(op)
            if inner:
                times, one = inner
                total += times * one.flops
                moved += times * one.moved
                reduced += times * one.reduced
                within[i] = one.alive
                for dtype, flops in one.products.items():
                    products[dtype] += times * flops
                continue
            flops = self._flops(op)
            total += flops
            if op.name in _PRODUCTS:
                products[self._factors(op)] += flops / mine
            if self._summed(op):
                reduced += self._size(op.outputs[0])
            if written:
                moved += sum(map(self._size, read)) + sum(map(self._size, written))
        pairs = zip(outputs, shares, strict=False)
        share = {self.root[v]: s for v, s in pairs if v is not None and s is not None}
        alive = self._alive(leaves, kept, within, share)
        activations = self._alive(leaves, kept, within, dict.fromkeys(share, 0.0))
        return Cost(total, dict(products), moved, alive, activations, reduced)

    def _needed(self, outputs: list[Any]) -> Iterator[_Op]:
        needed, ops = {v for v in outputs if v is not None}, []
        needed = {self.root[v] for v in needed}
        for op in reversed(self.ops):
            if needed.intersection(op.outputs):
                needed |= {self.root[v] for v in op.inputs if v is not None}
                ops.append(op)
        return reversed(ops)

    def _leaves(self, inputs: set[int], kept: set[int]) -> dict[int, set[int]]:
        """For each value, the stored values that it is computed from; a stored one is its own."""
        users = defaultdict(list)
        for op in self.ops:
            for value in {self.root[v] for v in op.inputs if v is not None}:
                users[value].append(op.name)
        leaves = {v: {v} for v in inputs}
        for op in self.ops:
            sources = self._sources(op, leaves)
            for out in op.outputs:
                size, often = _bytes(self.avals[out]), len(users[out]) > 1
                large = sum(_bytes(self.avals[v]) >= size > 0 for v in sources)
                operand = next((v for v in op.inputs if v is not None), None)
                stored = (
                    _opaque(op.name)
                    or op.name.startswith(_WRITES_PREFIXES)
                    or out in kept
                    or any(map(_opaque, users[out]))
                    or (often and (op.name in _COSTLY or large > 1))
                    or (often and self.platform == "cpu" and op.name == "broadcast_in_dim"
                        and operand is not None and self.avals[operand].shape != ())
                )  # fmt: skip
                leaves[out] = {out} if stored else sources
        return leaves

    def _sources(self, op: _Op, leaves: dict[int, set[int]]) -> set[int]:
        roots = (self.root[v] for v in op.inputs if v is not None)
        return set().union(*(leaves.get(v, {v}) for v in roots))

    def _stored(self, op: _Op, leaves: dict[int, set[int]]) -> list[int]:
        return [v for v in op.outputs if leaves[v] == {v}]

    def _size(self, value: int) -> float:
        return _bytes(self.avals[value]) / self.parts.get(self.root[value], 1)

    def _factors(self, op: _Op) -> str:
        """The type of a product's factors."""
        return str(next(self.avals[v].dtype for v in op.inputs if v is not None))

    def _summed(self, op: _Op) -> bool:
        """Whether a sum runs over an axis that is split."""
        return any(
            any(self.split[v][axis] for axis in axes)
            for v, axes in zip(op.inputs, _contracted(op), strict=False)
            if v in self.split
        )

    def _divide(self, op: _Op) -> int:
        """The number of devices that share the work; they share the results too, unless summed."""
        parts = (self.parts.get(self.root[v], 1) for v in op.inputs if v is not None)
        over = max(parts, default=1)
        summed = self._summed(op)
        for out in op.outputs:
            self.parts[out] = 1 if summed else over
        return over

    def _flops(self, op: _Op) -> float:
        shapes = [getattr(self.avals[v], "shape", ()) for v in op.inputs if v is not None]
        out = math.prod(self.avals[op.outputs[0]].shape)
        if op.name == "dot_general":
            return 2.0 * out * math.prod(shapes[0][i] for i in _contracted(op)[0])
        if op.name == "conv_general_dilated":
            return _convolution(op.params, shapes[0], shapes[1], self.avals[op.outputs[0]].shape)
        if op.name.startswith(("reduce_", "cum")):
            return float(math.prod(shapes[0]))
        return float(out) if op.name in _ELEMENTWISE or op.name in ("neg", "square") else 0.0

    def _inner(self, op: _Op) -> tuple[int, Cost] | None:
        """How often the body of a loop or branch runs, and the cost of one run."""
        if op.name not in ("scan", "while", "cond"):
            return None
        bodies = op.params.get("branches") or [op.params.get("jaxpr") or op.params["body_jaxpr"]]
        costs = []
        for body in bodies:
            operands = op.inputs[-len(body.jaxpr.invars) :] if body.jaxpr.invars else []
            splits = []
            for value, var in zip(operands, body.jaxpr.invars, strict=True):
                split = self.split.get(value) if value is not None else None
                # the slices of a loop have one axis less
                splits.append(split[-len(var.aval.shape) :] if split and var.aval.shape else None)
            costs.append(cost(body, self.platform, splits, self.over))
        return op.params.get("length", 1), max(costs, key=lambda c: c.flops)

    def _alive(
        self, leaves: Any, kept: set[int], within: dict[int, float], share: dict[int, float]
    ) -> float:
        """The most bytes at once, if each result is freed after its last use."""
        last: dict[int, int] = {}
        for i, op in enumerate(self.ops):
            last |= dict.fromkeys(self._sources(op, leaves), i)
        freed = defaultdict(list)
        for value, i in last.items():
            if value not in kept:
                freed[i].append(value)
        sizes: dict[int, float] = {}
        most = now = 0.0
        for i, op in enumerate(self.ops):
            reused = 0.0
            for out in self._stored(op, leaves):
                sizes[out] = self._size(out) * share.get(out, 1.0)
                now += sizes[out]
                if not _opaque(op.name) and any(
                    v in sizes and self.avals[v].shape == self.avals[out].shape for v in freed[i]
                ):
                    reused = sizes[out]  # the result is written over its input
            most = max(most, now - reused + within[i])
            ended = [v for v in op.outputs if v not in last and v not in kept]
            now -= sum(sizes.pop(v, 0.0) for v in freed[i] + ended)
        return most


def _opaque(name: str) -> bool:
    return name in _OPAQUE or name.startswith(_OPAQUE_PREFIXES)


def _contracted(op: _Op) -> Any:
    """The axes of each operand that a product, or a gather of split rows, sums over."""
    if op.name == "gather":
        return ((0,), ())
    return op.params["dimension_numbers"][0] if op.name == "dot_general" else ((), ())


def _convolution(params: Any, x: Any, kernel: Any, out: Any) -> float:
    """Two FLOPs for each product of a kernel's value and an image's; padding does not count."""
    numbers = params["dimension_numbers"]
    pairs = 1.0
    for i, (low, _) in enumerate(params["padding"]):
        size, taps = x[numbers.lhs_spec[2 + i]], kernel[numbers.rhs_spec[2 + i]]
        places = out[numbers.out_spec[2 + i]]
        spread, apart = params["lhs_dilation"][i], params["rhs_dilation"][i]
        at = np.arange(places)[:, None] * params["window_strides"][i] - low
        at = at + np.arange(taps)[None] * apart
        pairs *= ((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)).sum()
    features, channels = kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]]
    return 2.0 * out[numbers.out_spec[0]] * features * channels * float(pairs)
