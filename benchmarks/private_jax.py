"""jaxops's side of `benchmarks.private`: one step on a batch, plain or private."""

import functools
import pickle
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxops as jo
from benchmarks import jax_side
from jaxops import privacy


def make(form: str, folder: str, started: float) -> "Step":
    """The object that answers the commands; the form is "plain", "ghost" or "vmap"."""
    return Step(form, Path(folder))


class Step:
    """One compiled step of SGD, called again and again on the same batch."""

    def __init__(self, form: str, folder: Path) -> None:
        case = pickle.loads((folder / "case.pickle").read_bytes())
        task = jax_side.task_of(case["network"])
        with np.load(folder / "batch.npz") as stored:
            self.batch = {name: jnp.asarray(stored[name]) for name in stored.files}
        self.form, optimizer = form, jo.optim.sgd(0.1)
        self.state: Any = jo.init_state(task, optimizer, 0, self.batch)
        self.parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(self.state.params))
        self.step = self.compiled(task, optimizer)

    def compiled(self, task: jo.Task, optimizer: Any) -> Any:
        """The step of a form."""
        if self.form != "plain":
            rows = len(self.batch["mask"])
            noise = {"clip": 1.0, "noise_multiplier": 1.0, "batch_size": rows}
            task = privacy.private(task, **noise, method=self.form)
        step = jax.jit(functools.partial(jo.train_step, task, optimizer), donate_argnums=0)
        return step.lower(self.state, self.batch).compile()

    def memory(self) -> int:
        """Bytes that the step needs besides the batch: XLA's plan of its memory."""
        return int(self.step.memory_analysis().temp_size_in_bytes) + self.parameters

    def seconds(self, steps: int) -> float:
        """Of so many steps."""
        begin = time.perf_counter()
        for _ in range(steps):
            self.state, _ = self.step(self.state, self.batch)
        jax.block_until_ready(self.state)
        return time.perf_counter() - begin
