"""Two towers: an item is what its features say, so that one that nobody has taken is scored too."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.nn import Dense
from jaxops.recommend.data.events import Events
from jaxops.recommend.data.features import Columns, Features
from jaxops.recommend.recommenders import Recommender, event_counts
from jaxops.state import TrainState
from jaxops.task import Batch, Column, Key, Out, Task, masked_sum, recorded, row_weights

Array = jax.Array
Params = Any
ITEMS_AT_ONCE = 8192


@recorded
@dataclass(frozen=True)
class TwoTower:
    """A recommender that knows items by their features and users by what they took.

    An item's vector is made of its features and of an embedding of its own; a user's, of the
    vectors of the items taken, weighted by attention and by how long ago they were taken, and of
    the user's features. Both have length 1, and a score is their product by 1 / temperature, as in
    Yi et al. 2019 (doi:10.1145/3298689.3346996). In training, some items go without their own
    embedding and some users without their features, by chance, so that the towers know what to
    make of an item or a user of whom there is less (Volkovs et al. 2017, "DropoutNet").

    `TwoTower.fitted(events)` is the usual way to make one; `retrieval` learns it.

    Attributes:
        item_features: how the items' columns are read.
        user_features: how the users' are.
        known: how many items have an embedding of their own; 0 for features alone.
        context: how many of a user's last items it reads.
        width: D, of a vector.
        hidden: units of each tower's hidden layers.
        unknown: probability that an item's own embedding, or a user's features, are left out.
        temperature: what the products of vectors are divided by.
    """

    item_features: Features
    user_features: Features
    known: int
    context: int = 20
    width: int = 64
    hidden: tuple[int, ...] = (128,)
    unknown: float = 0.3
    temperature: float = 0.1

    answers_empty: ClassVar[bool] = True

    @classmethod
    def fitted(cls, events: Events, ids: bool = True, **settings: Any) -> "TwoTower":
        """With the features of a training log, and with its items' own embeddings or without.

        Args:
            events: the training log; an item without events gets no embedding of its own.
            ids: whether items have one.
            settings: the other attributes.
        """
        items, users = (Features.fitted(c) for c in (events.item_features, events.user_features))
        known = len(np.unique(events.item)) if ids else 0
        return cls(items, users, known, **settings)

    def queries(
        self, params: Params, history: Array, users: Mapping[str, Any] | None = None
    ) -> Array:
        """Users' vectors, divided by the temperature.

        Args:
            params: as `two_tower_recommender` puts them together.
            history: (B, L) int32, oldest first, N behind the last; empty ones may be.
            users: what `model.user_features.read` gives of B users; unknown by default.

        Returns:
            (B, D) float32.
        """
        return self._queries(params["network"], params["items"], history, users, None)

    def table(self, params: Params) -> Array:
        """The items' vectors, (N, D) float32."""
        items, vector = params["items"], functools.partial(self._vectors, params["network"])
        return jax.lax.map(vector, items, batch_size=min(ITEMS_AT_ONCE, len(items["own"])))

    def rows(self, events: Events) -> dict[str, np.ndarray]:
        """Training rows, one an event: the item taken and those that its user took before.

        Returns:
            `item` (E,) int32, `history` (E, context) int32, where there are user features
            `categories` and `numbers`, and `mask` (E,) float32, the events' weights.
        """
        histories = events.histories()
        row = np.arange(len(events))
        user = np.repeat(np.arange(len(events.users)), histories.lengths)
        before = np.minimum(row - histories.starts[user], self.context)
        place = np.arange(self.context)
        there = place < before[:, None]
        index = np.where(there, (row - before)[:, None] + place, 0)
        columns = {
            "item": histories.items,
            "history": np.where(there, histories.items[index], len(events.items)).astype(np.int32),
            "mask": events.weight[np.argsort(events.user, kind="stable")],
        }
        if self.user_features.names:
            users = self.user_features.read(events.user_features, len(events.users))
            columns |= {name: values[user] for name, values in users.items()}
        return columns

    def _queries(
        self, network: Params, items: Any, history: Array, users: Any, key: Key | None
    ) -> Array:
        """With a key, as in training."""
        drop, keep = (None, None) if key is None else jax.random.split(key)
        taken = jax.tree.map(lambda x: x.at[history].get(mode="fill", fill_value=0), items)
        vectors = self._vectors(network, self._own(taken, drop))
        if users is not None and keep is not None:
            seen = jax.random.bernoulli(keep, 1 - self.unknown, (len(history), 1))
            users = jax.tree.map(lambda x: jnp.where(seen, x, 0), users)
        there = history < len(items["own"])
        apply: Any = Network(self).apply
        queries: Array = apply({"params": network}, vectors, there, users, method="user")
        return queries / self.temperature

    def _vectors(self, network: Params, items: Any) -> Array:
        """(..., D)."""
        apply: Any = Network(self).apply
        vectors: Array = apply({"params": network}, **items, method="item")
        return vectors

    def _own(self, items: dict[str, Array], key: Key | None) -> dict[str, Array]:
        """In training, some items without their own embeddings."""
        if key is None or not self.known:
            return items
        left_out = jax.random.bernoulli(key, self.unknown, items["own"].shape)
        return {**items, "own": jnp.where(left_out, 0, items["own"])}


class Network(nn.Module):
    """Both towers.

    Attributes:
        settings: see there.
    """

    settings: TwoTower

    def setup(self) -> None:
        """Of an item: the sum of its features' vectors, and an MLP on top; of a user as well."""
        s = self.settings
        normal = nn.initializers.normal(s.width**-0.5)
        self.own = self.param("own", normal, (s.known + 1, s.width))
        self.item_features = FeatureSum(s.item_features, s.width)
        self.item_tower = Tower(s.hidden, s.width)
        self.look = self.param("look", nn.initializers.zeros, (s.width,))
        self.nothing = self.param("nothing", normal, (s.width,))
        self.recency = self.param("recency", nn.initializers.zeros, (s.context,))
        self.user_features = FeatureSum(s.user_features, s.width)
        self.user_tower = Tower(s.hidden, s.width)

    def __call__(self, own: Array, categories: Array, numbers: Array, users: Any) -> Array:
        """To begin with: users (B, ...) who each took one item (B, ...)."""
        vectors = self.item(own, categories, numbers)
        return self.user(vectors[:, None], jnp.ones((len(vectors), 1), bool), users)

    def item(self, own: Array, categories: Array, numbers: Array) -> Array:
        """(..., D) of own embeddings (...), 0 for none, categories (..., C), numbers (..., F)."""
        return self.item_tower(self.own[own] + self.item_features(categories, numbers))

    def user(self, vectors: Array, there: Array, users: Any) -> Array:
        """(B, D) of items' vectors (B, L, D), where there are any (B, L), and features."""
        ago = there.sum(1, keepdims=True) - 1 - jnp.arange(there.shape[1])[None]
        ago = jnp.clip(ago, 0, self.settings.context - 1)
        weight = jnp.where(there, jnp.exp(vectors @ self.look + self.recency[ago]), 0)
        x = jnp.einsum("bl,bld->bd", weight, vectors)
        x /= jnp.maximum(weight.sum(1, keepdims=True), 1e-9)
        x = jnp.where(there.any(1, keepdims=True), x, self.nothing[None])
        if users is not None:
            x += self.user_features(**users)
        return self.user_tower(x)


class FeatureSum(nn.Module):
    """The sum of a vector for each category and of a linear map of the numbers.

    Attributes:
        features: which there are.
        width: D.
    """

    features: Features
    width: int

    @nn.compact
    def __call__(self, categories: Array, numbers: Array) -> Array:
        """(..., D) of categories (..., C), int, 0 for an unknown one, and numbers (..., F)."""
        x = jnp.zeros((*categories.shape[:-1], self.width))
        if numbers.shape[-1]:
            x += Dense(self.width, use_bias=False, name="numbers")(numbers)
        sizes = np.array([len(values) for _, values in self.features.categories], np.int32)
        if len(sizes):
            normal = nn.initializers.normal(self.width**-0.5)
            table = self.param("categories", normal, (int(sizes.sum()), self.width))
            first = jnp.asarray(np.cumsum(sizes) - sizes - 1)
            first = first.reshape((1,) * (categories.ndim - 1) + (-1,))
            known = (categories > 0)[..., None]
            x += jnp.where(known, table[jnp.maximum(first + categories, 0)], 0).sum(-2)
        return x


class Tower(nn.Module):
    """Dense layers with ReLU, added to their input; the sum has length 1.

    Attributes:
        hidden: units of the hidden layers.
        width: D.
    """

    hidden: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., D) to (..., D)."""
        y = x
        for i, units in enumerate(self.hidden):
            y = nn.relu(Dense(units, name=f"hidden_{i}")(y))
        x += Dense(self.width, name="out")(y)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def in_batch_softmax(scores: Array, item: Array, log_q: Array, weights: Array) -> Array:
    """The cross-entropy of each row, over all items, estimated from the items of its batch.

    The others of the batch come as often as they are popular, q: as they are, popular items would
    be pushed away for it. Divided by q their sum is right on average (Bengio and Senécal 2008,
    doi:10.1109/TNN.2007.912312; Yi et al. 2019): with row i's item y_i,

        loss_i = log(exp(s_ii) + 1/(B-1) sum over j with y_j != y_i of exp(s_ij) / q(y_j)) - s_ii

    whose logarithm's argument has the mean `sum over all items n of exp(s_in)`. The item itself is
    counted once and as it is: it was not drawn from q (Khrylchenko et al. 2025, arXiv:2507.09331).

    Args:
        scores: (B, B), s_ij of row i's query with row j's item.
        item: (B,) int, which item it is.
        log_q: (B,), the logarithm of the share of its item among all rows.
        weights: (B,); a row of weight 0 is nobody's negative.

    Returns:
        (B,), at least 0.

    >>> log_q = jnp.log(jnp.full(2, 0.5))  # two items, drawn alike: the sum is exact
    >>> scores = jnp.array([[0.0, 1.0], [2.0, 3.0]])
    >>> full = jnp.log(jnp.exp(0.0) + 2 * jnp.exp(1.0)) - 0.0
    >>> bool(jnp.isclose(in_batch_softmax(scores, jnp.arange(2), log_q, jnp.ones(2))[0], full))
    True
    """
    real = weights > 0
    own = jnp.diag(scores)
    drawn = jnp.maximum(real.sum() - 1, 1).astype(jnp.float32)
    others = scores - log_q[None] - jnp.log(drawn)
    others = jnp.where(real[None] & (item[:, None] != item[None]), others, -jnp.inf)
    return jax.nn.logsumexp(jnp.concatenate([own[:, None], others], axis=1), axis=1) - own


def retrieval(model: TwoTower, events: Events) -> Task:
    """Learn which item is taken next; the batch's other items are the negatives.

    A batch holds what `model.rows(events)` gives. The items' features are kept in the state's
    `extra`, which is not trained. The loss couples the rows of a batch: more rows are more
    negatives, and `accumulate` is refused. A task is made for one catalogue and compiles for it.

    Args:
        model: see `TwoTower.fitted`.
        events: the training log, whose items are the catalogue, those without events too.

    Returns:
        A task that predicts users' queries (B, D), see `two_tower_recommender`.

    Raises:
        ValueError: no events, features that the model lacks, or other items than it knows.
    """
    if len(events) == 0:
        raise ValueError("events: none found, at least 1 wanted")
    count = len(events.items)
    times = np.bincount(events.item, minlength=count)
    if model.known not in (0, taken := int((times > 0).sum())):
        raise ValueError(f"events: {taken:,} items with events found, {model.known:,} wanted")
    own = np.where(times > 0, np.cumsum(times > 0), 0) if model.known else np.zeros(count)
    items = {"own": own.astype(np.int32), **model.item_features.read(events.item_features, count)}
    log_q = np.log(np.maximum(times, 1) / len(events)).astype(np.float32)

    def init(key: Key, batch: Batch) -> tuple[Params, Any]:
        first = {name: jnp.asarray(values[:1]) for name, values in items.items()}
        users = _users(batch)
        users = users and {name: values[:1] for name, values in users.items()}
        start: Any = Network(model).init
        params = start(key, **first, users=users)["params"]
        return params, {"items": jax.tree.map(jnp.asarray, items), "log_q": jnp.asarray(log_q)}

    def loss(params: Params, extra: Any, batch: Batch, key: Key, train: bool) -> tuple[Array, Out]:
        weights = row_weights(batch)
        # a row of padding may hold anything: it takes the first item after nothing
        item = jnp.where(weights > 0, batch["item"], 0)
        history = jnp.where((weights > 0)[:, None], batch["history"], count)
        users = jax.tree.map(lambda x: jnp.where((weights > 0)[:, None], x, 0), _users(batch))
        drop, rest = jax.random.split(key) if train else (None, None)
        queries = model._queries(params, extra["items"], history, users, rest)
        taken = model._own(jax.tree.map(lambda x: x[item], extra["items"]), drop)
        vectors = model._vectors(params, taken)
        losses = in_batch_softmax(queries @ vectors.T, item, extra["log_q"][item], weights)
        return masked_sum(losses, weights), Out(weights.sum(), {}, extra)

    def predict(params: Params, extra: Any, batch: Batch) -> Array:
        return model._queries(params, extra["items"], batch["history"], _users(batch), None)

    columns = [
        Column("history", (model.context,), "int", count + 1),
        Column("item", (), "int", count, target=True),
    ]
    if model.user_features.names:
        read = model.user_features.read(events.user_features, len(events.users))
        columns += [
            Column("categories", read["categories"].shape[1:], "int"),
            Column("numbers", read["numbers"].shape[1:], "float"),
        ]
    return Task(init, loss, predict, tuple(columns), coupled=True)


def _users(batch: Batch) -> dict[str, Array] | None:
    return {n: batch[n] for n in ("categories", "numbers")} if "categories" in batch else None


def two_tower_recommender(model: TwoTower, state: TrainState, events: Events) -> Recommender:
    """What was learned, as any recommender: the items' features go along with the parameters.

    Args:
        model: what was trained.
        state: of it.
        events: that it was trained on.
    """
    params = {"network": state.params, "items": state.extra["items"]}
    return Recommender(model, params, events.items, event_counts(events))


def with_items(recommender: Recommender, items: Any, columns: Columns) -> Recommender:
    """The recommender with more items, which it has nothing but the features of. No training.

    Items that are there keep their indices; the padding of a history moves, as always, to the new
    number of items.

    Args:
        recommender: of a `TwoTower`.
        items: (M,) the new items' own ids, str.
        columns: their features, (M,) each, as in training.

    Raises:
        ValueError: an item that is there already, or twice; a missing column; another number of
            rows.
    """
    items = np.asarray(items, str)
    known = set(recommender.items.tolist())
    for item in items.tolist():
        if item in known:
            raise ValueError(f"items: {item!r} found, which is there already; new ones wanted")
        known.add(item)
    new = recommender.model.item_features.read(columns, len(items))
    new["own"] = np.zeros(len(items), np.int32)
    table = recommender.params["items"]
    table = {name: jnp.concatenate([table[name], jnp.asarray(new[name])]) for name in table}
    params = {**recommender.params, "items": table}
    return Recommender(
        recommender.model,
        params,
        np.concatenate([recommender.items, items]),
        np.concatenate([recommender.counts, np.zeros(len(items))]),
    )
