"""The program that `fit` runs: many steps in one call, or one step if a loop would be slow."""

import functools
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxops.devices.plans import Plan
from jaxops.nn.product import computing
from jaxops.state import TrainState
from jaxops.step import many_steps, train_step
from jaxops.task import Task
from jaxops.transforms import gathered

# A call makes one step if a step in a loop takes more than this many times as long as alone. 1.0 to
# 1.3 is usual on a CPU; 7 to 100 occurs when XLA uses its naive code for a convolution.
SLOW_IN_LOOPS = 3.0

# Options of XLA for the train program, by platform. By default LLVM uses half of an AVX-512
# register; whole ones make steps 0 to 8 % faster (docs/performance.md).
COMPILER_OPTIONS: dict[str, dict[str, Any]] = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
# For "fsdp" on a CPU, so that it saves memory as on an accelerator. With its defaults XLA's CPU
# compiler is a bit faster, but it joins all gradients in one sum, gathers parameters before a loop,
# and schedules for threads.
LITTLE_MEMORY = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_disable_hlo_passes": "cpu-all-reduce-combiner,while-loop-invariant-code-motion",
}

# program -> shapes of its batches -> whether it loops
_CHOSEN: weakref.WeakKeyDictionary[Any, dict[Any, bool]] = weakref.WeakKeyDictionary()


@functools.lru_cache(maxsize=32)
def train_program(
    task: Task,
    tx: optax.GradientTransformation,
    plan: Plan,
    compute: str,
    take: Callable[[Any, Any], Any],
    accumulate: int = 1,
) -> Callable[..., tuple[TrainState, Any]]:
    """Many steps in one call; equal arguments give the same function, which compiles once."""
    # one trace serves for the shapes, for the loop's body and for the form without a loop
    step = functools.partial(train_step, gathered(task, plan), tx, accumulate=accumulate)
    update = jax.jit(step, inline=True)

    def run(state: TrainState, fixed: Any, fed: Any, count: Any) -> tuple[TrainState, Any]:
        def step(state: TrainState, chosen: Any) -> tuple[TrainState, Any]:
            batch = jax.lax.with_sharding_constraint(take(fixed, chosen), plan.batch_sharding())
            with computing(compute):
                return update(state, batch)

        state, metrics = many_steps(step)(state, fed, count)
        metrics = jax.lax.with_sharding_constraint(metrics, plan.whole())  # all processes read them
        return jax.lax.with_sharding_constraint(state, plan.state_shardings(state)), metrics

    platform = plan.mesh.devices.flat[0].platform
    options = dict(COMPILER_OPTIONS.get(platform, {}))
    if platform == "cpu" and "fsdp" in plan.mesh.axis_names:
        options |= LITTLE_MEMORY
    return jax.jit(run, donate_argnums=0, compiler_options=options)


def loops_well(program: Any, state: TrainState, plain: Any, looped: Any) -> bool:
    """Whether a step on a CPU takes about as long inside a loop as outside one.

    This is measured for convolutions. Other operations, and the convolutions of `jaxops.nn`, are as
    fast inside a loop as outside, so nothing is measured for them. The steps are made on a copy of
    the state. A process measures once for all equal runs. A resumed run does not measure again,
    because the two forms may round differently.

    Args:
        program: the result of `train_program`.
        state: the state, which is not changed.
        plain: the program's arguments for one step without a loop, without the state.
        looped: the same for two steps in a loop.
    """
    if not _convolves(program.trace(state, *looped).jaxpr.jaxpr):
        return True
    chosen = _CHOSEN.setdefault(program, {})
    key = tuple(leaf.shape for leaf in jax.tree.leaves(looped))
    if key in chosen:
        return chosen[key]
    copy = jax.tree.map(jnp.copy, state)

    def seconds(*calls: Any) -> float:
        nonlocal copy
        start = time.perf_counter()
        for arguments in calls:
            copy, _ = program(copy, *arguments)
        jax.block_until_ready(copy)
        return time.perf_counter() - start

    seconds(plain, looped)  # compiles both
    alone = min(seconds(plain, plain) for _ in range(3))
    # several processes run the program together, so all make the same number of calls
    chosen[key] = min(seconds(looped) for _ in range(3)) < SLOW_IN_LOOPS * alone
    return chosen[key]


def _convolves(jaxpr: Any) -> bool:
    for equation in jaxpr.eqns:
        if equation.primitive.name == "conv_general_dilated":
            return True
        if equation.params.get("branches_platforms"):
            continue  # a branch of `jax.lax.platform_dependent` that is not used on a CPU
        for inner in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns") and _convolves(inner):
                return True
    return False
