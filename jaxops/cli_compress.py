"""The command of the command line that makes a model smaller."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from jaxops import _table
from jaxops._optional import require
from jaxops.compress.factors import low_rank
from jaxops.compress.pruning import prune
from jaxops.compress.structure import structured
from jaxops.model.encrypted import key_of
from jaxops.model.files import load, save
from jaxops.model.finished import Model

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")


@dataclass(frozen=True)
class Compress:
    """Make a model smaller, without data, and write its file; the steps are made in this order."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    out: tyro.conf.Positional[Path]
    """the file to write; it is encrypted if the model file is"""
    structured: float | None = None
    """share of the units, channels and heads of each layer to take out"""
    rank: int | None = None
    """of the factors of dense layers"""
    prune: float | None = None
    """share of the entries of all kernels to set to zero; by itself it makes no file smaller"""

    def run(self) -> None:
        """Compress, write, and print the sizes before and after."""
        steps: dict[str, tuple[Callable[[Model, Any], Model], Any]] = {
            "structured": (structured, self.structured),
            "low_rank": (low_rank, self.rank),
            "prune": (prune, self.prune),
        }
        chosen = {name: step for name, step in steps.items() if step[1] is not None}
        if not chosen:
            raise ValueError("one of structured, rank and prune must be given, got none")
        model = load(self.model)
        rows = [_row("as it was", model, self.model)]
        for step, value in chosen.values():
            model = step(model, value)
        save(self.out, model, key=key_of(self.model))
        rows.append(_row(", ".join(chosen), model, self.out))
        print(f"{_table.table(rows)}\nwritten: {self.out}")


def _row(what: str, model: Model, path: Path) -> dict[str, Any]:
    """What is told of a model and its file."""
    arrays = jax.tree.leaves(model.state.params) if model.state is not None else []
    numbers = f"{sum(array.size for array in arrays):,}" if arrays else ""
    zeros = sum(int((array == 0).sum()) for array in arrays)
    return {
        "model": what,
        "parameters": numbers,
        "zeros": f"{zeros:,}",
        "file, kB": f"{path.stat().st_size / 1e3:,.1f}",
    }
