"""Rounded parameters: how far they move, where they lie, and that each prediction reads them."""

import asyncio
import functools
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax.sharding import Mesh
from small import SETTINGS, images

import jaxops as jo
from jaxops import compress, forecast, language, recommend, serve, tabular, vision
from jaxops.compress.networks import walked
from jaxops.compress.quantisation import SHARES, packed
from jaxops.model.exported import run
from jaxops.model.selection import Blend
from jaxops.model.topk import split_items, top_k
from jaxops.nn.packed import Packed, is_packed, pack, unpacked

TASK = vision.classifier(vision.MLP((64,), classes=3), **SETTINGS)
ROWS = images(256)
WEIGHTS = np.random.default_rng(0).normal(size=(37, 11)).astype(np.float32)
WEIGHTS[:, 3] = 0  # a channel without scale


@functools.cache
def model():
    """A network of 16 inputs, 64 hidden units and 3 classes, trained a little."""
    adam = jo.optim.adam(1e-2)
    state = jo.fit(TASK, ROWS, optimizer=adam, batch_size=64, steps=40, progress=False)
    return jo.Model(TASK, state, about={"validation": {"accuracy": 0.5}, "id": "x"})


@functools.cache
def quantised(bits=8):
    return compress.quantise(model(), bits)


def floats(one):
    """The same model with float32 arrays of the same numbers."""

    def plain(part):
        return part._replace(params=jax.tree.map(unpacked, part.params, is_leaf=is_packed))

    return walked(one, plain)


def rounded(w, limit):
    """By NumPy: the scales of columns, and what is stored."""
    scale = np.abs(w).max(0, keepdims=True) / np.float32(limit)
    scale[scale == 0] = 1
    return scale, np.clip(np.round(w / scale), -limit, limit)


@pytest.mark.parametrize(("form", "limit"), [("int8", 127), ("int4", 7)])
def test_no_number_moves_by_more_than_half_a_scale(form, limit):
    made = packed(jnp.asarray(WEIGHTS), form, (0,), "max")
    scale, q = rounded(WEIGHTS, limit)
    np.testing.assert_allclose(made.scale, scale, rtol=1e-6)
    np.testing.assert_allclose(made.unbox(), q * scale, rtol=1e-6)
    assert (np.abs(WEIGHTS - made.unbox()) <= scale / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("length", [14, 15])
def test_two_numbers_of_four_bits_lie_in_a_byte(length):
    numbers = np.resize(np.arange(-7, 8), (3, length)).astype(np.float32)
    made = jax.jit(pack, static_argnums=1)(numbers, "int4", np.ones((3, 1), np.float32))
    assert made.values.dtype == jnp.int8 and made.values.shape == (3, (length + 1) // 2)
    assert made.shape == (3, length) and len(made) == 3 and made.ndim == 2
    np.testing.assert_array_equal(made.unbox(), numbers)
    np.testing.assert_array_equal(made[1:].unbox(), numbers[1:])


def test_the_scale_with_the_least_squared_error_is_taken():
    made = packed(jnp.asarray(WEIGHTS), "int4", (0,), "mse")
    largest, errors = rounded(WEIGHTS, 7)[0], []
    for share in SHARES:
        unit = largest * share
        wrong = np.clip(np.round(WEIGHTS / unit), -7, 7) * unit - WEIGHTS
        errors.append(np.square(wrong).sum(0))
    found = np.square(np.asarray(made.unbox()) - WEIGHTS).sum(0)
    np.testing.assert_allclose(found, np.min(errors, 0), rtol=1e-4)
    assert (np.asarray(made.scale) < largest).mean() > 0.5  # most columns are cut off


def test_a_percentile_cuts_off_the_largest_numbers():
    made = packed(jnp.asarray(WEIGHTS), "int8", (0,), "percentile")
    wanted = np.percentile(np.abs(WEIGHTS), 99.9, axis=0) / 127
    wanted[3] = 1
    np.testing.assert_allclose(made.scale[0], wanted, rtol=1e-5)
    rare = np.zeros((5000, 1), np.float32)
    rare[0] = 2.0  # beyond the percentile, which is 0
    assert packed(jnp.asarray(rare), "int8", (0,), "percentile").unbox()[0, 0] == 2.0


def test_sixteen_bits_are_those_of_bfloat16_and_eight_those_of_e4m3():
    bits = WEIGHTS.view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16  # to even
    made = packed(jnp.asarray(WEIGHTS), "bf16", (0,), "max")
    np.testing.assert_array_equal(made.values, nearest.astype(np.uint16))
    np.testing.assert_array_equal(made.unbox(), (nearest << 16).astype(np.uint32).view(np.float32))
    eight = packed(jnp.asarray(WEIGHTS), "fp8", (0,), "max")
    assert eight.values.dtype == jnp.uint8
    normal = np.abs(WEIGHTS) > 2.0**-6 * np.asarray(eight.scale)
    error = np.abs(WEIGHTS - eight.unbox())[normal] / np.abs(WEIGHTS)[normal]
    assert 0.01 < error.max() <= 2.0**-4  # three bits after the first


@pytest.mark.parametrize("bits", [8, 4, "bf16", "fp8"])
def test_a_quantised_model_predicts_by_the_rounded_numbers(bits, tmp_path):
    small = quantised(bits)
    kernel = small.state.params["hidden_0"]["kernel"]
    assert isinstance(kernel, Packed) and not is_packed(small.state.params["logits"]["kernel"])
    wanted = floats(small).predict(ROWS)
    np.testing.assert_allclose(small.predict(ROWS), wanted, atol=1e-6)
    assert np.abs(wanted - model().predict(ROWS)).max() < (0.2 if bits == 4 else 0.05)
    assert "validation" not in small.about and small.about["id"] == "x"
    step = {"method": "quantise", "bits": bits, "scales": "mse", "arrays": ["hidden_0/kernel"]}
    assert small.about["compressed"] == [step]
    jo.save(tmp_path / "small", small)
    again = jo.load(tmp_path / "small")
    assert again.about == small.about and again.task is TASK
    np.testing.assert_array_equal(again.predict(ROWS), small.predict(ROWS))
    same = jax.tree.map(np.array_equal, again.state.params, small.state.params)
    assert jax.tree.all(same)


def test_a_file_of_eight_bits_has_a_quarter_of_the_bytes(tmp_path):
    task = vision.classifier(vision.CNN(features=8, hidden=64))
    state = jo.init_state(
        task, jo.optim.sgd(0.1), seed=0, batch={"image": np.zeros((1, 28, 28, 1))}
    )
    whole = jo.Model(task, state)
    sizes = {}
    for bits in ("float32", "bf16", 8, 4):
        one = whole if bits == "float32" else compress.quantise(whole, bits, scales="max")
        jo.save(tmp_path / "model", one)
        sizes[bits] = (tmp_path / "model").stat().st_size
    assert sizes["bf16"] < 0.52 * sizes["float32"]
    assert sizes[8] < 0.27 * sizes["float32"] and sizes[4] < 0.145 * sizes["float32"]


def test_a_file_whose_task_has_another_shape_is_refused(tmp_path):
    jo.save(tmp_path / "small", quantised())
    other = vision.classifier(vision.MLP((32,), classes=3), **SETTINGS)
    with pytest.raises(ValueError, match=r"kernel'\].scale must be .*\.values must be|hidden_0"):
        jo.load(tmp_path / "small", task=other)


@pytest.mark.parametrize("bits", [8, 4])
def test_an_export_holds_the_bits_and_answers_alike(bits, tmp_path):
    pytest.importorskip("flatbuffers")
    folder = jo.export(quantised(bits), tmp_path / "out")
    with np.load(folder / "parameters.npz") as arrays:
        (stored,) = (arrays[name] for name in arrays if name.endswith(".values"))
    assert stored.dtype == np.int8 and stored.shape == (16, 64 if bits == 8 else 32)
    answer = run.load(folder).apply({"image": ROWS["image"][:5]})
    wanted = quantised(bits).predict({"image": ROWS["image"][:5]})
    np.testing.assert_allclose(answer, wanted, atol=1e-6)


def test_a_quantised_model_is_served():
    app = serve.application({"shapes": quantised()}, settings=serve.Settings(batch_size=4))
    body = json.dumps({"columns": {"image": ROWS["image"][:3].tolist()}}).encode()
    told, sent = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return sent.pop() if sent else await asyncio.Event().wait()

    async def send(message):
        told.append(message)

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
    scope |= {"scheme": "http", "path": "/models/shapes/predict", "query_string": b""}
    scope |= {"root_path": "", "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1)}
    asyncio.run(app(scope | {"server": ("127.0.0.1", 80)}, receive, send))
    assert told[0]["status"] == 200, told
    answer = json.loads(b"".join(part.get("body", b"") for part in told))["answer"]
    wanted = quantised().predict({"image": ROWS["image"][:3]})
    np.testing.assert_allclose(np.array(answer["output"]), wanted, atol=1e-6)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_best_of_a_packed_table_are_those_of_its_numbers(form):
    draw = np.random.default_rng(1)
    queries = jnp.asarray(draw.normal(size=(4, 6)), jnp.float32)
    table = packed(jnp.asarray(draw.normal(size=(90, 6)), jnp.float32), form, (1,), "max")
    wanted = top_k(queries, table.unbox(), k=5)
    mesh = Mesh(np.array(jax.devices()), ("items",))
    split = {"mesh": mesh, "count": 90}
    ways = [top_k(queries, table, k=5, block=16)]
    if form == "int8":
        ways += [top_k(queries, table, k=5, mesh=mesh)]
        ways += [top_k(queries, split_items(table, mesh), k=5, **split)]
    for found in ways:
        np.testing.assert_allclose(found[0], wanted[0], rtol=1e-5)
        np.testing.assert_array_equal(found[1], wanted[1])


def test_the_gradient_passes_the_rounding():
    known = compress.aware(model(), bits=4, scales="max")
    params, key = model().state.params, jax.random.key(0)
    exact = floats(compress.quantise(model(), bits=4, scales="max")).state.params

    def loss(task):
        return lambda params: task.loss(params, {}, ROWS, key, False)[0]

    one, gradient = jax.jit(jax.value_and_grad(loss(known.task)))(params)
    two, wanted = jax.jit(jax.value_and_grad(loss(TASK)))(exact)
    np.testing.assert_allclose(one, two, rtol=1e-6)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4), gradient, wanted
    )
    assert float(jnp.abs(gradient["hidden_0"]["kernel"]).max()) > 0
    np.testing.assert_allclose(
        known.predict(ROWS),
        jo.Model(TASK, model().state._replace(params=exact)).predict(ROWS),
        atol=1e-6,
    )


@pytest.mark.slow
def test_training_that_knows_of_the_rounding_makes_better_rounded_models():
    known = compress.aware(model(), bits=4, scales="max")
    further = jo.fit(known.task, ROWS, optimizer=jo.optim.adam(3e-3), batch_size=64, steps=80,
                     state=known.state, progress=False)  # fmt: skip
    assert further.params["hidden_0"]["kernel"].dtype == jnp.float32
    plain = jo.fit(TASK, ROWS, optimizer=jo.optim.adam(3e-3), batch_size=64, steps=80,
                   state=model().state, progress=False)  # fmt: skip
    small = compress.quantise(replace(known, state=further), bits=4, scales="max")
    other = compress.quantise(replace(model(), state=plain), bits=4, scales="max")
    assert small.task is TASK
    losses = [jo.evaluate(TASK, one.state, ROWS)["loss"] for one in (small, other)]
    assert losses[0] < losses[1]


def test_products_of_int8_are_those_of_whole_numbers():
    small = compress.quantise(model(), activations=ROWS, scales="max", product="int8")
    kernel = small.state.params["hidden_0"]["kernel"]
    bias = np.asarray(small.state.params["hidden_0"]["bias"])
    x = ROWS["image"].reshape(-1, 16).astype(np.float32) / 255
    assert float(kernel.inputs) == pytest.approx(x.max() / 127, rel=1e-6)
    q = np.round(x / np.asarray(kernel.inputs)).astype(np.int64)
    sums = q @ np.asarray(kernel.values, np.int64)
    hidden = np.maximum(sums * (np.asarray(kernel.inputs) * np.asarray(kernel.scale)) + bias, 0)
    logits = hidden @ np.asarray(small.state.params["logits"]["kernel"])
    logits += np.asarray(small.state.params["logits"]["bias"])
    wanted = np.exp(logits - logits.max(1, keepdims=True))
    wanted /= wanted.sum(1, keepdims=True)
    np.testing.assert_allclose(small.predict(ROWS), wanted, atol=1e-5)
    assert np.abs(wanted - model().predict(ROWS)).max() < 0.05


def test_the_faster_product_is_chosen_and_told(tmp_path):
    small = compress.quantise(model(), activations=ROWS)
    (layer,) = small.about["compressed"][0]["layers"]
    assert layer["layer"] == "hidden_0" and layer["shape"] == [16, 64]
    faster = "int8" if layer["int8 ms"] < layer["float32 ms"] else "float32"
    assert layer["product"] == faster and min(layer["int8 ms"], layer["float32 ms"]) > 0
    assert (small.state.params["hidden_0"]["kernel"].inputs is None) == (faster == "float32")
    forced = compress.quantise(model(), activations=ROWS, product="int8")
    jo.save(tmp_path / "small", forced)
    np.testing.assert_array_equal(jo.load(tmp_path / "small").predict(ROWS), forced.predict(ROWS))


def test_what_is_to_stay_stays():
    with pytest.raises(ValueError, match=r"model must have kernels or tables .*keep='hidden'"):
        compress.quantise(model(), keep="hidden")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"bits": 16}, 'bits must be 8, 4, "bf16" or "fp8", got 16'),
        ({"scales": "mean"}, "scales must be one of max, percentile, mse, got 'mean'"),
        ({"product": "int8"}, "product must be None without activations, got 'int8'"),
        ({"bits": 4, "activations": ROWS}, "bits must be 8 for activations"),
        ({"activations": ROWS, "product": "int4"}, "product must be one of fastest, int8"),
    ],
)
def test_other_arguments_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        compress.quantise(model(), **options)


def test_a_quantised_model_is_neither_quantised_nor_trained():
    with pytest.raises(ValueError, match="so quantise it last, got hidden_0/kernel in int8"):
        compress.quantise(quantised(), 4)
    with pytest.raises(ValueError, match="got hidden_0/kernel in int8"):
        compress.aware(quantised())
    with pytest.raises(ValueError, match="state must have float parameters to be trained"):
        jo.fit(TASK, ROWS, optimizer=jo.optim.sgd(0.1), batch_size=64, steps=1,
               state=quantised().state, progress=False)  # fmt: skip


@pytest.mark.slow
def test_a_module_of_nnx_reads_the_numbers_too():
    linear = jo.from_nnx(nnx.Linear(300, 1, rngs=nnx.Rngs(0)))
    task, x = tabular.classifier(linear, features=300), np.eye(300, dtype=np.float32)
    whole = jo.Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch={"features": x}))
    small = compress.quantise(whole)
    np.testing.assert_allclose(small.predict(x), floats(small).predict(x), atol=1e-6)
    assert np.abs(small.predict(x) - whole.predict(x)).max() > 0


class Looped(linen.Module):
    """Two dense layers in a loop over stacked parameters, and a table."""

    @linen.compact
    def __call__(self, x):
        table = linen.Embed(20, 16, name="tokens")
        x = x + table(jnp.zeros(len(x), jnp.int32))
        layers = linen.scan(
            lambda layer, x, _: (jnp.tanh(layer(x)), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=2,
        )
        return layers(linen.Dense(16, name="dense"), x, None)[0][:, :1]


@pytest.mark.slow
def test_stacked_layers_have_scales_of_their_own():
    task, x = tabular.classifier(Looped(), features=16), np.eye(16, dtype=np.float32)
    whole = jo.Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch={"features": x}))
    small = compress.quantise(whole)
    shapes = {leaf.scale.shape for leaf in jax.tree.leaves(small.state.params, is_leaf=is_packed)
              if is_packed(leaf)}  # fmt: skip
    assert shapes == {(2, 1, 16), (20, 1)}
    few = compress.quantise(whole, keep="tokens/")
    assert few.about["compressed"][0]["arrays"] == ["dense/kernel"]
    table = few.state.params["tokens"]["embedding"]
    assert table is whole.state.params["tokens"]["embedding"]
    np.testing.assert_allclose(small.predict(x), floats(small).predict(x), atol=1e-6)


def sequences():
    """A recommender of 60 items with random vectors."""
    module = recommend.sasrec(items=60, context=4, width=16, depth=1, dropout=0.0)
    task = recommend.next_item(module)
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, jo.task.example(task.columns))
    method = recommend.SequenceModel(module)
    items = np.array([f"i{n}" for n in range(60)])
    counts = np.arange(60.0)
    return jo.Model(
        recommend.Recommender(method, state.params, items, counts), None, recommend.LogReader()
    )


@pytest.mark.slow
def test_a_recommender_keeps_its_table_packed(tmp_path):
    small = compress.quantise(sequences(), 4)
    histories = [["i1", "i2"], ["i7"], []]
    table = small.task.on_device[1]
    assert is_packed(table) and table.shape == (60, 16)
    found, wanted = (recommend.recommend(one, histories, k=5) for one in (small, floats(small)))
    assert found.ids() == wanted.ids()
    np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-4)
    alike = [recommend.similar_items(one, ["i3"], k=3) for one in (small, floats(small))]
    assert alike[0].ids() == alike[1].ids()
    few = recommend.recommend(small, histories[:1], k=2, allow=[["i4", "i5", "i6"]])
    assert (
        few.ids()
        == recommend.recommend(floats(small), histories[:1], k=2, allow=[["i4", "i5", "i6"]]).ids()
    )
    jo.save(tmp_path / "small", small)
    jo.save(tmp_path / "whole", sequences())
    again = jo.load(tmp_path / "small")
    assert recommend.recommend(again, histories, k=5).ids() == found.ids()
    sizes = [(tmp_path / name).stat().st_size for name in ("small", "whole")]
    assert sizes[0] < 0.75 * sizes[1]  # the text of the file does not shrink
    pytest.importorskip("flatbuffers")
    out = run.load(jo.export(small, tmp_path / "out", k=5))
    assert out.predict(histories[:2])["items"] == found.ids()[:2]


@pytest.mark.slow
def test_factors_of_items_are_read_by_a_closed_form():
    log = recommend.events(
        {"user": [*"aabbccdd"] * 8, "item": [f"{n % 20}" for n in range(64)]}, time=None
    )
    whole = jo.Model(recommend.fitted(recommend.IALS(factors=16, sweeps=2), log))
    small = compress.quantise(whole)
    found, wanted = (recommend.recommend(one, [["1", "2"]], k=3) for one in (small, floats(small)))
    assert found.ids() == wanted.ids()


@pytest.mark.slow
def test_a_forecast_and_a_text_are_made_by_rounded_numbers(tmp_path):
    series = forecast.from_arrays(["a"], [np.sin(np.arange(200.0))])
    whole = forecast.fit(series, forecast.NLinear(32, 8), horizon=8, epochs=1, progress=False)
    small = compress.quantise(whole)
    jo.save(tmp_path / "small", small)
    found = forecast.forecast(jo.load(tmp_path / "small"), series)
    np.testing.assert_allclose(found.mean, forecast.forecast(floats(small), series).mean, rtol=1e-5)

    module = language.nanogpt(context=16, depth=1, heads=1, width=16, dropout=0.0)
    writer = language.fit(["to be or not to be"] * 20, module, steps=2, progress=False)
    small = compress.quantise(writer)
    two = [language.generate(one, "to b", new_tokens=6) for one in (small, floats(small))]
    assert two[0][0].tokens.tolist() == two[1][0].tokens.tolist()


def test_the_members_of_a_blend_are_quantised():
    state = model().state
    blend = Blend((TASK, TASK), (state.params, state.params), ({}, {}), (0.25, 0.75))
    small = compress.quantise(jo.Model(blend))
    assert len(small.about["compressed"][0]["arrays"]) == 2
    found = small.outputs({"image": ROWS["image"]})
    np.testing.assert_allclose(found, quantised().predict(ROWS), atol=1e-6)


def test_a_closed_form_without_parameters_is_refused():
    log = recommend.events({"user": list("aab"), "item": list("xyx")}, time=None)
    popular = jo.Model(recommend.fitted(recommend.Popularity(), log))
    with pytest.raises(ValueError, match=r"tables of float32 .*, got none in Recommender"):
        compress.quantise(popular)
