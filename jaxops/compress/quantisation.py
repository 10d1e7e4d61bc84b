"""Parameters in 4, 8 or 16 bits, products in int8, and training that knows of the rounding."""

import functools
import re
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.compress.networks import Network, changed, check_floats, path_of
from jaxops.model.finished import Model, columns_of
from jaxops.nn.packed import LIMITS, Packed, int8_product, pack
from jaxops.nn.product import Dense
from jaxops.task import Array, Batch, Extra, Key, Out, Params, Task, recorded

FORMS = {8: "int8", 4: "int4", "bf16": "bf16", "fp8": "fp8"}
SCALES = ("max", "percentile", "mse")
PRODUCTS = ("fastest", "int8")
TABLES = (
    *("embedding", "tokens", "positions", "types", "table", "categories", "own", "items"),
    "signs",  # of the members of TabM
)
SMALL = 256  # elements below which a parameter stays as it is
PERCENTILE = 99.9
SHARES = np.linspace(1.0, 0.3, 36, dtype=np.float32)  # of the largest value, which "mse" tries
CALIBRATED = 1024  # rows from which the scales of inputs are computed
SAMPLE = 2**16  # values of the inputs of a layer that are kept
ROWS, TURNS = 64, 20  # of the products that are timed


def quantise(
    model: Model,
    bits: int | str = 8,
    *,
    scales: str = "mse",
    keep: str = "",
    activations: Any = None,
    product: str | None = None,
) -> Model:
    """A model whose kernels and tables have 4, 8 or 16 bits for each number, in memory and file.

    Each output channel of a kernel, and each row of a table (an item, a token), has its own scale:
    w is stored as q = round(w / scale) and read as q * scale. Kernels are the parameters whose
    names end in "kernel"; tables are named "embedding", "tokens", "items" and so on, see `TABLES`.
    Biases, norms, and parameters with fewer than 256 numbers stay float32.

    By default only the parameters are rounded, and the products are of float32. With `activations`
    the inputs of `jaxops.nn.Dense` layers are rounded to int8 as well, with one scale for a layer,
    and the products are int8 with sums in int32, in those layers where that is faster on this
    machine; `about["compressed"]` has the times. Layers in a loop (`nn.scan`, a recurrence) and
    those of other classes keep their products of float32.

    Args:
        model: a trained model of any room: a task with its state, a `Blend`, a `Recommender`, a
            `Forecaster`, and what contains them.
        bits: 8 (int8), 4 (int4, two in a byte), "bf16" (bfloat16, without scales) or "fp8"
            (float8_e4m3fn).
        scales: "max" maps the largest number of a channel to the largest stored one, so that no
            number moves by more than half of its scale; "percentile" the 99.9th percentile of the
            absolute values, and cuts off larger ones; "mse" takes of 36 shares of the largest
            number (30 to 100 %) the one with the least squared error. It has no effect on "bf16".
        keep: parameters to leave as they are: a regular expression that is searched for in paths
            such as "logits/kernel"; by default none.
        activations: data that the model can predict, whose first 1,024 rows say how large the
            inputs of the layers are; for bits=8.
        product: with `activations`, "fastest" (the default) or "int8", for all layers.

    Returns:
        A model that predicts, saves, loads, serves and exports as the original does. It cannot be
        trained; see `aware`. `about["compressed"]` says what was done. The validation figures of
        `about` are left out, since they are of the model before.

    Raises:
        ValueError: other arguments; a model without such parameters, such as trees, or one that is
            quantised already.

    References:
        Jacob et al. 2018, arXiv:1712.05877; Nagel et al. 2021, arXiv:2106.08295.

    >>> from jaxops import compress, tabular
    >>> rows = {"age": np.arange(80.0) % 40, "left": np.arange(80) % 40 < 20}
    >>> model = tabular.fit(rows, tabular.MLP((64,)), label="left", epochs=3, progress=False)
    >>> small = compress.quantise(model)
    >>> np.allclose(small.predict(rows).probabilities, model.predict(rows).probabilities, atol=0.01)
    True
    >>> kernel = small.state.params["hidden_0"]["kernel"]
    >>> type(kernel).__name__, str(kernel.values.dtype)
    ('Packed', 'int8')
    """
    form = _checked(bits, scales, activations, product)
    chosen: dict[str, Array] = {}
    layers: list[dict[str, Any]] = []
    if activations is not None:
        for name, shape, scale in _input_scales(model, activations, scales, keep):
            layers.append(_timed(name, shape, product))
            if layers[-1]["product"] == "int8":
                chosen[name] = scale
    done: list[str] = []

    def one(name: str, leaf: Any, axes: tuple[int, ...]) -> Packed:
        done.append(name)
        made = packed(jnp.asarray(leaf), form, axes, scales)
        return replace(made, inputs=chosen.get(name))

    def rounded(part: Network) -> Network:
        return part._replace(params=_changed(part.params, keep, one))

    step: dict[str, Any] = {"method": "quantise", "bits": bits, "scales": scales, "arrays": done}
    step |= {"layers": layers} if layers else {}
    small = changed(replace(model, task=_without_rounding(model.task)), rounded, step, alike=True)
    if not done:
        raise ValueError(
            f"model must have kernels or tables of float32 with {SMALL} numbers or more, other "
            f"than keep={keep!r}, got none in {type(model.task).__name__}"
        )
    return small


def aware(model: Model, bits: int | str = 8, *, scales: str = "mse", keep: str = "") -> Model:
    """A model that trains as if it were quantised already, for `jaxops.fit` or a room's `update`.

    In its loss and its predictions the parameters are rounded as `quantise` would round them, with
    new scales in each step. The gradient passes the rounding as if it were the identity (the
    straight-through estimator), so the parameters themselves stay float32. After the training,
    `quantise` with the same arguments gives the model that was trained for.

    Args:
        model: a model with a task and its state.
        bits: see `quantise`.
        scales: see `quantise`; "mse" takes 36 passes over the parameters in each step.
        keep: see `quantise`.

    Raises:
        ValueError: other arguments; a closed form; a model that is quantised already.

    References:
        Bengio et al. 2013, arXiv:1308.3432; Jacob et al. 2018, arXiv:1712.05877.

    >>> from jaxops import compress, tabular
    >>> rows = {"age": np.arange(80.0) % 40, "left": np.arange(80) % 40 < 20}
    >>> model = tabular.fit(rows, tabular.MLP((64,)), label="left", epochs=3, progress=False)
    >>> further = tabular.update(compress.aware(model, bits=4), rows, epochs=1, progress=False)
    >>> small = compress.quantise(further, bits=4)
    >>> bool(np.allclose(small.predict(rows).probabilities, further.predict(rows).probabilities,
    ...                  atol=1e-5))
    True
    """
    form = _checked(bits, scales, None, None)
    task, state = model.trained()
    check_floats(state.params)
    about = {name: value for name, value in model.about.items() if name != "validation"}
    return replace(model, task=rounding(_without_rounding(task), form, scales, keep), about=about)


@recorded
def rounding(task: Task, form: str, scales: str, keep: str) -> Task:
    """A task at rounded parameters, whose gradient passes the rounding; see `aware`.

    Args:
        task: the task itself, made by a function of jaxops.
        form: see `Packed`.
        scales: see `quantise`.
        keep: see `quantise`.

    >>> from jaxops import tabular
    >>> task = rounding(tabular.classifier(tabular.MLP((8,)), features=4), "int8", "max", "")
    >>> task.recipe[0].__name__, task.classes
    ('rounding', ('0', '1'))
    """

    def one(name: str, leaf: Array, axes: tuple[int, ...]) -> Array:
        still = jax.lax.stop_gradient(leaf)
        return leaf + (packed(still, form, axes, scales).unbox() - still)

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        return task.loss(_changed(params, keep, one), extra, batch, key, train)

    def predict(params: Params, extra: Extra, batch: Batch) -> Any:
        return task.predict(_changed(params, keep, one), extra, batch)

    return task._replace(loss=loss, predict=predict, sample=None)


def _without_rounding(task: Any) -> Any:
    """The task of which `aware` made another; anything else as it is."""
    if not isinstance(task, Task) or not task.recipe or task.recipe[0] is not rounding:
        return task
    return dict(task.recipe[1])["task"]


def axes_of(name: str, leaf: Any, keep: str = "") -> tuple[int, ...] | None:
    """The axes of a parameter that share a scale; None if it stays as it is.

    They are all but the last of a kernel, and of one with 3 or 5 axes also not the first, which are
    members or layers; and the last of a table.

    Args:
        name: the path of the parameter, such as "hidden/kernel".
        leaf: the parameter.
        keep: see `quantise`.

    >>> axes_of("conv/kernel", np.ones((3, 3, 8, 32), np.float32))
    (0, 1, 2)
    >>> axes_of("embedding/tokens", np.ones((100, 8), np.float32))
    (1,)
    >>> axes_of("logits/bias", np.ones(1000, np.float32)) is None
    True
    """
    last, axes = name.rpartition("/")[2], np.ndim(leaf)
    if axes < 2 or leaf.dtype != jnp.float32 or np.size(leaf) < SMALL:
        return None
    if keep and re.search(keep, name):
        return None
    if last == "kernel" or last.endswith("_kernel"):
        return tuple(range(axes % 2, axes - 1))
    return (axes - 1,) if last in TABLES else None


def _changed(params: Params, keep: str, change: Any) -> Params:
    """The parameters with `change(name, leaf, axes)` in place of those that are quantised."""

    def one(path: Any, leaf: Any) -> Any:
        name = path_of(path)
        axes = axes_of(name, leaf, keep)
        return leaf if axes is None else change(name, leaf, axes)

    return jax.tree_util.tree_map_with_path(one, params)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def packed(x: Array, form: str, axes: tuple[int, ...], scales: str) -> Packed:
    """An array in fewer bits, with scales of its own.

    Args:
        x: float32.
        form: see `Packed`.
        axes: the axes that share a scale.
        scales: see `quantise`.

    >>> packed(jnp.array([[1.0, 4.0], [-2.0, 8.0]]), "int8", (0,), "max").values.tolist()
    [[64, 64], [-127, 127]]
    """
    if form == "bf16":
        return pack(x, form)
    size = jnp.abs(x)
    largest = size.max(axes, keepdims=True)
    if scales == "percentile":
        share = jnp.percentile(size, PERCENTILE, axis=axes, keepdims=True)
        largest = jnp.where(share > 0, share, largest)
    scale = jnp.where(largest > 0, largest / LIMITS[form], 1.0)
    if scales == "mse":

        def error(share: Array) -> Array:
            wrong = pack(x, form, scale * share).unbox() - x
            return jnp.square(wrong).sum(axes, keepdims=True)

        scale *= jnp.asarray(SHARES)[jax.lax.map(error, SHARES).argmin(0)]
    return pack(x, form, scale)


def _checked(bits: Any, scales: Any, activations: Any, product: Any) -> str:
    """The form of so many bits; raises `ValueError` for arguments that do not fit."""
    if bits not in FORMS:
        raise ValueError(f'bits must be 8, 4, "bf16" or "fp8", got {bits!r}')
    if scales not in SCALES:
        raise ValueError(f"scales must be one of {', '.join(SCALES)}, got {scales!r}")
    if activations is not None and bits != 8:
        raise ValueError(f"bits must be 8 for activations, whose products are of int8, got {bits}")
    if product is not None and activations is None:
        raise ValueError(f"product must be None without activations, got {product!r}")
    if product not in (None, *PRODUCTS):
        raise ValueError(f"product must be one of {', '.join(PRODUCTS)}, got {product!r}")
    return FORMS[bits]


def _input_scales(
    model: Model, data: Any, scales: str, keep: str
) -> list[tuple[str, tuple[int, int], Array]]:
    """The name and shape of each kernel of a layer that is read, and the scale of its inputs ()."""
    task, state = model.trained()
    task = _without_rounding(task)
    columns = {name: x[:CALIBRATED] for name, x in columns_of(model, data).items()}
    names: dict[int, str] = {}
    _changed(state.params, keep, lambda name, leaf, axes: names.setdefault(id(leaf), name))
    inputs: dict[str, list[np.ndarray]] = defaultdict(list)
    shapes: dict[str, tuple[int, int]] = {}

    def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, Dense) and context.method_name == "__call__":
            kernel: Any = context.module.get_variable("params", "kernel")
            name, x = names.get(id(kernel)), args[0]
            if name is not None and not isinstance(x, jax.core.Tracer):
                values = np.asarray(x, np.float32).ravel()
                inputs[name].append(values[:: -(-len(values) // SAMPLE)])
                shapes[name] = kernel.shape
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):  # not compiled, so that the layers see numbers
        task.predict(state.params, state.extra, columns)
    if not inputs:
        raise ValueError(
            "model must have jaxops.nn.Dense layers outside of loops for activations, got none"
        )
    found = []
    for name, values in inputs.items():
        made = packed(jnp.asarray(np.concatenate(values)), "int8", (0,), scales)
        found.append((name, shapes[name], made.scale.reshape(())))
    return found


def _timed(name: str, shape: tuple[int, int], product: str | None) -> dict[str, Any]:
    """What is told of the product of a layer: its times, and which was chosen."""
    int8, float32 = _milliseconds(*shape)
    faster = "int8" if product == "int8" or int8 < float32 else "float32"
    times = {"int8 ms": int8, "float32 ms": float32}
    return {"layer": name.rpartition("/")[0], "shape": [*shape], **times, "product": faster}


@functools.cache
def _milliseconds(inputs: int, outputs: int) -> tuple[float, float]:
    """The median times of 64 rows times an int8 kernel, by products of int8 and of float32."""
    draw = np.random.default_rng(0)
    x = jnp.asarray(draw.normal(size=(ROWS, inputs)), jnp.float32)
    weights = jnp.asarray(draw.normal(size=(inputs, outputs)), jnp.float32)
    kernel = replace(packed(weights, "int8", (0,), "max"), inputs=jnp.float32(0.03))
    programs = (jax.jit(int8_product), jax.jit(lambda x, kernel: x @ kernel.unbox()))
    times: list[list[float]] = [[], []]
    for turn in range(TURNS + 2):
        for program, own in zip(programs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(x, kernel))
            if turn > 1:  # the first compile
                own.append(time.perf_counter() - start)
    int8, float32 = (round(1e3 * float(np.median(own)), 4) for own in times)
    return int8, float32
