"""Seconds of 10,000 newsvendor, base-stock and (s, S) problems at once, beside a loop of stockpyl.

    python -m benchmarks.newsvendor --python PATH/TO/OTHER/bin/python [--json FILE]

`stockpyl` (1.0.2 is what was measured; not a dependency of jaxops) wants NumPy below 2, so it runs
in an environment of its own, whose Python is named. It solves one problem after the other, as it is
made to do; where that would take many minutes it solves the first `counts` of the same problems,
and its seconds are taken in proportion. The sides take turns; each line has the medians of the
rounds with their spread, compilation apart, and by how much the answers differ. Ours includes
everything from NumPy arrays to NumPy arrays.
"""

import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np

from jaxops.decide import newsvendor_normal, newsvendor_poisson, s_s_poisson

LOOP = Path(__file__).parent / "stockpyl_loop.py"


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    python: Path
    """of an environment with stockpyl"""
    problems: int = 10_000
    counts: tuple[int, int, int, int] = (10_000, 10_000, 1000, 50)
    """of the problems, what stockpyl solves: normal, base stock, Poisson, (s, S)"""
    lead_time: int = 4
    rounds: int = 3
    json: Path | None = None
    """where to write the figures, if anywhere"""


def drawn(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Problems of many kinds: service levels of 0.5 to 0.98, means of 5 to 60."""
    rng = np.random.default_rng(seed)
    h, mean = rng.uniform(0.5, 2, count), rng.uniform(5, 60, count)
    return {
        "h": h,
        "p": h * rng.uniform(1, 50, count),
        "mean": mean,
        "sd": mean * rng.uniform(0.1, 0.4, count),
        "fixed": h * rng.uniform(50, 500, count),
    }


def ours(given: dict[str, np.ndarray], lead_time: int) -> dict[str, Callable[[], Any]]:
    h, p, mean, sd, fixed = given.values()
    return {
        "normal": lambda: newsvendor_normal(mean, sd, h, p),
        "base stock": lambda: newsvendor_normal(mean, sd, h, p, lead_time),
        "Poisson": lambda: newsvendor_poisson(mean, h, p),
        "(s, S)": lambda: s_s_poisson(mean, h, p, fixed),
    }


def timed(form: Callable[[], Any]) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    answer = np.stack([np.asarray(x) for x in form()], 1)
    return time.perf_counter() - start, answer


def theirs(settings: Settings, given: dict[str, np.ndarray], names: list[str]) -> Any:
    counts = {f"count {n}": c for n, c in zip(names, settings.counts, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        problems, answers = Path(folder, "problems.npz"), Path(folder, "answers.npz")
        np.savez(problems, lead_time=settings.lead_time, **given, **counts)  # type: ignore[arg-type]
        subprocess.run([settings.python, LOOP, problems, answers], check=True)
        return dict(np.load(answers))


def spread(seconds: list[float]) -> str:
    return f"{median(seconds):.4g} s ({min(seconds):.4g} to {max(seconds):.4g})"


def main(settings: Settings) -> dict[str, Any]:
    """Print one line a kind of problem."""
    given = drawn(settings.problems)
    forms = ours(given, settings.lead_time)
    first = {name: timed(form)[0] for name, form in forms.items()}
    mine: dict[str, list[float]] = {name: [] for name in forms}
    loop: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(settings.rounds):
        answers = {}
        for name, form in forms.items():
            seconds, answers[name] = timed(form)
            mine[name].append(seconds)
        other = theirs(settings, given, list(forms))
        for name in forms:
            share = len(other[name]) / settings.problems
            loop[name].append(float(other[f"seconds {name}"]) / share)
    figures = {}
    for name in forms:
        found, wanted = answers[name][: len(other[name])], other[name]
        figures[name] = {
            "problems": settings.problems,
            "solved_by_stockpyl": len(wanted),
            "seconds": mine[name],
            "seconds_with_compilation": first[name],
            "stockpyl_seconds": loop[name],
            "times_faster": median(loop[name]) / median(mine[name]),
            "largest_difference_in_levels": float(np.abs(found - wanted)[:, :-1].max()),
            "largest_relative_difference_in_cost": float(np.abs(found / wanted - 1)[:, -1].max()),
        }
        row = figures[name]
        print(
            f"{name:10} {spread(mine[name])}, {first[name]:.1f} s with compilation; stockpyl "
            f"{spread(loop[name])}, {len(wanted):,} solved: {row['times_faster']:,.0f} times; "
            f"levels differ by {row['largest_difference_in_levels']:.2g}, cost by "
            f"{row['largest_relative_difference_in_cost']:.1g}",
            flush=True,
        )
    print(f"{settings.problems:,} problems each; {jax.devices()[0].device_kind}")
    if settings.json:
        settings.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
