"""The command of the command line that writes a model card."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxops._optional import require
from jaxops.fairness.cards import model_card
from jaxops.model.files import load

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")


@dataclass(frozen=True)
class Card:
    """Write a model card: what the model is and is for, its figures, and those of groups."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    out: Path
    """the file to write, .md or .html (with a picture)"""
    rows: tyro.conf.Positional[str | None] = None
    """labelled rows that the model has not learned from"""
    protected: tuple[str, ...] = ()
    """columns of the rows, such as sex; of several their intersections"""
    label: str | None = None
    """the column of the label; by default the one of the model's reader"""
    positive: str | None = None
    """the class whose selection counts, by default the second of two"""
    use: str = ""
    """text for "Intended use" """
    ethics: str = ""
    """text for "Ethical considerations" """
    caveats: str = ""
    """text for "Caveats and recommendations" """

    def run(self) -> None:
        """Write the card."""
        card = model_card(
            load(self.model),
            self.rows,
            name=self.model.name,
            protected=self.protected,
            label=self.label,
            positive=self.positive,
            use=self.use,
            ethics=self.ethics,
            caveats=self.caveats,
        )
        print(f"written: {card.write(self.out)}")
