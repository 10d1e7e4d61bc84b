"""What a user asks of a trained survival model."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxops.data.tables import Source
from jaxops.model.finished import Model, inside
from jaxops.survival.data import Curves, SurvivalReader
from jaxops.survival.models import Regression


def reader_of(model: Model) -> SurvivalReader:
    """The reader of a survival model.

    Raises:
        ValueError: a model of another room.
    """
    reader: SurvivalReader = inside(
        model, lambda part: isinstance(part, SurvivalReader), "of the survival room"
    )
    return reader


def probability_before(
    model: Model, data: Source, times: Sequence[float], cause: int | None = None
) -> np.ndarray:
    """The probability that each row of a table has its event up to each of some times.

    Args:
        model: see `survival.fit`.
        data: a table; times and events may be absent.
        times: T of them, sorted, at least 0, in the unit of the train rows. Behind the last event
            of these all curves are level, but those of accelerated failure times, which go on.
        cause: of a model of several causes one; None for any.

    Returns:
        float32 (N, T).

    Raises:
        ValueError: a table that the model cannot read; times that are not sorted; a cause that the
            model does not have.

    >>> from jaxops import survival
    >>> table = {"age": [1, 2, 3, 4, 5.0], "months": [5, 3, 4, 2, 1.0], "died": [1, 1, 0, 1, 1]}
    >>> model = survival.fit(table, time="months", event="died", progress=False)
    >>> p = probability_before(model, {"age": [1.5, 4.5]}, [2.0, 4.0])
    >>> bool((p[0] < p[1]).all() and (p[:, 0] < p[:, 1]).all())
    True
    """
    causes = reader_of(model).causes
    if cause is not None and not (causes > 1 and 1 <= cause <= causes):
        wanted = f"None or 1 to {causes}" if causes > 1 else "None for a model of one cause"
        raise ValueError(f"cause must be {wanted}, got {cause}")
    answer: Curves = model.predict(data, times=times)
    if cause is None or answer.incidence is None:
        return 1 - answer.survival
    return answer.incidence[:, cause - 1]


def coefficients(model: Model, coverage: float = 0.95) -> Any:
    """The coefficients of a regression with their errors, as a pandas frame.

    Args:
        model: of `survival.fit` by `Cox` or an accelerated failure time method.
        coverage: of the bounds.

    Raises:
        ValueError: another model.

    >>> from jaxops import survival
    >>> table = {"age": [1, 2, 3, 4, 5.0], "months": [5, 3, 4, 2, 1.0], "died": [1, 1, 0, 1, 1]}
    >>> model = survival.fit(table, time="months", event="died", progress=False)
    >>> coefficients(model)["name"].tolist()
    ['age']
    """
    closed: Regression = inside(model, lambda part: isinstance(part, Regression), "a regression")
    return closed.fit.frame(coverage)
