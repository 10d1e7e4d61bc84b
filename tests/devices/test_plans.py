"""Eight devices give the numbers of one."""

import re
from collections import Counter
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import plans
import pytest
from jax.sharding import PartitionSpec
from plans import CNN, COLUMN, TOLERANCE, difference, make_plan, trained
from small import ADAM, TASK, Batches, assert_close, compilations, host, images, regression
from test_accumulate import Deep

import jaxops as jo
from jaxops import optim
from jaxops.state import state_shapes
from jaxops.train import resident
from jaxops.train.checkpoint import abstract
from jaxops.train.program import train_program

EIGHT = jo.devices.data_parallel()
DATA = images(107)


def fit(task, plan, **changes):
    settings = {"optimizer": optim.sgd(0.1, 0.9), "batch_size": 16, "steps": 20, "progress": False}
    return jo.fit(task, DATA, plan=plan, **{**settings, **changes})


@pytest.fixture(scope="module")
def both():
    return CNN, fit(CNN, None), fit(CNN, EIGHT)


def test_training_on_eight_is_training_on_one(both):
    task, one, eight = both
    assert len(eight.params[min(eight.params)]["bias"].devices()) == 8
    assert_close((one.params, one.extra), (eight.params, eight.extra), atol=1e-5)
    start = jo.init_state(task, ADAM, 0, images(1))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), start.params, one.params)
    assert max(jax.tree.leaves(moved)) > 0.05


def test_evaluation_counts_each_row_once_wherever_it_runs(both):
    task, one, eight = both
    data = images(1003, seed=4)
    right = (jo.predict(task, one, data).argmax(1) == data["label"]).sum()
    for state in (one, eight):
        for plan in (None, EIGHT, jo.devices.data_parallel(jax.local_devices()[:3])):
            found = jo.evaluate(task, state, data, plan=plan, batch_size=100)
            assert found["accuracy"] * 1003 == pytest.approx(right, abs=1e-6)
            p = jo.predict(task, state, {"image": data["image"]}, plan=plan, batch_size=100)
            assert p.shape == (1003, 3)
            np.testing.assert_allclose(p, jo.predict(task, one, data), atol=1e-5)


def test_a_state_moves_to_the_plan_it_goes_on_with():
    alone = fit(TASK, None, steps=4)
    together = fit(TASK, EIGHT, steps=4, state=alone)
    assert len(together.params["logits"]["bias"].devices()) == 8
    back = fit(TASK, None, steps=4, state=together)
    assert back.step == 12


def compiled(
    plan, model="CNN with batch norm", accumulate=1, data=None, tx=ADAM, rows=16, length=1
):
    task, columns = plans.MODELS[model] if isinstance(model, str) else (model, data)
    source = resident.Resident(columns, rows, 0, plan, accumulate)
    state = jo.init_state(task, tx, 0, columns, plan)
    program = train_program(task, tx, plan, "float32", source.take, accumulate)
    count = jax.device_put(np.int32(1), plan.whole())
    return program.lower(state, source.fixed, source.feed(0, 1, length), count).compile()


def collectives(program):
    """name -> how often."""
    names = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return Counter(re.findall(rf" ({names})(?:-start)?\(", program.as_text()))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("model", "accumulate"),
    [("MLP", 4), pytest.param("transformer", 1, marks=SLOW)],
)
def test_data_parallelism_is_one_all_reduce(model, accumulate):
    """Of all gradients, the weight, the loss and the metrics, which are float32."""
    assert collectives(compiled(EIGHT, model, accumulate)) == {"all-reduce": 1}


def test_batch_norm_adds_the_sums_of_the_batch():
    """The count of its rows (int32), their sums forward, and backward; then the gradients."""
    assert collectives(compiled(EIGHT)) == {"all-reduce": 4}
    assert not collectives(compiled(jo.devices.single()))


def test_batches_and_states_lie_as_the_plan_says():
    def halves(path, leaf):
        split = "kernel" in path and leaf.shape[-1] % 8 == 0
        return PartitionSpec(None, "data") if split else PartitionSpec()

    plan = EIGHT._replace(rule=halves)
    state = jo.init_state(TASK, ADAM, 0, images(1), plan)
    kernel, bias = (state.params["hidden_0"][k] for k in ("kernel", "bias"))
    assert kernel.addressable_shards[0].data.shape == (16, 2)
    assert bias.addressable_shards[0].data.shape == (16,)
    moment = state.opt_state[0].mu["hidden_0"]["kernel"]
    assert moment.sharding.is_equivalent_to(kernel.sharding, 2)
    want = fit(TASK, None, optimizer=ADAM)
    found = fit(TASK, plan, optimizer=ADAM)
    assert found.params["hidden_0"]["kernel"].addressable_shards[0].data.shape == (16, 2)
    assert_close(found.params, want.params, atol=1e-5)
    rows = jax.device_put(jnp.zeros((3, 16)), plan.batch_sharding(1))
    assert rows.addressable_shards[0].data.shape == (3, 2)


def test_a_batch_that_does_not_divide_is_padded():
    assert EIGHT.padded(24) == 24 and EIGHT.padded(20) == 24 and EIGHT.padded(20, 4) == 32
    assert EIGHT.batch_shards == 8 and jo.devices.single().batch_shards == 1


def test_equal_plans_are_one():
    assert jo.devices.data_parallel() == EIGHT
    assert hash(jo.devices.single()) == hash(jo.devices.single())


# Every plan


DIAGONAL = [
    ("MLP", "fsdp 8", 4, "Adam"),
    ("MLP", "pmap", 4, "SGD"),
    ("CNN with batch norm", "data 8", 4, "SGD"),
    ("MLP", "data 2 x fsdp 2 x tensor 2", 1, "Adam"),
]
# With these, each model is under each plan, and in one part and in four; so is each plan.
CROSSED = [
    ("MLP", "data 8", 1, "SGD"),
    ("MLP", "tensor 8", 1, "SGD"),
    ("MLP", "fsdp 4 x tensor 2", 4, "SGD"),
    ("CNN with batch norm", "fsdp 8", 1, "SGD"),
    ("CNN with batch norm", "tensor 8", 4, "SGD"),
    ("CNN with batch norm", "data 2 x fsdp 2 x tensor 2", 4, "SGD"),
    ("CNN with batch norm", "fsdp 4 x tensor 2", 1, "SGD"),
    ("transformer", "data 8", 1, "SGD"),
    ("transformer", "fsdp 8", 4, "SGD"),
    ("transformer", "tensor 8", 1, "SGD"),
    ("transformer", "data 2 x fsdp 2 x tensor 2", 1, "Adam"),
    ("transformer", "fsdp 4 x tensor 2", 4, "SGD"),
    ("transformer", "pmap", 1, "SGD"),
]


@pytest.mark.parametrize(
    ("model", "plan", "accumulate", "optimizer"),
    [*DIAGONAL, *(pytest.param(*case, marks=SLOW) for case in CROSSED)],
)
def test_every_plan_gives_the_parameters_of_one_device(model, plan, accumulate, optimizer):
    assert difference(model, plan, accumulate, optimizer) < TOLERANCE
    state, names = trained(model, plan, accumulate, optimizer)
    assert names.count("jit(_fun)" if plan == "pmap" else "jit(run)") == 1, names
    start = jo.init_state(plans.MODELS[model][0], ADAM, 0, plans.MODELS[model][1])
    ends = host((start.params, state.params))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), *ends)
    assert max(jax.tree.leaves(moved)) > 0.02  # a thousand times what is let pass


@pytest.mark.parametrize(
    "plan", [pytest.param("data 8", marks=SLOW), "fsdp 8", "data 2 x fsdp 2 x tensor 2"]
)
def test_each_device_holds_its_share_and_gives_its_memory_back(plan):
    """All of the state is donated, in the very shares that come back."""
    plan = make_plan(plan, "MLP")
    state = jo.init_state(TASK, ADAM, 0, images(1), plan)
    shares = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state))
    memory = compiled(plan, "MLP").memory_analysis()
    assert memory.alias_size_in_bytes >= shares
    kernel, moment = (tree["hidden_0"]["kernel"] for tree in (state.params, state.opt_state[0].mu))
    assert moment.sharding == kernel.sharding
    split = [size for name, size in plan.mesh.shape.items() if name != "data"]
    assert kernel.addressable_shards[0].data.size == kernel.size // np.prod(split)


def deep(width=256, depth=24, rows=8):
    data = {"x": np.zeros((rows, width), np.float32), "y": np.zeros((rows, 4), np.float32)}
    return regression(nn.Sequential([*(nn.Dense(width) for _ in range(depth)), nn.Dense(4)])), data


@pytest.mark.slow
def test_fsdp_holds_a_share_of_all_and_no_copy_of_the_parameters():
    """Weights, Adam's moments and gradients are shares; two layers or so are whole at a time."""
    task, data = deep()
    layer = 256 * 256 * 4
    needed, gathers = {}, {}
    for devices, accumulate in ((1, 1), (8, 1), (8, 4)):
        plan = jo.devices.plan(fsdp=devices, min_size=2**8, devices=jax.devices()[:devices])
        program = compiled(plan, task, accumulate, data, rows=8)
        memory = program.memory_analysis()
        needed[devices, accumulate] = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        gathers[devices, accumulate] = collectives(program)["all-gather"]
        if devices > 1:  # the gradients' share, once more where they are added up, and five layers
            assert memory.temp_size_in_bytes < (24 * accumulate**0.5 / devices + 5) * layer
            assert needed[devices, accumulate] < 1.6 / devices * needed[1, 1], needed
            # Weights are put together for the forward and again for the backward pass, but the
            # last (and the first, which has no gradient to pass on), and biases; with parts in the
            # body of their loop
            assert gathers[devices, accumulate] == 3 * 24 + 1
    print({key: f"{value / 2**20:.2f} MB" for key, value in needed.items()})
    # On a CPU, XLA has no pass that makes one reduce-scatter of an all-reduce and the slice of it
    # that a device keeps; `test_fsdp_on_a_tpu` shows what another XLA makes of this program.
    text = program.as_text()
    sums = set(re.findall(r"%(all-reduce[\w.]*) = f32\[256,256\]", text))
    users = re.findall(r"= (.*) [\w-]+\([^)]*%(all-reduce[\w.]*)\b", text)
    users = [(shape, name) for shape, name in users if name in sums]
    assert len(sums) == 24 == len({name for _, name in users})
    assert all("256,256" not in shape for shape, _ in users), users


@pytest.mark.slow
def test_fsdp_on_a_tpu(monkeypatch):
    """Compiled for eight TPUs that are not there: the gradients' sums are reduce-scatters."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    monkeypatch.setenv("TPU_WORKER_ID", "0")
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4").devices
    task, data = deep(512, 4)
    for plan, wanted in (
        (jo.devices.fsdp(devices=devices), "ReduceScatter"),
        (jo.devices.data_parallel(devices), "all-reduce"),
    ):
        like = state_shapes(task, ADAM, data, plan)
        like = abstract(like, plan.state_shardings(like))
        columns = {name: jax.typeof(jnp.asarray(column)) for name, column in data.items()}
        columns = abstract(columns, dict.fromkeys(columns, plan.batch_sharding()))
        program = train_program(task, ADAM, plan, "float32", lambda fixed, chosen: chosen)
        fed = {
            n: jax.ShapeDtypeStruct((1, *v.shape), v.dtype, sharding=plan.batch_sharding(1))
            for n, v in columns.items()
        }
        count = jax.ShapeDtypeStruct((), np.int32, sharding=plan.whole())
        text = program.lower(like, {}, fed, count).compile().as_text()
        assert wanted in text
        assert ("all-gather" in text) == (wanted == "ReduceScatter")


@pytest.mark.slow
def test_remat_keeps_less_under_fsdp_too():
    task = regression(Deep(), 64)
    data = {k: np.zeros((4096, n), np.float32) for k, n in (("x", 64), ("y", 4))}
    plan = jo.devices.plan(fsdp=2, min_size=2**8, devices=jax.devices()[:2])
    plain, less = (
        compiled(plan, kind, 1, data, rows=4096).memory_analysis().temp_size_in_bytes
        for kind in (task, jo.remat(task))
    )
    assert less < 0.6 * plain, (less, plain)


def test_rows_of_an_embedding_lie_on_their_devices():
    plan = make_plan("tensor 8", "transformer")
    task, data = plans.MODELS["transformer"]
    state = jo.init_state(task, ADAM, 0, data, plan)
    table = state.params["tokens"]["embedding"]
    assert table.addressable_shards[0].data.shape == (2, 16)
    text = compiled(plan, "transformer").as_text()
    assert not re.search(r"f32\[16,16\]\S* all-gather", text)  # the table never is in one place


# pmap


def test_pmap_has_the_statistics_of_each_device():
    """Its update is that of eight parts of a batch, each of the rows that a device has."""
    tx, data = optim.sgd(0.1), images(32)
    plan = jo.devices.data_parallel()
    state = jo.init_state(CNN, tx, 0, data, plan)
    other = {
        name: column.reshape(8, 4, *column.shape[1:]).swapaxes(0, 1).reshape(column.shape)
        for name, column in data.items()
    }
    want, _ = jax.jit(partial(jo.train_step, CNN, tx, accumulate=8))(state, other)
    whole, whole_metrics = jax.jit(partial(jo.train_step, CNN, tx))(state, data)
    found, metrics = jo.pmap_train_step(CNN, tx)(state, data)
    assert_close(found.params, want.params, atol=1e-6)
    apart = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), found.params, whole.params)
    assert max(jax.tree.leaves(apart)) > 1e-3  # than with the batch's statistics
    # the mean of eight parts' means is that of the batch, the mean of their variances is less
    mean, var = (
        [s.extra["batch_stats"]["BatchNorm_0"][name] for s in (found, whole)]
        for name in ("mean", "var")
    )
    np.testing.assert_allclose(*mean, atol=1e-6)
    assert (var[0] < var[1] - 1e-5).any()
    assert metrics["loss"].weight == whole_metrics["loss"].weight == 32
    assert metrics["accuracy"].weight == 32


def test_pmap_refuses_what_it_cannot_do():
    step = jo.pmap_train_step(TASK, ADAM)
    with pytest.raises(ValueError, match=r"batch must have a multiple of 8 rows .*, got 20"):
        step(None, images(20))
    with pytest.raises(ValueError, match="must not couple the rows"):
        jo.pmap_train_step(TASK._replace(coupled=True), ADAM)


# Padding


@pytest.mark.parametrize("kind", ["resident", pytest.param("stream", marks=pytest.mark.slow)])
def test_a_batch_of_twenty_on_eight_devices(kind):
    """Four rows of padding a batch, which no sum and no batch norm sees."""
    data = DATA if kind == "resident" else list(Batches(DATA, 20))
    settings = {"optimizer": optim.sgd(0.1, 0.9), "batch_size": 20, "progress": False, "steps": 20}
    records = {"one": [], "eight": []}
    one = jo.fit(CNN, data, **settings, reports=records["one"].append)
    eight = jo.fit(CNN, data, **settings, reports=records["eight"].append, plan=EIGHT)
    assert_close((one.params, one.extra), (eight.params, eight.extra), atol=TOLERANCE)
    for a, b in zip(*records.values(), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["accuracy"] == pytest.approx(b["accuracy"], rel=1e-6)
    with pytest.raises(ValueError, match=r"data must have at most 17 rows .*, got 20"):
        jo.fit(CNN, list(Batches(DATA, 20)), **{**settings, "batch_size": 17}, plan=EIGHT)


# Rules


def test_the_largest_free_axis_is_split():
    rule = jo.devices.plan(
        fsdp=2, tensor=4, min_size=64, rules=[("embedding", ("tensor",)), ("cube", (None, "fsdp"))]
    ).rule

    def spec(path, *shape):
        return tuple(rule(path, jax.ShapeDtypeStruct(shape, np.float32)))

    assert spec("params/hidden/kernel", 8, 32) == (None, "fsdp")
    assert spec("params/hidden/kernel", 32, 8) == ("fsdp", None)
    assert spec("params/hidden/kernel", 33, 8) == (None, "fsdp")  # 33 does not divide
    assert spec("params/hidden/kernel", 33, 9) == (None, None)
    assert spec("params/hidden/bias", 63) == (None,)  # too small
    assert spec("opt_state/0/mu/tokens/embedding", 64, 8) == ("tensor", "fsdp")
    assert spec("opt_state/0/mu/cube/embedding", 64) == ("tensor",)
    assert spec("params/cube", 16, 4, 8) == (None, "fsdp", None)


def test_what_an_optimizer_keeps_in_another_shape_is_whole():
    tx = optax.adafactor(1e-2, min_dim_size_to_factor=8)
    settings = {"optimizer": tx, "batch_size": 32, "steps": 3, "progress": False}
    found = jo.fit(TASK, DATA, **settings, plan=make_plan("fsdp 4 x tensor 2", "MLP"))
    assert_close(found.params, jo.fit(TASK, DATA, **settings).params, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "must have the product 8 .*, got no axis"),
        ({"data": 3}, "must have the product 8 .*, got data=3"),
        ({"data": 4, "tensor": 4}, r"product 8 .*, got data=4 \* tensor=4"),
        ({"data": -8, "fsdp": -1}, "product 8 .*, got data=-8"),
        (
            {"data": 8, "rules": [("kernel", ("tensor",))]},
            r"rule 'kernel' must be one of \['data'\], got 'tensor'",
        ),
        (
            {"tensor": 8, "rules": [("hiden", ("tensor",))]},
            "got 'hiden', which matches none of params/hidden_0",
        ),
        (
            {"tensor": 8, "rules": [("logits/kernel", COLUMN)]},
            r"logits/kernel: axis 1 must be a multiple of 8 .* got shape \(16, 3\)",
        ),
        ({"tensor": 8, "rules": [("bias", COLUMN)]}, r"bias must have 2 axes .* got shape \(16,\)"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_anything_compiles(settings, message):
    with compilations() as names, pytest.raises(ValueError, match=message):
        fit(TASK, jo.devices.plan(**settings))
    assert not [name for name in names if "init" in name or "run" in name]


def test_equal_combinations_are_one():
    a, b = (make_plan("fsdp 4 x tensor 2", "MLP") for _ in range(2))
    assert a == b and hash(a) == hash(b)
    assert a != make_plan("fsdp 8", "MLP")
    assert jo.gathered(TASK, a) is jo.gathered(TASK, b)
    assert jo.gathered(TASK, EIGHT) is TASK
    assert jo.devices.tensor([("x", ("tensor",))]).batch_shards == 1
