"""What an explanation is: a value of each player of each row, and the tests of these values."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxops.explain import pictures
from jaxops.model.finished import frame
from jaxops.trust._figures import PathLike

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Attributions(NamedTuple):
    """What a method gives.

    Attributes:
        values: float64 (N, P), of each player of each row.
        baseline: float64 (N,), the number from which the values of a row add up to its number; NaN
            of a method whose values add up to nothing.
        settings: what was used, as JSON-like data.
        signed: whether a value may speak against the output; otherwise it is a strength.

    >>> Attributions(np.ones((1, 2)), np.zeros(1)).signed
    True
    """

    values: np.ndarray
    baseline: np.ndarray
    settings: dict[str, Any] = {}  # noqa: RUF012  # a default, never changed
    signed: bool = True


class Explanation(NamedTuple):
    """Why a model predicts what it does for N rows, in the user's terms.

    Attributes:
        method: the name of the method.
        kind: of the players: "words", "pixels", "cells", "events", "lags" or "features".
        scale: of the values and the outputs: "log-odds", "probability", or "" for numbers as they
            are.
        ids: (N,), the user's ids, or the numbers of the rows.
        targets: `str` objects (N,), the output that is explained.
        names: objects (N, P): the word, the column, the item, the lag.
        cells: objects (N, P), what the user's row has there; None where the name says it.
        real: bool (N, P), False where a row has fewer players than others.
        values: float64 (N, P), the part of each player; 0 where there is none.
        outputs: float64 (N,), the number that is explained.
        baseline: float64 (N,), the number without the players; NaN where the method has none.
        gap: float64 (N,), |sum of the values - (output - baseline)|: the completeness gap; NaN
            where the method's values add up to nothing.
        signed: whether a value may speak against the output; otherwise it is a strength.
        shape: (H, W) of pixels, or None.
        images: (N, H', W', C), the images of pixels, or None.
        settings: of the method, such as the number of steps.
        checks: of `checked`, by name; {} otherwise.

    >>> one = Explanation("occlusion", "words", "log-odds", np.array([7]),
    ...     np.array(["card"], object), np.array([["lost", "card"]], object), None,
    ...     np.ones((1, 2), bool), np.array([[0.5, 2.0]]), np.array([3.0]), np.array([np.nan]),
    ...     np.array([np.nan]))
    >>> one.frame()[["id", "name", "value"]].values.tolist()
    [[7, 'lost', 0.5], [7, 'card', 2.0]]
    """

    method: str
    kind: str
    scale: str
    ids: np.ndarray
    targets: np.ndarray
    names: np.ndarray
    cells: np.ndarray | None
    real: np.ndarray
    values: np.ndarray
    outputs: np.ndarray
    baseline: np.ndarray
    gap: np.ndarray
    signed: bool = True
    shape: tuple[int, int] | None = None
    images: np.ndarray | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012  # a default, never changed
    checks: dict[str, Any] = {}  # noqa: RUF012

    def unit(self, row: int | None = None) -> str:
        """What the numbers of a row are, such as "log-odds of yes"; by default of all rows."""
        names = dict.fromkeys(self.targets if row is None else self.targets[[row]])
        of = next(iter(names)) if len(names) == 1 else "the target"
        return f"{self.scale} of {of}" if self.scale else str(of)

    def frame(self) -> Any:
        """A pandas frame with a line for each player of each row: id, target, name, cell, value."""
        row, player = np.nonzero(self.real)
        cells = {} if self.cells is None else {"cell": self.cells[row, player]}
        return frame(
            {
                "id": self.ids[row],
                "target": self.targets[row],
                "name": self.names[row, player],
                **cells,
                "value": self.values[row, player],
            }
        )

    def plot(self, row: int = 0, path: PathLike | None = None) -> "Figure":
        """A picture of one row: heat over an image, lags in their order, otherwise bars.

        Args:
            row: the number of the row.
            path: the file to write, if any.

        Raises:
            ValueError: there is no such row.
        """
        if not 0 <= row < len(self.ids):
            raise ValueError(f"row must be in [0, {len(self.ids)}), got {row}")
        return pictures.plot(self, row, path)

    def summary(self) -> list[dict[str, Any]]:
        """A line for each row for a table: output, baseline, gap, and the checks of `checked`."""
        told = []
        for i, name in enumerate(self.ids.tolist()):
            line = {
                "id": name,
                "target": self.targets[i],
                self.unit(): self.outputs[i],
                "baseline": self.baseline[i],
                "gap": self.gap[i],
            }
            for check, found in self.checks.items():
                line |= found.told(check, i)
            told.append(line)
        return told
