"""PyTorch's predictions."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import torch_nets, workloads
from benchmarks.torch_choices import (
    ALL_THREADS,
    COMPILERS,
    DEVICE,
    GPU,
    PREDICT_COMPILERS,
    Settings,
    apply,
    medium_is_exact,
    peak_memory,
)
from benchmarks.torch_train import TRIAL_SECONDS, Training
from benchmarks.workloads import CHECKED


class Prediction(Training):
    """NumPy in, NumPy out."""

    def answerer(self, settings: Settings, traced: bool) -> Callable[[np.ndarray], np.ndarray]:
        """What a user calls: bytes of images to probabilities."""
        apply(settings)
        model = torch_nets.network(self.size, settings.channels_last)
        self.load(model, settings)
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

    def trial(self, traced: bool = False, **changes: Any) -> None:
        """Keep these changes of the settings if, warm, they are the fastest so far."""
        settings = self.settings._replace(**changes)
        try:
            ask = self.answerer(settings, traced)
            for _ in range(5):
                ask(self.question)
        except Exception as error:
            if not settings.compile:
                raise
            self.failed[str(changes)] = str(error)[:500]
            return
        rate = max(self.answers(ask, TRIAL_SECONDS) for _ in range(2))
        if rate > self.best:
            self.best, self.settings, self.traced = rate, settings, traced

    def tune(self, seconds: float) -> dict[str, Any]:
        """Threads and layout; traced or not; the compiler's modes."""
        self.traced = False
        for traced in (False, True) if self.form == "careful" else (False,):
            self.trial(traced)
            if medium_is_exact():
                self.trial(traced, products="medium")
            if ALL_THREADS > 1 and not GPU:
                self.trial(traced, threads=1)
            if isinstance(self.size, workloads.CNN):
                self.trial(traced, channels_last=True)
        for mode in PREDICT_COMPILERS if self.form == "compiled" else ():
            self.trial(compile=mode)
        self.ask = self.answerer(self.settings, self.traced)
        self.answers(self.ask, seconds)
        used = ("threads", "channels_last", "products", "compile")
        chosen = {name: getattr(self.settings, name) for name in used}
        found = {"settings": {**chosen, "traced": self.traced, "device": str(DEVICE)}}
        return {**found, **({"failed_trials": self.failed} if self.failed else {})}

    def check(self, order: int) -> dict[str, Any]:
        """The probabilities of so many examples as are timed, of 16 where that is one."""
        apply(self.settings, exact=True)
        size = self.workload.batch_size
        rows = self.raw["test_x"][: max(CHECKED, size)]
        parts = [self.ask(rows[i : i + size]) for i in range(0, len(rows), size)]
        apply(self.settings)
        return {"outputs": np.concatenate(parts).ravel().tolist()}

    def measure(self, seconds: float) -> float:
        """Examples a second."""
        return self.answers(self.ask, seconds)
