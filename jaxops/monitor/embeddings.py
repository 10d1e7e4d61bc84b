"""Tests of drift for embeddings: MMD and LSDD, with permutation tests on the device.

The kernel is never held as a whole. Rows pass in blocks, and each block adds to the sums of all
permutations at once, so a test of N rows takes memory for a block and for N labels a permutation.
Both tests are exact for one look: what is estimated (the scale of each column, the bandwidth) does
not depend on which sample a row belongs to.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxops.monitor.statistics import Comparison

BLOCK = 1024  # rows of a block
SAMPLED = 1000  # rows from which the bandwidth is taken
CENTERS = 100  # the most kernel centres by default
PENALTIES = 0.25 ** np.arange(10)  # from which LSDD chooses, the largest first
LARGEST_BIAS = 0.2  # of LSDD's estimate, by its penalty


def mmd(
    reference: np.ndarray,
    current: np.ndarray,
    bandwidth: float | None = None,
    permutations: int = 199,
    seed: int = 0,
) -> Comparison:
    """The maximum mean discrepancy of two samples of vectors, with a permutation test.

    The statistic is the unbiased estimate of MMD², with k(x, y) = exp(-|x - y|² / 2 σ²):
    Σ k(x, x') / n (n - 1) + Σ k(y, y') / m (m - 1) - 2 Σ k(x, y) / n m. It is about 0, and can be
    negative, without drift. The p-value is at least 1 / (permutations + 1).

    Args:
        reference: (n, D) vectors.
        current: (m, D) vectors.
        bandwidth: σ; by default the median distance of the vectors (of 1,000 of them).
        permutations: number of permutations.
        seed: the seed of the permutations, and of the vectors for the bandwidth.

    Raises:
        ValueError: the shapes differ, a sample has fewer than two vectors, a value is not finite,
            or no bandwidth is given and most vectors are equal.

    References:
        Gretton et al. 2012, A kernel two-sample test, JMLR 13.

    >>> rng = np.random.default_rng(0)
    >>> before, now = rng.normal(size=(60, 4)), rng.normal(1.0, size=(60, 4))
    >>> mmd(before, now).p.item()
    0.005
    """
    x, y = _pair(reference, current)
    rng = np.random.default_rng(seed)
    rows = np.concatenate([x, y])
    scaled = (rows - rows.mean(0)) / _bandwidth(rows, bandwidth, rng)
    n, m = len(x), len(y)
    # the last column has all rows: its sums are those of the whole kernel
    labels = np.concatenate([_labels(n, m, permutations, rng), np.ones((n + m, 1))], 1)
    within, across = (np.asarray(s, np.float64).sum(0) for s in _sums(*_blocks(scaled, labels)))
    total = within[-1]
    xx, x_all = within[:-1], across[:-1]
    yy, xy = total - 2 * x_all + xx, x_all - xx
    # the diagonal of the kernel is 1
    found = (xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - 2 * xy / (n * m)
    return _by_permutation(found)


def lsdd(
    reference: np.ndarray,
    current: np.ndarray,
    bandwidth: float | None = None,
    centers: int | None = None,
    permutations: int = 199,
    seed: int = 0,
) -> Comparison:
    """The least-squares density difference of two samples of vectors, with a permutation test.

    The difference of the densities is modelled as Σ θ_c exp(-|x - c|² / 2 σ²) over centres c, some
    reference vectors that are set aside. With H_cc' = exp(-|c - c'|² / 4 σ²), h the difference of
    the samples' mean kernels, and H_λ = H + λ I, the statistic is h' (2 H_λ⁻¹ - H_λ⁻¹ H H_λ⁻¹) h,
    which is the paper's without the constant (π σ²)^(D / 2). The penalty λ is the largest of 1,
    1/4, 1/16, ... that changes the estimate by less than 20 % (mean over the permutations).

    Args:
        reference: (n, D) vectors.
        current: (m, D) vectors.
        bandwidth: σ for standardised columns; by default the median distance of the vectors.
        centers: number of centres; by default a twentieth of the reference, 2 to 100.
        permutations: number of permutations.
        seed: the seed of the permutations, of the centres, and of the vectors for the bandwidth.

    Raises:
        ValueError: there are fewer than 2 reference vectors beside the centres; see also `mmd`.

    References:
        Bu, Alippi and Zhao 2018, A pdf-free change detection test based on density difference
        estimation, IEEE TNNLS 29; the choices are those of Alibi-Detect.

    >>> rng = np.random.default_rng(0)
    >>> before, now = rng.normal(size=(60, 4)), rng.normal(1.0, size=(60, 4))
    >>> lsdd(before, now).p.item()
    0.005
    """
    x, y = _pair(reference, current)
    rng = np.random.default_rng(seed)
    count = min(max(len(x) // 20, 2), CENTERS) if centers is None else centers
    if not 1 <= count <= len(x) - 2:
        raise ValueError(
            f"centers must be in 1 to {len(x) - 2}, the reference vectors less 2, got {count}"
        )
    rows = np.concatenate([x, y])
    scale = rows.std(0)
    rows = (rows - rows.mean(0)) / np.where(scale > 0, scale, 1)
    rows = rows / _bandwidth(rows, bandwidth, rng)
    chosen = rng.permutation(len(x))[:count]
    middles, rest = rows[chosen], np.delete(rows, chosen, 0)
    n, m = len(x) - count, len(y)
    labels = _labels(n, m, permutations, rng)
    weights = labels / n - (1 - labels) / m
    parts = _to_centers(*_blocks(rest, weights), jnp.asarray(middles, jnp.float32))
    h = np.asarray(parts, np.float64).sum(0)  # (permutations + 1, centres)
    return _by_permutation(_density_difference(h, middles))


def _density_difference(h: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """The statistic for each row of h, in the basis in which H is diagonal."""
    distance = ((middles[:, None] - middles[None]) ** 2).sum(-1)
    values, vectors = np.linalg.eigh(np.exp(-distance / 4))
    values, u = np.maximum(values, 0), (h @ vectors) ** 2
    for penalty in PENALTIES:
        sized = values + penalty
        plain, shrunk = (u / sized).sum(-1), (u * values / sized**2).sum(-1)
        ratio = np.divide(shrunk, plain, out=np.ones_like(plain), where=plain > 0)
        if (1 - ratio[1:]).mean() < LARGEST_BIAS:
            break  # the last penalty is taken where none is small enough: the test stays exact
    return 2 * plain - shrunk


@jax.jit
def _sums(rows: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """z' K z and z' K 1 of each column z of the labels, for each block of K's rows."""
    every, seen = rows.reshape(-1, rows.shape[-1]), labels.reshape(-1, labels.shape[-1])

    def block(part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        own, z = part
        near = jnp.matmul(_kernel(own, every), seen, precision="highest")
        return (z * near).sum(0), (z * near[:, -1:]).sum(0)

    return jax.lax.map(block, (rows, labels))


@jax.jit
def _to_centers(rows: jax.Array, weights: jax.Array, centers: jax.Array) -> jax.Array:
    """Σ w k(x, c) of each column w of the weights, for each block of rows."""

    def block(part: tuple[jax.Array, jax.Array]) -> jax.Array:
        own, w = part
        return jnp.matmul(w.T, _kernel(own, centers), precision="highest")

    return jax.lax.map(block, (rows, weights))


def _kernel(x: jax.Array, y: jax.Array) -> jax.Array:
    """exp(-|x - y|² / 2) for vectors in units of the bandwidth."""
    lengths = (x**2).sum(-1)[:, None] + (y**2).sum(-1)[None]
    products = jnp.matmul(x, y.T, precision="highest")
    return jnp.exp(-jnp.maximum(lengths - 2 * products, 0) / 2)


def _blocks(rows: np.ndarray, labels: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Rows and labels in blocks; what fills the last one has labels of 0, and adds nothing."""
    size = min(BLOCK, len(rows))
    missing = -len(rows) % size
    padded = (np.pad(x, ((0, missing), (0, 0))).astype(np.float32) for x in (rows, labels))
    first, second = (jnp.asarray(x.reshape(-1, size, x.shape[1])) for x in padded)
    return first, second


def _labels(n: int, m: int, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """(n + m, permutations + 1): 1 for rows of the reference; the first column is the truth."""
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    own = np.repeat([1.0, 0.0], [n, m])
    drawn = rng.permuted(np.tile(own, (permutations, 1)), axis=1)
    return np.concatenate([own[None], drawn]).T


def _by_permutation(found: np.ndarray) -> Comparison:
    """The first statistic, and the share of all that are as large."""
    as_large = found >= found[0] - 1e-6 * np.abs(found[0])
    return Comparison(np.asarray(found[0]), np.asarray(as_large.mean()))


def _bandwidth(rows: np.ndarray, given: float | None, rng: np.random.Generator) -> float:
    if given is not None:
        if not given > 0:
            raise ValueError(f"bandwidth must be above 0, got {given}")
        return given
    median = float(
        np.median(scipy.spatial.distance.pdist(rows[rng.permutation(len(rows))[:SAMPLED]]))
    )
    if median == 0:
        raise ValueError("bandwidth must be given where most vectors are equal, got None")
    return median


def _pair(reference: np.ndarray, current: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(reference, np.float64), np.asarray(current, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(
            "reference and current must be (n, D) and (m, D) with two vectors or more, got shapes "
            f"{x.shape} and {y.shape}"
        )
    for name, rows in (("reference", x), ("current", y)):
        if not np.isfinite(rows).all():
            row = int(np.flatnonzero(~np.isfinite(rows).all(1))[0])
            raise ValueError(f"{name} must be finite, got row {row}: {rows[row].tolist()[:5]}")
    return x, y
