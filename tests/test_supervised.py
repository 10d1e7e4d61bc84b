"""What `supervised` asks of a module and of a loss."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxops as jo

ROWS = {"x": np.arange(12, dtype=np.float32).reshape(4, 3)}
KEY = jax.random.key(0)


def task(model, loss, **changes):
    return jo.supervised(
        model,
        lambda batch, key: batch["x"],
        loss,
        lambda outputs, batch, weights: {},
        lambda outputs: outputs,
        (jo.Column("x", (3,)),),
        **changes,
    )


@pytest.mark.parametrize(
    ("loss", "shape"),
    [
        (lambda out, batch, train: jnp.square(out).mean(), r"\(\)"),
        (lambda out, batch, train: jnp.square(out), r"\(4, 1\)"),
        (lambda out, batch, train: jnp.square(out)[:1, 0], r"\(1,\)"),
        (lambda out, batch, train: 0.0, r"\(\)"),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_a_loss_is_one_value_a_row(loss, shape, train):
    made = task(nn.Dense(1), loss)
    params, extra = made.init(KEY, ROWS)
    with pytest.raises(ValueError, match=rf"loss must have shape \(4,\) .*, got {shape}"):
        jax.eval_shape(lambda p: made.loss(p, extra, ROWS, KEY, train)[0], params)


LOSS = lambda out, batch, train: out[:, 0]  # noqa: E731


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"module": nn.Dense}, "module must be a Flax module, .* got the class Dense; call it"),
        ({"module": print}, "module must be a Flax module, .* got <built-in function print>"),
        ({"columns": ("x",)}, "columns must be jo.Column values, got 'x'"),
        ({"inputs": lambda b: b}, r"inputs must be a function of \(batch, key\), got one of \(b\)"),
        ({"loss": lambda o, b: o}, r"loss must be a function of .*train\), got one of \(o, b\)"),
        ({"metrics": None}, r"metrics must be a function of \(outputs, batch, weights\), got None"),
        ({"predict": None}, r"predict must be a function of \(outputs\), got None"),
    ],
)
def test_the_parts_of_a_task_are_checked(changes, words):
    parts = {
        "module": nn.Dense(1),
        "inputs": lambda batch, key: batch["x"],
        "loss": LOSS,
        "metrics": lambda outputs, batch, weights: {},
        "predict": lambda outputs: outputs,
        "columns": [jo.Column("x", (3,))],
    }
    assert jo.supervised(**parts).columns == (jo.Column("x", (3,)),)  # a list too
    with pytest.raises(ValueError, match=words):
        jo.supervised(**parts | changes)


@pytest.mark.parametrize(
    ("metrics", "loss", "words"),
    [
        (
            {},
            lambda out, batch, train: (out[:, 0] > 0).astype(int),
            "loss must be float, got int32",
        ),
        ([1], LOSS, "metrics must return states by name, got list"),
        ({"loss": 1}, LOSS, 'metrics must have other names than "loss", which a step adds'),
        ({"m": 0.5}, LOSS, r"metrics\['m'\] must be a state, .*, got 0.5"),
        ({"m": jnp.ones(4)}, LOSS, r"metrics\['m'\] must be a state, .*, got shape \(4,\)"),
    ],
)
def test_what_a_loss_and_metrics_return_is_checked(metrics, loss, words):
    made = jo.supervised(
        nn.Dense(1), lambda b, key: b["x"], loss, lambda o, b, w: metrics, lambda o: o, ()
    )
    params, extra = made.init(KEY, ROWS)
    with pytest.raises(ValueError, match=words):
        made.loss(params, extra, ROWS, KEY, True)


class Strict(nn.Module):
    """Neither `train` nor `mask` has a default."""

    @nn.compact
    def __call__(self, x, train: bool, mask):
        rows = self.variable("seen", "rows", lambda: mask)
        w = self.param("w", nn.initializers.constant(100.0 if train else 2.0), ())
        return w * x.sum(-1) + 0 * rows.value


@pytest.mark.parametrize("mask", [None, [1.0, 1.0, 0.5, 0.0]])
def test_init_names_train_and_mask_as_a_step_does(mask):
    made = task(Strict(), lambda out, batch, train: out)
    rows = ROWS if mask is None else {**ROWS, "mask": np.array(mask, np.float32)}
    params, extra = made.init(KEY, rows)
    assert params["w"] == 2.0
    np.testing.assert_array_equal(extra["seen"]["rows"], [True, True, True, mask is None])
    total, out = made.loss(params, extra, rows, KEY, False)
    # rows sum to 3, 12, 21, 30, each twice; masked: 6 + 24 + 42 / 2
    assert (total, out.weight) == ((132.0, 4.0) if mask is None else (51.0, 2.5))


@pytest.mark.parametrize("coupled", [False, True])
def test_a_coupled_loss_is_not_taken_in_parts(coupled):
    """In-batch negatives: each row is to be the likest to itself of all rows of its batch."""

    def loss(out, batch, train):
        return optax.softmax_cross_entropy_with_integer_labels(out @ out.T, jnp.arange(len(out)))

    def fit(accumulate):
        made = task(nn.Dense(2), loss, coupled=coupled)
        sgd = jo.optim.sgd(0.01)
        settings = {"batch_size": 4, "accumulate": accumulate, "steps": 1, "progress": False}
        return jo.fit(made, ROWS, optimizer=sgd, **settings).params["kernel"]

    whole = fit(1)
    if coupled:
        with pytest.raises(ValueError, match="coupled=True"):
            fit(2)
    else:  # the parts have fewer negatives: what it would have learned
        assert not np.allclose(fit(2), whole, rtol=1e-3)
