"""PyTorch's side; needs NumPy and PyTorch alone, so that it may run under another Python.

Forms: "article", as the articles write it (DataLoader, `.item()` each step); "careful", as a user
who knows PyTorch writes it; "compiled", the careful form under `torch.compile`; "graphed", the
whole step as one CUDA graph, on a GPU; "bfloat16", the faster of autocast and of "medium" products
(oneDNN's in bfloat16), eager or compiled; "transformers", that library's own generation. What is
best on this machine (whose products, threads, layout, bytes or floats in memory, how to shuffle,
which Adam, which compiler mode) is found by short trials, one choice after another, and reported.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import workloads
from benchmarks.torch_choices import DEVICE, GPU, medium_is_exact, wait
from benchmarks.torch_generation import Generation
from benchmarks.torch_predict import Prediction
from benchmarks.torch_train import Training


def make(form: str, folder: str, started: float) -> Any:
    """What answers the commands; the arguments are those of `benchmarks.jax_side.make`."""
    if form == "machine":
        return Machine()
    kind = workloads.read_workload(Path(folder)).kind
    kinds = {"train": Training, "predict": Prediction, "generate": Generation}
    return kinds[kind](form, folder, started)


class Machine:
    """What is asked once: the version, and the matrix product's rate."""

    def facts(self) -> dict[str, Any]:
        """Of this interpreter."""
        return {"versions": {"torch": torch.__version__, "numpy": np.__version__}}

    def peak(self, dtype: str) -> float:
        """FLOP/s: the best of at most eleven products of two 2048 x 2048 matrices, in 10 s."""
        exact = "medium" if medium_is_exact() else "highest"
        torch.set_float32_matmul_precision("high" if GPU else exact)
        a = torch.ones((2048, 2048), dtype=getattr(torch, dtype), device=DEVICE)
        times: list[float] = []
        while len(times) < 11 and sum(times) < 10:  # bfloat16 can take 20 s
            start = time.perf_counter()
            a @ a
            wait()
            times.append(time.perf_counter() - start)
        return 2 * 2048**3 / min(times)
