"""The networks: against PyTorch with the same weights, and what a forecast may look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops import forecast
from jaxops.forecast import Inputs
from jaxops.forecast.models.layers import Dropout
from jaxops.forecast.models.linear import moving_average
from jaxops.nn import LSTM


def windows(batch=3, context=40, channels=2, horizon=5, **widths):
    """As `Inputs.of` makes them, in NumPy."""
    random = np.random.default_rng(0)
    values = random.normal(size=(batch, context, channels)).cumsum(1).astype(np.float32)
    lengths = {"past": (context,), "known": (context + horizon,), "static": ()}
    given = {
        name: random.normal(size=(batch, *lengths[name], widths.get(name, 0))) for name in lengths
    }
    return Inputs(values, **{name: column.astype(np.float32) for name, column in given.items()})


def drawn(model, x):
    """Variables of the module's shapes, from NumPy: `init` would be one more compilation.

    Scales and variances lie around 1, and the rest around 0.
    """
    random = np.random.default_rng(7)

    def leaf(path, shape):
        middle = path[-1].key in ("scale", "var")
        size = shape.shape[-2] ** -0.5 if len(shape.shape) > 1 else 0.1
        return (middle + random.uniform(-size, size, shape.shape)).astype(np.float32)

    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree_util.tree_map_with_path(leaf, shapes)


def test_the_moving_average_is_that_of_its_definition():
    x = np.random.default_rng(0).normal(size=(2, 30, 3)).astype(np.float32)
    kernels = (1, 3, 7, 25)
    found = jax.jit(lambda x: [moving_average(x, kernel) for kernel in kernels])(x)
    for kernel, one in zip(kernels, found, strict=True):
        half = kernel // 2
        padded = np.pad(x, ((0, 0), (half, half), (0, 0)), mode="edge")
        wanted = np.stack([padded[:, i : i + kernel].mean(1) for i in range(30)], 1)
        np.testing.assert_allclose(one, wanted, atol=1e-6)


@pytest.mark.parametrize("individual", [False, True])
def test_nlinear_and_dlinear_are_their_formulas(individual):
    x = windows()
    values = np.asarray(x.values)
    model = forecast.NLinear(40, 5, individual=individual)
    variables = drawn(model, x)
    found = jax.jit(model.apply)(variables, x)
    p = {
        k: np.broadcast_to(v, (2, *v.shape[-2:]) if "kernel" in k else (2, 5))
        for k, v in variables["params"].items()
    }
    wanted = np.einsum("blc,clh->bhc", values - values[:, -1:], p["kernel"]) + p["bias"].T
    np.testing.assert_allclose(found[..., 0], wanted + values[:, -1:], atol=1e-4)

    model = forecast.DLinear(40, 5, individual=individual, kernel=7)
    variables = drawn(model, x)
    found = jax.jit(model.apply)(variables, x)
    p = {
        k: np.broadcast_to(v, (2, *v.shape[-2:]) if "kernel" in k else (2, 5))
        for k, v in variables["params"].items()
    }
    padded = np.pad(values, ((0, 0), (3, 3), (0, 0)), mode="edge")
    trend = np.stack([padded[:, i : i + 7].mean(1) for i in range(40)], 1)
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
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]

    def forecasts(params):
        return model.apply({"params": params}, x)[..., 0]

    def loss(params):
        return jnp.sin(forecasts(params)).sum()

    y, grads = jax.jit(lambda p: (forecasts(p), jax.grad(loss)(p)))(params)
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
    wanted.sin().sum().backward()
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
    x = windows(context=43)
    model = forecast.PatchTST(43, 5, depth=2, dropout=0.0, hidden=32)
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), x))
    random = np.random.default_rng(1)  # norms that do something
    variables = jax.tree.map(lambda v: v + random.uniform(0, 0.2, v.shape).astype("f4"), variables)
    run = jax.jit(lambda v: model.apply(v, x, train, mutable=["batch_stats"])[0])
    found = run(variables)
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


L, H = 32, 6
SMALL = {
    "NLinear": {},
    "DLinear": {},
    "NBEATS": {"width": 16, "stacks": ("generic", "trend", "seasonality"), "blocks": 2},
    "NHiTS": {"width": 16},
    "TSMixer": {"hidden": 8, "blocks": 2},
    "TSMixerExt": {"hidden": 8, "width": 8, "blocks": 1},
    "TiDE": {"width": 16, "temporal": 8},
    "PatchTST": {"depth": 2, "hidden": 16},
    "ITransformer": {"width": 16, "hidden": 16, "heads": 2},
    "Recurrent": {"width": 8},
}
USES = {
    "TSMixerExt": ("past", "known", "static"),
    "TiDE": ("past", "known", "static"),
    "Recurrent": ("past", "known", "static"),
    "ITransformer": ("past", "known"),
}
MIXING = {"TSMixer", "TSMixerExt", "ITransformer", "Recurrent"}


def make(name, **kwargs):
    return getattr(forecast, name)(L, H, **SMALL[name], **kwargs)


@pytest.mark.parametrize("name", SMALL)
def test_every_network_keeps_its_promises(name):
    """Units, channels, and what a covariate may tell."""
    widths = {"past": 2, "known": 3, "static": 1}
    x = windows(3, L, 2, H, **{k: widths[k] for k in USES.get(name, ())})
    model = make(name, instance_norm="mean_std")
    variables = drawn(model, x)
    run = jax.jit(lambda v, x: model.apply(v, x)[..., 0])
    y = np.asarray(run(variables, x))
    assert y.shape == (3, H, 2)
    other = run(variables, x._replace(values=x.values * 3 + 7))
    np.testing.assert_allclose(other, 3 * y + 7, rtol=1e-3, atol=1e-3)

    values = x.values.copy()
    values[1:, :, 1] += np.arange(L) % 5
    moved = np.asarray(run(variables, x._replace(values=values)))
    assert (moved[0] == y[0]).all()  # another window's
    assert not np.allclose(moved[1:, :, 1], y[1:, :, 1], atol=1e-3)
    assert np.allclose(moved[1:, :, 0], y[1:, :, 0], atol=1e-5) == (name not in MIXING)

    for column in USES.get(name, ()):
        value = getattr(x, column)
        moved = run(variables, x._replace(**{column: value + 1}))
        assert not np.allclose(moved, y, atol=1e-4)
    if "known" in USES.get(name, ()):  # of step 2
        known = x.known.copy()
        known[:, L + 2] += 1
        moved = np.asarray(run(variables, x._replace(known=known)))
        assert not np.allclose(moved[:, 2], y[:, 2], atol=1e-5)


def test_the_forecast_of_a_step_by_its_own_known_covariates_alone():
    """A recurrent network's steps are apart: the gradient by another step's covariates is 0."""
    x, model = windows(2, L, 1, H, known=2), make("Recurrent")
    variables = drawn(model, x)

    def first(known):
        return model.apply(variables, x._replace(known=known))[0, :, 0, 0]

    found = np.asarray(jax.jit(jax.jacobian(first))(x.known))
    by_step = abs(found[:, 0, L:]).max(-1)
    assert (np.diag(by_step) > 1e-6).all()
    assert (by_step - np.diag(np.diag(by_step)) == 0).all()
    assert (found[:, 1] == 0).all()


@pytest.mark.parametrize("name", SMALL)
def test_every_network_learns_with_dropout_and_quantiles(name):
    x = windows(4, L, 2, H)
    output = forecast.Quantiles((0.1, 0.5, 0.9))
    model = make(name, output=output)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    assert jax.eval_shape(model.apply, shapes, x).shape == (4, H, 2, 3)
    for column in ("past", "known", "static"):
        given = windows(4, L, 2, H, **{column: 1})
        if column in USES.get(name, ()):
            jax.eval_shape(model.init, jax.random.key(0), given)
        else:
            with pytest.raises(
                ValueError, match=f"{column} must have width 0 for {name}, .*, got 1"
            ):
                jax.eval_shape(model.init, jax.random.key(0), given)
    with pytest.raises(ValueError, match=rf"values must have shape \(B, {L}, C\) for {name}"):
        jax.eval_shape(model.init, jax.random.key(0), windows(4, L - 1, 2, H))
    counts = make(name, output=forecast.NegativeBinomial(), instance_norm="mean_std")
    with pytest.raises(
        ValueError, match=r'must be "none" or "mean", got .*mean_std.*, with NegativeBinomial'
    ):
        jax.eval_shape(counts.init, jax.random.key(0), x)


def test_bad_settings_are_refused():
    x, key = windows(2, L, 1, H), jax.random.key(0)
    bad = [
        (forecast.PatchTST(L, H, patch=33), "got patch=33 and stride=8"),
        (forecast.PatchTST(L, H, stride=0), "got patch=16 and stride=0"),
        (forecast.PatchTST(L, H, heads=3), r"width must be a multiple of 3 \(heads\)"),
        (forecast.DLinear(L, H, kernel=24), "kernel must be odd, got 24"),
        (forecast.NLinear(L, 0), "horizon must be at least 1 in NLinear, got 0"),
        (forecast.NLinear(L, H, instance_norm="max"), "instance_norm must be one of .*, got 'max'"),
        (forecast.NBEATS(L, H, stacks=("trends",)), "stacks must be some of"),
        (
            forecast.NHiTS(L, H, pool=(2,)),
            r"pool and downsample must .*, got \(2,\) and \(4, 2, 1\)",
        ),
        (forecast.Recurrent(L, H, cell="rnn"), "cell must be .*, got 'rnn'"),
    ]
    for model, message in bad:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.init, key, x)
    short = Inputs.of(x.values, H, known=np.ones((2, L + H - 1, 1), np.float32))
    with pytest.raises(ValueError, match=r"known must have shape \(2, 38, 1\), got \(2, 37, 1\)"):
        jax.eval_shape(forecast.TiDE(L, H).init, key, short)


def test_instance_norm_of_constant_and_zero_windows():
    x = np.zeros((1, 4, 2), np.float32)
    x[..., 1] = 5
    kinds = ("mean_std", "last", "mean")
    *two, mean = jax.device_get(jax.jit(lambda x: [forecast.normalize(x, k) for k in kinds])(x))
    for found, loc, _ in two:
        assert (found == 0).all()
        assert loc[0, 0].tolist() == [0, 5]
    found, loc, scale = mean
    assert loc is None
    assert scale[0, 0].tolist() == [1, 5]
    assert found[0, 0].tolist() == [0, 1]


def test_dropout_drops_by_chance_at_its_rate():
    x = np.ones((400, 250), np.float32)
    layer = Dropout(0.3)
    run = jax.jit(lambda key: layer.apply({}, x, True, rngs={"dropout": key}))
    first, other = (np.asarray(run(jax.random.key(i))) for i in range(2))
    np.testing.assert_allclose(np.unique(first), [0, 1 / 0.7], rtol=1e-6)
    sigma = (0.3 * 0.7) ** 0.5
    for a, b in [(first, other), (first[1:], first[:-1]), (first[:, 1:], first[:, :-1])]:
        dropped, also = a == 0, b == 0
        assert abs(dropped.mean() - 0.3) < 5 * sigma / dropped.size**0.5
        together = (dropped & also).mean()  # independent
        assert abs(together - 0.09) < 5 * (0.09 * 0.91 / dropped.size) ** 0.5
    for axis in (0, 1):  # of each row and column: chi squared
        counts = (first == 0).sum(axis)
        chi = ((counts - 0.3 * first.shape[axis]) ** 2).sum() / (sigma**2 * first.shape[axis])
        assert abs(chi - counts.size) < 5 * (2 * counts.size) ** 0.5
    assert (layer.apply({}, x, False) == x).all()
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
        Dropout(1).apply({}, x, True, rngs={"dropout": jax.random.key(0)})


def perceptron(p, x):
    names = sorted(n for n in p if n.startswith("dense"))
    for name in names:
        x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"], 0)
    return x @ p["theta"]["kernel"] + p["theta"]["bias"]


def test_nbeats_is_its_blocks_one_after_the_other():
    """Trend and seasonality, whose two blocks share weights, then two generic ones."""
    x = windows(2, 12, 1, H)
    model = forecast.NBEATS(
        12, H, instance_norm="none", stacks=("trend", "seasonality", "generic"), blocks=2, width=8
    )
    variables = drawn(model, x)
    found, p = jax.jit(model.apply)(variables, x), variables["params"]
    assert len(p) == 4
    time = np.arange(-12, H)
    curves = [
        np.stack([(time / 12) ** i for i in range(3)]),
        np.stack([f(2 * np.pi * i * time / H) for f in (np.cos, np.sin) for i in range(3)]),
    ]
    residual, total = np.asarray(x.values)[:, :, 0], 0
    for stack in range(3):
        for block in range(2):
            theta = perceptron(p[f"stack_{stack}_block_{block if stack == 2 else 0}"], residual)
            if stack == 2:
                back, ahead = theta[:, :12], theta[:, 12:]
            else:
                half = theta.shape[1] // 2
                back = theta[:, :half] @ curves[stack][:, :12]
                ahead = theta[:, half:] @ curves[stack][:, 12:]
            residual, total = residual - back, total + ahead
    np.testing.assert_allclose(found[:, :, 0, 0], total, atol=1e-3, rtol=1e-3)


def test_nhits_is_its_stacks_by_pytorchs_pooling_and_interpolation():
    torch = pytest.importorskip("torch")
    x = windows(2, 13, 1, H)
    model = forecast.NHiTS(13, H, instance_norm="none", pool=(4, 1), downsample=(3, 2), width=8)
    found, variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
    p = jax.tree.map(np.asarray, variables["params"])
    residual, total = np.asarray(x.values)[:, :, 0], 0
    for stack, pool in enumerate((4, 1)):
        seen = torch.nn.functional.max_pool1d(torch.tensor(residual)[:, None], pool, ceil_mode=True)
        theta = perceptron(p[f"stack_{stack}_block_0"], seen[:, 0].numpy())
        knots = torch.tensor(theta[:, None, 13:])
        lines = torch.nn.functional.interpolate(knots, size=H, mode="linear")
        residual, total = residual - theta[:, :13], total + lines[:, 0].numpy()
    np.testing.assert_allclose(found[:, :, 0, 0], total, atol=1e-4, rtol=1e-4)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def layer_norm(p, x, axes):
    x = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + 1e-5)
    return x * p["scale"] + p["bias"]


def test_tsmixer_is_its_perceptrons_over_time_and_over_channels():
    """Chen et al. 2023, figure 1: norms over both axes, one layer over time, two over channels."""
    x = windows(3, 12, 2, H)
    model = forecast.TSMixer(12, H, instance_norm="none", blocks=2, hidden=7)
    variables = drawn(model, x)
    p, y = variables["params"], np.asarray(x.values)
    for i in range(2):
        time, feature = p[f"time_{i}"], p[f"feature_{i}"]
        seen = layer_norm(time["norm"], y, (1, 2)).transpose(0, 2, 1)
        y = y + np.maximum(dense(time["time"], seen), 0).transpose(0, 2, 1)
        seen = np.maximum(dense(feature["up"], layer_norm(feature["norm"], y, (1, 2))), 0)
        y = y + dense(feature["down"], seen)
    wanted = dense(p["head"], y.transpose(0, 2, 1)).transpose(0, 2, 1)
    found = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found[..., 0], wanted, atol=1e-4, rtol=1e-4)


def test_tide_is_its_residual_blocks():
    """Das et al. 2023, figure 1: covariates projected, encoder, decoder, a step's own, a skip."""
    x = windows(3, 12, 2, H, known=4, static=2)
    model = forecast.TiDE(
        12,
        H,
        instance_norm="none",
        width=9,
        encoder=1,
        decoder=2,
        per_step=3,
        projected=2,
        temporal=5,
    )
    variables = drawn(model, x)
    p = variables["params"]

    def block(name, x):
        q = p[name]
        y = dense(q["down"], np.maximum(dense(q["up"], x), 0)) + dense(q["skip"], x)
        return layer_norm(q["norm"], y, -1) if "norm" in q else y

    known, outputs = block("known", np.asarray(x.known)), jax.jit(model.apply)(variables, x)
    for channel in range(2):
        values = np.asarray(x.values)[:, :, channel]
        y = np.concatenate([values, np.asarray(x.static), known.reshape(3, -1)], 1)
        y = block("decoder_1", block("decoder_0", block("encoder_0", y))).reshape(3, H, 3)
        steps = block("temporal", np.concatenate([y, known[:, 12:]], 2))[:, :, 0]
        found = outputs[:, :, channel, 0]
        np.testing.assert_allclose(found, steps + dense(p["direct"], values), atol=1e-4, rtol=1e-4)


def test_recurrent_is_a_cell_and_two_layers_for_each_step():
    """The cell itself is held to PyTorch's in tests/nn."""
    x = windows(3, 12, 2, H, past=1, known=4, static=2)
    model = forecast.Recurrent(12, H, instance_norm="none", width=6, step_width=3)
    variables = drawn(model, x)
    p = variables["params"]
    static = np.broadcast_to(np.asarray(x.static)[:, None], (3, 12, 2))
    seen = np.concatenate([x.values, x.past, x.known[:, :12], static], -1)
    states = jax.jit(LSTM(6, 1).apply)({"params": p["recurrence"]}, seen)[0]
    steps = dense(p["context"], np.asarray(states)[:, -1]).reshape(3, H, 3)
    steps = np.concatenate([steps, np.asarray(x.known)[:, 12:]], -1)
    wanted = dense(p["head"], np.maximum(dense(p["step"], steps), 0))
    found = jax.jit(model.apply)(variables, x)
    np.testing.assert_allclose(found[..., 0], wanted, atol=1e-4, rtol=1e-4)


def test_itransformer_is_that_of_pytorch():
    torch = pytest.importorskip("torch")
    x = windows(2, L, 3, H)
    model = forecast.ITransformer(L, H, width=16, hidden=24, heads=2)
    found, variables = jax.jit(model.init_with_output)(jax.random.key(0), x)
    p = variables["params"]
    values = torch.tensor(np.array(x.values))
    mean, std = values.mean(1, True), (values.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    z = torch_linear(torch.nn.Linear(L, 16), p["values"])(((values - mean) / std).transpose(1, 2))
    for i in range(2):
        own = p["blocks"][f"block_{i}"]
        layer = torch.nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", batch_first=True).eval()
        torch_linear(layer.self_attn.out_proj, own["attention"]["out"])
        torch_linear(layer.linear1, own["feed_forward"]["up"])
        torch_linear(layer.linear2, own["feed_forward"]["down"])
        qkv = own["attention"]["qkv"]
        with torch.no_grad():
            layer.self_attn.in_proj_weight.copy_(torch.tensor(np.array(qkv["kernel"].T)))
            layer.self_attn.in_proj_bias.copy_(torch.tensor(np.array(qkv["bias"])))
        z = layer(z)  # norms begin as the identity on both sides
    z = torch.nn.functional.layer_norm(z, (16,))
    wanted = torch_linear(torch.nn.Linear(16, H), p["head"])(z).transpose(1, 2) * std + mean
    np.testing.assert_allclose(found[..., 0], wanted.detach(), atol=1e-4, rtol=1e-4)
