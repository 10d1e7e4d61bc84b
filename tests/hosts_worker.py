"""One process of several, by its environment's number: `main(folder, *jobs)`, in a fork.

The tests run the same jobs in one process, to compare.
"""

import itertools
import os
import signal
import tempfile
import time
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import plans
import pytest
from small import SETTINGS, TASK, Batches, grained, host, images

import jaxops as jo
from jaxops import optim, vision
from jaxops.devices import hosts
from jaxops.nn import BatchNorm, Conv, max_pool
from jaxops.trust import report


class Net(nn.Module):
    """A convolution and batch norm, whose statistics are those of the whole batch.

    No bias between them: its gradient is rounding alone, which Adam makes as large as any other.
    """

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        x = BatchNorm()(Conv(4, use_bias=False)(x), train=train, mask=mask)
        return nn.Dense(3)(max_pool(nn.relu(x), 2).reshape(len(x), -1))


CONV = vision.classifier(Net(), **SETTINGS)
DATA = images(107)
HELD = images(103, seed=1)


def fit(task=TASK, data=DATA, **changes):
    settings = {"optimizer": optim.sgd(0.1, 0.9), "batch_size": 16, "steps": 20, "progress": False}
    return jo.fit(task, data, **{**settings, **changes})


class Shares:
    """This process's share of every batch of a stream; `before(n)` is called before the nth."""

    def __init__(self, batches, before=lambda n: None):
        count = itertools.count()  # goes on where the stream starts over
        self.batches, self.before = batches, lambda: before(next(count))

    def __len__(self):
        return -(-len(DATA["label"]) // 16)

    def __iter__(self):
        return Share(iter(self.batches), self.before)


class Share:
    def __init__(self, batches, before):
        self.batches, self.before = batches, before
        if hasattr(batches, "get_state"):
            self.get_state, self.set_state = batches.get_state, batches.set_state

    def __iter__(self):
        return self

    def __next__(self):
        self.before()
        me, of = (jax.process_index(), hosts.count())
        return {k: np.array_split(v, of)[me] for k, v in next(self.batches).items()}


def mlp(folder):
    return fit()


def conv(folder):
    return fit(CONV)


def stream(folder):
    return fit(CONV, Shares(Batches(DATA, 16)))


def fsdp(folder):
    """Parameters that no process holds whole, trained, saved, and put together again."""
    plan = jo.devices.fsdp(min_size=16)
    state = fit(plan=plan, optimizer=optim.sgd(0.1, 0.9), checkpoints=folder / "fsdp")
    kernel = state.params["hidden_0"]["kernel"]
    assert hosts.count() == 1 or not kernel.is_fully_replicated
    jo.save(folder / "fsdp.model", jo.Model(TASK, state))
    loss = jo.evaluate(TASK, state, HELD, plan=plan)["loss"]
    return hosts.gathered(state.params), np.float32(loss), jo.predict(TASK, state, HELD)


def every_plan(folder):
    """Each axis, and each model of `tests/plans.py`, across the processes."""
    cases = [("MLP", "tensor", 4), (plans.BATCH_NORM, "fsdp", 1), ("transformer", "data", 4)]
    return [across(*case) for case in cases]


def across(model, axis, accumulate):
    """The end of twenty steps under a plan over all processes, or on one device where alone."""
    task, data = plans.MODELS[model]
    plan = None
    if hosts.count() > 1:
        rules = plans.RULES[model] if axis == "tensor" else ()
        plan = jo.devices.plan(**{axis: hosts.count()}, rules=rules, min_size=8)
    state = fit(task, data, plan=plan, batch_size=plans.BATCH, accumulate=accumulate)
    return hosts.gathered((state.params, state.extra))


def adam(folder, **changes):
    """A run with all that a checkpoint carries, validated and logged."""
    logs = [report.JsonLines(folder / "metrics.jsonl"), report.TensorBoard(folder / "events")]
    settings = {
        "optimizer": optim.adam(1e-2),
        "validation": HELD,
        "early_stopping": jo.EarlyStopping("accuracy", patience=99, mode="max"),
        "reports": logs,
        "progress": True,
        "checkpoints": jo.Checkpoints(folder / "checkpoints", every=5),
    }
    state = fit(CONV, **{**settings, **changes})
    report.plot_curves(report.read_json_lines(folder / "metrics.jsonl"), folder / "curves.png")
    return state


def write(folder):
    """What `streamed` reads; the last batch of 16 leaves the last of two processes no row."""
    folder.mkdir()
    for name, value in images(101).items():
        for shard, part in enumerate(np.array_split(value, 3)):
            np.save(folder / f"{name}-{shard}.npy", part)


def streamed(folder):
    """All that is done with `data.stream`."""
    train = jo.data.stream(folder / "shards", 16, seed=3)
    state = fit(data=train, validation=train, checkpoints=folder / f"of_{hosts.count()}")
    ordered = jo.data.stream(folder / "shards", 16, shuffle=False)
    found = jo.evaluate(TASK, state, ordered)
    return {
        "state": state,
        "evaluated": {k: np.float64(v) for k, v in found.items()},
        "predicted": jo.predict(TASK, state, ordered),
    }


def half(folder):
    return adam(folder, steps=10)


def evaluated(folder):
    """Metrics and predictions, of columns and of a stream that ends sooner in the last process."""
    state = fit(CONV, steps=3)
    own = {k: np.array_split(v, hosts.count())[jax.process_index()] for k, v in HELD.items()}
    parts = Batches(own, 17)
    metrics = {
        "scores": lambda p, batch: jo.metrics.accuracy(
            p, batch["label"], np.ones(len(p), np.float32)
        )
    }
    found = jo.evaluate(CONV, state, HELD, batch_size=40, metrics=metrics)
    streamed = jo.evaluate(CONV, state, parts, metrics=metrics)
    jo.save(folder / "net.model", jo.Model(CONV, state))
    return {
        "columns": {k: np.float64(v) for k, v in found.items()},
        "stream": {k: np.float64(v) for k, v in streamed.items()},
        "predicted": jo.predict(CONV, state, HELD, batch_size=40),
        "own": jo.predict(CONV, state, parts),
        "single": jo.predictor(CONV, state, {"image": HELD["image"][:3]})(
            {"image": HELD["image"][:3]}
        ),
    }


def refused(folder):
    """What one process does otherwise than another is an error in all, not a hang."""
    me = jax.process_index()
    calls = {
        "batch_size": lambda: fit(batch_size=16 if me == 0 else 8),
        "seed": lambda: fit(data=Shares(Batches(DATA, 16)), seed=me),
        "every": lambda: fit(reports=jo.Reports(every=5 + me)),
        "data": lambda: fit(data=images(107, seed=me)),
        "plan": lambda: fit(plan=jo.devices.single()),
        "stream": lambda: jo.evaluate(TASK, fit(steps=1), Batches(images(9 if me else 0), 4)),
        "split": lambda: fit(data=Shares(Batches(DATA, 16)), plan=jo.devices.tensor([])),
        "split_in_predict": lambda: jo.predict(
            TASK, fit(steps=1), Batches(DATA, 16), plan=jo.devices.tensor([])
        ),
        "nan": lambda: fit(optimizer=optim.sgd(1e30), steps=60),
    }
    for name, call in calls.items():
        try:
            call()
        except (ValueError, FloatingPointError) as error:
            (folder / f"{name}.{me}").write_text(f"{type(error).__name__}: {error}")


def locked(folder):
    """What process 0 alone finds out is an error in all."""
    with jo.Checkpointer(folder / "locked"):
        try:
            jo.Checkpointer(folder / "locked")
        except OSError as error:
            said = f"{type(error).__name__}: {error}"
            (folder / f"locked.{jax.process_index()}").write_text(said)


def unwritten(folder):
    """Where process 0 can make no folder, the others do not wait for it."""
    tree = {"state": hosts.put({"x": np.ones(4)}, jo.devices.data_parallel().batch_sharding())}

    def refuse(*args, **kwargs):
        raise OSError("the disk is full")

    with (
        jo.Checkpointer(folder / "unwritten") as checkpoints,
        pytest.MonkeyPatch.context() as patch,
    ):
        checkpoints.save(1, tree, {})
        patch.setattr(tempfile, "mkdtemp", refuse)
        try:
            checkpoints.save(2, tree, {})
        except OSError as error:
            said = f"{type(error).__name__}: {error}"
            (folder / f"unwritten.{jax.process_index()}").write_text(said)


def killed(folder, die_before=None):
    """Process `VICTIM` dies before it gives its 14th batch."""
    victim = os.environ.get("VICTIM")

    def before(n):
        if victim == str(jax.process_index()) and n == 13:
            (folder / "died").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)

    return adam(folder, data=Shares(grained(DATA, 16), before), batch_size=16)


def preempted(folder):
    """A slow run; whoever waits for the second checkpoint sends a signal."""
    steps = int(os.environ.get("STEPS", 3000))
    slowly = Shares(Batches(DATA, 16), lambda n: time.sleep(0.01))
    return adam(folder, data=slowly, steps=steps)


def main(folder, *jobs):
    folder = Path(folder)
    jo.devices.start(timeout=int(os.environ.get("SILENCE", 20)))
    for job in jobs:
        result = globals()[job](folder)
        if hosts.first() or job in ("evaluated", "streamed"):
            leaves = jax.tree.leaves(host(result))
            np.savez(folder / f"{job}.{jax.process_index()}.npz", *leaves)
