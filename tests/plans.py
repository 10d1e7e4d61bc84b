"""Every model under every plan, against one device: `python tests/plans.py` prints the table."""

import functools
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from small import SETTINGS, TASK, Transformer, compilations, images, next_token, sentences

import jaxops as jo
from jaxops import optim, vision
from jaxops.nn import BatchNorm, Conv, max_pool
from jaxops.train.resident import Order, pad

BATCH_NORM = "CNN with batch norm"
ROWS, BATCH, STEPS = 107, 32, 20  # the fourth batch of an epoch has 11 rows, the rest is padding


class Net(nn.Module):
    """Convolution, batch norm that leaves padding out, dropout (off)."""

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        x = Conv(8, use_bias=False)(x)  # its gradient would be zero
        x = BatchNorm()(x, train=train, mask=mask)
        x = max_pool(nn.relu(x), 2).reshape(len(x), -1)
        return nn.Dense(3)(nn.Dropout(0.0, deterministic=not train)(x))


CNN = vision.classifier(Net(), **SETTINGS)
TRANSFORMER = next_token(Transformer(), 8)
MODELS = {
    "MLP": (TASK, images(ROWS)),
    BATCH_NORM: (CNN, images(ROWS)),
    "transformer": (TRANSFORMER, sentences(ROWS)),
}
ROW, COLUMN = ("tensor",), (None, "tensor")
RULES = {
    "MLP": [("hidden_0/kernel", COLUMN), ("hidden_0/bias", ROW), ("logits/kernel", ROW)],
    BATCH_NORM: [("Conv_0/kernel", (None, None, *COLUMN)), ("Dense_0/kernel", ROW)],
    "transformer": [
        ("embedding", ROW),
        ("(qkv|up)_0/kernel|logits/kernel", COLUMN),
        ("(project|down)_0/kernel", ROW),
    ],
}
AXES = {
    "data 8": {"data": 8},
    "fsdp 8": {"fsdp": 8},
    "tensor 8": {"tensor": 8},
    "data 2 x fsdp 2 x tensor 2": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp 4 x tensor 2": {"fsdp": 4, "tensor": 2},
}
# The sums of products and rows are taken in another order, which changes the last bits: 1e-7 of
# parameters of about 1. Twenty steps of SGD add them up to some 1e-6; 1e-5 leaves room, and is a
# thousandth of what a row lost, or counted twice, in one step would change. Adam divides a
# gradient by its own size, and so makes whole steps of a rounding where the gradient is zero (a
# bias before batch norm, the keys' in attention): an eps well above the rounding keeps 1e-5.
TOLERANCE = 1e-5
OPTIMIZERS = {"SGD": optim.sgd(0.1, 0.9), "Adam": optim.adam(1e-2, eps=1e-3)}


def make_plan(name, model):
    axes = AXES[name]
    return jo.devices.plan(**axes, rules=RULES[model] if "tensor" in axes else (), min_size=8)


@functools.cache
def trained(model, plan, accumulate=1, optimizer="SGD"):
    """(state, names of what was compiled) after twenty steps."""
    task, data = MODELS[model]
    tx = OPTIMIZERS[optimizer]
    with compilations() as names:
        if plan == "pmap":
            state = by_pmap(task, data, tx, accumulate)
        else:
            plan = None if plan == "one device" else make_plan(plan, model)
            settings = {"batch_size": BATCH, "steps": STEPS, "progress": False}
            state = jo.fit(task, data, optimizer=tx, plan=plan, accumulate=accumulate, **settings)
    return state, names


def by_pmap(task, data, tx, accumulate):
    """A loop of one's own, over the batches of `fit`."""
    state = jo.init_state(task, tx, 0, data, jo.devices.data_parallel())
    step = jo.pmap_train_step(task, tx, accumulate=accumulate)
    order = Order(ROWS, BATCH, seed=0)
    for i in range(STEPS):
        batch = {name: column[order.rows_of(i)] for name, column in data.items()}
        state, _ = step(state, pad(batch, BATCH))
    return state


def difference(model, plan, accumulate=1, optimizer="SGD"):
    """The largest of any parameter or batch statistic from those of one device."""
    one, other = (trained(model, p, accumulate, optimizer)[0] for p in ("one device", plan))
    pairs = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()),
        (one.params, one.extra),
        (other.params, other.extra),
    )
    return max(jax.tree.leaves(pairs))


def main():
    print(f"| plan | {' | '.join(MODELS)} |\n|---|{'---|' * len(MODELS)}")
    for accumulate in (1, 4):
        for plan in (*AXES, "pmap"):
            cells = [f"{difference(model, plan, accumulate):.1e}" for model in MODELS]
            parts = f", {accumulate} parts" * (accumulate > 1)
            print(f"| {plan}{parts} | {' | '.join(cells)} |")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import conftest  # noqa: F401  # eight devices

    main()
