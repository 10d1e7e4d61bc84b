"""Models that contain models: weighted means, with weights by validation, and a log scale."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxops.forecast.data.series import Series
from jaxops.forecast.inference import levels_of, program_of, rising
from jaxops.model.finished import Program
from jaxops.task import Batch, example, recorded


@recorded
@dataclass(frozen=True, eq=False)
class Ensemble:
    """The weighted mean of its members' forecasts; quantiles are averaged level by level.

    Attributes:
        members: M models, see `forecast`.
        weights: M numbers of at least 0 with sum 1; equal by default.

    Raises:
        ValueError: there are no members, or the weights are invalid; in `forecast` without a
            horizon, if the members have different horizons.

    >>> from jaxops.forecast import Baseline, forecast, from_arrays
    >>> both = Ensemble((Baseline("repeat_last"), Baseline("drift")))
    >>> forecast(both, from_arrays(["a"], [[1, 2, 3]]), 2, levels=()).mean.ravel().tolist()
    [3.5, 4.0]
    """

    members: tuple[Any, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members must be at least 1 model, got none")
        if not self.weights:
            object.__setattr__(self, "weights", (1 / len(self.members),) * len(self.members))
        weights = np.asarray(self.weights)
        fits = len(weights) == len(self.members) and (weights >= 0).all()
        if not fits or not abs(weights.sum() - 1) <= 1e-3:  # so NaN is refused
            raise ValueError(
                f"weights must be {len(self.members)} numbers of at least 0 with sum 1, got "
                f"{self.weights}"
            )

    @property
    def has_quantiles(self) -> bool:
        """Whether all members have quantiles."""
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
                f"horizon must be a number of at most {steps[0]}, because the members' horizons "
                f"are {steps}, got None"
            )
        mean, quantiles = (sum(part) for part in zip(*parts, strict=True))
        return mean, quantiles

    def exported(self, levels: tuple[float, ...] | None = None) -> Program:
        """See `Forecaster.exported`.

        Raises:
            ValueError: also for a member that is no network, and for members of different series or
                horizons.
        """
        levels = levels_of(self) if levels is None else rising(levels)
        weights = [w for w in self.weights if w > 0]
        used = [m for m, w in zip(self.members, self.weights, strict=True) if w > 0]
        programs = [program_of(member, levels) for member in used]
        _check_alike(programs)

        def function(params: Any, columns: Batch) -> Any:
            answers = [
                program.function(own, {c.name: columns[f"{c.name} {i}"] for c in program.columns})
                for i, (program, own) in enumerate(zip(programs, params, strict=True))
            ]
            return jax.tree.map(
                lambda *parts: sum(w * x for w, x in zip(weights, parts, strict=True)), *answers
            )

        columns = tuple(
            column._replace(name=f"{column.name} {i}")
            for i, program in enumerate(programs)
            for column in program.columns
        )
        readers = [program.reader for program in programs]
        reader = readers[0] | {"unit": None, "levels": [*levels], "members": readers}
        return Program(function, tuple(program.params for program in programs), columns, reader)


def _check_alike(programs: Sequence[Program]) -> None:
    """Check that the members of an ensemble take the same series and forecast the same steps."""
    for name in ("channels", "known", "past", "static"):
        given = [program.reader[name] for program in programs]
        if any(one != given[0] for one in given):
            raise ValueError(f"members must have the same {name}, got {given}")
    shapes = [jax.eval_shape(p.function, p.params, example(p.columns)) for p in programs]
    steps = sorted({shape["mean"].shape[1] for shape in shapes})
    if len(steps) > 1:
        raise ValueError(f"members must have one horizon to be exported, got {steps}")


@recorded
@dataclass(frozen=True, eq=False)
class LogScale:
    """A model that sees log(1 + y) of values y of at least 0; its forecasts are in units of y.

    This makes series of all sizes similar. An absolute error of the logarithms is approximately a
    relative error of the values. The mean of the logarithms becomes approximately the median of the
    values.

    Attributes:
        model: any model, see `forecast`. As a method of `forecast.fit`, a Flax module to train.

    Raises:
        ValueError: in `forecast`, for a negative value.

    >>> from jaxops.forecast import Baseline, forecast, from_arrays
    >>> growth = from_arrays(["a"], [[1, 3, 7]])
    >>> forecast(LogScale(Baseline("drift")), growth, 2, levels=()).mean.ravel().round(3).tolist()
    [15.0, 31.0]
    """

    model: Any

    @property
    def has_quantiles(self) -> bool:
        """Whether the model has quantiles."""
        return getattr(self.model, "has_quantiles", True)

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        answer = self.model.answer(logarithms(history), horizon, future, levels)
        mean, quantiles = (np.maximum(np.expm1(x), 0) for x in answer)
        return mean, quantiles

    def exported(self, levels: tuple[float, ...] | None = None) -> Program:
        """See `Forecaster.exported`.

        Raises:
            ValueError: also for a model that is no `Forecaster`.
        """
        inner = program_of(self.model, levels)
        log, unit, members = (inner.reader.get(name) for name in ("log", "unit", "members"))
        if log or members or unit is not None:
            raise ValueError(
                "model must be a Forecaster for LogScale to be exported, got "
                f"{type(self.model).__name__}; put LogScale within it"
            )

        def function(params: Any, columns: Batch) -> Any:
            return jax.tree.map(
                lambda x: jnp.maximum(jnp.expm1(x), 0), inner.function(params, columns)
            )

        return inner._replace(function=function, reader=inner.reader | {"log": True})


def logarithms(series: Series) -> Series:
    """The series of log(1 + y).

    Raises:
        ValueError: a negative value.
    """
    low = series.values.min(1)
    if (low < 0).any():
        row = int((low < 0).argmax())
        name = str(series.ids[np.searchsorted(series.offsets, row, "right") - 1])
        raise ValueError(
            f"values must be at least 0 for LogScale, got {low[row]:g} in series {name!r}"
        )
    return replace(series, values=np.log1p(series.values))


def stacking(forecasts: np.ndarray, target: np.ndarray) -> tuple[float, ...]:
    """The ensemble weights with the smallest squared error: at least 0, with sum 1.

    On the rows that chose the weights the ensemble is always at least as good as its best member.
    So choose them on rows on which no member was trained, and evaluate the ensemble on other rows.

    Args:
        forecasts: (M, ...), forecasts of M models for the validation windows.
        target: (...), the values that were observed.

    Returns:
        M weights, for `Ensemble`.

    Raises:
        ValueError: the shapes do not fit, or a number is not finite.

    References:
        Breiman 1996, Stacked regressions, doi:10.1007/BF00117832.

    >>> truth = np.array([1.0, 2.0, 3.0])
    >>> stacking(np.stack([truth + [1, -1, 1], truth - [1, -1, 1]]), truth)
    (0.5, 0.5)
    """
    if not np.isfinite(target).all():
        bad = (~np.isfinite(target)).sum()
        raise ValueError(f"target must be finite, got {bad:,} numbers that are not")
    if forecasts.shape[1:] != target.shape or not np.isfinite(forecasts).all():
        raise ValueError(
            f"forecasts must be finite, of shape (M, {', '.join(map(str, target.shape))}), got "
            f"shape {forecasts.shape} and {(~np.isfinite(forecasts)).sum():,} numbers not finite"
        )
    errors = (forecasts - target[None]).reshape(len(forecasts), -1).astype(np.float64)
    gram = errors @ errors.T / errors.shape[1]
    # min w' G w with sum w = 1 and w >= 0: non-negative least squares; a heavy row fixes the sum
    values, vectors = np.linalg.eigh(gram)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
    heavy = 1e4 * max(float(np.sqrt(np.trace(gram))), 1e-30)
    rows = np.concatenate([root, np.full((1, len(gram)), heavy)])
    weights, _ = scipy.optimize.nnls(rows, np.concatenate([np.zeros(len(root)), [heavy]]))
    weights = np.round(weights / weights.sum(), 6)
    return tuple(weights.tolist())
