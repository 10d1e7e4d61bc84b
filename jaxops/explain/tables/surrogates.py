"""A small tree or a linear model that says nearly what a model says, and how nearly."""

from typing import Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data.columns import read
from jaxops.data.encoders import Encoder, encode, fit_encoder
from jaxops.data.tables import Source
from jaxops.explain.tables.frames import (
    Predict,
    checked_columns,
    columns_read,
    frame_of,
    numbers_of,
    texts_of,
)
from jaxops.model.finished import Model

KINDS = ("tree", "linear")
VALUES = 20  # of a column of text that each have a feature; the others share one


class Surrogate(NamedTuple):
    """A simple model of a model's predictions.

    Attributes:
        kind: "tree" or "linear".
        unit: what is predicted, such as "p(yes)".
        encoder: makes the features.
        estimator: of scikit-learn.
        r2: of the held-out rows, the share of the variance of the model's predictions that it
            explains.
        agreement: of the held-out rows, the share where both probabilities are on the same side of
            0.5; None for numbers.
        constant: the agreement of always telling the more frequent side; None for numbers.
        held: how many rows were held out.
        rules: the tree's rules or the coefficients, as text.
    """

    kind: str
    unit: str
    encoder: Encoder
    estimator: Any
    r2: float
    agreement: float | None
    constant: float | None
    held: int
    rules: str

    def predict(self, rows: Source) -> np.ndarray:
        """What it predicts for raw rows, float64 (N,)."""
        table = _columns(frame_of(rows, text=[*self.encoder.values]), self.encoder)
        features = encode(self.encoder, table)["features"]
        return np.asarray(self.estimator.predict(features), np.float64)

    def __str__(self) -> str:
        told = f"R2 {self.r2:.3f} of the model's predictions in {self.held:,} held-out rows"
        if self.agreement is not None:
            told += f"; same side of 0.5 in {self.agreement:.1%} (a constant: {self.constant:.1%})"
        return f"{told}\n\n{self.rules}"


def surrogate(
    model: Model | Predict,
    rows: Source,
    target: Any = None,
    *,
    kind: str = "tree",
    depth: int = 3,
    columns: Any = None,
    held: float = 0.3,
    seed: int = 0,
) -> Surrogate:
    """Fit a small model to what a model predicts, and measure how well it does.

    It explains the model only as far as its figures say. The features are those of
    `jaxops.data.fit_encoder`: numbers (dates with their month, weekday and hour), an indicator of
    missing ones, and an indicator of each text value.

    Args:
        model: a finished model, or a function of a frame of raw rows.
        rows: N rows; labels are not used.
        target: the class, label or level that is explained; by default the second of two classes,
            or the only number.
        kind: "tree", or "linear" (least squares with a small ridge penalty).
        depth: of the tree.
        columns: of which it is made; by default those that the model reads.
        held: the share of rows by which its figures are measured.
        seed: of the choice of these rows.

    Raises:
        ValueError: another kind; fewer than 2 rows on a side; a depth below 1; an unknown column or
            target.

    References:
        Craven and Shavlik 1996, Extracting tree-structured representations of trained networks.

    >>> rows = {"age": np.arange(100.0), "plan": ["a", "b"] * 50}
    >>> model = lambda frame: 1.0 * (frame["age"] > 40)
    >>> print(surrogate(model, rows, depth=1))
    R2 1.000 of the model's predictions in 30 held-out rows
    <BLANKLINE>
    age <= 40.5: prediction 0 (26 rows)
    age > 40.5: prediction 1 (44 rows)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    frame = frame_of(rows, text=texts_of(model))
    if columns is None:
        columns = columns_read(model, frame) if isinstance(model, Model) else [*frame.columns]
    names = checked_columns("columns", columns, frame)
    out = round(held * len(frame))
    if not 2 <= out <= len(frame) - 2 or depth < 1:
        raise ValueError(
            f"held must leave at least 2 of {len(frame):,} rows on each side and depth be at least "
            f"1, got {held} and {depth}"
        )
    numbers, unit = numbers_of(model, frame, target)
    told = numbers(frame)
    order = np.random.default_rng(seed).permutation(len(frame))
    test, train = order[:out], order[out:]
    table = read(frame[names])
    encoder = fit_encoder({n: x[train] for n, x in table.items()}, most=VALUES)
    x = encode(encoder, table)["features"]
    estimator = _estimator(kind, depth, seed).fit(x[train], told[train])
    mine, total = estimator.predict(x[test]), float(told[test].var())
    r2 = 1 - float(np.square(told[test] - mine).mean()) / total if total else float("nan")
    agreement = constant = None
    if unit.startswith("p("):
        side = told[test] >= 0.5
        agreement = float((side == (mine >= 0.5)).mean())
        constant = float(max(side.mean(), 1 - side.mean()))
    rules = _rules if kind == "tree" else _coefficients
    lines = "\n".join(rules(estimator, encoder, unit))
    return Surrogate(kind, unit, encoder, estimator, r2, agreement, constant, out, lines)


def _columns(frame: Any, encoder: Encoder) -> dict[str, np.ndarray]:
    """The columns of rows that the encoder knows."""
    table = read(frame, text=[name for name in encoder.values if name in frame])
    missing = [name for name in (*encoder.mean, *encoder.values) if name not in table]
    if missing:
        raise ValueError(f"rows must have the columns {', '.join(missing)}, got {', '.join(frame)}")
    return table


def _estimator(kind: str, depth: int, seed: int) -> Any:
    if kind == "tree":
        tree = require("sklearn.tree", extra="data")
        return tree.DecisionTreeRegressor(
            max_depth=depth, min_samples_leaf=5, min_impurity_decrease=1e-12, random_state=seed
        )
    return require("sklearn.linear_model", extra="data").Ridge(alpha=1e-3)


def _rules(estimator: Any, encoder: Encoder, unit: str) -> list[str]:
    """The tree's rules, indented."""
    tree, names = estimator.tree_, encoder.names

    def told(node: int, depth: int) -> list[str]:
        lines = []
        for child, left in ((tree.children_left[node], True), (tree.children_right[node], False)):
            rule = _rule(names[tree.feature[node]], tree.threshold[node], encoder, left)
            line = f"{'  ' * depth}{rule}:"
            if tree.children_left[child] < 0:
                value, count = tree.value[child].item(), tree.n_node_samples[child]
                lines.append(f"{line} {unit} {value:.3g} ({count:,} rows)")
            else:
                lines += [line, *told(child, depth + 1)]
        return lines

    if tree.node_count == 1:
        return [f"always: {unit} {tree.value[0].item():.3g}"]
    return told(0, 0)


def _rule(name: str, threshold: float, encoder: Encoder, left: bool) -> str:
    """The condition of one side of a split, in the user's terms."""
    if name in encoder.numbers:
        limit = threshold * encoder.std[name] + encoder.mean[name]
        return f"{name} {'<=' if left else '>'} {limit:.6g}"
    if name in [f"{one} missing" for one in encoder.missing]:
        return f"{name.removesuffix(' missing')} is {'known' if left else 'missing'}"
    column = next(one for one in encoder.values if name.startswith((f"{one}=", f"{one} rare")))
    value = name[len(column) + 1 :]
    what = "a rare value" if name == f"{column} rare" else repr(value)
    return f"{column} is {'not ' if left else ''}{what}"


def _coefficients(estimator: Any, encoder: Encoder, unit: str) -> list[str]:
    """The linear model's terms, the largest first: numbers by standard deviations."""
    size = np.argsort(-np.abs(estimator.coef_), kind="stable")
    lines = [f"{unit} = {float(estimator.intercept_):.3g}"]
    for place in size:
        name, slope = encoder.names[place], float(estimator.coef_[place])
        if name in encoder.numbers:
            mean, std = encoder.mean[name], encoder.std[name]
            name = f"({name} - {mean:.6g}) / {std:.6g}"
        lines.append(f"{slope:+.3g} * {name}")
    return lines
