"""A finished model whose small programs are compiled ahead, with the parameters inside."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from jaxops._shapes import next_power_of_two
from jaxops.data.checks import prepare, rows
from jaxops.model.finished import Model
from jaxops.model.predictors import predictor
from jaxops.monitor.observing import Observed, Observer
from jaxops.task import Task, example
from jaxops.train.resident import pad

SMALL = 2**20  # parameters, of which every program holds a copy


@dataclass(frozen=True, eq=False)
class Compiled(Observed):
    """A model that predicts in parts of at most `most` rows, so that few programs compile.

    `Model.outputs` hands all parameters to a program that takes any; a small network has instead
    one program for each power of two of rows, with the parameters inside.

    Attributes:
        programs: rows -> program, see `jaxops.predictor`; none of a large network.
        most: the most rows of a program.
    """

    programs: Mapping[int, Callable[..., Any]] = field(default_factory=dict)
    most: int = 1

    def outputs(self, columns: Any, batch_size: int = 1024) -> Any:
        """See `Model.outputs`; the sizes of batches are those of the programs."""
        if not self.programs:
            return super().outputs(columns, self.most)
        given, shapes = prepare(self.task, columns, targets=False), inputs_of(self.task)
        arrays = {name: given[name].astype(x.dtype, copy=False) for name, x in shapes.items()}
        count, parts = rows(arrays), []
        for start in range(0, count, self.most):
            part = {name: x[start : start + self.most] for name, x in arrays.items()}
            kept = slice(rows(part))
            padded = pad(part, next_power_of_two(rows(part)))
            program = self.programs[len(padded.pop("mask"))]
            found = program(padded) if self.observer is None else program(padded, rows(part))
            parts.append(jax.tree.map(lambda leaf, kept=kept: leaf[kept], found))
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def inputs_of(task: Task) -> dict[str, np.ndarray]:
    """One row of what a task reads to predict; free lengths are 1."""
    return example(tuple(column for column in task.columns if not column.target))


def powers(batch_size: int) -> list[int]:
    """The powers of two up to the first that is at least `batch_size`.

    >>> powers(1), powers(5)
    ([1], [1, 2, 4, 8])
    """
    return [1 << power for power in range((batch_size - 1).bit_length() + 1)]


def compiled(model: Model, batch_size: int) -> Model:
    """A model that is given up to `batch_size` rows at once, with programs where they are of use.

    They are of none to a large network, one that reads rows of free length, and a closed form. A
    model with a reference counts its rows, see `monitor.Observed`.

    >>> from jaxops import init_state, optim, tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=3)
    >>> x = {"features": np.eye(3, dtype=np.float32)}
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch=x))
    >>> fast = compiled(model, batch_size=2)
    >>> sorted(fast.programs), np.allclose(fast.predict(x), model.predict(x), atol=1e-6)
    ([1, 2], True)
    """
    about = model.reader, model.about, model.versions, model.reference
    observer = None if model.reference is None else Observer(model.reference)
    plain = Compiled(
        model.task, model.state, *about, observer=observer, most=powers(batch_size)[-1]
    )
    if not isinstance(model.task, Task) or model.state is None:
        return plain
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(model.state.params))
    free = any(None in column.shape for column in model.task.columns if not column.target)
    if size > SMALL or free:
        return plain
    one = inputs_of(model.task)
    programs = {
        count: predictor(
            model.task,
            model.state,
            {name: np.repeat(x, count, 0) for name, x in one.items()},
            observer,
        )
        for count in powers(batch_size)
    }
    return replace(plain, programs=programs)
