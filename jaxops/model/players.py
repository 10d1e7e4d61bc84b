"""Rows in the user's terms: words, pixels, cells, events or lags, of which a prediction is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxops.model.finished import Model, Program, watched
from jaxops.task import Column, Task

Columns = dict[str, np.ndarray]


class Players(NamedTuple):
    """N rows, each of up to P players: what an explanation gives a value to.

    A reader may have a method `players(model, data)` that returns them. Of another model, the
    players are the elements of the columns from which it predicts, see `players_of`.

    Attributes:
        kind: "words", "pixels", "cells", "events", "lags", or "features" for elements of columns.
        ids: (N,), the user's ids, or the numbers of the rows.
        names: `str` objects (N, P): the word, the name of the column, the id of the item.
        cells: objects (N, P): what the user's row has there; None where the name says it.
        real: bool (N, P), False where a row has fewer players than others.
        columns: the columns from which the model predicts, of N rows.
        owners: column -> the player of each element of a row, int (N or 1, ...), -1 for none; or
            where an element may have several players, their shares, float (N, ..., P). A column
            that is not named belongs to no player.
        baseline: column -> (N or 1, ...), what an element is where its player is absent.
        outputs: the names of the K outputs; of one number, its name.
        target: int (N,), the output to be explained if the user names none.
        predict: columns -> the outputs (M, K) of M rows, or (M,).
        program: the same as a function for JAX, with its parameters; None of trees and the like.
        classes: "one" where the outputs are probabilities of classes that exclude each other ((M,):
            of the second of two), "each" where each is a probability by itself, "" for numbers.
        without: (numbers (M,) of rows, bool (M, P) of present players) -> the columns of M rows,
            for players that are left out rather than replaced, such as words; or None.
        shape: (H, W) of pixels.
    """

    kind: str
    ids: np.ndarray
    names: np.ndarray
    cells: np.ndarray | None
    real: np.ndarray
    columns: Columns
    owners: Columns
    baseline: Columns
    outputs: tuple[str, ...]
    target: np.ndarray
    predict: Callable[[Mapping[str, Any]], np.ndarray]
    program: Program | None
    classes: str = "one"
    without: Callable[[np.ndarray, np.ndarray], Columns] | None = None
    shape: tuple[int, int] | None = None


def players_of(model: Model, data: Any) -> Players:
    """The players of rows, as the model's reader names them.

    Without a method `players` of the reader, each element of the columns from which the model
    predicts is a player: a pixel of an image (all of its channels), otherwise a number or a token.
    Their baseline is 0.

    Args:
        model: a finished model.
        data: rows as `model.predict` takes them.

    Raises:
        ValueError: rows that the model cannot read, or a model that does not predict from columns.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP((4,)), features=3), np.ones((2, 3), np.float32)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"features": x}))
    >>> players = players_of(model, x)
    >>> players.kind, players.names[0].tolist(), players.outputs
    ('features', ['features 0', 'features 1', 'features 2'], ('0', '1'))
    """
    if hasattr(model.reader, "players"):
        found: Players = model.reader.players(model, data)
        return found
    seeing = watched(model)
    answer = seeing.predict(data)
    if not seeing.seen or not isinstance(seeing.seen[0][1], np.ndarray):
        raise ValueError(
            "model must predict an array from encoded columns to be explained, got "
            f"{type(model.task).__name__} of the room {model.room!r}"
        )
    names = seeing.seen[0][0]
    columns = {n: np.concatenate([np.asarray(one[n]) for one, _ in seeing.seen]) for n in names}
    outputs = np.concatenate([out for _, out in seeing.seen])
    ids = np.asarray(getattr(answer, "ids", np.arange(len(outputs))))
    wanted = [c for c in getattr(model.task, "columns", ()) if not c.target and c.name in columns]
    columns = {column.name: columns[column.name] for column in wanted} or columns
    return of_columns(model, ids, columns, outputs)


def of_columns(model: Model, ids: np.ndarray, columns: Columns, outputs: np.ndarray) -> Players:
    """The players of columns, each element one; see `players_of`.

    Args:
        model: of a task, or a closed form with `outputs`.
        ids: (N,).
        columns: of N rows.
        outputs: (N, ...), what the model predicts of them.
    """
    images = {name: x for name, x in columns.items() if x.ndim == 4 and x.shape[3] <= 4}
    image = next(iter(images)) if len(columns) == len(images) == 1 else None
    names: list[str] = []
    owners: Columns = {}
    for name, x in columns.items():
        shape = x.shape[1:] if image is None else x.shape[1:3]
        number = len(names) + np.arange(np.prod(shape, dtype=int)).reshape(1, *shape)
        owners[name] = np.broadcast_to(number[..., None], (1, *x.shape[1:])) if image else number
        names += _names(name if image is None else "", shape)
    every = np.broadcast_to(np.array(names, object), (len(ids), len(names)))
    told = named_outputs(model, outputs)
    return Players(
        "features" if image is None else "pixels",
        ids,
        every,
        None,
        np.ones(every.shape, bool),
        columns,
        owners,
        {name: np.zeros((1, *x.shape[1:]), x.dtype) for name, x in columns.items()},
        told[0],
        likeliest(outputs, told[1]),
        model.outputs,
        program_of(model),
        told[1],
        shape=None if image is None else columns[image].shape[1:3],
    )


def named_outputs(model: Model, outputs: np.ndarray) -> tuple[tuple[str, ...], str]:
    """The names of the outputs, and `Players.classes`, of what a task predicts."""
    classes = tuple(getattr(model.task, "classes", ()))
    if not classes:
        shape = outputs.shape[1:]
        return tuple(_names("output", shape)) if shape else ("output",), ""
    many = any(c.target and c.shape for c in getattr(model.task, "columns", ()))
    return classes, "each" if many else "one"


def likeliest(outputs: np.ndarray, classes: str) -> np.ndarray:
    """The number of the output that is explained by default: the likeliest class, or the first.

    Args:
        outputs: (N, K) or (N,), see `Players`.
        classes: see `Players`.

    >>> likeliest(np.array([0.2, 0.9]), "one").tolist()
    [0, 1]
    """
    if not classes:
        return np.zeros(len(outputs), int)
    return (outputs >= 0.5).astype(int) if outputs.ndim == 1 else outputs.argmax(1)


def program_of(model: Model) -> Program | None:
    """What a model computes, as a function for JAX: of a task or a blend of tasks; else None."""
    if isinstance(model.task, Task):
        task, state = model.trained()
        columns = tuple(column for column in task.columns if not column.target)
        return Program(_Predicting(task.predict), (state.params, state.extra), columns)
    parts = getattr(model.task, "tasks", ())
    if parts and all(isinstance(part, Task) for part in parts) and hasattr(model.task, "exported"):
        program: Program = model.task.exported()
        return program
    return None


@dataclass(frozen=True)
class _Predicting:
    """`Task.predict` of ((params, extra), columns); equal for equal tasks, so it compiles once."""

    predict: Callable[..., Any]

    def __call__(self, params: Any, columns: Mapping[str, Any]) -> Any:
        return self.predict(*params, columns)


def _names(name: str, shape: tuple[int, ...]) -> list[str]:
    """A name for each element: "output 0", of an image "3,4", of a single number the name."""
    if not shape:
        return [name]
    places = np.stack(np.unravel_index(np.arange(np.prod(shape, dtype=int)), shape), -1)
    return [f"{name} {','.join(map(str, place))}".strip() for place in places.tolist()]


def column_of(program: Program | None, name: str) -> Column | None:
    """What a program's column looks like; None where it has none of that name."""
    columns = () if program is None else program.columns
    return next((column for column in columns if column.name == name), None)
