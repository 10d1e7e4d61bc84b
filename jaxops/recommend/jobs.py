"""One function for each job on a log: `fit` a finished model, `evaluate` it, `update` it."""

from collections.abc import Mapping
from dataclasses import replace
from time import monotonic
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops import optim
from jaxops.data.tables import Source
from jaxops.model.finished import Model, fingerprint, inside, seconds
from jaxops.recommend.data.events import Events
from jaxops.recommend.data.reading import features_of
from jaxops.recommend.models.blend import Blend, blend, members_of
from jaxops.recommend.models.ease import EASE
from jaxops.recommend.models.item_knn import ItemKNN
from jaxops.recommend.models.sequence import (
    SequenceModel,
    sasrec,
    sequence_recommender,
    sequence_with_items,
)
from jaxops.recommend.models.two_tower import TwoTower, two_tower_recommender, two_tower_with_items
from jaxops.recommend.reader import Held, LogReader
from jaxops.recommend.recommenders import (
    Recommender,
    event_counts,
    fitted,
    reads,
    recommender_of,
    updated,
)
from jaxops.recommend.tasks import held_out, masked_item, next_item, retrieval, rows
from jaxops.recommend.trials import chosen_of, scored, with_decay
from jaxops.train.loop import fit as train
from jaxops.train.settings import EarlyStopping, check_one_directory, chosen, whole
from jaxops.trust.evaluation import Evaluation, table

VALIDATED = 10_000  # largest number of users whose last item is held out
SOLVED = 10_000  # largest number of items of EASE by default: 1.6 GB
PAIRED = 30_000_000  # largest number of pairs of items of ItemKNN by default: about 1 GB
PRINTED = ("hr", "ndcg", "coverage")


def fit(
    data: Source | Events,
    method: Any = None,
    *,
    user: str = "user",
    item: str = "item",
    time: str | None = "time",
    weight: str | None = None,
    user_features: Source | None = None,
    item_features: Source | None = None,
    validation: Source | Events | float | None = None,
    budget: str | float = "10min",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Train a recommender on a log of events: which user took which item, and when.

    By default `EASE`, `ItemKNN` and `sasrec` are trained, and the one with the largest NDCG on the
    validation items is kept, or a blend. Validation also chooses `decay` for `EASE` and `ItemKNN`,
    how quickly the weight of older events falls; see `about`. Here `EASE` has at most 10,000 items,
    and `ItemKNN` is not tried if the log has more than 30 million pairs of items.

    The last item of each user is held out for validation, for at most 10,000 users with three
    events or more. A closed form is then fitted again to all events; a network is not.

    Args:
        data: a CSV or Parquet file, a frame of pandas, polars or PyArrow, arrays by name, or
            `Events`, which `recommend.events` reads from other files.
        method: a closed form such as `EASE(l2=100.0)`, `IALS()`, `BPR()`, `ItemKNN()` or
            `Popularity()`; a sequence module such as `sasrec()`, `gru4rec()` or `bert4rec()`, whose
            number of items is set; `TwoTower()`, whose features are set; or a list. Of a list the
            best method by validation is kept, or a blend of the best sequence module and the better
            of `EASE` and `ItemKNN`.
        user: the column of user ids, text or integers.
        item: the column of item ids, text or integers.
        time: the column of times, numbers or dates in ISO 8601; None uses the row number.
        weight: the column of event weights, at least 0; by default every weight is 1.
        user_features: for `TwoTower`, a table with the user column and a row for every user.
        item_features: for `TwoTower`, a table with the item column and a row for every item.
        validation: instead of each user's last item, the share of the events, the last ones by
            time; or a log of later events.
        budget: time after which training stops, such as "10min", or seconds. The remaining time is
            divided among the remaining methods; a method for which none is left is not tried.
        seed: the seed of the held-out users and of training.
        progress: print a progress bar and the validation figures.
        **options: arguments of `jaxops.fit`, which replace those of `recipe`: `optimizer`,
            `batch_size`, `epochs`, `early_stopping`, `plan` and so on, for methods that it trains.

    Returns:
        A model; `model.predict(log)` or `model.predict(histories)` gives `Recommendations`.

    Raises:
        ValueError: a log that cannot be read (the message names column and row); a method of
            another kind, or with another number of items; options or features that no method uses;
            no user for validation; see also `jaxops.fit`.

    >>> from jaxops import recommend
    >>> user, step = np.divmod(np.arange(240), 6)
    >>> log = {"customer": user, "sku": [f"i{i}" for i in (user + step) % 9], "date": step}
    >>> model = recommend.fit(log, recommend.ItemKNN(), user="customer", item="sku", time="date",
    ...                       progress=False)
    >>> model.predict([["i1", "i2"]], k=2).ids()
    [['i3', 'i0']]
    >>> model.predict(log, k=2).frame()["user"].tolist()[:3]
    [0, 0, 1]
    """
    until = monotonic() + 0.9 * seconds(budget)  # a tenth is for validation and a blend
    reader = LogReader(user, item, time, weight)
    log = reader.events(data, item_features=item_features)
    if user_features is not None:
        log = replace(log, user_features=features_of(user_features, user, log.users))
    rest, held = _held_out(reader, log, validation, user_features, seed)
    methods = _named(method, rest)
    if options and all(hasattr(one, "fit") for one in methods.values()):
        raise ValueError(
            f"options must be none for {', '.join(methods)}, which jaxops.fit does not train, got "
            f"{', '.join(options)}"
        )
    if user_features is not None and not any(hasattr(m, "user_features") for m in methods.values()):
        raise ValueError(f"user_features must be None for {', '.join(methods)}, got a table")
    check_one_directory(options, sum(not hasattr(one, "fit") for one in methods.values()))
    k = min(10, len(log.items))
    given = {"seed": seed, "progress": progress, **options}
    found: dict[str, Recommender] = {}
    scores: dict[str, Evaluation] = {}
    for place, (name, one) in enumerate(methods.items()):
        left = (until - monotonic()) / (len(methods) - place)  # for this method
        if found and left <= 0:
            break
        made = _trained(one, rest, held, left, given)
        found[name] = with_decay(made, held) if method is None else made
        read = held._replace(features=reads(found[name], held.features))
        scores[name] = scored(found[name], read, k)
    best, recommender = chosen_of(
        methods, found, scores, held, None if rest is log else log, user_features is None
    )
    models = {name: one.model for name, one in found.items() if method is None}
    decay = {name: one.decay for name, one in models.items() if hasattr(one, "decay")}
    if progress:
        _print(methods, scores, decay, k)
    about = {
        "data": fingerprint({name: getattr(log, name) for name in ("user", "item", "time")}),
        "events": len(log),
        "users": len(log.users),
        "items": len(log.items),
        "method": best,
        "validation": scores[best].figures(),
    }
    return Model(recommender, None, reader, about | ({"decay": decay} if decay else {}))


def _print(
    methods: dict[str, Any], scores: dict[str, Evaluation], decay: dict[str, float], k: int
) -> None:
    """Print what was tried, what was chosen, and the scores."""
    for name in [name for name in methods if name not in scores]:
        print(f"not tried, because no time was left: {name}")
    for name, value in decay.items():
        print(f"{name}: decay {value}, chosen by validation")
    print(f"validation, {len(next(iter(scores.values()))):,} users")
    print(table(scores, [f"{name}@{k}" for name in PRINTED]))


def recipe(count: int, left: float) -> dict[str, Any]:
    """The default options of `jaxops.fit` for a sequence module, chosen on Beauty.

    Batches of 4 packed rows, about 30 users, learn more in an epoch than larger batches. If they
    are too small to keep your device busy, give a larger `batch_size`.

    Args:
        count: number of packed rows; see `rows`.
        left: seconds until training stops.

    >>> recipe(5_395, 60.0)["batch_size"]
    4
    """
    batch = min(4, max(1, count // 20))
    return {
        "optimizer": optim.adam(1e-3),
        "batch_size": batch,
        "epochs": 200,
        "early_stopping": _stopping("ndcg@10", "max", -(-count // batch), left),
    }


def evaluate(
    model: Model,
    data: Source | Events,
    known: Source | Events | None = None,
    *,
    k: int = 10,
    exclude_seen: bool = True,
    user_features: Source | None = None,
) -> Evaluation:
    """Score a model on a log by the ranks of the items that users took next, among all items.

    Args:
        model: a model from `fit`.
        data: a log; see `fit`. The last item of each user with several is the target, and the items
            before it are the history. A target that is not in the catalogue counts as missed.
        known: a log of the earlier events. If it is given, all items of `data` are targets, and the
            items of `known` are the histories.
        k: length of a list.
        exclude_seen: leave the items of a user's history out of the ranking.
        user_features: for `TwoTower`, a table with the user column and a row for every user.

    Returns:
        "hr@10", "recall@10", "ndcg@10", "mrr@10", "map@10" and so on of each user; see
        `recommend.evaluated`. The units are the users with a target.

    Raises:
        ValueError: a log that the model cannot read, or without a target.

    >>> from jaxops import recommend
    >>> log = {"user": ["a", "b", "a", "b"], "item": ["x", "y", "y", "x"], "time": [1, 1, 2, 2]}
    >>> model = recommend.fit(log, recommend.Popularity(), progress=False)
    >>> evaluate(model, log, k=1).frame()[["user", "hr@1"]].values.tolist()
    [['a', 1.0], ['b', 1.0]]
    """
    held = reader_of(model).held(data, recommender_of(model).items, known, user_features)
    if user_features is None:
        held = held._replace(features=reads(model, held.features))
    return scored(recommender_of(model), held, k, exclude_seen)


def update(
    model: Model, new: Source | Events, item_features: Source | None = None, **options: Any
) -> Model:
    """Continue a model with new events; the indices of known items do not change.

    A closed form is updated as its class says. A sequence module is trained further on the new
    events only, for 5 epochs by default. Two towers take new items by their features, without
    training. In a blend each model is updated.

    Args:
        model: a model from `fit`.
        new: a log of only the new events; see `fit`.
        item_features: for `TwoTower`, a table with a row for every new item.
        **options: arguments of `jaxops.fit`, which replace those of `recipe`, for sequence modules.

    Raises:
        ValueError: a log that the model cannot read, or a model or arguments that do not fit.

    >>> from jaxops import recommend
    >>> log = {"user": ["a", "b", "a"], "item": ["x", "x", "y"], "time": [1, 2, 3]}
    >>> model = recommend.fit(log, recommend.Popularity(), progress=False)
    >>> model = update(model, {"user": list("cde"), "item": list("zzz"), "time": [4, 5, 6]})
    >>> model.predict([[]], k=2).ids()
    [['z', 'x']]
    """
    reader, old = reader_of(model), recommender_of(model)
    log = reader.events(new, old.items)
    methods = old.model.models if isinstance(old.model, Blend) else (old.model,)
    names = ", ".join(type(one).__name__ for one in methods)
    if options and not any(isinstance(one, SequenceModel) for one in methods):
        raise ValueError(
            f"options must be none for {names}, which is not trained further, got "
            f"{', '.join(options)}"
        )
    if item_features is not None and not any(isinstance(one, TwoTower) for one in methods):
        raise ValueError(f"item_features must be None for {names}, got a table")
    recommender = _updated(old, log, reader, item_features, options)
    columns = {name: getattr(log, name) for name in ("user", "item", "time")}
    about = {**model.about, "items": len(log.items), "updated with": fingerprint(columns)}
    return replace(model, task=recommender, about=about)


def _updated(
    old: Recommender,
    log: Events,
    reader: LogReader,
    item_features: Source | None,
    options: Mapping[str, Any],
) -> Recommender:
    """A recommender of any kind after new events."""
    method = old.model
    if isinstance(method, Blend):
        parts = [_updated(one, log, reader, item_features, options) for one in members_of(old)]
        together: Recommender = blend(parts, method.weights, method.temperatures)
        return together
    if isinstance(method, SequenceModel):
        return _trained_further(old, log, options)
    if isinstance(method, TwoTower):
        known = len(old.items)
        fresh = log.items[known:]
        columns = {name: column[known:] for name, column in log.item_features.items()}
        if item_features is not None:
            columns = features_of(item_features, reader.item, fresh)
        larger = two_tower_with_items(old, fresh, columns) if len(fresh) else old
        return replace(larger, counts=larger.counts + event_counts(log))
    return updated(old, log)


def reader_of(model: Model) -> LogReader:
    """The reader of a model.

    Raises:
        ValueError: the model belongs to another room, or has no reader.
    """
    reader: LogReader = inside(
        model, lambda part: isinstance(part, LogReader), "of recommend.fit, with a reader"
    )
    return reader


def _named(method: Any, log: Events) -> dict[str, Any]:
    """The methods to try, by name."""
    if method is not None:
        several = list(method) if isinstance(method, list | tuple) else [method]
        names = [type(one).__name__ for one in several]
        if not several:
            raise ValueError("method must be at least 1, got an empty list")
        for one in several:
            network = isinstance(one, TwoTower) or (
                isinstance(one, nn.Module) and hasattr(one, "config")
            )
            if isinstance(one, type) or not (network or hasattr(one, "fit")):
                given = f"the class {one.__name__}" if isinstance(one, type) else repr(one)[:60]
                raise ValueError(
                    "method must be a closed form such as EASE(), a sequence module such as "
                    f"sasrec(), or TwoTower(), got {given}"
                )
        if len(set(names)) < len(names):
            names = [f"{name} {i}" for i, name in enumerate(names, 1)]
        return dict(zip(names, several, strict=True))
    counts = np.sort(np.bincount(log.item, minlength=len(log.items)))[::-1]
    rare = 0 if len(counts) <= SOLVED else int(counts[SOLVED])
    ease = {"EASE": EASE(min_count=rare + 1)} if rare < counts[0] else {}
    pairs = min((np.bincount(log.user).astype(float) ** 2).sum(), float(len(counts)) ** 2)
    near = {"ItemKNN": ItemKNN(shrink=30.0, backward=0.5)} if pairs <= PAIRED else {}
    return {**ease, **near, "SASRec": sasrec(dropout=0.4)}


def _held_out(
    reader: LogReader, log: Events, validation: Any, user_features: Source | None, seed: int
) -> tuple[Events, Held]:
    """The events to train on, and the held-out targets."""
    if validation is None:
        later = _last(log, seed)
    elif isinstance(validation, int | float | np.floating):
        if not 0 < validation < 1:
            raise ValueError(f"validation must be a share in (0, 1), got {validation}")
        later = log.time >= log.time[-max(1, round(validation * len(log)))]
        if later.all():
            raise ValueError(
                f"validation must leave events to train on, got {validation} of {len(log):,} events"
            )
    else:
        return log, reader.held(validation, log.items, log, user_features)
    rest, targets = log.part(~later), log.part(later).histories()
    nobody = np.zeros(len(log.users), np.int64)
    return rest, Held(log.users, rest.histories(), targets, nobody, log.user_features or None)


def _last(log: Events, seed: int) -> np.ndarray:
    """The events to hold out: the last ones of some users, as a mask."""
    order = np.argsort(log.user, kind="stable")
    counts = np.bincount(log.user, minlength=len(log.users))
    most = counts.max()
    if most < 2:
        raise ValueError(
            "data must hold a user with at least 2 events to validate by, got at most 1 per user; "
            "or give validation, a log of later events"
        )
    users = np.flatnonzero(counts >= min(3, most))
    drawn = np.random.default_rng(whole("seed", seed, 0)).permutation(users)[:VALIDATED]
    later = np.zeros(len(log), bool)
    later[order[np.cumsum(counts)[drawn] - 1]] = True
    return later


def _trained(
    method: Any, log: Events, held: Held, left: float, options: Mapping[str, Any]
) -> Recommender:
    """The recommender of a method, trained in the seconds left with `options` of `jaxops.fit`."""
    if isinstance(method, TwoTower):
        return _two_towers(method, log, held, left, options)
    if hasattr(method, "fit"):
        return fitted(method, log)
    items = len(log.items)
    if method.config.vocabulary - 1 not in (0, items):
        raise ValueError(
            f"method must have {items:,} items, as the log, or 0 for automatic, got "
            f"{method.config.vocabulary - 1:,}"
        )
    module = method.clone(config=replace(method.config, vocabulary=items + 1))
    task, columns, length = _sequences(module, log)
    defaults = recipe(len(columns["items"]), left)
    validation = held_out(held.histories, held.targets, length)
    state = train(task, columns, **chosen({**defaults, "validation": validation}, dict(options)))
    return sequence_recommender(module, state, log)


def _sequences(module: Any, log: Events) -> tuple[Any, dict[str, np.ndarray], int]:
    """The task of a sequence module, the packed histories of a log, and a row's length."""
    causal = int(module.config.causal)
    length = module.config.context + causal
    task = next_item(module) if causal else masked_item(module)
    return task, rows(log.histories(), length, overlap=causal), length


def _two_towers(
    method: TwoTower, log: Events, held: Held, left: float, options: Mapping[str, Any]
) -> Recommender:
    own = TwoTower.fitted(log)
    features = {n: getattr(own, n) for n in ("item_features", "user_features", "known")}
    towers = replace(method, **features)
    users = np.flatnonzero(held.targets.lengths)
    validation = {
        "item": held.targets.items[held.targets.starts[users]],
        "history": held.histories.rows(users, towers.context, len(log.items)),
    }
    if towers.user_features.names:
        every = towers.user_features.read(held.features or {}, len(held.users))
        validation |= {name: values[users] for name, values in every.items()}
    batch = min(512, max(2, len(log) // 20))
    defaults = {
        "optimizer": optim.adamw(2e-3, weight_decay=1e-3),
        "batch_size": batch,
        "epochs": 200,
        "early_stopping": _stopping("loss", "min", -(-len(log) // batch), left),
        "validation": validation,
    }
    state = train(retrieval(towers, log), towers.rows(log), **chosen(defaults, dict(options)))
    return two_tower_recommender(towers, state, log)


def _stopping(metric: str, mode: str, steps: int, left: float) -> EarlyStopping:
    """Early stopping after 1,000 steps without an improvement, in epochs of `steps` steps."""
    return EarlyStopping(metric, max(3, 1000 // steps), mode, seconds=left)


def _trained_further(old: Recommender, log: Events, options: Mapping[str, Any]) -> Recommender:
    module, state = sequence_with_items(old, len(log.items))
    task, columns, _ = _sequences(module, log)
    state = jax.tree.map(jnp.copy, state)  # training donates the arrays of its first state
    defaults = recipe(len(columns["items"]), np.inf) | {"early_stopping": None, "epochs": 5}
    state = train(task, columns, state=state, **chosen(defaults, dict(options)))
    return sequence_recommender(module, state, log, old)
