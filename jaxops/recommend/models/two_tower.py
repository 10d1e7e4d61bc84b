"""Two towers: items are represented by features, so that items without events can be scored."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.model.finished import Model
from jaxops.nn import Dense
from jaxops.recommend.data.catalogue import as_text, of_type
from jaxops.recommend.data.events import Events
from jaxops.recommend.data.features import Columns, Features
from jaxops.recommend.recommenders import (
    Recommender,
    event_counts,
    in_place_of,
    recommender_of,
)
from jaxops.state import TrainState
from jaxops.task import Key, recorded

Array = jax.Array
Params = Any
ITEMS_AT_ONCE = 8192
NO_FEATURES = Features()


@recorded(formerly={"hidden": "widths"})
@dataclass(frozen=True)
class TwoTower:
    """A model that represents items by their features and users by the items they took.

    An item's vector is computed from its features and its own embedding. A user's vector is
    computed from the vectors of the items taken, weighted by attention and by recency, and from
    the user's features. Both have length 1; a score is their inner product divided by the
    temperature, as in Yi et al. 2019. In training, the item's own embedding and the user's features
    are left out at random, so that the towers also work for an item or a user with less data
    (Volkovs et al. 2017).

    `recommend.fit(log, TwoTower(width=32), item_features=...)` reads the features of its log. For
    your own training loop, `TwoTower.fitted(events)` is the usual way to make one; `retrieval` is
    the task that trains it.

    Attributes:
        item_features: how the items' columns are read.
        user_features: how the users' columns are read.
        known: number of items with their own embedding; with 0 only the features are used.
        context: number of a user's last items that are read.
        width: D, size of a vector.
        widths: units of each tower's hidden layers.
        unknown: probability that an item's own embedding, or a user's features, are left out.
        temperature: the inner products are divided by it.

    References:
        Yi et al. 2019, doi:10.1145/3298689.3346996; Volkovs et al. 2017, DropoutNet.

    >>> features = Features.fitted({"price": np.array([1.0, 3.0])})
    >>> TwoTower(features, Features(), known=2).context
    20
    """

    item_features: Features = NO_FEATURES
    user_features: Features = NO_FEATURES
    known: int = 0
    context: int = 20
    width: int = 64
    widths: tuple[int, ...] = (128,)
    unknown: float = 0.3
    temperature: float = 0.1

    answers_empty: ClassVar[bool] = True

    @classmethod
    def fitted(cls, events: Events, ids: bool = True, **settings: Any) -> "TwoTower":
        """The settings for a training log: how its features are read, and which items are known.

        Args:
            events: the training log; an item without events gets no own embedding.
            ids: whether items have their own embeddings.
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
            params: the parameters of a `two_tower_recommender`.
            history: (B, L) int32, oldest first, N for padding, which comes last; may be empty.
            users: features of the B users, as `user_features.read` returns them; unknown by
                default.

        Returns:
            (B, D) float32.
        """
        return self.user_vectors(params["network"], params["items"], history, users)

    def table(self, params: Params) -> Array:
        """The items' vectors, (N, D) float32."""
        items, vectors = params["items"], functools.partial(self.item_vectors, params["network"])
        return jax.lax.map(vectors, items, batch_size=min(ITEMS_AT_ONCE, len(items["own"])))

    def rows(self, events: Events) -> dict[str, np.ndarray]:
        """Training rows, one for each event: the item taken and the items taken before it.

        Returns:
            `item` (E,) int32; `history` (E, context) int32; `categories` and `numbers` if there are
            user features; and `mask` (E,) float32, the events' weights.
        """
        histories = events.histories()
        row = np.arange(len(events))
        user = np.repeat(np.arange(len(events.users)), histories.lengths)
        before = np.minimum(row - histories.starts[user], self.context)
        place = np.arange(self.context)
        filled = place < before[:, None]
        index = np.where(filled, (row - before)[:, None] + place, 0)
        columns = {
            "item": histories.items,
            "history": np.where(filled, histories.items[index], len(events.items)).astype(np.int32),
            "mask": events.weight[np.argsort(events.user, kind="stable")],
        }
        if self.user_features.names:
            users = self.user_features.read(events.user_features, len(events.users))
            columns |= {name: values[user] for name, values in users.items()}
        return columns

    def user_vectors(
        self, params: Params, items: Any, history: Array, users: Any, key: Key | None = None
    ) -> Array:
        """The result of `queries`, from parameters of the `TwoTowerModule` and the items.

        Args:
            params: parameters of the module.
            items: `own`, `categories` and `numbers` of the N items.
            history: see `queries`.
            users: see `queries`.
            key: in training, the key for the features that are left out at random.
        """
        item_key, user_key = (None, None) if key is None else jax.random.split(key)
        taken = jax.tree.map(lambda x: x.at[history].get(mode="fill", fill_value=0), items)
        vectors = self.item_vectors(params, taken, item_key)
        if users is not None and user_key is not None:
            kept = jax.random.bernoulli(user_key, 1 - self.unknown, (len(history), 1))
            users = jax.tree.map(lambda x: jnp.where(kept, x, 0), users)
        filled = history < len(items["own"])
        apply: Any = TwoTowerModule(self).apply
        queries: Array = apply({"params": params}, vectors, filled, users, method="user")
        return queries / self.temperature

    def item_vectors(self, params: Params, items: Any, key: Key | None = None) -> Array:
        """The vectors (..., D) of items.

        Args:
            params: parameters of the `TwoTowerModule`.
            items: `own` (...), `categories` (..., C) and `numbers` (..., F).
            key: in training, the key for the embeddings that are left out at random.
        """
        if key is not None and self.known:
            left_out = jax.random.bernoulli(key, self.unknown, items["own"].shape)
            items = {**items, "own": jnp.where(left_out, 0, items["own"])}
        apply: Any = TwoTowerModule(self).apply
        vectors: Array = apply({"params": params}, **items, method="item")
        return vectors


class TwoTowerModule(nn.Module):
    """The Flax module of both towers.

    Attributes:
        settings: the sizes and features.
    """

    settings: TwoTower

    def setup(self) -> None:
        """Make the towers, each a sum of the features' vectors and then an MLP."""
        s = self.settings
        normal = nn.initializers.normal(s.width**-0.5)
        self.own = self.param("own", normal, (s.known + 1, s.width))
        self.item_features = FeatureSum(s.item_features, s.width)
        self.item_tower = Tower(s.widths, s.width)
        self.look = self.param("look", nn.initializers.zeros, (s.width,))
        self.nothing = self.param("nothing", normal, (s.width,))
        self.recency = self.param("recency", nn.initializers.zeros, (s.context,))
        self.user_features = FeatureSum(s.user_features, s.width)
        self.user_tower = Tower(s.widths, s.width)

    def __call__(self, own: Array, categories: Array, numbers: Array, users: Any) -> Array:
        """Vectors of users (B, ...) who each took one item (B, ...); it makes all parameters."""
        vectors = self.item(own, categories, numbers)
        return self.user(vectors[:, None], jnp.ones((len(vectors), 1), bool), users)

    def item(self, own: Array, categories: Array, numbers: Array) -> Array:
        """Items' vectors (..., D).

        Args:
            own: (...) int, row of the item's own embedding, 0 for none.
            categories: (..., C) int.
            numbers: (..., F) float.
        """
        return self.item_tower(self.own[own] + self.item_features(categories, numbers))

    def user(self, vectors: Array, filled: Array, users: Any) -> Array:
        """Users' vectors (B, D).

        Args:
            vectors: (B, L, D), vectors of the items taken.
            filled: (B, L) bool, False for padding.
            users: `categories` and `numbers` of the users, or None.
        """
        ago = filled.sum(1, keepdims=True) - 1 - jnp.arange(filled.shape[1])[None]
        ago = jnp.clip(ago, 0, self.settings.context - 1)
        weight = jnp.where(filled, jnp.exp(vectors @ self.look + self.recency[ago]), 0)
        x = jnp.einsum("bl,bld->bd", weight, vectors)
        x /= jnp.maximum(weight.sum(1, keepdims=True), 1e-9)
        x = jnp.where(filled.any(1, keepdims=True), x, self.nothing[None])
        if users is not None:
            x += self.user_features(**users)
        return self.user_tower(x)


class FeatureSum(nn.Module):
    """The sum of one vector per category and a linear map of the numbers.

    Attributes:
        features: the columns.
        width: D.
    """

    features: Features
    width: int

    @nn.compact
    def __call__(self, categories: Array, numbers: Array) -> Array:
        """Vectors (..., D) of `categories` (..., C) int, 0 for unknown, and `numbers` (..., F)."""
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
    """A residual MLP with ReLU, whose output is scaled to length 1.

    Attributes:
        widths: units of the hidden layers.
        width: D.
    """

    widths: tuple[int, ...]
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (..., D) to (..., D)."""
        y = x
        for i, units in enumerate(self.widths):
            y = nn.relu(Dense(units, name=f"hidden_{i}")(y))
        x += Dense(self.width, name="out")(y)
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-12))


def two_tower_recommender(towers: TwoTower, state: TrainState, events: Events) -> Recommender:
    """The recommender that a `retrieval` task has trained.

    Args:
        towers: the settings that were trained.
        state: the trained state, whose `extra` holds the items' features.
        events: the training log, for the items' ids and counts.

    >>> import jaxops as jo
    >>> from jaxops import recommend as r
    >>> columns = {"user": ["a", "a", "b", "b"], "item": ["x", "y", "x", "y"]}
    >>> log = r.events(columns, time=None, item_features={"item": ["x", "y"], "price": [1.0, 2.0]})
    >>> towers = TwoTower.fitted(log, width=4, widths=(4,), context=2)
    >>> state = jo.fit(r.retrieval(towers, log), towers.rows(log), optimizer=jo.optim.adam(0.01),
    ...                batch_size=4, steps=2, progress=False)
    >>> recommender = two_tower_recommender(towers, state, log)
    >>> more = two_tower_with_items(recommender, ["new"], {"price": [1.0]})
    >>> sorted(r.recommend(more, [["x"]], k=2).ids()[0])
    ['new', 'y']
    """
    params = {"network": state.params, "items": state.extra["items"]}
    return Recommender(towers, params, events.items, event_counts(events))


def two_tower_with_items(recommender: Model | Recommender, items: Any, columns: Columns) -> Any:
    """The recommender, or model, with more items, scored only by their features, without training.

    The indices of known items do not change. The padding of histories is the number of items, as
    everywhere, so it changes too.

    Args:
        recommender: a model from `recommend.fit`, or a `two_tower_recommender`.
        items: the ids of the M new items.
        columns: the features of the new items, (M,) each, as in training.

    Raises:
        ValueError: an id is already known or occurs twice, a column is missing, or the number of
            rows differs.
    """
    given, recommender = recommender, recommender_of(recommender)
    items = as_text(items, "items")
    known = set(recommender.place_of)
    for row, item in enumerate(items):
        if item in known:
            raise ValueError(f"items must be new and distinct, got {item!r} in row {row}")
        known.add(item)
    new = recommender.model.item_features.read(columns, len(items))
    new["own"] = np.zeros(len(items), np.int32)
    table = recommender.params["items"]
    table = {name: jnp.concatenate([table[name], jnp.asarray(new[name])]) for name in table}
    params = {**recommender.params, "items": table}
    larger = Recommender(
        recommender.model,
        params,
        of_type([*recommender.place_of, *items], recommender.items.dtype.kind == "i"),
        np.concatenate([recommender.counts, np.zeros(len(items))]),
    )
    return in_place_of(given, larger)
