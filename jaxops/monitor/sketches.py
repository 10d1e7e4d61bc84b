"""Sketches of rows: histograms, moments and counts in three arrays, which add up.

A sketch is of one size however many rows it has counted, and holds none of them. Two sketches are
merged by adding their counts and sums, so the sketch of a whole is that of its parts, in any order
and on any number of devices.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.model.finished import fingerprint
from jaxops.monitor.views import Part, TablePart, all_of, dot, settled
from jaxops.task import Array, Batch, recorded

BINS = 10  # between the quantiles of the reference
NEAR = 1e-5  # standard deviations: no edge lies between numbers that are nearer
LEAST = 1e-25  # numbers that are all smaller are counted as equal


@recorded
class Sketch(NamedTuple):
    """What was counted of rows, as n numbers and c categories of each; `told` reads it.

    Attributes:
        counts: whole numbers (1 + n + n K + c,): the rows; of each number the rows that have it,
            and those in which it is at least each of its K edges; of each category its rows.
        sums: float (2 n + d,): the sums of the numbers, of their squares, and of vectors.
        extremes: float (2 n,): the largest of the numbers, and of the numbers times -1.

    >>> one = Sketch(np.array([2]), np.array([3.0]), np.array([-np.inf]))
    >>> merge(one, one).counts.tolist()
    [4]
    """

    counts: Any
    sums: Any
    extremes: Any


@recorded
@dataclass(frozen=True, eq=False)
class Reference:
    """What sketches are compared with: the rows on which a model was finished, and their sketch.

    Numbers are counted less `shift` and in units of `scale`, which are their mean and standard
    deviation in the reference, so that float32 is exact enough. Both are rounded to float32, so
    that a device and the host count a number in the same bin.

    Attributes:
        parts: how columns and outputs become numbers and categories, see `monitor.views`.
        edges: float32 (n, K), rising; those of a number with fewer bins end with infinity. They
            are half-way between values of the reference, and just outside of them at both ends.
        shift: float64 (n,).
        scale: float64 (n,).
        sketch: of the rows of the reference, int64 and float64.

    >>> none = Sketch(np.zeros(1, int), np.zeros(0), np.zeros(0))
    >>> Reference((), np.zeros((0, 11)), np.zeros(0), np.zeros(0), none).numbers
    []
    """

    parts: tuple[Part, ...]
    edges: np.ndarray
    shift: np.ndarray
    scale: np.ndarray
    sketch: Sketch

    @property
    def numbers(self) -> list[str]:
        """The names of the n numbers."""
        return [name for part in self.parts for name in part.numbers]

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The names of the columns of categories, each with those of its categories."""
        return {name: told for part in self.parts for name, told in part.categories.items()}

    @property
    def vectors(self) -> int:
        """The width of the vectors whose mean is counted; 0 for none."""
        return len(self.sketch.sums) - 2 * len(self.shift)

    @property
    def id(self) -> str:
        """16 digits by which the sketches of this reference know it."""
        names = {"names": np.array([*self.numbers, *self.categories], object)}
        return fingerprint({"edges": self.edges, "shift": self.shift, "scale": self.scale} | names)


def learned(parts: tuple[Part, ...], columns: Mapping[str, Any], outputs: Any) -> Reference:
    """The reference of N rows, computed on the host.

    A number has 10 bins of equally many rows, or fewer where it has few values.

    Args:
        parts: of `views.parts_of`.
        columns: the encoded columns of the rows.
        outputs: what the model predicts for them.

    >>> from jaxops.monitor.views import NumberPart
    >>> rows = {"x": np.arange(100, dtype=np.float32)}
    >>> reference = learned((NumberPart("x"),), rows, None)
    >>> (reference.edges[0, 1:-1] * reference.scale + reference.shift).round(2).tolist()
    [9.5, 19.5, 29.5, 39.5, 49.5, 59.5, 69.5, 79.5, 89.5]
    """
    numbers, _, vectors = all_of(parts, columns, outputs, np)
    own = [(name, part) for part in parts for name in part.numbers]
    n = numbers.shape[1]
    shift, scale = np.zeros(n), np.ones(n)
    edges = np.full((n, BINS + 1), np.inf, np.float32)
    for place, (name, part) in enumerate(own):
        column = numbers[:, place].astype(np.float64)
        known = column[np.isfinite(column)]
        if len(known):
            shift[place] = np.float32(known.mean())
            # the numbers of an encoder are of the size of 1; what spreads less is rounding
            size = max(1.0 if isinstance(part, TablePart) else LEAST, abs(shift[place]))
            scale[place] = np.float32(known.std()) if known.std() > NEAR * size else 1.0
            filled = (part.filled.get(name, np.nan) - shift[place]) / scale[place]
            found = _edges((known - shift[place]) / scale[place], filled)
            edges[place, : len(found)] = found
    some = Sketch(np.zeros(0), np.zeros(2 * n + vectors.shape[1]), np.zeros(0))
    reference = Reference(parts, edges, shift, scale, some)
    sketch = update(reference, None, columns, outputs, np.ones(len(numbers), np.float32), np)
    return Reference(parts, edges, shift, scale, sketch)


def _edges(x: np.ndarray, filled: float) -> np.ndarray:
    """The edges of at most 10 bins with about equally many of some numbers.

    None is nearer to one of the numbers than float32 can tell, nor to what stands for a missing one
    (NaN for none), which `withdrawn` has to find in its bin.
    """
    values = np.unique(x)
    if values[0] < filled < values[-1]:
        values = np.unique([*values, filled])
    between = ((values[:-1] + values[1:]) / 2)[np.diff(values) > NEAR]
    tenths = np.sort(x)[np.arange(1, BINS) * len(x) // BINS]  # each is to begin a bin
    places = np.unique(np.searchsorted(between, tenths) - 1)
    outside = NEAR * (1 + values[-1] - values[0])
    inner = between[places[places >= 0]]
    return np.array([values[0] - outside, *inner, values[-1] + outside], np.float32)


def empty(reference: Reference) -> Sketch:
    """The sketch of no rows, int32 and float32, for `update`.

    >>> from jaxops.monitor.views import NumberPart
    >>> empty(learned((NumberPart("x"),), {"x": np.ones(3)}, None)).counts.shape
    (13,)
    """
    counts, sums, extremes = reference.sketch
    return Sketch(
        jnp.zeros(counts.shape, jnp.int32),
        jnp.zeros(sums.shape, jnp.float32),
        jnp.full(extremes.shape, -jnp.inf, jnp.float32),
    )


def update(
    reference: Reference,
    sketch: Sketch | None,
    columns: Batch,
    outputs: Any,
    mask: Array | np.ndarray,
    xp: Any = jnp,
) -> Sketch:
    """The sketch with B more rows; a pure function, for `jax.jit`.

    Args:
        reference: what knows the numbers, and their edges.
        sketch: of the rows so far; None for none.
        columns: the encoded columns of B rows, as the task reads them.
        outputs: what the task predicts for them.
        mask: (B,), rows of 0 are padding and do not count; all others count once.
        xp: `jax.numpy`, or `numpy`, which counts in int64 and float64.

    >>> from jaxops.monitor.views import NumberPart
    >>> reference = learned((NumberPart("x"),), {"x": np.arange(4.0)}, None)
    >>> batch = {"x": jnp.array([2.0, 9.0, 9.0])}
    >>> found = update(reference, empty(reference), batch, None, jnp.array([1, 1, 0]))
    >>> found.counts.tolist()  # rows, rows that have x, and those with x from each edge on
    [2, 2, 2, 2, 2, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    numbers, categories, vectors = all_of(reference.parts, columns, outputs, xp)
    real = (mask > 0)[:, None]
    wide, whole = (np.float64, np.int64) if xp is np else (np.float32, np.int32)
    shift, scale = reference.shift[None].astype(wide), reference.scale[None].astype(wide)
    z = (numbers - shift) / scale
    known = real & ~xp.isnan(z)
    z = xp.where(known, z, wide(np.nan))
    # the rows of a number lie side by side, so that a step of a CPU compares several
    above = settled(z.T, xp)[:, None] >= reference.edges[:, :, None]
    present, some = xp.where(known, z, wide(0)), xp.where(real, vectors, np.float32(0))
    parts = [real, known, xp.where(real, categories, np.float32(0))]
    parts += [present, xp.square(present), some]
    # one product sums the rest: the fewer the steps of a program, the less each batch costs
    total = dot(xp.ones((1, len(z)), wide), xp.concatenate(parts, 1, dtype=wide), xp)[0]
    first, last = 1 + z.shape[1], len(total) - len(reference.sketch.sums)
    least = wide(-np.inf)
    both = xp.concatenate([xp.where(known, z, least), xp.where(known, -z, least)], 1)
    # below 2^24 rows a float32 holds every whole number
    told = xp.round(total[:last]).astype(whole)
    counts = [told[:first], above.sum(-1, dtype=whole).reshape(-1), told[first:]]
    new = Sketch(xp.concatenate(counts), total[last:], both.max(0))
    return new if sketch is None else merge(sketch, new)


def merge(one: Sketch, other: Sketch) -> Sketch:
    """The sketch of the rows of both; associative and commutative.

    Sketches of NumPy keep their int64 and float64.

    >>> x = Sketch(np.array([1]), np.array([2.0]), np.array([3.0]))
    >>> merge(x, x)
    Sketch(counts=array([2]), sums=array([4.]), extremes=array([3.]))
    """
    host = isinstance(one.counts, np.ndarray) and isinstance(other.counts, np.ndarray)
    largest = np.maximum if host else jnp.maximum
    return Sketch(
        one.counts + other.counts, one.sums + other.sums, largest(one.extremes, other.extremes)
    )


def withdrawn(reference: Reference, missing: Mapping[str, int]) -> Sketch:
    """What to merge with a sketch whose rows lack numbers that their encoding does not show.

    A number that is missing, in a column which had none missing in training, is encoded as a value
    that the sketch has counted; this takes it back, all but from the extremes.

    Args:
        reference: of the model.
        missing: column -> how many rows lack it; columns whose encoding shows it are left out.

    >>> from jaxops.data.encoders import encode, fit_encoder
    >>> from jaxops.monitor.views import TablePart
    >>> encoder = fit_encoder({"age": [20.0, 30.0]})
    >>> reference = learned((TablePart(encoder),), encode(encoder, {"age": [20.0, 30.0]}), None)
    >>> rows = encode(encoder, {"age": [30.0, np.nan]})
    >>> found = update(reference, None, rows, None, np.ones(2), np)
    >>> merge(found, withdrawn(reference, {"age": 1})).counts[:2].tolist()  # rows, rows with an age
    [2, 1]
    """
    counts, sums = (np.zeros_like(part) for part in reference.sketch[:2])
    n, edges = reference.edges.shape
    filled = {name: value for part in reference.parts for name, value in part.filled.items()}
    for place, name in enumerate(reference.numbers):
        count = missing.get(name, 0) if name in filled else 0
        if count:
            z = (filled[name] - reference.shift[place]) / reference.scale[place]
            first = 1 + n + place * edges
            counts[1 + place] -= count
            counts[first : first + edges] -= count * (reference.edges[place] <= z)
            sums[place] -= count * z
            sums[n + place] -= count * z**2
    return Sketch(counts, sums, np.full_like(reference.sketch.extremes, -np.inf))


def across(sketch: Sketch, axis: str) -> Sketch:
    """The sketch of the rows of all devices of a mesh axis, inside `jax.shard_map`.

    >>> mesh = jax.make_mesh((1,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> def total(counts):
    ...     return across(Sketch(counts, jnp.ones(1), jnp.ones(1)), "rows").counts
    >>> spec = jax.sharding.PartitionSpec
    >>> jax.shard_map(total, mesh=mesh, in_specs=spec("rows"), out_specs=spec())(jnp.arange(2))
    Array([0, 1], dtype=int32)
    """
    counts, sums = jax.lax.psum((sketch.counts, sketch.sums), axis)
    return Sketch(counts, sums, jax.lax.pmax(sketch.extremes, axis))


def on_host(sketch: Sketch) -> Sketch:
    """The sketch as int64 and float64 of NumPy.

    >>> on_host(Sketch(jnp.ones(1, jnp.int32), jnp.ones(1), jnp.ones(1))).sums.dtype
    dtype('float64')
    """
    counts, sums, extremes = jax.device_get(sketch)
    return Sketch(
        np.asarray(counts, np.int64), np.asarray(sums, np.float64), np.asarray(extremes, np.float64)
    )
