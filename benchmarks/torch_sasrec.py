"""PyTorch's SASRec, for `benchmarks.sequences`; needs NumPy and PyTorch alone.

One user a row, padded behind to the context, as RecBole has it; a batch of 128 users. The losses
are the cross-entropy over all items, and the binary one with one random negative. Forms:

plain: scores at all places, and those of padding ignored; Adam by default.
careful: scores at the places that count, which for Beauty are an eighth; fused Adam; threads, and
for the cross-entropy whether it goes by chunks of places, by short trials.
compiled: the careful form under `torch.compile`.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import sequence_data
from benchmarks.rise import Rise
from benchmarks.sequence_data import Size
from benchmarks.torch_choices import ALL_THREADS, DEVICE, GPU, peak_memory, wait

LEARNING_RATE = 1e-3
TRIAL_SECONDS = 4.0


class Block(nn.Module):
    """Causal attention of one head and a perceptron as wide as the model, post-norm."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, -1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)
        x = self.norm_1(x + self.drop(self.project(mixed)))
        return self.norm_2(x + self.drop(self.down(F.relu(self.up(x)))))


class SASRec(nn.Module):
    """Items (B, T) to hidden vectors (B, T, D); padding stands behind, so no mask is needed."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.items + 1, size.width)
        self.positions = nn.Parameter(torch.zeros(size.context, size.width))
        nn.init.normal_(self.tokens.weight, std=0.02)
        self.drop = nn.Dropout(size.dropout)
        self.blocks = nn.ModuleList(Block(size.width, size.dropout) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width)

    def forward(self, items: Tensor) -> Tensor:
        """The vector at each place that predicts the next item."""
        x = self.tokens(items) * self.tokens.embedding_dim**0.5
        x = self.drop(self.norm(x + self.positions[: items.shape[1]]))
        for block in self.blocks:
            x = block(x)
        return x

    @property
    def table(self) -> Tensor:
        """(N, D)."""
        return self.tokens.weight[:-1]


def load_weights(model: SASRec, file: Path) -> None:
    """Copy the parameters of jaxops's network, all of them."""
    flat = dict(np.load(file))
    names = {
        "norm_1": "attention_norm",
        "norm_2": "feed_forward_norm",
        "qkv": "attention/qkv",
        "project": "attention/out",
        "up": "feed_forward/up",
        "down": "feed_forward/down",
    }
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            *path, last = name.split(".")
            if path[:1] == ["blocks"]:
                path = ["stack", f"block_{path[1]}", names[path[2]]]
            elif path[:1] == ["norm"]:
                path = ["embedding", "norm"]
            else:
                path, last = ["embedding"], {"weight": "tokens"}.get(last, last)
            kinds = {"weight": ("kernel", "scale")}.get(last, (last,))
            found = next(n for n in ("/".join([*path, k]) for k in kinds) if n in flat)
            value = flat.pop(found)
            parameter.copy_(torch.from_numpy(value.T if found.endswith("kernel") else value))
    if flat:
        raise KeyError(f"{file} must have the network's parameters alone, got {', '.join(flat)}")


def cross_entropy_everywhere(model: SASRec, x: Tensor, y: Tensor) -> Tensor:
    """The mean over the places that count, of scores at all places."""
    scores = model(x) @ model.table.T
    return F.cross_entropy(scores.flatten(0, 1), y.flatten(), ignore_index=len(model.table))


def cross_entropy(hidden: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """The same, of scores at the places that count."""

    def loss(model: SASRec, x: Tensor, y: Tensor) -> Tensor:
        real = y < len(model.table)
        return F.cross_entropy(hidden(x)[real] @ model.table.T, y[real])

    return loss


def by_chunks(x: Tensor, model: SASRec, y: Tensor, chunk: int) -> Tensor:
    """The same with its gradients, `chunk` of the hidden vectors x (M, D) at a time.

    Each chunk's scores are given up once its gradients are known, and none are made twice.
    """
    leaf, total = x.detach().requires_grad_(), torch.zeros((), device=x.device)
    for own, label in zip(leaf.split(chunk), y.split(chunk), strict=True):
        part = F.cross_entropy(own @ model.table.T, label, reduction="sum") / len(y)
        part.backward()
        total += part.detach()
    x.backward(leaf.grad)
    return total


def binary_cross_entropy(hidden: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """One random negative a place, as SASRec's authors have it."""

    def loss(model: SASRec, x: Tensor, y: Tensor) -> Tensor:
        table, real = model.tokens.weight, (y < len(model.table)).float()
        wrong = torch.randint(len(model.table), y.shape, device=y.device)
        vectors = hidden(x)
        right, wrong_score = (vectors * table[y]).sum(-1), (vectors * table[wrong]).sum(-1)
        losses = F.softplus(-right) + F.softplus(wrong_score)
        return (losses * real).sum() / real.sum()

    return loss


class Choice(NamedTuple):
    """What a careful user tries."""

    threads: int = ALL_THREADS
    chunk: int | None = None


class Training:
    """Steps of 128 users; the methods answer the commands of `benchmarks.worker`."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        _, self.loss, self.form = form.split(" ")
        self.folder = Path(folder)
        histories, self.size = sequence_data.read(self.folder)
        lengths = np.diff(histories.starts)
        padded = np.full((len(lengths), self.size.context + 1), self.size.items)
        padded[np.arange(self.size.context + 1)[None] < lengths[:, None]] = histories.items
        self.rows = torch.from_numpy(padded).to(DEVICE)
        self.choice = Choice()

    def program(self, choice: Choice) -> Callable[[Tensor], Tensor]:
        torch.set_num_threads(choice.threads)
        torch.set_float32_matmul_precision("high" if GPU else "highest")
        model = SASRec(self.size).to(DEVICE)
        load_weights(model, self.folder / "weights.npz")
        fused: dict[str, Any] = {} if self.form == "plain" else {"fused": True}
        optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, **fused)
        hidden: Any = model
        if self.form == "compiled":
            torch._dynamo.reset()
            hidden = torch.compile(model)
        if self.loss == "binary":
            loss_of = binary_cross_entropy(hidden)
        elif self.form == "plain":
            loss_of = cross_entropy_everywhere
        else:
            loss_of = cross_entropy(hidden)
        self.loss_of, self.model = loss_of, model

        def update(rows: Tensor) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            x, y = rows[:, :-1], rows[:, 1:]
            if choice.chunk is None:
                loss = loss_of(model, x, y)
                loss.backward()
            else:
                real = y < self.size.items
                loss = by_chunks(hidden(x)[real], model, y[real], choice.chunk)
            optimizer.step()
            return loss

        return update

    def steps(self, update: Callable[[Tensor], Tensor]) -> Iterator[int]:
        self.model.train()
        while True:
            order = torch.randperm(len(self.rows), device=DEVICE)
            for index in order.split(self.size.batch):
                if len(index) == self.size.batch:
                    update(self.rows[index])
                    yield len(index)

    def rate(self, seconds: float) -> float:
        wait()
        start, users = time.perf_counter(), 0
        for count in self.running:
            users += count
            if time.perf_counter() - start >= seconds:
                break
        wait()
        return users / (time.perf_counter() - start)

    def begin(self, choice: Choice) -> None:
        self.running = self.steps(self.program(choice))
        for _ in range(2):
            next(self.running)

    def check(self, users: int) -> float:
        """The loss of the first users, nothing dropped out."""
        self.begin(self.choice)
        load_weights(self.model, self.folder / "weights.npz")
        self.model.eval()
        with torch.no_grad():
            return float(self.loss_of(self.model, self.rows[:users, :-1], self.rows[:users, 1:]))

    def tune(self, seconds: float) -> dict[str, Any]:
        """Choose by short trials; the plain form has no choice."""
        options = [Choice()]
        if self.form != "plain":
            chunks = (None, 128) if self.loss == "full" else (None,)
            threads = {ALL_THREADS, ALL_THREADS if GPU else 1}
            options = [Choice(t, c) for t in sorted(threads) for c in chunks]
        rates = []
        for choice in options:
            self.begin(choice)
            rates.append(self.rate(min(TRIAL_SECONDS, seconds)))
        self.choice = options[int(np.argmax(rates))]
        self.begin(self.choice)
        return {"chosen": self.choice._asdict(), "peak_memory": peak_memory()}

    def measure(self, seconds: float) -> float:
        """Users a second."""
        torch.set_num_threads(self.choice.threads)
        return self.rate(seconds)


class Scoring:
    """The ten best of all items for users, 512 at a time, what they have left out."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        self.histories, size = sequence_data.read(Path(folder))
        self.model = SASRec(size).to(DEVICE).eval()
        self.size = size
        self.score(min(2048, len(self.histories.starts) - 1))  # warm

    def score(self, users: int) -> dict[str, float]:
        """Users a second, and by how many bytes the peak of memory rose."""
        lengths = np.diff(self.histories.starts[: users + 1])
        order = np.argsort(lengths, kind="stable")
        start = time.perf_counter()
        found = np.empty((users, 10), np.int32)
        with torch.inference_mode(), Rise(peak_memory if GPU else None) as rise:
            table = self.model.table.T.contiguous()
            for index in np.split(order, range(512, users, 512)):
                longest = int(lengths[index].max())
                rows = np.full((len(index), longest), self.size.items)
                for row, user in zip(rows, index, strict=True):
                    begin = self.histories.starts[user]
                    row[: lengths[user]] = self.histories.items[begin : begin + lengths[user]]
                x = torch.from_numpy(rows).to(DEVICE)
                last = torch.from_numpy(lengths[index] - 1).to(DEVICE)
                scores = self.model(x)[torch.arange(len(x), device=DEVICE), last] @ table
                scores = F.pad(scores, (0, 1)).scatter_(1, x, -torch.inf)
                found[index] = scores.topk(10)[1].cpu().numpy()
        seconds = time.perf_counter() - start
        return {"users_per_second": users / seconds, "bytes": rise.bytes}


class Loss:
    """The cross-entropy and its gradients for so many places, whole or by chunks."""

    def __init__(self, form: str, folder: str, started: float) -> None:
        _, self.size = sequence_data.read(Path(folder))
        self.chunked = form.endswith("chunked")

    def run(self, rows: int, repeats: int) -> dict[str, float]:
        """Seconds of one, the least, and by how many bytes the peak of memory rose."""
        generator = torch.Generator().manual_seed(0)
        shape = (rows, self.size.context, self.size.width)
        x = torch.randn(shape, generator=generator).to(DEVICE).requires_grad_()
        y = torch.randint(self.size.items, shape[:2], generator=generator).to(DEVICE)
        model: Any = SASRec(self.size).to(DEVICE)
        times = []
        with Rise(peak_memory if GPU else None) as rise:
            for _ in range(repeats):
                model.zero_grad(set_to_none=True)
                start = time.perf_counter()
                if self.chunked:
                    by_chunks(x.flatten(0, 1), model, y.flatten(), chunk=128)
                else:
                    cross_entropy(lambda x: x)(model, x, y).backward()
                wait()
                times.append(time.perf_counter() - start)
        return {"seconds": min(times), "bytes": rise.bytes}


def make(form: str, folder: str, started: float) -> Any:
    """What answers the commands: "train full careful", "score", "loss chunked" and so on."""
    kinds: dict[str, Any] = {"train": Training, "score": Scoring, "loss": Loss}
    return kinds[form.split(" ")[0]](form, folder, started)
