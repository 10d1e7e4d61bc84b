"""The command of the command line that explains predictions."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxops import _table
from jaxops._optional import require
from jaxops.explain import checked
from jaxops.model.files import load
from jaxops.trust.page import page

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")

SHOWN = 20  # rows that have a picture


@dataclass(frozen=True)
class Explain:
    """Explain a model's predictions as an HTML page, with the tests of the explanations."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    data: tyro.conf.Positional[str]
    """the rows to explain"""
    out: Path
    """the page to write"""
    method: str = "integrated_gradients"
    """such as integrated_gradients for networks, or occlusion for every model"""
    target: str | None = None
    """the class or the output to explain; by default the likeliest class of each row"""
    baseline: str | None = None
    """rows that say what an absent cell is; by default see `jaxops.explain`"""

    def run(self) -> None:
        """Explain, print the tests, and write the page."""
        told = checked(
            load(self.model), self.data, self.method, self.target, baseline=self.baseline
        )
        rows = told.summary()
        print(_table.table(rows))
        figures = {f"row {row}": told.plot(row) for row in range(min(SHOWN, len(rows)))}
        title = f"{self.model.stem}: {self.method.replace('_', ' ')}"
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(page(title, {"rows": rows}, figures=figures), encoding="utf-8")
        print(f"written: {self.out}")
