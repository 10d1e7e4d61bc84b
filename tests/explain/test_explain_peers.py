"""The same values as Captum's, and the same metrics as Quantus', with the same weights.

The numbers below were printed by this script, with captum 0.9.0, quantus 0.6.0 and torch 2.13.0, in
float64. `t` is torch.tensor, and the arrays are those of `arrays()`:

    class Table(torch.nn.Module):
        def forward(self, x):
            return torch.tanh(x @ t(w1) + t(b1)) @ t(w2) + t(b2)

    class Image(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 3, padding=1, bias=False)
            self.conv.weight.data = t(kernel).permute(3, 2, 0, 1).contiguous()
        def forward(self, x):
            y = torch.tanh(self.conv(x)).permute(0, 2, 3, 1).reshape(len(x), -1)
            return y @ t(dense)

    class Text(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding.from_pretrained(t(table))
        def forward(self, tokens):
            return torch.tanh(self.embed(tokens).mean(1)) @ t(head)

    target, fine = t([1, 2]), {"n_steps": 200, "method": "gausslegendre"}
    m, im, te, pics = Table(), Image(), Text(), t(images).permute(0, 3, 1, 2)
    IntegratedGradients(m).attribute(t(x), t(base), target=target, **fine)
    Saliency(m).attribute(t(x), target=target)
    InputXGradient(m).attribute(t(x), target=target)
    FeatureAblation(m).attribute(t(x), t(base), target=target)
    Occlusion(im).attribute(pics, (1, 2, 2), (1, 2, 2), target=target)[:, 0, ::2, ::2]
    IntegratedGradients(im).attribute(pics, target=target, **fine)[1, 0]
    LayerGradCam(im, im.conv).attribute(pics, target=target, relu_attributions=True)[0, 0]
    LayerIntegratedGradients(te, te.embed).attribute(
        t(tokens), t(tokens * 0), target=target, **fine).sum(-1)

    def values(model, inputs, targets, **_):
        return InputXGradient(im).attribute(t(inputs).double(), target=t(targets)).detach().numpy()

    draws = iter(np.random.default_rng(7).uniform(-0.05, 0.05, (4, 2, 6, 6)))
    def near(arr, indices=None, **_):
        return arr + next(draws).reshape(arr.shape)

    pics, y = images.transpose(0, 3, 1, 2), np.array([1, 2])
    a, b = values(im, pics, y), values(im, pics[::-1].copy(), y)
    given, plain = {"model": im.eval(), "x_batch": pics, "y_batch": y, "a_batch": a}, {
        "normalise": False, "abs": False}
    quantus.PixelFlipping(features_in_step=9, perturb_baseline=0.0, **plain)(
        **given, softmax=False)
    quantus.MaxSensitivity(nr_samples=4, perturb_func=near, **plain)(**given, explain_func=values)
    [quantus.similarity_func.correlation_spearman(np.abs(p).ravel(), np.abs(q).ravel())
     for p, q in zip(a, b)]
"""

import functools

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import explain
from jaxops.explain import checking
from jaxops.task import example

INTEGRATED = [
    [-1.052172, -1.48819, -0.083078, 0.214917, 0.134685],
    [0.164393, 2.0844, 0.789585, 0.091383, 0.741909],
]
SALIENCY = [
    [0.72923, 0.50662, 0.159042, 0.14371, 0.425226],
    [0.287652, 0.49912, 0.491842, 0.222483, 0.522073],
]
INPUT_X_GRADIENT = [
    [-0.962584, -0.334369, 0.149499, 0.007186, 0.850453],
    [0.054654, 0.314446, 0.1869, -0.242507, -0.668253],
]
ABLATION = [
    [-1.248424, -0.483706, -0.022822, 0.124813, 0.133603],
    [-0.079933, 2.596155, 0.573088, -0.102103, 0.19449],
]
OCCLUSION = [
    [
        [-0.100407, 0.11072, -1.317279],
        [0.557031, 0.795336, -0.911767],
        [0.229412, 0.377224, 0.830343],
    ],
    [
        [0.012546, -0.045124, 0.239679],
        [0.265352, 0.318172, -0.16613],
        [0.115232, -0.081907, 0.141601],
    ],
]
INTEGRATED_IMAGE = [
    [-0.047338, -0.060889, -0.042299, -0.06149, -0.241846, 0.085415],
    [-0.469902, 0.662822, 0.204335, -0.047893, -0.259589, 0.635047],
    [-0.132388, 0.066758, -0.058782, 0.783383, -0.159222, 0.176392],
    [0.672864, 0.044391, -0.258291, 0.049125, -0.466232, 0.230466],
    [0.211839, 0.021968, -0.142429, -0.088797, 0.134642, 0.201086],
    [0.021728, 0.023394, 0.080877, 0.046848, -0.068414, -0.020788],
]
GRAD_CAM = [
    [0.027111, 0.017767, 0.068537, 0.0, 0.015604, 0.11887],
    [0.007735, 0.070759, 0.0, 0.0, 0.000361, 0.023474],
    [0.027036, 0.07208, 0.019922, 0.0, 0.062559, 0.012989],
    [0.0, 0.013285, 0.049988, 0.022461, 0.0, 0.063978],
    [0.0, 0.0, 0.0, 0.012447, 0.0, 0.010582],
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
]
INTEGRATED_TEXT = [[-0.272591, -0.18936, 0.608189, 0.145542], [0.327346, 0.327346, 0.104287, 0.0]]
FLIPPED = [[-3.74967, -4.408693, -4.067217, 0.0], [-0.688957, -0.849482, -0.973742, 0.0]]
SENSITIVITY = [0.085727, 0.116223]
CORRELATION = [0.582497, 0.395624]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def arrays():
    """Weights and rows of the three networks."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).round(2)

    w1, b1, w2, b2, x, base = draw(5, 8), draw(8), draw(8, 3), draw(3), draw(2, 5), draw(1, 5)
    kernel, dense, images = draw(3, 3, 1, 2), draw(72, 3) / 4, rng.random((2, 6, 6, 1)).round(2)
    table, head, tokens = draw(10, 3), draw(3, 3), np.array([[1, 4, 2, 7], [3, 3, 9, 0]])
    table[0] = 0
    return w1, b1, w2, b2, x, base, kernel, dense, images, table, head, tokens


W1, B1, W2, B2, X, BASE, KERNEL, DENSE, IMAGES, TABLE, HEAD, TOKENS = arrays()


class Table(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        """Logits (B, 3) of numbers (B, 5)."""
        return nn.Dense(3, name="second")(jnp.tanh(nn.Dense(8, name="first")(x)))


class Image(nn.Module):
    """A convolution and a dense layer."""

    @nn.compact
    def __call__(self, x):
        """Logits (B, 3) of images (B, 6, 6, 1)."""
        y = jnp.tanh(nn.Conv(2, (3, 3), padding="SAME", use_bias=False, name="conv")(x))
        return nn.Dense(3, use_bias=False, name="dense")(y.reshape(len(x), -1))


class Text(nn.Module):
    """The mean of embeddings, and a dense layer."""

    @nn.compact
    def __call__(self, tokens):
        """Logits (B, 3) of tokens (B, 4)."""
        x = nn.Embed(10, 3, name="embed")(tokens)
        return nn.Dense(3, use_bias=False, name="dense")(jnp.tanh(x.mean(1)))


PARAMS = {
    Table: {"first": {"kernel": W1, "bias": B1}, "second": {"kernel": W2, "bias": B2}},
    Image: {"conv": {"kernel": KERNEL}, "dense": {"kernel": DENSE}},
    Text: {"embed": {"embedding": TABLE}, "dense": {"kernel": HEAD}},
}


@functools.cache
def model_of(module):
    """The network with Captum's weights."""
    shape = {Table: (5,), Image: (6, 6, 1), Text: (4,)}[module]
    column = jo.Column("x", shape, "int", 10) if module is Text else jo.Column("x", shape)
    task = jo.supervised(
        module(),
        lambda batch, key: batch["x"],
        lambda outputs, batch, train: outputs[:, 0],
        lambda outputs, batch, weights: {},
        lambda outputs: outputs,
        (column,),
    )
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, example(task.columns))
    params = {name: {k: v.astype(np.float32) for k, v in layer.items()}
              for name, layer in PARAMS[module].items()}  # fmt: skip
    return jo.Model(task, state._replace(params=params))


def explained(module, rows, method, **settings):
    """The values for the outputs 1 and 2, and what else the explanation says."""
    rows = {"x": rows.astype(np.int32 if module is Text else np.float32)}
    return explain.explain(model_of(module), rows, method, target=[1, 2], **settings)


@pytest.mark.parametrize(
    ("method", "baseline", "wanted"),
    [
        ("integrated_gradients", BASE, INTEGRATED),
        ("gradient", None, SALIENCY),
        ("input_x_gradient", None, INPUT_X_GRADIENT),
        ("occlusion", BASE, ABLATION),
    ],
)
def test_numbers(method, baseline, wanted):
    baseline = None if baseline is None else {"x": baseline.astype(np.float32)}
    told = explained(Table, X, method, baseline=baseline)
    np.testing.assert_allclose(told.values, wanted, **CLOSE)


def test_squares_of_pixels_left_out():
    told = explained(Image, IMAGES, "occlusion", patch=2)
    np.testing.assert_allclose(told.values.reshape(2, 3, 3), OCCLUSION, **CLOSE)


def test_pixels():
    told = explained(Image, IMAGES, "integrated_gradients")
    np.testing.assert_allclose(told.values[1].reshape(6, 6), INTEGRATED_IMAGE, **CLOSE)


def test_grad_cam():
    told = explained(Image, IMAGES, "grad_cam", layer="conv")
    np.testing.assert_allclose(told.values[0].reshape(6, 6), GRAD_CAM, **CLOSE)


def test_tokens():
    told = explained(Text, TOKENS, "integrated_gradients")
    np.testing.assert_allclose(told.values, INTEGRATED_TEXT, **CLOSE)
    assert told.kind == "features" and told.gap.max() < 1e-3


def test_curves_sensitivity_and_rank_correlation_are_those_of_quantus(monkeypatch):
    told = explained(Image, IMAGES, "input_x_gradient")
    one = explain.game(model_of(Image), {"x": IMAGES.astype(np.float32)}, target=[1, 2])
    flipped = explain.curve(one, told.values, parts=4)
    np.testing.assert_allclose(flipped.numbers[:, 1:], FLIPPED, **CLOSE)
    draws = iter(np.random.default_rng(7).uniform(-0.05, 0.05, (4, 2, 6, 6, 1)))

    def near(game, *_):
        columns = {"x": (IMAGES + next(draws)).astype(np.float32)}
        return game.but(players=game.players._replace(columns=columns))

    monkeypatch.setattr(checking, "changed", near)
    found = explain.max_sensitivity(one, told, samples=4)
    np.testing.assert_allclose(found.largest, SENSITIVITY, rtol=1e-3)
    other = explain.explain(
        model_of(Image), {"x": IMAGES[::-1].astype(np.float32)}, "input_x_gradient", target=[1, 2]
    )
    same = checking.rank_correlation(told.values, other.values, told.real)
    np.testing.assert_allclose(same, CORRELATION, atol=1e-4)
