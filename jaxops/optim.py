"""Optimizers and schedules: optax's own, and the few that optax lacks.

Every function here returns a plain `optax.GradientTransformation` or schedule. `jaxops.fit` takes
any other of optax as well. The functions here return the same object for equal arguments, so that
two equal set-ups share one compilation. `optax.chain` combines them:

>>> tx = optax.chain(clip_by_global_norm(1.0), l2(1e-4), adam(cosine(1e-3, 1000)), ema(0.999))
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxops.task import Params

if TYPE_CHECKING:
    from jaxops.state import TrainState

__all__ = [
    "ClipState",
    "EmaState",
    "LossScaleState",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamw",
    "averaged",
    "chain",
    "clip_by_global_norm",
    "constant",
    "cosine",
    "decay_mask",
    "ema",
    "exponential",
    "l1",
    "l2",
    "lamb",
    "lion",
    "loss_scale",
    "nadam",
    "phases",
    "plateau",
    "rmsprop",
    "sgd",
    "skip_not_finite",
    "step_decay",
]

F = TypeVar("F", bound=Callable[..., Any])


def _once(make: F) -> F:
    cached = functools.lru_cache(maxsize=256)(make)
    signature = inspect.signature(make)

    @functools.wraps(make)
    def once(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)  # positional and keyword arguments: the same call
        bound.apply_defaults()
        rate = bound.arguments.get("learning_rate")
        if isinstance(rate, int | float) and not rate >= 0:
            raise ValueError(f"learning_rate must be at least 0, got {rate}")
        try:
            return cached(*bound.args, **bound.kwargs)
        except TypeError:  # an argument that cannot be a key, such as a mask in a dict
            return make(*args, **kwargs)

    return once  # type: ignore[return-value]


sgd = _once(optax.sgd)
adamw = _once(optax.adamw)
nadam = _once(optax.nadam)
rmsprop = _once(optax.rmsprop)
adagrad = _once(optax.adagrad)
adadelta = _once(optax.adadelta)
lion = _once(optax.lion)
lamb = _once(optax.lamb)
adafactor = _once(optax.adafactor)
chain = _once(optax.chain)

constant = _once(optax.constant_schedule)


@_once
def adam(
    learning_rate: optax.ScalarOrSchedule, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """Adam, with bias corrections that are exact in float32; its state is optax's.

    `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`, and after t steps
    `w -= learning_rate * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`. optax computes
    `1 - b2^t` directly, which loses five of seven digits at t = 1, so its first steps are wrong by
    1e-5. Here it is computed as `-expm1(t log b2)`. Multiplying by the inverse is also a little
    faster.

    Args:
        learning_rate: a number, or a schedule of the step.
        b1: decay of the mean of the gradients.
        b2: decay of the mean of their squares.
        eps: added to the square root.

    References:
        Kingma and Ba 2015, arXiv:1412.6980.

    >>> tx = adam(0.1)
    >>> updates, _ = tx.update(jnp.ones(2), tx.init(jnp.zeros(2)))
    >>> [round(float(u), 6) for u in updates]
    [-0.1, -0.1]
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        count = optax.safe_increment(state.count)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, grads)
        t = count.astype(jnp.float32)
        # with a decay of zero the correction is 1
        mean, square = (-1 / jnp.expm1(t * math.log(b)) if b else 1.0 for b in (b1, b2))
        updates = jax.tree.map(lambda m, v: (m * mean) / (jnp.sqrt(v * square) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    start = optax.scale_by_adam(b1, b2, eps).init
    scale = optax.GradientTransformation(start, update)
    return optax.chain(scale, optax.scale_by_learning_rate(learning_rate))


@_once
def step_decay(rate: float, every: int, factor: float) -> optax.Schedule:
    """`rate * factor ** (step // every)`.

    >>> [round(float(step_decay(0.1, every=10, factor=0.5)(step)), 4) for step in (0, 9, 10, 20)]
    [0.1, 0.1, 0.05, 0.025]
    """
    return optax.exponential_decay(rate, every, factor, staircase=True)


@_once
def exponential(rate: float, every: int, factor: float) -> optax.Schedule:
    """`rate * factor ** (step / every)`, which falls at every step.

    >>> round(float(exponential(0.1, every=10, factor=0.25)(5)), 4)
    0.05
    """
    return optax.exponential_decay(rate, every, factor)


@_once
def cosine(rate: float, steps: int, warmup: int = 0, end: float = 0.0) -> optax.Schedule:
    """A rate that rises linearly from 0 to `rate` in `warmup` steps and falls to `end` by a cosine.

    `end` is reached at `steps`, warm-up included (Loshchilov & Hutter 2017).

    >>> schedule = cosine(1.0, steps=30, warmup=10)
    >>> [round(float(schedule(step)), 2) for step in (0, 5, 10, 20, 30)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    return optax.warmup_cosine_decay_schedule(
        rate if warmup == 0 else 0.0, rate, warmup, steps, end_value=end
    )


@_once
def phases(*parts: tuple[int, float]) -> optax.Schedule:
    """A piecewise constant schedule: `(steps, value)` pairs; the last value stays.

    Training at 1e-3 and then at 1e-4 with a second optimizer would lose Adam's moments. A schedule
    changes the rate, or the weight decay, and keeps the moments.

    >>> rate = phases((100, 1e-3), (50, 1e-4))
    >>> decay = phases((100, 0.0), (50, 1e-3))
    >>> tx = adamw(rate, weight_decay=decay)
    >>> [round(float(rate(step)), 6) for step in (99, 100, 1000)]
    [0.001, 0.0001, 0.0001]
    """
    starts = [sum(steps for steps, _ in parts[:i]) for i in range(1, len(parts))]
    values = [value for _, value in parts]

    def schedule(step: Any) -> Any:
        phase = sum((jnp.asarray(step) >= start).astype(jnp.int32) for start in starts)
        return jnp.asarray(values, jnp.float32)[phase]

    return schedule


@_once
def plateau(factor: float, patience: int, every: int, min_delta: float = 1e-4) -> Any:
    """Multiply the updates by `factor` when the training loss stops falling; last in a chain.

    The loss is averaged over `every` steps (such as an epoch). After `patience` averages without a
    relative fall of `min_delta` the updates are reduced. This depends only on the optimizer's
    state, so a resumed run reduces them at the same step as an uninterrupted run.

    Args:
        factor: multiplies the updates, again at each plateau.
        patience: number of averages without improvement after which the updates are reduced.
        every: number of steps that one average covers.
        min_delta: relative fall of the loss that counts as an improvement.

    >>> tx = chain(sgd(1.0), plateau(factor=0.5, patience=2, every=1))
    >>> params = jnp.zeros(1)
    >>> state = tx.init(params)
    >>> for _ in range(4):  # the loss stays at 1.0
    ...     updates, state = tx.update(jnp.ones(1), state, params, value=1.0)
    >>> updates.tolist()
    [-0.5]
    """
    return optax.contrib.reduce_on_plateau(factor, patience, min_delta, accumulation_size=every)


def decay_mask(params: Params) -> Any:
    """True for the leaves that weight decay applies to: those of two or more axes.

    Biases and the scales of normalisation layers are not decayed.

    >>> decay_mask({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
    """
    return jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, params)


@_once
def l1(strength: float) -> optax.GradientTransformation:
    """Add the gradient of `strength * sum(|w|)` over `decay_mask`; put it before the optimizer.

    >>> params = {"kernel": jnp.array([[2.0, -3.0]])}
    >>> tx = chain(l1(0.1), sgd(1.0))
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> [round(float(u), 4) for u in updates["kernel"][0]]
    [-0.1, 0.1]
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        return jax.tree.map(lambda g, w: g + strength * jnp.sign(w), updates, params), state

    return optax.masked(
        optax.GradientTransformation(lambda _: optax.EmptyState(), update), decay_mask
    )


@_once
def l2(strength: float) -> optax.GradientTransformation:
    """Add the gradient of `strength / 2 * sum(w ** 2)` over `decay_mask`, before the optimizer.

    `torch.optim.Adam(weight_decay=strength)` does the same to all parameters. With Adam, the second
    moments rescale the penalty. For decoupled decay use
    `adamw(rate, weight_decay=strength, mask=decay_mask)` (Loshchilov & Hutter 2019).

    >>> params = {"kernel": jnp.array([[2.0, -3.0]])}
    >>> tx = chain(l2(0.1), sgd(1.0))
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> [round(float(u), 4) for u in updates["kernel"][0]]
    [-0.2, 0.3]
    """
    return optax.add_decayed_weights(strength, mask=decay_mask)


class EmaState(NamedTuple):
    """The averaged parameters, and the number of updates that are averaged."""

    updates: jax.Array
    params: Params


@_once
def ema(decay: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters; put it last in a chain.

    `average = d * average + (1 - d) * params` after each update, with
    `d = min(decay, (1 + updates) / (10 + updates))`, so that the initial parameters are forgotten
    quickly (the warm-up of TensorFlow's ExponentialMovingAverage). `averaged` returns the result.

    >>> tx = chain(sgd(1.0), ema(0.999))
    >>> params = jnp.zeros(1)
    >>> _, state = tx.update(-jnp.ones(1), tx.init(params), params)  # the parameter is 1 now
    >>> round(float(state[1].params[0]), 4)
    0.9
    """

    def init(params: Params) -> EmaState:
        return EmaState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.array, params))

    def update(updates: Any, state: EmaState, params: Any = None) -> tuple[Any, EmaState]:
        new = optax.apply_updates(params, updates)
        d = jnp.minimum(decay, (1.0 + state.updates) / (10.0 + state.updates))
        mixed = jax.tree.map(lambda a, p: (d * a + (1 - d) * p).astype(a.dtype), state.params, new)
        return updates, EmaState(state.updates + 1, mixed)

    return optax.GradientTransformation(init, update)


def averaged(state: "TrainState") -> "TrainState":
    """The state with the averaged parameters in place of the last ones, if `ema` kept any.

    `evaluate`, `predict`, `predictor`, `stack` and `Model` do this to a state themselves, because
    validation uses the averaged parameters too. To use the last parameters instead, give them
    `state._replace(opt_state=())`.

    >>> from jaxops.state import TrainState
    >>> tx, params = chain(sgd(1.0), ema(0.999)), jnp.zeros(1)
    >>> _, kept = tx.update(-jnp.ones(1), tx.init(params), params)
    >>> state = TrainState(jnp.int32(1), jnp.ones(1), kept, {}, jax.random.key(0))
    >>> round(float(averaged(state).params[0]), 4)
    0.9
    """
    kept = states_of(state.opt_state, EmaState)
    return state._replace(params=kept[0].params) if kept else state


class ClipState(NamedTuple):
    """The number of updates that were clipped."""

    clipped: jax.Array


@_once
def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients whose norm over all leaves is above `max_norm` down to it, and count them.

    This is optax's `clip_by_global_norm` (Pascanu et al. 2012, arXiv:1211.5063) with a count, which
    a step reports as "clipped". Put it first in a chain.

    >>> tx = clip_by_global_norm(1.0)
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> [round(float(u), 4) for u in updates], int(state.clipped)
    ([0.6, 0.8], 1)
    """
    clip = optax.clip_by_global_norm(max_norm)

    def update(updates: Any, state: ClipState, params: Any = None) -> tuple[Any, ClipState]:
        norm = optax.tree.norm(updates)
        clipped = (norm > max_norm) & jnp.isfinite(norm)  # gradients that are not finite stay so
        return clip.update(updates, clip.init(params))[0], ClipState(state.clipped + clipped)

    return optax.GradientTransformation(lambda _: ClipState(jnp.zeros((), jnp.int32)), update)


@_once
def skip_not_finite(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Skip the updates whose loss or gradients are not finite, and count them.

    Put it around the whole optimizer. A skipped step changes neither the parameters, nor the state
    of `tx`, nor the model's other variables (batch statistics). Only the step number advances, so
    that the next step has another batch. Skipped steps are reported as "skipped"; if the loss of a
    step is not finite, the step counts in no other metric. Without this wrapper `fit` stops at the
    first loss that is not finite.

    This is `optax.apply_if_finite` without a limit, and it checks the loss (`value=`) as well.

    >>> tx = skip_not_finite(sgd(0.1))
    >>> updates, state = tx.update(jnp.array([jnp.nan, 1.0]), tx.init(jnp.zeros(2)))
    >>> updates.tolist(), int(state.total_notfinite)
    ([0.0, 0.0], 1)
    """
    guard = optax.apply_if_finite(tx, max_consecutive_errors=2**31 - 1)

    def update(updates: Any, state: Any, params: Any = None, **given: Any) -> tuple[Any, Any]:
        good = jnp.isfinite(given.get("value", 0.0))
        updates = jax.tree.map(lambda g: jnp.where(good, g, jnp.nan), updates)
        return guard.update(updates, state, params, **given)

    return optax.GradientTransformationExtraArgs(guard.init, update)


class LossScaleState(NamedTuple):
    """The factor of the loss, the number of finite steps in a row, and the optimizer's state."""

    scale: jax.Array
    good_steps: jax.Array
    guarded: optax.ApplyIfFiniteState


MAX_LOSS_SCALE = 2.0**24  # gradients that are all zero would let it grow without end


@_once
def loss_scale(
    tx: optax.GradientTransformation, initial: float = 2.0**15, every: int = 2000
) -> optax.GradientTransformationExtraArgs:
    """Scale the loss dynamically, so that small gradients do not vanish in float16.

    A step multiplies the loss by the scale and divides the gradients by it, so `tx` sees unscaled
    gradients. Updates that are not finite are skipped as by `skip_not_finite`, and each halves the
    scale, which stays at least 1. After `every` finite steps in a row the scale is doubled. A step
    reports the scale as "loss_scale".

    Args:
        tx: the whole optimizer.
        initial: the first scale; scaling by a power of two is exact.
        every: number of finite steps in a row that double the scale.

    References:
        Micikevicius et al. 2018, arXiv:1710.03740, section 3.2.

    >>> tx = loss_scale(sgd(0.1), initial=8.0, every=2)
    >>> state, scales = tx.init(jnp.zeros(1)), []
    >>> for gradient in (1.0, 1.0, jnp.inf, 1.0):
    ...     _, state = tx.update(jnp.array([gradient]), state)
    ...     scales.append(float(state.scale))
    >>> scales
    [8.0, 16.0, 8.0, 8.0]
    """
    guard = skip_not_finite(tx)

    def init(params: Params) -> LossScaleState:
        start = jnp.asarray(initial, jnp.float32), jnp.zeros((), jnp.int32)
        return LossScaleState(*start, guard.init(params))

    def update(
        updates: Any, state: LossScaleState, params: Any = None, **given: Any
    ) -> tuple[Any, LossScaleState]:
        updates, guarded = guard.update(updates, state.guarded, params, **given)
        good = jnp.where(guarded.last_finite, state.good_steps + 1, 0)
        factor = jnp.where(guarded.last_finite, jnp.where(good == every, 2.0, 1.0), 0.5)
        scale = jnp.clip(state.scale * factor, 1.0, MAX_LOSS_SCALE)
        return updates, LossScaleState(scale, good % every, guarded)

    return optax.GradientTransformationExtraArgs(init, update)


def states_of(opt_state: Any, kind: type) -> list[Any]:
    """All states of one type in an optimizer's state, such as `LossScaleState`.

    >>> tx = chain(clip_by_global_norm(1.0), sgd(0.1))
    >>> [int(state.clipped) for state in states_of(tx.init(jnp.zeros(2)), ClipState)]
    [0]
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]
