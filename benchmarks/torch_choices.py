"""What a PyTorch user can choose, and what the choice does to the process."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ALL_THREADS = torch.get_num_threads()
# as XLA has it: numbers below 1e-38, of which Adam makes many, are slow to compute with
torch.set_flush_denormal(True)
warnings.simplefilter("ignore")  # of PyTorch's own, such as that TorchScript is to go


class Settings(NamedTuple):
    """What a PyTorch user can choose without changing what is computed.

    Attributes:
        threads: of products and loops.
        channels_last: layout of images.
        bytes: images stay bytes in memory, and are normalised in the step.
        adam: "default", "foreach", "fused", or "compiled" ("foreach" under `torch.compile`).
        products: `torch.set_float32_matmul_precision`.
        autocast: to bfloat16.
        compile: the loss, a name in `COMPILERS`, or "".
        shuffle: rows are gathered for each "batch", or all columns once an "epoch" and then sliced.
        graph: the whole step is one CUDA graph.
    """

    threads: int = ALL_THREADS
    channels_last: bool = False
    bytes: bool = False
    adam: str = "fused"
    products: str = "highest"
    autocast: bool = False
    compile: str = ""
    shuffle: str = "batch"
    graph: bool = False


COMPILERS: dict[str, dict[str, Any]] = {
    "default": {},
    "cpp_wrapper": {"options": {"cpp_wrapper": True}},
    "max-autotune": {"mode": "max-autotune-no-cudagraphs"},
    "reduce-overhead": {"mode": "reduce-overhead"},
    "freezing": {"options": {"freezing": True}},
    "freezing, cpp_wrapper": {"options": {"freezing": True, "cpp_wrapper": True}},
    "freezing, max-autotune": {"options": {"freezing": True, "max_autotune": True}},
}
TRAIN_COMPILERS = ("reduce-overhead", "max-autotune") if GPU else ("cpp_wrapper",)
PREDICT_COMPILERS = (
    ("reduce-overhead", "max-autotune")
    if GPU
    else ("cpp_wrapper", "freezing", "freezing, cpp_wrapper", "freezing, max-autotune")
)


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def record(update: Callable[..., Tensor], example: Sequence[Tensor]) -> Callable[..., Tensor]:
    """An update as one CUDA graph, into whose own batch every new one is copied.

    What changed while it was recorded (parameters, the optimizer's state) is the caller's to reset.
    Without a GPU nothing is recorded, and the update is made as it is, on its own batch.
    """
    batch = [column.clone() for column in example]
    replay = _graph(update, batch) if GPU else lambda: update(*batch)

    def run(*new: Tensor) -> Tensor:
        for column, value in zip(batch, new, strict=True):
            column.copy_(value)
        return replay()

    return run


def _graph(update: Callable[..., Tensor], batch: Sequence[Tensor]) -> Callable[[], Tensor]:
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # what is allocated or compiled at first must not be recorded
            update(*batch)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = update(*batch)

    def replay() -> Tensor:
        graph.replay()
        return loss

    return replay


def apply(settings: Settings, exact: bool = False) -> None:
    """Apply the settings that hold for the whole process; `exact`: no TF32."""
    torch.set_num_threads(settings.threads)
    products = settings.products
    if GPU and products == "highest" and not exact:
        products = "high"
    torch.set_float32_matmul_precision(products)
    torch.backends.cudnn.allow_tf32 = products != "highest"


def medium_is_exact() -> bool:
    """Whether "medium" products are float32's all the same.

    On a CPU "medium" lets oneDNN choose. Where bfloat16 would gain nothing it computes in float32,
    and on some processors twice as fast as PyTorch's usual library does.
    """
    if GPU:
        return False
    a = torch.rand((512, 512), generator=torch.Generator().manual_seed(0)) - 0.5
    torch.set_float32_matmul_precision("medium")
    error = (a @ a - (a.double() @ a.double()).float()).abs().max().item()
    torch.set_float32_matmul_precision("highest")
    return error < 1e-4


def peak_memory() -> int:
    """Bytes: the device's peak, or this process's."""
    if GPU:
        return torch.cuda.max_memory_allocated()
    import resource
    import sys

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
