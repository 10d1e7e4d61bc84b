"""Recurrent layers by `lax.scan`: LSTM and GRU over packed rows, with variational dropout."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxops.nn.product import matmul

Array = jax.Array
State = Any
"""Of an LSTM `(hidden, memory)`, of a GRU `hidden`: (layers * directions, B, features) each."""
Cell = Callable[[State, Array, Array], State]
"""One step, of the state, the input's products and the hidden state's product."""
How = tuple[Cell, str | None, bool]
"""The cell, how products are computed, and whether the scan runs from the end."""


class Recurrence(nn.Module):
    """What `LSTM` and `GRU` share: layers and directions, packed rows, dropout."""

    features: int
    depth: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    compute: str | None = None

    gates: ClassVar[int]
    cell: ClassVar[Any]  # a `Cell`

    def _zero(self, shape: tuple[int, ...]) -> State:
        raise NotImplementedError

    def _biased(self, products: Array, name: str) -> Array:
        raise NotImplementedError

    @nn.compact
    def __call__(
        self,
        x: Array,
        segments: Array | None = None,
        initial: State | None = None,
        *,
        train: bool = False,
    ) -> tuple[Array, State]:
        """Read rows of vectors.

        Args:
            x: (B, T, D) float.
            segments: int or bool (B, T). Where it is 0 (padding) the state does not change and the
                output is 0. Where another number begins, as in a row of several packed documents,
                the state is reset to zero. By default a row is one document; for rows of lengths
                (B,) give `jnp.arange(T)[None] < lengths[:, None]`.
            initial: the state at the first step, such as an earlier call returned; zero by default.
            train: apply dropout, drawn from the "dropout" stream.

        Returns:
            The hidden states of the last layer, (B, T, features), or (B, T, 2 * features) if
            bidirectional: forward, then backward. And the last state of each layer and direction
            (that of the backward direction is at the first step), directions side by side.

        Raises:
            ValueError: shapes that do not fit.
        """
        if x.ndim != 3:
            raise ValueError(f"x must be (rows, steps, features), got {x.shape}")
        directions = ("forward", "backward") if self.bidirectional else ("forward",)
        shape = (self.depth * len(directions), len(x), self.features)
        initial = _checked(initial, self._zero(shape))
        if segments is not None:
            if jnp.shape(segments) != x.shape[:2]:
                raise ValueError(f"segments must be {x.shape[:2]}, got {jnp.shape(segments)}")
            segments = jnp.asarray(segments, jnp.int32).T[..., None]
        x = x.swapaxes(0, 1)  # a scan is over the first axis
        if segments is not None:  # 0 * NaN would be NaN in the kernels' gradients
            x = jnp.where(segments > 0, x, 0)
        finals: list[State] = []
        for layer in range(self.depth):
            drop = nn.Dropout(self.dropout, (0,), not train, name=f"dropout_{layer}")
            x, outputs = drop(x), []  # (0,): one mask for all steps
            for direction in directions:
                begin = jax.tree.map(lambda leaf: leaf[len(finals)], initial)
                hidden, final = self._read(x, segments, begin, f"{direction}_{layer}", train)
                outputs.append(hidden)
                finals.append(final)
            x = jnp.concatenate(outputs, -1)
        return x.swapaxes(0, 1), jax.tree.map(lambda *leaves: jnp.stack(leaves), *finals)

    def _read(
        self, x: Array, segments: Array | None, state: State, name: str, train: bool
    ) -> tuple[Array, State]:
        """One layer in one direction: (T, B, D) to (T, B, features)."""
        width = self.gates * self.features
        kernel = self.param(f"{name}_kernel", _uniform, (x.shape[-1], width), self.features)
        recurrent = self.param(
            f"{name}_recurrent_kernel", _uniform, (self.features, width), self.features
        )
        # one product for all steps
        inputs = self._biased(matmul(x, kernel, self.compute), name)
        keep = None
        if train and self.recurrent_dropout:
            drop = nn.Dropout(self.recurrent_dropout, deterministic=False, name=f"{name}_dropout")
            keep = drop(jnp.ones((x.shape[1], self.features)))
        # read backwards, padding at a row's end leaves the initial state unchanged
        reverse = name.startswith("backward")
        marks = None if segments is None else (segments > 0, _first(segments, reverse))
        how = self.cell, self.compute, reverse
        return _scan(how, recurrent, inputs, state, keep, marks)


def _lstm(state: State, inputs: Array, products: Array) -> State:
    _, memory = state
    i, f, g, o = jnp.split(inputs + products, 4, axis=-1)
    memory = nn.sigmoid(f) * memory + nn.sigmoid(i) * jnp.tanh(g)
    return nn.sigmoid(o) * jnp.tanh(memory), memory


def _gru(hidden: State, inputs: Array, products: Array) -> State:
    xr, xz, xn, bias = jnp.split(inputs, 4, axis=-1)
    hr, hz, hn = jnp.split(products, 3, axis=-1)
    r, z = nn.sigmoid(xr + hr), nn.sigmoid(xz + hz)
    n = jnp.tanh(xn + r * (hn + bias))
    return n + z * (hidden - n)


class LSTM(Recurrence):
    """Layers of long short-term memory, in one or both directions.

    With the input x, the hidden state h and the memory c, as in PyTorch:

        i, f, g, o = split(x @ kernel + h @ recurrent_kernel + bias)
        c = sigmoid(f) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)

    PyTorch's weights are the transposed kernels, and the bias is the sum of its two. Kernels are
    initialised as in PyTorch, uniform within 1 / sqrt(features); biases at 0, those of the forget
    gates f at 1.

    Dropout is variational: in training, a row has one mask for all of its steps, so a row is read
    by one of the networks that dropout makes. `jaxops.monte_carlo` averages predictions over them.

    There is no forward-mode derivative.

    Attributes:
        features: of the hidden state, in each direction.
        depth: number of layers.
        bidirectional: each layer also reads every document from its end, with separate weights.
        dropout: probability of dropping a feature of a layer's input in training.
        recurrent_dropout: probability of dropping a feature of the hidden state in the gates.
        compute: of the products, see `jaxops.nn.matmul`.

    References:
        Hochreiter and Schmidhuber 1997, "Long Short-Term Memory".
        Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network Architectures" (the
        forget gates' bias).
        Gal and Ghahramani 2016, arXiv:1512.05287 (variational dropout).

    >>> x, lengths = jnp.ones((2, 5, 3)), jnp.array([5, 2])
    >>> mask = jnp.arange(5)[None] < lengths[:, None]
    >>> start = jax.jit(LSTM(4).init_with_output)
    >>> (outputs, (hidden, memory)), _ = start(jax.random.key(0), x, mask)
    >>> outputs.shape, hidden.shape, bool((outputs[1, 1] == hidden[0, 1]).all())
    ((2, 5, 4), (1, 2, 4), True)
    """

    gates = 4
    cell = staticmethod(_lstm)

    def _zero(self, shape: tuple[int, ...]) -> State:
        return jnp.zeros(shape), jnp.zeros(shape)

    def _biased(self, products: Array, name: str) -> Array:
        def start(key: Array) -> Array:
            return jnp.repeat(jnp.array([0.0, 1.0, 0.0, 0.0]), self.features)

        return products + self.param(f"{name}_bias", start).reshape(1, 1, -1)


class GRU(Recurrence):
    """Layers of gated recurrent units, in one or both directions.

    With the input x and the hidden state h, as in PyTorch:

        xr, xz, xn = split(x @ kernel + bias)
        hr, hz, hn = split(h @ recurrent_kernel)
        r, z = sigmoid(xr + hr), sigmoid(xz + hz)
        n = tanh(xn + r * (hn + recurrent_bias))
        h = (1 - z) * n + z * h

    PyTorch's weights are the transposed kernels; `bias` is the sum of its two, except for n, where
    both are kept. Attributes, dropout and the call are those of `LSTM`.

    References:
        Cho et al. 2014, arXiv:1406.1078, with the product before the reset gate.

    >>> start = GRU(4, bidirectional=True).init_with_output
    >>> (outputs, hidden), _ = jax.eval_shape(start, jax.random.key(0), jnp.ones((2, 5, 3)))
    >>> outputs.shape, hidden.shape
    ((2, 5, 8), (2, 2, 4))
    """

    gates = 3
    cell = staticmethod(_gru)

    def _zero(self, shape: tuple[int, ...]) -> State:
        return jnp.zeros(shape)

    def _biased(self, products: Array, name: str) -> Array:
        zeros = nn.initializers.zeros
        products += self.param(f"{name}_bias", zeros, products.shape[-1:]).reshape(1, 1, -1)
        bias = self.param(f"{name}_recurrent_bias", zeros, (self.features,)).reshape(1, 1, -1)
        return jnp.concatenate(
            [products, jnp.broadcast_to(bias, (*products.shape[:2], self.features))], -1
        )


def recurrence(cell: str) -> type[LSTM] | type[GRU]:
    """Return the layers' class: `LSTM` for "lstm", `GRU` for "gru".

    Raises:
        ValueError: another word.
    """
    known: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}
    if cell not in known:
        raise ValueError(f'cell must be "lstm" or "gru", got {cell!r}')
    return known[cell]


def _uniform(key: Array, shape: tuple[int, ...], features: int) -> Array:
    bound = features**-0.5
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def _checked(initial: State | None, zero: State) -> State:
    if initial is None:
        return zero
    shapes, expected = (jax.tree.map(jnp.shape, state) for state in (initial, zero))
    if shapes != expected:
        raise ValueError(f"initial must be a state of shapes {expected}, got {shapes}")
    return initial


def _first(segments: Array, reverse: bool) -> Array:
    """Where a document begins that follows another, with or without padding between them."""

    def step(last: Array, now: Array) -> tuple[Array, Array]:
        return jnp.where(now > 0, now, last), (now > 0) & (last > 0) & (now != last)

    return lax.scan(step, jnp.zeros_like(segments[0]), segments, reverse=reverse)[1]


def _steps(
    how: How,
    kernel: Array,
    inputs: Array,
    state: State,
    keep: Array | None,
    marks: tuple[Array, Array] | None,
) -> tuple[tuple[Array, State], Array]:
    """Outputs (T, B, features), the last state, and what the kernel was multiplied with."""
    cell, compute, reverse = how

    def step(state: State, now: Any) -> tuple[State, tuple[Array, Array]]:
        inputs, marks = now
        before = state
        if marks:
            real, first = marks
            before = jax.tree.map(lambda s: jnp.where(first, 0, s), state)
        read = jax.tree.leaves(before)[0]
        if keep is not None:
            read *= keep
        new = cell(before, inputs, matmul(read, kernel, compute))
        output = jax.tree.leaves(new)[0]
        if marks:
            new = jax.tree.map(lambda n, s: jnp.where(real, n, s), new, state)
            output = jnp.where(real, output, 0)
        return new, (output, read)

    state, (outputs, read) = lax.scan(step, state, (inputs, marks), reverse=reverse)
    return (outputs, state), read


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _scan(how: How, *arrays: Any) -> tuple[Array, State]:
    return _steps(how, *arrays)[0]


def _forward(how: How, kernel: Array, inputs: Array, state: State, *rest: Any) -> Any:
    def run(inputs: Array, state: State) -> Any:
        return _steps(how, kernel, inputs, state, *rest)

    result, pull, read = jax.vjp(run, inputs, state, has_aux=True)
    return result, (pull, read, kernel)


def _backward(how: How, saved: Any, g: Any) -> tuple[Array, Array, State, None, None]:
    """Compute the kernel's gradient as one product over all steps, not as a sum of one for each."""
    pull, read, kernel = saved
    inputs, state = pull(g)
    products = inputs
    if inputs.shape[-1] > kernel.shape[-1]:  # a GRU adds them to all but xn
        r, z, _, n = jnp.split(inputs, 4, axis=-1)
        products = jnp.concatenate([r, z, n], -1)
    (by_kernel,) = jax.vjp(lambda kernel: matmul(read, kernel, how[1]), kernel)[1](products)
    return by_kernel, inputs, state, None, None


_scan.defvjp(_forward, _backward)
