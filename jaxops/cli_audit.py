"""The command of the command line that audits a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxops._optional import require
from jaxops.model.files import load
from jaxops.robustness import audit

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")


@dataclass(frozen=True)
class Audit:
    """Write a page of how far a model is to be trusted: its calibration, coverage, fairness,
    robustness and explanations."""

    model: tyro.conf.Positional[Path]
    """the model file, of images, texts, a table or forecasts"""
    data: tyro.conf.Positional[str]
    """labelled rows that the model has not learned from; see the room's `evaluate`"""
    out: Path
    """the page to write, .html"""
    protected: tuple[str, ...] = ()
    """columns of a table, such as sex, for the report of groups"""
    positive: str | None = None
    """the class whose selection counts, by default the second of two"""
    levels: tuple[int, ...] = (1, 3, 5)
    """levels of the corruptions, some of 1 to 5"""
    coverage: float = 0.9
    """of the sets or intervals"""
    seed: int = 0
    """of the halves for the coverage, and of the corruptions"""

    def run(self) -> None:
        """Audit, say what does not apply, and write the page."""
        if self.out.suffix != ".html":  # before minutes of work
            raise ValueError(f"out must end in .html, got {self.out}")
        found = audit(
            load(self.model),
            self.data,
            protected=self.protected,
            positive=self.positive,
            levels=self.levels,
            coverage=self.coverage,
            seed=self.seed,
            name=self.model.stem,
        )
        for heading, told in found.sections.items():
            if isinstance(told, str):
                print(f"{heading}: {' '.join(told.split())}")
        print(f"written: {found.write(self.out)}")
