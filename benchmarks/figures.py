"""From rounds to figures: medians, ratios, whether a ratio is settled or below its floor."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.workloads import (
    ACCURACY_TOLERANCE,
    FINAL_LOSS_TOLERANCE,
    LOSS_TOLERANCE,
)

UNSETTLED = 0.25
"""a ratio is no result while the 95 % interval of its median is wider than this share of it"""

Result = dict[str, Any]


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum, and the rounds themselves.

    >>> summary([1.0, 4.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 4.0, 'rounds': [1.0, 4.0, 2.0]}
    """
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": list(values),
    }


def median_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """The narrowest interval between ordered values that holds the median with this confidence.

    A value lies below or above its distribution's median with probability 1/2 each, whatever the
    distribution: so the k-th smallest and k-th largest of n enclose that median with confidence
    1 - 2 P(Binomial(n, 1/2) < k) (Conover, Practical Nonparametric Statistics, 3.2).
    Fewer than six values give no interval at 95 %; with more, the outermost values matter less.

    >>> median_interval([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])  # all but 1 and 9: 96.1 %
    (2.0, 8.0)
    >>> median_interval([1.0, 1.0, 1.0, 1.0, 1.0])
    (-inf, inf)
    """
    ordered, n = sorted(values), len(values)
    k, outside = 0, 2 / 2**n  # that all are below the median, or all above
    while outside <= 1 - confidence:
        k += 1
        outside += 2 * math.comb(n, k) / 2**n
    return (ordered[k - 1], ordered[n - k]) if k else (-math.inf, math.inf)


def ratio(ours: Sequence[float], theirs: Sequence[float], over: str) -> dict[str, Any]:
    """Our rate over theirs, round by round, and whether the median is known well enough.

    >>> ratio([2.0, 4.0, 6.0], [1.0, 1.0, 2.0], "torch careful")["median"]
    3.0
    """
    found = summary([a / b for a, b in zip(ours, theirs, strict=True)])
    low, high = median_interval(found["rounds"])
    known = math.isfinite(high - low)  # JSON has no infinity
    return {
        "over": over,
        **found,
        "interval": [low, high] if known else None,
        "settled": bool(known and (high - low) / found["median"] <= UNSETTLED),
    }


def ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Every ratio that a table shows, from the rates of each form, "jaxops ..." or "torch ...".

    "article", "careful", "compiled", "graphed": jaxops in float32 over that form; "best": over the
    one of them with the highest median; "fastest": the fastest form of jaxops over the fastest of
    PyTorch, bfloat16 among them, where either side has it; "bfloat16": both in bfloat16;
    "vmapped": a sweep in one program over one at a time.
    """

    def fastest(side: str, low: bool) -> str:
        names = [n for n in rates if n.startswith(side) and (low or not n.endswith("bfloat16"))]
        return max(names, key=lambda n: statistics.median(rates[n]))

    found: dict[str, Any] = {}

    def add(name: str, ours: str, theirs: str) -> None:
        found[name] = {"of": ours, **ratio(rates[ours], rates[theirs], theirs)}

    if "jaxops vmapped" in rates:
        add("vmapped", "jaxops vmapped", "jaxops one at a time")
    if not any(name.startswith("torch") for name in rates):
        return found
    for form in ("article", "careful", "compiled", "graphed"):
        if f"torch {form}" in rates:
            add(form, "jaxops float32", f"torch {form}")
    add("best", "jaxops float32", fastest("torch", low=False))
    low = [f"{side} bfloat16" in rates for side in ("jaxops", "torch")]
    if all(low):
        add("bfloat16", "jaxops bfloat16", "torch bfloat16")
    if any(low):
        add("fastest", fastest("jaxops", low=True), fastest("torch", low=True))
    return found


def _off(a: float, b: float) -> float:
    return abs(a - b) / max(abs(a), 1e-12)


def difference(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> float:
    """The largest: of probabilities absolute, of the first losses relative; NaN stays NaN.

    >>> round(difference({"losses": [2.0, 1.0]}, {"losses": [2.0, 1.5]}), 3)
    0.5
    """
    if "outputs" in wanted:
        off = [abs(a - b) for a, b in zip(wanted["outputs"], found["outputs"], strict=True)]
    else:
        off = [_off(a, b) for a, b in zip(wanted["losses"], found["losses"], strict=True)]
    return float(np.max(off))  # carries NaN along, as max does not


def different(wanted: Mapping[str, Any], found: Mapping[str, Any], dtype: str) -> str:
    """What differs between two answers to a check: a sentence, or "" where they agree.

    A batch of 1,024 has hundreds of thousands of ReLU inputs in a step, and rounding sometimes
    moves one across 0. Its gradient jumps, Adam's first steps magnify that, and the losses differ
    by up to 1e-3, also between PyTorch and PyTorch in float64. So a form may try several orders of
    the rows, of which one has to agree; a different network agrees in none.

    Args:
        wanted: of jaxops in float32.
        found: of another form.
        dtype: the tolerances' name.
    """
    worst, limit = difference(wanted, found), LOSS_TOLERANCE[dtype]
    if "outputs" in wanted:
        return "" if worst <= limit else f"probabilities differ by {worst:.2g}"
    if not worst <= limit:
        return (
            f"the first losses must differ by at most {limit:g}, got {worst:.2g}\n"
            f"jaxops float32: {wanted['losses']}\nthis form:      {found['losses']}"
        )
    if wanted["accuracy"] is not None:
        off = abs(wanted["accuracy"] - found["accuracy"])
        if not off <= ACCURACY_TOLERANCE[dtype]:
            return (
                f"accuracy must be {wanted['accuracy']:.4f} as in jaxops float32, "
                f"got {found['accuracy']:.4f}"
            )
    elif not _off(wanted["loss"], found["loss"]) <= FINAL_LOSS_TOLERANCE[dtype]:
        return (
            f"test loss must be {wanted['loss']:.4f} as in jaxops float32, got {found['loss']:.4f}"
        )
    return ""


def below_floor(results: Sequence[Result], floors: Mapping[str, float]) -> list[str]:
    """A line for each settled ratio below its floor, and for each workload that failed.

    Args:
        results: of this run.
        floors: "workload ratio", such as "C01 best", -> the lowest ratio that passes.
    """
    lines = []
    for result in results:
        name = result["workload"]
        if "failed" in result:
            lines.append(f"{name}: failed")
        for key, found in result.get("ratios", {}).items():
            floor = floors.get(f"{name} {key}", 0.0)
            if found["settled"] and found["median"] < floor:
                lines.append(f"{name} {key} must be at least {floor:g}, got {found['median']:.2f}")
    return lines


def unjudged(results: Sequence[Result], floors: Mapping[str, float]) -> list[str]:
    """A line for each floor whose ratio was measured and is unsettled."""
    return [
        f"{result['workload']} {key}: {shown(found)}, so not judged by its floor"
        for result in results
        for key, found in result.get("ratios", {}).items()
        if f"{result['workload']} {key}" in floors and not found["settled"]
    ]


def disturbed(results: Sequence[Result]) -> list[str]:
    """A line for each workload whose careful loop came out slower than the article's.

    It could have chosen what the article does, so its trials were disturbed: repeat the run.
    """
    lines = []
    for result in results:
        rates = {n: f["examples_per_second"]["median"] for n, f in result["forms"].items()}
        careful, article = (rates.get(f"torch {form}", 1.0) for form in ("careful", "article"))
        if careful < 0.95 * article:
            name = result["workload"]
            lines.append(f"{name}: careful PyTorch chose badly, its trials were disturbed: repeat")
    return lines


def form_rows(result: Result) -> list[dict[str, Any]]:
    """A line for each form of a workload, and for each that is missing, with the reason."""
    missing = result.get("missing", {})
    return [_form_row(result["workload"], name, form) for name, form in result["forms"].items()] + [
        {"workload": result["workload"], "form": f"{name}: {brief(why)}"}
        for name, why in missing.items()
    ]


def brief(why: str) -> str:
    """The last line of a reason, which in a traceback is the error, cut to 80 letters.

    >>> brief("Traceback:\\n  File x\\nInvalidCxxCompiler: no compiler\\n")
    'InvalidCxxCompiler: no compiler'
    """
    lines = [line.strip() for line in why.splitlines() if ": " in line and line[:1].strip()]
    return (lines or [why.strip()])[-1][:80]


def _form_row(workload: str, name: str, form: Mapping[str, Any]) -> dict[str, Any]:
    rates, warm = form["examples_per_second"], form.get("first_step_seconds_warm")
    return {
        "workload": workload,
        "form": name,
        "examples/s": f"{rates['median']:,.0f}",
        "min": f"{rates['min']:,.0f}",
        "max": f"{rates['max']:,.0f}",
        "first step, s": round(form["first_step_seconds"], 1),
        "warm cache": None if warm is None else round(warm, 1),
        "peak MB": round(form["peak_memory_bytes"] / 1e6),
        "GFLOP/s": f"{form['flop_per_second'] / 1e9:,.1f}",
        "of peak": f"{form['share_of_peak']:.1%}",
    }


def shown(found: Mapping[str, Any] | None) -> str:
    """A ratio for a table: the median with its range, or the range alone where unsettled.

    >>> shown(ratio([3.0] * 6, [1.0] * 6, "torch careful")), shown(None)
    ('3.00x (3.00-3.00)', '')
    """
    if found is None:
        return ""
    spread = f"{found['min']:.2f}-{found['max']:.2f}"
    return f"{found['median']:.2f}x ({spread})" if found["settled"] else f"unsettled ({spread})"


def ratio_row(result: Result) -> dict[str, Any]:
    """A workload's ratios, its targets, and whether they are met."""
    found, targets = result.get("ratios", {}), result["targets"]
    if "failed" in result or "not_run" in result:
        said = "FAILED" if "failed" in result else f"not run: {result['not_run']}"
        return {"workload": result["workload"], "targets": said}
    verdicts = []
    for name, target in targets.items():
        have = found.get(name)
        if have is None:
            word = "not measured"
        elif not have["settled"]:
            word = "unsettled"
        else:
            word = "met" if have["median"] >= target else "missed"
        verdicts.append(f"{name} {target:g}x {word}")
    return {
        "workload": result["workload"],
        **{name: shown(found.get(name)) for name in ("article", "careful", "compiled")},
        "best PyTorch": shown(found.get("best")),
        "fastest": shown(found.get("fastest")),
        **({"graphed": shown(found["graphed"])} if "graphed" in found else {}),
        **({"one program": shown(found["vmapped"])} if "vmapped" in found else {}),
        "targets": ", ".join(verdicts),
    }
