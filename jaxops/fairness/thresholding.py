"""Thresholds by group, drawn at random where they have to be: a wrapper of a finished model."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from jaxops.fairness.groups import Groups, binary, check_rows, groups_of, probabilities_of
from jaxops.fairness.reporting import answered, columns_of
from jaxops.model.finished import Model
from jaxops.task import recorded

NEVER, ALWAYS = 1.0, -1.0  # thresholds that no probability is above, and that all are
RATES = {
    "demographic parity": ("selected",),
    "equal opportunity": ("of class 1",),
    "equalised odds": ("of class 1", "of class 0"),
}
LEAST = 1e-9  # share of a threshold in a mixture

Rules = dict[str, tuple[tuple[float, float], ...]]
"""Group -> (share, threshold) of each part of its mixture: a row of this group is of class 1 if its
probability is above a threshold, which is drawn with these shares."""


def optimal_thresholds(
    label: Any,
    probabilities: Any,
    protected: Mapping[str, Any],
    constraint: str = "demographic parity",
    tolerance: float = 0.0,
) -> Rules:
    """The thresholds by group with the highest accuracy under a constraint on the groups' rates.

    The rates of all groups must lie within `tolerance`: the selection rates ("demographic parity"),
    the true positive rates ("equal opportunity"), or those and the false positive rates ("equalised
    odds"). A group's rates are those of a mixture of thresholds on the upper convex hull of its ROC
    curve. The shares of the mixtures solve one linear program, so that there is no better solution,
    whatever thresholds are mixed; on other rows the rates are not quite equal.

    Args:
        label: (N,) of 0 and 1.
        probabilities: (N,) of class 1, in [0, 1].
        protected: see `groups_of`.
        constraint: see above.
        tolerance: in [0, 1].

    Raises:
        ValueError: another constraint; a tolerance or probabilities outside [0, 1]; a group without
            rows of a class whose rate is constrained.

    References:
        Hardt, Price and Srebro 2016, arXiv:1610.02413.

    >>> label = np.array([0, 1, 0, 1, 0, 0, 1, 1])
    >>> p = np.array([0.1, 0.3, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9])
    >>> rules = optimal_thresholds(label, p, {"sex": list("ffffmmmm")})
    >>> {group: [(s, round(t, 2)) for s, t in rule] for group, rule in rules.items()}
    {'f': [(1.0, 0.25)], 'm': [(1.0, 0.75)]}
    """
    if constraint not in RATES:
        raise ValueError(f"constraint must be one of {', '.join(RATES)}, got {constraint!r}")
    if not 0 <= tolerance <= 1:
        raise ValueError(f"tolerance must be in [0, 1], got {tolerance}")
    y, p = binary("label", label), probabilities_of("probabilities", probabilities)
    groups = groups_of(protected)
    check_rows({"label": y, "probabilities": p}, groups)
    curves = [_hull(p[groups.place == g], y[groups.place == g]) for g in range(len(groups.names))]
    for name, (_, false, true) in zip(groups.names, curves, strict=True):
        lost = [k for k, rows in ((1, true), (0, false)) if rows[-1] == 0]
        lost = [k for k in lost if f"of class {k}" in RATES[constraint]]
        if lost:
            raise ValueError(
                f"protected must have rows of class {lost[0]} in each group for {constraint}, got "
                f"none in {name}; join groups"
            )
    shares = _solved(curves, RATES[constraint], tolerance)
    rules: Rules = {}
    for name, (thresholds, *_), share in zip(groups.names, curves, shares, strict=True):
        kept = share > LEAST
        parts = zip((share[kept] / share[kept].sum()).tolist(), thresholds[kept].tolist(),
                    strict=True)  # fmt: skip
        rules[name] = tuple(parts)
    return rules


def _hull(p: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds on the upper hull of the ROC curve, and how many of class 0 and 1 are above."""
    levels, place = np.unique(-p, return_inverse=True)
    levels = -levels
    of_class = [np.bincount(place[y == k], minlength=len(levels)).cumsum() for k in (False, True)]
    false, true = (np.concatenate([[0], counts]) for counts in of_class)
    between = (levels[:-1] + levels[1:]) / 2
    thresholds = np.concatenate([[NEVER], between, [ALWAYS]])
    kept: list[int] = []
    for i, (x, h) in enumerate(zip(false.tolist(), true.tolist(), strict=True)):
        while len(kept) > 1:
            (x0, h0), (x1, h1) = ((false[k], true[k]) for k in kept[-2:])
            if (h1 - h0) * (x - x0) > (h - h0) * (x1 - x0):
                break
            kept.pop()
        kept.append(i)
    return thresholds[kept], false[kept], true[kept]


def _solved(
    curves: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
    constrained: Sequence[str],
    tolerance: float,
) -> list[np.ndarray]:
    """The shares of each group's thresholds: of a linear program, also of the lowest rates."""
    ends = np.cumsum([0, *(len(thresholds) for thresholds, *_ in curves)])
    own = [slice(*pair) for pair in itertools.pairwise(ends.tolist())]
    variables = int(ends[-1])
    gain = np.zeros(variables + len(constrained))
    one, above = np.zeros((len(curves), len(gain))), []
    for g, (_, false, true) in enumerate(curves):
        gain[own[g]] = true - false
        one[g, own[g]] = 1
        rates = {
            "selected": (false + true) / (false[-1] + true[-1]),
            "of class 1": true / max(true[-1], 1),
            "of class 0": false / max(false[-1], 1),
        }
        for i, name in enumerate(constrained):
            row = np.zeros(len(gain))
            row[own[g]], row[variables + i] = rates[name], -1.0
            above.append(row)
    most = np.array(above)
    limits = np.concatenate([np.full(len(most), tolerance), np.zeros(len(most))])
    found = scipy.optimize.linprog(
        -gain / max(1.0, float(np.abs(gain).max())),
        A_ub=np.concatenate([most, -most]),
        b_ub=limits,
        A_eq=one,
        b_eq=np.ones(len(curves)),
        bounds=(0, 1),
        method="highs-ds",
    )
    if not found.success:
        raise ValueError(f"thresholds must have a solution, got none: {found.message}")
    return [found.x[part] for part in own]


def chances(rules: Rules, groups: Groups, probabilities: np.ndarray) -> np.ndarray:
    """The chance of each row to be of class 1, float64 (N,).

    Args:
        rules: of `optimal_thresholds`.
        groups: of the rows.
        probabilities: (N,) of class 1.

    Raises:
        ValueError: a group that the rules do not know, with its row.

    >>> groups = groups_of({"sex": ["f", "m"]})
    >>> rules = {"f": ((0.25, 0.5), (0.75, 0.9)), "m": ((1.0, 0.5),)}
    >>> chances(rules, groups, np.array([0.7, 0.7])).tolist()
    [0.25, 1.0]
    """
    chance = np.zeros(len(groups.place))
    for g, name in enumerate(groups.names):
        rows = groups.place == g
        if name not in rules:
            raise ValueError(
                f"{', '.join(groups.columns)} must be one of {'; '.join(rules)}, got {name!r} in "
                f"row {int(rows.argmax())}; no threshold is known for it"
            )
        for share, threshold in rules[name]:
            chance[rows] += share * (probabilities[rows] > threshold)
    return np.minimum(chance, 1.0)


@recorded
@dataclass(frozen=True, eq=False)
class ByGroup:
    """The reader of a model with thresholds by group; of `thresholds`.

    Attributes:
        reader: of the model within, which gives the probabilities.
        protected: the protected columns, which every table must have.
        rules: see `Rules`.
        positive: the number of class 1.
        constraint: by which the rules were found.
        seed: of the draws.

    >>> ByGroup(None, ("sex",), {}, 1).room
    'fairness'
    """

    room = "fairness"
    reader: Any
    protected: tuple[str, ...]
    rules: Rules
    positive: int
    constraint: str = ""
    seed: int = 0

    @property
    def streams(self) -> bool:
        """Whether the rows are independent, as the reader within says."""
        return getattr(self.reader, "streams", False)

    def predict(self, model: Model, data: Any, **options: Any) -> Any:
        """The answer of the model within, with labels by these thresholds.

        Its probabilities are those of the model. Where the thresholds of a group are drawn, the
        draw of a row depends on the seed and on its id, so that the same person is always told the
        same. If the reader within has no column of ids, it depends on the number of the row and on
        its probability.

        Args:
            model: the model.
            data: what the reader within reads, with the protected columns beside.
            **options: of the reader within.
        """
        groups = groups_of(columns_of(data, self.protected))
        answer = self.reader.predict(model, data, **options)
        p = np.asarray(answer.probabilities[:, self.positive], np.float64)
        # with ids not by the probability too: another batch may round it to other digits
        other = p if getattr(self.reader, "id", None) is None else None
        chosen = _drawn(chances(self.rules, groups, p), answer.ids, other, self.seed)
        names = np.array(answer.classes, object)
        return answer._replace(labels=names[np.where(chosen, self.positive, 1 - self.positive)])

    def describe(self) -> dict[str, str]:
        """What it reads, for people."""
        inner = self.reader.describe() if hasattr(self.reader, "describe") else {}
        told = {
            group: "; ".join(f"{share:.3g} at {at:.3g}" for share, at in rule)
            for group, rule in self.rules.items()
        }
        return {
            **inner,
            "protected": ", ".join(self.protected),
            "thresholds for": self.constraint,
            **{f"threshold of {group}": rule for group, rule in told.items()},
        }

    def exported(self, model: Model) -> dict[str, Any]:
        """Refuse: an exported program gives probabilities, and knows no groups.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "model must be without thresholds by group to be exported, got some; export the model "
            "within: dataclasses.replace(model, reader=model.reader.reader)"
        )


def _drawn(chance: np.ndarray, ids: np.ndarray, other: np.ndarray | None, seed: int) -> np.ndarray:
    """Which rows are of class 1, bool (N,); a row's draw does not depend on other rows."""
    chosen = chance >= 1 - LEAST
    for row in np.flatnonzero((chance > LEAST) & ~chosen):
        text = f"{seed} {ids[row]}" + ("" if other is None else f" {other[row]:.6g}")
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        chosen[row] = int.from_bytes(digest, "big") / 2**64 < chance[row]
    return chosen


def thresholds(
    model: Model,
    rows: Any,
    *,
    protected: Sequence[str],
    label: str | None = None,
    constraint: str = "demographic parity",
    tolerance: float = 0.0,
    positive: str | None = None,
    seed: int = 0,
) -> Model:
    """The model with thresholds by group that make rates of its decisions equal.

    It answers for tables that have the protected columns, and saves and loads as every model. Its
    parameters and probabilities stay as they are; `about["thresholds"]` tells the rules, and the
    validation figures, which were those of other decisions, are left out.

    Args:
        model: of any room that answers with one of two classes.
        rows: labelled rows, which the model has better not learned from.
        protected: names of columns.
        label: see `report`.
        constraint: see `optimal_thresholds`.
        tolerance: see `optimal_thresholds`.
        positive: the class whose rates are meant, by default the second.
        seed: of the draws where a group's threshold is drawn.

    Raises:
        ValueError: a model of more classes, or with thresholds by group already; see
            `optimal_thresholds` and `report`.

    >>> from jaxops import tabular
    >>> rng = np.random.default_rng(0)
    >>> table = {"age": rng.uniform(20, 60, 400), "sex": rng.choice(["f", "m"], 400)}
    >>> table["left"] = table["age"] + 9 * (table["sex"] == "f") + rng.normal(0, 9, 400) > 40
    >>> model = tabular.fit(table, tabular.MLP((8,)), label="left", epochs=5, progress=False)
    >>> fair = thresholds(model, table, protected=["sex"])
    >>> labels = fair.predict(table).labels
    >>> rates = [(labels[table["sex"] == sex] == "True").mean() for sex in ("f", "m")]
    >>> bool(abs(rates[0] - rates[1]) < 0.05)
    True
    """
    if isinstance(model.reader, ByGroup):
        raise ValueError("model must be without thresholds by group, got one with them")
    classes = tuple(getattr(model.task, "classes", ()))
    if len(classes) != 2:
        raise ValueError(f"model must have 2 classes for thresholds, got {len(classes)}")
    told = answered(model, rows, label, protected, positive)
    assert told.probabilities is not None  # of two classes
    rules = optimal_thresholds(
        told.label, told.probabilities, told.protected, constraint, tolerance
    )
    number = classes.index(told.classes[1])
    reader = ByGroup(model.reader, tuple(protected), rules, number, constraint, seed)
    about = {name: value for name, value in model.about.items() if name != "validation"}
    about["thresholds"] = {
        "constraint": constraint,
        "tolerance": tolerance,
        "protected": [*protected],
        "rows": len(told.label),
        "rules": {group: [[*part] for part in rule] for group, rule in rules.items()},
    }
    return replace(model, reader=reader, about=about)
