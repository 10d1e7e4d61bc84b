"""BPR-MF: matrix factorisation that ranks items taken above items not taken."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.recommend.data.counts import check_context, check_log
from jaxops.recommend.data.events import Events
from jaxops.task import recorded

Array = jax.Array
NEGATIVES = 128
FOLD_STEPS = 30
SPREAD = 0.1
GROUND = 1e-3


@recorded
@dataclass(frozen=True)
class BPR:
    """Minimise, over events (u, i) and items j that the user never took, drawn uniformly,

        w softplus(x_uj - x_ui) + l2 / 2 (|p_u|^2 + |q_i|^2 + |q_j|^2),  x_ui = p_u . q_i + b_i,

    with AdaGrad on the rows of each step; for each event a negative is drawn on the device.

    A query is the vector p that minimises the same loss for the given history, with fixed items and
    the mean over 128 negatives, which are the same for all users. This is a convex problem with D
    unknowns; it is solved with an upper bound of the Hessian, so that no step can fail. Known users
    are scored in the same way, so equal histories give equal lists. For an empty history the biases
    rank the items.

    `fit` with parameters continues from the item factors on the new events only; the users' factors
    are computed from these events.

    Attributes:
        factors: D, size of a vector.
        l2: weight of the regularisation.
        learning_rate: learning rate of AdaGrad.
        epochs: passes over the events.
        batch_size: events in a step.
        seed: seed of the initial factors, the order of events and the negatives.
        context: number of a user's last items that are read; by default all.

    References:
        Rendle et al. 2009, arXiv:1205.2618; Duchi et al. 2011 (AdaGrad); Boehning and Lindsay 1988,
        Monotonicity of quadratic-approximation algorithms.

    >>> from jaxops import recommend
    >>> user, item = np.nonzero(np.kron(np.eye(2), np.ones((8, 4))))  # two groups, four items each
    >>> log = recommend.events({"user": user, "item": item}, time=None)
    >>> model = recommend.fitted(BPR(factors=4, epochs=30, batch_size=16), log)
    >>> sorted(recommend.recommend(model, [["4", "5"]], k=2).ids()[0])
    [6, 7]
    """

    factors: int = 64
    l2: float = 0.01
    learning_rate: float = 0.05
    epochs: int = 30
    batch_size: int = 1024
    seed: int = 0
    context: int | None = None

    answers_empty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_context(self.context)
        for name, least in {"factors": 1, "epochs": 1, "batch_size": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("l2", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def fit(self, events: Events, params: Any = None) -> dict[str, Any]:
        """The parameters, or `params` updated with new events.

        Args:
            events: the log.
            params: earlier parameters to update.

        Returns:
            `items` (N, D) and `bias` (N,), float32.

        Raises:
            ValueError: see `check_log`.
        """
        known = 0 if params is None else len(params["bias"])
        check_log(events, known)
        size, rng = len(events.items), np.random.default_rng(self.seed)
        ours, theirs, key = jax.random.split(jax.random.key(self.seed), 3)
        items = SPREAD * jax.random.normal(ours, (size, self.factors))
        users = SPREAD * jax.random.normal(theirs, (len(events.users), self.factors))
        bias = jnp.zeros(size)
        if params is not None:
            items = items.at[:known].set(params["items"])
            bias = bias.at[:known].set(params["bias"])
            users = self._folded({"items": items, "bias": bias}, events)
        tables = [users, items, bias[:, None]]
        state = Fitted(tables, [jnp.full_like(table, GROUND) for table in tables])
        log = _log(events)
        count = len(events)
        batch = min(self.batch_size, count)
        for epoch in range(self.epochs):
            shuffled = rng.permutation(count).astype(np.int32)
            order = np.pad(shuffled, (0, -count % batch), constant_values=count)
            state = _epoch(
                self, state, log, order.reshape(-1, batch), jax.random.fold_in(key, epoch)
            )
        return {"items": state.tables[1], "bias": state.tables[2][:, 0]}

    def _folded(self, params: Any, events: Events) -> Array:
        """The factors of the log's users, computed from their histories in it."""
        histories, size = events.histories(), len(events.items)
        length = min(100, max(1, int(histories.lengths.max())))
        parts = []
        for start in range(0, len(events.users), 1024):
            users = np.minimum(np.arange(start, start + 1024), len(events.users) - 1)
            parts.append(_queries(self, params, histories.rows(users, length, size))[:, :-1])
        return jnp.concatenate(parts)[: len(events.users)]

    def queries(self, params: Any, history: Array) -> Array:
        """The users' factors and a 1 for the bias, (B, D + 1) float32, for histories (B, L)."""
        table = self.table(params)
        size, width = len(table), table.shape[1] - 1
        taken = history < size
        rows = table.at[history].get(mode="clip")
        negative = jax.random.randint(jax.random.key(self.seed), (NEGATIVES,), 0, size)
        free = ~(history[:, :, None] == negative[None, None]).any(1)
        share = free / jnp.maximum(free.sum(1, keepdims=True), 1)  # (B, M)
        with jax.default_matmul_precision("highest"):
            factors = _fold(rows, taken.astype(jnp.float32), table[negative], share, self.l2)
        return jnp.concatenate([factors, jnp.ones((len(history), 1))], 1)[:, : width + 1]

    def table(self, params: Any) -> Array:
        """The items' factors and biases (N, D + 1)."""
        return jnp.concatenate([params["items"], jnp.asarray(params["bias"])[:, None]], 1)


@partial(jax.jit, static_argnums=0)
def _queries(model: BPR, params: Any, history: Array) -> Array:
    return model.queries(params, history)


def _fold(rows: Array, taken: Array, negative: Array, share: Array, l2: float) -> Array:
    """The users' factors p (B, D) that minimise the loss, averaged over the negatives.

    Args:
        rows: (B, L, D + 1), factors and bias (last) of the history's items.
        taken: (B, L), 1 for an item and 0 for padding.
        negative: (M, D + 1), factors and bias of the negatives.
        share: (B, M), weights of the negatives, which sum to 1.
        l2: weight of the regularisation.
    """
    q, item_bias = rows[..., :-1], rows[..., -1]
    r, negative_bias = negative[:, :-1], negative[:, -1]
    count = jnp.maximum(taken.sum(1), 1)[:, None]
    summed, mean = jnp.einsum("bl,bld->bd", taken, q), share @ r
    cross = summed[:, :, None] * mean[:, None]
    square = jnp.einsum("bl,bld,ble->bde", taken, q, q)
    square += count[..., None] * jnp.einsum("bm,md,me->bde", share, r, r)
    identity = jnp.eye(q.shape[-1])[None]
    bound = (square - cross - cross.mT) / 4 + l2 * count[..., None] * identity
    factor = jnp.linalg.cholesky(bound)

    def step(p: Array, _: None) -> tuple[Array, None]:
        above = (item_bias + jnp.einsum("bld,bd->bl", q, p))[:, :, None]
        below = (negative_bias[None] + p @ r.T)[:, None]
        pull = taken[:, :, None] * share[:, None] * jax.nn.sigmoid(below - above)
        up = jnp.einsum("bl,bld->bd", pull.sum(2), q) - pull.sum(1) @ r - l2 * count * p
        return p + jax.scipy.linalg.cho_solve((factor, True), up[..., None])[..., 0], None

    return jax.lax.scan(step, jnp.zeros_like(summed), None, FOLD_STEPS)[0]


class Fitted(NamedTuple):
    """Users' factors, items' factors and biases, and AdaGrad's sums of squares for each."""

    tables: list[Array]
    squares: list[Array]


class Log(NamedTuple):
    """The events on the device, and each user's items in ascending order for look-ups."""

    user: Array
    item: Array
    weight: Array
    sorted: Array
    start: Array


def _log(events: Events) -> Log:
    order = np.lexsort((events.item, events.user))
    counts = np.bincount(events.user, minlength=len(events.users))
    start = np.concatenate([[0], np.cumsum(counts)])
    columns = events.user, events.item, events.weight, events.item[order], start
    return Log(*(jnp.asarray(c, jnp.float32 if c is events.weight else jnp.int32) for c in columns))


def took(log: Log, user: Array, item: Array) -> Array:
    """Whether each user has the item in the log, by bisection: (B,) bool."""
    low, high = log.start[user], log.start[user + 1]
    for _ in range(len(log.item).bit_length()):
        middle = (low + high) // 2
        right = (low < high) & (log.sorted[middle] < item)
        low, high = jnp.where(right, middle + 1, low), jnp.where(right, high, middle)
    return (low < log.start[user + 1]) & (log.sorted.at[low].get(mode="clip") == item)


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _epoch(model: BPR, state: Fitted, log: Log, order: Array, key: Array) -> Fitted:
    """One pass over the events in `order` (S, B), in which the number of events is padding."""

    def step(state: Fitted, at: tuple[Array, Array]) -> tuple[Fitted, None]:
        events, key = at
        user, item = log.user.at[events].get(mode="clip"), log.item.at[events].get(mode="clip")
        negative = jax.random.randint(key, item.shape, 0, len(state.tables[1]))
        counts = (events < len(log.item)) & ~took(log, user, negative)
        weight = jnp.where(counts, log.weight.at[events].get(mode="clip"), 0)
        both = jnp.concatenate([item, negative])
        index = [user, both, both]
        rows = [table[i] for table, i in zip(state.tables, index, strict=True)]
        gradients = jax.grad(_loss)(rows, weight, model.l2)
        tables, squares = [], []
        for table, square, i, g in zip(*state, index, gradients, strict=True):
            square = square.at[i].add(g * g)
            squares.append(square)
            tables.append(table.at[i].add(-model.learning_rate * g / jnp.sqrt(square[i])))
        return Fitted(tables, squares), None

    return jax.lax.scan(step, state, (order, jax.random.split(key, len(order))))[0]


def _loss(rows: list[Array], weight: Array, l2: float) -> Array:
    """The loss of rows of users (B, D), items (2 B, D) and biases (2 B, 1), positives first."""
    users, items, bias = rows
    items = items.reshape(2, *users.shape)
    bias = bias.reshape(2, -1)
    scores = jnp.einsum("bd,kbd->kb", users, items) + bias
    penalty = (users**2).sum(1) + (items**2).sum((0, 2)) + (bias**2).sum(0)
    ranking = jax.nn.softplus(scores[1] - scores[0])
    return (weight * (ranking + l2 / 2 * penalty)).sum()
