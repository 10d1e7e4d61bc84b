"""Losses over a catalogue: of all its items by chunks, or of some drawn as negatives.

Each is a sum over places: `loss(hidden, table, targets, weights, key) -> ()`, of `hidden`
(B, T, D), `table` (N, D), `targets` int (B, T) and `weights` (B, T), 0 where nothing is foretold.
An item's score is its row's product with the place's vector.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from jaxops.nn.product import matmul
from jaxops.task import recorded

Array = jax.Array
AT_ONCE = 2**23  # scores in a chunk, 32 MB: what is near a CPU is twice as fast


def cross_entropy(
    hidden: Array, table: Array, targets: Array, weights: Array, chunk: int | None = None
) -> Array:
    """The sum of `weights * (logsumexp_n(z_n) - z_target)`, z = hidden . table, by chunks.

    Only a chunk's scores are ever held, in the gradient too: it is made in the same pass as the
    loss, softmax(z) - onehot(target) being known once a chunk's scores are. That is three products
    and one exponential for each score, where going over the chunks a second time takes four and
    two. Places of no weight come last in their rows, and chunks that hold none but these are left
    out. There is no derivative with respect to `weights`.

    Args:
        hidden: (B, T, D) float.
        table: (N, D) float.
        targets: (B, T) int, in [0, N).
        weights: (B, T) float.
        chunk: places of each row that are scored at once, B * chunk * N scores; by default so many
            that these are at most 2 ** 23 (32 MB). Where rows lie on several devices, XLA adds the
            table's gradient up over these once a chunk: ask for larger ones there.

    >>> hidden, table = jnp.ones((1, 2, 3)), jnp.zeros((5, 3))
    >>> loss = cross_entropy(hidden, table, jnp.array([[0, 4]]), jnp.array([[1.0, 0.5]]))
    >>> bool(jnp.allclose(loss, 1.5 * jnp.log(5.0)))
    True
    """
    rows, length, _ = hidden.shape
    # no more rows at once than one place of each allows; they are far apart, so that of rows that
    # lie on several devices each has its share
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
    """Whether so many equal parts of the rows are small enough for their scores to be held."""
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
    """The loss, and if wanted its gradients."""
    length, width = hidden.shape[1:]
    first = jnp.argsort(weights <= 0, axis=1, stable=True)  # places that count
    count = (weights > 0).sum(1).max()
    room = -length % chunk
    x, y, w = (
        jnp.pad(jnp.take_along_axis(a, i, 1), ((0, 0), (0, room), *[(0, 0)] * (a.ndim - 2)))
        for a, i in ((hidden, first[..., None]), (targets, first), (weights, first))
    )
    x, wide = x.astype(jnp.float32), table.astype(jnp.float32)
    columns = wide.T

    def body(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        total, into_x, into_table = carry
        own, label, weight = (lax.dynamic_slice_in_dim(a, i * chunk, chunk, 1) for a in (x, y, w))
        own, label, weight = own.reshape(-1, width), label.reshape(-1, 1), weight.reshape(-1, 1)
        z = matmul(own, columns)
        top = z.max(1, keepdims=True)
        e = jnp.exp(z - top)
        total_e = e.sum(1, keepdims=True)
        right = jnp.take_along_axis(z, label, 1)
        total += (weight * (top + jnp.log(total_e) - right)).sum()
        if gradient:
            part = weight / total_e
            pull = matmul(e, wide) * part
            into_x = lax.dynamic_update_slice_in_dim(
                into_x, pull.reshape(-1, chunk, width), i * chunk, 1
            )
            into_table += matmul(e.T, own * part)
        return total, into_x, into_table

    start = (jnp.zeros(()), jnp.zeros_like(x), jnp.zeros_like(wide))
    chunks = -(-count // chunk)
    total, into_x, into_table = lax.fori_loop(0, chunks, body, start)
    if gradient:  # of the targets' own scores
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
    """Cross-entropy with a partition estimated from M negatives that all places share.

    Each negative n was drawn with probability q_n, with replacement; the estimate

        Z = exp(z_target) + sum over negatives n other than the target of exp(z_n) / (M q_n)

    is unbiased: its mean is the whole sum over the catalogue (log-q correction: Bengio and
    Senecal 2008; Yi et al. 2019).

    Args:
        hidden: (B, T, D).
        table: (N, D).
        targets: (B, T) int.
        weights: (B, T).
        negatives: (M,) int.
        log_q: (M,), the logarithm of the probability that each was drawn with.
    """
    width = hidden.shape[-1]
    x, label, weight = hidden.reshape(-1, width), targets.reshape(-1), weights.reshape(-1)
    right = (x * table[label]).sum(-1, keepdims=True)
    z = matmul(x, table[negatives].T) - (log_q + jnp.log(len(negatives)))[None]
    z = jnp.where(negatives[None] == label[:, None], -jnp.inf, z)
    losses = jax.nn.logsumexp(jnp.concatenate([right, z], 1), axis=1) - right[:, 0]
    return (weight * losses).sum()


@recorded
@dataclass(frozen=True)
class CrossEntropy:
    """Of the whole catalogue; see `cross_entropy`."""

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over places."""
        return cross_entropy(hidden, table, targets, weights)


@recorded
@dataclass(frozen=True)
class SampledSoftmax:
    """Cross-entropy with negatives drawn in each step, half uniformly and half from the targets.

    The batch's own targets are items by popularity, which uniform draws hardly ever meet; the
    probability of an item is the mixture's (mixed negative sampling: Yang et al. 2020,
    doi:10.1145/3366424.3386195). See `sampled_softmax`.

    Attributes:
        negatives: M, for all places of the batch together.
        popular: the share that is drawn from the batch's targets; the rest is uniform.
    """

    negatives: int = 1024
    popular: float = 0.5

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives: {self.negatives} found, at least 1 wanted")
        if not 0 <= self.popular < 1:
            raise ValueError(f"popular: {self.popular} found, in [0, 1) wanted")

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over places."""
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
    """Of the targets (B, T), and of negatives drawn uniformly from the other items (B, T, K)."""
    if len(table) < 2:
        raise ValueError("table: 1 item found, 2 wanted, so that there is another to be drawn")
    drawn = jax.random.randint(key, (*targets.shape, negatives), 0, len(table) - 1)
    drawn += drawn >= targets[..., None]
    right = (hidden * table[targets]).sum(-1)
    return right, jnp.einsum("btd,btkd->btk", hidden, table[drawn])


@recorded
@dataclass(frozen=True)
class BinaryCrossEntropy:
    """-beta log sigmoid(z_target) - sum over K negatives of log(1 - sigmoid(z)).

    With one negative the loss of SASRec (Kang and McAuley 2018, arXiv:1808.09781), which draws
    among items that the user never took, while here the target alone is spared. With more, and
    `calibration` t, gBCE (Petrov and Macdonald 2023, arXiv:2308.07192): beta = a (t (1 - 1 / a) +
    1 / a), where a = K / (N - 1) is the share of the negatives that are drawn; so that the sigmoid
    is the probability, which few negatives would overstate.

    Attributes:
        negatives: K, drawn for each place uniformly from the other items.
        calibration: t, 0 for beta = 1, to 1.
    """

    negatives: int = 1
    calibration: float = 0.0

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives: {self.negatives} found, at least 1 wanted")
        if not 0 <= self.calibration <= 1:
            raise ValueError(f"calibration: {self.calibration} found, in [0, 1] wanted")

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over places."""
        right, wrong = _scores(hidden, table, targets, self.negatives, key)
        share = self.negatives / (len(table) - 1)
        beta = share * (self.calibration * (1 - 1 / share) + 1 / share)
        losses = -beta * jax.nn.log_sigmoid(right) - jax.nn.log_sigmoid(-wrong).sum(-1)
        return (weights * losses).sum()


@recorded
@dataclass(frozen=True)
class BPRLoss:
    """-log sigmoid(z_target - z_negative), the mean over K negatives (Rendle et al. 2009).

    Attributes:
        negatives: K, drawn for each place uniformly from the other items.
    """

    negatives: int = 1

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives: {self.negatives} found, at least 1 wanted")

    def __call__(
        self, hidden: Array, table: Array, targets: Array, weights: Array, key: Array
    ) -> Array:
        """The sum over places."""
        right, wrong = _scores(hidden, table, targets, self.negatives, key)
        return (weights * -jax.nn.log_sigmoid(right[..., None] - wrong).mean(-1)).sum()
