"""The networks of `benchmarks.serve` in PyTorch, from rows of JSON to answers, written by hand.

They need NumPy, PyTorch and (TabM) the package tabm alone, and read what `benchmarks.serve_cases`
wrote: the weights, and what is to be known of the input.
"""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import torch_nets, torch_sasrec, workloads
from benchmarks.sequence_data import Size

BEST = 10  # of the catalogue
TRIALS = 100  # calls of one trial
ALL_THREADS = torch.get_num_threads()


class Case:
    """Rows of JSON to answers: `read` makes tensors, `module` computes, `told` makes JSON.

    Attributes:
        module: the network, up to what is told.
        traced: whether it may be traced, as the tensors of all requests have one shape.
    """

    module: Any
    traced = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = json.loads((folder / "about.json").read_text())

    def read(self, rows: list[Any]) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def of_bytes(self, data: bytes) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def told(self, outputs: Any) -> list[Any]:
        """One answer for each row."""
        found: list[Any] = outputs.tolist()
        return found

    def __call__(self, rows: list[Any]) -> list[Any]:
        """JSON to JSON."""
        with torch.inference_mode():
            return self.told(self.module(*self.read(rows)))

    def bytes(self, data: bytes) -> bytes:
        """Bytes to bytes."""
        with torch.inference_mode():
            found: bytes = self.module(*self.of_bytes(data)).numpy().tobytes()
        return found

    def tune(self) -> "Case":
        """The number of threads, and whether the network is traced: what is fastest for one row."""
        row = json.loads((self.folder / "rows.json").read_text())[:2]
        plain, forms = self.module.eval(), {"as it is": self.module}
        if self.traced:
            with torch.inference_mode():
                traced = torch.jit.trace(plain, self.read(row[:1]), check_trace=False)
                forms["traced"] = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
                one, two = (form(*self.read(row)) for form in forms.values())
                if one.shape != two.shape or not torch.allclose(one, two, atol=1e-5):
                    del forms["traced"]  # it is of one row alone
        times: dict[tuple[int, str], float] = {}
        for threads in sorted({1, ALL_THREADS}):
            torch.set_num_threads(threads)
            for name, self.module in forms.items():
                for _ in range(2):  # the first one warms up
                    start = time.perf_counter()
                    for _ in range(TRIALS):
                        self(row[:1])
                    times[threads, name] = (time.perf_counter() - start) / TRIALS
        threads, name = min(times, key=lambda choice: times[choice])
        torch.set_num_threads(threads)
        self.module = forms[name]
        print(f"{threads} threads, {name}: {1000 * times[threads, name]:.2f} ms a row", flush=True)
        return self


class Whole(nn.Module):
    """A network between what comes before it and what comes behind."""

    def __init__(
        self, before: Callable[[Tensor], Tensor], network: nn.Module, behind: Callable[..., Tensor]
    ) -> None:
        super().__init__()
        self.before, self.network, self.behind = before, network, behind

    def forward(self, x: Tensor) -> Tensor:
        """Inputs to answers."""
        return self.behind(self.network(self.before(x)))


def softmax(x: Tensor) -> Tensor:
    """The probabilities of logits."""
    return x.softmax(-1)


class C01(Case):
    """Images as bytes to the probabilities of ten classes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        size = workloads.C01
        network = torch_nets.network(size, channels_last=False)
        torch_nets.load_weights(network, folder / "weights.npz", size, False)
        scale = torch_nets.inputs_of(size)
        self.module = Whole(lambda x: scale(x.flatten(1)), network, softmax)

    def read(self, rows: list[Any]) -> tuple[Tensor, ...]:
        return (torch.from_numpy(np.array(rows, np.uint8)),)

    def of_bytes(self, data: bytes) -> tuple[Tensor, ...]:
        return (torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, 28, 28, 1),)


class TabM(Case):
    """Rows by name to the probability of the second class."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        size = workloads.TabM(**self.about["size"])
        network = torch_nets.tabm(size)
        torch_nets.load_weights(network, folder / "weights.npz", size, False)
        self.module = Whole(
            lambda x: x, network, lambda logits: logits.sigmoid().mean((1, 2))[:, None]
        )
        encoder = self.about["encoder"]
        self.edges = {name: np.array(edges) for name, edges in encoder["edges"].items()}
        self.values = {n: {v: i for i, v in enumerate(x)} for n, x in encoder["values"].items()}

    def read(self, rows: list[Any]) -> tuple[Tensor, ...]:
        """The features: indicators of texts, and then the pieces of numbers."""
        parts = []
        for name, places in self.values.items():
            known = np.array([places[row[name]] for row in rows])
            parts.append(known[:, None] == np.arange(len(places)))
        for name, edges in self.edges.items():
            x = np.array([row[name] for row in rows], float)[:, None]
            share = (x - edges[:-1]) / (edges[1:] - edges[:-1])
            share[:, 1:] = np.maximum(share[:, 1:], 0)
            share[:, :-1] = np.minimum(share[:, :-1], 1)
            parts.append(share)
        return (torch.from_numpy(np.concatenate(parts, 1).astype(np.float32)),)

    def of_bytes(self, data: bytes) -> tuple[Tensor, ...]:
        features = torch.frombuffer(bytearray(data), dtype=torch.float32)
        return (features.view(-1, self.about["size"]["features"]),)


class Best(nn.Module):
    """Histories to the best items that are not in them, and their scores."""

    def __init__(self, network: torch_sasrec.SASRec) -> None:
        super().__init__()
        self.network = network
        self.table = network.table.detach().T.contiguous()

    def forward(self, items: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T) items with N for padding, and the place of the last one (B,)."""
        hidden = self.network(items)[torch.arange(len(items)), last]
        scores = F.pad(hidden @ self.table, (0, 1)).scatter_(1, items, -torch.inf)
        scores, places = scores[:, :-1].topk(BEST)
        return places, scores


class SASRec(Case):
    """Lists of items to the ten best others."""

    traced = False

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        size = Size(**self.about["size"])
        network = torch_sasrec.SASRec(size)
        torch_sasrec.load_weights(network, folder / "weights.npz")
        self.module = Best(network.eval())
        self.size = size
        self.place = {str(item): item for item in range(size.items)}
        self.names = [*self.place]

    def read(self, rows: list[Any]) -> tuple[Tensor, ...]:
        known = [[self.place[item] for item in row][-self.size.context :] for row in rows]
        longest = max(map(len, known))
        padded = [row + [self.size.items] * (longest - len(row)) for row in known]
        return torch.tensor(padded), torch.tensor([len(row) - 1 for row in known])

    def told(self, outputs: Any) -> list[Any]:
        places, scores = outputs[0].tolist(), outputs[1].tolist()
        return [
            {"items": [self.names[place] for place in row], "scores": numbers}
            for row, numbers in zip(places, scores, strict=True)
        ]


class TextCNN(nn.Module):
    """Tokens (B, T) with 0 for padding to logits: convolutions, and the largest of each filter."""

    def __init__(
        self, vocabulary: int, classes: int, width: int, widths: Any, filters: int
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, filters, k, padding=k - 1) for k in widths)
        self.logits = nn.Linear(filters * len(widths), classes)

    def forward(self, tokens: Tensor) -> Tensor:
        real = tokens != 0
        x = (self.tokens(tokens) * real[..., None]).transpose(1, 2)
        length, pooled = real.sum(1, keepdim=True), []
        for conv in self.convs:
            k = conv.kernel_size[0]
            y = conv(x)[:, :, k - 1 :].relu()
            inside = torch.arange(tokens.shape[1]) <= (length - k).clamp(min=0)
            pooled.append((y * inside[:, None]).amax(2))
        return self.logits(torch.cat(pooled, -1))

    def load(self, file: Path) -> None:
        """Copy the parameters of jaxops's network, all of them."""
        flat, width = dict(np.load(file)), self.tokens.embedding_dim
        own = {"tokens.weight": flat.pop("tokens/embedding")}
        for i, conv in enumerate(self.convs):
            k, name = conv.kernel_size[0], f"conv_{conv.kernel_size[0]}"
            kernel = flat.pop(f"{name}/kernel").reshape(k, width, -1).transpose(2, 1, 0)
            own |= {f"convs.{i}.weight": kernel, f"convs.{i}.bias": flat.pop(f"{name}/bias")}
        own |= {
            "logits.weight": flat.pop("logits/kernel").T,
            "logits.bias": flat.pop("logits/bias"),
        }
        if flat:
            raise KeyError(
                f"{file} must have the network's parameters alone, got {', '.join(flat)}"
            )
        self.load_state_dict({n: torch.from_numpy(x.copy()) for n, x in own.items()})


class Text(Case):
    """Texts to the probabilities of the classes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        network = TextCNN(**self.about["size"])
        network.load(folder / "weights.npz")
        self.module = Whole(lambda x: x, network, softmax)
        self.number, self.context = self.about["number"], self.about["context"]

    def read(self, rows: list[Any]) -> tuple[Tensor, ...]:
        tokens = np.zeros((len(rows), self.context), np.int64)
        for row, text in zip(tokens, rows, strict=True):
            words = re.findall(r"\w+", text)[: self.context]
            row[: len(words)] = [self.number.get(word, 1) for word in words]  # 1 is unknown
        return (torch.from_numpy(tokens),)

    def of_bytes(self, data: bytes) -> tuple[Tensor, ...]:
        tokens = torch.frombuffer(bytearray(data), dtype=torch.int32)
        return (tokens.view(-1, self.context).long(),)


CASES: dict[str, type[Case]] = {"C01": C01, "TabM": TabM, "SASRec": SASRec, "text": Text}


def make(name: str, folder: str | Path) -> Case:
    """A case, tuned."""
    return CASES[name](Path(folder)).tune()
