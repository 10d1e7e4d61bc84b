"""A model trained further, which takes the place of the serving one only where it is better.

`retrain` is for every room whose `update` and `evaluate` read tables of independent rows.
"""

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.data.columns import frame_of, read_with_dates
from jaxops.data.splits import held_out, held_out_later
from jaxops.data.tables import Source
from jaxops.model.finished import Model
from jaxops.trust.evaluation import Evaluation
from jaxops.trust.intervals import Paired

LOSSES = ("log_loss", "pinball", "deviance", "mse", "integrated_brier")  # the first that there is


@dataclass(frozen=True, eq=False)
class Retrained:
    """A challenger beside the champion, on rows that neither has seen.

    Attributes:
        model: the challenger.
        promoted: whether it is to take the place of the champion.
        metric: the loss that decided.
        difference: of the loss, challenger less champion, with its 95 % interval.
        challenger: its scores on the held-back rows.
        champion: those of the serving model.
        left_out: number of rows that were not trained on because their ids are held back.

    >>> none = Evaluation("row", np.arange(0), {})
    >>> Retrained(None, True, "mse", Paired(-0.1, -0.2, 0.0, 0.01), none, none).promoted
    True
    """

    model: Model
    promoted: bool
    metric: str
    difference: Paired
    challenger: Evaluation
    champion: Evaluation
    left_out: int = 0

    def rows(self) -> list[dict[str, Any]]:
        """A row for each figure of both, for `jaxops.trust.report.table`."""
        new, old = self.challenger.figures(), self.champion.figures()
        return [{"figure": n, "champion": old[n], "challenger": new[n]} for n in new]


def retrain(
    model: Model,
    data: Source,
    old: Source | None = None,
    *,
    held: float = 0.2,
    time: str | None = None,
    **options: Any,
) -> Retrained:
    """Train a serving model further on old and new rows, and compare it with what it was.

    A share of the new rows is held back. The challenger begins at the parameters of the serving
    model, and the room's `update` trains it on the old rows and the other new ones, without those
    whose id is held back. Both models are scored on the rows held back. The challenger is promoted
    where the 95 % interval of the difference of their losses, challenger less champion, is nowhere
    above 0. So a model that may be worse never takes the place of one that serves; without a clear
    gain, as of rows that are as they were, the champion stays.

    Args:
        model: of a room with `update` and `evaluate` that reads tables of independent rows.
        data: new rows with labels, which the model has not learned from.
        old: earlier rows with labels, without which the challenger may forget what they tell.
        held: share of the new rows that is held back, drawn at random; of at least 20 rows.
        time: a column of dates or numbers; then the latest rows are held back, which comes nearest
            to what the model will be asked.
        **options: of the room's `update`, such as `epochs` and `seed`.

    Raises:
        ValueError: a model of another room; fewer than 20 rows held back; none to train on; as the
            room's `update`.

    >>> from jaxops import tabular
    >>> rng = np.random.default_rng(0)
    >>> old, new = rng.normal(0, 1, 400), rng.normal(0, 1, 400)
    >>> model = tabular.fit({"x": old, "y": old}, tabular.MLP((4,)), label="y", progress=False)
    >>> found = retrain(model, {"x": new, "y": 3 - new}, epochs=40, progress=False)
    >>> found.promoted, found.metric
    (True, 'mse')
    """
    room: Any = importlib.import_module(f"jaxops.{model.room}") if model.room else None
    if not (hasattr(room, "update") and getattr(model.reader, "streams", False)):
        raise ValueError(
            "model must be of a room that updates models with tables of independent rows, got "
            f"{model.room or 'none'}"
        )
    name, new = frame_of(data)
    train, later = _split(name, new, held, time)
    train, later = new.iloc[train].reset_index(drop=True), new.iloc[later].reset_index(drop=True)
    if old is not None:
        _, before = frame_of(old)
        train = require("pandas", extra="data").concat([before, train], join="inner")
        train = train.reset_index(drop=True)
    id = getattr(model.reader, "id", None)
    count = len(train)
    if id is not None and id in train.columns and id in later.columns:
        train = train[~train[id].astype(str).isin(later[id].astype(str))].reset_index(drop=True)
    champion = room.evaluate(model, later)
    if len(champion) < 20:
        raise ValueError(f"held must leave at least 20 rows, got {len(champion)}")
    challenger = room.update(model, train, **options)
    scored = room.evaluate(challenger, later)
    metric = next(name for name in LOSSES if name in scored.values)
    difference = scored.paired(champion, metric)
    promoted, left_out = difference.high <= 0, count - len(train)
    return Retrained(challenger, promoted, metric, difference, scored, champion, left_out)


def _split(name: str, frame: Any, held: float, time: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the rows to train on, and of those held back."""
    if not 0 < held < 1:
        raise ValueError(f"held must be a share in (0, 1), got {held}")
    if time is None:
        return held_out(len(frame), held)
    if time not in frame.columns:
        raise ValueError(f"{name} must have the column {time!r}, got {', '.join(frame.columns)}")
    times = read_with_dates(frame[[time]])[0][time]
    if times.dtype.kind == "O" or np.isnan(times).any():
        raise ValueError(f"{name}: {time} must be a date or a number in every row, got others")
    return held_out_later(times, held)
