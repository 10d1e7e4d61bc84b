"""Private tasks: the gradient of each row is clipped, and the sum gets noise once per update."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.privacy import rowwise
from jaxops.privacy.gaussian import Gaussian
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task, check_not_private

METHODS = ("auto", "ghost", "vmap")


@functools.lru_cache(maxsize=64)
def private(
    task: Task,
    *,
    clip: float,
    noise_multiplier: float,
    batch_size: int,
    method: str = "auto",
    microbatch: int | None = None,
) -> Task:
    """The task whose training is differentially private: DP-SGD, with any optimizer.

    The gradient of each row is scaled to a norm of at most `clip`, over all parameters together.
    Their sum gets normal noise of standard deviation `noise_multiplier * clip`, once per update:
    after the parts of `accumulate` and all devices are added up. It is divided by the expected
    batch size. What the optimizer makes of it (momentum, Adam, `optim.ema`) costs no more privacy.

    `fit` draws the batches of a private task anew in each step: each row of the data with
    probability `batch_size` / rows (Poisson sampling), which is what the accounting of
    `privacy.epsilon` is about. A batch has room for more rows than it is ever likely to get; what
    is not filled is padding, which does not count.

    The reported loss and metrics, and the validation, are not private; nor is what you choose by
    them. Predictions, evaluations and `save` are those of the task itself. Other wrappers, such as
    `lora`, come first: make their result private.

    A row whose gradient is not finite counts as zero with "vmap", and may make the sum NaN with
    "ghost". Its loss is mostly NaN too, and then `fit` stops, which tells of the row: keep inputs
    within bounds.

    Args:
        task: any task whose loss does not couple rows. A row is what is protected: one image, one
            text, or all that one user has.
        clip: the bound of the norm of a row's gradient.
        noise_multiplier: the noise, see `privacy.noise_multiplier`.
        batch_size: expected number of rows in a batch; `fit` must be given the same.
        method: "ghost" computes the norms of the rows' gradients in closed form, without these
            gradients (see `jaxops.privacy.norms`), and then the gradient of the clipped sum by
            another backward pass. "vmap" computes each row's gradient. Both give the same up to
            rounding. "auto" takes "ghost" where a row meets each parameter a few times, as in dense
            layers and tables of tokens, and "vmap" where it does so often, as in transformers and
            convolutions, or where most parameters have no closed form; `how` tells.
        microbatch: with "vmap", how many rows are computed at a time; by default as many as have
            gradients of 64 MB together.

    Raises:
        ValueError: a number that is not above 0, a task that couples rows, or is private already,
            or another method. When the state is made: a module with batch norm, or with parameters
            of 16 bits.

    References:
        Abadi et al. 2016, arXiv:1607.00133.

    >>> import numpy as np
    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> x = np.random.default_rng(0).normal(size=(512, 2)).astype(np.float32)
    >>> rows = {"features": x, "label": (x[:, 0] > 0).astype(np.int32)}
    >>> task = private(tabular.classifier(tabular.MLP(()), features=2), clip=1.0,
    ...                noise_multiplier=1.0, batch_size=128)
    >>> state = jo.fit(task, rows, optimizer=jo.optim.sgd(2.0), batch_size=128, steps=30, seed=7,
    ...                progress=False)
    >>> jo.evaluate(task, state, rows)["accuracy"] > 0.9
    True
    """
    check_not_private(task)
    if task.coupled:
        raise ValueError(
            "task must have a loss of each row alone, got coupled=True: a row's gradient depends "
            "on the other rows of its batch, so clipping it does not bound what one row changes; "
            "use a loss without in-batch negatives or risk sets"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if microbatch is not None and (method != "vmap" or microbatch < 1):
        raise ValueError(
            f'microbatch must be at least 1, and only for method="vmap", got {microbatch} and '
            f"{method!r}"
        )
    return task._replace(
        init=functools.partial(_init, task.init),
        loss=ClippedLoss(task.loss, clip, method, microbatch),
        statistics=(),
        expected=batch_size,
        release=Gaussian(clip, noise_multiplier, batch_size),
    )


def _init(init: Any, key: Key, batch: Batch) -> tuple[Params, Extra]:
    params, extra = init(key, batch)
    if jax.tree.leaves(extra.get("batch_stats")):
        raise ValueError(
            "task must have a module without batch norm, whose statistics mix the rows of a batch, "
            "got one with batch_stats; use group norm or layer norm, which look at one row"
        )
    half = [leaf.dtype for leaf in jax.tree.leaves(params) if leaf.dtype.itemsize < 4]
    if half:
        raise ValueError(
            f"task must have parameters in float32, got {half[0]}: sums of clipped gradients would "
            "be rounded by more than the noise hides"
        )
    return params, extra


@dataclass(frozen=True)
class ClippedLoss:
    """A loss whose gradient is the sum of the rows' gradients, each of a norm of at most `clip`.

    Attributes:
        loss: the loss of a task.
        clip: the bound.
        method: see `private`.
        microbatch: see `private`.
    """

    loss: Any
    clip: float
    method: str = "auto"
    microbatch: int | None = None

    def __call__(
        self, params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        """The loss; in training as the sum of the losses of rows with a key each."""
        if not train:
            return self.loss(params, extra, batch, key, False)
        return _clipped(self, params, extra, dict(batch), key)

    def sums(self, params: Params, extra: Extra, batch: Batch, key: Key) -> rowwise.Sums:
        """The summed loss, its `Out`, and the sum of the clipped gradients."""
        rows = rowwise.split(batch, key)
        one = rowwise.traced(self.loss, params, extra, rows)
        if self.by_norms(one):
            return rowwise.by_norms(one, params, extra, rows, self.clip)
        return rowwise.by_rows(self.loss, params, extra, rows, self.clip, self.microbatch)

    def by_norms(self, one: rowwise.Traced) -> bool:
        """Whether norms in closed form are used."""
        return one.suits() if self.method == "auto" else self.method == "ghost"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _clipped(
    loss: ClippedLoss, params: Params, extra: Extra, batch: Batch, key: Key
) -> tuple[Array, Out]:
    return loss.sums(params, extra, batch, key)[:2]


def _forward(loss: ClippedLoss, *arguments: Any) -> Any:
    total, out, grads = loss.sums(*arguments)
    return (total, out), grads


def _backward(loss: ClippedLoss, grads: Params, g: tuple[Array, Out]) -> Any:
    return jax.tree.map(lambda leaf: g[0].astype(leaf.dtype) * leaf, grads), None, None, None


_clipped.defvjp(_forward, _backward)


def _plain(task: Task) -> Any:
    return task.loss.loss if isinstance(task.loss, ClippedLoss) else task.loss


def how(task: Task, batch: Batch) -> dict[str, str]:
    """How the norm of a row's gradient is computed, for each parameter.

    Args:
        task: a private task, or a task that is to become one.
        batch: any batch; only its shapes and dtypes matter.

    Returns:
        path of the parameter -> "closed form", where the gradient is not needed; "gradient of the
        layer" or "gradient of the operation", where the row's gradient of this parameter alone is
        computed; or "gradient of the row", where `vmap` is used for all parameters.

    >>> import numpy as np
    >>> from jaxops import vision
    >>> task = vision.classifier(vision.CNN())
    >>> rows = {"image": np.zeros((1, 28, 28, 1), np.uint8), "label": np.zeros(1, np.int32)}
    >>> [how(task, rows)[name] for name in ("conv/kernel", "hidden/kernel", "hidden/bias")]
    ['gradient of the operation', 'closed form', 'gradient of the operation']
    """
    batch = {name: np.asarray(value) for name, value in batch.items()}

    def start(key: Key) -> Any:
        params, extra = task.init(key, {name: jnp.asarray(x) for name, x in batch.items()})
        return params, extra, rowwise.split(batch, key)

    params, extra, rows = jax.eval_shape(start, jax.random.key(0))
    one = rowwise.traced(_plain(task), params, extra, rows)
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    loss = task.loss if isinstance(task.loss, ClippedLoss) else ClippedLoss(task.loss, 1.0)
    if not loss.by_norms(one):
        return dict.fromkeys(paths, "gradient of the row")
    return {path: rule.name for path, rule in zip(paths, one.rules, strict=True)}


def row_norms(task: Task, params: Params, extra: Extra, batch: Batch, key: Key) -> Array:
    """The norms of the rows' gradients before they are clipped, (B,), such as to choose `clip`.

    They are not private. The randomness of row i (dropout) is that of `fold_in(key, i)`.

    Args:
        task: a task, private or not.
        params: its parameters.
        extra: its other variables.
        batch: a batch; rows of weight 0 have the norm 0.
        key: the randomness.

    >>> import jax, numpy as np
    >>> from jaxops import tabular
    >>> task, key = tabular.regressor(tabular.MLP(()), features=1), jax.random.key(0)
    >>> batch = {"features": np.ones((5, 1), np.float32), "label": np.ones(5, np.float32)}
    >>> params, extra = jax.eval_shape(task.init, key, batch)  # shapes alone
    >>> jax.eval_shape(functools.partial(row_norms, task), params, extra, batch, key).shape
    (5,)
    """
    rows = rowwise.split(batch, key)
    one = rowwise.traced(_plain(task), params, extra, rows)
    return jnp.sqrt(rowwise.squared(one, params, extra, rows).sum(1))


def row_gradients(task: Task, params: Params, extra: Extra, batch: Batch, key: Key) -> Params:
    """The rows' gradients before they are clipped, (B, ...) for each parameter.

    They take the memory of the parameters times B. Arguments and randomness are those of
    `row_norms`.

    >>> import jax, numpy as np
    >>> from jaxops import tabular
    >>> task, key = tabular.regressor(tabular.MLP(()), features=3), jax.random.key(0)
    >>> batch = {"features": np.ones((5, 3), np.float32), "label": np.ones(5, np.float32)}
    >>> params, extra = jax.eval_shape(task.init, key, batch)  # shapes alone
    >>> grads = jax.eval_shape(
    ...     functools.partial(row_gradients, task), params, extra, batch, key)
    >>> [leaf.shape for leaf in jax.tree.leaves(grads)]
    [(5, 1), (5, 3, 1)]
    """
    return rowwise.row_gradients(_plain(task), params, extra, rowwise.split(batch, key))[2]
