"""Fine-tuning: frozen parameters, learning rates by layer, and low-rank adaptation (LoRA)."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops.state import Stays, TrainState
from jaxops.task import (
    Array,
    Batch,
    Extra,
    Key,
    Out,
    Params,
    Task,
    check_not_private,
    example,
    recorded,
)

ATTENTION = r"(qkv|query|key_value)/kernel$"  # the kernels of queries, keys and values


def _by_path(function: Any, tree: Any) -> Any:
    """The tree of `function(path, leaf)`, with paths like "stack/block_0/attention/qkv/kernel"."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: function(jax.tree_util.keystr(path, simple=True, separator="/"), leaf),
        tree,
    )


def _names(params: Params) -> list[str]:
    return jax.tree.leaves(_by_path(lambda path, leaf: path, params))


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + ", ..." * (len(names) > 10)


@functools.lru_cache(maxsize=64)
def frozen(
    optimizer: optax.GradientTransformation, pattern: str
) -> optax.GradientTransformationExtraArgs:
    """An optimizer that does not change parameters whose path matches `pattern`.

    It keeps no state for frozen parameters, and does not count them in a norm for clipping. XLA
    does not compute their gradients. If the parameters of a batch norm are frozen, its running
    statistics do not change either; in training it still normalises by the statistics of the batch.
    Put `optim.ema` after it: `optim.chain(frozen(...), optim.ema(...))`.

    Args:
        optimizer: the optimizer of the other parameters.
        pattern: a regular expression that is searched for in paths such as
            "stack/block_0/attention/qkv/kernel".

    Raises:
        ValueError: when a state is made, if the pattern matches no parameter or all parameters.

    >>> tx = frozen(optax.sgd(1.0), "^embedding/")
    >>> params = {"embedding": {"tokens": jnp.ones(2)}, "head": jnp.ones(2)}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> updates["embedding"]["tokens"].tolist(), updates["head"].tolist()
    ([0.0, 0.0], [-1.0, -1.0])
    """

    def labels(params: Params) -> Any:
        names = _names(params)
        stay = [name for name in names if re.search(pattern, name)]
        if not 0 < len(stay) < len(names):
            raise ValueError(
                f"pattern must match some of {len(names)} parameters but not all, got {pattern!r}, "
                f"which matches {len(stay)}; the parameters are {_some(names)}"
            )
        return _by_path(lambda name, _: "stays" if name in stay else "learns", params)

    zero = optax.GradientTransformation(lambda _: Stays(pattern), optax.set_to_zero().update)
    return optax.multi_transform({"learns": optimizer, "stays": zero}, labels)


@functools.lru_cache(maxsize=64)
def layerwise(
    optimizer: optax.GradientTransformation, decay: float
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose learning rate decreases by the factor `decay` from layer to layer.

    Parameters after the blocks of a transformer (a head) have the optimizer's own rate. The last
    block has `decay` times this rate, the block before it `decay ** 2` times, and so on; the
    embeddings have the smallest rate. Blocks are recognised by their names, `block_3` or, if they
    are stacked (`scan=True`), `blocks`. Blocks of an encoder and a decoder with equal numbers have
    equal rates.

    Args:
        optimizer: the optimizer whose updates, with weight decay, are scaled.
        decay: a factor in (0, 1]; 1 / 2.6 in ULMFiT, about 0.9 for BERT.

    Raises:
        ValueError: a decay outside (0, 1]; when a state is made, if there are no blocks.

    References:
        Howard and Ruder 2018, arXiv:1801.06146, section 3.2 (discriminative fine-tuning).

    >>> tx = layerwise(optax.sgd(1.0), 0.5)
    >>> params = {"embedding": {"tokens": jnp.ones(())}, "block_0": {"bias": jnp.ones(())},
    ...           "block_1": {"bias": jnp.ones(())}, "head": jnp.ones(())}
    >>> updates, _ = tx.update(params, tx.init(params))
    >>> [float(-u) for u in jax.tree.leaves(updates)]  # block_0, block_1, embedding, head
    [0.25, 0.5, 0.125, 1.0]
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay must be in (0, 1], got {decay}")

    def init(params: Params) -> optax.EmptyState:
        _layers(params)
        return optax.EmptyState()

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        layers = _layers(updates)
        return _by_path(lambda path, u: u * _rate(path, u, layers, decay), updates), state

    return optax.chain(optimizer, optax.GradientTransformation(init, update))


def _layers(params: Params) -> int:
    """The number of blocks in the stack."""

    def count(path: str, leaf: Array) -> int:
        numbered = re.search(r"\bblock_(\d+)/", path)
        if numbered:
            return int(numbered[1]) + 1
        return leaf.shape[0] if re.search(r"\bblocks/", path) else 0

    layers = max(jax.tree.leaves(_by_path(count, params)))
    if not layers:
        raise ValueError(
            f"params must have block_0, ... or blocks for layerwise, got {_some(_names(params))}"
        )
    return layers


def _rate(path: str, leaf: Array, layers: int, decay: float) -> Any:
    if numbered := re.search(r"\bblock_(\d+)/", path):
        return decay ** (layers - int(numbered[1]))
    if re.search(r"\bblocks/", path):
        rates = decay ** (layers - jnp.arange(layers, dtype=leaf.dtype))
        return rates.reshape(-1, *[1] * (leaf.ndim - 1))
    # BERT's head for masked tokens stands among the embeddings, but is the last layer
    return decay ** (layers + 1) if re.search(r"\bembedding/(?!head)|\brelative/", path) else 1.0


@recorded
def lora(task: Task, rank: int, alpha: float | None = None, targets: str = ATTENTION) -> Task:
    """The task with frozen parameters and a trained low-rank change of some kernels (LoRA).

    A kernel W (inputs, outputs) becomes `W + alpha / rank * A @ B` with A (inputs, rank) and B
    (rank, outputs). Only A and B are parameters, and the optimizer keeps state only for them. B
    starts at zero, so training starts from W. The parameters of `task` are in `extra["base"]` and
    do not change. Kernels stacked by a scan, (depth, inputs, outputs), have `depth` such pairs.

        small = lora(task, rank=8)
        state = jo.fit(small, data, state=adapt(small, state), ...)
        jo.save("model", jo.Model(task, merge(small, state)))

    `jo.save(path, jo.Model(small, state))` saves the base and the factors separately.

    Args:
        task: the task that the base was trained for.
        rank: the rank of the change.
        alpha: determines the scale of the change, `alpha / rank`; by default the scale is 1.
        targets: a regular expression that is searched for in the paths of kernels. By default it
            matches the kernels of queries, keys and values.

    Returns:
        A task that predicts what `task` predicts, for `adapt`, `jaxops.fit` and `merge`.

    Raises:
        ValueError: a rank below 1, or a private task. When a state is made: `targets` matches no
            parameter, a parameter that is not a matrix, or a matrix smaller than `rank`.

    References:
        Hu et al. 2021, arXiv:2106.09685.

    >>> from jaxops import nn
    >>> from jaxops.language import next_token
    >>> config = nn.TransformerConfig(vocabulary=9, context=8, depth=1, heads=1, width=4)
    >>> small = lora(next_token(nn.Transformer(config)), rank=2)
    >>> shapes = jax.eval_shape(small.init, jax.random.key(0), example(small.columns))[0]
    >>> {path: factors["a"].shape for path, factors in shapes.items()}
    {'stack/block_0/attention/qkv/kernel': (4, 2)}
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    check_not_private(task)
    scale = (rank if alpha is None else alpha) / rank

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        factor_key, base_key = jax.random.split(key)
        base, extra = task.init(base_key, batch)
        return _factors(factor_key, base, rank, targets), {"base": base, "extra": extra}

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        whole = _applied(extra["base"], params, scale)
        total, out = task.loss(whole, extra["extra"], batch, key, train)
        return total, out._replace(extra={"base": extra["base"], "extra": out.extra})

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        return task.predict(_applied(extra["base"], params, scale), extra["extra"], batch)

    def sample(params: Params, extra: Extra, batch: Batch, key: Key) -> Any:
        assert task.sample is not None  # for mypy: without it this function is not used
        return task.sample(_applied(extra["base"], params, scale), extra["extra"], batch, key)

    return task._replace(init=init, loss=loss, predict=predict, sample=task.sample and sample)


def _factors(key: Key, base: Params, rank: int, targets: str) -> dict[str, dict[str, Array]]:
    """For the path of each target, A normal with variance 1 / inputs, and B zero."""
    matched: dict[str, Array] = {}

    def collect(path: str, leaf: Array) -> None:
        if re.search(targets, path):
            matched[path] = leaf

    _by_path(collect, base)
    if not matched:
        raise ValueError(f"targets must match one of {_some(_names(base))}, got {targets!r}")
    factors = {}
    for i, (path, leaf) in enumerate(sorted(matched.items())):
        if leaf.ndim < 2 or min(leaf.shape[-2:]) < rank:
            raise ValueError(
                f"targets must be matrices of at least {rank} (rank) rows and columns, got {path} "
                f"{leaf.shape}"
            )
        *stacked, inputs, outputs = leaf.shape
        normal = jax.random.normal(jax.random.fold_in(key, i), (*stacked, inputs, rank), leaf.dtype)
        zeros = jnp.zeros((*stacked, rank, outputs), leaf.dtype)
        factors[path] = {"a": normal * inputs**-0.5, "b": zeros}
    return factors


def _applied(base: Params, factors: Any, scale: float) -> Params:
    def change(path: str, leaf: Array) -> Array:
        if path not in factors:
            return leaf
        return leaf + scale * jnp.matmul(factors[path]["a"], factors[path]["b"])

    return _by_path(change, base)


def adapt(task: Task, state: TrainState, seed: int = 0) -> TrainState:
    """A state of a `lora` task that starts from the trained `state` of its inner task.

    Args:
        task: a task from `lora`.
        state: a state of the inner task; it is copied.
        seed: the seed of the factors, and of the random draws in training.

    Raises:
        ValueError: the task was not made by `lora`.
    """
    _settings(task)
    shapes = example(task.columns)
    start, key = jax.random.split(jax.random.key(seed))
    factors = jax.jit(lambda key: task.init(key, shapes)[0])(start)
    base, extra = jax.tree.map(jnp.copy, (state.params, state.extra))
    return TrainState(jnp.int32(0), factors, (), {"base": base, "extra": extra}, key)


def merge(task: Task, state: TrainState) -> TrainState:
    """The state of the inner task, with the low-rank change added to its kernels.

    Args:
        task: a task from `lora`.
        state: a state of that task.

    Raises:
        ValueError: the task was not made by `lora`.

    >>> from jaxops import nn
    >>> from jaxops.language import next_token
    >>> config = nn.TransformerConfig(vocabulary=9, context=8, depth=1, heads=1, width=4)
    >>> task = next_token(nn.Transformer(config))
    >>> params, extra = jax.jit(task.init)(jax.random.key(0), example(task.columns))
    >>> state, small = TrainState(0, params, (), extra, jax.random.key(0)), lora(task, rank=2)
    >>> merged = merge(small, adapt(small, state))  # not trained, so the same as before
    >>> jax.tree.all(jax.tree.map(jnp.allclose, merged.params, params))
    True
    """
    settings = _settings(task)
    rank, alpha = settings["rank"], settings["alpha"]
    scale = (rank if alpha is None else alpha) / rank
    params = jax.jit(_applied, static_argnums=2)(state.extra["base"], state.params, scale)
    return state._replace(params=params, opt_state=(), extra=state.extra["extra"])


def _settings(task: Task) -> dict[str, Any]:
    if task.recipe is None or task.recipe[0] is not lora:
        made = "by hand" if task.recipe is None else f"by {task.recipe[0].__name__}"
        raise ValueError(f"task must be made by lora, got one made {made}")
    return dict(task.recipe[1])
