"""Gradients of single rows, clipped and summed: by closed-form norms, or row by row with `vmap`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxops.metrics import fold
from jaxops.privacy.gaussian import clip_factors, clipped_sum
from jaxops.privacy.norms import REPLAY, Rule, rules, squared_norms
from jaxops.privacy.operations import Program
from jaxops.task import Array, Batch, Extra, Key, Out, Params, row_weights

Loss = Callable[[Params, Extra, Batch, Key, bool], tuple[Array, Out]]
Sums = tuple[Array, Out, Params]
"""The summed loss, its `Out`, and the sum of the clipped gradients."""
AT_ONCE = 2**24
"""How many numbers the gradients of a microbatch of `vmap` have at most, 64 MB."""
OFTEN = 8
"""From how many products of a row with each parameter, on average, `vmap` is faster: measured on a
CPU, where closed forms took 2.1 times as long as an ordinary step, and `vmap` 1.06 times at 64
products (a transformer of 64 tokens) and 60 times at one (dense layers)."""


class Rows(NamedTuple):
    """A batch as single rows.

    Attributes:
        columns: name -> (B, ...), with `mask`.
        keys: (B,), the key of each row.
    """

    columns: dict[str, Array]
    keys: Key


class Traced(NamedTuple):
    """The loss of one row as a program.

    Attributes:
        program: `(params, extra, row) -> (loss, weight, metrics, extra)`.
        rules: how each parameter's part of the norm is computed.
        outputs: the tree of the results.
    """

    program: Program
    rules: list[Rule]
    outputs: Any

    def suits(self) -> bool:
        """Whether closed forms are cheaper than the gradient of each row.

        They cost a second backward pass, which is as long as the row has products with the
        parameters. The gradient of each row costs memory traffic, as much as there are parameters.
        """
        shapes = [self.program.shapes[n].shape for n in self.program.parameters]
        size, unknown, products = 0, 0, 0.0
        for shape, rule in zip(shapes, self.rules, strict=True):
            size += math.prod(shape)
            unknown += math.prod(shape) * (rule.name == REPLAY)
            products += sum(f.lines * math.prod(f.widths) for f in rule.factors if not f.lookup)
            if not rule.factors and len(shape) > 1:  # as of a kernel whose last axis is the outputs
                results = [self.program.shapes[use.results[0]].shape for use in rule.uses]
                products += sum(map(math.prod, results)) * math.prod(shape[:-1])
        return 2 * unknown <= size and products < OFTEN * size


def split(batch: Batch, key: Key) -> Rows:
    """The rows of a batch; the key of row i is `fold_in(key, i)`."""
    columns = {name: jnp.asarray(value) for name, value in batch.items()}
    columns["mask"] = row_weights(batch)
    numbers = jnp.arange(len(columns["mask"]))
    return Rows(columns, jax.vmap(jax.random.fold_in, (None, 0))(key, numbers))


def of_one_row(loss: Loss) -> Callable[[Params, Extra, Rows], tuple[Array, Out]]:
    """The loss of one row as a batch of its own, so that nothing can join two rows."""

    def one(params: Params, extra: Extra, row: Rows) -> tuple[Array, Out]:
        batch = {name: value[None] for name, value in row.columns.items()}
        return loss(params, extra, batch, row.keys, True)

    return one


def traced(loss: Loss, params: Params, extra: Extra, rows: Rows) -> Traced:
    """Trace the loss of one row.

    Raises:
        ValueError: the loss changes the model's other variables, such as the statistics of a batch
            norm, or it does not depend on the row.
    """
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), rows)
    closed, shapes = jax.make_jaxpr(of_one_row(loss), return_shape=True)(params, extra, row)
    program = Program.of(closed, len(jax.tree.leaves(params)), len(jax.tree.leaves(extra)))
    if program.outputs[len(program.outputs) - len(program.fixed) :] != program.fixed:
        raise ValueError(
            "task must not change variables other than its parameters in training, as batch norm "
            f"does, got a change in {sorted(extra)}; use group norm or layer norm"
        )
    if program.outputs[0] not in program.of_row:
        raise ValueError("task must have a loss that depends on the rows, got a constant one")
    return Traced(program, rules(program), jax.tree.structure(shapes))


def by_norms(one: Traced, params: Params, extra: Extra, rows: Rows, clip: float) -> Sums:
    """The sums of a batch by two backward passes: for the norms, and with clipped rows."""
    squares, pull, totals, out = _first_pass(one, params, extra, rows)
    norms = jnp.sqrt(squares.sum(1))
    kept = jnp.isfinite(norms) & (rows.columns["mask"] > 0)
    factors = jnp.where(kept, clip_factors(norms, clip), 0)
    leaves, _ = pull(factors.astype(totals.dtype))
    grads = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return totals.sum(), Out(out.weight.sum(), fold(out.metrics), extra), grads


def squared(one: Traced, params: Params, extra: Extra, rows: Rows) -> Array:
    """The squared norms of the rows' gradients, (B, number of parameters)."""
    return _first_pass(one, params, extra, rows)[0]


def _first_pass(one: Traced, params: Params, extra: Extra, rows: Rows) -> Any:
    """The squared norms, what pulls cotangents of the losses back, the losses (B,), and `Out`."""
    program, leaves = one.program, jax.tree.leaves(params)
    fixed, count = jax.tree.leaves(extra), len(rows.columns["mask"])
    read = {n for use in program.uses for n in use.arguments} & program.of_row
    probes = {
        n: jnp.zeros((count, *program.shapes[n].shape), program.shapes[n].dtype)
        for use in program.uses
        for n in program.floats(use)
    }

    def losses(leaves: list[Any], probes: dict[int, Array]) -> Any:
        def run(row: Rows, probes: dict[int, Array]) -> Any:
            values = program.values(leaves, fixed)
            values |= dict(zip(program.inputs, jax.tree.leaves(row), strict=True))
            program.run(program.rowwise, values, probes)
            results = [values[n] for n in program.outputs]
            return results[0], (results, {n: values[n] for n in read})

        return jax.vmap(run)(rows, probes)

    totals, pull, (results, seen) = jax.vjp(losses, leaves, probes, has_aux=True)
    _, gradients = pull(jnp.ones_like(totals))
    own = program.values(leaves, fixed)

    def norms(seen: dict[int, Array], gradients: dict[int, Array]) -> Array:
        return squared_norms(program, one.rules, leaves, own | seen, gradients)

    _, out = jax.tree.unflatten(one.outputs, results)
    return jax.vmap(norms)(seen, gradients), pull, totals, out


def by_rows(
    loss: Loss, params: Params, extra: Extra, rows: Rows, clip: float, microbatch: int | None
) -> Sums:
    """The sums of a batch from the gradient of each row, a microbatch of rows at a time.

    Rows far apart make a microbatch, so that on many devices each row stays on its device.
    """
    count = len(rows.columns["mask"])
    if microbatch is None:
        microbatch = max(1, AT_ONCE // sum(leaf.size for leaf in jax.tree.leaves(params)))
    wanted = -(-count // microbatch)
    parts = next(n for n in range(wanted, count + 1) if count % n == 0)
    of_part = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), rows)

    def add(total: Params, part: Rows) -> Any:
        losses, out, grads = row_gradients(loss, params, extra, part)
        clipped = clipped_sum(grads, clip, part.columns["mask"])
        told = losses.sum(), out.weight.sum(), fold(out.metrics)
        return jax.tree.map(jnp.add, total, clipped), told

    start = jax.tree.map(jnp.zeros_like, params)
    grads, (losses, weights, metrics) = jax.lax.scan(add, start, of_part)
    return losses.sum(), Out(weights.sum(), fold(metrics), extra), grads


def row_gradients(loss: Loss, params: Params, extra: Extra, rows: Rows) -> Sums:
    """The loss (B,), the `Out` and the gradient (B, ...) of each row."""
    (totals, out), grads = jax.vmap(
        jax.value_and_grad(of_one_row(loss), has_aux=True), (None, None, 0)
    )(params, extra, rows)
    return totals, out, grads
