"""How much worse a model predicts when a column tells it nothing: permutation importance."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxops import _table
from jaxops.data.tables import Source
from jaxops.explain.tables.frames import checked_columns, columns_read, frame_of, taken, texts_of
from jaxops.model.finished import Model, frame
from jaxops.trust._figures import BLUE, PathLike, new_figure, open_frame, save_figure
from jaxops.trust.evaluation import BLOCKS, Evaluation
from jaxops.trust.intervals import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 200  # of the rows, for a figure that is not a mean

Metric = str | Callable[[Any, Any], Any]


class Importance(NamedTuple):
    """How much worse a metric is without what each of P columns, or groups of them, tells.

    Attributes:
        metric: its name.
        score: the metric of the rows as they are.
        names: of the columns or groups, the most important first.
        values: float64 (P,), the mean change of the metric for the worse.
        low: float64 (P,), the lower bound of the interval; NaN without one.
        high: float64 (P,), the upper bound.
        repeats: float64 (P, R), the change of each repeat.

    >>> print(Importance("mse", 1.0, ("age",), *np.array([[2.0], [1.5], [2.5]]), np.ones((1, 1))))
    | column | worse by | 95 % interval    |
    |--------|---------:|------------------|
    | age    |        2 | [1.5000, 2.5000] |
    """

    metric: str
    score: float
    names: tuple[str, ...]
    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    repeats: np.ndarray

    def frame(self) -> Any:
        """A pandas frame: column, importance, low and high."""
        names, bounds = np.array(self.names, object), {"low": self.low, "high": self.high}
        return frame({"column": names, "importance": self.values, **bounds})

    def __str__(self) -> str:
        rows = []
        for name, value, low, high in zip(
            self.names, self.values, self.low, self.high, strict=True
        ):
            bounds = f"[{low:.4f}, {high:.4f}]" if np.isfinite(low) else "[-]"
            rows.append({"column": name, "worse by": value, "95 % interval": bounds})
        return _table.table(rows)

    def plot(self, path: PathLike | None = None) -> "Figure":
        """Bars with their intervals, the most important at the top."""
        figure = new_figure(6.4, 0.9 + 0.28 * len(self.names))
        axes = figure.subplots()
        open_frame(axes)
        places = np.arange(len(self.names))[::-1]
        bounds = np.abs(np.stack([self.values - self.low, self.high - self.values]))
        axes.barh(places, self.values, color=BLUE, xerr=np.nan_to_num(bounds), ecolor="#333333")
        axes.set_yticks(places, self.names)
        axes.set_xlabel(f"{self.metric}: worse by, without the column")
        return save_figure(figure, path)


def permutation_importance(
    model: Any,
    rows: Source,
    metric: Metric | None = None,
    *,
    columns: Sequence[str] | Mapping[str, str | Sequence[str]] | None = None,
    repeats: int = 5,
    evaluate: Callable[[Model, Any], Evaluation] | None = None,
    seed: int = 0,
) -> Importance:
    """How much worse the model predicts when each row has another row's value in a column.

    The rows should be ones that the model has not been trained on. In each repeat each row gets the
    value of one other row, and no value is used twice. So the mean over many repeats is the model
    reliance e_switch - e_orig; with N - 1 repeats, where each row has had the value of every other
    one, it is exactly that. Columns that tell the same, such as an age and a year of birth, hide
    each other's importance: permute them together, as a group.

    Args:
        model: a finished model; or with a function as metric a function of a frame of raw rows.
        rows: N rows with their labels.
        metric: a figure of the room's `evaluate`, such as "auc"; by default the first with a value
            for each row where less is better, such as "log_loss". Or a function
            `(answer, frame) -> loss` of what the model predicts for a frame of rows: one value a
            row (N,), or one for all; larger is worse.
        columns: which, or name -> columns of a group; by default all that the model reads.
        repeats: how often each column is permuted, at most N - 1.
        evaluate: `(model, rows) -> Evaluation`; by default `evaluate` of the model's room.
        seed: of the permutations and of the intervals.

    Returns:
        `Importance` with 95 % intervals. Where the metric has a value for each row, they are over
        the rows, also as those whose values are taken. Of a figure of `Evaluation.wholes` such as
        AUC they leave out the latter, so that they are narrow; both are NaN of fewer than 20 rows.
        Of a function that gives one number they are over the repeats, and say nothing of other
        rows.

    Raises:
        ValueError: a column that is not there; too many repeats; a metric that is unknown; a model
            without a table's encoder, and no columns.

    References:
        Breiman 2001, Random forests; Fisher, Rudin and Dominici 2019, arXiv:1801.01489.

    >>> rng = np.random.default_rng(0)
    >>> table = {"x": rng.normal(size=200), "noise": rng.normal(size=200)}
    >>> model = lambda rows: 3 * rows["x"].to_numpy()
    >>> table["y"] = 3 * table["x"]
    >>> squared = lambda predicted, rows: (predicted - rows["y"].to_numpy()) ** 2
    >>> permutation_importance(model, table, squared, columns=["noise", "x"]).names
    ('x', 'noise')
    """
    table = frame_of(rows, text=texts_of(model))
    groups = _groups(columns, model, table)
    if not 1 <= repeats < len(table):
        raise ValueError(
            f"repeats must be 1 to {len(table) - 1} (the number of rows less 1), got {repeats}"
        )
    loss, name, score = _loss_of(model, table, metric, evaluate)
    before = loss(table)
    score = before.one if score is None else score
    rng = np.random.default_rng(seed)
    found = [_of_group(loss, before, table, group, repeats, rng, seed) for group in groups.values()]
    order = np.argsort([-value for value, *_ in found], kind="stable")
    names = tuple([*groups][place] for place in order)
    each = (np.array(x) for x in zip(*(found[place] for place in order), strict=True))
    return Importance(name, score, names, *each)


class _Loss(NamedTuple):
    """The loss of each row, (N,); or of any choice of them; or one number."""

    each: np.ndarray | None
    of: Callable[[np.ndarray], float] | None
    one: float


def _loss_of(
    model: Any, table: Any, metric: Metric | None, evaluate: Any
) -> tuple[Callable[[Any], _Loss], str, float | None]:
    """A function from rows to the loss, its name, and the room's figure of the rows as they are."""
    if callable(metric):
        if evaluate is not None:
            raise ValueError("evaluate must be None where metric is a function, got a function")
        predict = model.predict if isinstance(model, Model) else model
        return _own(predict, metric), getattr(metric, "__name__", "loss"), None
    if not isinstance(model, Model):
        raise ValueError(f"metric must be a function for a function of rows, got {metric!r}")
    score = _room_evaluate(model) if evaluate is None else evaluate
    first: Evaluation = score(model, table)
    figures = first.figures()
    least = [one for one in first.values if one in first.smaller]
    name = next(iter([*least, *figures])) if metric is None else metric
    if name not in figures or name in first.neutral:
        known = [one for one in figures if one not in first.neutral]
        raise ValueError(f"metric must be one of {', '.join(known)}, got {name!r}")
    sign = 1 if name in first.smaller else -1

    def loss(rows: Any) -> _Loss:
        scored = score(model, rows)
        if name in scored.wholes:
            of = scored.wholes[name]
            return _Loss(None, lambda some: sign * of(some), sign * of(np.arange(len(scored))))
        each = sign * np.asarray(scored.values[name], np.float64)
        each = each.mean(1) if each.ndim == 2 else each
        return _Loss(each, None, float(np.nanmean(each)))

    return loss, name, figures[name]


def _own(predict: Callable[[Any], Any], metric: Callable[[Any, Any], Any]) -> Any:
    """The loss by a user's function."""

    def loss(rows: Any) -> _Loss:
        value = np.asarray(metric(predict(rows), rows), np.float64)
        if value.shape not in ((), (len(rows),)) or not np.isfinite(value).all():
            raise ValueError(
                f"metric must give one finite loss, or one for each of {len(rows):,} rows, got "
                f"shape {value.shape}"
            )
        return _Loss(value if value.ndim else None, None, float(value.mean()))

    return loss


def _room_evaluate(model: Model) -> Any:
    room = importlib.import_module(f"jaxops.{model.room}") if model.room else None
    if not hasattr(room, "evaluate"):
        raise ValueError(
            "evaluate must be given for a model of no room that evaluates, got None; or give a "
            "function as metric"
        )
    return getattr(room, "evaluate")  # noqa: B009


def _groups(columns: Any, model: Any, table: Any) -> dict[str, list[str]]:
    """Name -> the columns that are permuted together."""
    if columns is None:
        columns = columns_read(model, table)
    if not isinstance(columns, Mapping):
        columns = {column: [column] for column in checked_columns("columns", columns, table)}
    groups = {str(n): checked_columns(f"columns[{n!r}]", g, table) for n, g in columns.items()}
    if not groups or not all(groups.values()):
        raise ValueError(f"columns must name at least one column, got {columns}")
    return groups


def _of_group(
    loss: Callable[[Any], _Loss],
    before: _Loss,
    table: Any,
    group: list[str],
    repeats: int,
    rng: np.random.Generator,
    seed: int,
) -> tuple[float, float, float, np.ndarray]:
    """The importance of a group, its bounds, and that of each repeat."""
    count = len(table)
    order, shifts = rng.permutation(count), 1 + rng.permutation(count - 1)[:repeats]
    after, own, given = [], [], []
    for shift in shifts:
        donors = np.empty(count, np.int64)
        donors[order] = order[(np.arange(count) + shift) % count]
        after.append(loss(taken(table, group, donors)))
        if (each := after[-1].each) is not None:
            own.append(each - before.each)
            given.append(own[-1][np.argsort(donors)])
    changes = np.array([one.one - before.one for one in after])
    value = float(changes.mean())
    if before.each is not None:
        # a row counts by the change of its own loss, and by that of the rows which got its value
        rows = np.mean(own, axis=0) + np.mean(given, axis=0) - np.nanmean(given)
        rows = rows[np.isfinite(rows)]
        enough = len(rows) >= BLOCKS
        bounds = interval(rows, seed=seed)[1:] if enough else (np.nan, np.nan)
    elif before.of is not None:
        bounds = _resampled(before.of, [one.of for one in after], count, seed)
    else:
        bounds = interval(changes, seed=seed)[1:] if repeats > 1 else (np.nan, np.nan)
    return value, *bounds, changes


def _resampled(before: Any, after: list[Any], count: int, seed: int) -> tuple[float, float]:
    """The bounds of a figure's change over samples of the rows."""
    if count < BLOCKS:
        return np.nan, np.nan
    rng, drawn = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        rows = rng.integers(0, count, count)
        drawn.append(np.mean([one(rows) for one in after]) - before(rows))
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)
