import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import filled

import jaxops as jo
from jaxops import cli, compress, language, recommend, tabular, text, vision
from jaxops.model.encrypted import is_encrypted
from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig, Units
from jaxops.nn.units import units_of_transformer
from jaxops.recommend.models.sequence import SequenceModel
from jaxops.recommend.recommenders import Recommender

SIZES = {"vocabulary": 12, "context": 8, "depth": 2, "heads": 4, "width": 16, "hidden": 12}
CNN = vision.classifier(vision.CNN(3, features=8, hidden=6), (6, 6, 1), 3)


def decoder(**settings):
    return language.next_token(Transformer(TransformerConfig(**SIZES | settings)))


TASKS = {
    "MLP with batch norm": vision.classifier(
        vision.MLP((8, 6), classes=3, batch_norm=True), **small.SETTINGS
    ),
    "ConvNet": vision.classifier(vision.ConvNet((4, 6), classes=3), (8, 8, 1), 3),
    "MLP of tables": tabular.classifier(tabular.MLP((8, 6)), 5),
    "TabM": tabular.regressor(tabular.TabM((8, 6), members=3), 5),
    "TabM, full": tabular.regressor(tabular.TabM((8, 6), members=3, form="full"), 5),
    "TabM, packed": tabular.regressor(tabular.TabM((8, 6), members=3, form="packed"), 5),
    "ResNet": tabular.classifier(tabular.ResNet(4, 8, depth=2), 5),
    "TextCNN": text.classifier(text.TextCNN(12, 3, width=4, widths=(1, 2), filters=8), 6, 3),
    "decoder": decoder(activation="swiglu", position="rotary", qk_norm=True, bias=False),
    "encoder": text.classifier(
        text.TransformerClassifier(
            TransformerConfig(**SIZES, causal=False, post_norm=True), classes=3
        ),
        8,
        3,
    ),
    "encoder and decoder": language.sequence_to_sequence(
        EncoderDecoder(TransformerConfig(**SIZES, position="relative")), target_length=4
    ),
}


def model_of(task, params=None, extra=None):
    if params is None:
        params, extra = filled(task.init, rows_of(task, 1))
    state = jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))
    return jo.Model(task, state)


def rows_of(task, count):
    """Random columns of the task."""
    rng, columns = np.random.default_rng(0), {}
    for c in task.columns:
        shape = (count, *(6 if n is None else n for n in c.shape))
        columns[c.name] = (
            rng.integers(1, c.classes or (256 if c.dtype == "uint8" else 2), shape)
            if c.dtype != "float"
            else rng.normal(size=shape)
        ).astype({"float": np.float32, "int": np.int32}.get(c.dtype, c.dtype))
    return columns


def changed(params, units, gone, factors):
    """The parameters with what makes (and what reads) the units that go times a factor."""

    def one(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        own, read = re.search(units.own, name), re.search(units.read, name)
        if not (own or read):
            return leaf
        axis, factor = (-1, factors[0]) if own else (-2, factors[1])
        parts = np.array(np.moveaxis(np.asarray(leaf), axis, -1))
        width = 1 if parts.shape[-1] == units.count else units.width
        cells = parts.reshape(*parts.shape[:-1], -1, units.count, width)
        cells[..., gone, :] *= factor
        return np.moveaxis(cells.reshape(parts.shape), -1, axis)

    return jax.tree_util.tree_map_with_path(one, params)


def units_of(task, params):
    module = dict(task.recipe[1])["module"]
    if hasattr(module, "units"):
        return module.units()
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    return units_of_transformer(module.config, paths)


SLOW = ("decoder", "encoder and decoder", "encoder", "ResNet", "TabM, full", "TabM, packed")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in TASKS]
)
def test_taking_out_what_nothing_reads_changes_no_prediction(name):
    task = TASKS[name]
    model = model_of(task)
    params, extra = model.state.params, model.state.extra
    rng, groups = np.random.default_rng(1), units_of(task, params)
    for one in groups:
        gone = rng.permutation(one.count)[: one.count // 2]
        params = changed(params, one, gone, (1e-3, 0))
    before = model_of(task, params, extra)
    after = compress.structured(before, 0.5)
    sizes = [sum(x.size for x in jax.tree.leaves(m.state.params)) for m in (before, after)]
    assert after.about["compressed"][0]["parameters"] == sizes and sizes[1] < sizes[0]
    batch = rows_of(task, 5)
    outputs = [outputs_of(m, batch) for m in (before, after)]
    np.testing.assert_allclose(*outputs, atol=1e-6)
    assert np.ptp(outputs[0]) > 1e-4


def outputs_of(model, batch):
    """What the task predicts; of a task that predicts tokens, the loss of each batch."""
    if any(column.name == "source" for column in model.task.columns):
        key = jax.random.key(0)
        rows = [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(5)]
        loss = jax.jit(model.task.loss, static_argnums=4)
        state = model.state
        return [loss(state.params, state.extra, row, key, False)[0] for row in rows]
    return jax.jit(model.apply)(batch)


def test_the_channels_of_a_flattened_image_are_found():
    """By hand: the dense layer reads channel c of pixel p in row p * channels + c."""
    model = model_of(CNN)
    params = jax.tree.map(np.array, model.state.params)
    params["conv"]["kernel"][..., [1, 4, 6, 7]] *= 1e-3
    params["conv"]["bias"][[1, 4, 6, 7]] = 5.0
    params["hidden"]["kernel"].reshape(4, 8, 6)[:, [1, 4, 6, 7]] = 0
    params["hidden"]["kernel"].reshape(4, 8, 6)[:, [0, 2, 3, 5]] *= 100
    before = model_of(CNN, params, {})
    after = compress.structured(before, 0.5, kinds=["channels"])
    assert after.state.params["conv"]["kernel"].shape == (3, 3, 1, 4)
    np.testing.assert_array_equal(
        after.state.params["conv"]["bias"], params["conv"]["bias"][[0, 2, 3, 5]]
    )
    image = rows_of(CNN, 9)["image"]
    np.testing.assert_allclose(before.predict(image), after.predict(image), atol=1e-6)


def test_the_least_units_by_their_norm_go():
    task = TASKS["MLP of tables"]
    model = model_of(task)
    p = model.state.params
    norms = np.sqrt(
        (p["hidden_0"]["kernel"] ** 2).sum(0)
        + p["hidden_0"]["bias"] ** 2
        + (p["hidden_1"]["kernel"] ** 2).sum(1)
    )
    kept = np.sort(np.argsort(-norms)[:6])
    small_ = compress.structured(model, 0.25)
    assert dict(small_.task.recipe[1])["module"].widths == (6, 4)
    np.testing.assert_array_equal(
        small_.state.params["hidden_0"]["kernel"], p["hidden_0"]["kernel"][:, kept]
    )


@pytest.mark.slow
def test_importance_by_taylor_is_the_derivative_by_a_gate():
    """By finite differences: the mean loss with a unit times 1 + e and times 1 - e."""
    task = TASKS["decoder"]
    model, batch, step = model_of(task), rows_of(task, 4), 1e-2
    batch["segments"][:] = 1
    found = {}

    @jax.jit
    def loss(params):
        total, out = task.loss(params, {}, batch, jax.random.key(0), False)
        return total / out.weight

    for one in units_of(task, model.state.params)[:2]:
        slopes = []
        for unit in range(one.count):
            near = [
                float(loss(changed(model.state.params, one, [unit], (1, 1 + e))))
                for e in (step, -step)
            ]
            slopes.append(abs(near[0] - near[1]) / (2 * step))
        found[one.kind] = np.array(slopes)
    settings = {"by": "taylor", "data": batch, "epochs": 0}
    for kind, layer in (("heads", "attention"), ("units", "feed_forward")):
        less = compress.structured(model, 0.5, kinds=[kind], **settings)
        name, count = ("out", 4) if kind == "heads" else ("down", 12)
        kernels = [
            np.asarray(m.state.params["stack"]["block_0"][layer][name]["kernel"])
            for m in (model, less)
        ]
        rows = kernels[0].reshape(count, -1)
        kept = [
            i
            for i, row in enumerate(rows)
            if any(np.array_equal(row, r) for r in kernels[1].reshape(count // 2, -1))
        ]
        assert kept == sorted(np.argsort(-found[kind])[: count // 2])


@pytest.mark.slow
def test_half_the_units_are_a_smaller_file_that_trains(tmp_path):
    data = small.images(512)
    task = vision.classifier(vision.MLP((32,), classes=3), **small.SETTINGS)
    settings = {"optimizer": jo.optim.adam(1e-2), "batch_size": 64, "progress": False}
    model = jo.Model(task, jo.fit(task, data, epochs=12, **settings))
    cut = compress.structured(model, 0.5)
    tuned = compress.structured(model, 0.5, by="taylor", data=data, epochs=6, **settings)
    losses = [jo.evaluate(m.task, m.state, data)["loss"] for m in (cut, tuned)]
    assert losses[1] < losses[0]
    sizes = []
    for name, one in {"before": model, "after": tuned}.items():
        jo.save(tmp_path / name, one)
        sizes.append(sum(x.nbytes for x in jax.tree.leaves(jo.load(tmp_path / name).state.params)))
    assert sizes[1] < 0.55 * sizes[0]
    read = jo.load(tmp_path / "after")
    np.testing.assert_array_equal(read.predict(data["image"]), tuned.predict(data["image"]))


@pytest.mark.slow
def test_a_recommender_answers_with_fewer_heads():
    config = TransformerConfig(**SIZES)
    module = Transformer(config)
    params = filled(module.init, jax.ShapeDtypeStruct((1, 4), jnp.int32))["params"]
    shop = jo.Model(Recommender(SequenceModel(module), params, np.arange(11), np.ones(11)))
    less = compress.structured(shop, 0.5)
    new = less.task.model.module.config
    assert (new.heads, new.head_width, new.hidden) == (2, 4, 6)
    assert recommend.recommend(less, [[1, 2]], k=3).places.shape == (1, 3)


class Own(nn.Module):
    """A module of a user, which forgets that its norm has the units as well."""

    hidden: int = 6
    outputs: int = 1

    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm(name="scaled")(nn.Dense(self.hidden, name="hidden")(x))
        return nn.Dense(self.outputs, name="logits")(x)

    def units(self):
        def resized(module, count):
            return module.clone(hidden=count)

        return [Units("units", self.hidden, "^hidden/", "^logits/kernel$", resized)]


def test_units_that_miss_an_array_are_refused():
    with pytest.raises(ValueError, match=r"module\.units must name all arrays of a unit: .*scaled"):
        compress.structured(model_of(tabular.classifier(Own(), 5)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0.0}, r"share must be in \(0, 1\), got 0\.0"),
        ({"share": 0.01}, "share must take out at least one unit of a layer, got 0.01"),
        ({"by": "random"}, 'by must be "magnitude" or "taylor"'),
        ({"by": "taylor"}, 'data must be given for by="taylor", got None'),
        ({"kinds": "units"}, "kinds must be some of units, channels, heads in a list"),
        ({"kinds": ["heads"]}, r"model must have a module with heads .* got MLP"),
        ({"epochs": 2}, "data must be given for epochs, got None"),
    ],
)
def test_what_makes_no_sense_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        compress.structured(model_of(TASKS["MLP of tables"]), **given)


def test_stacked_blocks_are_refused():
    with pytest.raises(ValueError, match=r"config\.scan must be False"):
        compress.structured(model_of(decoder(scan=True)))


def test_the_command_writes_a_smaller_file(tmp_path, capsys):
    jo.save(tmp_path / "model.safetensors", model_of(CNN))
    out = tmp_path / "small.safetensors"
    command = ["compress", str(tmp_path / "model.safetensors"), str(out)]
    assert cli.main([*command, "--structured", "0.5", "--prune", "0.25"]) == 0
    printed = capsys.readouterr().out
    assert "structured, prune" in printed and f"written: {out}" in printed
    model = jo.load(out)
    assert [step["method"] for step in model.about["compressed"]] == ["structured", "prune"]
    kernels = [layer["kernel"] for layer in model.state.params.values()]
    total = sum(kernel.size for kernel in kernels)
    assert sum(int((kernel == 0).sum()) for kernel in kernels) == round(total / 4)
    assert cli.main(command) == 1
    assert "one of structured, rank and prune must be given" in capsys.readouterr().err


def test_what_comes_of_an_encrypted_file_is_encrypted(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    file, out, key = tmp_path / "model.safetensors", tmp_path / "small.safetensors", "5a" * 32
    monkeypatch.setenv("JAXOPS_MODEL_KEY", key)
    jo.save(file, model_of(TASKS["MLP of tables"]), key=key)
    assert cli.main(["compress", str(file), str(out), "--prune", "0.5"]) == 0
    assert is_encrypted(out)
    assert jo.load(out, key=key).about["compressed"][-1]["method"] == "prune"
