"""Sets and intervals with a given coverage, as the answers of a finished model."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from jaxops.model.finished import Model, frame
from jaxops.task import recorded
from jaxops.trust.conformal import (
    aps_scores,
    check_enough,
    group_margins,
    label_threshold,
    lac_scores,
    margin,
    margins_of,
    own_scores,
    quantile_scores,
    weighted_margins,
)
from jaxops.trust.conformal.margins import check_spread
from jaxops.uncertainty.answers import (
    Seen,
    Wrapper,
    check_no_rules,
    column_of,
    numbers_of,
    seen,
    several_of,
    values_of,
)

METHODS = {  # of each kind of answer; the first is the default
    "classes": ("lac", "aps"),
    "labels": ("risk",),
    "values": ("residual",),
    "spread": ("scaled", "residual"),
    "quantiles": ("cqr", "scaled"),
}


class Sets(NamedTuple):
    """The classes that N rows may have.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the rows.
        labels: `str` objects (N,), the likeliest class; of several labels, the same as `sets`.
        sets: objects (N,), a tuple of names: the classes that hold the true one with the coverage,
            the likeliest first. It may be empty: no class is likely enough.
        probabilities: (N, C), the probability of each class.
        classes: the C names, in the order of the probabilities.

    >>> sets = np.empty(1, object)
    >>> sets[0] = ("no", "yes")
    >>> one = Sets(np.arange(1), np.array(["no"], object), sets, np.array([[0.6, 0.4]]),
    ...            ("no", "yes"))
    >>> one.frame().columns.tolist(), one.frame().set.tolist()
    (['id', 'label', 'set', 'size', 'p(no)', 'p(yes)'], ['no; yes'])
    """

    ids: np.ndarray
    labels: np.ndarray
    sets: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    def frame(self) -> Any:
        """One row each: id, label, the set as one string, its size, and the probabilities."""
        told = [one if isinstance(one, str) else "; ".join(one) for one in self.labels]
        sets = ["; ".join(one) for one in self.sets]
        of_class = {f"p({c})": self.probabilities[:, i] for i, c in enumerate(self.classes)}
        return frame(
            {
                "id": self.ids,
                "label": np.array(told, object),
                "set": np.array(sets, object),
                "size": np.array([len(one) for one in self.sets]),
                **of_class,
            }
        )


class Intervals(NamedTuple):
    """Intervals of N rows.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the rows.
        values: (N,), the prediction; of quantiles the one nearest to the median.
        low: float64 (N,), the lower bound, in the unit of the target.
        high: float64 (N,), the upper bound.

    >>> Intervals(*np.ones((4, 1))).frame().columns.tolist()
    ['id', 'value', 'low', 'high']
    """

    ids: np.ndarray
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def frame(self) -> Any:
        """One row each: id, value, low and high."""
        return frame({"id": self.ids, "value": self.values, "low": self.low, "high": self.high})


@recorded
@dataclass(frozen=True, eq=False)
class CoveredReader(Wrapper):
    """The reader of a model that `conformal` has made.

    Attributes:
        reader: the reader of the model before; None if it had none.
        method: see `conformal`.
        coverage: the wanted coverage.
        margins: group or class -> its margin; "" of all rows.
        group: the column of the groups; None without.
        by_class: whether the margins are of classes.
        penalty: of `aps_scores`.
        free: of `aps_scores`.
        weighted: float64 (2, N), the scores and the weights of the calibration rows, from which
            each row gets a margin of its own; None without weights.

    >>> reader = CoveredReader(None, "residual", 0.9, {"": 2.0})
    >>> task = "a closed form without a reader"
    >>> reader.room, reader.margins
    ('', {'': 2.0})
    """

    method: str
    coverage: float
    margins: dict[str, float]
    group: str | None = None
    by_class: bool = False
    penalty: float = 0.0
    free: int = 0
    weighted: np.ndarray | None = None

    def predict(
        self, model: Model, data: Any, weights: Any = None, **options: Any
    ) -> Sets | Intervals:
        """Sets or intervals for raw data.

        Args:
            model: the model.
            data: what the reader before reads; with `group` a file, a frame or arrays by name with
                that column too.
            weights: (M,), of the rows, for a model that was calibrated with weights.
            **options: of the reader before.

        Raises:
            ValueError: data that it cannot read, a group without a margin, or weights that are
                missing or have no effect.
        """
        told = seen(self.answered(model, data, options), getattr(model.task, "classes", ()))
        margins = self._margins(data, told, weights)
        if told.kind == "labels":
            return _sets(told, told.outputs >= margins, told.outputs)
        if told.kind == "classes":
            scores = self.scores(told)
            return _sets(told, scores <= margins, told.outputs)
        low, high, spread = _ends(told, self.method)
        size = spread * margins[:, 0]
        middle = (low + high) / 2  # bounds that would move past each other meet in the middle
        low, high = np.minimum(low - size, middle), np.maximum(high + size, middle)
        return Intervals(told.ids, _middle(told), low, high)

    def scores(self, told: Seen) -> np.ndarray:
        """The score of each class, (N, C)."""
        if self.method == "lac":
            return lac_scores(told.outputs)
        return aps_scores(told.outputs, None, self.penalty, self.free)

    def describe(self) -> dict[str, str]:
        """What it reads and says, for people."""
        inner = self.reader.describe() if hasattr(self.reader, "describe") else {}
        parts = f", by {self.group}" if self.group else ", by class" * self.by_class
        parts += ", weighted" * (self.weighted is not None)
        return {**inner, "conformal": f"{self.method}, coverage {self.coverage:g}{parts}"}

    def _margins(self, data: Any, told: Seen, weights: Any) -> np.ndarray:
        """The margins of rows or classes, for scores (N, C)."""
        rows = len(told.ids)
        wanted = () if self.weighted is None else (rows,)
        if np.shape(weights) != wanted or (weights is None) != (self.weighted is None):
            shape = "None" if self.weighted is None else f"({rows},) numbers, one for each row"
            raise ValueError(
                f"weights must be {shape}, as the calibration had "
                f"{'none' if self.weighted is None else 'weights'}, got shape {np.shape(weights)}"
            )
        if self.weighted is not None:
            scores, own = self.weighted
            return weighted_margins(scores, own, np.asarray(weights), self.coverage)[:, None]
        if self.by_class:
            return margins_of(self.margins, np.array(told.names, object))[None]
        if self.group is None:
            return np.full((rows, 1), self.margins[""])
        return margins_of(self.margins, column_of(data, self.group, rows))[:, None]


def conformal(
    model: Model,
    data: Any,
    labels: Any,
    coverage: float = 0.9,
    method: str | None = None,
    group: str | None = None,
    by_class: bool = False,
    penalty: float = 0.0,
    free: int = 0,
    weights: Any = None,
) -> Model:
    """A model that answers with sets of classes, or with intervals, that have a given coverage.

    The coverage is that of new rows which are distributed like the calibration rows, on average
    over calibrations. With N rows of one calibration it differs by about
    sqrt(coverage (1 - coverage) / N).

    | answer of the model | method | the new answer |
    |---|---|---|
    | classes | "lac" | the smallest sets on average; may be empty |
    | classes | "aps" | sets that grow where the model is unsure, with the likeliest class |
    | several labels for each row | "risk" | of its labels 1 - coverage are missed on average |
    | values | "residual" | value ± one margin |
    | values with their spread | "scaled" | value ± margin * spread |
    | quantiles | "cqr" | the outermost quantiles, moved by a margin |
    | quantiles | "scaled" | the middle quantile ± margin * distance of the outermost ones |

    A spread is that of `jaxops.monte_carlo`, whose model has no reader. A method that draws random
    numbers is not among them, so that a row has the same set in every call.

    Args:
        model: a finished model.
        data: N raw calibration rows, as `model.predict` takes them, on which the model was neither
            trained nor chosen.
        labels: their labels: names of classes (N,), values (N,), or of several labels (N, L) of 0
            and 1, or for each row a list of names.
        coverage: in (0, 1).
        method: see the table; None for the first of the kind.
        group: a column of the data, such as "region": each group gets a margin of its own, and so
            the coverage (Mondrian). It need not be a column that the model reads.
        by_class: each class gets a margin of its own, and so the coverage, also rare ones.
        penalty: of "aps", which is RAPS with a penalty; see `aps_scores`.
        free: of "aps" with a penalty.
        weights: (N,), for new rows whose inputs are distributed in another way: how much likelier
            each row is among them than among the calibration rows, up to a common factor, such as
            `shift_weights` of a classifier of new against old rows. `predict(rows, weights=...)`
            then takes those of the new rows; a row with a large one may have all classes, or an
            infinite interval.

    Returns:
        The model with a `CoveredReader`, whose `predict` gives `Sets` or `Intervals`. It can be
        saved, loaded and served like the model before.

    Raises:
        ValueError: a model that answers with something else, such as forecasts (for these see
            `jaxops.forecast`), or that has thresholds by group; another method; labels that do not
            fit; too few rows, in all or in a group or class, with the number that is needed; or a
            setting without effect.

    References:
        Vovk, Gammerman and Shafer 2005; Romano, Patterson and Candes 2019, arXiv:1905.03222;
        Angelopoulos and Bates 2023, A gentle introduction to conformal prediction,
        arXiv:2107.07511; of weights Tibshirani et al. 2019, arXiv:1904.06019.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=2, classes=("stays", "leaves"))
    >>> rows = np.random.default_rng(0).normal(size=(99, 2)).astype(np.float32)
    >>> labels = np.where(rows[:, 0] > 0, "leaves", "stays")
    >>> model = Model(task, jo.init_state(task, jo.optim.sgd(0.1), 0, {"features": rows}))
    >>> sure = conformal(model, rows, labels, coverage=0.9)
    >>> answer = sure.predict(rows)
    >>> int(sum(label in told for label, told in zip(labels, answer.sets)))  # of 99
    90
    """
    if hasattr(model.reader, "margins"):
        raise ValueError(
            "model must have no conformal margins yet, got a CoveredReader; calibrate "
            "dataclasses.replace(model, reader=model.reader.reader)"
        )
    check_no_rules(model)
    told = seen(model.predict(data), getattr(model.task, "classes", ()))
    known = METHODS[told.kind]
    method = known[0] if method is None else method
    _check(told.kind, method, known, group, by_class, penalty, free)
    if weights is not None and (group is not None or by_class or told.kind == "labels"):
        raise ValueError("weights must be None for groups, by_class or several labels, got some")
    reader = CoveredReader(model.reader, method, coverage, {}, group, by_class, penalty, free)
    rows = len(told.ids)
    if told.kind == "labels":
        margins = {"": label_threshold(told.outputs, _several(labels, told), 1 - coverage)}
    else:
        if told.kind == "classes":
            number = numbers_of(labels, told.names, rows)
            scores = own_scores(reader.scores(told), number)
        else:
            low, high, spread = _ends(told, method)
            scores = quantile_scores((low, high), values_of(labels, rows)) / check_spread(spread)
        if group is not None:
            margins = group_margins(scores, column_of(data, group, rows), coverage)
        elif by_class:
            own = np.array(told.names, object)[number]
            margins = group_margins(scores, own, coverage, told.names)
        elif weights is not None:
            weighted_margins(scores, weights, np.zeros(0), coverage)  # checks them
            reader = replace(reader, weighted=np.stack([scores, np.asarray(weights)]))
            margins = {}
        else:
            check_enough(rows, coverage, "rows of data")
            margins = {"": float(margin(scores, coverage))}
    done = {"method": method, "coverage": coverage, "rows": rows}
    about = {**model.about, "conformal": done}
    return replace(model, reader=replace(reader, margins=margins), about=about)


def _several(labels: Any, told: Seen) -> np.ndarray:
    return several_of(labels, told.names, len(told.ids))


def _check(
    kind: str,
    method: str,
    known: tuple[str, ...],
    group: str | None,
    by_class: bool,
    penalty: float,
    free: int,
) -> None:
    """Raise `ValueError` for a method or a setting that the kind of answer does not have."""
    if method not in known:
        raise ValueError(
            f"method must be {' or '.join(known)} for a model that answers with {kind}, got "
            f"{method!r}"
        )
    if (penalty or free) and method != "aps":
        raise ValueError(f"penalty and free must be 0 for {method!r}, got {penalty} and {free}")
    if by_class and (kind != "classes" or group is not None):
        given = f"group {group!r}" if group is not None else kind
        raise ValueError(f"by_class must be False unless there are classes alone, got {given}")
    if group is not None and kind == "labels":
        raise ValueError(f"group must be None for several labels, got {group!r}")


def _ends(told: Seen, method: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is moved by a margin, down and up, and the unit of the margin, (N,) each."""
    outputs = np.asarray(told.outputs, np.float64)
    ones = np.ones(len(outputs))
    if told.kind != "quantiles":
        spread = ones if method == "residual" else np.asarray(told.spread, np.float64)
        return outputs, outputs, spread
    if len(told.levels) < 2:
        raise ValueError(f"model must have 2 quantiles or more, got levels {told.levels}")
    low, high = outputs.min(1), outputs.max(1)
    if method == "cqr":
        return low, high, ones
    middle = np.asarray(_middle(told), np.float64)
    return middle, middle, high - low


def _middle(told: Seen) -> np.ndarray:
    if told.kind != "quantiles":
        return told.outputs
    place = int(np.argmin(np.abs(np.array(told.levels) - 0.5)))
    middle: np.ndarray = told.outputs[:, place]
    return middle


def _sets(told: Seen, inside: np.ndarray, probabilities: np.ndarray) -> Sets:
    """The answer: for each row the names of the classes inside, the likeliest first."""
    names = np.array(told.names, object)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sets = np.empty(len(inside), object)
    for row, (own, kept) in enumerate(zip(order, inside, strict=True)):
        sets[row] = tuple(names[own[kept[own]]].tolist())
    labels = sets if told.kind == "labels" else names[order[:, 0]]
    return Sets(told.ids, labels, sets, probabilities, told.names)
