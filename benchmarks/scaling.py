"""How steps scale, by calculation: `python -m benchmarks.scaling [xla|devices|time|pod]`.

xla: the calculator beside XLA's analyses of compiled steps, on one device.
devices: collectives of the program that `fit` runs, for 1, 2, 4 and 8 virtual CPU devices.
time: the calculator beside measured steps on this machine.
pod: a transformer of 7 billion parameters on up to 1,024 chips.
"""

import functools
import math
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

# with fewer threads than twice the devices, collectives of several CPU devices can deadlock
if "time" not in sys.argv:
    os.environ.setdefault("NPROC", "16")

import jax
import jax.numpy as jnp

import jaxops as jo
from benchmarks import gpt, workloads
from jaxops import optim, vision
from jaxops.devices.hardware import HARDWARE, Hardware, this_machine
from jaxops.state import state_shapes
from jaxops.train.program import train_program
from jaxops.trust.report import table

Batch = Mapping[str, jax.ShapeDtypeStruct]
Row = dict[str, Any]

ADAM = optim.adam(1e-3)
CPU = HARDWARE["H100"]._replace(name="cpu", platform="cpu")
LARGE = workloads.GPT(depth=32, width=4096, heads=32, context=2048, vocabulary=32_000)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def images(rows: int) -> Batch:
    return {
        "image": jax.ShapeDtypeStruct((rows, 28, 28, 1), "uint8"),
        "label": jax.ShapeDtypeStruct((rows,), "int32"),
    }


def windows(rows: int, size: workloads.GPT) -> Batch:
    return {"tokens": jax.ShapeDtypeStruct((rows, size.context + 1), "int32")}


def models() -> dict[str, tuple[jo.Task, Batch]]:
    """Article 000's network, article 002's, a transformer, and one that is all parameters."""
    return {
        "MLP (C01), 1,024 rows": (vision.classifier(vision.MLP()), images(1024)),
        "CNN (C03), 256 rows": (vision.classifier(vision.CNN()), images(256)),
        "GPT 4 x 128, 64 rows": (gpt.task(workloads.GPT()), windows(64, workloads.GPT())),
        "MLP 3 x 2,048, 64 rows": (vision.classifier(vision.MLP((2048,) * 3)), images(64)),
    }


def xla() -> Iterator[Row]:
    for name, (task, batch) in models().items():
        found = jo.size(task, batch, optimizer=ADAM, hardware=CPU)
        step = jax.jit(functools.partial(jo.train_step, task, ADAM), donate_argnums=0)
        lowered = step.lower(state_shapes(task, ADAM, batch), batch)
        compiled = lowered.compile()
        memory: Any = compiled.memory_analysis()
        before, after = (dict(x.cost_analysis() or {})["flops"] for x in (lowered, compiled))
        arguments = found.parameter_bytes + found.optimizer_bytes + found.other_bytes + 12
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        yield {
            "model": name,
            "MFLOP": f"{found.flops / 1e6:,.1f}",
            "XLA, as traced": f"{found.flops / before:.3f}",
            "as compiled": f"{found.flops / after:.3f}",
            "argument bytes": f"{arguments:,.0f}",
            "XLA's": f"{memory.argument_size_in_bytes:,}",
            "total MB": f"{found.total_bytes / 1e6:,.2f}",
            "XLA's total": f"{found.total_bytes / total:.3f}",
        }


def _given(fixed: Any, chosen: Any) -> Any:
    return chosen


def _sent(text: str, devices: int) -> tuple[dict[str, int], float]:
    """How many collectives of each kind a program has, and the bytes that a device sends."""
    counts, sent = {}, 0.0
    for kind in KINDS:
        found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)
        counts[kind] = len(found)
        shapes = re.findall(r"\b[fsu]32\[([\d,]*)\]", " ".join(found))
        size = sum(4 * math.prod(map(int, filter(None, dims.split(",")))) for dims in shapes)
        sent += (2 if kind == "all-reduce" else 1) * size * (devices - 1) / devices
    return counts, sent


def devices() -> Iterator[Row]:
    """Strong scaling: 512 rows in all. Weak scaling: 64 rows a device."""
    task = models()["MLP 3 x 2,048, 64 rows"][0]
    plans: dict[str, Any] = {
        "data_parallel()": jo.devices.data_parallel,
        "fsdp()": jo.devices.fsdp,
    }
    for name, make in plans.items():
        for kind in ("strong", "weak"):
            for count in (1, 2, 4, 8):
                plan = make(devices=jax.devices()[:count])
                batch = images(512 if kind == "strong" else 64 * count)
                program = _compiled(task, batch, plan)
                counts, sent = _sent(program.as_text(), count)
                memory = program.memory_analysis()
                found = jo.size(task, batch, plan, optimizer=ADAM, hardware=CPU)
                total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
                yield {
                    "plan": name,
                    "scaling": kind,
                    "devices": count,
                    "rows of a device": found.rows,
                    **{k: counts[k] for k in KINDS[:3]},
                    "others": sum(counts[k] for k in KINDS[3:]),
                    "MB sent": f"{sent / 1e6:.1f}",
                    "calculated": f"{sum(c.sent for c in found.collectives) / 1e6:.1f}",
                    "MB state": f"{memory.argument_size_in_bytes / 1e6:.1f}",
                    "MB in all": f"{total / 1e6:.1f}",
                    "calculated ": f"{found.total_bytes / 1e6:.1f}",
                }


def _compiled(task: jo.Task, batch: Batch, plan: jo.Plan) -> Any:
    """What `fit` runs for one step at a time; nothing is allocated."""
    state = state_shapes(task, ADAM, batch)
    state = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        state,
        plan.state_shardings(state),
    )
    fed = {
        k: jax.ShapeDtypeStruct((1, *v.shape), v.dtype, sharding=plan.batch_sharding(1))
        for k, v in batch.items()
    }
    count = jax.ShapeDtypeStruct((), "int32", sharding=plan.whole())
    program: Any = train_program(task, ADAM, plan, "float32", _given)
    return program.lower(state, None, fed, count).compile()


def timed() -> Iterator[Row]:
    here = this_machine()
    print(
        f"products {here.float32 / 1e9:,.0f} GFLOP/s in float32, {here.bfloat16 / 1e9:,.0f} in "
        f"bfloat16; memory {here.bandwidth / 1e9:.1f} GB/s"
    )
    for name, (task, shapes) in models().items():
        found = jo.size(task, shapes, optimizer=ADAM, hardware=here)
        batch = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items()}
        state = jo.init_state(task, ADAM, 0, batch)
        step = jax.jit(functools.partial(jo.train_step, task, ADAM), donate_argnums=0)
        measured = _seconds(step, state, batch)
        low, high = found.seconds
        yield {
            "model": name,
            "products, ms": f"{1e3 * found.compute_seconds:.3f}",
            "memory, ms": f"{1e3 * found.memory_seconds:.3f}",
            "binds": found.binds,
            "measured, ms": f"{1e3 * measured:.3f}",
            "at once / measured": f"{low / measured:.2f}",
            "in turn / measured": f"{high / measured:.2f}",
        }


def _seconds(step: Any, state: Any, batch: Any) -> float:
    """The best of ten runs of a few steps each."""
    state, _ = step(state, batch)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        for _ in range(8):
            state, _ = step(state, batch)
        jax.block_until_ready(state.params)
        times.append((time.perf_counter() - start) / 8)
    return min(times)


SPLIT = [
    ("(qkv|up|head)/kernel", (None, "tensor")),
    ("(qkv|up)/bias", ("tensor",)),
    ("(out|down)/kernel", ("tensor", None)),
]
MESHES = (
    {"fsdp": 64},
    {"fsdp": 256},
    {"fsdp": 1024},
    {"data": 128, "fsdp": 8},
    {"data": 4, "fsdp": 256},
    {"fsdp": 128, "tensor": 8},
)


def pod() -> Iterator[Row]:
    """2,048 windows a step, four million tokens, on any number of chips."""
    task = gpt.next_character(gpt.network(LARGE, remat=True))
    for device in ("H100", "v5e", "v5p"):
        for mesh in MESHES:
            rules = SPLIT if "tensor" in mesh else ()
            ones = dict.fromkeys(mesh, 1)
            plan = jo.devices.plan(**ones, rules=rules, devices=jax.devices()[:1])
            yield _pod_row(task, plan, mesh, HARDWARE[device])


def _pod_row(task: jo.Task, plan: jo.Plan, mesh: dict[str, int], device: Hardware) -> Row:
    """In as few microbatches as the memory allows."""
    rows = 2048 // math.prod(size for axis, size in mesh.items() if axis != "tensor")
    settings: dict[str, Any] = {"optimizer": ADAM, "compute": "bfloat16", "hardware": device}
    for accumulate in (2**i for i in range(rows.bit_length())):
        batch = windows(2048, LARGE)
        found = jo.size(task, batch, plan, accumulate=accumulate, mesh=mesh, **settings)
        if found.fits:
            break
    low, high = found.seconds
    return {
        "on": f"{found.devices:,} {device.name}",
        "mesh": " x ".join(f"{k} {v}" for k, v in mesh.items()),
        "rows": f"{found.accumulate} x {found.rows}",
        "GB state": f"{(found.parameter_bytes + found.optimizer_bytes) / 1e9:.2f}",
        "GB in all": f"{found.total_bytes / 1e9:.1f}" + ("" if found.fits else " (too much)"),
        "compute, s": f"{found.compute_seconds:.3f}",
        "memory, s": f"{found.memory_seconds:.3f}",
        **_exchanges(found),
        "step, s": f"{low:.2f} to {high:.2f}",
        "binds": found.binds,
    }


def _exchanges(found: jo.Size) -> Row:
    """Seconds by kind, and GB that a device sends in all."""
    seconds = dict.fromkeys(KINDS[:3], 0.0)
    for one in found.collectives:
        seconds[one.kind] += one.seconds
    sent = sum(one.sent for one in found.collectives)
    return {"GB sent": f"{sent / 1e9:.1f}", **{f"{k}, s": f"{v:.3f}" for k, v in seconds.items()}}


def main() -> None:
    sections = {"xla": xla, "devices": devices, "time": timed, "pod": pod}
    for name in sys.argv[1:] or sections:
        print(f"\n{name}\n")
        print(table(list(sections[name]())))


if __name__ == "__main__":
    if "time" not in sys.argv:
        jax.config.update("jax_num_cpu_devices", 8)
    main()
