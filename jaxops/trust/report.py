"""The report of a run: logs, pictures and tables.

A record is a flat dict such as `{"step": 100, "epoch": 0.1, "split": "train", "loss": 0.5}`. A
logger is an object that `fit` calls with each record. Pictures need no display, and every `plot_*`
returns its Figure. With several processes, only the first writes files.
"""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxops._optional import require
from jaxops._table import table as table
from jaxops.devices import hosts
from jaxops.metrics import Scores
from jaxops.trust._figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PathLike,
    new_figure,
    open_frame,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "JsonLines",
    "TensorBoard",
    "plot_confusion",
    "plot_curves",
    "plot_mistakes",
    "plot_predictions",
    "plot_roc",
    "read_json_lines",
]

Record = Mapping[str, Any]
COLORS = {"train": BLUE, "validation": ORANGE, "test": GREEN}


def _plain(value: Any) -> Any:
    """A value for strict JSON: arrays become lists, NaN and infinity become null."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json_lines(path: PathLike) -> list[dict[str, Any]]:
    """The records in a file of `JsonLines`; a last line that is only half written is left out.

    Raises:
        ValueError: another line is not JSON.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = JsonLines(f"{folder}/log.jsonl")
    ...     log({"step": 10, "loss": 0.5})
    ...     read_json_lines(f"{folder}/log.jsonl")
    [{'step': 10, 'loss': 0.5}]
    """
    lines = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                records.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise ValueError(f"{path}, line {number}: not JSON: {line[:80]!r}") from error
    return records


class JsonLines:
    """A logger that writes one JSON object per line and closes the file after each.

    Earlier records are kept, with two exceptions. A last line that a killed process left half
    written is removed. When `fit` resumes from a checkpoint, records of later steps are removed,
    because `fit` writes them again. So no record is missing or doubled. A file belongs to one run:
    a run with checkpoints that starts at step 0 moves an existing file to NAME.old, and replaces an
    older file of that name.

    Args:
        path: the file, which is created with its folder if it is missing.
        resume_step: if given, records of later steps are removed at once.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = JsonLines(f"{folder}/log.jsonl")
    ...     log({"step": 10, "loss": np.float32(0.5)})
    ...     Path(folder, "log.jsonl").read_text()
    '{"step": 10, "loss": 0.5}\\n'
    """

    def __init__(self, path: PathLike, resume_step: int | None = None):
        self.path = Path(path)
        if not hosts.first():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._written = False
        self.resume(math.inf if resume_step is None else resume_step)

    def resume(self, step: float) -> None:
        """Remove records of steps after `step`, unless this logger wrote them.

        If a run starts at step 0, the file is moved to NAME.old first, because it may belong to
        another run.
        """
        if self._written or not self.path.exists():
            return
        found = read_json_lines(self.path)
        records = [r for r in found if r.get("step", 0) <= step]
        if step == 0 and len(records) < len(found):
            old = self.path.with_name(self.path.name + ".old")
            self.path.replace(old)
            print(f"{self.path}: of an earlier run, moved to {old}", file=sys.stderr)
        # replaced in one step, so that the old file stays whole if the process is killed here
        new = self.path.with_name(self.path.name + ".new")
        new.write_text("".join(json.dumps(r) + "\n" for r in records))
        new.replace(self.path)

    def __call__(self, record: Record) -> None:
        """Append a record; arrays become lists, NaN and infinity become null."""
        if not hosts.first():
            return
        line = json.dumps(_plain(record), allow_nan=False)
        self._written = True
        with self.path.open("a") as file:
            file.write(line + "\n")


class TensorBoard:
    """A logger that writes TensorBoard event files, without TensorFlow.

    Scalars have the tag "name/split", so that TensorBoard shows the splits of a metric together;
    other values are left out. Close it at the end.

    Args:
        directory: where the event files are written.
        resume_step: if given, events of later steps are hidden; a resumed run writes them again.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = TensorBoard(folder)
    ...     log({"step": 10, "split": "train", "loss": 0.5})
    ...     log.close()
    ...     [file.name.split(".")[2] for file in Path(folder).iterdir()]
    ['tfevents']
    """

    def __init__(self, directory: PathLike, resume_step: int | None = None):
        self.writer: Any = None
        if not hosts.first():
            return
        SummaryWriter = require("tensorboardX", extra="plots").SummaryWriter

        # TensorBoard drops the events at purge_step and after it. The suffix is needed because two
        # runs that begin within a second would share a file name, and the second would erase the
        # first
        purge = None if resume_step is None else resume_step + 1
        self.writer = SummaryWriter(
            str(directory),
            purge_step=purge,
            flush_secs=10,
            filename_suffix=f".{os.urandom(4).hex()}",
        )

    def __call__(self, record: Record) -> None:
        """Write the record's scalars at its step."""
        for name, value in record.items():
            number = isinstance(value, int | float | np.number) or getattr(value, "shape", 0) == ()
            if self.writer and number and name not in ("step", "epoch"):
                tag = f"{name}/{record['split']}" if "split" in record else name
                self.writer.add_scalar(tag, float(value), int(record["step"]))

    def close(self) -> None:
        """Write the events that are still buffered, and close the file."""
        if self.writer:
            self.writer.close()


def plot_curves(
    records: Sequence[Record],
    path: PathLike,
    metrics: Sequence[str] = ("loss", "accuracy"),
) -> "Figure":
    """Metrics against epochs, with a panel for each metric and a line for each split.

    Args:
        records: the records that a logger got; without "epoch" the axis is "step".
        path: the PNG file.
        metrics: the metrics to draw; those that no record has are left out.

    Raises:
        ValueError: no record has any of the metrics.

    >>> import tempfile
    >>> records = [{"step": step, "loss": 1 / step} for step in (1, 2, 3)]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     figure = plot_curves(records, f"{folder}/curves.png")
    >>> [axes.get_title() for axes in figure.axes]
    ['loss']
    """
    names = [name for name in metrics if any(name in r for r in records)]
    if not names:
        raise ValueError(
            f"records must have one of {list(metrics)}, got {len(records)} that have none"
        )
    x = "epoch" if any("epoch" in r for r in records) else "step"
    figure = new_figure(4.6 * len(names), 3.4)
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        rows = [r for r in records if name in r]
        for split in dict.fromkeys(r.get("split", "train") for r in rows):
            line = [(r[x], r[name]) for r in rows if r.get("split", "train") == split and x in r]
            points = np.array(line, float).reshape(-1, 2)  # None, as a file has it, becomes NaN
            style = {"marker": "o", "markersize": 3.5} if len(points) <= 30 else {}
            axes.plot(*points.T, label=split, color=COLORS.get(split, GREY), linewidth=1.6, **style)
        open_frame(axes)
        axes.set(xlabel=x, title=name)
        axes.legend(frameon=False)
    return save_figure(figure, path)


def plot_confusion(
    matrix: np.ndarray, classes: Sequence[str], path: PathLike | None = None
) -> "Figure":
    """Plot a confusion matrix: shades are shares of a row, numbers are counts.

    Args:
        matrix: (C, C), rows true, columns predicted; such as `metrics.Confusion.counts`.
        classes: the classes' names, or empty for their numbers. With more than 20 classes only the
            shades are drawn.
        path: the PNG file; with None no file is written.

    Raises:
        ValueError: the matrix does not fit the names.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     figure = plot_confusion(np.array([[3, 1], [0, 4]]), ["no", "yes"], f"{folder}/c.png")
    >>> figure.axes[0].get_title()
    '7 of 8 right (87.5%)'
    """
    matrix = np.asarray(matrix, np.float64)
    size, names = len(matrix), _names(classes, len(matrix))
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"matrix must have shape ({len(names)}, {len(names)}), got {matrix.shape}")
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1e-30)
    side = max(3.0, 0.48 * size) if size <= 20 else min(max(9.6, 0.13 * size), 24.0)
    cell = 72 * side / size  # points
    font = min(9.0, 0.62 * cell)
    figure = new_figure(side + 1.6, side + 1.2)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label="share of the true class")
    bar.outline.set_visible(False)
    wide = 0.65 * font * max(map(len, names)) > cell
    rotation, ha = (90, "center") if size > 20 else (45, "right") if wide else (0, "center")
    axes.set_xticks(range(size), names, fontsize=font, rotation=rotation, ha=ha)
    axes.set_yticks(range(size), names, fontsize=font)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, column in np.argwhere(matrix > 0) if size <= 20 else ():
        text, color = (
            f"{matrix[row, column]:.6g}",
            "white" if shares[row, column] > 0.5 else "black",
        )
        small = 9 if len(text) < 5 else 7
        axes.text(column, row, text, ha="center", va="center", fontsize=small, color=color)
    right, total = matrix.trace(), matrix.sum()
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{right:.6g} of {total:.6g} right ({right / max(total, 1e-30):.1%})", pad=10)
    return save_figure(figure, path)


def plot_roc(
    scores: Scores | tuple[np.ndarray, np.ndarray, float], path: PathLike | None = None
) -> "Figure":
    """Plot the ROC curve with its area.

    Args:
        scores: `metrics.Scores`, or the tuple (false positive rates, true positive rates, area).
        path: the PNG file; with None no file is written.

    >>> import tempfile
    >>> scores = Scores(np.array([0.1, 0.4, 0.8]), np.array([0, 1, 1]), np.ones(3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     figure = plot_roc(scores, f"{folder}/roc.png")
    >>> figure.axes[0].get_title()
    'ROC curve'
    """
    if isinstance(scores, Scores):
        fpr, tpr, _ = scores.roc_curve()
        auc = scores.auc()
    else:
        fpr, tpr, auc = scores
    figure = new_figure(4.4, 4.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance, 0.5")
    axes.plot(fpr, tpr, color=BLUE, linewidth=2, label=f"area {auc:.4f}", clip_on=False)
    axes.fill_between(fpr, tpr, color=BLUE, alpha=0.08, linewidth=0)
    open_frame(axes)
    axes.set(
        xlabel="false positive rate", ylabel="true positive rate", title="ROC curve",
        xlim=(0, 1), ylim=(0, 1), aspect="equal",
    )  # fmt: skip
    axes.legend(frameon=False, loc="lower right")
    return save_figure(figure, path)


def _names(classes: Sequence[str], size: int) -> list[str]:
    return list(classes) or [str(i) for i in range(size)]


def _same_rows(images: Any, labels: Any, probabilities: Any) -> tuple[np.ndarray, np.ndarray]:
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    n = len(images)
    if labels.shape != (n,) or probabilities.ndim != 2 or len(probabilities) != n or not n:
        raise ValueError(
            "images, labels and probabilities must have shapes (N, H, W) or (N, H, W, channels), "
            f"(N,) and (N, classes), got {np.shape(images)}, {labels.shape} and "
            f"{probabilities.shape}"
        )
    return labels, probabilities


def _draw(axes: "Axes", image: np.ndarray, title: str, color: str) -> None:
    """Draw one picture: (H, W), (H, W, 1) or (H, W, 3); floats may have any range."""
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    if image.dtype != np.uint8 and (image.min() < 0 or image.max() > 1):  # the image was normalised
        image = (image - image.min()) / max(np.ptp(image), 1e-12)
    axes.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
    axes.set_title(title, fontsize=9, color=color, pad=4)


def plot_mistakes(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: PathLike,
    count: int = 25,
) -> "Figure":
    """Plot the wrong predictions with the highest probabilities, the highest first.

    Args:
        images: (N, H, W), (N, H, W, 1) or (N, H, W, 3).
        labels: (N,) integers.
        probabilities: (N, C).
        classes: the classes' names, or empty for their numbers.
        path: the PNG file.
        count: the largest number of pictures.

    Raises:
        ValueError: the shapes do not fit.

    >>> import tempfile
    >>> images, labels = np.zeros((2, 4, 4)), np.array([0, 1])
    >>> probabilities = np.array([[0.9, 0.1], [0.7, 0.3]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/mistakes.png"
    ...     figure = plot_mistakes(images, labels, probabilities, ["a", "b"], path)
    >>> figure.axes[0].get_title()
    'b → a\\n70.0%'
    """
    labels, probabilities = _same_rows(images, labels, probabilities)
    names = _names(classes, probabilities.shape[1])
    predicted, sureness = probabilities.argmax(1), probabilities.max(1)
    wrong = np.flatnonzero(predicted != labels)
    worst = wrong[np.argsort(-sureness[wrong], kind="stable")][:count]
    columns = min(5, max(3, len(worst)))
    rows = max(1, -(-len(worst) // columns))
    figure = new_figure(1.5 * columns, 1.85 * rows + 0.5)
    figure.suptitle(f"{len(wrong)} mistakes in {len(labels)}: true → predicted", fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, i in zip(grid, worst, strict=False):
        title = f"{names[labels[i]]} → {names[predicted[i]]}\n{sureness[i]:.1%}"
        _draw(axes, images[i], title, "black")
    return save_figure(figure, path)


def plot_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    path: PathLike,
    count: int = 10,
) -> "Figure":
    """Plot the first predictions: each picture, and below it its three most probable classes.

    Correct predictions are blue, wrong ones orange. The arguments are those of `plot_mistakes`.

    >>> import tempfile
    >>> images, labels = np.zeros((2, 4, 4)), np.array([0, 1])
    >>> probabilities = np.array([[0.9, 0.1], [0.7, 0.3]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = f"{folder}/predictions.png"
    ...     figure = plot_predictions(images, labels, probabilities, ["a", "b"], path)
    >>> figure.axes[0].get_title()
    'a\\ntrue: a'
    """
    labels, probabilities = _same_rows(images, labels, probabilities)
    probabilities = probabilities[:count]
    names = _names(classes, probabilities.shape[1])
    columns = min(5, len(probabilities))
    rows = -(-len(probabilities) // columns)
    figure = new_figure(1.7 * columns, 3.0 * rows)
    heights = {"height_ratios": [5, 2.6] * rows}
    grid = figure.subplots(2 * rows, columns, squeeze=False, gridspec_kw=heights)
    for axes in grid.ravel():
        axes.set_axis_off()
    for i, p in enumerate(probabilities):
        top, bars = grid[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        best = np.argsort(-p, kind="stable")[:3]
        color = BLUE if best[0] == labels[i] else ORANGE
        _draw(top, images[i], f"{names[best[0]]}\ntrue: {names[labels[i]]}", color)
        lines = np.arange(len(best))
        bars.barh(lines + 0.4, 1, color="#e6e6e6", height=0.2)
        bars.barh(lines + 0.4, p[best], color=[color, GREY, GREY][: len(best)], height=0.2)
        bars.set(xlim=(0, 1), ylim=(2.6, -0.4))
        for line, c in enumerate(best):
            bars.text(0, line, names[c], va="center", fontsize=7)
            bars.text(1, line, f"{p[c]:.1%}", va="center", ha="right", fontsize=7)
    return save_figure(figure, path)
