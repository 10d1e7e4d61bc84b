"""The reader of a finished recommender: how a user's log is read."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import flax.traverse_util
import jax.numpy as jnp
import numpy as np

from jaxops.data.tables import Source
from jaxops.model.finished import Model
from jaxops.model.players import Players
from jaxops.recommend.data.catalogue import in_catalogue, of_users, places, within
from jaxops.recommend.data.events import Events, Histories
from jaxops.recommend.data.reading import events, features_of
from jaxops.recommend.event_players import events_of
from jaxops.recommend.inference import Recommendations, read_histories, recommend
from jaxops.recommend.recommenders import Recommender, recommender_of
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, recorded


class Held(NamedTuple):
    """The items that U users took before, and the items that they took next.

    Attributes:
        users: (U,) their ids.
        histories: the histories of the U users, before the targets.
        targets: the items of the catalogue that the U users took next.
        outside: (U,) int64, number of items that they took next and that the catalogue lacks.
        features: columns of U rows, or None.
    """

    users: np.ndarray
    histories: Histories
    targets: Histories
    outside: np.ndarray
    features: dict[str, np.ndarray] | None


@recorded
@dataclass(frozen=True)
class LogReader:
    """The reader of a finished recommender: the names of a log's columns.

    The catalogue is in the `Recommender`. Its methods read a log as `recommend.events` does. If a
    file needs more settings, read it by `recommend.events`, and give them the `Events`.

    Attributes:
        user: the column of user ids.
        item: the column of item ids.
        time: the column of times; None uses the row number.
        weight: the column of event weights; None weighs all equally.

    >>> from jaxops import recommend
    >>> reader = LogReader(user="customer", item="sku", time=None)
    >>> reader.events({"customer": ["ann", "bob"], "sku": ["tea", "jam"]}).items.tolist()
    ['tea', 'jam']
    """

    room: ClassVar[str] = "recommend"
    user: str = "user"
    item: str = "item"
    time: str | None = "time"
    weight: str | None = None

    def players(self, model: Model, data: Any) -> Players:
        """The past events of users, for `jaxops.explain`; see `predict` for the data."""
        recommender = recommender_of(model)
        lists: Any = data.to_list() if hasattr(data, "to_list") else data
        if not isinstance(lists, list | tuple | np.ndarray | Histories):
            lists = replace(self, weight=None).events(data, recommender.items)
        histories, ids, _, _ = read_histories(recommender, lists, None)
        return events_of(recommender, histories, ids)

    def exported(self, model: Model) -> dict[str, Any]:
        """What it knows, as plain data for `jaxops.export`: the columns that are no histories."""
        return {"log": [self.user, self.item]}

    def events(
        self,
        source: Source | Events,
        items: np.ndarray | None = None,
        item_features: Source | None = None,
    ) -> Events:
        """A log, sorted by time.

        Args:
            source: a CSV or Parquet file, a frame of pandas, polars or PyArrow, arrays by name, or
                `Events`.
            items: (N,) ids of a known catalogue; the catalogue of the log then begins with them.
            item_features: a table with the item column and a row for every item.

        Raises:
            ValueError: see `recommend.events`; or `Events` with `item_features`.
        """
        if not isinstance(source, Events):
            return events(
                source,
                user=self.user,
                item=self.item,
                time=self.time,
                weight=self.weight,
                item_features=item_features,
                items=() if items is None else items,
            )
        if item_features is not None:
            raise ValueError("item_features must be None for Events, which hold them, got a table")
        return source if items is None else in_catalogue(source, items)

    def describe(self) -> dict[str, str]:
        """A description of what it reads."""
        return {"user": self.user, "item": self.item, "time": self.time or "the row number"}

    def held(
        self,
        source: Source | Events,
        items: np.ndarray,
        known: Source | Events | None = None,
        user_features: Source | None = None,
    ) -> Held:
        """The targets of a log, and the histories before them.

        Args:
            source: the log. Its items are the targets.
            items: (N,) the catalogue.
            known: a log of the earlier items. Without it, the target is the last item of each user
                with several items.
            user_features: a table with the user column and a row for every user.

        Raises:
            ValueError: a log that cannot be read.
        """
        unweighted = replace(self, weight=None)
        later = unweighted.events(source, items)
        features = later.user_features if known is None else {}
        if known is None:
            order = np.argsort(later.user, kind="stable")
            counts = np.bincount(later.user, minlength=len(later.users))
            last = np.zeros(len(later), bool)
            last[order[np.cumsum(counts)[counts > 1] - 1]] = True
            earlier, later = later.part(~last), later.part(last)
        else:
            earlier = unweighted.events(known, items)
            place, users = places(later.users, earlier.users)
            later = replace(later, user=place[later.user], users=users)
            earlier = replace(earlier, users=users)
        users = later.users
        if user_features is not None:
            features = features_of(user_features, self.user, users)
        histories, _ = within(earlier, len(items))
        return Held(users, histories, *within(later, len(items)), features or None)

    def predict(
        self,
        model: Model,
        data: Source | Events | Histories | list[Any] | np.ndarray,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        allow: Iterable[Any] | None = None,
        deny: Iterable[Any] | None = None,
        users: Iterable[Any] | None = None,
        user_features: Any = None,
    ) -> Recommendations:
        """The k best items for each user of a log, or for each history of a list.

        Args:
            model: the model.
            data: a log, see `events`; or a list or a series of histories: the items' ids for each
                user, oldest first.
            k: number of items; for this and the other options see `recommend.recommend`.
            exclude_seen: leave out the items of the history.
            allow: ids to choose among.
            deny: ids to leave out.
            users: ids of users of the log to answer for, in that order; by default all.
            user_features: for `TwoTower`, a table with the user column and a row for every user of
                the answer; for a list of histories, columns of as many rows.

        Raises:
            ValueError: a log that cannot be read; see also `recommend.recommend`.
        """
        options: dict[str, Any] = {"exclude_seen": exclude_seen, "allow": allow, "deny": deny}
        lists: Any = data.to_list() if hasattr(data, "to_list") else data
        if isinstance(lists, list | tuple | np.ndarray):
            return recommend(model, lists, k, users=users, user_features=user_features, **options)
        items = recommender_of(model).items
        log = replace(self, weight=None).events(data, items)
        log = log if users is None else of_users(log, users)
        if user_features is not None:
            user_features = features_of(user_features, self.user, log.users)
        return recommend(model, log, k, user_features=user_features, **options)


@recorded
def _stored(model: Any, arrays: tuple[tuple[str, tuple[int, ...], str], ...]) -> Task:
    """A recommender as a file of format 1 holds it: its model, and the shapes of its arrays."""

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        flat = {name: jnp.zeros(shape, dtype) for name, shape, dtype in arrays}
        return flax.traverse_util.unflatten_dict(flat, sep="/"), {}

    def loss(*_: Any) -> tuple[Array, Out]:
        raise ValueError("task must be trainable, got a recommender's; see recommend.update")

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        return model.queries(params, jnp.asarray(batch["history"], jnp.int32))

    return Task(init, loss, predict, (Column("history", (None,), "int"),))


def _finished(stored: Model) -> Model:
    """The model that a file of format 1 holds."""
    task, state = stored.trained()
    assert task.recipe is not None  # it comes from a file
    items, counts = np.array(stored.about["items"], object), np.array(stored.about["counts"])
    recommender = Recommender(dict(task.recipe[1])["model"], state.params, items, counts)
    return Model(recommender, None, LogReader(), versions=stored.versions)


_stored.finished = _finished  # type: ignore[attr-defined]  # see jaxops.model.files
