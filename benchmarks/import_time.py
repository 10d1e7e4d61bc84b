"""Seconds of `import jaxops` beside `import jax` and `import torch`, in turns in fresh processes.

    python -m benchmarks.import_time [--rounds 9]

`import jaxops` imports nothing before it is used, so the second row has what a program that trains
by `fit` imports, JAX included. On a machine with other load read the seconds of user CPU time, and
the load that is printed.
"""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

import tyro

STATEMENTS = {
    "jax": "import jax",
    "jaxops, and what fit uses": "import jaxops as jo; jo.fit, jo.supervised, jo.optim, jo.nn",
    "jaxops": "import jaxops",
    "torch": "import torch",
}
PROGRAM = """
import json, os, sys, time
wall, user = time.perf_counter(), os.times().user
exec(sys.argv[1])
print(json.dumps([time.perf_counter() - wall, os.times().user - user]))
"""


@dataclass(frozen=True)
class Settings:
    """How often each is imported, after once to fill the disk's cache."""

    rounds: int = 9


def seconds(statement: str) -> tuple[float, float]:
    """Wall and user CPU seconds of a statement in a fresh process."""
    command = [sys.executable, "-c", PROGRAM, statement]
    wall, user = json.loads(subprocess.check_output(command))
    return wall, user


def main(settings: Settings) -> dict[str, list[tuple[float, float]]]:
    """Measure in turns, and print a table of medians with the smallest and the largest value."""
    chosen = dict(STATEMENTS)
    if importlib.util.find_spec("torch") is None:
        del chosen["torch"]
    for statement in chosen.values():
        seconds(statement)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for _ in range(settings.rounds):
        for name, statement in chosen.items():
            times[name].append(seconds(statement))
    print(f"{settings.rounds} rounds; load of the machine {os.getloadavg()[0]:.1f}")
    print(f"{'import':26} {'wall s':>20} {'user CPU s':>20}")
    for name, pairs in times.items():
        cells = (
            f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
            for values in zip(*pairs, strict=True)
        )
        print(f"{name:26} " + " ".join(f"{cell:>20}" for cell in cells))
    return times


if __name__ == "__main__":
    main(tyro.cli(Settings))
