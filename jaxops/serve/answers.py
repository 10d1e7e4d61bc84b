"""Answers of a model: cut into those of single requests, and as JSON."""

import math
from typing import Any

import jax
import numpy as np

SHARED = ("times", "items")  # arrays of an answer that have no axis of rows
BEST = ("places", "documents", "scores")  # those that hold the best of each row


def cut(answer: Any, start: int, stop: int, count: int, numbered: bool, first: int = 0) -> Any:
    """The part of an answer that belongs to rows `start` to `stop` of `count`.

    Args:
        answer: a NamedTuple as `Model.predict` gives it; or a tree of arrays (N, ...).
        start: the first row.
        stop: the row behind the last.
        count: N.
        numbered: whether ids are the numbers of rows, which then begin at 0.
        first: how many of the best of each row are kept; 0 for all.

    >>> from jaxops.model.finished import Classes
    >>> two = Classes(np.arange(2), np.array(["a", "b"], object), np.eye(2), ("a", "b"))
    >>> one = cut(two, 1, 2, 2, numbered=True)
    >>> one.ids.tolist(), one.labels.tolist(), one.classes
    ([0], ['b'], ('a', 'b'))
    """
    if not hasattr(answer, "_fields"):
        return jax.tree.map(lambda leaf: leaf[start:stop], answer)
    parts = {
        name: value[start:stop]
        for name, value in answer._asdict().items()
        if isinstance(value, np.ndarray) and name not in SHARED and len(value) == count
    }
    if numbered:
        parts |= {name: np.arange(stop - start) for name in ("ids", "users") if name in parts}
    if first:
        best = {name: parts[name][:, :first] for name in BEST if name in parts}
        parts |= best
    return answer._replace(**parts)


def plain(answer: Any) -> Any:
    """An answer as JSON: its attributes by name; numbers that are not finite are null.

    >>> from jaxops.model.finished import Classes
    >>> plain(Classes(np.arange(1), np.array(["a"], object), np.array([[0.75, 0.25]]), ("a", "b")))
    {'ids': [0], 'labels': ['a'], 'probabilities': [[0.75, 0.25]], 'classes': ['a', 'b']}
    """
    if hasattr(answer, "places"):  # indices into all items of a catalogue
        return {"items": answer.ids(), "scores": plain(answer.scores)}
    if hasattr(answer, "_asdict"):
        named = answer._asdict().items()
        return {name: plain(value) for name, value in named if value is not None}
    if isinstance(answer, dict):
        return {str(name): plain(value) for name, value in answer.items()}
    if isinstance(answer, list | tuple):
        return [plain(value) for value in answer]
    if isinstance(answer, np.ndarray):
        return _listed(answer)
    value = answer.item() if hasattr(answer, "item") else answer
    return None if isinstance(value, float) and not math.isfinite(value) else value


def size(answer: Any) -> int:
    """The number of values in an answer.

    >>> size({"mean": np.ones((2, 3)), "horizon": 3})
    7
    """
    return sum(np.size(leaf) for leaf in jax.tree.leaves(answer))


def as_object(answer: Any) -> dict[str, Any]:
    """An answer as a JSON object; a single array or number is its `output`.

    >>> as_object(np.ones(2))
    {'output': [1.0, 1.0]}
    """
    found = plain(answer)
    return found if isinstance(found, dict) else {"output": found}


def _listed(value: np.ndarray) -> Any:
    if value.dtype.kind == "M":
        return np.datetime_as_string(value).tolist()
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        found = value.astype(object)
        found[~np.isfinite(value)] = None
        return found.tolist()
    return plain(value.tolist()) if value.dtype.kind == "O" else value.tolist()


def tensors(answer: Any) -> dict[str, np.ndarray]:
    """An answer as tensors by name: arrays of numbers, and of texts as objects.

    A NamedTuple gives its arrays; a tree of arrays its leaves, and a single array is `output`.

    >>> tensors(np.ones(2)), [*tensors({"mean": np.ones(2)})]
    ({'output': array([1., 1.])}, ['mean'])
    """
    if isinstance(answer, np.ndarray):
        return {"output": answer}
    if hasattr(answer, "_asdict"):
        found = {n: v for n, v in answer._asdict().items() if isinstance(v, np.ndarray)}
    else:
        leaves = jax.tree_util.tree_flatten_with_path(answer)[0]
        names = [jax.tree_util.keystr(path, simple=True, separator="_") for path, _ in leaves]
        found = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves, strict=True)}
    kinds = {"U": object, "V": np.float32}  # of texts and of bfloat16
    return {n: v.astype(kinds.get(v.dtype.kind, v.dtype), copy=False) for n, v in found.items()}
