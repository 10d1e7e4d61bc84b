"""iALS: matrix factors for implicit feedback, by alternating least squares on the device."""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.recommend.data.counts import check_log, interactions
from jaxops.recommend.data.events import Events
from jaxops.task import recorded

Array = jax.Array
EVENTS_AT_ONCE = 1 << 16
PROGRAMS = 8
TINY = 1e-30


@recorded
@dataclass(frozen=True)
class IALS:
    """A user's vector x_u and an item's y_i minimise, over E events and all U x N pairs,

        sum_events w (1 - x_u . y_i)^2 + unobserved sum_u,i (x_u . y_i)^2
        + l2 [sum_u (w_u + unobserved N)^frequency |x_u|^2
              + sum_i (w_i + unobserved U)^frequency |y_i|^2],

    w_u and w_i being the summed weights of their events. A sweep solves for all users, then for all
    items. A user's query is that same solve for the history given, with weights of 1, so that a
    user who was not in the log is scored as any other.

    `fit` with parameters goes on from the item factors with new events alone: the old ones are in
    the loss as the parabola (y_i - old)' A_i (y_i - old) around the old factor, A_i being the
    old users' Gram matrix and, for item i's own events, as many times their mean square. So an item
    without new events hardly moves. A known user's new events are taken for a new user's.

    Attributes:
        factors: D, the width.
        l2: weight of the regularisation.
        unobserved: weight of each pair, observed or not, beside 1 of an event.
        frequency: 1 regularises by frequency, 0 all alike.
        sweeps: over users and items.
        steps: of preconditioned conjugate gradients from the last sweep's vector, for each solve of
            the fit; None solves exactly, which takes longer. Queries are always exact.
        seed: of the first item factors.
        context: how many of a user's last items are read; all by default.

    References:
        Hu, Koren and Volinsky 2008, Collaborative filtering for implicit feedback datasets; Rendle
        et al. 2021, arXiv:2110.14037; Takacs et al. 2011, Applications of the conjugate gradient
        method for implicit feedback collaborative filtering.

    >>> user, item = np.nonzero(np.kron(np.eye(2), np.ones((8, 4))))  # two crowds, four items each
    >>> log = Events(user, item, np.arange(64), np.ones(64, np.float32),
    ...              np.arange(16).astype(str), np.array(list("abcdefgh")))
    >>> model = IALS(factors=2, unobserved=0.1, l2=0.01)
    >>> params = model.fit(log)
    >>> scores = model.queries(params, jnp.array([[4, 5]])) @ model.table(params).T
    >>> sorted(np.argsort(-scores[0])[:4].tolist())
    [4, 5, 6, 7]
    """

    factors: int = 64
    l2: float = 0.003
    unobserved: float = 0.1
    frequency: float = 1.0
    sweeps: int = 16
    steps: int | None = 3
    seed: int = 0
    context: int | None = None

    for_update: ClassVar[tuple[str, ...]] = ("users_gram", "users", "count")

    def __post_init__(self) -> None:
        for name, least in {"factors": 1, "sweeps": 1, "steps": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: {value} found, at least {least} wanted")
        for name in ("l2", "unobserved"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: {getattr(self, name)} found, more than 0 wanted")

    def fit(self, events: Events, params: Any = None) -> dict[str, Any]:
        """The parameters, or with `params` their update by new events.

        Returns:
            `items` (N, D) float32, turned so that their Gram matrix is diagonal; `spectrum` (D,),
            the diagonal; of the old events, `users_gram` (D, D), `users` () and `counts` (N,).

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
        """The prior of a first fit: one row of zeros stands for all."""
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
        """New user factors (U, D) for the items', then new item factors (N, D) for the users'."""
        users = self._half(users, items, by_user, self.nothing(), by_item.size)
        return users, self._half(items, users, by_item, prior, prior.users + by_user.size)

    def _half(
        self, old: Array, table: Array, blocks: "Blocks", prior: "Prior", others: Any
    ) -> Array:
        """Least squares for the rows of `old` (R, D), with `table` (S, D) held fixed."""
        new, held, basis = _start(self, old, table, prior, jnp.float32(others))
        for same_length in blocks.blocks:
            new = _solve_blocks(self, new, held, *same_length)
        return _turn(new, basis.T)

    def queries(self, params: Any, history: Array) -> Array:
        """The users' factors (B, D) float32."""
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
    """What stands for the events of earlier fits.

    Attributes:
        items: (N, D), the factors then.
        gram: (D, D), of the users then.
        users: (), how many.
        counts: (N,), summed weights of the events.
    """

    items: Array
    gram: Array
    users: Array
    counts: Array


def by_length(log: Any) -> tuple[Any, np.ndarray]:
    """Shorter rows and columns first, empty rows left out; and the columns' order.

    Rows of like length are then a slice of the factors, which is faster than a scatter.
    """
    lengths = np.diff(log.indptr)
    order = np.argsort(np.bincount(log.indices, minlength=log.shape[1]), kind="stable")
    log = log[np.argsort(lengths, kind="stable")[(lengths == 0).sum() :]]
    log.indices = np.argsort(order)[log.indices].astype(np.int32)
    log.has_sorted_indices = False
    return log, order


class Blocks(NamedTuple):
    """The rows of a sparse matrix, shorter ones first, in blocks of about as many elements each.

    Attributes:
        size: number of rows R; with it
        blocks: for each length L, K blocks of B rows: start (K,), the first row of each; column
            (K, B, L); weight (K, B, L), 0 for padding.
    """

    size: int
    blocks: list[tuple[Array, Array, Array]]

    @classmethod
    def of(cls, matrix: Any) -> "Blocks":
        """Blocks of a SciPy CSR array whose rows become longer."""
        lengths = np.diff(matrix.indptr)
        # a small log is not worth many programs
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
        there = place < lengths[rows][..., None]
        index = np.where(there, matrix.indptr[rows][..., None] + place, 0)
        column = matrix.indices[index].astype(np.int32)
        weight = np.where(there, matrix.data[index], 0).astype(np.float32)
        return jax.device_put((start.astype(np.int32), column, weight))


def least_padding(lengths: np.ndarray, most: int) -> np.ndarray:
    """At most so many lengths, rising, that hold rows of all `lengths` with the least padding.

    Of candidates 15 % apart, by dynamic programming; each length is one more program to compile.

    >>> least_padding(np.array([2, 2, 2, 2, 9, 9, 10]), most=2).tolist()
    [2, 10]
    """
    longest = max(1, int(lengths.max()))
    grid = np.unique(
        np.append(1.15 ** np.arange(np.log(longest) / np.log(1.15)), longest).astype(int)
    )
    rows = np.concatenate([[0], np.cumsum(np.bincount(np.searchsorted(grid, lengths)))])
    # from all rows up to candidate i held, to all up to j by one more length
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
    """What stays while one side is solved, in the basis where the other's Gram is diagonal.

    Attributes:
        table: (S, D), the other side.
        spectrum: (D,), the diagonal, times `unobserved`.
        prior: (R or 1,), what the old events add to a row's diagonal, and
        right: (R or 1, D) to its right-hand side.
        counts: (R or 1,), summed weights of the old events.
        others: (), how many the other side has ever had.
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
    """The last sweep's rows and what is held, both turned; and the basis."""
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
    """(diag(d) + Y'WY)^-1 (right + Y'W1) for each user, exactly: (B, D).

    With fewer rows than columns a system of L, not D, unknowns is solved (Woodbury).

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
    """As `solve`, by `steps` steps from x (B, D), preconditioned with the system's diagonal."""
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
