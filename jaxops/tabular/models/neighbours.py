"""ModernNCA: predictions from the targets of near train rows, in a learned space."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn import BatchNorm, Dense
from jaxops.tabular.models.embeddings import Periodic, Reads, embedded, uniform

Array = jax.Array
BLOCK = 4096  # train rows whose distances are computed at a time in prediction
MOST = 2**16  # train rows that are drawn in a step
LEAST = 1e-7  # of a probability, before its logarithm
FAR = 1e9  # of a row from itself in training, or from rows of weight 0, so that they do not count


class ModernNCA(nn.Module):
    """ModernNCA: the mean of the train rows' targets, weighted by a softmax of their distances.

    With e(x) the learned representation of a row, the prediction is the sum over train rows j of
    softmax_j(log w_j - |e(x) - e(x_j)|) y_j, where y is a number or the indicators of classes, and
    w the weights of rows, 1 by default. In training a row does not see its own target; the other
    rows of the batch and a share of the train rows, drawn anew in each step, stand for all. In
    prediction all are compared, in blocks, so that the memory does not grow with them. A model of
    `tabular.fit` represents them once for each call of `predict`; a task alone, for each batch.

    The train rows, their targets and weights are variables of the module (collection "candidates"),
    so they are in the model file: a model of personal data holds these. `tabular.fit` fills them
    in. In training they are part of the state, which is copied when the validation loss improves,
    and which a checkpoint holds twice: count on three times their memory. After `tabular.update`
    they are still those of `fit`: new rows change how rows are represented, and never answer.

    Attributes:
        width: of the representation.
        hidden: units of the hidden layer of a block.
        depth: number of blocks (norm, dense, ReLU, dropout, dense) after the first dense layer.
        outputs: number of outputs.
        dropout: probability of dropping a hidden unit of a block in training.
        candidates: the share of the train rows that is drawn in a step, in (0, 1]; of more than
            65,536 rows so many are.
        compute: of the products in dense layers, see `jaxops.nn.matmul`; distances are float32.
        embedding: of numbers.
        numbers: how many features it embeds, the first ones; `tabular.fit` sets it.
        rows: number of train rows; `tabular.fit` sets it.
        probabilities: whether targets are classes, and outputs logits; `tabular.fit` sets it.
        reads: how it wants a table.

    References:
        Ye et al. 2024, "Revisiting nearest neighbor for tabular data", arXiv:2407.03257.

    >>> module = ModernNCA(width=4, rows=5, embedding=None)
    >>> rows = jnp.ones((2, 3)), jnp.array([-1, -1])
    >>> outputs, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), *rows)
    >>> outputs.shape, variables["candidates"]["features"].shape
    ((2, 1), (5, 3))
    """

    width: int = 128
    hidden: int = 512
    depth: int = 0
    outputs: int = 1
    dropout: float = 0.1
    candidates: float = 0.5
    compute: str | None = None
    embedding: Any = Periodic(width=34, frequencies=77, scale=0.0443, lite=True)
    numbers: int = 0
    rows: int = 0
    probabilities: bool = True
    reads: Reads = Reads("quantile")

    def setup(self) -> None:
        """The layers, which rows and candidates share."""
        dense = functools.partial(Dense, compute=self.compute, kernel_init=uniform)
        self.first = dense(self.width)
        self.norms = [BatchNorm() for _ in range(self.depth + (self.depth > 0))]
        self.hiddens = [dense(self.hidden) for _ in range(self.depth)]
        self.outs = [dense(self.width) for _ in range(self.depth)]
        self.drop = nn.Dropout(self.dropout)

    @nn.compact
    def __call__(
        self, x: Array, row: Array, *, train: bool = False, mask: Array | None = None
    ) -> Array:
        """Outputs of rows.

        Args:
            x: features (B, d).
            row: int (B,), their places among the train rows, -1 for others.
            train: draw candidates, without the rows themselves, and apply dropout.
            mask: bool (B,), False for padding.

        Returns:
            (B, outputs): the weighted means of the targets, or of classes the logits of their
            probabilities.
        """
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}; tabular.fit sets it")
        if not 0 < self.candidates <= 1:
            raise ValueError(f"candidates must be in (0, 1], got {self.candidates}")
        shape = (self.rows, x.shape[-1])
        features = self.variable("candidates", "features", jnp.zeros, shape).value
        shape = (self.rows, self.outputs)
        targets = self.variable("candidates", "targets", jnp.zeros, shape).value
        weights = self.variable("candidates", "weights", jnp.ones, self.rows).value
        extra = jnp.where(weights > 0, -jnp.log(weights), FAR)  # to the distance
        if self.is_initializing():
            self.represent(x)
            return jnp.zeros((len(x), self.outputs))
        if not train:
            known: Any = self.get_variable("candidates", "represented")  # by `represented`
            rows = features if known is None else known
            mean = self._mean_of_all(self.represent(x), rows, targets, extra, known is not None)
            return self._answer(mean)
        count = min(max(1, round(self.candidates * self.rows)), MOST)
        drawn = jax.random.permutation(self.make_rng("dropout"), self.rows)[:count]
        own = row if mask is None else jnp.where(mask, row, -1)
        if mask is not None:
            mask = jnp.concatenate([mask, jnp.ones(count, bool)])
        both = self.represent(jnp.concatenate([x, features[drawn]]), True, mask)
        places = jnp.concatenate([own, drawn])
        # padding and new rows have no target; a row of the batch that is drawn is there twice
        out = jnp.concatenate([own < 0, jnp.isin(drawn, own)])
        far = distances(both[: len(x)], both) + jnp.where(out, FAR, extra[places])[None]
        far = jnp.where(own[:, None] == places[None], FAR, far)
        return self._answer(jnp.matmul(jax.nn.softmax(-far), targets[places], precision="highest"))

    def represent(self, x: Array, train: bool = False, mask: Array | None = None) -> Array:
        """The representations (B, width) of features (B, d)."""
        x = self.first(embedded(self.embedding, x, self.numbers))
        for i in range(self.depth):
            y = nn.relu(self.hiddens[i](self.norms[i](x, train=train, mask=mask)))
            x = self.outs[i](self.drop(y, deterministic=not train))
        return self.norms[-1](x, train=train, mask=mask) if self.depth else x

    def represent_candidates(self) -> Array:
        """The representations (rows, width) of all candidates, in blocks."""
        features: Any = self.get_variable("candidates", "features")

        def one(module: Any, carry: Any, rows: Array) -> Any:
            return carry, module.represent(rows)

        over = nn.scan(one, variable_broadcast=("params", "batch_stats"), split_rngs={})
        _, found = over(self, (), _in_blocks(features))
        return found.reshape(-1, self.width)[: len(features)]

    def _mean_of_all(
        self, x: Array, rows: Array, targets: Array, extra: Array, represented: bool
    ) -> Array:
        """The mean of all targets, weighted by a softmax over blocks of candidates."""

        def add(module: Any, carry: Any, block: Any) -> Any:
            """A softmax of which the largest logit so far is known: its sums are scaled by it."""
            most, total, mean = carry
            rows, values, extra = block
            known = rows if represented else module.represent(rows)
            near = -distances(x, known) - extra[None]
            higher = jnp.maximum(most, near.max(1))
            scale, weights = jnp.exp(most - higher), jnp.exp(near - higher[:, None])
            mean = mean * scale[:, None] + jnp.matmul(weights, values, precision="highest")
            return (higher, total * scale + weights.sum(1), mean), None

        over = nn.scan(add, variable_broadcast=("params", "batch_stats"), split_rngs={})
        start = jnp.full(len(x), -jnp.inf), jnp.zeros(len(x)), jnp.zeros((len(x), self.outputs))
        blocks = _in_blocks(rows), _in_blocks(targets), _in_blocks(extra, jnp.inf)
        (_, total, mean), _ = over(self, start, blocks)
        return mean / total[:, None]

    def _answer(self, mean: Array) -> Array:
        """Means of targets as outputs: those of classes as logits."""
        if not self.probabilities:
            return mean
        mean = jnp.clip(mean, 0, 1)  # a sum of weights may round to more
        log = jnp.log(mean + LEAST)
        return log - jnp.log(1 - mean + LEAST) if self.outputs == 1 else log


def _in_blocks(x: Array, padding: float = 0.0) -> Array:
    """Rows (N, ...) in blocks of at most 4,096, (blocks, size, ...); the last one is padded."""
    blocks = -(-len(x) // BLOCK)
    size = -(-len(x) // blocks)
    pad = [(0, blocks * size - len(x)), *[(0, 0)] * (x.ndim - 1)]
    return jnp.pad(x, pad, constant_values=padding).reshape(blocks, size, *x.shape[1:])


def distances(x: Array, y: Array) -> Array:
    """Euclidean distances (B, N) of x (B, D) from y (N, D).

    >>> distances(jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
    [[5.0, 0.0]]
    """
    product = jnp.matmul(x, y.T, precision="highest")
    square = (x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * product
    return jnp.sqrt(jnp.maximum(square, 1e-12))  # the gradient of a root of 0 is infinite
