"""The bar chart of a run: jaxops over each form of PyTorch."""

import math
from pathlib import Path
from typing import Any

from jaxops.trust.report import BLUE, GREEN, GREY, ORANGE

FORMS = {
    "article": ("over PyTorch as the article writes it", "#9ecae1"),
    "careful": ("over careful PyTorch", BLUE),
    "compiled": ("over torch.compile", ORANGE),
    "graphed": ("over a CUDA graph of PyTorch's step", "#756bb1"),
    "fastest": ("fastest over fastest, bfloat16 among them", GREEN),
}


def plot(document: dict[str, Any], path: Path) -> None:
    """A group of bars for each workload, on a logarithmic axis, with a line where both are even.

    Args:
        document: as `benchmarks.run` writes it.
        path: the PNG.
    """
    from matplotlib.figure import Figure  # not pyplot: no global state, no display
    from matplotlib.patches import Patch

    results = [r for r in document["results"] if any(f in r.get("ratios", {}) for f in FORMS)]
    if not results:
        return
    bars = [(r["workload"], _bars(r)) for r in results]
    count = sum(len(group) for _, group in bars)
    figure = Figure(
        figsize=(8.6, 1.5 + 0.16 * count + 0.16 * len(bars)), dpi=160, layout="constrained"
    )
    axes = figure.subplots()
    place, ticks, used = 0.0, [], set()
    for name, group in bars:
        top = place
        for form, found in group:
            _bar(axes, place, found, FORMS[form][1])
            used.add(form)
            place += 1.0
        ticks.append(((top + place - 1) / 2, name))
        place += 0.9
    values = [v for _, group in bars for _, found in group for v in (found["min"], found["max"])]
    low, high = min(0.5, *values), max(2.0, *values)
    axes.set(xscale="log", xlim=(low / 1.15, high * 1.5), ylim=(place - 0.6, -1.7))
    steps = [s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low / 1.15 <= s <= high * 1.5]
    axes.set_xticks(steps, [f"{s:g}x" for s in steps])
    axes.set_xticks([], minor=True)
    axes.set_yticks([y for y, _ in ticks], [name for _, name in ticks])
    axes.tick_params(axis="y", length=0)
    axes.axvline(1, color="#333333", linewidth=1)
    for text, side in (("PyTorch is faster  ", "right"), ("  jaxops is faster", "left")):
        axes.text(1, -1, text, ha=side, va="center", fontsize=8, color=GREY)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    versions = document["versions"]
    axes.set_title(
        f"jaxops {versions['jaxops']['jaxops']} on JAX {versions['jaxops']['jax']} over PyTorch "
        f"{versions['torch']['torch'].split('+')[0]}, examples a second\n{document['hardware']}, "
        f"medians of {document['rounds']} rounds or more, lines from the least to the most",
        fontsize=9, loc="left", color="#333333",
    )  # fmt: skip
    keys = [Patch(color=color, label=label) for f, (label, color) in FORMS.items() if f in used]
    figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    figure.savefig(path)


def _bars(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(form, result["ratios"][form]) for form in FORMS if form in result["ratios"]]


def _bar(axes: Any, place: float, found: dict[str, Any], color: str) -> None:
    """From 1 to the median; pale and hatched where unsettled."""
    median, settled = found["median"], found["settled"]
    look = {"color": color} if settled else {"color": "white", "edgecolor": GREY, "hatch": "////"}
    axes.barh(place, median - 1, left=1, height=0.86, linewidth=0.5, **look)
    axes.plot([found["min"], found["max"]], [place, place], color="#333333", linewidth=0.8)
    end = max(found["max"], 1.0)
    digits = 1 if median < 9.95 else 0
    text = f"{median:.{digits if median >= 1 else 2}f}" if settled else "unsettled"
    axes.text(end * math.exp(0.03), place, text, va="center", fontsize=7, color="#333333")
