"""The commands of the command line that watch a model, and train it further."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jaxops import _table
from jaxops._optional import require
from jaxops.model.encrypted import key_of
from jaxops.model.files import load, save
from jaxops.monitor.reporting import ALPHA, report
from jaxops.monitor.retraining import retrain
from jaxops.monitor.snapshots import read_snapshots
from jaxops.monitor.webhook import check_webhook, post

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")

ATTENTION = 3  # the exit code of a command whose answer somebody should look at


@dataclass(frozen=True)
class Monitor:
    """Report drift and performance as HTML and JSON; the exit code is 3 where there is an alert."""

    model: tyro.conf.Positional[Path]
    """the model file"""
    out: Path
    """the folder for report.html and report.json"""
    sketches: Path | None = None
    """the folder of `--sketches` of `jaxops serve` or `predict`"""
    data: str | None = None
    """rows to predict, for the performance; without sketches they are compared too"""
    labels: str | None = None
    """a table of ids of rows of the data, and labels"""
    validation: str | None = None
    """labelled rows that the model has not learned from, for performance without labels"""
    alpha: float = ALPHA
    """level of an alert, for p-values corrected over the columns"""
    webhook: str | None = None
    """an address of http or https, to which the alerts are posted as JSON"""

    def run(self) -> int:
        """Write the report, print and post its alerts."""
        if self.webhook is not None:
            check_webhook(self.webhook)
        model = load(self.model)
        snapshots = []
        if self.sketches is not None:
            if model.reference is None:
                raise ValueError(f"{self.model} must have a reference for sketches, got none")
            snapshots = read_snapshots(self.sketches, model.reference, model=self.model.stem)
            if not snapshots:
                raise ValueError(f"{self.sketches} must have sketches of {self.model}, got none")
        name = self.model.stem
        found = report(
            model, snapshots, self.data, self.labels, self.validation, name=name, alpha=self.alpha
        )
        written = found.write(self.out)
        for alert in found.alerts:
            print(f"alert: {alert['message']}")
        print(f"written: {written}, {found.told['rows']:,} rows, {len(found.alerts)} alerts")
        if self.webhook is not None and found.alerts:
            told = {key: found.told[key] for key in ("model", "made", "rows", "start", "end")}
            post(self.webhook, told | {"alerts": found.alerts})
        return ATTENTION if found.alerts else 0


@dataclass(frozen=True)
class Retrain:
    """Train a model further, and write it only where it is not worse; else the exit code is 3."""

    model: tyro.conf.Positional[Path]
    """the model file, of a model that serves"""
    data: str
    """new rows with labels"""
    out: Path
    """the model file to write; it is encrypted if the model file is"""
    old: str | None = None
    """earlier rows with labels, to be learned from as well"""
    held: float = 0.2
    """share of the new rows that both models are compared on"""
    time: str | None = None
    """a column of dates or numbers, of which the latest rows are held back; else they are drawn"""

    def run(self) -> int:
        """Train, print how both models do, and write the new one where it is promoted."""
        found = retrain(
            load(self.model),
            self.data,
            self.old,
            held=self.held,
            time=self.time,
        )
        mean, low, high, _ = found.difference
        print(f"{len(found.champion):,} rows held back, {found.left_out:,} of their ids left out")
        print(_table.table(found.rows()))
        print(f"{found.metric}, challenger less champion: {mean:.4f} [{low:.4f}, {high:.4f}]")
        if not found.promoted:
            print("the champion stays")
            return ATTENTION
        self.out.parent.mkdir(parents=True, exist_ok=True)
        save(self.out, found.model, key=key_of(self.model))
        print(f"written: {self.out}")
        return 0
