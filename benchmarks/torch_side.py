"""PyTorch's side; needs NumPy and PyTorch alone, so that it may run under another Python.

Forms: "article", as the articles write it (DataLoader, `.item()` each step); "careful", as a user
who knows PyTorch writes it; "compiled", the careful form under `torch.compile`; "bfloat16", the
faster of autocast and of "medium" products (oneDNN's in bfloat16), eager or compiled. What is
best on this machine (whose products, threads, layout, bytes or floats in memory, which Adam, which
compiler mode) is found by short trials, one choice after another, and reported.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import torch_nets, workloads
from benchmarks.torch_choices import (
    ALL_THREADS,
    COMPILERS,
    DEVICE,
    GPU,
    PREDICT_COMPILERS,
    TRAIN_COMPILERS,
    Settings,
    apply,
    medium_is_exact,
    peak_memory,
    wait,
)
from benchmarks.workloads import EPSILON, FIRST_LOSSES, LEARNING_RATE

TRIAL_SECONDS = 0.2


def make(form: str, folder: str, started: float) -> Any:
    """What answers the commands; the arguments are those of `benchmarks.jax_side.make`."""
    if form == "machine":
        return Machine()
    workload, columns, batches = workloads.read(Path(folder))
    kind = Prediction if workload.kind == "predict" else Training
    return kind(workload, columns, batches, form, Path(folder), started)


class Machine:
    """What is asked once: the version, and the matrix product's rate."""

    def facts(self) -> dict[str, Any]:
        """Of this interpreter."""
        return {"versions": {"torch": torch.__version__, "numpy": np.__version__}}

    def peak(self, dtype: str) -> float:
        """FLOP/s: the best of ten products of two 2048 x 2048 matrices."""
        exact = "medium" if medium_is_exact() else "highest"
        torch.set_float32_matmul_precision("high" if GPU else exact)
        a = torch.ones((2048, 2048), dtype=getattr(torch, dtype), device=DEVICE)
        times = []
        for _ in range(11):
            start = time.perf_counter()
            a @ a
            wait()
            times.append(time.perf_counter() - start)
        return 2 * 2048**3 / min(times)


class Program(NamedTuple):
    """A network with what trains it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Callable[..., Tensor]
    columns: tuple[Tensor, ...]


class Training:
    """A training loop, and how many examples a second go through it."""

    def __init__(
        self,
        workload: workloads.Workload,
        columns: workloads.Columns,
        batches: np.ndarray,
        form: str,
        folder: Path,
        started: float,
    ) -> None:
        self.workload, self.form, self.folder, self.started = workload, form, folder, started
        self.size = workload.network
        self.inputs, self.criterion = (
            torch_nets.inputs_of(self.size),
            torch_nets.criterion_of(self.size),
        )
        self.raw, self.batches, self.best = columns, batches, 0.0
        self.settings = Settings(
            adam="default" if form == "article" else "fused",
            compile="default" if form == "compiled" else "",
            autocast=form == "bfloat16",
        )

    # the data

    def shaped(self, x: np.ndarray) -> Tensor:
        """Rows in PyTorch's shape: images flat, or (B, 1, 28, 28); tokens as int64."""
        if isinstance(self.size, workloads.GPT):
            return torch.from_numpy(x).long()
        shape = (1, 28, 28) if isinstance(self.size, workloads.CNN) else (-1,)
        return torch.from_numpy(x.reshape(len(x), *shape))

    def columns(self, split: str, settings: Settings) -> tuple[Tensor, ...]:
        """A split's tensors on the device: images as bytes, or as floats normalised beforehand."""
        x = self.shaped(self.raw[f"{split}_x"])
        if not settings.bytes:
            x = self.inputs(x)
        if settings.channels_last:
            x = x.to(memory_format=torch.channels_last)
        if f"{split}_y" not in self.raw:
            return (x.to(DEVICE),)
        y = torch.from_numpy(self.raw[f"{split}_y"])
        y = y.float() if torch_nets.is_binary(self.size) else y.long()
        return x.to(DEVICE), y.to(DEVICE)

    # the program

    def program(self, settings: Settings) -> Program:
        """A new network with the initial weights, its optimizer, and its loss as settings say."""
        apply(settings)
        model = torch_nets.network(self.size, settings.channels_last)
        model = model.to(DEVICE)
        self.reset(model, settings)
        which: dict[str, Any] = {} if settings.adam == "default" else {settings.adam: True}
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, eps=EPSILON, **which)
        criterion, device = self.criterion, DEVICE.type

        def loss(*batch: Tensor) -> Tensor:
            return criterion(model, *batch)

        def low_loss(*batch: Tensor) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                return criterion(model, *batch)

        chosen: Callable[..., Tensor] = low_loss if settings.autocast else loss
        if settings.compile:
            torch._dynamo.reset()
            chosen = torch.compile(chosen, dynamic=False, **COMPILERS[settings.compile])
        return Program(model, optimizer, chosen, self.columns("train", settings))

    def reset(self, model: nn.Module, settings: Settings) -> None:
        """The weights that jaxops began with."""
        file = self.folder / "weights.npz"
        torch_nets.load_weights(model, file, self.size, settings.channels_last)

    def step(self, program: Program, index: Tensor) -> Tensor:
        """One careful update: rows gathered, nothing waited for."""
        batch = (column.index_select(0, index) for column in program.columns)
        program.optimizer.zero_grad(set_to_none=True)
        loss = program.loss(*batch)
        loss.backward()
        program.optimizer.step()
        return loss

    def steps(self, program: Program) -> Iterator[int]:
        """Updates without end, each with its number of examples.

        As careful users do, a batch that is not full is dropped; the article's loop has it.
        """
        program.model.train()
        size, rows = self.workload.batch_size, len(program.columns[0])
        if self.form == "article":
            dataset = TensorDataset(*(column.cpu() for column in program.columns))
            loader = DataLoader(dataset, batch_size=size, shuffle=True)
            running = 0.0
            while True:
                for batch in loader:
                    batch = [column.to(DEVICE) for column in batch]
                    program.optimizer.zero_grad()
                    loss = program.loss(*batch)
                    loss.backward()
                    program.optimizer.step()
                    running += loss.item()
                    yield len(batch[0])
        while True:
            order = torch.randperm(rows, device=DEVICE)
            for start in range(0, rows - size + 1, size):
                self.step(program, order[start : start + size])
                yield size

    def rate(self, steps: Iterator[int], seconds: float) -> float:
        """Examples a second of the next so many seconds."""
        wait()
        start, examples = time.perf_counter(), 0
        for count in steps:
            examples += count
            if time.perf_counter() - start >= seconds:
                break
        wait()
        return examples / (time.perf_counter() - start)

    # the commands

    def setup(self) -> dict[str, Any]:
        """Seconds from the start of this process to the end of the first step; peak memory."""
        self.start(self.settings)
        next(self.running)
        wait()
        first = time.time() - self.started
        for _ in range(3):
            next(self.running)
        wait()
        return {"first_step_seconds": first, "peak_memory": peak_memory()}

    def start(self, settings: Settings) -> None:
        """A program, and its loop."""
        self.current = self.program(settings)
        self.running = self.steps(self.current)

    def trial(self, settings: Settings) -> None:
        """Keep these settings if, warm, they are the fastest so far."""
        self.start(settings)
        for _ in range(3):
            next(self.running)
        # the better of two: what disturbs a trial only ever slows it
        rate = max(self.rate(self.running, TRIAL_SECONDS) for _ in range(2))
        if rate > self.best:
            self.best, self.settings = rate, settings

    def tune(self, seconds: float) -> dict[str, Any]:
        """Find the best settings, one choice after another."""
        if self.form != "article":
            compiler, self.settings = self.settings.compile, self.settings._replace(compile="")
            self.tune_eager()
            if compiler or self.form == "bfloat16":
                self.tune_compiler()
        self.start(self.settings)  # the last trial may have been of others
        self.rate(self.running, seconds)
        return {"settings": {**self.settings._asdict(), "device": str(DEVICE)}}

    def tune_eager(self) -> None:
        """Which library's products, threads, layout, floats or bytes, which Adam."""
        self.trial(self.settings)
        if (self.form == "bfloat16") != medium_is_exact():
            self.trial(self.settings._replace(products="medium", autocast=False))
        if ALL_THREADS > 1 and not GPU:
            self.trial(self.settings._replace(threads=1))
        if isinstance(self.size, workloads.CNN):
            self.trial(self.settings._replace(channels_last=True))
        if self.workload.data == "mnist":
            self.trial(self.settings._replace(bytes=True))
        self.trial(self.settings._replace(adam="foreach"))

    def tune_compiler(self) -> None:
        """The compiler's modes, then the other number of threads, which it compiles in."""
        if self.form == "compiled":
            self.best = 0.0  # the careful form has its own line
        self.trial(self.settings._replace(compile="default"))
        if self.form == "bfloat16" and not GPU:
            self.trial(self.settings._replace(compile="cpp_wrapper"))
            return  # the other number of threads takes ten seconds; "compiled" shows what it brings
        for mode in TRAIN_COMPILERS:
            self.trial(self.settings._replace(compile=mode))
        if ALL_THREADS > 1 and not GPU:
            other = 1 if self.settings.threads > 1 else ALL_THREADS
            self.trial(self.settings._replace(threads=other))

    def check(self, order: int) -> dict[str, Any]:
        """The losses of the first steps on the given batches; after all of them, the test's."""
        apply(self.settings, exact=True)
        program = self.current
        self.reset(program.model, self.settings)
        program.optimizer.state.clear()
        program.model.train()
        losses = []
        for i, rows in enumerate(self.batches[order]):
            loss = self.step(program, torch.from_numpy(rows).to(DEVICE))
            if i < FIRST_LOSSES:
                losses.append(loss.item())
        result = {"losses": losses, **self.test(program.model)}
        apply(self.settings)
        return result

    def test(self, model: nn.Module) -> dict[str, float | None]:
        """Mean loss and accuracy over the test rows, in float32."""
        model.eval()
        columns = self.columns("test", self.settings)
        total, right, count = 0.0, 0, len(columns[0])
        with torch.no_grad():
            for batch in zip(*(column.split(1000) for column in columns), strict=True):
                total += self.criterion(model, *batch).item() * len(batch[0])
                if len(batch) == 2:
                    logits = model(self.inputs(batch[0]))
                    guess = (
                        logits[:, 0] > 0 if torch_nets.is_binary(self.size) else logits.argmax(1)
                    )
                    right += int((guess == batch[1]).sum())
        model.train()
        return {"loss": total / count, "accuracy": right / count if len(columns) == 2 else None}

    def measure(self, seconds: float) -> float:
        """Examples a second, after three steps that warm threads and caches."""
        for _ in range(3):
            next(self.running)
        return self.rate(self.running, seconds)


class Prediction(Training):
    """NumPy in, NumPy out."""

    def answerer(self, settings: Settings, traced: bool) -> Callable[[np.ndarray], np.ndarray]:
        """What a user calls: bytes of images to probabilities."""
        apply(settings)
        model = torch_nets.network(self.size, settings.channels_last)
        self.reset(model, settings)
        model = model.to(DEVICE).eval()

        class Whole(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, x: Tensor) -> Tensor:
                return self.model(inputs(x)).softmax(-1)

        inputs = self.inputs
        whole: Any = Whole().eval()
        if settings.compile:
            torch._dynamo.reset()
            whole = torch.compile(whole, dynamic=False, **COMPILERS[settings.compile])
        if traced:
            with torch.inference_mode():
                example = self.shaped(self.question).to(DEVICE)
                whole = torch.jit.trace(whole, example)
                whole = torch.jit.optimize_for_inference(torch.jit.freeze(whole))

        def ask(x: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                rows = self.shaped(x).to(DEVICE)
                return whole(rows).cpu().numpy()

        return ask

    def setup(self) -> dict[str, Any]:
        """Seconds to the first answer."""
        self.question = self.raw["test_x"][: self.workload.batch_size]
        self.ask = self.answerer(self.settings, traced=False)
        self.ask(self.question)
        first = time.time() - self.started
        return {"first_step_seconds": first, "peak_memory": peak_memory()}

    def answers(self, ask: Callable[[np.ndarray], np.ndarray], seconds: float) -> float:
        """Examples a second of the next so many seconds."""
        start, calls = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            ask(self.question)
            calls += 1
        return calls * self.workload.batch_size / (time.perf_counter() - start)

    def trial(self, settings: Settings, traced: bool = False) -> None:
        """Keep these settings if, warm, they are the fastest so far."""
        ask = self.answerer(settings, traced)
        for _ in range(5):
            ask(self.question)
        rate = max(self.answers(ask, TRIAL_SECONDS) for _ in range(2))
        if rate > self.best:
            self.best, self.settings, self.traced = rate, settings, traced

    def tune(self, seconds: float) -> dict[str, Any]:
        """Threads and layout; traced or not; the compiler's modes."""
        self.traced = False
        for traced in (False, True) if self.form == "careful" else (False,):
            self.trial(self.settings, traced)
            if medium_is_exact():
                self.trial(self.settings._replace(products="medium"), traced)
            if ALL_THREADS > 1 and not GPU:
                self.trial(self.settings._replace(threads=1), traced)
            if isinstance(self.size, workloads.CNN):
                self.trial(self.settings._replace(channels_last=True), traced)
        for mode in PREDICT_COMPILERS if self.form == "compiled" else ():
            self.trial(self.settings._replace(compile=mode))
        self.ask = self.answerer(self.settings, self.traced)
        self.answers(self.ask, seconds)
        unused = ("adam", "bytes", "autocast")
        chosen = {k: v for k, v in self.settings._asdict().items() if k not in unused}
        return {"settings": {**chosen, "traced": self.traced, "device": str(DEVICE)}}

    def check(self, order: int) -> dict[str, Any]:
        """The probabilities of the first examples."""
        apply(self.settings, exact=True)
        rows = self.raw["test_x"][: max(16, self.workload.batch_size)]
        size = self.workload.batch_size
        parts = [self.ask(rows[i : i + size]) for i in range(0, len(rows), size)]
        apply(self.settings)
        return {"outputs": np.concatenate(parts)[:16].ravel().tolist()}

    def measure(self, seconds: float) -> float:
        """Examples a second."""
        return self.answers(self.ask, seconds)
