"""Scikit-learn's gradient-boosted trees as arrays, and their prediction in JAX.

Scikit-learn has no format for its trees but pickle, which is code. Their nodes are read once, after
training, from attributes that are not public; what is read must predict as scikit-learn does, or
training ends with an error.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops._optional import require
from jaxops.task import recorded

LIMIT = 1e-4  # by which predictions may differ from scikit-learn's; above 1 a share of them


@recorded
@dataclass(frozen=True, eq=False)
class HistTrees:
    """T trees of M nodes in all; a leaf is its own left and right.

    Attributes:
        feature: int32 (M,), the column of each node.
        threshold: float32 (M,); a number goes left if it is at most this.
        left: int32 (M,), the node to the left.
        right: int32 (M,), the node to the right.
        missing_left: bool (M,), whether a missing value goes left.
        bitset: int32 (M,), the row of `bits` of a node that divides categories, else -1.
        bits: uint32 (B, 8), 256 flags each: whether a category goes left.
        value: float32 (M,), of the leaves.
        roots: int32 (T,), the first node of each tree; tree t adds to output t modulo K.
        baseline: float32 (K,), where the outputs start.
        ranks: float32 (C, 1 + V), the category of each number of a text, from -1 on, NaN where the
            train rows had none.
        depth: of the deepest tree.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    bitset: np.ndarray
    bits: np.ndarray
    value: np.ndarray
    roots: np.ndarray
    baseline: np.ndarray
    ranks: np.ndarray
    depth: int

    def predict(self, x: np.ndarray, kind: str) -> np.ndarray:
        """Probabilities (N, classes), or numbers (N,), of rows (N, d).

        Args:
            x: see `trees.matrix`.
            kind: "classes", "number" or "counts".
        """
        count = len(x)
        # of few shapes, as each is compiled
        x = np.pad(x, ((0, (1 << (count - 1).bit_length()) - count), (0, 0)))
        return np.asarray(self.program(self.arrays, jnp.asarray(x), kind))[:count]

    def program(self, arrays: dict[str, jax.Array], x: jax.Array, kind: str) -> jax.Array:
        """`predict` as a function of JAX.

        Args:
            arrays: see `arrays`.
            x: (B, d), see `trees.matrix`.
            kind: see `predict`.
        """
        margins = _margins(arrays, x, self.depth)
        outputs = margins[:, 0]
        if kind == "counts":
            return jnp.exp(outputs)
        if kind == "number":
            return outputs
        if margins.shape[1] == 1:
            return jnp.stack([jax.nn.sigmoid(-outputs), jax.nn.sigmoid(outputs)], -1)
        return jax.nn.softmax(margins)

    @functools.cached_property
    def arrays(self) -> dict[str, jax.Array]:
        """The arrays by name on the device, placed when they are first needed."""
        return {n: jnp.asarray(v) for n, v in vars(self).items() if isinstance(v, np.ndarray)}


@functools.partial(jax.jit, static_argnames="depth")
def _margins(trees: dict[str, jax.Array], x: jax.Array, depth: int) -> jax.Array:
    """The sums of the leaves, (N, K): every tree is walked down at once."""
    texts = trees["ranks"].shape[0]
    if texts:
        codes = x[:, :texts].astype(jnp.int32) + 1
        categories = trees["ranks"][jnp.arange(texts)[None], codes]
        x = jnp.concatenate([categories, x[:, texts:]], 1)

    def down(_: Any, place: jax.Array) -> jax.Array:
        value = jnp.take_along_axis(x, trees["feature"][place], 1)
        left = value <= trees["threshold"][place]
        if texts:
            bitset = trees["bitset"][place]
            category = jnp.nan_to_num(jnp.clip(value, 0, 255)).astype(jnp.uint32)
            bits = trees["bits"][bitset, (category >> 5).astype(jnp.int32)] >> (category & 31)
            left = jnp.where(bitset >= 0, (bits & 1) == 1, left)
        left = jnp.where(jnp.isnan(value), trees["missing_left"][place], left)
        return jnp.where(left, trees["left"][place], trees["right"][place])

    roots = trees["roots"]
    place = jax.lax.fori_loop(0, depth, down, jnp.broadcast_to(roots, (len(x), len(roots))))
    outputs = len(trees["baseline"])
    sums = trees["value"][place].reshape(len(x), -1, outputs).sum(1)
    return sums + trees["baseline"][None]


def ranks_of(x: np.ndarray, texts: Sequence[int], most: int) -> np.ndarray:
    """The category of each number of a text, at most `most` a column; see `HistTrees.ranks`.

    Args:
        x: (N, d), the train rows, texts first.
        texts: the number of values of each column of text.
        most: the most categories that a column may have; all rare values share the last one.

    >>> ranks_of(np.array([[0.0], [2.0], [2.0]]), [3], most=255).tolist()
    [[nan, 0.0, nan, 1.0]]
    """
    ranks = np.full((len(texts), 1 + max(texts, default=0)), np.nan, np.float32)
    for column in range(len(texts)):
        codes, counts = np.unique(x[:, column].astype(np.int64), return_counts=True)
        own = codes
        if len(codes) > most:
            own = np.sort(codes[np.argsort(-counts, kind="stable")][: most - 1])
        ranks[column, 1 + codes] = most - 1
        ranks[column, 1 + own] = np.arange(len(own))
    return ranks


def categories_of(x: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """Rows (N, d) with categories in place of the numbers of texts, float32.

    >>> categories_of(np.array([[1.0, 9.0], [-1.0, 9.0]]), np.array([[np.nan, 0, 1]])).tolist()
    [[1.0, 9.0], [nan, 9.0]]
    """
    texts = len(ranks)
    categories = ranks[np.arange(texts), x[:, :texts].astype(np.int64) + 1]
    return np.concatenate([categories, x[:, texts:]], 1, dtype=np.float32)


def of_scikit_learn(
    model: Any, kind: str, rounds: int, ranks: np.ndarray, x: np.ndarray
) -> HistTrees:
    """The first trees of a trained model of scikit-learn.

    Args:
        model: `HistGradientBoostingClassifier` or `Regressor`.
        kind: of its target, see `HistTrees.predict`.
        rounds: how many rounds are kept.
        ranks: see `ranks_of`.
        x: rows that it was not trained on, by which what is read is checked.

    Raises:
        RuntimeError: what is read does not predict as scikit-learn does.
    """
    trees = [tree for one in model._predictors[:rounds] for tree in one]
    counts = [len(tree.nodes) for tree in trees]
    roots = np.cumsum([0, *counts[:-1]])
    nodes = np.concatenate([tree.nodes for tree in trees])
    first = np.repeat(roots, counts)
    here, leaf = np.arange(len(nodes)), nodes["is_leaf"] > 0
    bits = [tree.raw_left_cat_bitsets for tree in trees]
    before = np.repeat(np.cumsum([0, *map(len, bits[:-1])]), counts)
    read = HistTrees(
        feature=np.where(leaf, 0, nodes["feature_idx"]).astype(np.int32),
        threshold=_at_most(nodes["num_threshold"]),
        left=np.where(leaf, here, nodes["left"] + first).astype(np.int32),
        right=np.where(leaf, here, nodes["right"] + first).astype(np.int32),
        missing_left=nodes["missing_go_to_left"] > 0,
        bitset=np.where(nodes["is_categorical"] > 0, nodes["bitset_idx"] + before, -1).astype(
            np.int32
        ),
        bits=np.concatenate([*bits, np.zeros((1, 8), np.uint32)]),
        value=nodes["value"].astype(np.float32),
        roots=roots.astype(np.int32),
        baseline=np.ravel(model._baseline_prediction).astype(np.float32),
        ranks=ranks,
        depth=int(nodes["depth"].max()),
    )
    known = categories_of(x, ranks)
    stages = model.staged_predict_proba if kind == "classes" else model.staged_predict
    wanted = next(itertools.islice(stages(known), rounds - 1, None))
    difference = (np.abs(read.predict(x, kind) - wanted) / np.maximum(1, np.abs(wanted))).max()
    if not difference <= LIMIT:
        version = require("sklearn", extra="data").__version__
        raise RuntimeError(
            f"the trees of scikit-learn {version} must predict as there when their nodes are read, "
            f"got a difference of {difference:.2g}; their format may have changed"
        )
    return read


def _at_most(threshold: np.ndarray) -> np.ndarray:
    """The largest float32 that is not above each float64: the same float32 numbers are below."""
    with np.errstate(over="ignore"):
        narrow = threshold.astype(np.float32)
    return np.where(narrow > threshold, np.nextafter(narrow, np.float32(-np.inf)), narrow)
