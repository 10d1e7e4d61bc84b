"""jaxops's DLinear and PatchTST, for `benchmarks.forecasting`, through its public interface."""

import time
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np

import jaxops as jo
from benchmarks import forecasting_data
from benchmarks.forecasting_data import Size
from benchmarks.rise import Rise
from jaxops import forecast
from jaxops.train import clock

LEARNING_RATE = 1e-4
PEAK = clock.peak_memory if jax.default_backend() != "cpu" else None


def network(size: Size) -> Any:
    return getattr(forecast, size.network)(size.context, size.horizon)


class Training:
    """`jo.fit` on windows that are cut out of the series on the device."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        self.compute, self.started, self.folder = form.split(" ")[1], started, Path(folder)
        values, self.size = forecasting_data.read(self.folder)
        names = [str(i) for i in range(values.shape[1])]
        series = forecast.from_arrays(["series"], [values], channels=names)
        scaling = forecast.scaling(series, "none")
        self.task = forecast.direct(network(self.size), series, scaling)
        self.windows = forecast.origins(series, self.size.context, self.size.horizon)
        self.optimizer = jo.optim.adam(LEARNING_RATE)
        self.steps, self.rounds = 32, 0

    def weights(self) -> None:
        """Write the initial parameters for the other side."""
        params, _ = self.task.init(jax.random.key(0), self.windows)
        flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
        np.savez(self.folder / "weights.npz", **flat)

    def check(self, windows: int) -> float:
        """The loss of the first windows, nothing dropped out."""
        params, extra = self.task.init(jax.random.key(0), self.windows)
        batch = {name: column[:windows] for name, column in self.windows.items()}
        loss = jax.jit(self.task.loss, static_argnums=4)
        total, out = loss(params, extra, batch, jax.random.key(0), False)
        return float(total / out.weight)

    def _fit(self, steps: int) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = []
        self.rounds += 1
        jo.fit(
            self.task,
            self.windows,
            optimizer=self.optimizer,
            batch_size=self.size.batch,
            steps=steps,
            seed=self.rounds,
            compute=self.compute,
            progress=False,
            reports=records.append,
        )
        return records

    def first(self) -> float:
        """Seconds from the process's start to the end of its first step."""
        self._fit(1)
        return time.time() - self.started

    def _rate(self) -> float:
        return float(self._fit(self.steps)[-1]["examples_per_second"])

    def tune(self, seconds: float) -> dict[str, Any]:
        """How many steps take about so long."""
        for _ in range(2):
            self.steps = max(8, int(seconds * self._rate() / self.size.batch))
        self._rate()
        return {"chosen": {"steps": self.steps}, "peak_memory": clock.peak_memory()}

    def measure(self, seconds: float) -> float:
        """Windows a second, from the end of the first call on."""
        return self._rate()


class Many:
    """`forecast.forecast` of many series that were not in training."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        _, self.size = forecasting_data.read(Path(folder))
        some = self._series(4)
        scaling = forecast.scaling(some, "none")
        module = network(self.size)
        task = forecast.direct(module, some, scaling)
        windows = forecast.origins(some, self.size.context, 1)
        state = jo.state.init_state(task, jo.optim.sgd(0.1), seed=0, batch=windows)
        self.model = forecast.forecaster(module, state, some, scaling)

    def _series(self, count: int) -> Any:
        values = forecasting_data.many(count, self.size.context + 1)
        return forecast.from_arrays([str(i) for i in range(count)], list(values))

    def run(self, series: int, repeats: int) -> dict[str, float]:
        """Seconds of one call, the least, and by how many bytes the peak of memory rose."""
        history, times = self._series(series), []
        with Rise(PEAK) as rise:
            for _ in range(1 + repeats):  # the first compiles
                start = time.perf_counter()
                forecast.forecast(self.model, history, levels=())
                times.append(time.perf_counter() - start)
        return {"seconds": min(times[1:]), "bytes": rise.bytes}


def make(form: str, folder: str, started: float) -> Any:
    """What answers the commands: "train float32" or "many"."""
    kinds: dict[str, Any] = {"train": Training, "many": Many}
    return kinds[form.split(" ")[0]](form, folder, started)
