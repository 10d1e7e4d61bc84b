"""The same networks in PyTorch, with the weights that jaxops began with."""

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import workloads


class Rows(nn.Module):
    """Flatten with the channels innermost: free where memory is channels-last."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H * W * C)."""
        return x.permute(0, 2, 3, 1).flatten(1)


class Block(nn.Module):
    """Causal self-attention and a perceptron, pre-norm; PyTorch's fused attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, width) to the same."""
        batch, length, width = x.shape
        qkv = self.qkv(self.norm_1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm_2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Tokens (B, T) to logits (B, T, vocabulary)."""

    def __init__(self, size: workloads.GPT) -> None:
        super().__init__()
        self.tokens = nn.Embedding(size.vocabulary, size.width)
        self.positions = nn.Parameter(torch.zeros(size.context, size.width))
        blocks = [Block(size.width, size.heads) for _ in range(size.depth)]
        for i, block in enumerate(blocks):
            self.add_module(f"block_{i}", block)
        self.blocks = [f"block_{i}" for i in range(size.depth)]
        self.norm = nn.LayerNorm(size.width)
        self.logits = nn.Linear(size.width, size.vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for name in self.blocks:
            x = getattr(self, name)(x)
        return self.logits(self.norm(x))


def tabm(size: workloads.TabM) -> nn.Module:
    """The module of the authors' package, (B, features) to logits (B, members, 1)."""
    from tabm import TabM  # of the other networks it asks nothing

    return TabM(
        n_num_features=size.features,
        d_out=1,
        n_blocks=size.depth,
        d_block=size.width,
        dropout=0.0,
        k=size.members,
        arch_type="tabm-mini",
        start_scaling_init="random-signs",
    )


def plr(numbers: int) -> nn.Module:
    """Features with periodic embeddings of the first numbers, by the authors' package."""
    from rtdl_num_embeddings import PeriodicEmbeddings

    class Embedding(PeriodicEmbeddings):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x[:, :numbers]).flatten(1), x[:, numbers:]], 1)

    return Embedding(numbers, lite=False)


def network(size: workloads.Network, channels_last: bool) -> nn.Module:
    """The module; its parameters are named as the Flax modules' are, or see `_name`."""
    if isinstance(size, workloads.GPT):
        return GPT(size)
    if isinstance(size, workloads.TabM):
        return tabm(size)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if isinstance(size, workloads.CNN):
        layers["conv"] = nn.Conv2d(1, size.features, 3)
        layers["relu_0"], layers["pool"] = nn.ReLU(), nn.MaxPool2d(2)
        layers["flatten"] = Rows() if channels_last else nn.Flatten()
        layers["hidden"], layers["relu_1"] = nn.Linear(169 * size.features, size.hidden), nn.ReLU()
        layers["logits"] = nn.Linear(size.hidden, 10)
        module: Any = nn.Sequential(layers)
        return module.to(memory_format=torch.channels_last) if channels_last else module
    widths = size.widths
    if size.numbers:
        layers["embedding"] = plr(size.numbers)
        widths = (widths[0] + 23 * size.numbers, *widths[1:])
    for i, (a, b) in enumerate(itertools.pairwise(widths[:-1])):
        layers[f"hidden_{i}"], layers[f"relu_{i}"] = nn.Linear(a, b), nn.ReLU()
    layers["logits"] = nn.Linear(size.widths[-2], size.widths[-1])
    return nn.Sequential(layers)


def _tensor(path: str, value: np.ndarray, size: Any, channels_last: bool) -> Tensor:
    """PyTorch's layout of a Flax parameter: (out, in), (O, I, h, w), and C03's flattening."""
    if path == "hidden/kernel" and isinstance(size, workloads.CNN) and not channels_last:
        value = value.reshape(13, 13, size.features, -1).transpose(2, 0, 1, 3)
        value = value.reshape(169 * size.features, -1)
    if path.endswith("kernel") and value.ndim != 3:  # of members it is (members, in, out) in both
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return torch.from_numpy(np.ascontiguousarray(value))


def _name(path: str) -> str:
    """What PyTorch's GPT calls a parameter of the Flax one; others have one name.

    >>> _name("stack/block_0/feed_forward/up/kernel")
    'block_0/up/kernel'
    """
    for ours, theirs in {
        "stack/": "",
        "embedding/tokens": "tokens/embedding",
        "embedding/positions": "positions",
        "embedding/head": "logits",
        "feed_forward_norm": "norm_2",
        "feed_forward/": "",
        "attention_norm": "norm_1",
        "attention/out": "project",
        "attention/": "",
    }.items():
        path = path.replace(ours, theirs)
    return path


def _name_in_tabm(path: str) -> str:
    """What the authors' TabM calls a parameter of the Flax one.

    >>> _name_in_tabm("hidden_1/kernel"), _name_in_tabm("signs")
    ('backbone/blocks/1/0/kernel', 'backbone/affine/scale')
    """
    known = {"signs": "backbone/affine/scale", "kernel": "output/kernel", "bias": "output/bias"}
    return known.get(path) or re.sub(r"^hidden_(\d+)", r"backbone/blocks/\1/0", path)


def _name_in_plr(path: str) -> str:
    """What the authors' embeddings call a parameter of the Flax ones.

    >>> _name_in_plr("embedding/kernel"), _name_in_plr("hidden_0/bias")
    ('embedding/linear/kernel', 'hidden_0/bias')
    """
    path = path.replace("embedding/frequency", "embedding/periodic/scale")
    return re.sub("^embedding/(kernel|bias)", r"embedding/linear/\1", path)


def load_weights(module: nn.Module, file: Path, size: Any, channels_last: bool) -> None:
    """Copy the parameters in place.

    Raises:
        KeyError: the file lacks one; all of both must be used.
    """
    names_in = {workloads.TabM: _name_in_tabm, workloads.MLP: _name_in_plr}
    name_of = names_in.get(type(size), _name)
    flat = {name_of(path): value for path, value in np.load(file).items()}
    renamed = {"weight": ("kernel", "scale", "embedding")}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            *path, last = name.split(".")
            names = ["/".join([*path, n]) for n in renamed.get(last, (last,))]
            found = next(n for n in [*names, name] if n in flat)
            parameter.copy_(_tensor(found, flat.pop(found), size, channels_last))
    if flat:
        raise KeyError(f"{file} must have the network's parameters alone, got {', '.join(flat)}")


def is_binary(size: Any) -> bool:
    """One logit, not one for each class."""
    if isinstance(size, workloads.TabM):
        return True
    return isinstance(size, workloads.MLP) and size.widths[-1] == 1


def guesses(size: Any, logits: Tensor) -> Tensor:
    """The classes (B,) of logits; members vote by the mean of their probabilities."""
    if isinstance(size, workloads.TabM):
        return torch.sigmoid(logits).mean((1, 2)) > 0.5
    return logits[:, 0] > 0 if is_binary(size) else logits.argmax(1)


def inputs_of(size: Any) -> Callable[[Tensor], Tensor]:
    """What the network sees: bytes become (x / 255 - mean) / std."""
    mean, std = getattr(size, "mean", 0.0), getattr(size, "std", 1.0)

    def inputs(x: Tensor) -> Tensor:
        return (x.float() / 255 - mean) / std if x.dtype is torch.uint8 else x

    return inputs


def criterion_of(size: Any) -> Callable[..., Tensor]:
    """The mean loss of a batch, `(model, x, y)`; of tokens `(model, x)`."""
    inputs = inputs_of(size)

    def next_token(model: nn.Module, x: Tensor) -> Tensor:
        return F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())

    def yes_or_no(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x)[:, 0], y)

    def yes_or_no_of_members(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)[..., 0]
        return F.binary_cross_entropy_with_logits(logits, y[:, None].expand_as(logits))

    def classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs(x)), y)

    if isinstance(size, workloads.GPT):
        return next_token
    if isinstance(size, workloads.TabM):
        return yes_or_no_of_members
    return yes_or_no if is_binary(size) else classes
