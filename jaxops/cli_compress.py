"""The command of the command line that makes a model smaller."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxops import _table
from jaxops._optional import require
from jaxops.compress.factors import low_rank
from jaxops.compress.pruning import prune
from jaxops.compress.quantisation import quantise
from jaxops.compress.receipts import sizes
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
    quantise: Literal["8", "4", "bf16", "fp8"] | None = None
    """bits of each number of kernels and tables"""

    def run(self) -> None:
        """Compress, write, and print the sizes before and after."""
        bits = int(self.quantise) if self.quantise in ("8", "4") else self.quantise
        steps: dict[str, tuple[Callable[[Model, Any], Model], Any]] = {
            "structured": (structured, self.structured),
            "low_rank": (low_rank, self.rank),
            "prune": (prune, self.prune),
            "quantise": (quantise, bits),
        }
        chosen = {name: step for name, step in steps.items() if step[1] is not None}
        if not chosen:
            raise ValueError("one of structured, rank, prune and quantise must be given, got none")
        original = model = load(self.model)
        for step, value in chosen.values():
            model = step(model, value)
        save(self.out, model, key=key_of(self.model))
        print(f"{_table.table(sizes(original, model))}\n{', '.join(chosen)}; written: {self.out}")
