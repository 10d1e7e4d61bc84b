"""A program compiled for one batch shape, with the parameters inside: `predictor`."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.checks import prepare, rows
from jaxops.devices import hosts
from jaxops.devices.plans import single
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Batch, Task
from jaxops.train.feed import check_kind, check_task

# XLA's CPU backend may fuse a whole small network into one loop, with the conversion of its bytes
# inside a product: 1,024 predictions of the 784-128-10 MLP for MNIST took 1.8 ms with this fusion,
# and 0.5 ms with the products compiled separately. Networks with convolutions are slower with
# separate products, so `predictor` tries both.
PREDICTOR_OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "cpu": (
        {},
        {
            "xla_cpu_experimental_ynn_fusion_type": (
                "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
            )
        },
    )
}


class Observes(Protocol):
    """What counts the rows that a program predicts; see `jaxops.monitor.Observer`."""

    def empty(self) -> Any:
        """The sketch of no rows, on the device: a tree of arrays."""

    def update(self, sketch: Any, columns: Batch, outputs: Any, mask: Any) -> Any:
        """The sketch with more rows; a pure function."""

    def run(self, program: Callable[..., tuple[Any, Any]], *arguments: Any) -> Any:
        """The outputs of `program(sketch, *arguments)`, whose second result is the next sketch."""


def predictor(
    task: Task, state: TrainState, inputs: Mapping[str, Any], observer: Observes | None = None
) -> Callable[..., Any]:
    """A compiled function that predicts as many rows as `inputs` has, with the least latency.

    The parameters are constants of the program, so XLA can choose their memory layout. On a CPU two
    programs are compiled, whose results agree up to rounding, and the one that is faster for these
    `inputs` is kept. For single rows on a CPU,
    `jax.config.update("jax_cpu_enable_async_dispatch", False)` before JAX is first used saves
    another microsecond or two; for many rows it is slower.

    Args:
        task: the task.
        state: its state, which is copied to the first device.
        inputs: columns of the shapes and dtypes that will be predicted; targets can be left out.
        observer: of `jaxops.monitor`, whose sketch goes through the program as a donated argument
            and counts the rows there; the predictions are the same.

    Returns:
        A function from columns of these shapes and dtypes to predictions. It does not check values.
        With an observer its second argument is the number of rows to count, by default all of them;
        the others are padding.

    Raises:
        ValueError: columns of other shapes or dtypes than the task needs. The returned function
            raises it for columns of other shapes or dtypes than `inputs`.
        RuntimeError: in a process that is forked from one that uses JAX, also from the returned
            function.

    >>> from jaxops import init_state, optim, vision
    >>> task = vision.classifier(vision.MLP())
    >>> image = {"image": np.zeros((1, 28, 28, 1), np.uint8)}
    >>> state = init_state(task, optim.adam(1e-3), seed=0, batch=image)
    >>> classify = predictor(task, state, image)
    >>> classify(image).shape
    (1, 10)
    """
    hosts.check_fork()
    check_task(task)
    check_kind(inputs, "inputs")
    inputs = prepare(task, inputs, targets=False)
    others = {"mask", *(column.name for column in task.columns if column.target)}
    inputs = {name: value for name, value in inputs.items() if name not in others}
    state = averaged(state)
    variables = hosts.gathered((state.params, state.extra))
    params, extra = jax.device_put(variables, single().whole())
    if observer is None:
        program = jax.jit(lambda batch: task.predict(params, extra, batch))
        compiled = _fastest(program.lower(inputs), lambda: (inputs,))
    else:
        counting = _observed(lambda batch: task.predict(params, extra, batch), observer)
        every = np.int32(rows(inputs))
        first: Any = observer.empty()
        lowered = counting.lower(first, inputs, every)
        compiled = _fastest(lowered, lambda: (observer.empty(), inputs, every))

    def call(columns: Mapping[str, Any], count: int | None = None) -> Any:
        hosts.check_fork()
        try:
            if observer is None:
                outputs = compiled(columns)
            else:
                real = every if count is None else np.int32(count)
                outputs = observer.run(compiled, columns, real)
        except TypeError as error:
            raise ValueError(
                f"columns must be {_shapes(inputs)}, got {_shapes(columns)}"
            ) from error
        return np.asarray(outputs) if isinstance(outputs, jax.Array) else jax.device_get(outputs)

    return call


def _observed(predict: Callable[[Batch], Any], observer: Observes) -> Any:
    """`(sketch, batch, rows) -> (outputs, sketch)`, jitted; the first sketch is donated."""

    def function(sketch: Any, batch: Batch, count: Any) -> tuple[Any, Any]:
        outputs = predict(batch)
        # behind the barrier nothing is fused with what predicts, whose bits then stay as they are
        seen, told = jax.lax.optimization_barrier((batch, outputs))
        real = jnp.arange(rows(batch), dtype=jnp.int32) < count
        return outputs, observer.update(sketch, seen, told, real)

    return jax.jit(function, donate_argnums=0)


def _fastest(lowered: Any, arguments: Callable[[], tuple[Any, ...]]) -> Any:
    """The fastest of the programs compiled with each of the options in `PREDICTOR_OPTIONS`."""
    options = PREDICTOR_OPTIONS.get(jax.default_backend(), ({},))
    programs = [lowered.compile(compiler_options=option) for option in options]

    def seconds(program: Any) -> float:
        given = arguments()
        start = time.perf_counter()
        jax.block_until_ready(program(*given))
        return time.perf_counter() - start

    if len(programs) == 1:
        return programs[0]
    times = [[seconds(program) for program in programs] for _ in range(10)]  # taking turns
    return programs[int(np.median(times, axis=0).argmin())]


def _shapes(columns: Any) -> str:
    if not isinstance(columns, Mapping):
        return f"a {type(columns).__name__}"
    return ", ".join(
        f"{name} {v.dtype}{v.shape}" if hasattr(v, "dtype") else f"{name} as a {type(v).__name__}"
        for name, v in columns.items()
    )
