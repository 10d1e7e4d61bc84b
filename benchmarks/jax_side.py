"""jaxops's side, through its public interface: a program is what a user would write."""

import functools
import time
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

import jaxops as jo
from benchmarks import gpt, workloads
from benchmarks.side import Side
from benchmarks.workloads import CHECKED, EPSILON, FIRST_LOSSES, LEARNING_RATE, LOSS_TOLERANCE, SEED
from jaxops import tabular, vision
from jaxops.language.inference import generate
from jaxops.nn.product import has_bfloat16
from jaxops.train import clock, program

SWEEP = 32


def make(form: str, folder: str, started: float) -> Any:
    """The object that answers the commands.

    Args:
        form: "float32", "bfloat16", "vmapped", "one at a time", or "machine" for no workload.
        folder: what `workloads.write` wrote.
        started: when this process was started, `time.time()`.
    """
    if form == "machine":
        return Machine()
    kinds = {"train": Training, "predict": Prediction, "sweep": Training, "generate": Generation}
    kind = kinds[workloads.read_workload(Path(folder)).kind]
    return (Sweep if form == "vmapped" else kind)(form, folder, started)


class Machine:
    """What is asked once: versions, the device, and its matrix product's rate."""

    def facts(self) -> dict[str, Any]:
        """Of this interpreter."""
        device = jax.local_devices()[0]
        versions = {m.__name__: m.__version__ for m in (jax, flax, np, jo)}
        return {
            "versions": versions,
            "platform": device.platform,
            "device": device.device_kind,
            "bfloat16": has_bfloat16(),
            "compiler_options": getattr(program, "COMPILER_OPTIONS", {}),
        }

    def peak(self, dtype: str) -> float:
        """FLOP/s of a product of two 2048 x 2048 matrices."""
        return clock.peak_flops(dtype)


def task_of(network: Any) -> jo.Task:
    """What to learn, as the experiments have it."""
    if isinstance(network, workloads.GPT):
        return gpt.task(network)
    if isinstance(network, workloads.CNN):
        cnn = vision.CNN(features=network.features, hidden=network.hidden)
        return vision.classifier(cnn, mean=network.mean, std=network.std)
    if isinstance(network, workloads.TabM):
        widths = (network.width,) * network.depth
        module = tabular.TabM(widths, members=network.members, dropout=0.0)
        return tabular.classifier(module, network.features)
    features, *hidden, outputs = network.widths
    if outputs == 1:
        embedding = tabular.Periodic() if network.numbers else None
        mlp = tabular.MLP(tuple(hidden), embedding=embedding, numbers=network.numbers)
        return tabular.classifier(mlp, features)
    plain = vision.MLP(tuple(hidden), outputs)
    return vision.classifier(plain, mean=network.mean, std=network.std)


def named(task: jo.Task, columns: workloads.Columns, split: str) -> dict[str, np.ndarray]:
    """A split's columns under the names that the task has for them."""
    names = [column.name for column in task.columns]
    return {n: columns[f"{split}_{c}"] for n, c in zip(names, "xy", strict=False)}


class Training(Side):
    """`jo.fit`, and how many examples a second it reports."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        super().__init__(form, folder, started)
        self.task = task_of(self.workload.network)
        self.train = named(self.task, self.raw, "train")
        self.test = named(self.task, self.raw, "test")
        self.optimizer = jo.optim.adam(LEARNING_RATE, eps=EPSILON)
        self.options: dict[str, Any] = {"compute": form} if form == "bfloat16" else {}
        self.steps, self.rounds = 32, 0

    def fit(self, data: Any, **options: Any) -> jo.TrainState:
        """The one call that is measured."""
        return jo.fit(
            self.task,
            data,
            optimizer=self.optimizer,
            batch_size=self.workload.batch_size,
            progress=False,
            **self.options,
            **options,
        )

    def setup(self) -> dict[str, Any]:
        """Seconds from the start of this process to the end of the first step; peak memory."""
        ends: list[float] = []
        self.fit(
            self.train,
            steps=4,
            reports=jo.Reports(lambda record: ends.append(time.time()), every=1),
        )
        return {"first_step_seconds": ends[0] - self.started, "peak_memory": clock.peak_memory()}

    def _batch(self) -> dict[str, np.ndarray]:
        return {name: column[self.batches[0, 0]] for name, column in self.train.items()}

    def facts(self) -> dict[str, Any]:
        """Parameters, and floating-point operations of a step for each of its examples."""
        state = jo.init_state(self.task, self.optimizer, SEED, self._batch())
        step = functools.partial(jo.train_step, self.task, self.optimizer)
        return {
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
            "flops_per_example": clock.flops(step, state, self._batch()) / self.workload.batch_size,
        }

    def weights(self) -> None:
        """Write the initial parameters for the other side: weights.npz, by path."""
        params = jo.init_state(self.task, self.optimizer, SEED, self._batch()).params
        flat = flax.traverse_util.flatten_dict(jax.device_get(params), sep="/")
        np.savez(self.folder / "weights.npz", **flat)

    def check(self, order: int) -> dict[str, Any]:
        """The losses of the first steps; after all of them, the test's.

        Twice through the loop that is timed, on data that stay on the device: once a step a call,
        for each loss, and once as it is timed, many steps a call, whose mean loss must be theirs.
        """
        count = len(next(iter(self.train.values())))
        rows = workloads.checked_rows(count, self.workload.batch_size)
        data = {name: column[rows] for name, column in self.train.items()}
        records: list[dict[str, Any]] = []

        def fit(steps: int, log_every: int) -> jo.TrainState:
            records.clear()
            start = jo.init_state(self.task, self.optimizer, SEED, self._batch())
            return self.fit(
                data, steps=steps, seed=SEED + order, state=start,
                reports=jo.Reports(records.append, every=log_every),
            )  # fmt: skip

        def losses() -> list[float]:
            return [float(r["loss"]) for r in records if r["split"] == "steps"]

        with jax.default_matmul_precision("highest"):  # no TF32 here: is it the same network?
            fit(FIRST_LOSSES, 1)
            first = losses()
            state = fit(self.batches.shape[1], FIRST_LOSSES)
            test = jo.evaluate(self.task, state, self.test)
        if not abs(losses()[0] / np.mean(first) - 1) <= LOSS_TOLERANCE["float32"]:
            raise ValueError(f"the mean loss must be that of {first}, got {losses()[0]}")
        return {"losses": first, "loss": test["loss"], "accuracy": test.get("accuracy")}

    def _rate(self) -> float:
        records: list[dict[str, Any]] = []
        self.rounds += 1
        self.fit(self.train, steps=self.steps, seed=self.rounds, reports=records.append)
        return float(records[-1]["examples_per_second"])

    def tune(self, seconds: float) -> dict[str, Any]:
        """Fix the number of steps that takes about so long, so that nothing recompiles."""
        for _ in range(2):
            self.steps = max(8, int(seconds * self._rate() / self.workload.batch_size))
        self._rate()
        return {"steps": self.steps}

    def measure(self, seconds: float) -> float:
        """Examples a second, from the end of the first call on; `tune` set how long."""
        return self._rate()


class Sweep(Training):
    """32 seeds in one vmapped program, each with rows of its own, drawn at random."""

    def setup(self) -> dict[str, Any]:
        """Compile and make four steps."""
        states = [jo.init_state(self.task, self.optimizer, i, self._batch()) for i in range(SWEEP)]
        self.states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        flat = {name: column.reshape(len(column), -1) for name, column in self.train.items()}
        shapes = {name: column.shape[1:] for name, column in self.train.items()}
        self.columns, self.random = jax.device_put(flat), np.random.default_rng(SEED)

        def step(columns: Any, states: Any, index: jax.Array) -> Any:
            batch = {n: columns[n][index].reshape(*index.shape, *shapes[n]) for n in shapes}
            one = functools.partial(jo.train_step, self.task, self.optimizer)
            return jax.vmap(one)(states, batch)

        def program(states: Any, columns: Any, index: Any, count: Any) -> Any:
            return jo.many_steps(functools.partial(step, columns))(states, index, count)

        self.program = jax.jit(program, donate_argnums=0)
        self._calls(1)
        first = time.time() - self.started
        return {"first_step_seconds": first, "peak_memory": clock.peak_memory()}

    def _calls(self, calls: int) -> None:
        rows = len(next(iter(self.train.values())))
        shape = (self.steps, SWEEP, self.workload.batch_size)
        for _ in range(calls):
            index = self.random.integers(0, rows, shape, np.int32)
            count = np.int32(self.steps)
            self.states, metrics = self.program(self.states, self.columns, index, count)
        jax.block_until_ready(metrics)

    def tune(self, seconds: float) -> dict[str, Any]:
        """Nothing to choose; once more, warm."""
        self._calls(1)
        return {"seeds": SWEEP}

    def measure(self, seconds: float) -> float:
        """Examples a second, over all seeds."""
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            self._calls(4)
            calls += 4
        examples = calls * self.steps * SWEEP * self.workload.batch_size
        return examples / (time.perf_counter() - start)


class Prediction(Training):
    """NumPy in, NumPy out."""

    def setup(self) -> dict[str, Any]:
        """Seconds to the first answer."""
        if self.workload.batch_size == 1:
            # the answer is waited for at once, so a thread of its own would only be slower
            jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.state = jo.init_state(self.task, self.optimizer, SEED, self._batch())
        self.question = {"image": self.test["image"][: self.workload.batch_size]}
        self.ask = jo.predictor(self.task, self.state, self.question)
        self.ask(self.question)
        first = time.time() - self.started
        return {"first_step_seconds": first, "peak_memory": clock.peak_memory()}

    def facts(self) -> dict[str, Any]:
        """As in training, of a prediction."""
        predict = functools.partial(self.task.predict, self.state.params, self.state.extra)
        flops = clock.flops(predict, self.question) / self.workload.batch_size
        return {**super().facts(), "flops_per_example": flops}

    def check(self, order: int) -> dict[str, Any]:
        """The probabilities of so many examples as are timed, of 16 where that is one."""
        size = self.workload.batch_size
        with jax.default_matmul_precision("highest"):
            ask = jo.predictor(self.task, self.state, self.question)
            starts = range(0, max(CHECKED, size), size)
            parts = [ask({"image": self.test["image"][i : i + size]}) for i in starts]
        return {"outputs": np.concatenate(parts).ravel().tolist()}

    def tune(self, seconds: float) -> dict[str, Any]:
        """Nothing to choose."""
        self.measure(seconds)
        return {}

    def measure(self, seconds: float) -> float:
        """Examples a second."""
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            self.ask(self.question)
            calls += 1
        return calls * self.workload.batch_size / (time.perf_counter() - start)


class Generation(Training):
    """`language.generate`: prompts of one length to the most probable answers."""

    def setup(self) -> dict[str, Any]:
        """Seconds to the first answer."""
        self.state = jo.init_state(self.task, self.optimizer, SEED, self._batch())
        rows = self.test["tokens"][: self.workload.batch_size]
        self.prompts = [row[: workloads.PROMPT] for row in rows]
        self.ask()
        first = time.time() - self.started
        return {"first_step_seconds": first, "peak_memory": clock.peak_memory()}

    def ask(self) -> list[list[int]]:
        """The answers' tokens: the one call that is measured."""
        model = jo.Model(self.task, self.state)
        answers = generate(model, self.prompts, new_tokens=workloads.NEW_TOKENS)
        return [answer.tokens.tolist() for answer in answers]

    def facts(self) -> dict[str, Any]:
        """As in training; the products with the parameters, for each token."""
        parameters, network = super().facts()["parameters"], self.workload.network
        assert isinstance(network, workloads.GPT)
        looked_up = (network.vocabulary + network.context) * network.width
        return {"parameters": parameters, "flops_per_example": 2 * (parameters - looked_up)}

    def check(self, order: int) -> dict[str, Any]:
        """The tokens of the answers that are timed."""
        with jax.default_matmul_precision("highest"):
            return {"outputs": [token for answer in self.ask() for token in answer]}

    def tune(self, seconds: float) -> dict[str, Any]:
        """Nothing to choose."""
        self.measure(seconds)
        return {}

    def measure(self, seconds: float) -> float:
        """Tokens a second."""
        start, tokens = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            tokens += sum(map(len, self.ask()))
        return tokens / (time.perf_counter() - start)
