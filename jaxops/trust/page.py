"""A finished model as one HTML page: its description, figures, and pictures of a test set."""

import base64
import html
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxops.metrics import Scores
from jaxops.trust import report
from jaxops.trust._figures import BLUE, GREY, ORANGE, new_figure, open_frame
from jaxops.trust.calibration import plot_reliability
from jaxops.trust.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 3  # number of forecast windows that are drawn
MATRIX = 100  # the largest number of classes of a confusion matrix that is drawn
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin-bottom:1rem}td,th{padding:.2rem .8rem;text-align:left;"
    "border-bottom:1px solid #ddd;vertical-align:top}.wide{overflow-x:auto}img{max-width:100%}"
)


def page(
    title: str,
    tables: Mapping[str, Sequence[Mapping[str, Any]] | str],
    scored: Evaluation | None = None,
    classes: Sequence[str] = (),
    figures: "Mapping[str, Figure] | None" = None,
) -> str:
    """An HTML page that contains its pictures and needs no other file.

    Args:
        title: the heading of the page.
        tables: heading -> rows for `report.table`, or a text, whose empty lines part paragraphs.
        scored: the evaluation on a test set, whose figures and pictures are shown.
        classes: the names of the classes.
        figures: heading -> a further picture.

    >>> one = Evaluation("row", np.arange(40), {"mse": np.arange(40) % 4 / 4})
    >>> text = page("shop", {"model": [{"what": "room", "value": "tabular"}]}, one)
    >>> "<h1>shop</h1>" in text, text.count("<img")
    (True, 1)
    """
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for name, rows in tables.items():
        told = _text(rows) if isinstance(rows, str) else _table(rows)
        parts += [f"<h2>{html.escape(name)}</h2>", told]
    if scored is not None:
        rows = [{"metric": name, **scored.interval(name)._asdict()} for name in scored.figures()]
        parts += [f"<h2>{len(scored):,} {scored.unit}s</h2>", _table(rows)]
    drawn = {} if scored is None else pictures(scored, classes)
    for name, figure in (drawn | dict(figures or {})).items():
        parts += [f"<h2>{html.escape(name)}</h2>", _image(figure, name)]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def pictures(scored: Evaluation, classes: Sequence[str] = ()) -> "dict[str, Figure]":
    """The pictures of an evaluation, by their headings.

    Every evaluation has the values of the units. A classifier also has the reliability, for at most
    100 classes the confusion matrix, and for two classes the ROC curve. Predicted numbers have a
    plot against the true values. Forecasts have some windows, and each error by the step ahead.

    Args:
        scored: the result of a room's `evaluate`.
        classes: the names of the classes.

    >>> from jaxops.trust.evaluation import of_classes
    >>> p = np.array([[0.9, 0.1], [0.2, 0.8]])
    >>> list(pictures(of_classes("row", np.arange(2), p, np.array([0, 1]))))
    ['confusion', 'reliability', 'ROC curve', 'values of the rows']
    """
    parts = scored.parts
    found: dict[str, Figure] = {}
    if "probabilities" in parts and "target" in parts:
        p, target = parts["probabilities"], parts["target"]
        count = p.shape[1]
        if count <= MATRIX:
            matrix = np.zeros((count, count))
            np.add.at(matrix, (target, p.argmax(1)), 1)
            found["confusion"] = report.plot_confusion(matrix, classes)
        found["reliability"] = plot_reliability(p, target)
        if count == 2:
            found["ROC curve"] = report.plot_roc(Scores(p[:, 1], target, np.ones(len(p))))
    elif "predicted" in parts:
        found["predicted and true values"] = _scatter(parts["predicted"], parts["target"])
    elif "forecast" in parts:
        found["forecasts"] = _windows(scored)
    steps = {name: v for name, v in scored.values.items() if v.ndim == 2 and v.shape[1] > 1}
    if steps:
        ahead = {name: np.nanmean(values, axis=0) for name, values in steps.items()}
        found["by step ahead"] = grid(
            ahead, lambda axes, y: axes.plot(1 + np.arange(len(y)), y, color=BLUE)
        )
    means = {
        name: np.asarray(values, np.float64).reshape(len(scored), -1).mean(1)
        for name, values in scored.values.items()
    }
    found[f"values of the {scored.unit}s"] = grid(
        means, lambda axes, x: axes.hist(x[np.isfinite(x)], bins=30, color=BLUE)
    )
    return found


def _scatter(predicted: np.ndarray, target: np.ndarray) -> "Figure":
    figure = new_figure(4.4, 4.4)
    axes = figure.subplots()
    axes.plot(target, predicted, ".", color=BLUE, markersize=3, alpha=0.4)
    ends = [min(target.min(), predicted.min()), max(target.max(), predicted.max())]
    axes.plot(ends, ends, "--", color=GREY, linewidth=1)
    axes.set(xlabel="true", ylabel="predicted")
    open_frame(axes)
    return figure


def _windows(scored: Evaluation) -> "Figure":
    some = np.unique(np.linspace(0, len(scored) - 1, SHOWN).astype(int))
    figure = new_figure(7, 2.2 * len(some))
    rows = figure.subplots(len(some), 1, squeeze=False)[:, 0]
    for axes, row in zip(rows, some, strict=True):
        for name, color in (("target", GREY), ("forecast", ORANGE)):
            axes.plot(1 + np.arange(scored.parts[name].shape[1]), scored.parts[name][row, :, 0],
                      color=color, label=name)  # fmt: skip
        name = str(scored.ids[row]).replace("$", r"\$")
        several = scored.parts["forecast"].shape[2] > 1
        axes.set_title(name + ", first channel" * several, fontsize=9)
        open_frame(axes)
    rows[0].legend(frameon=False)
    rows[-1].set_xlabel("step ahead")
    return figure


def grid(values: Mapping[str, Any], draw: Callable[..., Any]) -> "Figure":
    """A panel for each name, three in a row.

    Args:
        values: heading of the panel -> what is drawn in it.
        draw: `draw(axes, value)`.

    >>> len(grid({"a": [1, 2], "b": [2, 1]}, lambda axes, y: axes.plot(y)).axes)
    2
    """
    across, down = min(3, len(values)), -(-len(values) // 3)
    figure = new_figure(3.2 * across, 2.4 * down)
    panels = figure.subplots(down, across, squeeze=False).ravel()
    for axes in panels[len(values) :]:
        axes.set_visible(False)
    for axes, (name, numbers) in zip(panels, values.items(), strict=False):
        draw(axes, numbers)
        axes.set_title(name, fontsize=9)
        open_frame(axes)
    return figure


def _text(text: str) -> str:
    return "".join(f"<p>{html.escape(one)}</p>" for one in text.split("\n\n"))


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["".join(f"<th>{html.escape(name)}</th>" for name in names)]
    for row in rows:
        lines.append("".join(f"<td>{html.escape(_cell(row.get(name)))}</td>" for name in names))
    return f"<div class=wide><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return "" if value is None else str(value)


def _image(figure: "Figure", name: str) -> str:
    with io.BytesIO() as png:
        figure.savefig(png, format="png")
        data = base64.b64encode(png.getvalue()).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'
