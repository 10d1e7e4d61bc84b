"""Seconds of a fit and a million predictions of BG/NBD, beside the package lifetimes.

    python -m benchmarks.customers [--customers 1000000] [--rounds 3] [--no-lifetimes]
    python -m benchmarks.customers --python path/to/python

Customers are simulated with CDNOW's parameters and ages up to two years. Times are whole days, as
in a log; `--continuous` leaves them as they are, so that no two customers are alike. Both sides get
the same arrays of frequency, recency and T. `fit` is parameters and standard errors, `predict`
P(alive) and the expected purchases within 39 weeks (jaxops tells P(buys again), too). lifetimes
(0.11.3 is what was measured; not a dependency of jaxops) fits once. The parameters, and the
predictions from the same parameters, are compared. jaxops's first call, with compilation, is
reported separately. Where lifetimes is not installed, SciPy minimises the same likelihood, written
in NumPy. `--python` names an interpreter with pymc-marketing (0.19.2 is what was measured), whose
maximum a posteriori is timed last, in a process of its own: the first fit and another.
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.process import asked
from jaxops import customers
from jaxops.trust import report

PARAMS = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}
HORIZON = 39.0
SIDE = Path(__file__).with_name("customers_side.py")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    customers: int = 1_000_000
    rounds: int = 3
    """of jaxops, and of the other side's predictions"""
    continuous: bool = False
    """no rounding of times to days"""
    lifetimes: bool = True
    """the package, if it is installed; else SciPy's minimisation"""
    python: Path | None = None
    """an interpreter with pymc-marketing"""


def simulated(count: int, continuous: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequency, recency and T in weeks, float64 (N,) each; a day's purchases are one."""
    rng = np.random.default_rng(0)
    T = rng.uniform(1, 104, count)
    if not continuous:
        T = np.ceil(7 * T) / 7
    rate = rng.gamma(PARAMS["r"], 1 / PARAMS["alpha"], count)
    p = rng.beta(PARAMS["a"], PARAMS["b"], count)
    x, recency, now = np.zeros(count), np.zeros(count), np.zeros(count)
    alive = np.ones(count, bool)
    while alive.any():
        rows = np.flatnonzero(alive)
        now[rows] += rng.exponential(1 / np.maximum(rate[rows], 1e-12))
        bought = now[rows] < T[rows]
        there = rows[bought]
        shown = now[there] if continuous else np.ceil(7 * now[there]) / 7
        x[there] += shown > recency[there]
        recency[there] = shown
        alive[rows] = bought & (rng.uniform(size=len(rows)) > p[rows])
    return x, recency, T


def ours(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[Callable[[], Any], Callable[[dict[str, float]], Any]]:
    """Fit to parameters by name; and P(alive) and purchases, from parameters."""
    method = customers.BGNBD()

    def fit() -> dict[str, float]:
        found = customers.estimate(method, *rows)
        return dict(zip(found.names, found.values.tolist(), strict=True))

    def predict(params: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        alive, _, bought = method.outlook(params, *rows, HORIZON)
        return alive, bought

    return fit, predict


def theirs(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[Callable[[], Any], Callable[[dict[str, float]], Any]]:
    """The same of lifetimes."""
    import pandas as pd
    from lifetimes import BetaGeoFitter

    model = BetaGeoFitter()

    def fit() -> dict[str, float]:
        model.fit(*rows)
        return {name: float(value) for name, value in model.params_.items()}

    def predict(params: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        model.params_ = pd.Series(params)
        x, recency, T = rows
        alive = model.conditional_probability_alive(x, recency, T)
        expected = model.conditional_expected_number_of_purchases_up_to_time
        return alive, expected(HORIZON, x, recency, T)

    return fit, predict


def scipys(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> tuple[Callable[[], Any], Callable[[dict[str, float]], Any]]:
    """The same with SciPy alone."""
    from scipy.optimize import minimize
    from scipy.special import betaln, gammaln, hyp2f1

    x, recency, T = rows
    scale = T.mean()

    def loss(theta: np.ndarray) -> float:
        r, alpha, a, b = np.exp(theta)
        stay = betaln(a, b + x) - (r + x) * np.log(alpha + T / scale)
        left = betaln(a + 1, b + np.maximum(x, 1) - 1) - (r + x) * np.log(alpha + recency / scale)
        both = np.where(x > 0, np.logaddexp(stay, left), stay) - betaln(a, b)
        return -float((gammaln(r + x) - gammaln(r) + r * np.log(alpha) + both).mean())

    def fit() -> dict[str, float]:
        best = minimize(loss, np.zeros(4), method="L-BFGS-B", options={"ftol": 1e-12})
        values = np.exp(best.x) * [1, scale, 1, 1]
        return dict(zip(PARAMS, values.tolist(), strict=True))

    def predict(params: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
        r, alpha, a, b = params.values()
        longer = (r + x) * np.log((alpha + T) / (alpha + recency))
        odds = np.where(x > 0, a / (b + np.maximum(x, 1) - 1) * np.exp(longer), 0)
        z = HORIZON / (alpha + T + HORIZON)
        hyper = hyp2f1(r + x, b + x, a + b + x - 1, z) * (1 - z) ** (r + x)
        return 1 / (1 + odds), (a + b + x - 1) / (a - 1) * (1 - hyper) / (1 + odds)

    return fit, predict


def timed(call: Callable[[], Any], rounds: int) -> tuple[Any, list[float]]:
    """What a call gives, and the seconds of each round."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return result, seconds


def beside_pymc(rows: tuple[np.ndarray, ...], python: Path, ours: float) -> None:
    """Print what pymc-marketing takes, and how many times as fast jaxops is with its seconds."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder, "rows.npz"))
        np.savez(file, frequency=rows[0], recency=rows[1], T=rows[2])
        told = asked([str(python), str(SIDE), file, str(HORIZON)])
    times = (told["fit"] + told["predict"]) / ours
    print(f"pymc-marketing: fit {told['fit']:.2f} s (the first {told['first']:.2f}), ", end="")
    print(f"predict {told['predict']:.2f} s; ", end="")
    print(f"both together: {times:.0f} times as fast")
    print("its parameters:", *(f"{name} {value:.4f}" for name, value in told["params"].items()))


def main(settings: Settings) -> None:
    """Print a line for fit, one for predict, and how far the sides differ."""
    rows = simulated(settings.customers, settings.continuous)
    package = settings.lifetimes and importlib.util.find_spec("lifetimes") is not None
    name = "lifetimes" if package else "SciPy"
    fit, predict = ours(rows)
    other_fit, other_predict = (theirs if package else scipys)(rows)
    params, first_fit = timed(fit, 1)
    _, first_predict = timed(lambda: predict(params), 1)
    other, their_fit = timed(other_fit, 1)
    # the sides in turns
    fits, predicts, their_predicts = [], [], []
    for _ in range(settings.rounds):
        fits += timed(fit, 1)[1]
        told, seconds = timed(lambda: predict(params), 1)
        predicts += seconds
        their_told, seconds = timed(lambda: other_predict(params), 1)
        their_predicts += seconds
    table = [
        {
            "what": what,
            "jaxops, s": f"{median(own):.3f} [{min(own):.3f}, {max(own):.3f}]",
            "first call, s": f"{first[0]:.2f}",
            f"{name}, s": f"{median(rival):.2f} [{min(rival):.2f}, {max(rival):.2f}]",
            "times as fast": f"{median(rival) / median(own):.0f}",
        }
        for what, own, first, rival in (
            ("fit", fits, first_fit, their_fit),
            ("predict", predicts, first_predict, their_predicts),
        )
    ]
    both = median(fits) + median(predicts)
    rival = median(their_fit) + median(their_predicts)
    print(f"{settings.customers:,} customers, {settings.rounds} rounds, {name} fits once")
    print(report.table(table))
    print(f"both together: {rival / both:.0f} times as fast")
    print(
        "parameters:", *(f"{k} {v:.4f} and {other[k]:.4f}" for k, v in params.items()), sep="\n  "
    )
    for what, one, two in zip(("P(alive)", "purchases"), told, their_told, strict=True):
        far = np.abs(one / np.asarray(two) - 1)
        print(f"{what}: largest relative difference {np.nanmax(far):.1e}")
    if settings.python:
        beside_pymc(rows, settings.python, both)


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
