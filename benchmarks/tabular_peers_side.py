"""One fit of pytabkit, as a user calls it: what `benchmarks.tabular_peers` runs elsewhere.

    python tabular_peers_side.py FOLDER MODEL SEED THREADS

FOLDER has train.pkl, validation.pkl and test.pkl, frames whose last column is the label. The last
line that it prints is JSON: seconds of the fit, CPU seconds, and the scores.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd


def score(model: Any, table: pd.DataFrame) -> float:
    """Accuracy, or for a number the root mean squared error."""
    x, y = table.iloc[:, :-1], table.iloc[:, -1]
    told = model.predict(x)
    if y.dtype.kind == "f":
        return float(((told - y.to_numpy()) ** 2).mean() ** 0.5)
    return float((told == y.to_numpy()).mean())


def main() -> None:
    import pytabkit

    folder, name, seed, threads = Path(sys.argv[1]), *sys.argv[2:5]
    train, held, test = (
        pd.read_pickle(folder / f"{part}.pkl") for part in ("train", "validation", "test")
    )
    number = train.iloc[:, -1].dtype.kind == "f"
    make = getattr(pytabkit, f"{name}_{'Regressor' if number else 'Classifier'}")
    model = make(device="cpu", random_state=int(seed), n_threads=int(threads))
    kinds = [column for column in train.columns[:-1] if train[column].dtype.kind not in "fiub"]
    start, cpu = time.perf_counter(), time.process_time()
    model.fit(
        train.iloc[:, :-1], train.iloc[:, -1], held.iloc[:, :-1], held.iloc[:, -1],
        cat_col_names=kinds,
    )  # fmt: skip
    row = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    row |= {"validation": score(model, held), "test": score(model, test)}
    row["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(row))


if __name__ == "__main__":
    main()
