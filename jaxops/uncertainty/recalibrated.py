"""Calibrated probabilities as the answers of a finished model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jaxops.model.finished import Model
from jaxops.task import recorded
from jaxops.trust.calibrators import CALIBRATORS, Calibrator
from jaxops.uncertainty.answers import Seen, Wrapper, check_no_rules, numbers_of, seen


@recorded
@dataclass(frozen=True, eq=False)
class CalibratedReader(Wrapper):
    """The reader of a model that `calibrated` has made.

    Attributes:
        reader: the reader of the model before; None if it had none.
        calibrator: a `Temperature`, `Vector`, `Platt`, `Beta` or `Isotonic`.

    >>> from jaxops.trust.calibrators import Temperature
    >>> CalibratedReader(None, Temperature(2.0)).describe()
    {'calibration': 'Temperature'}
    """

    calibrator: Calibrator

    def predict(self, model: Model, data: Any, **options: Any) -> Any:
        """The answer of the reader before, with calibrated probabilities and their likeliest class.

        Args:
            model: the model.
            data: what the reader before reads.
            **options: of the reader before.
        """
        answer = self.answered(model, data, options)
        told = _of_classes(seen(answer, getattr(model.task, "classes", ())))
        p = self.calibrator(told.outputs).astype(told.outputs.dtype)
        if not hasattr(answer, "_replace"):  # of a task without a reader
            mean = answer["mean"] if isinstance(answer, Mapping) else answer
            return p[:, 1] if mean.ndim == 1 else p
        return answer._replace(probabilities=p, labels=np.array(told.names, object)[p.argmax(1)])

    def describe(self) -> dict[str, str]:
        """What it reads and says, for people."""
        inner = self.reader.describe() if hasattr(self.reader, "describe") else {}
        return {**inner, "calibration": type(self.calibrator).__name__}


def calibrated(model: Model, data: Any, labels: Any, method: str = "temperature") -> Model:
    """A classifier with calibrated probabilities: rows with 80 % are right in 80 % of cases.

    Temperature and vector scaling change all classes together. The others fit a curve for each
    class against the rest, and divide by the sum. `method="isotonic"` needs about a thousand rows
    of each class; temperature is content with a hundred in all.

    Args:
        model: a finished model that answers with classes, one for each row.
        data: N raw validation rows, as `model.predict` takes them, on which the model was not
            trained. For `conformal`, take other rows than here.
        labels: (N,), the names of their classes.
        method: "temperature", "vector", "platt", "beta" or "isotonic".

    Returns:
        The model with a `CalibratedReader`. Its answers are of the same kind as before (those of
        `jaxops.monte_carlo` are the mean alone); the column `in_scope` of texts stays as the reader
        before says it. It can be saved, loaded and served like the model before.

    Raises:
        ValueError: a model that does not answer with classes, or has thresholds by group or
            margins already; another method; labels that do not fit, or of which a
            class has no row (except for the temperature).

    References:
        See `jaxops.uncertainty.Temperature` and its neighbours.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=2, classes=("stays", "leaves"))
    >>> rows = np.random.default_rng(0).normal(size=(99, 2)).astype(np.float32)
    >>> labels = np.where(rows[:, 0] > 0, "leaves", "stays")
    >>> model = Model(task, jo.init_state(task, jo.optim.sgd(0.1), 0, {"features": rows}))
    >>> model.predict(rows[:1]).round(2).tolist()
    [0.5]
    >>> calibrated(model, rows, labels, method="platt").predict(rows[:1]).shape
    (1,)
    """
    if method not in CALIBRATORS:
        raise ValueError(f"method must be one of {', '.join(CALIBRATORS)}, got {method!r}")
    if hasattr(model.reader, "margins"):
        raise ValueError(
            "model must have no conformal margins, which are of its answers before, got a "
            "CoveredReader; calibrate first"
        )
    check_no_rules(model)
    told = _of_classes(seen(model.predict(data), getattr(model.task, "classes", ())))
    number = numbers_of(labels, told.names, len(told.ids))
    reader = CalibratedReader(model.reader, CALIBRATORS[method].fit(told.outputs, number))
    about = {**model.about, "calibration": {"method": method, "rows": len(number)}}
    return replace(model, reader=reader, about=about)


def _of_classes(told: Seen) -> Seen:
    if told.kind != "classes":
        raise ValueError(f"model must answer with one class for each row, got {told.kind}")
    return told
