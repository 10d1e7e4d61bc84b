"""PyTorch's training loops: see `benchmarks.torch_side` for their forms."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import torch_nets, workloads
from benchmarks.side import Side
from benchmarks.torch_choices import (
    ALL_THREADS,
    COMPILERS,
    DEVICE,
    GPU,
    TRAIN_COMPILERS,
    Settings,
    apply,
    medium_is_exact,
    peak_memory,
    record,
    wait,
)
from benchmarks.workloads import EPSILON, FIRST_LOSSES, LEARNING_RATE

TRIAL_SECONDS = 0.2


class Program(NamedTuple):
    """A network with what trains it.

    Attributes:
        model: the network.
        optimizer: Adam.
        update: one step on a batch of the columns' rows; its loss.
        columns: the training split's, on the device.
        settings: that it was made by.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    update: Callable[..., Tensor]
    columns: tuple[Tensor, ...]
    settings: Settings


class Training(Side):
    """A training loop, and how many examples a second go through it."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        super().__init__(form, folder, started)
        self.size = self.workload.network
        self.inputs = torch_nets.inputs_of(self.size)
        self.criterion = torch_nets.criterion_of(self.size)
        self.best, self.failed = 0.0, dict[str, str]()
        self.shuffling = self.last_shuffle = 0.0
        self.settings = Settings(
            adam="default" if form == "article" else "fused",
            compile="default" if form == "compiled" else "",
            autocast=form == "bfloat16",
            graph=form == "graphed",
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

    def program(self, settings: Settings, exact: bool = False) -> Program:
        """A new network with the initial weights, and its update as the settings say."""
        apply(settings, exact)
        model = torch_nets.network(self.size, settings.channels_last)
        model = model.to(DEVICE)
        self.load(model, settings)
        adam = {"default": "", "compiled": "foreach"}.get(settings.adam, settings.adam)
        which: dict[str, Any] = {adam: True} if adam else {}
        if settings.graph:
            which["capturable"] = GPU
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, eps=EPSILON, **which)
        criterion, device = self.criterion, DEVICE.type

        def plain_loss(*batch: Tensor) -> Tensor:
            return criterion(model, *batch)

        def low_loss(*batch: Tensor) -> Tensor:
            with torch.autocast(device, torch.bfloat16):
                return criterion(model, *batch)

        loss_of: Callable[..., Tensor] = low_loss if settings.autocast else plain_loss
        optimize: Callable[..., Any] = optimizer.step
        if settings.compile:
            torch._dynamo.reset()
            options = COMPILERS[settings.compile]
            loss_of = torch.compile(loss_of, dynamic=False, **options)
            if settings.adam == "compiled":
                optimize = torch.compile(optimize, **options)

        def update(*batch: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(*batch)
            loss.backward()
            optimize()
            return loss

        columns = self.columns("train", settings)
        program = Program(model, optimizer, update, columns, settings)
        if settings.graph:
            example = [column[: self.workload.batch_size] for column in columns]
            program = program._replace(update=record(update, example))
            self.reset(program)
        return program

    def load(self, model: nn.Module, settings: Settings) -> None:
        """The weights that jaxops began with."""
        file = self.folder / "weights.npz"
        torch_nets.load_weights(model, file, self.size, settings.channels_last)

    def reset(self, program: Program) -> None:
        """To the beginning, in place: nothing is compiled or recorded again."""
        self.load(program.model, program.settings)
        for state in program.optimizer.state.values():
            for value in state.values():
                value.zero_()

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
                    running += program.update(*(column.to(DEVICE) for column in batch)).item()
                    yield len(batch[0])
        once = program.settings.shuffle == "epoch"
        shuffled = [column.clone() for column in program.columns] if once else []
        while True:
            order = torch.randperm(rows, device=DEVICE)
            if once:
                self.shuffle(program.columns, order, shuffled)
            for start in range(0, rows - size + 1, size):
                index = order[start : start + size]
                program.update(
                    *(column[start : start + size] for column in shuffled)
                    if once
                    else (column.index_select(0, index) for column in program.columns)
                )
                yield size

    def shuffle(self, columns: Sequence[Tensor], order: Tensor, shuffled: Sequence[Tensor]) -> None:
        """Whole columns in an epoch's order; `rate` charges every example its share of the time."""
        wait()
        start = time.perf_counter()
        for column, buffer in zip(columns, shuffled, strict=True):
            torch.index_select(column, 0, order, out=buffer)
        wait()
        self.last_shuffle = time.perf_counter() - start
        self.shuffling += self.last_shuffle

    def rate(self, steps: Iterator[int], seconds: float) -> float:
        """Examples a second of the next so many seconds."""
        wait()
        start, examples, before = time.perf_counter(), 0, self.shuffling
        for count in steps:
            examples += count
            if time.perf_counter() - start >= seconds:
                break
        wait()
        # a turn is mostly shorter than an epoch, so it may have one shuffle too many or too few
        share = self.last_shuffle * examples / len(self.current.columns[0])
        return examples / (time.perf_counter() - start - (self.shuffling - before) + share)

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
        self.current, self.last_shuffle = self.program(settings), 0.0
        self.running = self.steps(self.current)

    def trial(self, **changes: Any) -> None:
        """Keep these changes of the settings if, warm, they are the fastest so far."""
        settings = self.settings._replace(**changes)
        try:
            self.start(settings)
            for _ in range(3):
                next(self.running)
        except Exception as error:
            if not (settings.compile or settings.graph):
                raise
            # such as for want of a C++ compiler; what does without can still be measured
            self.failed[str(changes)] = str(error)[:500]
            return
        # the better of two: what disturbs a trial only ever slows it
        rate = max(self.rate(self.running, TRIAL_SECONDS) for _ in range(2))
        if rate > self.best:
            self.best, self.settings = rate, settings

    def tune(self, seconds: float) -> dict[str, Any]:
        """Find the best settings, one choice after another."""
        if self.form != "article":
            self.settings = self.settings._replace(compile="")
            self.tune_eager()
            if self.form != "careful":
                self.tune_compiler()
        self.start(self.settings)  # the last trial may have been of others
        self.rate(self.running, seconds)
        found = {"settings": {**self.settings._asdict(), "device": str(DEVICE)}}
        return {**found, **({"failed_trials": self.failed} if self.failed else {})}

    def tune_eager(self) -> None:
        """Whose products, threads, layout, floats or bytes, which Adam, how to shuffle."""
        self.trial()
        if (self.form == "bfloat16") != medium_is_exact():
            self.trial(products="medium", autocast=False)
        if ALL_THREADS > 1 and not GPU:
            self.trial(threads=1)
        if isinstance(self.size, workloads.CNN):
            self.trial(channels_last=True)
        if self.workload.data == "mnist":
            self.trial(bytes=True)
        self.trial(adam="foreach")
        self.trial(shuffle="epoch")

    def tune_compiler(self) -> None:
        """The compiler's modes; then what it may want otherwise than the eager loop does."""
        if self.form == "compiled":
            self.best = 0.0  # the careful form has its own line
        self.trial(compile="default")
        if self.form == "bfloat16" and not GPU:
            self.trial(compile="cpp_wrapper")
            return  # the others take ten seconds each; "compiled" shows what they bring
        for mode in TRAIN_COMPILERS if self.form != "graphed" else ():
            self.trial(compile=mode)
        if not self.settings.compile:
            return  # eager wins under a CUDA graph, or in bfloat16
        if isinstance(self.size, workloads.CNN):
            self.trial(channels_last=not self.settings.channels_last)
        if self.workload.data == "mnist":
            self.trial(bytes=not self.settings.bytes)
        self.trial(adam="compiled")
        if ALL_THREADS > 1 and not GPU:  # it compiles the number of threads in
            self.trial(threads=1 if self.settings.threads > 1 else ALL_THREADS)

    def check(self, order: int) -> dict[str, Any]:
        """The losses of the first steps on the given batches; after all of them, the test's."""
        apply(self.settings, exact=True)
        program = self.current
        if self.settings.graph:  # recorded anew: without TF32
            program = self.program(self.settings, exact=True)
        self.reset(program)
        program.model.train()
        losses = []
        for i, rows in enumerate(self.batches[order]):
            index = torch.from_numpy(rows).to(DEVICE)
            loss = program.update(*(column.index_select(0, index) for column in program.columns))
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
                    guess = torch_nets.guesses(self.size, model(self.inputs(batch[0])))
                    right += int((guess == batch[1]).sum())
        model.train()
        return {"loss": total / count, "accuracy": right / count if len(columns) == 2 else None}

    def measure(self, seconds: float) -> float:
        """Examples a second, after three steps that warm threads and caches."""
        for _ in range(3):
            next(self.running)
        return self.rate(self.running, seconds)
