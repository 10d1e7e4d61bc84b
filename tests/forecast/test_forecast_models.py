"""The networks: against PyTorch with the same weights, and what a forecast may look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops import forecast
from jaxops.forecast import Inputs
from jaxops.forecast.linear import moving_average


def windows(batch=3, look_back=40, channels=2, horizon=5, **widths):
    random = np.random.default_rng(0)
    values = random.normal(size=(batch, look_back, channels)).cumsum(1).astype(np.float32)
    lengths = {"past": (look_back,), "known": (look_back + horizon,), "static": ()}
    given = {
        name: random.normal(size=(batch, *lengths[name], width)).astype(np.float32)
        for name, width in widths.items()
    }
    return Inputs.of(values, horizon, **given)


def test_the_moving_average_is_that_of_its_definition():
    x = np.random.default_rng(0).normal(size=(2, 30, 3)).astype(np.float32)
    for kernel in (1, 3, 7, 25):
        half = kernel // 2
        padded = np.pad(x, ((0, 0), (half, half), (0, 0)), mode="edge")
        wanted = np.stack([padded[:, i : i + kernel].mean(1) for i in range(30)], 1)
        np.testing.assert_allclose(moving_average(x, kernel), wanted, atol=1e-6)


@pytest.mark.parametrize("individual", [False, True])
def test_nlinear_and_dlinear_are_their_formulas(individual):
    x = windows()
    values = np.asarray(x.values)
    model = forecast.NLinear(40, 5, individual=individual)
    found, variables = model.init_with_output(jax.random.key(0), x)
    p = {
        k: np.broadcast_to(v, (2, *v.shape[-2:]) if "kernel" in k else (2, 5))
        for k, v in variables["params"].items()
    }
    wanted = np.einsum("blc,clh->bhc", values - values[:, -1:], p["kernel"]) + p["bias"].T
    np.testing.assert_allclose(found[..., 0], wanted + values[:, -1:], atol=1e-4)

    model = forecast.DLinear(40, 5, individual=individual, kernel=7)
    found, variables = model.init_with_output(jax.random.key(0), x)
    p = {
        k: np.broadcast_to(v, (2, *v.shape[-2:]) if "kernel" in k else (2, 5))
        for k, v in variables["params"].items()
    }
    trend = np.asarray(moving_average(x.values, 7))
    wanted = np.einsum("blc,clh->bhc", trend, p["trend_kernel"]) + p["trend_bias"].T
    wanted += np.einsum("blc,clh->bhc", values - trend, p["seasonal_kernel"]) + p["seasonal_bias"].T
    np.testing.assert_allclose(found[..., 0], wanted, atol=1e-4)


def torch_linear(layer, params):
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(params["kernel"].T)))
        layer.bias.copy_(torch.from_numpy(np.array(params["bias"])))
    return layer


def test_dlinear_and_its_gradients_are_those_of_pytorch():
    torch = pytest.importorskip("torch")
    x = windows()
    model = forecast.DLinear(40, 5)
    params = model.init(jax.random.key(0), x)["params"]
    y, pull = jax.vjp(lambda p: model.apply({"params": p}, x)[..., 0], params)
    values = torch.from_numpy(np.array(x.values))
    front, end = values[:, :1].repeat(1, 12, 1), values[:, -1:].repeat(1, 12, 1)
    padded = torch.cat([front, values, end], 1).permute(0, 2, 1)
    trend = torch.nn.AvgPool1d(25, stride=1)(padded)
    parts = {"trend": trend, "seasonal": values.permute(0, 2, 1) - trend}
    layers = {
        name: torch_linear(
            torch.nn.Linear(40, 5), {k: params[f"{name}_{k}"] for k in ("kernel", "bias")}
        )
        for name in parts
    }
    wanted = sum(layers[name](part) for name, part in parts.items()).permute(0, 2, 1)
    np.testing.assert_allclose(y, wanted.detach(), atol=1e-4)
    (grads,) = pull(jnp.cos(y))
    (wanted.cos().detach() * wanted).sum().backward()
    for name, layer in layers.items():
        np.testing.assert_allclose(
            grads[f"{name}_kernel"], layer.weight.grad.T, atol=2e-4, rtol=1e-3
        )


def patchtst_in_torch(torch, params, stats, x, heads, stride, patch, train):
    """The paper's network, an operation a line."""
    mean = x.mean(1, keepdim=True)
    std = torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-5)
    z = ((x - mean) / std).permute(0, 2, 1)
    batch, channels, _ = z.shape
    z = torch.nn.ReplicationPad1d((0, stride))(z).unfold(-1, patch, stride)

    def linear(z, p):
        return torch_linear(torch.nn.Linear(*p["kernel"].shape), p)(z)

    z = linear(z, params["embedding"]).flatten(0, 1) + torch.tensor(np.array(params["positions"]))
    rows, number, width = z.shape
    before = 0
    for name in sorted(n for n in params if n.startswith("block")):
        p = params[name]

        def norm(z, which):
            layer = torch.nn.BatchNorm1d(width)
            state = {"weight": p[which]["scale"], "bias": p[which]["bias"]}
            state |= {f"running_{k}": stats[name][which][k] for k in ("mean", "var")}
            state = {k: torch.tensor(np.array(v)) for k, v in state.items()}
            layer.load_state_dict(state, strict=False)
            return layer.train(train)(z.transpose(1, 2)).transpose(1, 2)

        q, k, v = (
            part.reshape(rows, number, heads, -1).transpose(1, 2)
            for part in linear(z, p["qkv"]).chunk(3, -1)
        )
        before = q @ k.transpose(2, 3) / (width // heads) ** 0.5 + before
        mixed = (before.softmax(-1) @ v).transpose(1, 2).reshape(rows, number, width)
        z = norm(z + linear(mixed, p["out"]), "attention_norm")
        z = norm(z + linear(torch.nn.GELU()(linear(z, p["up"])), p["down"]), "norm")
    y = linear(z.reshape(batch, channels, -1), params["head"]).permute(0, 2, 1)
    return y * std + mean


@pytest.mark.parametrize("train", [False, True])
def test_patchtst_is_that_of_pytorch(train):
    torch = pytest.importorskip("torch")
    x = windows(look_back=43)
    model = forecast.PatchTST(43, 5, layers=2, dropout=0.0, hidden=32)
    variables = model.init(jax.random.key(0), x)
    random = np.random.default_rng(1)  # norms that do something
    variables = jax.tree.map(lambda v: v + random.uniform(0, 0.2, v.shape).astype("f4"), variables)
    found, _ = model.apply(variables, x, train, mutable=["batch_stats"])
    wanted = patchtst_in_torch(
        torch,
        variables["params"],
        variables["batch_stats"],
        torch.from_numpy(np.array(x.values)),
        4,
        8,
        16,
        train,
    )
    np.testing.assert_allclose(found[..., 0], wanted.detach(), atol=1e-4, rtol=1e-4)
