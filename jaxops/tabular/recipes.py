"""The default options of training, for each module."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxops import optim
from jaxops.tabular.models import FTTransformer, ModernNCA, RealMLP, ResNet
from jaxops.tabular.models.real_mlp import cosines, flat_cosine
from jaxops.task import Params
from jaxops.train.settings import EarlyStopping, chosen

SMOOTHING = 0.1  # of the labels in RealMLP


def recipe(
    count: int, left: float, method: Any = None, classes: bool = True, **given: Any
) -> dict[str, Any]:
    """The default options of `jaxops.fit` for a table of so many train rows, with the user's own.

    Those of `RealMLP` are tuned on many tables (Holzmüller et al. 2024), those of `FTTransformer`
    and `ModernNCA` their authors' defaults.

    Args:
        count: number of train rows.
        left: seconds until training stops.
        method: the module; by default `TabM()`.
        classes: whether the label names classes.
        **given: the user's options, in place of the defaults.

    >>> recipe(20_000, 60.0)["batch_size"]
    256
    """
    options = {
        "optimizer": optim.adamw(2e-3, weight_decay=3e-4),
        "batch_size": min(count, 32 if count < 2_000 else 256 if count < 100_000 else 1024),
        "epochs": 200,
        "early_stopping": EarlyStopping("loss", patience=10, seconds=left),
    }
    patient = {"early_stopping": EarlyStopping("loss", patience=16, seconds=left)}
    if isinstance(method, RealMLP):
        options |= {"batch_size": min(count, 256), "epochs": 256}
        options["early_stopping"] = EarlyStopping("loss", patience=256, seconds=left)
        steps = steps_of(count, chosen(options, given))
        options["optimizer"] = real_mlp(0.04 if classes else 0.2, steps)
    elif isinstance(method, FTTransformer):
        options |= patient | {"optimizer": decayed(1e-4, 1e-5)}
    elif isinstance(method, ResNet):
        options |= patient | {"optimizer": decayed(3e-4, 1e-5)}
    elif isinstance(method, ModernNCA):
        options |= patient | {"optimizer": decayed(1e-2, 2e-4)}
        options["batch_size"] = min(count, 1024)
    elif getattr(method, "embedding", None) is not None:
        options |= patient | {"optimizer": clipped(decayed(1e-3, 3e-4))}
    return chosen(options, given)


def steps_of(count: int, options: dict[str, Any]) -> int:
    """The number of updates that options of `jaxops.fit` make on so many rows.

    >>> steps_of(1000, {"batch_size": 300, "epochs": 2})
    8
    """
    if options.get("steps") is not None:
        return int(options["steps"])
    return options["epochs"] * math.ceil(count / options["batch_size"])


def is_decayed(params: Params) -> Any:
    """True for the leaves that weight decay applies to: kernels and tables.

    Biases, norms, and the frequencies, phases and weights by which numbers are embedded are not.

    >>> is_decayed({"hidden_0": {"kernel": 0, "bias": 0}, "hidden_1_kernel": 0, "signs": 0})
    {'hidden_0': {'bias': False, 'kernel': True}, 'hidden_1_kernel': True, 'signs': True}
    """
    never = ("bias", "scale", "frequency", "frequencies", "phases", "weight", "activation")

    def decays(path: Any, leaf: Any) -> bool:
        return not str(path[-1].key).endswith(never)

    return jax.tree_util.tree_map_with_path(decays, params)


@functools.lru_cache(maxsize=64)
def decayed(rate: float, decay: float) -> optax.GradientTransformation:
    """AdamW, without decay of what `is_decayed` leaves out.

    >>> decayed(1e-3, 0.1) is decayed(1e-3, 0.1)
    True
    """
    return optax.adamw(rate, weight_decay=decay, mask=is_decayed)


@functools.lru_cache(maxsize=64)
def clipped(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer whose gradients are scaled down to a norm of 1, as TabM is trained.

    >>> clipped(decayed(1e-3, 0.1)) is clipped(decayed(1e-3, 0.1))
    True
    """
    return optim.chain(optim.clip_by_global_norm(1.0), tx)


@functools.lru_cache(maxsize=64)
def real_mlp(rate: float, steps: int, decay: float = 0.02) -> optax.GradientTransformation:
    """The optimizer of RealMLP: Adam with rates of each kind of parameter, in waves.

    The rate rises and falls by `cosines`, four times; that of the scaling layer is 6 times as high,
    that of biases, activations and embeddings of numbers a tenth. Decay, which biases do not have,
    falls by `flat_cosine`. The decay of squared gradients is 0.95.

    Args:
        rate: the highest learning rate.
        steps: of training.
        decay: the weight decay.

    References:
        Holzmüller et al. 2024, arXiv:2407.04491.
    """
    not_biases = functools.partial(jax.tree_util.tree_map_with_path, _is_no_bias)
    return optax.chain(
        optax.scale_by_adam(b2=0.95),
        optax.add_decayed_weights(_scheduled(flat_cosine, decay, steps), mask=not_biases),
        optax.stateless(lambda updates, params: _by_kind(updates)),
        optax.scale_by_learning_rate(_scheduled(cosines, rate, steps)),
    )


def _scheduled(shape: Callable[[Any], Any], most: float, steps: int) -> optax.Schedule:
    return lambda step: most * shape(step / steps)


def _is_no_bias(path: Any, leaf: Any) -> bool:
    return not str(path[-1].key).endswith("bias")


def _by_kind(updates: Params) -> Params:
    """Updates times the factor of the learning rate of their kind of parameter."""

    def one(path: Any, update: Any) -> Any:
        name = str(path[0].key)
        if name == "scale":
            return update * 6
        slow = name.startswith("numbers_") or name.endswith(("_bias", "_activation"))
        return update * 0.1 if slow else update

    return jax.tree_util.tree_map_with_path(one, updates)
