"""Seconds of KernelSHAP beside shap's, on a network of the 14 columns of Adult.

    JAXOPS_DATA_DIR=DATA python -m benchmarks.explain_shap [--rows 20] [--background 100]

Both sides explain the log-odds of the same network (one epoch of an MLP) for the same rows, with
the same background and number of coalitions. shap gets what a careful user gives it: the encoded
features in 14 groups, and the network compiled by JAX, padded to few shapes; it explains one row
after the other. The sides take turns, after a warm-up of the same call. "apart" is the largest
distance of a value from the exact one (all 16,384 coalitions), and "sd" its root mean square.

shap (0.51) is in an environment of its own: pip install shap.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.defaults import adult_frames
from jaxops import tabular
from jaxops._shapes import next_power_of_two
from jaxops.explain.games import Game, game
from jaxops.explain.shapley import kernel_shap
from jaxops.trust import report


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rows: int = 20
    background: int = 100
    samples: int = 2076
    """coalitions of each row: shap's default for 14 columns"""
    rounds: int = 3
    train: int = 30_000
    """rows of which the network learns"""
    shap: bool = True


def of_jaxops(one: Game, samples: int) -> Callable[[], np.ndarray]:
    return lambda: kernel_shap(one, samples=samples).values


def of_shap(one: Game, samples: int) -> Callable[[], np.ndarray]:
    """shap's KernelExplainer, with the features of a column as one group."""
    import shap
    from shap.utils._legacy import DenseData

    players, params = one.players, one.program.params
    (background,), (features,) = (one.background or {}).values(), players.columns.values()
    (owner,) = players.owners.values()
    names = players.names[0].tolist()
    groups = [np.flatnonzero(owner[0] == place) for place in range(len(names))]

    @jax.jit
    def log_odds(x: Any) -> Any:
        p = one.program.function(params, {"features": x})
        return jnp.log(p) - jnp.log1p(-p)

    def predict(x: np.ndarray) -> np.ndarray:
        count = len(x)
        padded = np.zeros((next_power_of_two(count, 1024), x.shape[1]), np.float32)
        padded[:count] = x
        return np.asarray(log_odds(padded))[:count].astype(np.float64)

    explainer = shap.KernelExplainer(predict, DenseData(background, names, groups))

    def run() -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = explainer.shap_values(
                features, nsamples=samples, l1_reg=False, silent=True, gc_collect=False
            )
        return np.asarray(found)

    return run


def made(settings: Settings) -> Game:
    """The rows of the network, and what is explained."""
    train, test = adult_frames()
    model = tabular.fit(
        train.head(settings.train), tabular.MLP((64, 64)), label="income", epochs=1, progress=False
    )
    rows = test.head(settings.rows)
    return game(model, rows, target=model.task.classes[1], baseline=train.head(settings.background))


def main(settings: Settings) -> None:
    """Print the table."""
    one = made(settings)
    exact = kernel_shap(one, samples=2 ** one.players.real.shape[1]).values
    forms = {"jaxops": of_jaxops(one, settings.samples)}
    if settings.shap:
        forms["shap"] = of_shap(one, settings.samples)
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    values = {name: form() for name, form in forms.items()}
    for _ in range(settings.rounds):
        for name, form in forms.items():
            start = time.perf_counter()
            form()
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, taken in seconds.items():
        apart = values[name] - exact
        rows.append(
            {
                "KernelSHAP": name,
                "rows": len(exact),
                "coalitions": settings.samples,
                "seconds": f"{median(taken):.2f}",
                "range": f"{min(taken):.2f} to {max(taken):.2f}",
                "apart": f"{np.abs(apart).max():.1e}",
                "sd": f"{np.sqrt(np.square(apart).mean()):.1e}",
            }
        )
    print(report.table(rows))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
