"""What a model says of groups of rows, and how far the groups are apart: pure functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxops import _table
from jaxops.fairness.groups import Groups, binary, check_rows, finite, groups_of, probabilities_of
from jaxops.fairness.rates import Figure, Values, difference, rate_of, ratio
from jaxops.trust._figures import BLUE, GREY, PathLike, save_figure
from jaxops.trust.evaluation import BLOCKS, Evaluation, auc_of
from jaxops.trust.intervals import interval
from jaxops.trust.page import grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

BINS = 15  # of the calibration error
EVERYONE = "(everyone)"
MEASURES = {  # of two classes: what is to be equal in all groups
    "demographic parity": ("selection rate",),
    "equal opportunity": ("true positive rate",),
    "equal false positives": ("false positive rate",),
    "equalised odds": ("true positive rate", "false positive rate"),
    "predictive parity": ("precision",),
    "equal accuracy": ("accuracy",),
}
NUMBERS = ("mean prediction", "mean error", "mean absolute error")
WORST = {  # figure -> whether the worst group has the smallest one
    "true positive rate": True,
    "false positive rate": False,
    "precision": True,
    "accuracy": True,
    "auc": True,
    "calibration error": False,
    "mean absolute error": False,
}


@dataclass(frozen=True, eq=False)
class Report:
    """The figures of groups, and how far these are apart; of `of_classes` and `of_numbers`.

    Attributes:
        groups: the group of each row.
        figures: figure -> group (and "(everyone)") -> its value with its interval, and the number
            of rows that it is of, such as those of class 1 for the true positive rate; NaN of none.
        disparities: measure -> its value with its interval, such as "demographic parity
            difference", over the groups that are not small.
        small: the groups of fewer rows than `least`, of which no disparity and no worst group says
            anything, with their rows.
        scored: the same rows as an `Evaluation`. `one.scored.paired(other.scored, "demographic
            parity difference")` compares two models on the same rows.

    >>> rows = np.arange(80)
    >>> found = of_classes(rows % 2, rows % 4 == 1, {"sex": np.where(rows < 40, "f", "m")})
    >>> found.figures["selection rate"]["f"].value, found.disparities["equal accuracy ratio"].value
    (0.25, 1.0)
    >>> isinstance(found, Report), found.small
    (True, {})
    """

    groups: Groups
    figures: dict[str, dict[str, Figure]]
    disparities: dict[str, Figure]
    small: dict[str, int]
    scored: Evaluation

    @property
    def worst(self) -> dict[str, str]:
        """Figure -> the group that is worst off by it, of those that are not small."""
        found = {}
        for name in self.figures.keys() & WORST.keys():
            sign = 1 if WORST[name] else -1
            known = {
                group: sign * one.value
                for group, one in self.figures[name].items()
                if group not in (EVERYONE, *self.small) and not np.isnan(one.value)
            }
            if known:
                found[name] = min(known, key=known.__getitem__)
        return found

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Heading -> rows, for `jaxops.trust.page.page` and `jaxops.report.table`."""
        rows = dict(zip(self.groups.names, self.groups.rows.tolist(), strict=True))
        several = [
            {"group": group, "rows": count}
            | ({"note": _note(count)} if group in self.small else {})
            | {name: _told(of_group[group]) for name, of_group in self.figures.items()}
            for group, count in [(EVERYONE, len(self.groups.place)), *rows.items()]
        ]
        apart = [{"measure": n, "value": _told(one)} for n, one in self.disparities.items()]
        worst = self.worst
        told = [
            {"figure": name, "group": worst[name], "value": _told(self.figures[name][worst[name]])}
            for name in self.figures
            if name in worst
        ]
        by = ", ".join(self.groups.columns)
        return {f"Groups by {by}": several, "Disparities": apart, "Worst groups": told}

    def __str__(self) -> str:
        return "\n\n".join(_table.table(rows) for rows in self.tables().values() if rows)

    def plot(self, path: PathLike | None = None) -> "Picture":
        """A panel for each figure: the groups with their intervals; everyone is the broken line.

        Args:
            path: the PNG file; with None no file is written.
        """

        def draw(axes: Any, of_group: dict[str, Figure]) -> None:
            shown = [(g, one) for g, one in of_group.items() if g != EVERYONE][::-1]
            y, value = np.arange(len(shown)), np.array([one.value for _, one in shown])
            bounds = np.array([[value[i] - one.low, one.high - value[i]] for i, (_, one)
                               in enumerate(shown)]).T  # fmt: skip
            axes.axvline(of_group[EVERYONE].value, color=GREY, linestyle="--", linewidth=1)
            axes.errorbar(value, y, xerr=np.nan_to_num(np.maximum(bounds, 0)), fmt="o", color=BLUE)
            axes.set_yticks(y, [g.replace("$", r"\$") for g, _ in shown], fontsize=7)
            axes.set_ylim(-0.5, len(shown) - 0.5)

        return save_figure(grid(self.figures, draw), path)


def of_classes(
    label: Any,
    predicted: Any,
    protected: Mapping[str, Any],
    probabilities: Any = None,
    *,
    least: int = BLOCKS,
    coverage: float = 0.95,
) -> Report:
    """The figures of a classifier of two classes in each group, and how far the groups are apart.

    With label y, answer s and probability p of class 1, the figures of a group are "base rate"
    (mean y), "selection rate" (mean s), "true positive rate" (mean s where y = 1), "false positive
    rate" (mean s where y = 0), "precision" (mean y where s = 1) and "accuracy", with Wilson's
    intervals. With probabilities there are also "auc"; "calibration gap", the mean of p - y; and
    "calibration error", the mean of |mean p - mean y| over 15 bins of p, weighted by their rows,
    which is above 0 by chance too, the more the fewer rows there are. These have bootstrap
    intervals, if there are 20 rows.

    A disparity is the largest difference and the smallest ratio between two groups, see
    `difference` and `ratio`: of "demographic parity" (selection rate), "equal opportunity" (true
    positive rate), "equal false positives", "equalised odds" (the worse of these two), "predictive
    parity" (precision), "equal accuracy" and "equal calibration" (calibration gap). A group in
    which a rate is not defined is left out of it.

    Args:
        label: (N,) of 0 and 1.
        predicted: (N,) of 0 and 1.
        protected: see `groups_of`.
        probabilities: (N,) of class 1.
        least: the number of rows from which a group counts in the disparities.
        coverage: of the intervals, in (0, 1).

    Raises:
        ValueError: other labels, answers or probabilities; columns of unequal lengths; fewer than
            two groups of `least` rows; or a coverage outside (0, 1).

    References:
        Hardt, Price and Srebro 2016, arXiv:1610.02413; Chouldechova 2017, arXiv:1703.00056.

    >>> rng = np.random.default_rng(0)
    >>> sex, label = rng.choice(["f", "m"], 400), rng.integers(0, 2, 400)
    >>> found = of_classes(label, (sex == "f") | (label == 1), {"sex": sex})
    >>> found.disparities["equal opportunity difference"].value
    0.0
    >>> found.worst["false positive rate"]
    'f'
    """
    y, s = binary("label", label), binary("predicted", predicted)
    groups = groups_of(protected)
    check_rows({"label": y, "predicted": s}, groups)
    large, rates = _large(groups, least), _rates(y, s)
    everyone = _counted(rates, np.zeros(len(y), int), 1)
    of_group = _counted(rates, groups.place, len(groups.names))
    found = {
        name: _figures(everyone[name], one, groups, coverage) for name, one in of_group.items()
    }
    apart: dict[str, Figure] = {}
    for measure, names in MEASURES.items():
        several = [_only(of_group[name], large) for name in names]
        apart[f"{measure} difference"] = difference(several, coverage)
        apart[f"{measure} ratio"] = ratio(several, coverage)
    wholes = {f"{m} difference": _apart(rates, n, groups, large) for m, n in MEASURES.items()}
    right, smaller = {"accuracy": (s == y).astype(float)}, frozenset({*wholes, "calibration error"})
    scored = Evaluation("row", np.arange(len(y)), right, wholes, smaller)
    if probabilities is not None:
        p = probabilities_of("probabilities", probabilities)
        check_rows({"probabilities": p}, groups)
        scored.wholes["auc"] = auc_of(p, y.astype(int))
        scored.wholes["calibration error"] = _calibration_error(p, y)
        gap = _means(p - y, groups)
        apart["equal calibration difference"] = difference([_only(gap, large)], coverage)
        found["auc"] = _by_resampling(scored, "auc", groups, coverage)
        found["calibration gap"] = _figures(_means(p - y, None), gap, groups, coverage)
        found["calibration error"] = _by_resampling(scored, "calibration error", groups, coverage)
    return Report(groups, found, apart, _small(groups, large), scored)


def of_numbers(
    label: Any,
    predicted: Any,
    protected: Mapping[str, Any],
    *,
    least: int = BLOCKS,
    coverage: float = 0.95,
) -> Report:
    """The predictions and errors of a regression in each group, and how far these are apart.

    The figures of a group are "mean label", "mean prediction", "mean error" (of prediction - label)
    and "mean absolute error", with bootstrap intervals. The disparities are the largest differences
    of the last three between two groups.

    Args:
        label: (N,) numbers.
        predicted: (N,) numbers.
        protected: see `groups_of`.
        least: see `of_classes`.
        coverage: see `of_classes`.

    Raises:
        ValueError: numbers that are not finite; see `of_classes`.

    >>> label, sex = np.arange(100.0), np.arange(100) % 2
    >>> found = of_numbers(label, label + sex, {"sex": sex})
    >>> found.figures["mean error"]["1"].value, found.disparities["mean error difference"].value
    (1.0, 1.0)
    """
    y, told = finite("label", label), finite("predicted", predicted)
    groups = groups_of(protected)
    check_rows({"label": y, "predicted": told}, groups)
    large = _large(groups, least)
    rows = {
        "mean label": y,
        "mean prediction": told,
        "mean error": told - y,
        "mean absolute error": np.abs(told - y),
    }
    means = {name: _means(one, groups) for name, one in rows.items()}
    found = {
        name: _figures(_means(rows[name], None), one, groups, coverage)
        for name, one in means.items()
    }
    apart = {f"{n} difference": difference([_only(means[n], large)], coverage) for n in NUMBERS}
    values = {name: rows[name] for name in ("mean error", "mean absolute error")}
    smaller, neutral = frozenset({"mean absolute error"}), frozenset({"mean error"})
    scored = Evaluation("row", np.arange(len(y)), values, smaller=smaller, neutral=neutral)
    return Report(groups, found, apart, _small(groups, large), scored)


def _rates(y: np.ndarray, s: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rate -> the rows that it counts, and those of which it is the share, bool (N,)."""
    every = np.ones(len(y), bool)
    return {
        "base rate": (y, every),
        "selection rate": (s, every),
        "true positive rate": (s, y),
        "false positive rate": (s, ~y),
        "precision": (y, s),
        "accuracy": (s == y, every),
    }


def _counted(rates: Mapping[str, Any], place: np.ndarray, count: int) -> dict[str, Values]:
    """The rates of each of so many groups."""
    return {
        name: rate_of(*(np.bincount(place[rows], minlength=count) for rows in (hit & of, of)))
        for name, (hit, of) in rates.items()
    }


def _apart(
    rates: Mapping[str, Any], names: Sequence[str], groups: Groups, large: np.ndarray
) -> Callable[[np.ndarray], float]:
    """The largest difference of rates among some rows, as one of `Evaluation.wholes`."""

    def apart(rows: np.ndarray) -> float:
        some = {name: [part[rows] for part in rates[name]] for name in names}
        found = _counted(some, groups.place[rows], len(large))
        known = [one.value[large & ~np.isnan(one.value)] for one in found.values()]
        return max((float(np.ptp(one)) for one in known if len(one) > 1), default=np.nan)

    return apart


def _means(numbers: np.ndarray, groups: Groups | None) -> Values:
    """The mean of each group, or without groups of all rows, with bootstrap intervals."""
    parts = [numbers]
    if groups is not None:
        parts = [numbers[groups.place == i] for i in range(len(groups.names))]

    def limits(coverage: float) -> tuple[np.ndarray, np.ndarray]:
        bounds = [
            interval(part, coverage=coverage)[1:] if len(part) >= BLOCKS else (np.nan, np.nan)
            for part in parts
        ]
        low, high = np.array(bounds).T
        return low, high

    rows = np.array([len(part) for part in parts])
    return Values(np.array([part.mean() for part in parts]), rows, limits)


def _calibration_error(p: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], float]:
    place = np.clip((p * BINS).astype(int), 0, BINS - 1)
    gap = p - y

    def error(rows: np.ndarray) -> float:
        return float(np.abs(np.bincount(place[rows], gap[rows], BINS)).sum() / max(len(rows), 1))

    return error


def _by_resampling(
    scored: Evaluation, name: str, groups: Groups, coverage: float
) -> dict[str, Figure]:
    """A figure of everyone and of each group, with the interval of `Evaluation`."""
    parts = {EVERYONE: np.ones(len(groups.place), bool)}
    parts |= {group: groups.place == i for i, group in enumerate(groups.names)}
    found = {}
    for group, rows in parts.items():
        one = scored.part(rows)
        found[group] = Figure(*one.interval(name, coverage), len(one))
    return found


def _figures(
    everyone: Values, values: Values, groups: Groups, coverage: float
) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for names, one in (((EVERYONE,), everyone), (groups.names, values)):
        columns = (one.value, *one.limits(coverage), one.rows)
        rows = zip(names, *(column.tolist() for column in columns), strict=True)
        found |= {group: Figure(*own) for group, *own in rows}
    return found


def _only(values: Values, large: np.ndarray) -> Values:
    """The values with NaN for the small groups."""
    return values._replace(value=np.where(large, values.value, np.nan))


def _small(groups: Groups, large: np.ndarray) -> dict[str, int]:
    """The small groups with their rows."""
    rows = zip(groups.names, groups.rows.tolist(), large, strict=True)
    return {name: count for name, count, enough in rows if not enough}


def _large(groups: Groups, least: int) -> np.ndarray:
    """Which groups have `least` rows, bool (G,).

    Raises:
        ValueError: fewer than two.
    """
    large: np.ndarray = groups.rows >= least
    if large.sum() < 2:
        pairs = zip(groups.names, groups.rows, strict=True)
        told = ", ".join(f"{name} ({count:,})" for name, count in [*pairs][:10])
        raise ValueError(
            f"protected must have at least 2 groups of {least} rows, got {told}; join small groups "
            "into one, take fewer columns, or give a smaller least"
        )
    return large


def _note(rows: int) -> str:
    return "one row: join it with another group" if rows == 1 else "small: not in the disparities"


def _told(figure: Figure) -> str:
    if np.isnan(figure.value):
        return "not defined"
    bounds = "" if np.isnan(figure.low) else f" [{figure.low:.4f}, {figure.high:.4f}]"
    return f"{figure.value:.4f}{bounds}"
