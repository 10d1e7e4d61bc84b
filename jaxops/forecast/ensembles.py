"""Several models as one: an average of their forecasts, with weights chosen by validation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import nnls

from jaxops.forecast.data.series import Series


@dataclass(frozen=True, eq=False)
class Ensemble:
    """The weighted mean of what its members say; quantiles are averaged level by level.

    Attributes:
        members: M models, see `forecast`.
        weights: M numbers, not negative, whose sum is 1; all alike by default.

    Raises:
        ValueError: other weights; of `forecast` without a horizon, members whose horizons differ.
    """

    members: tuple[Any, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members: none found, at least 1 wanted")
        if not self.weights:
            object.__setattr__(self, "weights", (1 / len(self.members),) * len(self.members))
        found = np.asarray(self.weights)
        fits = len(found) == len(self.members) and (found >= 0).all()
        if not fits or not abs(found.sum() - 1) <= 1e-3:  # so NaN is refused
            raise ValueError(
                f"weights: {self.weights} found, {len(self.members)} from 0 up with sum 1 wanted"
            )

    @property
    def has_quantiles(self) -> bool:
        """Whether all members have some."""
        return all(getattr(member, "has_quantiles", True) for member in self.members)

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        parts = [
            tuple(w * x for x in member.answer(history, horizon, future, levels))
            for member, w in zip(self.members, self.weights, strict=True)
            if w > 0
        ]
        steps = sorted({part[0].shape[1] for part in parts})
        if len(steps) > 1:
            raise ValueError(
                f"horizon: None found, a number up to {steps[0]} wanted: the members' are {steps}"
            )
        mean, quantiles = (sum(part) for part in zip(*parts, strict=True))
        return mean, quantiles


def stacking(forecasts: np.ndarray, target: np.ndarray) -> tuple[float, ...]:
    """The weights whose ensemble has the least squared error: at least 0, with sum 1.

    Breiman 1996, Stacked regressions, doi:10.1007/BF00117832. On the rows that chose the weights
    the ensemble is at least as good as its best member; so take rows that no member has learned
    from, and others to say how good it is.

    Args:
        forecasts: (M, ...) of M models, for the validation windows.
        target: (...), what came.

    Raises:
        ValueError: other shapes, or numbers that are not finite.

    >>> truth = np.array([1.0, 2.0, 3.0])
    >>> stacking(np.stack([truth + [1, -1, 1], truth - [1, -1, 1]]), truth)
    (0.5, 0.5)
    """
    if not np.isfinite(target).all():
        raise ValueError(f"target: {(~np.isfinite(target)).sum()} numbers not finite, 0 wanted")
    if forecasts.shape[1:] != target.shape or not np.isfinite(forecasts).all():
        raise ValueError(
            f"forecasts: {forecasts.shape} found, (M, {', '.join(map(str, target.shape))}) wanted, "
            "all finite"
        )
    errors = (forecasts - target[None]).reshape(len(forecasts), -1).astype(np.float64)
    gram = errors @ errors.T / errors.shape[1]
    # w' G w under sum w = 1, w >= 0: as non-negative least squares, the sum being a heavy row
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    heavy = 1e4 * max(float(np.sqrt(np.trace(gram))), 1e-30)
    rows = np.concatenate([root, np.full((1, len(gram)), heavy)])
    weights, _ = nnls(rows, np.concatenate([np.zeros(len(root)), [heavy]]))
    weights = np.round(weights / weights.sum(), 6)
    return tuple(weights.tolist())
