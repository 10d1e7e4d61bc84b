"""From demand to orders: what forecasts and policies cost in money, on generated sales.

400 items are sold daily. Their demand is negative binomial around a level that follows a random
walk, times a weekly pattern of the item, a yearly season, and promotions, which are planned ahead
and whose effect differs by item; a quarter of the items sell on few days only (zero-inflated).
Orders arrive after two days. Demand that cannot be met is lost, at a margin of the item's own (the
newsvendor's quantile is 0.75 to 0.96). The last 120 days are the test: each policy is simulated day
by day with its own orders.

Forecast and learned policy see the same inputs: the last 28 days, promotions and weekdays ahead,
season, and the item's averages. The forecast is TiDE's, of the quantiles of the next three days,
and `rule` orders up to the quantile of their sum that the costs call for. `learned` is a perceptron
of the same width, trained by the gradient of the cost through the simulator. `mean` orders up to
the sum of the same forecast's means: accurate, but it ignores the costs. `safety` adds a safety
stock computed from the item's errors on the days before the test. `naive` orders up to last week's
demand on the same days. `hindsight` knows all demand: with linear costs, only the days that no
order can reach cost money. The correlation between days that `rule` assumes was chosen on 60 days
before the test. Costs are per item and day, intervals over items (BCa).

Expected over three seeds (each with its own demand): learned 4.32 +- 0.05, rule 4.55 +- 0.13,
safety 4.83, mean 5.59, naive 7.74, hindsight 0.15; learned minus rule -0.23, with a mean interval
of -0.36 to -0.12. Two and a quarter minutes on two shared cores.

    python -m experiments.demand_to_orders [--seeds 3]
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxops as jo
from experiments import common
from jaxops import decide
from jaxops.forecast import Quantiles, Series, TiDE, direct, from_arrays, origins, scaling
from jaxops.trust import report
from jaxops.trust.intervals import interval, paired

PUBLISHED = {"cost_learned": "no publication: the demand is generated, see `hindsight`"}
LEVELS = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.975)
LOOK_BACK, LEAD_TIME = 28, 2
BEFORE = 56  # days of demand before the first that is ordered for
HORIZON = LEAD_TIME + 1


@dataclass(frozen=True)
class Settings(common.Settings):
    """The demand and the networks."""

    items: int = 400
    train: int = 420
    validation: int = 60
    test: int = 120
    segment: int = 60
    """days that the learned policy is simulated for in training"""
    hidden: int = 64
    forecast_epochs: int = 8
    policy_epochs: int = 60
    learning_rate: float = 2e-3


class World(NamedTuple):
    """What is known of N items over T days.

    Attributes:
        series: all demand, from BEFORE days before the first; promotions and calendar are `known`.
        demand: (N, T).
        promotion: (N, T) 0 or 1, known ahead.
        features: (N, T, F), of each day as they are known in its morning.
        usual: (N,) mean demand of a day of the training.
        costs: of lost sales, (N,) each.
        naive: (N, T) last week's demand of this day and the next two.
    """

    series: Series
    demand: np.ndarray
    promotion: np.ndarray
    features: np.ndarray
    usual: np.ndarray
    costs: decide.Costs
    naive: np.ndarray

    def days(self, start: int, stop: int) -> "World":
        """The same items, some of the days."""
        cut = lambda rows: rows[:, start:stop]  # noqa: E731
        return self._replace(
            demand=cut(self.demand),
            promotion=cut(self.promotion),
            features=cut(self.features),
            naive=cut(self.naive),
        )


def generate(settings: Settings, seed: int) -> World:
    rng = np.random.default_rng(seed)
    n = settings.items
    days = BEFORE + settings.train + settings.validation + settings.test + HORIZON
    day = np.arange(days)
    level = np.zeros((n, days))
    for t in range(1, days):
        level[:, t] = 0.98 * level[:, t - 1] + rng.normal(0, 0.05, n)
    week = rng.normal(0, 0.3, (n, 7)) + 0.4 * np.isin(np.arange(7), (4, 5))
    season = rng.uniform(0, 0.4, (n, 1)) * np.sin(
        2 * np.pi * (day + rng.integers(0, 365, (n, 1))) / 365
    )
    begins = rng.random((n, days)) < 1 / 40
    promotion = np.stack([np.convolve(row, np.ones(5))[:days] > 0 for row in begins])
    lift = rng.uniform(0.2, 1.3, (n, 1))
    usual = rng.lognormal(1.8, 0.8, (n, 1))
    mean = usual * np.exp(level + week[:, day % 7] + season + lift * promotion)
    size = rng.uniform(1.5, 10, (n, 1))
    demand = rng.negative_binomial(size, size / (size + mean)).astype(np.float32)
    few = np.where(rng.random((n, 1)) < 0.25, rng.uniform(0.15, 0.5, (n, 1)), 1)
    demand *= rng.random((n, days)) < few
    worth = rng.lognormal(1, 0.5, n)
    costs = decide.Costs(0.05 * worth, worth * rng.uniform(0.15, 1.2, n))
    return described(demand, promotion.astype(np.float32), costs, settings.train)


def described(demand: np.ndarray, promotion: np.ndarray, costs: decide.Costs, train: int) -> World:
    """The features of each day after the first BEFORE, of what is known in its morning."""
    stop = demand.shape[1] - HORIZON
    before, shape = BEFORE, (len(demand), stop - BEFORE)
    learned = slice(before, before + train)
    past, promoted = demand[:, learned], promotion[:, learned] > 0
    usual = np.maximum(past.mean(1), 0.05)
    on = np.where(promoted, past, 0).sum(1) / np.maximum(promoted.sum(1), 1)
    off = np.where(promoted, 0, past).sum(1) / np.maximum((~promoted).sum(1), 1)
    habits = [
        np.log(usual),
        np.log((on + usual / 4) / (off + usual / 4)),
        np.log(past.var(1) / usual + 0.1),
        (past == 0).mean(1),
        np.log(costs.shortage / costs.holding),
    ]
    scaled = demand / usual[:, None]
    back = np.lib.stride_tricks.sliding_window_view(scaled, before, axis=1)[:, : stop - before]
    ahead = np.lib.stride_tricks.sliding_window_view(promotion, HORIZON, axis=1)[:, before:stop]
    recent = np.lib.stride_tricks.sliding_window_view(promotion, 7, axis=1)[
        :, before - 7 : stop - 7
    ]
    day = np.arange(demand.shape[1])
    angle = 2 * np.pi * day / 365
    calendar = np.column_stack([np.eye(7)[day % 7], np.sin(angle), np.cos(angle)])
    parts = [
        np.minimum(back[..., -LOOK_BACK:], 8),
        back[..., -7:].mean(-1)[..., None],
        back.mean(-1)[..., None],
        (back == 0).mean(-1)[..., None],
        recent,
        ahead,
        np.broadcast_to(calendar[None, before:stop], (*shape, 9)),
        np.broadcast_to(np.stack(habits, -1)[:, None], (*shape, len(habits))),
    ]
    weekday = [demand[:, before - 7 + i : stop - 7 + i] for i in range(HORIZON)]
    seasons = (*(f"weekday {i}" for i in range(7)), "sine", "cosine")
    series = from_arrays(
        [f"item {i}" for i in range(len(demand))],
        demand,
        known={
            "promotion": promotion,
            **{k: [x] * len(demand) for k, x in zip(seasons, calendar.T, strict=True)},
        },
        past={"none sold": demand == 0},
        static=dict(zip(("usual", "lift", "variance", "zeros", "shortage"), habits, strict=True)),
    )
    return World(
        series,
        demand[:, before:stop],
        promotion[:, before:stop],
        np.concatenate(parts, -1).astype(np.float32),
        usual.astype(np.float32),
        costs,
        np.sum(weekday, 0),
    )


def forecast(settings: Settings, world: World, seed: int, folder: Path) -> np.ndarray:
    """(N, T, HORIZON, Q) quantiles of demand, made in the morning of each day for it and on."""
    sizes: dict[str, Any] = {"dropout": 0.1}
    if settings.smoke:
        sizes = {"dropout": 0.0, "encoder": 0, "decoder": 1}  # the fewest layers
    network = TiDE(
        LOOK_BACK,
        HORIZON,
        Quantiles(LEVELS),
        instance_norm="none",
        width=settings.hidden,
        temporal=settings.hidden,
        **sizes,
    )

    def windows(stop: int) -> Any:
        rows = world.series.offsets[:-1, None] + [[BEFORE, BEFORE + stop]]
        return origins(world.series, LOOK_BACK, HORIZON, rows)

    training = world.series.offsets[:-1, None] + [[0, BEFORE + settings.train]]
    known = scaling(world.series, rows=training)
    task = direct(network, world.series, known)
    log = common.Log(folder, settings.resume)
    state = jo.fit(
        task,
        windows(settings.train),
        optimizer=jo.optim.adamw(settings.learning_rate, weight_decay=1e-3),
        batch_size=512,
        epochs=settings.forecast_epochs,
        seed=seed,
        checkpoints=folder / "checkpoints",
        reports=log,
    )
    report.plot_curves(log.records, folder / "curves.png")
    quantiles = jo.predict(task, state, windows(world.demand.shape[1] + LEAD_TIME))[:, :, 0]
    return np.maximum(quantiles.reshape(settings.items, -1, HORIZON, len(LEVELS)), 0)


def learned(settings: Settings, world: World, seed: int, folder: Path) -> np.ndarray:
    """(N, T) levels to order up to, of a network trained on money."""
    depth = 1 if settings.smoke else 2
    task = decide.ordering(decide.LevelNetwork((settings.hidden,) * depth), LEAD_TIME)
    whole = rows(world)
    parts = [
        rows(world.days(start, start + settings.segment))
        for start in range(0, settings.train - settings.segment + 1, settings.segment)
    ]
    log = common.Log(folder, settings.resume)
    state = jo.fit(
        task,
        {name: np.concatenate([part[name] for part in parts]) for name in whole},
        optimizer=jo.optim.adamw(settings.learning_rate, weight_decay=1e-3),
        batch_size=64,
        epochs=settings.policy_epochs,
        seed=seed,
        checkpoints=folder / "checkpoints",
        reports=log,
    )
    report.plot_curves(log.records, folder / "curves.png")
    return np.asarray(jax.jit(task.predict)(state.params, {}, whole))


def rows(world: World) -> dict[str, np.ndarray]:
    """Columns of `decide.ordering`."""
    return {
        "demand": world.demand,
        "features": world.features,
        "scale": HORIZON * world.usual,
        "stock": HORIZON * world.usual,
        **world.costs.columns(len(world.usual)),
    }


def play(world: World, levels: np.ndarray) -> decide.Trajectory:
    """What ordering up to these levels (N, T) did."""
    return decide.simulate(
        decide.order_up_to,
        None,
        world.demand,
        levels[..., None],
        costs=world.costs,
        lead_time=LEAD_TIME,
        stock=HORIZON * world.usual,
    )


def rule(world: World, quantiles: np.ndarray, correlation: float) -> np.ndarray:
    h, p = (np.broadcast_to(c[:, None], quantiles.shape[:2]) for c in world.costs[:2])
    return np.asarray(decide.quantile_rule(LEVELS, quantiles, h, p, correlation))


def policies(
    settings: Settings, world: World, quantiles: np.ndarray
) -> tuple[dict[str, np.ndarray], float]:
    """Levels (N, T) of everything that needs a forecast or less, and the correlation chosen."""
    start, stop = settings.train, settings.train + settings.validation
    held = world.days(start, stop)
    tried = {
        c: float(play(held, rule(held, quantiles[:, start:stop], c)).cost.mean())
        for c in (0.0, 0.2, 0.4, 0.7, 1.0)
    }
    correlation = min(tried, key=tried.__getitem__)
    costs = ", ".join(f"{cost:.4f} at {c}" for c, cost in tried.items())
    common.say(f"cost of correlations before the test: {costs}")
    mean = np.asarray(Quantiles(LEVELS).mean(jnp.asarray(quantiles))).sum(-1)
    total = np.lib.stride_tricks.sliding_window_view(world.demand, HORIZON, axis=1).sum(-1)
    errors = total[:, start : stop - LEAD_TIME] - mean[:, start : stop - LEAD_TIME]
    ratio = world.costs.shortage / (world.costs.holding + world.costs.shortage)
    extra = [np.quantile(row, share) for row, share in zip(errors, ratio, strict=True)]
    return {
        "rule": rule(world, quantiles, correlation),
        "safety": np.maximum(mean + np.array(extra)[:, None], 0),
        "mean": mean,
        "naive": world.naive,
    }, correlation


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Train forecast and policy; play all policies on the days of the test."""
    if settings.smoke:
        settings = replace(settings, items=40, train=120, validation=30, test=30, segment=30)
        settings = replace(settings, forecast_epochs=2, policy_epochs=3, hidden=16)
    world = generate(settings, seed)
    quantiles = forecast(settings, world, seed, folder / "forecast")
    levels, correlation = policies(settings, world, quantiles)
    levels["learned"] = learned(settings, world, seed, folder / "policy")
    start = settings.train + settings.validation
    test = world.days(start, start + settings.test)
    played = {
        name: play(test, rows[:, start:][:, : settings.test]) for name, rows in levels.items()
    }
    costs = {name: np.asarray(t.cost.mean(1), np.float64) for name, t in played.items()}
    known = decide.hindsight(
        test.demand, costs=test.costs, lead_time=LEAD_TIME, stock=HORIZON * test.usual
    )
    costs["hindsight"] = np.asarray(known, np.float64) / settings.test
    models = {}
    for name, cost in costs.items():
        bounds = interval(cost)
        models[name] = {"cost": bounds.mean, "low": bounds.low, "high": bounds.high}
        if name in played:
            sold = float(played[name].sales.sum() / test.demand.sum())
            models[name] |= {"sold": sold, "stock": float(played[name].stock.mean())}
    seen = quantiles[:, start : start + settings.test, 0]
    inside = (test.demand >= seen[..., 1]) & (test.demand <= seen[..., 5])
    values = {f"cost_{name}": row["cost"] for name, row in models.items()}
    values |= {"coverage_10_90": float(inside.mean()), "correlation": correlation}
    for name in ("rule", "safety", "mean", "naive"):
        less = paired(costs["learned"], costs[name])
        ends = {"": less.difference, "_low": less.low, "_high": less.high, "_p": less.p}
        values |= {f"learned_less_{name}{end}": value for end, value in ends.items()}
        common.say(f"learned less {name}: {less}")
    picture(test, seen, played, models, folder / "orders.png")
    return values | {"models": models}


def picture(
    test: World,
    quantiles: np.ndarray,
    played: dict[str, decide.Trajectory],
    models: dict[str, dict[str, float]],
    path: Path,
) -> None:
    """One item's forecast fan, orders and stock, and what all items cost."""
    from matplotlib.figure import Figure

    promoted = (test.promotion.sum(1) > 0) & (test.usual > np.median(test.usual))
    item = int(np.argmax(promoted))
    day = np.arange(test.demand.shape[1])
    figure = Figure(figsize=(9, 11), layout="constrained")
    fan, orders, stock, money = figure.subplots(4)
    for low, high, shade in ((1, 5, 0.2), (2, 4, 0.3)):
        label = f"{LEVELS[low]:.0%} to {LEVELS[high]:.0%}"
        band = quantiles[item, :, low], quantiles[item, :, high]
        fan.fill_between(day, *band, alpha=shade, color="C0", lw=0, label=label)
    fan.plot(day, test.demand[item], "k.", ms=4, label="demand")
    fan.set_title("One item: the morning's forecast of the day; promotions shaded")
    for name, side in (("rule", -0.2), ("learned", 0.2)):
        orders.bar(day + side, played[name].orders[item], 0.4, label=name)
        stock.plot(day, played[name].stock[item], drawstyle="steps-post", label=name)
    orders.set_title("Orders, which arrive two days later")
    stock.set_title("Stock at the end of the day")
    for axis in (fan, orders, stock):
        for t in day[test.promotion[item] > 0]:
            axis.axvspan(t - 0.5, t + 0.5, color="C1", alpha=0.12, lw=0)
        axis.set_xlim(-1, len(day))
        axis.set_ylabel("units")
        axis.legend(loc="upper right", ncols=3, fontsize=8)
    stock.set_xlabel("day of the test")
    names = sorted(models, key=lambda name: models[name]["cost"])
    center = np.array([models[name]["cost"] for name in names])
    ends = np.array([[models[name]["low"], models[name]["high"]] for name in names]).T
    money.barh(names, center, xerr=np.abs(ends - center[None]), color="C0", alpha=0.7, capsize=3)
    money.invert_yaxis()
    money.set_xlabel("cost of an item and day, with 95 % intervals over items")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    common.experiment("demand_to_orders", Settings, run, PUBLISHED)
