"""Seconds of iALS beside the `implicit` package, and of EASE beside NumPy's inverse.

    python -m benchmarks.recommend_als [--forms als exact ease] [--rounds 3]

The log is generated: events of 100,000 users with 20,000 items of power-law popularity, each pair
once. `implicit` (0.7.3 is what was measured; not a dependency of jaxops) is given its matrix
ready, with all its threads; jaxops is given the log. Both minimise the same loss: what `implicit`
calls confidence c and regularisation r is here `unobserved` 1 / (c - 1) and `l2` r / c, its factors
being larger by sqrt(c / (c - 1)). The sides take turns; each line has the median of the rounds,
and the loss that was reached, computed alike for both, with the users solved exactly for the items.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.recommend import EASE, IALS, Events
from jaxops.recommend.data.counts import interactions
from jaxops.recommend.models.ials import Blocks, by_length

CONFIDENCE = 11.0
REGULARISATION = 1.1


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    forms: tuple[Literal["als", "exact", "ease"], ...] = ("als", "exact", "ease")
    users: int = 100_000
    items: int = 20_000
    events: int = 3_000_000
    ease_items: int = 10_000
    factors: int = 64
    sweeps: int = 5
    rounds: int = 3
    threads: int = 0  # of implicit; 0 is all


def generated(users: int, items: int, events: int, seed: int = 0) -> Events:
    """About so many events, each pair once; histories of log-normal lengths."""
    rng = np.random.default_rng(seed)
    activity = np.cumsum(rng.lognormal(0, 1, users))
    popularity = np.cumsum(1 / np.arange(10, items + 10) ** 0.9)
    drawn = int(events * 1.25)
    user = np.searchsorted(activity, rng.random(drawn) * activity[-1]).astype(np.int64)
    item = np.searchsorted(popularity, rng.random(drawn) * popularity[-1])
    pair = np.unique(user * items + item)
    pair = rng.permutation(pair)[:events]
    user, item = (column.astype(np.int32) for column in np.divmod(pair, items))
    names = np.arange(users).astype(str), np.arange(items).astype(str)
    return Events(user, item, np.arange(len(pair)), np.ones(len(pair), np.float32), *names)


def turns(forms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, tuple[list[float], Any]]:
    """The seconds of each form in each round, and what it gave last."""
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    results = {}
    for _ in range(rounds):
        for name, form in forms.items():
            start = time.perf_counter()
            results[name] = jax.block_until_ready(form())
            seconds[name].append(time.perf_counter() - start)
    return {name: (seconds[name], results[name]) for name in forms}


def loss(model: IALS, log: Any, items: Any) -> float:
    """What iALS minimises, at the best users for these items, in float64."""
    log, order = by_length(log)
    items = np.asarray(items)[order]
    blocks = Blocks.of(log)
    exact = replace(model, steps=None)
    empty = jnp.zeros((log.shape[0], model.factors))
    table = jnp.asarray(items)
    users, _ = exact.sweep(empty, table, blocks, Blocks(0, []), exact.nothing())
    x, y = np.asarray(users, np.float64), np.asarray(items, np.float64)
    row, column = log.nonzero()
    total = model.unobserved * ((x.T @ x) * (y.T @ y)).sum() + model.l2 * (
        (x**2).sum() + (y**2).sum()
    )
    for start in range(0, len(row), 1 << 18):
        part = slice(start, start + (1 << 18))
        total += ((1 - (x[row[part]] * y[column[part]]).sum(1)) ** 2).sum()
    return float(total)


def als(settings: Settings, exact: bool) -> None:
    """Print seconds and loss of both, by conjugate gradients or by Cholesky factors."""
    from implicit.cpu.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    events = generated(settings.users, settings.items, settings.events)
    log = interactions(events)
    matrix = csr_matrix(log)
    model = IALS(
        factors=settings.factors,
        l2=REGULARISATION / CONFIDENCE,
        unobserved=1 / (CONFIDENCE - 1),
        frequency=0.0,
        sweeps=settings.sweeps,
        steps=None if exact else 3,
    )

    def theirs() -> np.ndarray:
        with threadpool_limits(1, "blas"):  # as implicit asks for: its threads are its own
            other = AlternatingLeastSquares(
                settings.factors,
                regularization=REGULARISATION,
                alpha=CONFIDENCE,
                iterations=settings.sweeps,
                use_cg=not exact,
                num_threads=settings.threads,
                random_state=0,
            )
            other.fit(matrix, show_progress=False)
        return np.asarray(other.item_factors) / np.sqrt(CONFIDENCE / (CONFIDENCE - 1))

    def ours() -> Any:
        return model.fit(events)["items"]

    start = time.perf_counter()
    ours()
    first = time.perf_counter() - start
    kind = "Cholesky" if exact else "3 steps of conjugate gradients"
    print(f"{len(events):,} events, {settings.factors} factors, {settings.sweeps} sweeps, {kind}")
    for name, (seconds, items) in turns(
        {"jaxops": ours, "implicit": theirs}, settings.rounds
    ).items():
        rest = f", {first:.1f} s with compilation" if name == "jaxops" else ""
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        value = loss(model, log, items)
        print(f"{name:9} {median(seconds):.2f} s ({spread}){rest}; loss {value:,.0f}", flush=True)


def ease(settings: Settings) -> None:
    """Print the seconds of EASE, and of NumPy's inverse of the same matrix alone."""
    events = generated(settings.users, settings.ease_items, settings.events // 3)
    model = EASE(l2=200.0)
    start = time.perf_counter()
    gram = model.fit(events)["gram"]
    first = time.perf_counter() - start
    plain = gram + 200 * np.eye(len(gram), dtype=np.float32)
    forms = {
        "jaxops, from the log": lambda: model.fit(events)["weights"],
        "numpy.linalg.inv": lambda: np.linalg.inv(plain),
    }
    print(f"EASE, {len(events):,} events, {len(gram):,} items ({first:.1f} s with compilation)")
    for name, (seconds, _) in turns(forms, 1).items():
        print(f"{name:20} {median(seconds):.1f} s", flush=True)


def main(settings: Settings) -> None:
    """Print one block a form."""
    for form in settings.forms:
        if form == "ease":
            ease(settings)
        else:
            als(settings, exact=form == "exact")


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
