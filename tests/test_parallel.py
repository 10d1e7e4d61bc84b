"""Eight devices give the numbers of one."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from small import ADAM, SETTINGS, TASK, assert_close, images

import jaxops as jo
from jaxops import optim, vision
from jaxops.nn import BatchNorm, Conv, max_pool
from jaxops.program import train_program


class Net(nn.Module):
    """Convolution, batch norm that leaves padding out, dropout (off)."""

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        x = Conv(4)(x)
        x = BatchNorm()(x, train=train, mask=mask)
        x = max_pool(nn.relu(x), 2).reshape(len(x), -1)
        return nn.Dense(3)(nn.Dropout(0.0, deterministic=not train)(x))


CONV = vision.classifier(Net(), **SETTINGS)
EIGHT = jo.parallel.data_parallel()
DATA = images(107)


def fit(task, plan, **changes):
    settings = {"optimizer": optim.sgd(0.1, 0.9), "batch_size": 16, "steps": 20, "progress": False}
    return jo.fit(task, DATA, plan=plan, **{**settings, **changes})


@pytest.fixture(scope="module", params=["mlp", "conv"])
def both(request):
    task = {"mlp": TASK, "conv": CONV}[request.param]
    return task, fit(task, None), fit(task, EIGHT)


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
        for plan in (None, EIGHT, jo.parallel.data_parallel(jax.local_devices()[:3])):
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


def compiled(plan, task=CONV):
    source = jo.data.feed.Resident(DATA, 16, 0, plan)
    state = jo.init_state(task, ADAM, 0, images(1), plan)
    program = train_program(task, ADAM, plan, "float32", source.take)
    count = jax.device_put(np.int32(4), plan.whole())
    return program.lower(state, source.fixed, source.feed(0, 4, 8), count).compile().as_text()


def test_collectives_are_few_and_the_data_stays_where_it_is():
    text = compiled(EIGHT, TASK)
    reduces = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    assert 1 <= len(reduces) <= 3, reduces
    assert not re.search(r"all-gather|all-to-all|collective-permute", text)
    assert "all-reduce" not in compiled(jo.parallel.single(), TASK)
    # batch norm needs the sums of the whole batch, forward and backward
    assert 1 <= len(re.findall(r" all-reduce(?:-start)?\(", compiled(EIGHT))) <= 8


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
    assert EIGHT.batch_shards == 8 and jo.parallel.single().batch_shards == 1


def test_equal_plans_are_one():
    assert jo.parallel.data_parallel() == EIGHT
    assert hash(jo.parallel.single()) == hash(jo.parallel.single())
