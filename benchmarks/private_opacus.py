"""Opacus's side of `benchmarks.private`: one step on a batch, in an interpreter of its own."""

import pickle
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opacus import PrivacyEngine
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import torch_nets, workloads


def make(form: str, folder: str, started: float) -> "Step":
    """The object that answers the commands; the form is a `grad_sample_mode` of Opacus."""
    return Step(form, Path(folder))


class Step:
    """One step of DP-SGD, called again and again on the same batch."""

    def __init__(self, form: str, folder: Path) -> None:
        network = pickle.loads((folder / "case.pickle").read_bytes())["network"]
        with np.load(folder / "batch.npz") as stored:
            columns = {name: torch.from_numpy(stored[name]) for name in stored.files}
        self.inputs, self.targets = prepared(network, columns)
        module: Any = torch_nets.network(network, False)
        if isinstance(network, workloads.GPT):
            module = Positions.around(module, network)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(self.inputs, self.targets), len(self.inputs))
        self.ghost = form == "ghost"
        criterion = torch.nn.CrossEntropyLoss(reduction="mean")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = PrivacyEngine().make_private(
                module=module,
                optimizer=optimizer,
                data_loader=loader,
                noise_multiplier=1.0,
                max_grad_norm=1.0,
                poisson_sampling=False,
                grad_sample_mode=form,
                criterion=criterion,
            )
        self.module, self.optimizer, *rest = made
        self.criterion = rest[0] if self.ghost else criterion

    def memory(self) -> None:
        """PyTorch does not plan it."""

    def seconds(self, steps: int) -> float:
        """Of so many steps."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            outputs = self.module(self.inputs)
            loss = self.criterion(outputs, self.targets)
            loss.backward()
            self.optimizer.step()
        return time.perf_counter() - begin


def prepared(network: Any, columns: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets as PyTorch's network reads them."""
    if isinstance(network, workloads.GPT):
        tokens = columns["tokens"].long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    image = columns["image"].float() / 255
    shaped = image.flatten(1) if isinstance(network, workloads.MLP) else image.permute(0, 3, 1, 2)
    return shaped.contiguous(), columns["label"].long()


class Positions(torch.nn.Module):
    """The GPT with positions from an embedding, of which Opacus knows the gradient."""

    @classmethod
    def around(cls, gpt: Any, size: workloads.GPT) -> "Positions":
        """The module with its logits' classes on the second axis, as the criterion wants them."""
        self = cls()
        del gpt.positions
        self.places = torch.nn.Embedding(size.context, size.width)
        self.gpt = gpt
        return self

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens (B, T) to logits (B, vocabulary, T)."""
        places = torch.arange(tokens.shape[1]).expand_as(tokens)
        x = self.gpt.tokens(tokens) + self.places(places)
        for name in self.gpt.blocks:
            x = getattr(self.gpt, name)(x)
        return self.gpt.logits(self.gpt.norm(x)).transpose(1, 2)
