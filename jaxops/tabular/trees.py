"""Gradient-boosted trees as methods of `fit` and members of ensembles; scikit-learn's own.

They learn from the table itself: the number of each text, and numbers as they are. The validation
rows say how many trees are kept. What comes out is a closed form that a model file can hold.
"""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxops._optional import require
from jaxops.model.finished import Program
from jaxops.tabular.hist_trees import HistTrees, categories_of, of_scikit_learn, ranks_of
from jaxops.tabular.parts import Parts
from jaxops.task import Array, Batch, Column, recorded

PATIENCE = 100  # rounds without a better validation loss
FIRST = 64  # rounds of scikit-learn's trees before the time is looked at


class Rows(NamedTuple):
    """What trees learn from.

    Attributes:
        x: float32 (N, d), see `matrix`.
        y: classes, whole numbers from 0 on without a gap; standardised numbers or counts, float64.
        weights: of the rows, or None.
    """

    x: np.ndarray
    y: np.ndarray
    weights: np.ndarray | None


class Goal(NamedTuple):
    """What trees are to learn.

    Attributes:
        kind: "classes", "number" (by squared error) or "counts" (Poisson distributed).
        classes: the number of classes.
    """

    kind: str
    classes: int = 0


class Trees:
    """What the methods of this module share: settings that are those of the library's class."""

    own: ClassVar[frozenset[str]] = frozenset()  # settings of the library that `fit` sets
    defaults: ClassVar[tuple[dict[str, Any], dict[str, Any]]]  # of classes, and of numbers

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def given(self, goal: Goal) -> dict[str, Any]:
        """The settings of the user, and the defaults of the others."""
        return self.defaults[0 if goal.classes else 1] | self.settings

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        return f"{type(self).__name__}({told})"

    def classes(self) -> tuple[type, ...]:
        """The library's own classes, for classes and for numbers."""
        raise NotImplementedError

    def check(self) -> None:
        """Check the settings, before anything is read.

        Raises:
            ValueError: a setting that the library's class does not have, or that `fit` sets.
            ImportError: the library is not installed.
        """
        known = {
            name
            for one in self.classes()
            for base in one.__mro__
            for name in inspect.signature(base.__init__).parameters  # type: ignore[misc]
        }
        odd = sorted(self.settings.keys() - (known - self.own - {"self", "args", "kwargs"}))
        if odd:
            raise ValueError(
                f"settings of {type(self).__name__} must be of its library and none that fit sets, "
                f"got {odd[0]!r}"
            )

    def boosted(
        self, train: Rows, validation: Rows, goal: Goal, texts: Sequence[int], seed: int, end: float
    ) -> Any:
        """The trees of one training: a `HistTrees`, or a `Boosted`.

        Args:
            train: the train rows.
            validation: the rows that stop it.
            goal: what they are to learn.
            texts: the number of values of each column of text.
            seed: of the drawing of rows and columns.
            end: the time (`time.monotonic`) at which it stops.
        """
        raise NotImplementedError


class HistGradientBoosting(Trees):
    """Scikit-learn's histogram-based gradient boosting: the trees that are always there.

    At most 1,000 rounds with a learning rate of 0.05 unless the settings say otherwise. Of a column
    of text the 254 most frequent values (`max_bins - 1`) are categories of their own, and the
    others share one. The trees predict in JAX, from arrays, and a model file needs no
    scikit-learn.

    Args:
        **settings: of `sklearn.ensemble.HistGradientBoostingClassifier` (and `Regressor`), such as
            `max_leaf_nodes` and `learning_rate`.

    >>> from jaxops import tabular
    >>> x = np.arange(60.0)
    >>> table = {"x": x, "y": np.where((x > 20) & (x < 40), "in", "out")}
    >>> trees = tabular.HistGradientBoosting(max_iter=20, min_samples_leaf=5)
    >>> model = tabular.fit(table, trees, label="y", progress=False)
    >>> model.predict({"x": [0, 30]}).labels.tolist()
    ['out', 'in']
    """

    own = frozenset(
        {"loss", "categorical_features", "early_stopping", "scoring", "validation_fraction"}
        | {"warm_start", "random_state", "verbose"}
    )
    defaults = ({"max_iter": 1000, "learning_rate": 0.05, "n_iter_no_change": PATIENCE // 2},) * 2

    def classes(self) -> tuple[type, ...]:
        """The library's own classes, for classes and for numbers."""
        ensemble = require("sklearn.ensemble", extra="data")
        return ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor

    def boosted(
        self, train: Rows, validation: Rows, goal: Goal, texts: Sequence[int], seed: int, end: float
    ) -> HistTrees:
        """The trees of one training; see `Trees.boosted`."""
        settings = self.given(goal)
        most = settings.pop("max_iter")
        ranks = ranks_of(train.x, texts, settings.get("max_bins", 255))
        x, held = (categories_of(rows.x, ranks) for rows in (train, validation))
        categories = np.arange(x.shape[1]) < len(texts)
        model = self.classes()[0 if goal.classes else 1](
            **settings,
            max_iter=min(FIRST, most),
            categorical_features=categories if len(texts) else None,
            early_stopping=True,
            scoring="loss",
            warm_start=True,
            random_state=seed,
            **({"loss": "poisson"} if goal.kind == "counts" else {}),
        )
        given = {"X_val": held, "y_val": validation.y, "sample_weight_val": validation.weights}
        while True:  # in parts, as it has no other way to stop at a time
            model.fit(x, train.y, train.weights, **given)
            stopped = model.n_iter_ < model.max_iter or model.max_iter == most
            if stopped or time.monotonic() > end:
                break
            model.max_iter = min(2 * model.max_iter, most)
        rounds = max(int(np.argmax(model.validation_score_)), 1)  # the first is without a tree
        return of_scikit_learn(model, goal.kind, rounds, ranks, validation.x[:256])


@recorded
@dataclass(frozen=True, eq=False)
class TreeModel:
    """Trained trees as the closed form of a finished model.

    Attributes:
        trees: `Boosted` or `HistTrees`.
        texts: text column -> its sorted train values, of which each has a number.
        numbers: column of numbers -> what is subtracted before it is rounded to float32.
        kind: "classes", "number" or "counts".
        classes: the names of the classes.
        present: the numbers of the classes that the train rows had; the others have probability 0.
        mean: of the target in the train rows.
        std: its standard deviation.
    """

    reads_table: ClassVar[bool] = True
    trees: Any  # Boosted or HistTrees
    texts: dict[str, list[str]]
    numbers: dict[str, float]
    kind: str
    classes: tuple[str, ...] = ()
    present: tuple[int, ...] = ()
    mean: float = 0.0
    std: float = 1.0

    def outputs(self, columns: Mapping[str, np.ndarray], batch_size: int) -> np.ndarray:
        """Probabilities, as of `tabular.classifier`, or numbers in the target's unit, float32."""
        x = matrix(self.texts, self.numbers, columns)
        parts = [
            self.trees.predict(x[first : first + batch_size], self.kind)
            for first in range(0, len(x), batch_size)
        ]
        found = np.concatenate(parts)
        if self.kind != "classes":
            return (self.mean + self.std * found.astype(np.float64)).astype(np.float32)
        p = np.zeros((len(found), len(self.classes)), np.float32)
        p[:, list(self.present)] = found
        return p[:, 1] if len(self.classes) == 2 else p

    def exported(self) -> Program:
        """What the trees compute of the numbers of a row, for `jaxops.export`.

        Raises:
            ValueError: trees of another library, which computes them.
        """
        trees = self.trees
        if not isinstance(trees, HistTrees):
            raise ValueError(
                "trees must be of HistGradientBoosting to be exported, as those are arrays, got "
                f"{trees.library}, which its library computes; fit without it"
            )

        def function(arrays: Any, columns: Batch) -> Array:
            x = jnp.where(columns["missing"], jnp.nan, columns["cells"])
            found = trees.program(arrays, x, self.kind)
            if self.kind != "classes":
                return self.mean + self.std * found
            p = jnp.zeros((len(found), len(self.classes))).at[:, jnp.array(self.present)].set(found)
            return p[:, 1] if len(self.classes) == 2 else p

        width = len(self.texts) + len(self.numbers)
        columns = Column("cells", (width,)), Column("missing", (width,), "bool")
        known = {"texts": self.texts, "numbers": self.numbers}
        return Program(function, trees.arrays, columns, {"trees": known})


def matrix(
    texts: Mapping[str, list[str]], numbers: Mapping[str, float], table: Mapping[str, np.ndarray]
) -> np.ndarray:
    """What trees read of a table, float32 (N, d): the number of each text, then the numbers.

    A text that is none of the known ones has -1; a missing number is NaN.

    Args:
        texts: text column -> its sorted values.
        numbers: column of numbers -> what is subtracted from it, see `offset_of`.
        table: columns by name.

    >>> table = {"age": np.array([3.0]), "plan": ["b"]}
    >>> matrix({"plan": ["a", "b"]}, {"age": 0.0}, table).tolist()
    [[1.0, 3.0]]
    """
    pd = require("pandas", extra="data")

    codes = [pd.Index(values).get_indexer(table[name]) for name, values in texts.items()]
    shifted = [table[name] - offset for name, offset in numbers.items()]
    return np.stack([*codes, *shifted], -1).astype(np.float32)


def offset_of(x: np.ndarray) -> float:
    """0 or the median of a column, by which more of its values stay different as float32.

    Trees compare numbers, and float32 keeps no more than 24 bits of them: seconds since 1970 would
    be equal for two minutes.

    Args:
        x: float64 (N,); NaN where it is missing.

    >>> offset_of(np.array([1.0, 2.0, 2.0])), offset_of(1.7e9 + np.array([0.0, 1.0, 2.0]))
    (0.0, 1700000001.0)
    """
    known = x[~np.isnan(x)]
    if (known == known.astype(np.float32)).all():
        return 0.0
    different = [len(np.unique((known - y).astype(np.float32))) for y in (0.0, np.median(known))]
    return float(np.median(known)) if different[1] > different[0] else 0.0


def grown(method: Trees, parts: Parts, seed: int, seconds: float) -> TreeModel:
    """Train trees on the rows of a table.

    Args:
        method: which.
        parts: the rows; validation rows of classes that the train rows lack are not looked at.
        seed: of the drawing of rows and columns.
        seconds: the time after which it stops.

    Raises:
        ValueError: train rows of one class, or of one value; no validation row of their classes.
    """
    end, label = time.monotonic() + seconds, parts.label
    table = {name: column for name, column in parts.train.items() if name != label}
    texts = {n: sorted(set(c.tolist())) for n, c in table.items() if c.dtype.kind == "O"}
    numbers = {n: offset_of(column) for n, column in table.items() if n not in texts}
    sizes = [len(values) for values in texts.values()]
    of_rows = zip(
        (parts.train, parts.validation), parts.targets(), parts.row_weights(), strict=True
    )
    train, held = (Rows(matrix(texts, numbers, part), y, w) for part, y, w in of_rows)
    if np.ptp(train.y) == 0:
        raise ValueError(
            f"{label} must vary in the train rows, got {parts.train[label][0]} in every row"
        )
    classes = tuple(parts.reader.encoder.classes)
    if not classes:
        kind, mean, std = parts.reader.target, 0.0, 1.0
        if kind != "counts":
            kind = "number"
            mean, std = (float(x) for x in (train.y.mean(dtype=float), train.y.std(dtype=float)))
        train, held = (
            rows._replace(y=(rows.y.astype(np.float64) - mean) / std) for rows in (train, held)
        )
        trees = method.boosted(train, held, Goal(kind), sizes, seed, end)
        return TreeModel(trees, texts, numbers, kind, mean=mean, std=std)
    present = np.unique(train.y)
    known = np.isin(held.y, present)  # the others have no column among the outputs
    if not known.any():
        raise ValueError("validation must have a row of the classes of the train rows, got none")
    held = Rows(held.x[known], held.y[known], None if held.weights is None else held.weights[known])
    train, held = (rows._replace(y=np.searchsorted(present, rows.y)) for rows in (train, held))
    trees = method.boosted(train, held, Goal("classes", len(present)), sizes, seed, end)
    return TreeModel(trees, texts, numbers, "classes", classes, tuple(present.tolist()))
