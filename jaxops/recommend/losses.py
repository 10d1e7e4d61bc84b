"""Losses over a catalogue: over all items in chunks, or with items drawn as negatives.

Each is a sum over positions: `loss(hidden, table, targets, weights, key) -> ()`, with `hidden`
(B, T, D), `table` (N, D), `targets` int (B, T) and `weights` (B, T), 0 where there is no target.
An item's score is the inner product of its row of the table and the position's hidden vector.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxops.nn.product import matmul
from jaxops.task import recorded

Array = jax.Array
AT_ONCE = 2**23  # scores in a chunk, 32 MB: about the size of a CPU's cache, and twice as fast


def cross_entropy(
    hidden: Array, table: Array, targets: Array, weights: Array, chunk: int | None = None
) -> Array:
    """The sum of `weights * (logsumexp_n(z_n) - z_target)`, z = hidden . table, by chunks.

    Only one chunk of scores is in memory at a time, in the gradient too: the gradient is computed
    in the same pass as the loss, because softmax(z) - onehot(target) follows from a chunk's scores.
    This takes three matrix products and one exponential per score; a second pass over the chunks
    would take four and two. Positions of weight 0 are moved to the end of their rows, and chunks
    with only such positions are skipped. There is no derivative with respect to `weights`.

    Args:
        hidden: (B, T, D) float.
        table: (N, D) float.
        targets: (B, T) int, in [0, N).
        weights: (B, T) float.
        chunk: positions of each row that are scored at once, B * chunk * N scores; by default at
            most 2 ** 23 scores (32 MB). With rows on several devices, XLA sums the table's gradient
            over the devices once per chunk, so larger chunks are faster there.

    >>> hidden, table = jnp.ones((1, 2, 3)), jnp.zeros((5, 3))
    >>> loss = jax.jit(cross_entropy)(hidden, table, jnp.array([[0, 4]]), jnp.array([[1.0, 0.5]]))
    >>> bool(jnp.allclose(loss, 1.5 * jnp.log(5.0)))
    True
    """
    rows, length, _ = hidden.shape
    # in parts if one position of each row is too much at once; the rows of a part are far apart,
    # so that each device has its share of every part
    parts = next(p for p in range(1, rows + 1) if fits(rows, p, len(table)))
    if parts > 1:

        def part(total: Array, x: tuple[Array, ...]) -> tuple[Array, None]:
            return total + cross_entropy(x[0], table, x[1], x[2], chunk), None

        split = [
            x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1) for x in (hidden, targets, weights)
        ]
        return lax.scan(part, jnp.zeros(()), tuple(split))[0]
    chunk = min(chunk or max(1, AT_ONCE // (rows * len(table))), length)
    return _cross_entropy(chunk, hidden, table, targets, weights)


def fits(rows: int, parts: int, items: int) -> bool:
    """Whether `rows` divide into `parts` whose scores, for one position each, fit in a chunk."""
    return rows % parts == 0 and (rows // parts * items <= AT_ONCE or parts == rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(
    chunk: int, hidden: Array, table: Array, targets: Array, weights: Array
) -> Array:
    return _by_chunks(chunk, hidden, table, targets, weights, False)[0]


def _forward(
    chunk: int, hidden: Array, table: Array, targets: Array, weights: Array
) -> tuple[Array, tuple[Array, Array, Array]]:
    loss, into_hidden, into_table = _by_chunks(chunk, hidden, table, targets, weights, True)
    return loss, (into_hidden, into_table, weights)


def _backward(
    chunk: int, saved: tuple[Array, Array, Array], g: Array
) -> tuple[Array, Array, None, Array]:
    into_hidden, into_table, weights = saved
    return g * into_hidden, g * into_table, None, jnp.zeros_like(weights)


_cross_entropy.defvjp(_forward, _backward)


def _by_chunks(
    chunk: int, hidden: Array, table: Array, targets: Array, weights: Array, gradient: bool
) -> tuple[Array, Array, Array]:
    """The loss, and its gradients if `gradient` is True."""
    length, width = hidden.shape[1:]
    first = jnp.argsort(weights <= 0, axis=1, stable=True)  # positions with a target first
    count = (weights > 0).sum(1).max()
    extra = -length % chunk
    x, y, w = (
        jnp.pad(jnp.take_along_axis(a, i, 1), ((0, 0), (0, extra), *[(0, 0)] * (a.ndim - 2)))
        for a, i in ((hidden, first[..., None]), (targets, first), (weights, first))
    )
    x, wide = x.astype(jnp.float32), table.astype(jnp.float32)
    columns = wide.T

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, into_x, into_table = carry
        part, label, weight = (lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1) for a in (x, y, w))
        part, label, weight = part.reshape(-1, width), label.reshape(-1, 1), weight.reshape(-1, 1)
        z = matmul(part, columns)
        top = z.max(1, keepdims=True)
        e = jnp.exp(z - top)
        total_e = e.sum(1, keepdims=True)
        right = jnp.take_along_axis(z, label, 1)
        total += (weight * (top + jnp.log(total_e) - right)).sum()
        if gradient:
            scale = weight / total_e
            pull = matmul(e, wide) * scale
            into_x = lax.dynamic_update_slice_in_dim(
                into_x, pull.reshape(-1, chunk, width), i * chunk, 1
            )
            into_table += matmul(e.T, part * scale)
        return total, into_x, into_table

    start = (jnp.zeros(()), jnp.zeros_like(x), jnp.zeros_like(wide))
    chunks = -(-count // chunk)
    total, into_x, into_table = lax.fori_loop(0, chunks, body, start)
    if gradient:  # add the part that comes from the targets' scores
        into_x -= w[..., None] * wide[y]
        into_table = into_table.at[y.reshape(-1)].add(-(w[..., None] * x).reshape(-1, width))
    back = jnp.argsort(first, axis=1)[..., None]
    into_hidden = jnp.take_along_axis(into_x[:, :length], back, 1)
    return total, into_hidden.astype(hidden.dtype), into_table.astype(table.dtype)


def sampled_softmax(
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
    negatives: Array,
    log_q: Array,
) -> Array:
    """Cross-entropy whose partition function is estimated from M negatives shared by all positions.

    Each negative n is drawn with probability q_n, with replacement. The estimate

        Z = exp(z_target) + sum over negatives n other than the target of exp(z_n) / (M q_n)

    is unbiased: its mean is the sum over the whole catalogue (log-q correction).

    Args:
        hidden: (B, T, D).
        table: (N, D).
        targets: (B, T) int.
        weights: (B, T).
        negatives: (M,) int.
        log_q: (M,), the logarithm of each negative's probability.

    References:
        Bengio and Senécal 2008, doi:10.1109/TNN.2007.912312; Yi et al. 2019,
        doi:10.1145/3298689.3346996.

    >>> hidden, table = jnp.zeros((1, 1, 2)), jnp.zeros((4, 2))  # 4 items of equal score
    >>> log_q = jnp.log(jnp.full(3, 1 / 3))  # each of the 3 others was drawn once
    >>> loss = jax.jit(sampled_softmax)(
    ...     hidden, table, jnp.array([[0]]), jnp.ones((1, 1)), jnp.array([1, 2, 3]), log_q)
    >>> bool(jnp.isclose(loss, jnp.log(4.0)))
    True
    """
    width = hidden.shape[-1]
    x, label, weight = hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1)
    right = (x * table[label]).sum(-1, keepdims=True)
    z = matmul(x, table[negatives].T) - (log_q + jnp.log(len(negatives)))[None]
    z = jnp.where(negatives[None] == label[:, None], -jnp.inf, z)
    losses = jax.nn.logsumexp(jnp.concatenate([right, z], 1), axis=1) - right[:, 0]
    return (weight * losses).sum()


def in_batch_softmax(scores: Array, item: Array, log_q: Array, weights: Array) -> Array:
    """The cross-entropy of each row over all items, estimated from the items of its batch.

    Items occur in a batch in proportion to their popularity q, so without a correction popular
    items would be pushed away too strongly. Dividing by q makes the estimate of the sum unbiased
    (Bengio and Senécal 2008; Yi et al. 2019): for row i with item y_i,

        loss_i = log(exp(s_ii) + 1/(B-1) sum over j with y_j != y_i of exp(s_ij) / q(y_j)) - s_ii

    The argument of the logarithm has the mean `sum over all items n of exp(s_in)`. The row's own
    item is counted once and without correction, because it was not drawn from q (Khrylchenko et al.
    2025).

    Args:
        scores: (B, B), s_ij is the score of row j's item for row i's query.
        item: (B,) int, the row's item.
        log_q: (B,), the logarithm of the item's share of all training rows.
        weights: (B,); a row of weight 0 is not a negative of other rows.

    Returns:
        (B,), at least 0.

    References:
        Bengio and Senécal 2008, doi:10.1109/TNN.2007.912312; Yi et al. 2019,
        doi:10.1145/3298689.3346996; Khrylchenko et al. 2025, arXiv:2507.09331.

    >>> import math
    >>> log_q = jnp.log(jnp.full(2, 0.5))  # two equally popular items: the sum is exact
    >>> scores = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    >>> losses = jax.jit(in_batch_softmax)(scores, jnp.arange(2), log_q, jnp.ones(2))
    >>> bool(jnp.isclose(losses[0], math.log(math.exp(0) + 2 * math.exp(1))))
    True
    """
    real = weights > 0
    right = jnp.diag(scores)
    drawn = jnp.maximum(real.sum() - 1, 1).astype(jnp.float32)
    others = scores - log_q[None] - jnp.log(drawn)
    others = jnp.where(real[None] & (item[:, None] != item[None]), others, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([right[:, None], others], axis=1), axis=1) - right


@recorded
@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy over the whole catalogue; see `cross_entropy`.

    >>> hidden, table = jnp.zeros((1, 1, 2)), jnp.zeros((4, 2))  # 4 items of equal score
    >>> arguments = hidden, table, jnp.array([[0]]), jnp.ones((1, 1)), jax.random.key(0)
    >>> loss = jax.jit(CrossEntropy())(*arguments)
    >>> bool(jnp.isclose(loss, jnp.log(4.0)))
    True
    """

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over positions."""
        return cross_entropy(hidden, table, targets, weights)


@recorded
@dataclass(frozen=True)
class SampledSoftmax:
    """Cross-entropy with negatives drawn in each step, uniformly and from the batch's targets.

    The batch's targets are draws by popularity, which uniform draws lack, because these rarely hit
    popular items. The correction uses the probability of the mixture. See `sampled_softmax`.

    Attributes:
        negatives: M, shared by all positions of the batch.
        popular: probability that a negative is drawn from the batch's targets; otherwise it is
            drawn uniformly from the catalogue.

    References:
        Yang et al. 2020, mixed negative sampling, doi:10.1145/3366424.3386195.

    >>> hidden, table = jnp.zeros((1, 1, 2)), jnp.zeros((4, 2))
    >>> arguments = hidden, table, jnp.array([[0]]), jnp.ones((1, 1)), jax.random.key(0)
    >>> bool(jax.jit(SampledSoftmax(negatives=3))(*arguments) >= 0)
    True
    """

    negatives: int = 1024
    popular: float = 0.5

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {self.negatives}")
        if not 0 <= self.popular < 1:
            raise ValueError(f"popular must be in [0, 1), got {self.popular}")

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over positions."""
        drawn, log_q = self.draw(len(table), targets, weights, key)
        return sampled_softmax(hidden, table, targets, weights, drawn, log_q)

    def draw(self, items: int, targets: Array, weights: Array, key: Array) -> tuple[Array, Array]:
        """Negatives (M,) and the logarithms of their probabilities (M,)."""
        which, uniform, popular = jax.random.split(key, 3)
        shape = (self.negatives,)
        label, real = targets.reshape(-1), (weights.reshape(-1) > 0).astype(jnp.float32)
        total = jnp.maximum(real.sum(), 1)
        cumulated = jnp.cumsum(real)
        place = jnp.searchsorted(cumulated, jax.random.uniform(popular, shape) * total, "right")
        drawn = jnp.where(
            jax.random.uniform(which, shape) < self.popular,
            label[jnp.minimum(place, len(label) - 1)],
            jax.random.randint(uniform, shape, 0, items),
        )
        share = jnp.zeros(items).at[label].add(real / total)
        return drawn, jnp.log(self.popular * share[drawn] + (1 - self.popular) / items)


def _scores(
    hidden: Array, table: Array, targets: Array, negatives: int, key: Array
) -> tuple[Array, Array]:
    """The scores of the targets (B, T) and of uniformly drawn other items (B, T, K)."""
    if len(table) < 2:
        raise ValueError(
            f"table must hold at least 2 items, so that a negative can be drawn, got {len(table)}"
        )
    drawn = jax.random.randint(key, (*targets.shape, negatives), 0, len(table) - 1)
    drawn += drawn >= targets[..., None]
    right = (hidden * table[targets]).sum(-1)
    return right, jnp.einsum("btd,btkd->btk", hidden, table[drawn])


@recorded
@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross-entropy: -beta log sigmoid(z_target) - sum over K of log(1 - sigmoid(z)).

    With one negative it is the loss of SASRec, whose authors draw from the items that the user
    never took; here only the target is excluded. With `calibration` t above 0 it is gBCE: beta =
    a (t (1 - 1 / a) + 1 / a), where a = K / (N - 1) is the share of negatives drawn. With few
    negatives the probabilities would be too high; gBCE corrects this.

    Attributes:
        negatives: K, drawn for each position uniformly from the other items.
        calibration: t, from 0 (beta = 1) to 1.

    References:
        Kang and McAuley 2018, arXiv:1808.09781; Petrov and Macdonald 2023, arXiv:2308.07192.

    >>> hidden, table = jnp.zeros((1, 1, 2)), jnp.zeros((4, 2))  # every sigmoid is 1 / 2
    >>> arguments = hidden, table, jnp.array([[0]]), jnp.ones((1, 1)), jax.random.key(0)
    >>> bool(jnp.isclose(jax.jit(BinaryCrossEntropy(negatives=2))(*arguments), 3 * jnp.log(2.0)))
    True
    """

    negatives: int = 1
    calibration: float = 0.0

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {self.negatives}")
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration must be in [0, 1], got {self.calibration}")

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over positions."""
        right, wrong = _scores(hidden, table, targets, self.negatives, key)
        share = self.negatives / (len(table) - 1)
        beta = share * (self.calibration * (1 - 1 / share) + 1 / share)
        losses = -beta * jax.nn.log_sigmoid(right) - jax.nn.log_sigmoid(-wrong).sum(-1)
        return (weights * losses).sum()


@recorded
@dataclass(frozen=True)
class BPRLoss:
    """Pairwise loss: the mean over K negatives of -log sigmoid(z_target - z_negative).

    Attributes:
        negatives: K, drawn for each position uniformly from the other items.

    References:
        Rendle et al. 2009, arXiv:1205.2618.

    >>> hidden, table = jnp.zeros((1, 1, 2)), jnp.zeros((4, 2))
    >>> arguments = hidden, table, jnp.array([[0]]), jnp.ones((1, 1)), jax.random.key(0)
    >>> bool(jnp.isclose(jax.jit(BPRLoss())(*arguments), jnp.log(2.0)))
    True
    """

    negatives: int = 1

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {self.negatives}")

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over positions."""
        right, wrong = _scores(hidden, table, targets, self.negatives, key)
        return (weights * -jax.nn.log_sigmoid(right[..., None] - wrong).mean(-1)).sum()
