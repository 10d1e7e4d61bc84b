"""jaxops's SASRec, for `benchmarks.sequences`, through its public interface."""

import time
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

import jaxops as jo
from benchmarks import sequence_data
from benchmarks.rise import Rise
from benchmarks.sequence_data import Size
from jaxops import recommend
from jaxops.train import clock

LEARNING_RATE = 1e-3
PEAK = clock.peak_memory if jax.default_backend() != "cpu" else None
LOSSES: dict[str, Any] = {
    "full": recommend.CrossEntropy(),
    "binary": recommend.BinaryCrossEntropy(),
}


def network(size: Size, dropout: float | None = None) -> Any:
    rate = size.dropout if dropout is None else dropout
    return recommend.sasrec(size.items, size.context, size.width, size.depth, heads=1, dropout=rate)


class Training:
    """`jo.fit` on packed rows, as many a step as hold 128 users on average."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        _, loss, self.compute = form.split(" ")
        self.folder = Path(folder)
        self.histories, self.size = sequence_data.read(self.folder)
        own = recommend.Histories(*self.histories)
        self.rows = recommend.rows(own, self.size.context + 1)
        self.users_per_row = len(own.lengths) / len(self.rows["items"])
        self.batch = max(1, round(self.size.batch / self.users_per_row))
        self.loss = LOSSES[loss]
        self.task = recommend.next_item(network(self.size), self.loss)
        self.optimizer = jo.optim.adam(LEARNING_RATE)
        self.steps, self.rounds = 32, 0

    def weights(self) -> None:
        """Write the initial parameters for the other side."""
        params, _ = self.task.init(jax.random.key(0), self.rows)
        flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
        np.savez(self.folder / "weights.npz", **flat)

    def check(self, users: int) -> float:
        """The loss of the first users, nothing dropped out: packed, where the other side pads."""
        end = self.histories.starts[users]
        first = recommend.Histories(self.histories.items[:end], self.histories.starts[: users + 1])
        rows = recommend.rows(first, self.size.context + 1)
        task = recommend.next_item(network(self.size, dropout=0.0), self.loss)
        params, extra = self.task.init(jax.random.key(0), self.rows)
        found = jax.jit(task.loss, static_argnums=4)(params, extra, rows, jax.random.key(0), True)
        return float(found[0] / found[1].weight)

    def _rate(self) -> float:
        records: list[dict[str, Any]] = []
        self.rounds += 1
        jo.fit(
            self.task,
            self.rows,
            optimizer=self.optimizer,
            batch_size=self.batch,
            steps=self.steps,
            seed=self.rounds,
            compute=self.compute,
            progress=False,
            reports=records.append,
        )
        return float(records[-1]["examples_per_second"]) * self.users_per_row

    def tune(self, seconds: float) -> dict[str, Any]:
        """How many steps take about so long."""
        for _ in range(2):
            self.steps = max(8, int(seconds * self._rate() / self.users_per_row / self.batch))
        self._rate()
        chosen = {"rows": self.batch, "users_per_row": self.users_per_row, "steps": self.steps}
        return {"chosen": chosen, "peak_memory": clock.peak_memory()}

    def measure(self, seconds: float) -> float:
        """Users a second, from the end of the first call on."""
        return self._rate()


class Scoring:
    """`recommend.recommend` for users who were not in training."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        histories, size = sequence_data.read(Path(folder))
        self.histories = recommend.Histories(*histories)
        module = network(size)
        task = recommend.next_item(module)
        params, _ = task.init(jax.random.key(0), {"items": np.zeros((1, 1), np.int32)})
        items = np.arange(size.items).astype(str)
        counts = np.ones(size.items)
        self.recommender = recommend.Recommender(
            recommend.SequenceModel(module), params, items, counts
        )
        self.score(min(2048, len(self.histories.lengths)))  # compiles

    def score(self, users: int) -> dict[str, float]:
        """Users a second, and by how many bytes the peak of memory rose."""
        starts = self.histories.starts[: users + 1]
        some = recommend.Histories(self.histories.items[: starts[-1]], starts)
        start = time.perf_counter()
        with Rise(PEAK) as rise:
            recommend.recommend(self.recommender, some, k=10)
        seconds = time.perf_counter() - start
        return {"users_per_second": users / seconds, "bytes": rise.bytes}


class Loss:
    """The cross-entropy and its gradients for so many places, whole or by chunks."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        _, self.size = sequence_data.read(Path(folder))
        self.chunked = form.endswith("chunked")

    def run(self, rows: int, repeats: int) -> dict[str, float]:
        """Seconds of one, the least, and by how many bytes the peak of memory rose."""
        key, size = jax.random.key(0), self.size
        x = jax.random.normal(key, (rows, size.context, size.width))
        table = 0.02 * jax.random.normal(key, (size.items, size.width))
        y = jax.random.randint(key, x.shape[:2], 0, size.items)

        def whole(x: Any, table: Any, y: Any) -> Any:
            scores = jnp.einsum("btd,nd->btn", x, table)
            right = jnp.take_along_axis(scores, y[..., None], 2)[..., 0]
            return (jax.nn.logsumexp(scores, axis=2) - right).sum()

        def chunked(x: Any, table: Any, y: Any) -> Any:
            return recommend.cross_entropy(x, table, y, jnp.ones(y.shape))

        both = jax.value_and_grad(chunked if self.chunked else whole, argnums=(0, 1))
        program = jax.jit(both).lower(x, table, y).compile()
        times = []
        with Rise(PEAK) as rise:
            for _ in range(repeats):
                start = time.perf_counter()
                jax.block_until_ready(program(x, table, y))
                times.append(time.perf_counter() - start)
        return {"seconds": min(times), "bytes": rise.bytes}


def make(form: str, folder: str, started: float) -> Any:
    """What answers the commands: "train full float32", "score", "loss chunked" and so on."""
    kinds: dict[str, Any] = {"train": Training, "score": Scoring, "loss": Loss}
    return kinds[form.split(" ")[0]](form, folder, started)
