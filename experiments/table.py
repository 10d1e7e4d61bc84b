"""The README's table of recorded results: `python -m experiments.table`."""

import json

from experiments.common import RESULTS
from jaxops import report


def rows() -> list[dict[str, str]]:
    """One row for each recorded result."""
    table = []
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        metrics = result["metrics"]
        name = "auc" if "auc" in metrics else "accuracy"
        value = metrics[name]

        def cell(key: str, which: str, form: str, metrics: dict = metrics) -> str:
            if key not in metrics:
                return ""
            seeds = metrics[key]["seeds"]  # only the first seed compiles
            return form.format(seeds[0] if which == "first" else metrics[key]["mean"])

        table.append(
            {
                "experiment": result["experiment"],
                "metric": name,
                "mean ± std": f"{value['mean']:.4f} ± {value['std']:.4f}",
                "seeds": str(len(value["seeds"])),
                "published": str(result["published"].get(name, "")),
                "s/epoch": cell("seconds_per_epoch", "mean", "{:.2f}"),
                "first step, s": cell("first_step_seconds", "first", "{:.1f}"),
                "peak MB": f"{result['peak_memory_bytes'] / 1e6:,.0f}",
                "all, s": f"{result['seconds']:,.0f}",
            }
        )
    return table


if __name__ == "__main__":
    print(report.table(rows()))
