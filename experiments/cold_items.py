"""New items for new users: a two-tower model on generated data.

How the log is generated: a style is a point on a sphere of 8 dimensions. An item's style is the sum
of one for its category (of 30), one for its brand (of 80), one that depends smoothly on its two
numbers (price, age group), and a part of its own that no feature shows. A user's style has a part
for their segment (of 6), which is a feature, and a larger part of their own, which only their
history shows. They take an item with probability softmax(sharpness * style . style + popularity),
where popularity follows Zipf's law and is independent of the features.

3,000 users take 20 items each of 2,000 items. Another 1,000 users come later: 20 such events are
known of each, and they now take 5 of 500 new items, which are not popular yet. `recall@10` is the
share of these 5 among the first 10 of the 500; `share_of_new` is the share of new items, a fifth
of all, among the first 10 of all 2,500. The two-tower model is compared with: one without the
items' own embeddings; one without the log-q correction; one without the users' features; new items
ranked by the popularity of their category and brand; a random order; and `ceiling`, ranking by the
true styles. The recipe was chosen on seed 100.

Expected over three seeds: recall@10 0.330, from features alone 0.316, by popularity 0.048, at
random 0.019, ceiling 0.495. Without the correction it is 0.335, without the users' features 0.332:
neither matters here, because new items have no popularity and histories are informative enough.

    python -m experiments.cold_items [--seeds 3]
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxops as jo
from experiments import common
from jaxops import recommend
from jaxops.trust import report

PUBLISHED = {"recall@10": "no publication: the log is generated, see `ceiling`"}
STYLE = 8


@dataclass(frozen=True)
class Settings(common.Settings):
    """The log and the network."""

    users: int = 3000
    later_users: int = 1000
    items: int = 2000
    new_items: int = 500
    events: int = 20
    """of a user"""
    sharpness: float = 8.0
    width: int = 64
    batch_size: int = 512
    epochs: int = 5
    learning_rate: float = 2e-3
    temperature: float = 0.1


class World(NamedTuple):
    """The log, and what is behind it.

    Attributes:
        events: of the users who are learned from.
        histories: (U, L) of the later users.
        users: their columns.
        taken: (U, 5) of the new items.
        names: the new items' ids.
        columns: the new items' columns.
        truth: (U, new items) how well the styles fit.
    """

    events: recommend.Events
    histories: np.ndarray
    users: dict[str, np.ndarray]
    taken: np.ndarray
    names: np.ndarray
    columns: dict[str, np.ndarray]
    truth: np.ndarray


def sphere(random: np.random.Generator, count: int) -> np.ndarray:
    x = random.normal(size=(count, STYLE))
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draw(random: np.random.Generator, logits: np.ndarray, count: int) -> np.ndarray:
    """Different items for each row, one after the other: Gumbel's noise, and the largest."""
    noisy = logits + random.gumbel(size=logits.shape)
    return np.argsort(-noisy, axis=1)[:, :count].astype(np.int32)


def generate(settings: Settings, seed: int) -> World:
    random = np.random.default_rng(seed)
    count = settings.items + settings.new_items
    category, brand = random.integers(0, 30, count), random.integers(0, 80, count)
    price, age = random.uniform(0, 1, (2, count))
    planes = sphere(random, 4)
    turned = sum(
        np.cos(np.pi * x)[:, None] * planes[i][None] + np.sin(np.pi * x)[:, None] * planes[i + 1]
        for x, i in ((price, 0), (age, 2))
    )
    styles = sphere(random, 30)[category] + 0.7 * sphere(random, 80)[brand] + 0.5 * turned
    styles = styles + 0.3 * sphere(random, count)
    styles /= np.linalg.norm(styles, axis=1, keepdims=True)
    columns = {
        "category": np.char.add("category ", category.astype(str)),
        "brand": np.char.add("brand ", brand.astype(str)),
        "price": np.exp(1 + 3 * price),
        "age": 80 * age,
    }
    people = settings.users + settings.later_users
    segment = random.integers(0, 6, people)
    tastes = 0.7 * sphere(random, 6)[segment] + sphere(random, people)
    fits = settings.sharpness * tastes @ styles.T
    rank = 1 + random.permutation(settings.items)
    taken = draw(random, fits[:, : settings.items] - 0.8 * np.log(rank)[None], settings.events)
    first, names = settings.users, np.char.add("item ", np.arange(count).astype(str))
    user = np.repeat(np.arange(first, dtype=np.int32), settings.events)
    segments = {"segment": np.char.add("segment ", segment.astype(str))}
    events = recommend.Events(
        user=user,
        item=taken[:first].ravel(),
        time=np.arange(len(user)),
        weight=np.ones(len(user), np.float32),
        users=np.arange(first).astype(str),
        items=names[: settings.items],
        user_features={name: values[:first] for name, values in segments.items()},
        item_features={name: values[: settings.items] for name, values in columns.items()},
    )
    later = fits[first:, settings.items :]
    return World(
        events,
        taken[first:],
        {name: values[first:] for name, values in segments.items()},
        draw(random, later, 5),
        names[settings.items :],
        {name: values[settings.items :] for name, values in columns.items()},
        later,
    )


def recall(ranked: np.ndarray, taken: np.ndarray) -> float:
    """The mean share of `taken` (U, 5) that is in `ranked` (U, 10)."""
    return float((ranked[:, :, None] == taken[:, None]).any(1).mean())


def best(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :10]


def popularity(world: World) -> np.ndarray:
    """(new items,) how often an item of the category, and one of the brand, was taken."""
    known, total = world.events.item_features, np.zeros(len(world.names))
    times = np.bincount(world.events.item, minlength=len(world.events.items))
    for name in ("category", "brand"):
        values, place = np.unique(known[name], return_inverse=True)
        mean = np.bincount(place, times) / np.bincount(place)
        by_value = dict(zip(values.tolist(), mean.tolist(), strict=True))
        total += [np.log(by_value.get(value, times.mean())) for value in world.columns[name]]
    return total


def rank(model: recommend.Recommender, world: World, users: bool) -> dict[str, float]:
    """Recall of the new items, alone and among all; what the history has is left out."""
    old = len(world.events.items)
    more = recommend.two_tower_with_items(model, world.names, world.columns)
    count, length = world.histories.shape
    known = recommend.Histories(world.histories.ravel(), np.arange(count + 1) * length)
    features = world.users if users else None
    alone = recommend.recommend(more, known, k=10, allow=world.names, user_features=features)
    among = recommend.recommend(more, known, k=10, user_features=features)
    return {
        "recall@10": recall(alone.places - old, world.taken),
        "share_of_new": float((among.places >= old).mean()),
    }


def train(
    settings: Settings, world: World, seed: int, folder: Path, ids: bool = True, log_q: bool = True
) -> recommend.Recommender:
    sizes: dict[str, Any] = {"width": settings.width, "temperature": settings.temperature}
    if settings.smoke:
        sizes["widths"] = ()
    model = recommend.TwoTower.fitted(world.events, ids, **sizes)
    task = recommend.retrieval(model, world.events)
    if not log_q:
        task = without_log_q(task)
    log = common.Log(folder, settings.resume)
    state = jo.fit(
        task,
        model.rows(world.events),
        optimizer=jo.optim.adamw(settings.learning_rate, weight_decay=1e-3),
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=seed,
        checkpoints=folder / "checkpoints",
        reports=log,
    )
    report.plot_curves(log.records, folder / "curves.png")
    return recommend.two_tower_recommender(model, state, world.events)


def without_log_q(task: jo.Task) -> jo.Task:
    """As if all items were drawn alike."""

    def init(key: Any, batch: Any) -> Any:
        params, extra = task.init(key, batch)
        even = np.full(len(extra["log_q"]), -np.log(len(extra["log_q"])), np.float32)
        return params, {**extra, "log_q": jnp.asarray(even)}

    return task._replace(init=init)


def run(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train three forms, in a smoke test two; rank the new items."""
    if settings.smoke:
        settings = replace(
            settings, users=200, later_users=50, items=150, new_items=60, epochs=2, batch_size=64
        )
    world = generate(settings, seed)
    whole = train(settings, world, seed, folder / "two_tower")
    values = rank(whole, world, users=True)
    values |= {f"{n}_no_user_features": v for n, v in rank(whole, world, users=False).items()}
    others = {"features_alone": {"ids": False}, "no_log_q": {"log_q": False}}
    if settings.smoke:  # both changes in one training
        others = {"features_alone": {"ids": False, "log_q": False}}
    for name, changes in others.items():
        other = train(settings, world, seed, folder / name, **changes)
        values |= {f"{n}_{name}": v for n, v in rank(other, world, users=True).items()}
    by_popularity = np.broadcast_to(popularity(world), world.truth.shape)
    chance = np.random.default_rng(seed).random(world.truth.shape)
    rows = {"popularity": by_popularity, "random": chance, "ceiling": world.truth}
    values |= {f"recall@10_{name}": recall(best(s), world.taken) for name, s in rows.items()}
    print(report.table([{"ranking": name, "recall": f"{v:.3f}"} for name, v in values.items()]))
    return values


if __name__ == "__main__":
    common.experiment("cold_items", Settings, run, PUBLISHED)
