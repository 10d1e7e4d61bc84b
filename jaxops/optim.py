"""Optimizers and schedules: optax's own, and the few that optax lacks.

Everything here returns a plain `optax.GradientTransformation` or schedule, and any other one can
be given to `jaxops.fit` as well. Those here are made once per set of arguments, so that two equal
set-ups share one compilation. `optax.chain` puts them together:

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
        bound = signature.bind(*args, **kwargs)  # by name or by place: the same call
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
    `1 - b2^t` as it stands, and loses five of seven digits at t = 1: its first steps are off by
    1e-5. Here it is `-expm1(t log b2)`, and multiplying by its inverse is a little faster, too.

    Args:
        learning_rate: a number, or a schedule of the step.
        b1: decay of the mean of the gradients.
        b2: decay of the mean of their squares.
        eps: added to the root.

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
    """`rate * factor ** (step / every)`, without stairs.

    >>> round(float(exponential(0.1, every=10, factor=0.25)(5)), 4)
    0.05
    """
    return optax.exponential_decay(rate, every, factor)


@_once
def cosine(rate: float, steps: int, warmup: int = 0, end: float = 0.0) -> optax.Schedule:
    """From 0 up to `rate` in a straight line over `warmup` steps, then down to `end` by a cosine.

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

    To train at 1e-3 and then tune at 1e-4 with a second optimizer loses Adam's moments. A schedule
    changes the rate, or the weight decay, and keeps them.

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
    """Multiply the updates by `factor` when the training loss stops falling; goes last in a chain.

    The loss is averaged over `every` steps (such as an epoch); after `patience` averages without a
    relative fall of `min_delta` the updates are reduced. This depends on the optimizer's state
    alone, so a resumed run reduces them where an uninterrupted run does.

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
    """Add the gradient of `strength * sum(|w|)` over `decay_mask`; goes before the optimizer.

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
    """Add the gradient of `strength / 2 * sum(w ** 2)` over `decay_mask`; before the optimizer.

    This is what `torch.optim.Adam(weight_decay=strength)` does, to all parameters: with Adam the
    penalty is rescaled by the second moments. Decoupled decay is
    `adamw(rate, weight_decay=strength, mask=decay_mask)` (Loshchilov & Hutter 2019).

    >>> params = {"kernel": jnp.array([[2.0, -3.0]])}
    >>> tx = chain(l2(0.1), sgd(1.0))
    >>> updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    >>> [round(float(u), 4) for u in updates["kernel"][0]]
    [-0.2, 0.3]
    """
    return optax.add_decayed_weights(strength, mask=decay_mask)


class EmaState(NamedTuple):
    """The averaged parameters, and how many updates they have seen."""

    updates: jax.Array
    params: Params


@_once
def ema(decay: float) -> optax.GradientTransformation:
    """Keep an exponential moving average of the parameters; goes last in a chain.

    `average = d * average + (1 - d) * params` after each update, with
    `d = min(decay, (1 + updates) / (10 + updates))`, so that the initial parameters are forgotten
    quickly (the warm-up of TensorFlow's ExponentialMovingAverage). `averaged` gives the result.

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

    `evaluate`, `predict`, `predictor`, `stack` and `Model` do this to a state themselves, so that
    what was validated is what is used. The last parameters are those of
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
    """How many updates were clipped."""

    clipped: jax.Array


@_once
def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """Scale gradients whose norm over all leaves is above `max_norm` down to it, and count them.

    optax's own (Pascanu et al. 2012, arXiv:1211.5063) with a count, which a step reports as
    "clipped". Goes first in a chain.

    >>> tx = clip_by_global_norm(1.0)
    >>> updates, state = tx.update(jnp.array([3.0, 4.0]), tx.init(jnp.zeros(2)))
    >>> [round(float(u), 4) for u in updates], int(state.clipped)
    ([0.6, 0.8], 1)
    """
    clip = optax.clip_by_global_norm(max_norm)

    def update(updates: Any, state: ClipState, params: Any = None) -> tuple[Any, ClipState]:
        norm = optax.tree.norm(updates)
        clipped = (norm > max_norm) & jnp.isfinite(norm)  # what is not finite stays so
        return clip.update(updates, clip.init(params))[0], ClipState(state.clipped + clipped)

    return optax.GradientTransformation(lambda _: ClipState(jnp.zeros((), jnp.int32)), update)


@_once
def skip_not_finite(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Skip the updates whose loss or gradients are not finite, and count them.

    Wraps the whole optimizer. A skipped step changes neither the parameters, nor the state of
    `tx`, nor the model's other variables (batch statistics); only the step number advances, so
    that the next batch is another one. It is reported as "skipped"; if its loss is not finite, it
    counts in no other metric. Without this wrapper the first such loss ends a run of `fit`.

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
    """The factor of the loss, the number of finite steps in a row, and the guarded state."""

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
    gradients. Updates that are not finite are skipped as by `skip_not_finite` and halve the scale,
    to 1 at least; `every` finite steps in a row double it. A step reports it as "loss_scale".

    Args:
        tx: the whole optimizer.
        initial: the scale to begin with; a power of two loses no digit.
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
    """The states of one kind in an optimizer's state, such as `LossScaleState`.

    >>> tx = chain(clip_by_global_norm(1.0), sgd(0.1))
    >>> [int(state.clipped) for state in states_of(tx.init(jnp.zeros(2)), ClipState)]
    [0]
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, kind))
    return [node for node in nodes if isinstance(node, kind)]
