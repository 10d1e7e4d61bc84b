"""Captum's side of `benchmarks.explain`: it explains once for each line that it reads.

    python explain_side.py CASE FOLDER STEPS

FOLDER has case.npz, the rows and the weights; values.npy is written there.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

AT_ONCE = 1024  # rows and steps that Captum computes in one call


def network(name: str, weights: Any) -> Any:
    """The network that gives the log-odds of each class."""

    def tensor(key: str) -> Any:
        return torch.tensor(weights[key])

    def odds(logits: Any) -> Any:
        others = torch.eye(logits.shape[1], dtype=torch.bool)[None]
        rest = logits[:, None, :].masked_fill(others, -torch.inf)
        return logits - torch.logsumexp(rest, -1)

    def cnn(x: Any) -> Any:
        kernel = tensor("conv/kernel").permute(3, 2, 0, 1)
        y = torch.relu(torch.nn.functional.conv2d(x / 255, kernel, tensor("conv/bias")))
        y = torch.nn.functional.max_pool2d(y, 2).permute(0, 2, 3, 1).flatten(1)
        y = torch.relu(y @ tensor("hidden/kernel") + tensor("hidden/bias"))
        return odds(y @ tensor("logits/kernel") + tensor("logits/bias"))

    def mlp(x: Any) -> Any:
        for layer in ("hidden_0", "hidden_1"):
            x = torch.relu(x @ tensor(f"{layer}/kernel") + tensor(f"{layer}/bias"))
        z = x @ tensor("logits/kernel") + tensor("logits/bias")
        return torch.cat([-z, z], 1)

    return cnn if name == "mnist_cnn" else mlp


def main() -> None:
    from captum.attr import IntegratedGradients

    name, folder, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    data = dict(np.load(folder / "case.npz"))
    rows = torch.tensor(data.pop("rows")).float()
    rows = rows.permute(0, 3, 1, 2) if rows.ndim == 4 else rows
    forward = network(name, data)
    with torch.no_grad():
        target = forward(rows).argmax(1)
    method = IntegratedGradients(forward)
    for _ in sys.stdin:
        start = time.perf_counter()
        values = method.attribute(rows, target=target, n_steps=steps, internal_batch_size=AT_ONCE)
        seconds = time.perf_counter() - start
        np.save(folder / "values.npy", values.numpy())
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
