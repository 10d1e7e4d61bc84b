"""Explanations of tables, texts and images: exact for linear models, complete for all."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import explain, tabular, text, vision
from jaxops.data import Tokenizer
from jaxops.data.encoders import encode, fit_encoder
from jaxops.explain.checking import changed
from jaxops.explain.gradients import Gradients, _along
from jaxops.explain.points import look_ups
from jaxops.tabular.models.embeddings import Categories
from jaxops.text.word_players import shares

RNG = np.random.default_rng(0)


def finished(task, batch, reader=None, seed=0, scale=1.0):
    """A model with random parameters."""
    state = jo.init_state(task, jo.optim.sgd(0.1), seed, batch)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda p: scale * rng.normal(size=p.shape).astype(np.float32) / max(1, p.shape[0]) ** 0.5,
        jax.device_get(state.params),
    )
    return jo.Model(task, state._replace(params=params), reader)


@pytest.fixture(scope="module")
def linear():
    """A logistic regression of three numbers, two rows, and its weights."""
    x = RNG.normal(size=(2, 3)).astype(np.float32)
    model = finished(tabular.classifier(tabular.MLP(()), features=3), {"features": x}, seed=1)
    return model, x, model.state.params["logits"]["kernel"][:, 0].astype(float)


@pytest.fixture(scope="module")
def table():
    """Rows with numbers, missing ones, texts, dates, and a label."""
    n = 60
    income = RNG.normal(3000, 500, n)
    income[::7] = np.nan
    return {
        "age": RNG.integers(18, 80, n).astype(float),
        "income": income,
        "plan": np.array(["basic", "plus", "max"], object)[np.arange(n) % 3],
        "joined": np.datetime64("2024-01-01") + np.arange(n) * 5,
        "left": np.arange(n) % 2,
    }


@pytest.fixture(scope="module")
def churn(table):
    """A network of such rows, as `fit` makes it."""
    module = tabular.MLP((8,))
    return tabular.fit(table, module, label="left", epochs=1, progress=False)


@pytest.mark.parametrize("method", ["integrated_gradients", "input_x_gradient", "occlusion"])
def test_a_linear_model_is_explained_exactly(linear, method):
    model, x, weights = linear
    base = np.array([[0.5, -1.0, 0.0]], np.float32)
    told = explain.explain(model, x, method, target="1", baseline=base)
    np.testing.assert_allclose(told.values, weights * (x - base), atol=2e-6)
    other = explain.explain(model, x, method, target="0", baseline=base)
    np.testing.assert_allclose(other.values, -told.values, atol=2e-6)
    if method != "occlusion":
        assert told.gap.max() < 1e-5


@pytest.mark.parametrize("method", ["gradient", "smooth_grad"])
def test_the_gradient_of_a_linear_model_is_its_weights(linear, method):
    model, x, weights = linear
    told = explain.explain(model, x, method, target="1")
    np.testing.assert_allclose(told.values, np.abs(weights)[None].repeat(2, 0), rtol=1e-5)
    assert not told.signed and np.isnan(told.gap).all()


def test_expected_gradients_of_a_linear_model_take_the_mean_of_the_background(linear):
    model, x, weights = linear
    background = RNG.normal(size=(4, 3)).astype(np.float32)
    told = explain.explain(
        model, x, "expected_gradients", target="1", baseline=background, samples=8
    )
    np.testing.assert_allclose(told.values, weights * (x - background.mean(0)), atol=1e-5)
    assert told.gap.max() < 1e-5


def test_saturated_probabilities_are_explained_by_their_logits():
    """sigmoid(40) is 1 in float32, and has no gradient."""
    task = tabular.classifier(tabular.MLP(()), features=2)
    x = np.ones((1, 2), np.float32)
    model = finished(task, {"features": x})
    model.state.params["logits"]["kernel"][:] = 20.0
    model.state.params["logits"]["bias"][:] = 0.0
    told = explain.explain(model, x)
    np.testing.assert_allclose(told.values, [[20.0, 20.0]], rtol=1e-6)
    assert told.unit() == "log-odds of 1"
    flat = explain.explain(model, x, scale="probability")
    np.testing.assert_allclose(flat.values.sum(), 0.5, atol=1e-3)  # from sigmoid(0)


def test_a_cell_has_what_all_of_its_features_have(table, churn):
    rows = {name: column[:5] for name, column in table.items() if name != "left"}
    told = explain.explain(churn, rows, target="1")
    assert told.names[0].tolist() == ["age", "income", "joined", "plan"]
    assert told.cells[1].tolist() == [table["age"][1], table["income"][1], "2024-01-06", "plus"]
    assert told.gap.max() < 1e-3
    frame = told.frame()
    assert len(frame) == 20 and frame["value"].iloc[:4].tolist() == told.values[0].tolist()
    # by hand, from the features of the encoder
    encoder = churn.reader.encoder
    own = explain.game(churn, rows, "1").players
    names = [own.names[0][i] for i in own.owners["features"][0]]
    for feature, name in zip(encoder.names, names, strict=True):
        assert feature.startswith(name), (feature, name)
    assert len(names) == len(encoder.names) == len({*encoder.names})


class Embedded(nn.Module):
    """Numbers and embedded texts into one dense layer after a tanh."""

    sizes: tuple[int, ...]

    @nn.compact
    def __call__(self, x):
        """Logits (B, 1)."""
        plain = x.shape[1] - len(self.sizes)
        texts = Categories(self.sizes, 4, name="texts")(x[:, plain:].astype(jnp.int32))
        x = jnp.concatenate([x[:, :plain], texts.reshape(len(x), -1)], 1)
        return nn.Dense(1)(jnp.tanh(nn.Dense(4)(x)))


def test_categories_that_are_embedded_have_values(table):
    rows = {name: column for name, column in table.items() if name != "joined"}
    encoder = fit_encoder(rows, label="left", codes=0)
    task = tabular.classifier(Embedded(encoder.categories), len(encoder.names), ("0", "1"))
    model = finished(task, encode(encoder, rows), tabular.TableReader(encoder))
    some = {name: column[:3] for name, column in rows.items()}
    told = explain.explain(model, some, target="1")
    assert told.gap.max() < 1e-3 and np.abs(told.values[:, 2]).min() > 1e-3
    # an unknown text has the embedding 0
    out = explain.explain(model, some | {"plan": np.array(["x", "y", "z"], object)}, target="1")
    assert not out.values[:, 2].any()
    # a row as the baseline says what its text is, too
    base = {name: column[3:4] for name, column in rows.items()}
    told = explain.explain(model, some, target="1", baseline=base)
    p = model.predict(base).probabilities[0, 1].astype(float)
    np.testing.assert_allclose(told.baseline, np.log(p) - np.log1p(-p), atol=1e-5)
    assert told.gap.max() < 1e-3 and rows["plan"][0] == base["plan"][0]
    assert told.values[0, 2] == 0 and np.abs(told.values[1:, 2]).min() > 1e-3
    # a small change of the numbers is none of the text's number, which is no part of their range
    one = explain.game(model, some, "1")
    features, change = one.players.columns["features"], 0.5
    for method in ("occlusion", "gradient"):
        moved = changed(one, method, change, np.random.default_rng(0)).players.columns["features"]
        gaps, numbers = np.abs(moved - features), features[:, :-1]
        assert (gaps[:, -1] == 0).all() and (gaps[:, :-1] > 0).all()
        assert (gaps <= change * np.ptp(numbers, axis=1)[:, None] + 1e-6).all()
    (free,) = Gradients(one, "smooth_grad").plain[0].values()
    assert free.tolist() == [[True] * (features.shape[1] - 1) + [False]]


@pytest.mark.slow
@pytest.mark.parametrize(
    "module", [tabular.RealMLP((4,), numbers=2), tabular.FTTransformer(depth=1, width=8, heads=1)]
)
def test_networks_of_jaxops_embed_texts_by_look_ups(table, module):
    rows = {name: column for name, column in table.items() if name != "joined"}
    encoder = fit_encoder(rows, label="left", codes=0)
    module = module.clone(categories=encoder.categories)
    task = tabular.classifier(module, len(encoder.names), ("0", "1"))
    model = finished(task, encode(encoder, rows), tabular.TableReader(encoder))
    players = model.reader.players(model, {name: column[:1] for name, column in rows.items()})
    (found,) = look_ups(players.program, players.columns)
    assert found.call[0] == ("texts",) and found.places.tolist() == [len(encoder.names) - 1]


@pytest.mark.slow
def test_trees_are_explained_without_gradients(table):
    model = tabular.fit(
        {n: table[n] for n in ("age", "income", "plan", "left")},
        tabular.HistGradientBoosting(max_iter=3),
        label="left",
        progress=False,
    )
    rows = {name: table[name][:2] for name in ("age", "income", "plan")}
    told = explain.explain(model, rows, "occlusion", target="1")
    assert told.unit() == "probability of 1"
    p = model.predict(rows).probabilities[:, 1]
    np.testing.assert_allclose(told.outputs, p, rtol=1e-6)
    mean = model.reader.encoder.mean["age"]
    without = model.predict(rows | {"age": np.array([mean, mean])}).probabilities[:, 1]
    np.testing.assert_allclose(told.values[:, 0], p - without, atol=1e-7)
    with pytest.raises(ValueError, match="one of occlusion, shapley and kernel_shap"):
        explain.explain(model, rows)


@pytest.fixture(scope="module")
def router():
    """A classifier of texts by n-grams, and its reader."""
    read = text.NGrams(context=32, vocabulary=256, characters=(3, 3))
    module = text.NGramBag(256, classes=3, width=4)
    task = text.classifier(module, read.context, ("card", "pin", "rate"))
    return finished(task, read(["my card"]), text.TextReader(read, temperature=1.5), scale=2.0)


def test_words_left_out_have_the_evidence_that_classify_tells(router):
    texts = ["my card  is lost", "a pin"]
    told = explain.explain(router, texts, "occlusion")
    for row, decision in enumerate(text.classify(router, texts)):
        words, evidence = zip(*decision.words, strict=True)
        assert told.names[row][told.real[row]].tolist() == [*words]
        assert told.targets[row] == decision.label
        np.testing.assert_allclose(told.values[row][told.real[row]], evidence, atol=1e-4)


def test_words_by_gradients_add_up_to_what_the_user_is_told(router):
    texts = ["my card is lost", "a pin"]
    told = explain.explain(router, texts)
    assert told.gap.max() < 1e-3
    assert not told.values[~told.real].any() and told.values[told.real].all()
    p = router.predict(texts).probabilities  # at the calibrated temperature
    odds = np.log(p.max(1)) - np.log(1 - p.max(1))
    np.testing.assert_allclose(told.outputs, odds, rtol=1e-4)


@pytest.mark.slow
def test_every_member_of_a_mixture_is_looked_into():
    words = text.Tokens(Tokenizer.train(["my card is lost", "a new pin"], kind="word"), context=6)
    read = text.WordsAndNGrams(words, text.NGrams(context=64, vocabulary=256))
    module = text.BagAndCNN(
        256, classes=3, words=6, word_vocabulary=words.vocabulary, width=8, filters=4, linear=1
    )
    task = text.classifier(module, read.context, ("card", "pin", "rate"))
    model = finished(task, read(["my card"]), text.TextReader(read), scale=2.0)
    one = explain.game(model, ["my card is lost", "a pin"])
    for found in one.look_ups:
        first = 0 if found.call[0][0] == "cnn" else 6
        assert found.places.tolist() == [*range(first, first + len(found.places))]
        assert found.column == "tokens"
    calls = sorted("/".join(found.call[0]) for found in one.look_ups)
    assert calls == ["bag", "cnn/tokens", "linear"]
    told = explain.explain(model, ["my card is lost", "a pin"])
    assert told.gap.max() < 1e-3 and told.values[told.real].all()


def test_tokens_belong_to_the_words_in_which_they_end():
    words = ["the cards", "cardinal"]
    read = text.Tokens(Tokenizer.train(words * 3, kind="bpe", vocabulary=40), context=16)
    for one in words:
        own = one.split()
        share = shares(read, [one], [own], len(own))[0]
        tokens = read([one])["tokens"][0]
        assert (share.sum(1) == (tokens > 0)).all()
        for i, word in enumerate(own):
            part = tokens[share[:, i] > 0].tolist()
            assert read.tokenizer.decode(part).strip() == word


@pytest.fixture(scope="module")
def digits():
    """A small convolutional network and three images."""
    images = RNG.integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    task = vision.classifier(vision.CNN(classes=3, features=2, hidden=4), (8, 8, 1), 3)
    return finished(task, {"image": images}), images


def test_pixels_add_up_and_squares_of_them_are_left_out(digits):
    model, images = digits
    told = explain.explain(model, images, target=[0, 1, 2])
    assert told.shape == (8, 8) and told.values.shape == (3, 64) and told.gap.max() < 1e-3
    squares = explain.explain(model, images, "occlusion", target=[0, 1, 2], patch=3)
    assert squares.shape == (3, 3)
    black = images.copy()
    black[:, 3:6, 6:] = 0

    def odds(some):
        p = model.predict(some).astype(float)[np.arange(3), np.arange(3)]
        return np.log(p) - np.log1p(-p)

    np.testing.assert_allclose(squares.values[:, 5], odds(images) - odds(black), atol=1e-4)
    every = squares.frame()
    assert every["name"].iloc[5] == "1,2" and len(every) == 27


def test_maps_are_what_the_layer_gives_and_grad_cam_weighs_them(digits):
    model, images = digits
    maps = explain.feature_maps(model, images)
    params = model.state.params["conv"]
    x = jnp.asarray(images, jnp.float32) / 255
    own = jax.lax.conv_general_dilated(
        x, params["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + params["bias"].reshape(1, 1, 1, -1)
    assert maps.layer == "conv"
    np.testing.assert_allclose(maps.values, own, atol=1e-5)
    assert len(maps.frame()) == 6
    told = explain.explain(model, images, "grad_cam", target=0)
    assert told.values.min() == 0 < told.values.max() and told.settings["layer"] == "conv"


def test_more_rows_compile_nothing_new(linear):
    model, _, _ = linear
    rows = RNG.normal(size=(8, 3)).astype(np.float32)
    explain.explain(model, rows, target="1")
    before = _along._cache_size()
    again = explain.explain(model, rows[:7], target="1")  # one row of padding
    explain.explain(model, rows * 2, target="0", baseline=rows[:1], steps=100)
    assert _along._cache_size() == before
    np.testing.assert_array_equal(again.values, explain.explain(model, rows, target="1").values[:7])


def test_what_does_not_apply_is_refused(linear, digits, router, churn, table):
    model, x, _ = linear
    with pytest.raises(ValueError, match=r"method must be one of integrated_gradients, .* 'magic'"):
        explain.explain(model, x, "magic")
    with pytest.raises(ValueError, match="settings of occlusion must be among none, got 'steps'"):
        explain.explain(model, x, "occlusion", steps=3)
    with pytest.raises(ValueError, match="target must be one of 0, 1, got 'yes'"):
        explain.explain(model, x, target="yes")
    with pytest.raises(ValueError, match="target must be one output, or 2 of them, got 3"):
        explain.explain(model, x, target=[0, 1, 0])
    with pytest.raises(ValueError, match="scale must be one of log-odds, probability"):
        explain.explain(model, x, scale="logit")
    with pytest.raises(ValueError, match=r"features must have rows of shape \(3,\), got \(2,\)"):
        explain.explain(model, x[:, :2])
    with pytest.raises(ValueError, match="another than grad_cam for features"):
        explain.explain(model, x, "grad_cam")
    with pytest.raises(ValueError, match="patch must be 1 for what is no image, got 2"):
        explain.explain(model, x, "occlusion", patch=2)
    with pytest.raises(ValueError, match="baseline must be several rows for expected_gradients"):
        explain.explain(model, x, "expected_gradients")
    with pytest.raises(ValueError, match="baseline must be one row for integrated_gradients"):
        explain.explain(model, x, baseline=x)
    with pytest.raises(ValueError, match="baseline must be one row for input_x_gradient, got 2"):
        explain.explain(model, x, "input_x_gradient", baseline=x)
    with pytest.raises(ValueError, match="baseline must be None for smooth_grad, which has none"):
        explain.explain(model, x, "smooth_grad", baseline=x[:1])
    other = text.TextReader(text.NGrams(context=32, vocabulary=128, characters=(3, 3)))
    with pytest.raises(ValueError, match="read must have a vocabulary of 256"):
        explain.explain(replace(router, reader=other), ["my card"])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        explain.explain(model, x, steps=0)
    with pytest.raises(ValueError, match="layer must be one of conv, got 'pool'"):
        explain.explain(digits[0], digits[1], "grad_cam", layer="pool")
    with pytest.raises(ValueError, match="baseline must be None for words"):
        explain.explain(router, ["my card"], baseline=["a pin"])
    with pytest.raises(ValueError, match="must have a column 'joined', got plan"):
        explain.explain(churn, {"plan": table["plan"]})


def test_too_few_steps_are_told(digits, monkeypatch):
    model, images = digits
    monkeypatch.setattr("jaxops.explain.integrals.MOST_NODES", 1)
    with pytest.warns(UserWarning, match="rows miss their sum by up to .* with 1 steps"):
        told = explain.explain(model, images, steps=1, tolerance=1e-6)
    assert told.gap.max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cells", "words", "pixels"])
def test_each_kind_has_its_picture(kind, churn, table, router, digits, tmp_path):
    told = {
        "cells": lambda: explain.explain(churn, {n: table[n][:2] for n in table}),
        "words": lambda: explain.explain(router, ["my card costs $5 or $6"]),
        "pixels": lambda: explain.explain(*digits),
    }[kind]()
    figure = told.plot(path=tmp_path / "told.png")
    assert (tmp_path / "told.png").stat().st_size > 5000
    axes = figure.axes[0]
    if kind == "words":
        assert [label.get_text() for label in axes.get_yticklabels()][3] == r"\$5"
    if kind != "pixels":
        widths = [bar.get_width() for bar in axes.patches]
        np.testing.assert_allclose(np.sort(widths), np.sort(told.values[0][told.real[0]]))
    with pytest.raises(ValueError, match=r"row must be in \[0, "):
        told.plot(row=9)


@pytest.mark.slow
def test_the_command_writes_a_page_with_pictures_and_tests(churn, table, tmp_path, capsys):
    import pandas as pd

    from jaxops.cli import main

    jo.save(tmp_path / "churn.safetensors", churn)
    pd.DataFrame(table).head(2).to_csv(tmp_path / "few.csv", index=False)
    files = [str(tmp_path / name) for name in ("churn.safetensors", "few.csv", "why/told.html")]
    assert main(["explain", *files[:2], "--out", files[2], "--target", "1"]) == 0
    told = capsys.readouterr().out
    assert "random parameters" in told and f"written: {files[2]}" in told
    page = (tmp_path / "why" / "told.html").read_text()
    assert page.count("<img") == 2 and "log-odds of 1" in page
    assert main(["explain", *files[:2], "--out", files[2], "--method", "magic"]) == 1
    assert "method must be one of" in capsys.readouterr().err
