"""What a PyTorch user can choose, and what the choice does to the process."""

import warnings
from typing import Any, NamedTuple

import torch

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
ALL_THREADS = torch.get_num_threads()
# as XLA has it: numbers below 1e-38, of which Adam makes many, are slow to compute with
torch.set_flush_denormal(True)
warnings.simplefilter("ignore")  # of PyTorch's own, such as that TorchScript is to go


class Settings(NamedTuple):
    """What a PyTorch user can choose without changing what is computed."""

    threads: int = ALL_THREADS
    channels_last: bool = False
    bytes: bool = False
    adam: str = "fused"
    products: str = "highest"
    autocast: bool = False
    compile: str = ""


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


def apply(settings: Settings, exact: bool = False) -> None:
    """Settings that PyTorch has one of for the whole process; `exact`: no TF32."""
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
