"""How often tests of drift are wrong, how soon they are right, and what reacting to drift brings.

- Streams of batches without drift: how often a test alarms at one look (`once`), and at any of the
  looks after every batch (`ever`). Both should be at most 0.05 for a test at that level.
- The same with a known drift from the first batch on: a mean, a variance, or a rotation that leaves
  every column as it was. `delay` is the mean number of batches until the alarm, where a stream
  without one counts as the batch after the last; `seen` is the share of streams with one.
- Elec2, in days of 48 rows whose labels come at the end of the day: the accuracy of a Gaussian
  naive Bayes classifier that learns from every day, and that forgets all but the last days when a
  detector alarms. `last_label` repeats the label before, which is known to be hard to beat here
  (labels resemble their neighbours), but needs the label half an hour later, not a day.

Beside the tests of `jaxops.monitor` stand the published rules of other libraries, computed here:
Alibi-Detect's KS test of each column at the level 0.05 over all columns (Bonferroni), and its MMD
and LSDD; Evidently's KS test of each column at 0.05, and its Wasserstein distance above 0.1
standard deviations; NannyML's Jensen-Shannon distance above 0.1. `tests/monitor` shows that ADWIN,
Page-Hinkley and DDM alarm where those of river do.

By default 1,000 streams without drift are drawn, and 200 with each drift; MMD and LSDD have 200
and 40.

    JAXOPS_DATA_DIR=DATA python -m experiments.drift
"""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from experiments import common
from jaxops import monitor

PUBLISHED = {"ever_categories": "no publication; at most 0.05 is wanted"}
LEVEL = 0.05
REFERENCE, BATCH, COLUMNS, BINS = 1000, 100, 3, 10
# at which SciPy's p-value is 0.05 over all columns, and for each
KS_LIMIT = stats.kstwo.isf([LEVEL / COLUMNS, LEVEL], round(REFERENCE * BATCH / (REFERENCE + BATCH)))
DRIFTS = ("none", "mean", "variance", "rotation")
Alarms = dict[str, Any]  # method -> (batches,) bool


@dataclass(frozen=True)
class Settings(common.Settings):
    """How much is simulated."""

    streams: int = 1000
    """streams without drift; with drift a fifth of them"""
    kernel_streams: int = 40
    """streams with drift on which MMD and LSDD are tried; without it five times as many"""
    batches: int = 30
    """looks at each stream"""
    keep: int = 10
    """days of Elec2 that are kept after an alarm"""


def drawn(rng: np.random.Generator, drift: str, rows: int) -> np.ndarray:
    """Rows of three columns, the first two of them correlated."""
    x = rng.normal(size=(rows, COLUMNS))
    sign = -1 if drift == "rotation" else 1
    x[:, 1] = sign * 0.6 * x[:, 0] + 0.8 * x[:, 1]
    x[:, 0] = x[:, 0] * (1.3 if drift == "variance" else 1) + (0.3 if drift == "mean" else 0)
    return x


def binned(reference: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts (columns, bins) of the reference, and (columns, batches, bins) of the rows."""
    before, now = [], []
    for column in range(COLUMNS):
        edges = np.quantile(reference[:, column], np.arange(1, BINS) / BINS)
        place = np.searchsorted(edges, rows[..., column])
        before.append(np.bincount(np.searchsorted(edges, reference[:, column]), minlength=BINS))
        now.append([np.bincount(of_batch, minlength=BINS) for of_batch in place])
    return np.array(before), np.array(now)


def of_columns(reference: np.ndarray, rows: np.ndarray) -> Alarms:
    """The alarms of tests of each column, one for each batch (batches, rows, columns)."""
    before, now = binned(reference, rows)
    looks, each = now.cumsum(1), before[:, None]
    level = LEVEL / COLUMNS
    gap, distance = np.empty((2, COLUMNS, len(rows)))
    for i, k in np.ndindex(gap.shape):
        values, b, n = monitor.pooled(reference[:, i], rows[k, :, i])
        # `monitor.ks` has a p-value too, which takes ten times as long
        gap[i, k] = np.abs(b.cumsum() / REFERENCE - n.cumsum() / BATCH).max()
        distance[i, k] = monitor.wasserstein(b, n, values, permutations=0).statistic
    distance /= reference.std(0)[:, None]
    js = monitor.jensen_shannon(each, now)
    # the mean of e-values is an e-value: one alarm for all columns
    log_e = np.logaddexp.reduce(monitor.categories_changed(before, looks)) - np.log(COLUMNS)
    by_mean = monitor.mean_changed(before, looks, np.linspace(0, 1, BINS))
    by_mean = np.logaddexp.reduce(by_mean) - np.log(COLUMNS)
    return {
        "e-process of categories": monitor.anytime_p(log_e) <= LEVEL,
        "e-process of means": monitor.anytime_p(by_mean) <= LEVEL,
        "chi-squared": (monitor.chi_squared(each, now).p <= level).any(0),
        "PSI by its p-value": (monitor.psi(each, now).p <= level).any(0),
        "Jensen-Shannon by its p-value": (js.p <= level).any(0),
        "KS, all columns at 0.05 (Alibi-Detect)": (gap >= KS_LIMIT[0]).any(0),
        "KS, each column at 0.05 (Evidently)": (gap >= KS_LIMIT[1]).any(0),
        "Wasserstein above 0.1 (Evidently)": (distance > 0.1).any(0),
        "Jensen-Shannon above 0.1 (NannyML)": (js.statistic > 0.1).any(0),
        "PSI above 0.1": (monitor.psi(each, now).statistic > 0.1).any(0),
    }


def of_kernels(reference: np.ndarray, rows: np.ndarray) -> Alarms:
    """MMD and LSDD on each batch, until an alarm."""
    found: Alarms = {}
    own = int(np.abs(reference[0, 0]) * 2**30)  # streams with the same permutations are alike
    for name, test in (("MMD", monitor.mmd), ("LSDD", monitor.lsdd)):
        found[name] = np.zeros(len(rows), bool)
        for i, batch in enumerate(rows):
            if test(reference, batch, permutations=99, seed=own + i).p <= LEVEL:
                found[name][i:] = True  # what comes after the first is not asked for
                break
    return found


def of_streams(reference: np.ndarray, rows: np.ndarray) -> Alarms:
    """Detectors that see the reference and then each row of the first column.

    DDM sees errors: a fifth of the rows without drift.
    """
    values = np.concatenate([reference[:, 0], rows[..., 0].ravel()])
    told = {
        "ADWIN": monitor.adwin(values),
        "Page-Hinkley": monitor.page_hinkley(values),
        "DDM": monitor.ddm(values > 0.8416),
    }
    shape = rows.shape[:2]
    return {name: one.drift[REFERENCE:].reshape(shape).any(1) for name, one in told.items()}


def simulated(
    tests: Callable[[np.ndarray, np.ndarray], Alarms],
    drift: str,
    streams: int,
    batches: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """Method -> (streams, batches), whether there is an alarm."""
    found: dict[str, list[np.ndarray]] = {}
    for i in range(streams):
        rng = np.random.default_rng([seed, DRIFTS.index(drift), i])
        reference = drawn(rng, "none", REFERENCE)
        rows = drawn(rng, drift, batches * BATCH).reshape(batches, BATCH, COLUMNS)
        for name, alarms in tests(reference, rows).items():
            found.setdefault(name, []).append(alarms)
    return {name: np.array(each) for name, each in found.items()}


def table(settings: Settings, seed: int) -> dict[str, dict[str, float]]:
    """False alarms and delays of each method."""
    rows: dict[str, dict[str, float]] = {}
    for drift in DRIFTS:
        for tests in (of_columns, of_streams, of_kernels):
            slow = tests is of_kernels
            streams = 5 * settings.kernel_streams if slow else settings.streams
            streams = streams if drift == "none" else -(-streams // 5)
            batches = 1 if slow and drift == "none" else settings.batches
            for name, alarms in simulated(tests, drift, streams, batches, seed).items():
                row = rows.setdefault(name, {})
                if drift == "none":
                    row["once"] = float(alarms[:, 0].mean())
                    row |= {} if slow else {"ever": float(alarms.any(1).mean())}
                    continue
                first = np.where(alarms.any(1), alarms.argmax(1), batches) + 1
                row[f"{drift}_delay"] = float(first.mean())
                row[f"{drift}_seen"] = float(alarms.any(1).mean())
        common.say(f"seed {seed}: {drift} done")
    return rows


def elec2(smoke: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs (days, 48, 6) and classes (days, 48); made up for a smoke test."""
    if smoke:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(60, 48, 6))
        return x, (x[..., 0] * np.where(np.arange(60) < 30, 1, -1)[:, None] > 0).astype(int)
    file = Path(os.environ.get("JAXOPS_DATA_DIR", "."), "electricity", "electricity.csv.gz")
    with gzip.open(file, "rt") as lines:
        rows = np.loadtxt(lines, delimiter=",", skiprows=1)
    days = rows.reshape(-1, 48, rows.shape[1])
    return days[..., :-1], days[..., -1].astype(int)


def moments(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(2, 3, D): of each class the number of rows, their sum, and that of their squares."""
    of_class = [x[y == k] for k in (0, 1)]
    return np.array([[np.full(x.shape[1], len(r)), r.sum(0), (r**2).sum(0)] for r in of_class])


def naive_bayes(known: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The classes of rows, by a normal distribution of each input in each class."""
    count, total, squares = (known[:, i] for i in range(3))
    rows = np.maximum(count, 1)
    mean = total / rows
    variance = np.maximum(squares / rows - mean**2, 0) + 1e-6
    gap = x[:, None] - mean[None]
    fit = -(gap**2 / variance[None] + np.log(variance)[None]).sum(-1) / 2
    return (fit + np.log(count[:, 0] + 1)[None]).argmax(-1)


def followed(x: np.ndarray, y: np.ndarray, detect: Any, keep: int) -> tuple[float, int]:
    """The accuracy of a classifier that is told each day's labels, and the number of alarms."""
    days = np.array([moments(*day) for day in zip(x, y, strict=True)])
    start, right, alarms, state = 0, 0, 0, None
    for day in range(1, len(x)):
        wrong = naive_bayes(days[start:day].sum(0), x[day]) != y[day]
        right += int((~wrong).sum())
        if detect is not None:
            told = detect(wrong.astype(int), state)
            state = told.state
            if told.drift.any():
                alarms, start = alarms + 1, max(day + 1 - keep, 0)
    return right / y[1:].size, alarms


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Simulated streams, and Elec2."""
    if settings.smoke:
        settings = replace(settings, streams=6, kernel_streams=2, batches=4)
    rows = table(settings, seed)
    x, y = elec2(settings.smoke)
    metrics: dict[str, float] = {
        "ever_categories": rows["e-process of categories"]["ever"],
        "ever_mean": rows["e-process of means"]["ever"],
        "ever_ks": rows["KS, all columns at 0.05 (Alibi-Detect)"]["ever"],
        "elec2_last_label": float((y.ravel()[1:] == y.ravel()[:-1]).mean()),
    }

    def rises(errors: np.ndarray, state: Any) -> monitor.Alarms:
        return monitor.page_hinkley(errors, state, threshold=20.0, direction="up")

    detectors = {"none": None, "adwin": monitor.adwin, "ddm": monitor.ddm, "page_hinkley": rises}
    for name, detect in detectors.items():
        accuracy, alarms = followed(x, y, detect, settings.keep)
        metrics[f"elec2_{name}"] = accuracy
        metrics |= {} if detect is None else {f"elec2_{name}_alarms": alarms}
    return metrics | {"models": rows}


if __name__ == "__main__":
    common.experiment("drift", Settings, run, PUBLISHED)
