"""PyTorch's DLinear and PatchTST, for `benchmarks.forecasting`; needs NumPy and PyTorch alone.

plain: a DataLoader that cuts out windows one by one, as the authors have it; default Adam.
careful: windows are views of the series, a batch is one gather; fused Adam; threads by trials.
compiled: the careful form under `torch.compile`.

Both networks compute what jaxops's do: PatchTST with its scores added up over the layers, and two
dropouts in a row as one.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import forecasting_data
from benchmarks.forecasting_data import Size
from benchmarks.rise import Rise
from benchmarks.torch_choices import ALL_THREADS, DEVICE, GPU, peak_memory, wait

LEARNING_RATE = 1e-4
TRIAL_SECONDS = 4.0


class DLinear(nn.Module):
    """Trend and remainder, a dense layer each: (B, L, C) to (B, H, C)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.seasonal = nn.Linear(size.context, size.horizon)
        self.trend = nn.Linear(size.context, size.horizon)
        self.average = nn.AvgPool1d(25, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Look-back to forecast."""
        x = x.transpose(1, 2)
        trend = self.average(F.pad(x, (12, 12), mode="replicate"))
        return (self.seasonal(x - trend) + self.trend(trend)).transpose(1, 2)


class Block(nn.Module):
    """Attention and perceptron, batch norm after each."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.attention_norm, self.norm = nn.BatchNorm1d(width), nn.BatchNorm1d(width)
        self.drop, self.twice = nn.Dropout(dropout), nn.Dropout(1 - (1 - dropout) ** 2)

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, N, D) to the same, and the scores."""
        rows, number, width = x.shape
        qkv = self.qkv(x).view(rows, number, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(2, 3) * (width // self.heads) ** -0.5
        if before is not None:
            scores = scores + before
        mixed = (scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(x.shape)
        x = (x + self.twice(self.out(mixed))).view(-1, width)  # so that the norm has it row-major
        x = self.attention_norm(x)
        y = self.down(self.drop(F.gelu(self.up(x))))
        return self.norm(x + self.drop(y)).view(rows, number, width), scores


class PatchTST(nn.Module):
    """As `jaxops.forecast.PatchTST` with its defaults."""

    def __init__(self, size: Size, dropout: float = 0.3) -> None:
        super().__init__()
        number, width = (size.context - 16) // 8 + 2, 16
        self.embedding, self.drop = nn.Linear(16, width), nn.Dropout(dropout)
        self.positions = nn.Parameter(torch.zeros(number, width))
        self.blocks = nn.ModuleList(Block(width, 4, 128, dropout) for _ in range(3))
        self.head = nn.Linear(number * width, size.horizon)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, C) to (B, H, C)."""
        var, mean = torch.var_mean(x, 1, keepdim=True, correction=0)
        std = torch.sqrt(var + 1e-5)
        z = F.pad(((x - mean) / std).transpose(1, 2), (0, 8), mode="replicate")
        batch, channels, _ = z.shape
        z = self.embedding(z.unfold(-1, 16, 8)).flatten(0, 1)
        z, scores = self.drop(z + self.positions), None
        for block in self.blocks:
            z, scores = block(z, scores)
        return self.head(z.reshape(batch, channels, -1)).transpose(1, 2) * std + mean


def build(size: Size) -> nn.Module:
    return {"DLinear": DLinear, "PatchTST": PatchTST}[size.network](size).to(DEVICE)


def load_weights(model: nn.Module, file: Path) -> None:
    """Copy the parameters of jaxops's network, all of them."""
    flat = dict(np.load(file))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            *path, last = name.replace("blocks.", "block_").split(".")
            if isinstance(model, DLinear):
                found = f"{path[0]}_{'kernel' if last == 'weight' else last}"
            else:
                kinds = {"weight": ("kernel", "scale")}.get(last, (last,))
                found = next(n for n in ("/".join([*path, k]) for k in kinds) if n in flat)
            value = flat.pop(found)
            parameter.copy_(torch.from_numpy(value.T if found.endswith("kernel") else value))
    if flat:
        raise KeyError(f"{file} must have the network's parameters alone, got {', '.join(flat)}")


class Windows(torch.utils.data.Dataset):
    """One window at a time."""

    def __init__(self, values: Tensor, size: Size) -> None:
        self.values, self.size = values, size

    def __len__(self) -> int:
        return len(self.values) - self.size.context - self.size.horizon + 1

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        middle = i + self.size.context
        return self.values[i:middle], self.values[middle : middle + self.size.horizon]


class Training:
    """The methods answer the commands of `benchmarks.worker`."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        self.form, self.started, self.folder = form.split(" ")[1], started, Path(folder)
        values, self.size = forecasting_data.read(self.folder)
        self.plain = Windows(torch.from_numpy(values), self.size)
        # (W, L + H, C), a view
        length = self.size.context + self.size.horizon
        on_device = self.plain.values.to(DEVICE)
        self.windows = on_device.unfold(0, length, 1).transpose(1, 2)
        self.threads = ALL_THREADS

    def begin(self, threads: int) -> None:
        """A new network, two steps old."""
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("high" if GPU else "highest")
        model = build(self.size)
        load_weights(model, self.folder / "weights.npz")
        fused: dict[str, Any] = {} if self.form == "plain" else {"fused": True}
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **fused)
        run: Callable[[Tensor], Tensor] = model
        if self.form == "compiled":
            torch._dynamo.reset()
            run = torch.compile(model)

        def update(x: Tensor, y: Tensor) -> None:
            optimizer.zero_grad(set_to_none=True)
            F.mse_loss(run(x), y).backward()
            optimizer.step()

        self.running = self.steps(update)
        for _ in range(2):
            next(self.running)

    def steps(self, update: Callable[[Tensor, Tensor], None]) -> Iterator[int]:
        back, batch = self.size.context, self.size.batch
        if self.form == "plain":
            loader = torch.utils.data.DataLoader(self.plain, batch, shuffle=True, drop_last=True)
            while True:
                for x, y in loader:
                    update(x.to(DEVICE), y.to(DEVICE))
                    yield len(x)
        while True:
            order = torch.randperm(len(self.windows), device=DEVICE)
            for index in order[: len(order) // batch * batch].split(batch):
                window = self.windows[index]
                update(window[:, :back], window[:, back:])
                yield len(index)

    def rate(self, seconds: float) -> float:
        wait()
        start, count = time.perf_counter(), 0
        for windows in self.running:
            count += windows
            if time.perf_counter() - start >= seconds:
                break
        wait()
        return count / (time.perf_counter() - start)

    def check(self, windows: int) -> float:
        """The loss of the first windows, nothing dropped out."""
        model = build(self.size).eval()
        load_weights(model, self.folder / "weights.npz")
        window, back = self.windows[:windows], self.size.context
        with torch.no_grad():
            return float(F.mse_loss(model(window[:, :back]), window[:, back:]))

    def first(self) -> float:
        """Seconds from the process's start to the end of its first steps, two of them."""
        self.begin(self.threads)
        wait()
        return time.time() - self.started

    def tune(self, seconds: float) -> dict[str, Any]:
        """Choose threads by short trials; the plain form has no choice."""
        options = sorted({ALL_THREADS, ALL_THREADS if GPU or self.form == "plain" else 1})
        rates = []
        for threads in options:
            self.begin(threads)
            rates.append(self.rate(min(TRIAL_SECONDS, seconds)))
        self.threads = options[int(np.argmax(rates))]
        self.begin(self.threads)
        return {"chosen": {"threads": self.threads}, "peak_memory": peak_memory()}

    def measure(self, seconds: float) -> float:
        """Windows a second."""
        torch.set_num_threads(self.threads)
        return self.rate(seconds)


class Many:
    """Forecasts of many series of one channel, so many at a time."""

    AT_ONCE = 8192

    def __init__(self, form: str, folder: str, started: float) -> None:
        _, self.size = forecasting_data.read(Path(folder))
        self.model = build(self.size).eval()

    def run(self, series: int, repeats: int) -> dict[str, float]:
        """Seconds of one, the least, and by how many bytes the peak of memory rose."""
        values, times = forecasting_data.many(series, self.size.context + 1)[:, 1:, None], []
        found = np.empty((series, self.size.horizon, 1), np.float32)
        with torch.inference_mode(), Rise(peak_memory if GPU else None) as rise:
            for _ in range(1 + repeats):
                start = time.perf_counter()
                for i in range(0, series, self.AT_ONCE):
                    some = torch.from_numpy(values[i : i + self.AT_ONCE]).to(DEVICE)
                    found[i : i + self.AT_ONCE] = self.model(some).cpu().numpy()
                times.append(time.perf_counter() - start)
        return {"seconds": min(times[1:]), "bytes": rise.bytes}


def make(form: str, folder: str, started: float) -> Any:
    """What answers the commands: "train careful" or "many"."""
    kinds: dict[str, Any] = {"train": Training, "many": Many}
    return kinds[form.split(" ")[0]](form, folder, started)
