"""The calculator against XLA's own analyses of compiled steps, and against counts by hand."""

import functools
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from small import TASK, images, regression

import jaxops as jo
from benchmarks import gpt, scaling, workloads
from jaxops import optim, vision
from jaxops.devices.hardware import HARDWARE, this_machine
from jaxops.train import clock
from jaxops.train.cost import cost

ADAM = optim.adam(1e-3)
CPU = HARDWARE["H100"]._replace(name="cpu", platform="cpu")  # what XLA compiles for here
GPT = workloads.GPT(depth=2, width=64, context=64)


def columns(rows):
    return {
        "image": jax.ShapeDtypeStruct((rows, 28, 28, 1), "uint8"),
        "label": jax.ShapeDtypeStruct((rows,), "int32"),
    }


def tokens(rows, context=GPT.context):
    return {"tokens": jax.ShapeDtypeStruct((rows, context + 1), "int32")}


# article 000's network, article 002's, a transformer, and one whose parameters are everything
MODELS = {
    "mlp": (vision.classifier(vision.MLP()), columns(1024)),
    "cnn": (vision.classifier(vision.CNN()), columns(256)),
    "gpt": (gpt.task(GPT), tokens(64)),
    "wide": (vision.classifier(vision.MLP((2048, 2048))), columns(64)),
}


@functools.cache
def lowered(name):
    task, batch = MODELS[name]
    state = jo.state.state_shapes(task, ADAM, batch)
    step = jax.jit(functools.partial(jo.train_step, task, ADAM), donate_argnums=0)
    return step.lower(state, batch)


@functools.cache
def compiled(name):
    return lowered(name).compile()


def products(name):
    """Multiplications and additions of a step, by hand: there is no gradient of the inputs."""
    rows = next(iter(MODELS[name][1].values())).shape[0]
    match name:
        case "mlp":
            return 2 * rows * (2 * 784 * 128 + 3 * 128 * 10)
        case "cnn":
            conv = 26 * 26 * 9 * 32
            return 2 * rows * (2 * conv + 3 * 13 * 13 * 32 * 128 + 3 * 128 * 10)
        case "wide":
            return 2 * rows * (2 * 784 * 2048 + 3 * 2048 * 2048 + 3 * 2048 * 10)
        case "gpt":
            w, t = GPT.width, GPT.context
            token = GPT.depth * (12 * w * w + 2 * t * w) + w * GPT.vocabulary
            return 2 * rows * t * 3 * token


each_model = pytest.mark.parametrize(
    "name",
    ["mlp", "gpt", *(pytest.param(name, marks=pytest.mark.slow) for name in ("cnn", "wide"))],
)


@each_model
def test_flops_are_xlas_and_those_of_the_formula(name):
    found = jo.size(*MODELS[name], optimizer=ADAM, hardware=CPU)
    assert found.device_flops == products(name)
    for analysis in (lowered(name).cost_analysis(), compiled(name).cost_analysis()):
        assert found.flops == pytest.approx(analysis["flops"], rel=0.05)


@each_model
def test_memory_is_xlas(name):
    found = jo.size(*MODELS[name], optimizer=ADAM, hardware=CPU)
    xla = compiled(name).memory_analysis()
    step_and_key = 4 + 8
    arguments = found.parameter_bytes + found.optimizer_bytes + found.other_bytes
    assert arguments + step_and_key == xla.argument_size_in_bytes
    total = xla.argument_size_in_bytes + xla.temp_size_in_bytes
    assert found.total_bytes == pytest.approx(total, rel=0.05)
    assert found.total_bytes <= arguments + found.gradient_bytes + found.activation_bytes


def rule(path, leaf):
    """Rows of kernels to "fsdp"."""
    return PartitionSpec("fsdp") if "kernel" in path and leaf.shape[0] % 8 == 0 else PartitionSpec()


def per_device(plan, task, batch):
    state = jo.state.state_shapes(task, ADAM, batch)
    step = jax.jit(
        functools.partial(jo.train_step, task, ADAM),
        in_shardings=(plan.state_shardings(state), plan.batch_sharding()),
        out_shardings=(plan.state_shardings(state), None),
        donate_argnums=0,
    )
    return step.lower(state, batch).compile()


def test_a_device_of_eight():
    task, batch = MODELS["wide"]
    plan = jo.devices.data_parallel()
    found = jo.size(task, batch, plan, optimizer=ADAM, hardware=CPU)
    program = per_device(plan, task, batch)
    xla = program.memory_analysis()
    total = xla.argument_size_in_bytes + xla.temp_size_in_bytes
    assert found.total_bytes == pytest.approx(total, rel=0.05)
    assert (found.rows, found.devices) == (8, 8)
    (collective,) = found.collectives
    assert collective[:3] == ("all-reduce", ("data",), "gradients")
    assert collective.sent == 2 * 7 / 8 * found.gradient_bytes
    # what XLA reduces are the gradients, the loss and the metrics
    shapes = re.findall(r"= (.*) all-reduce(?:-start)?\(", program.as_text())
    reduced = sum(
        4 * math.prod(map(int, filter(None, dims.split(","))))
        for line in shapes
        for dims in re.findall(r"f32\[([\d,]*)\]", line)
    )
    assert 0 <= reduced - found.gradient_bytes < 100


@pytest.mark.slow
def test_split_state_is_held_in_parts():
    task, batch = MODELS["wide"]
    mesh = jax.make_mesh((8,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    plan = jo.Plan(mesh, ("fsdp",), rule)
    found = jo.size(task, batch, plan, optimizer=ADAM, hardware=CPU)
    xla = per_device(plan, task, batch).memory_analysis()
    arguments = found.parameter_bytes + found.optimizer_bytes + found.other_bytes
    assert arguments + 4 + 8 == xla.argument_size_in_bytes
    whole = jo.size(task, batch, optimizer=ADAM)
    biases = 4 * (2048 + 2048 + 10)
    assert found.parameter_bytes - biases == (whole.parameter_bytes - biases) / 8
    assert found.exchanged_bytes == 2 * 4 * 2048 * 2048 + biases
    assert found.flops == pytest.approx(whole.flops, rel=1e-6)
    assert found.device_flops == whole.device_flops / 8


def mesh_plan(*sizes, axes=("data", "fsdp", "tensor"), rule=rule):
    mesh = AbstractMesh(sizes, axes, axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))
    return jo.Plan(mesh, tuple(a for a in axes if a != "tensor"), rule)


def test_collectives_on_a_pod_by_hand():
    """A kernel of (16, 3) in parts, its bias and the hidden layer's on all."""
    found = jo.size(TASK, images(256), mesh_plan(2, 8, axes=("data", "fsdp")), optimizer=ADAM)
    kernels, biases = 4 * (16 * 16 + 16 * 3), 4 * (16 + 3)
    sent = {c[:3]: c.sent for c in found.collectives}
    assert sent == {
        ("all-gather", ("fsdp",), "parameters"): 2 * kernels * 7 / 8,
        ("reduce-scatter", ("fsdp",), "gradients"): kernels * 7 / 8,
        ("all-reduce", ("data",), "gradients"): 2 * kernels / 8 / 2,
        ("all-reduce", ("data", "fsdp"), "gradients"): 2 * biases * 15 / 16,
    }
    seconds = {c[:3]: c.seconds for c in found.collectives}
    # eight to an island of NVLink: "fsdp" stays within, "data" goes between
    assert seconds["all-gather", ("fsdp",), "parameters"] == pytest.approx(
        2 * kernels * 7 / 8 / 450e9
    )
    assert seconds["all-reduce", ("data",), "gradients"] == pytest.approx(kernels / 8 / 50e9)
    assert seconds["all-reduce", ("data", "fsdp"), "gradients"] == pytest.approx(
        2 * biases * (7 / 8 / 450e9 + 1 / 16 / 50e9)
    )
    assert found.interconnect_seconds == sum(seconds.values())
    assert found.seconds == (found.interconnect_seconds, sum(found._seconds.values()))
    assert found.binds == "interconnect" and found.fits
    double = jo.size(
        TASK, images(256), mesh_plan(2, 8, axes=("data", "fsdp")), optimizer=ADAM, accumulate=2
    )
    assert double.rows == found.rows / 2 and double.device_flops == found.device_flops


def columns_then_rows(path, leaf):
    """As Shoeybi et al. split a block; the query, key and value of a head together."""
    if re.search(r"(qkv|up)/?.*kernel", path):
        return PartitionSpec(None, "tensor")
    if re.search(r"(out|down)/?.*kernel", path):
        return PartitionSpec("tensor")
    return PartitionSpec()


@pytest.mark.parametrize("compute", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_split_transformer_sums_four_times_a_block(compute):
    task, batch = MODELS["gpt"]
    alone, split = (
        jo.size(task, batch, plan, optimizer=ADAM, compute=compute)
        for plan in (None, mesh_plan(4, axes=("tensor",), rule=columns_then_rows))
    )
    activations = 64 * GPT.context * GPT.width * 4
    (collective,) = split.collectives
    assert collective[:3] == ("all-reduce", ("tensor",), "activations")
    # forward and backward; the first block's inputs have a gradient too
    assert collective.sent == 4 * GPT.depth * activations * 2 * 3 / 4
    logits = 2 * 3 * 64 * GPT.context * GPT.width * GPT.vocabulary
    assert split.device_flops == (alone.device_flops - logits) / 4 + logits
    assert split.flops == alone.flops
    assert split.activation_bytes < 0.7 * alone.activation_bytes


def test_a_mesh_that_is_not_here():
    here = jo.devices.data_parallel(jax.devices()[:1])
    found = jo.size(TASK, images(4096), here, optimizer=ADAM, mesh={"data": 1024})
    assert found.devices == 1024 and found.rows == 4
    assert found.collectives[0].sent == 2 * 1023 / 1024 * found.gradient_bytes
    with pytest.raises(ValueError, match=r"mesh must have the axes \['data'\], got \['fsdp'\]"):
        jo.size(TASK, images(8), here, optimizer=ADAM, mesh={"fsdp": 8})
    with pytest.raises(ValueError, match=r"hardware must be one of H100, .*, got 'TPU'"):
        jo.size(TASK, images(8), optimizer=ADAM, hardware="TPU")


def test_the_plans_own_rules_go_by_the_mesh_that_is_not_here():
    here = jo.devices.plan(data=1, fsdp=1, min_size=64, devices=jax.devices()[:1])
    found = jo.size(TASK, images(64), here, optimizer=ADAM, mesh={"data": 2, "fsdp": 8})
    hidden, logits, biases = 16 * 16, 16 * 3, 16 + 3
    assert found.parameter_bytes == 4 * (hidden / 8 + logits + biases)
    kinds = [c[:2] for c in found.collectives]
    assert ("all-gather", ("fsdp",)) in kinds and ("all-reduce", ("data", "fsdp")) in kinds
    coupled = TASK._replace(coupled=True)
    with pytest.raises(ValueError, match=r"accumulate must be 1 .*, got 2"):
        jo.size(coupled, images(64), optimizer=ADAM, accumulate=2)


def test_nothing_is_allocated_for_what_no_machine_holds():
    """Ten billion parameters, 40 GB."""
    task = regression(nn.Dense(100_000), features=100_000)
    rows = jax.ShapeDtypeStruct((1024, 100_000), "float32")
    before = sum(a.nbytes for a in jax.live_arrays())
    found = jo.size(task, {"x": rows, "y": rows}, optimizer=ADAM)
    assert found.parameters == 100_000 * 100_001 and not found.fits
    assert sum(a.nbytes for a in jax.live_arrays()) - before < 1e6
    text = str(found)
    assert "10,000,100,000 parameters" in text and "does not fit" in text
    assert "80 GB" in text and "compute binds" not in text


def test_accumulation_and_rematerialisation_save_activations():
    task, batch = MODELS["gpt"]
    plain = jo.size(task, batch, optimizer=ADAM)
    fourth = jo.size(task, batch, optimizer=ADAM, accumulate=4)
    assert fourth.activation_bytes == pytest.approx(plain.activation_bytes / 4, rel=0.05)
    assert fourth.device_flops == plain.device_flops
    whole = jax.checkpoint(task.loss, static_argnums=4)
    again = jo.size(task._replace(loss=whole), batch, optimizer=ADAM)
    assert again.device_flops == pytest.approx(plain.device_flops * 4 / 3, rel=0.01)
    narrow = jo.size(task, batch, optimizer=ADAM, compute="bfloat16")
    assert narrow.compute_seconds == pytest.approx(plain.compute_seconds * 494 / 989)


@pytest.mark.parametrize(
    "strides,padding,dilation,groups",
    [
        (2, "VALID", 1, 2),
        (3, ((2, 1), (0, 3)), 2, 1),
        pytest.param(1, "SAME", 1, 1, marks=pytest.mark.slow),
        pytest.param(1, "VALID", 1, 8, marks=pytest.mark.slow),
    ],
)
def test_convolutions_and_their_gradients_are_counted_as_xla_does(
    strides, padding, dilation, groups
):
    def conv(x, kernel):
        y = jax.lax.conv_general_dilated(
            x, kernel, (strides, strides), padding, rhs_dilation=(dilation, dilation),
            feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        return y.sum()

    x, kernel = jnp.ones((4, 13, 17, 8)), jnp.ones((3, 3, 8 // groups, 16))
    for function in (conv, jax.grad(conv), jax.grad(conv, 1)):
        traced = jax.make_jaxpr(function)(x, kernel)
        xla = jax.jit(function).lower(x, kernel).cost_analysis()["flops"]
        assert cost(traced).flops == pytest.approx(xla, rel=0.01)


def test_loops_count_as_often_as_they_run():
    w = jnp.ones((5, 8, 8))

    def body(x, w):
        return jnp.tanh(x @ w), x.sum()

    def looped(x, w):
        return jax.lax.scan(body, x, w)

    def unrolled(x, w):
        sums = []
        for one in w:
            x, total = body(x, one)
            sums.append(total)
        return x, jnp.stack(sums)

    x = jnp.ones((3, 8))
    one, other = (cost(jax.make_jaxpr(f)(x, w)) for f in (looped, unrolled))
    assert one.products == other.products == {"float32": 5 * 2 * 3 * 8 * 8}
    assert one.flops == other.flops
    chosen = jax.make_jaxpr(lambda x: jax.lax.cond(x.sum() > 0, lambda x: x @ x, jnp.sin, x))
    assert cost(chosen(jnp.ones((4, 4)))).products == {"float32": 2 * 4**3}


def test_the_platform_chooses_its_code():
    def function(x):
        return jax.lax.platform_dependent(x, cpu=lambda x: x @ x, default=jnp.sin)

    traced = jax.make_jaxpr(function)(jnp.ones((4, 4)))
    assert cost(traced, "cpu").products and not cost(traced, "tpu").products


def test_what_is_alive_at_once():
    """Three arrays of 4 kB: the first is freed when the third is made."""

    def function(x):
        for _ in range(3):
            x = jnp.sort(x)
        return x

    found = cost(jax.make_jaxpr(function)(jnp.ones(1024)))
    assert found.alive == 2 * 4096 and found.moved == 6 * 4096


def test_the_table_is_plausible():
    for name, device in HARDWARE.items():
        assert device.name == name and device.platform in ("cuda", "tpu")
        assert 1e14 < device.float32 <= device.bfloat16 < 2e15
        assert device.network < device.interconnect < device.bandwidth
        # a product has to use each byte this often to be worth the tensor cores
        assert 100 < device.bfloat16 / device.bandwidth < 600


def test_this_machine_is_measured(monkeypatch):
    monkeypatch.setattr(clock, "peak_flops", functools.partial(clock.peak_flops, size=256))
    here = this_machine.__wrapped__()
    assert here.platform == "cpu" and here.island == 8
    assert 1e8 < here.bandwidth < 1e13 and here.memory > 1e9
    found = jo.size(TASK, images(64), optimizer=ADAM, hardware=here)
    assert found.compute_seconds == found.device_flops / here.float32


def test_what_a_program_sends():
    text = """
      %a = (f32[4,8]{1,0}, f32[]) all-reduce(%x, %y), replica_groups={{0,1,2,3}}
      %b = f32[16,8]{1,0} all-gather-start(%a), dimensions={0}
      %c = f32[16,8]{1,0} add(%b, %b)
    """
    counts, sent = scaling._sent(text, 4)
    assert counts["all-reduce"] == counts["all-gather"] == 1 and sum(counts.values()) == 2
    assert sent == 3 / 4 * (2 * (128 + 4) + 512)
