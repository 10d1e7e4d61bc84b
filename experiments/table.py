"""The README's table of recorded results: `python -m experiments.table`."""

import json

from experiments.common import RESULTS
from jaxops.trust import report


def rows() -> list[dict[str, str]]:
    """One row for each recorded result."""
    table = []
    for file in sorted(RESULTS.glob("*.json")):
        result = json.loads(file.read_text())
        metrics = result["metrics"]
        known = (*result["published"], "val_loss")  # what there is a figure for comes first
        name = next(n for n in known if n in metrics)
        value = metrics[name]

        def mean(key: str, form: str, metrics: dict = metrics) -> str:
            return form.format(metrics[key]["mean"]) if key in metrics else ""

        def first(key: str, form: str, metrics: dict = metrics) -> str:
            return form.format(metrics[key]["seeds"][0]) if key in metrics else ""

        table.append(
            {
                "experiment": result["experiment"],
                "metric": name,
                "mean ± std": f"{value['mean']:.4f} ± {value['std']:.4f}",
                "seeds": str(len(value["seeds"])),
                "published": str(result["published"].get(name, "")),
                "s/epoch": mean("seconds_per_epoch", "{:.2f}"),
                "first step, s": first("first_step_seconds", "{:.1f}"),
                "peak MB": f"{result['peak_memory_bytes'] / 1e6:,.0f}",
                "all, s": f"{result['seconds']:,.0f}",
            }
        )
    return table


if __name__ == "__main__":
    print(report.table(rows()))
