"""iALS: matrix factorisation of implicit feedback by alternating least squares on the device."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.recommend.data.counts import check_context, check_log, interactions
from jaxops.recommend.data.events import Events
from jaxops.task import recorded

Array = jax.Array
EVENTS_AT_ONCE = 1 << 16
PROGRAMS = 8
TINY = 1e-30


@recorded
@dataclass(frozen=True)
class IALS:
    """Users' vectors x_u and items' vectors y_i minimise, over E events and all U x N pairs,

        sum_events w (1 - x_u . y_i)^2 + unobserved sum_u,i (x_u . y_i)^2
        + l2 [sum_u (w_u + unobserved N)^frequency |x_u|^2
              + sum_i (w_i + unobserved U)^frequency |y_i|^2],

    where w_u and w_i are the summed weights of their events. A sweep solves for all users, then for
    all items. A user's query is the same solve for the given history, with weights of 1, so a user
    who was not in the log is scored like any other.

    `fit` with parameters starts from the item factors and uses the new events only. The old events
    enter the loss as the quadratic (y_i - old)' A_i (y_i - old) around the old factor, where A_i is
    the old users' Gram matrix plus, for each of item i's own events, their mean square. So an item
    without new events hardly changes. New events of a known user count as those of a new user.

    Attributes:
        factors: D, size of a vector.
        l2: weight of the regularisation.
        unobserved: weight of each pair, observed or not; an event has weight 1.
        frequency: 1 scales the regularisation by frequency, 0 regularises all vectors equally.
        sweeps: number of sweeps over users and items.
        steps: steps of preconditioned conjugate gradients for each solve in `fit`, starting from
            the previous sweep's vector; None solves exactly, which takes longer. Queries are always
            exact.
        seed: seed of the initial item factors.
        context: number of a user's last items that are read; by default all.

    References:
        Hu, Koren and Volinsky 2008, Collaborative filtering for implicit feedback datasets; Rendle
        et al. 2021, arXiv:2110.14037; Takacs et al. 2011, Applications of the conjugate gradient
        method for implicit feedback collaborative filtering.

    >>> from jaxops import recommend
    >>> user, item = np.nonzero(np.kron(np.eye(2), np.ones((8, 4))))  # two groups, four items each
    >>> log = recommend.events({"user": user, "item": item}, time=None)
    >>> model = recommend.fitted(IALS(factors=2, unobserved=0.1, l2=0.01), log)
    >>> sorted(recommend.recommend(model, [["4", "5"]], k=2).ids()[0])
    [6, 7]
    """

    factors: int = 64
    l2: float = 0.003
    unobserved: float = 0.1
    frequency: float = 1.0
    sweeps: int = 16
    steps: int | None = 3
    seed: int = 0
    context: int | None = None

    for_update: ClassVar[tuple[str, ...]] = ("users_gram", "users", "counts")

    def __post_init__(self) -> None:
        check_context(self.context)
        for name, least in {"factors": 1, "sweeps": 1, "steps": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        for name in ("l2", "unobserved"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")

    def fit(self, events: Events, params: Any = None) -> dict[str, Any]:
        """The parameters, or `params` updated with new events.

        Args:
            events: the log.
            params: earlier parameters to update.

        Returns:
            `items` (N, D) float32, rotated so that their Gram matrix is diagonal; `spectrum` (D,),
            the diagonal; and for updates `users_gram` (D, D), `users` () and `counts` (N,).

        Raises:
            ValueError: see `check_log`.
        """
        size = len(events.items)
        check_log(events, 0 if params is None else len(params["items"]))
        log, order = by_length(interactions(events))
        by_user, by_item = Blocks.of(log), Blocks.of(log.T.tocsr())
        if params is None:
            prior, key = self.nothing(), jax.random.key(self.seed)
            items = 0.1 / np.sqrt(self.factors) * jax.random.normal(key, (size, self.factors))
        else:
            prior = self._prior(params, order)
            items = prior.items
        users = jnp.zeros((by_user.size, self.factors))
        for _ in range(self.sweeps):
            users, items = self.sweep(users, items, by_user, by_item, prior)
        spectrum, basis = jnp.linalg.eigh(_gram(items))
        counts = prior.counts + jnp.asarray(log.sum(0), jnp.float32)
        return {
            "items": _turn(items, basis)[np.argsort(order)],
            "spectrum": jnp.maximum(spectrum, 0),
            "users_gram": _turn(_turn(prior.gram + _gram(users), basis).T, basis),
            "users": prior.users + by_user.size,
            "counts": counts[np.argsort(order)],
        }

    def nothing(self) -> "Prior":
        """The prior of a first fit: one row of zeros, which applies to all rows."""
        wide = jnp.zeros((1, self.factors))
        return Prior(wide, jnp.zeros((self.factors,) * 2), jnp.zeros(()), jnp.zeros(1))

    def _prior(self, params: Any, order: np.ndarray) -> "Prior":
        more = len(order) - len(params["items"])
        items = jnp.pad(jnp.asarray(params["items"]), ((0, more), (0, 0)))[order]
        counts = jnp.pad(jnp.asarray(params["counts"]), (0, more))[order]
        return Prior(items, jnp.asarray(params["users_gram"]), jnp.asarray(params["users"]), counts)

    def sweep(
        self, users: Array, items: Array, by_user: "Blocks", by_item: "Blocks", prior: "Prior"
    ) -> tuple[Array, Array]:
        """New user factors (U, D) from the items', then item factors (N, D) from the users'."""
        users = self._half(users, items, by_user, self.nothing(), by_item.size)
        return users, self._half(items, users, by_item, prior, prior.users + by_user.size)

    def _half(
        self, old: Array, table: Array, blocks: "Blocks", prior: "Prior", others: Any
    ) -> Array:
        """New factors (R, D) for the rows of `old`, by least squares with `table` (S, D) fixed."""
        new, held, basis = _start(self, old, table, prior, jnp.float32(others))
        for same_length in blocks.blocks:
            new = _solve_blocks(self, new, held, *same_length)
        return _turn(new, basis.T)

    def queries(self, params: Any, history: Array) -> Array:
        """The users' factors (B, D) float32 of histories (B, L)."""
        items = jnp.asarray(params["items"])
        weight = (history < len(items)).astype(jnp.float32)
        rows = items.at[history].get(mode="clip") * weight[..., None]
        diagonal = self.unobserved * params["spectrum"][None] + self._l2(
            weight.sum(1, keepdims=True), len(items)
        )
        with jax.default_matmul_precision("highest"):
            return solve(rows, weight, diagonal, jnp.zeros_like(diagonal))

    def table(self, params: Any) -> Array:
        """The items' factors (N, D)."""
        return jnp.asarray(params["items"])

    def _l2(self, count: Any, others: Any) -> Any:
        return self.l2 * (count + self.unobserved * others) ** self.frequency


class Prior(NamedTuple):
    """A summary of the events of earlier fits.

    Attributes:
        items: (N, D), the item factors.
        gram: (D, D), the users' Gram matrix.
        users: (), the number of users.
        counts: (N,), summed weights of the events of each item.
    """

    items: Array
    gram: Array
    users: Array
    counts: Array


def by_length(log: Any) -> tuple[Any, np.ndarray]:
    """The log without empty rows, its rows and columns sorted by length; and the columns' order.

    Rows of similar length are then a slice of the factors, which is faster than a scatter.
    """
    lengths = np.diff(log.indptr)
    order = np.argsort(np.bincount(log.indices, minlength=log.shape[1]), kind="stable")
    log = log[np.argsort(lengths, kind="stable")[(lengths == 0).sum() :]]
    log.indices = np.argsort(order)[log.indices].astype(np.int32)
    log.has_sorted_indices = False
    return log, order


class Blocks(NamedTuple):
    """The rows of a sparse matrix, shorter ones first, in blocks of similar numbers of elements.

    Attributes:
        size: R, the number of rows.
        blocks: for each length L, K blocks of B rows: start (K,), the first row of each; column
            (K, B, L); weight (K, B, L), 0 for padding.
    """

    size: int
    blocks: list[tuple[Array, Array, Array]]

    @classmethod
    def of(cls, matrix: Any) -> "Blocks":
        """The blocks of a SciPy CSR array whose rows are sorted by length."""
        lengths = np.diff(matrix.indptr)
        # a small log needs only few programs
        chosen = least_padding(lengths, min(PROGRAMS, 1 + 8 * matrix.nnz // EVENTS_AT_ONCE))
        stops = np.searchsorted(lengths, chosen, side="right")
        cuts = zip(chosen, [0, *stops[:-1]], stops, strict=True)
        return cls(matrix.shape[0], [cls._cut(matrix, lengths, *cut) for cut in cuts])

    @staticmethod
    def _cut(
        matrix: Any, lengths: np.ndarray, length: int, first: int, stop: int
    ) -> tuple[Array, Array, Array]:
        blocks = -(-(stop - first) * length // EVENTS_AT_ONCE)
        height = -(-(stop - first) // blocks)
        start = np.minimum(np.arange(first, stop, height), stop - height)  # the last may overlap
        rows = start[:, None] + np.arange(height)
        place = np.arange(length)
        filled = place < lengths[rows][..., None]
        index = np.where(filled, matrix.indptr[rows][..., None] + place, 0)
        column = matrix.indices[index].astype(np.int32)
        weight = np.where(filled, matrix.data[index], 0).astype(np.float32)
        return jax.device_put((start.astype(np.int32), column, weight))


def least_padding(lengths: np.ndarray, most: int) -> np.ndarray:
    """At most `most` lengths, ascending, that rows of all `lengths` fit in with the least padding.

    Dynamic programming chooses them among candidates that are 15 % apart. Each needs one program.

    >>> least_padding(np.array([2, 2, 2, 2, 9, 9, 10]), most=2).tolist()
    [2, 10]
    """
    longest = max(1, int(lengths.max()))
    grid = np.unique(
        np.append(1.15 ** np.arange(np.log(longest) / np.log(1.15)), longest).astype(int)
    )
    rows = np.concatenate([[0], np.cumsum(np.bincount(np.searchsorted(grid, lengths)))])
    # padding of the rows longer than candidate i and at most j, if they are padded to j
    padded = np.append(0, grid) * (rows - rows[:, None]).astype(float)
    padded[np.tril_indices(len(rows), -1)] = np.inf
    total, came = padded[0], []
    for _ in range(most - 1):
        more = total[:, None] + padded
        came.append(more.argmin(0))
        total = more.min(0)
    chosen = [len(grid)]
    for step in reversed(came):
        chosen.append(step[chosen[-1]])
    return grid[np.unique([at for at in chosen if at > 0]) - 1]


class Held(NamedTuple):
    """The values that are fixed while one side is solved, in the basis of a diagonal Gram matrix.

    Attributes:
        table: (S, D), the factors of the other side.
        spectrum: (D,), the diagonal, times `unobserved`.
        prior: (R or 1,), is added to a row's diagonal for the old events.
        right: (R or 1, D), is added to its right-hand side for the old events.
        counts: (R or 1,), summed weights of the old events.
        others: (), the number of rows that the other side has ever had.
    """

    table: Array
    spectrum: Array
    prior: Array
    right: Array
    counts: Array
    others: Array


@jax.jit
def _gram(table: Array) -> Array:
    return jnp.matmul(table.T, table, precision="highest")


@jax.jit
def _turn(table: Array, basis: Array) -> Array:
    return jnp.matmul(table, basis, precision="highest")


@partial(jax.jit, static_argnums=0)
def _start(
    model: IALS, old: Array, table: Array, prior: Prior, others: Array
) -> tuple[Array, Held, Array]:
    """The previous sweep's rows and the fixed quantities, in the new basis; and the basis."""
    with jax.default_matmul_precision("highest"):
        spectrum, basis = jnp.linalg.eigh(_gram(table) + prior.gram)
        square = jnp.trace(prior.gram) / (jnp.maximum(prior.users, 1) * model.factors)
        seen = prior.counts * square
        kept = seen + model._l2(prior.counts, prior.users)
        right = model.unobserved * prior.items @ prior.gram + kept[:, None] * prior.items
    spectrum = model.unobserved * jnp.maximum(spectrum, 0)
    held = Held(_turn(table, basis), spectrum, seen, _turn(right, basis), prior.counts, others)
    return _turn(old, basis), held, basis


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _solve_blocks(
    model: IALS, new: Array, held: Held, start: Array, column: Array, weight: Array
) -> Array:
    """`new` with the rows of the blocks of one length solved."""

    def step(new: Array, block: tuple[Array, Array, Array]) -> tuple[Array, None]:
        start, column, weight = block
        row = start + jnp.arange(len(column))
        count = held.counts.at[row].get(mode="clip") + weight.sum(1)
        extra = held.prior.at[row].get(mode="clip") + model._l2(count, held.others)
        diagonal = held.spectrum[None] + extra[:, None]
        right = held.right.at[row].get(mode="clip")
        rows = held.table.at[column].get(mode="clip")
        if model.steps is None:
            x = solve(rows, weight, diagonal, right)
        else:
            x = jax.lax.dynamic_slice_in_dim(new, start, len(row))
            x = conjugate_gradients(rows, weight, diagonal, right, x, model.steps)
        return jax.lax.dynamic_update_slice_in_dim(new, x, start, 0), None

    with jax.default_matmul_precision("highest"):
        return jax.lax.scan(step, new, (start, column, weight))[0]


def solve(rows: Array, weight: Array, diagonal: Array, right: Array) -> Array:
    """The exact (diag(d) + Y'WY)^-1 (right + Y'W1) for each user, (B, D).

    With fewer rows than columns, a system of L instead of D unknowns is solved (Woodbury).

    Args:
        rows: Y (B, L, D).
        weight: the diagonal of W (B, L); 0 for padding.
        diagonal: d (B, D).
        right: (B, D).
    """
    length, width = rows.shape[1:]
    root = jnp.sqrt(weight)
    z = rows * root[..., None]
    if length < width:
        inner = jnp.einsum("bld,bmd->blm", z / diagonal[:, None], z) + jnp.eye(length)[None]
        rest = root - jnp.einsum("bld,bd->bl", z, right / diagonal)
        return (right + jnp.einsum("bld,bl->bd", z, _cholesky_solve(inner, rest))) / diagonal
    normal = jnp.einsum("bld,ble->bde", z, z) + jnp.eye(width)[None] * diagonal[:, None]
    return _cholesky_solve(normal, right + jnp.einsum("bld,bl->bd", z, root))


def _cholesky_solve(a: Array, b: Array) -> Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), b[..., None])[..., 0]


def conjugate_gradients(
    rows: Array, weight: Array, diagonal: Array, right: Array, x: Array, steps: int
) -> Array:
    """The result of `solve`, by Jacobi-preconditioned conjugate gradients from x (B, D).

    Args:
        rows: see `solve`, also for `weight`, `diagonal` and `right`.
        weight: (B, L).
        diagonal: (B, D).
        right: (B, D).
        x: (B, D), the start.
        steps: number of steps.
    """
    root = jnp.sqrt(weight)
    z = rows * root[..., None]

    def times(p: Array) -> Array:
        return diagonal * p + jnp.einsum("bld,bl->bd", z, jnp.einsum("bld,bd->bl", z, p))

    def product(a: Array, b: Array) -> Array:
        return (a * b).sum(1, keepdims=True)

    scale = 1 / (diagonal + jnp.einsum("bld,bld->bd", z, z))

    def step(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        x, residual, direction, old = state
        ahead = times(direction)
        length = old / jnp.maximum(product(direction, ahead), TINY)
        x, residual = x + length * direction, residual - length * ahead
        new = product(residual, scale * residual)
        direction = scale * residual + new / jnp.maximum(old, TINY) * direction
        return x, residual, direction, new

    residual = right + jnp.einsum("bld,bl->bd", z, root) - times(x)
    start = x, residual, scale * residual, product(residual, scale * residual)
    return jax.lax.fori_loop(0, steps, step, start)[0]
