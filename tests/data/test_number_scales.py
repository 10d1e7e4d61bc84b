"""Numbers by quantiles and robustly scaled, texts by their number, rare texts together."""

import json

import numpy as np
import pytest
from sklearn.preprocessing import OrdinalEncoder, QuantileTransformer, RobustScaler

from jaxops.data.number_scales import NOISE, quantiles
from jaxops.tabular import Encoder, encode, fit_encoder

RNG = np.random.default_rng(1)
SKEWED = np.where(np.arange(900) % 3 == 0, 0.0, RNG.lognormal(3, 2, 900))
NEW = np.concatenate([[-1e6, 0.0, 1e-9, 1e6], RNG.lognormal(3, 2, 50)])


def test_quantiles_are_scikit_learns():
    encoder = fit_encoder({"spent": SKEWED}, scale="quantile")
    assert len(encoder.quantiles["spent"]) == 900 // 30 == len(quantiles(SKEWED))
    noise = np.random.default_rng(0).normal(0, NOISE, 900) * SKEWED.std()
    other = QuantileTransformer(n_quantiles=30, output_distribution="normal", subsample=None).fit(
        (SKEWED + noise)[:, None]
    )
    for x in (SKEWED, NEW):
        found = encode(encoder, {"spent": x})["features"][:, 0]
        np.testing.assert_allclose(found, other.transform(x[:, None])[:, 0], rtol=1e-5, atol=1e-6)
    assert encode(encoder, {"spent": [np.nan]})["features"].tolist() == [[0.0]]
    few = fit_encoder({"spent": SKEWED[:7]}, scale="quantile")
    assert len(few.quantiles["spent"]) == 7
    assert len(quantiles(RNG.normal(size=60_000))) == 1000


def test_robust_numbers_are_scikit_learns_bent():
    encoder = fit_encoder({"spent": SKEWED}, scale="robust")
    scaled = RobustScaler().fit(SKEWED[:, None]).transform(NEW[:, None])[:, 0]
    found = encode(encoder, {"spent": NEW})["features"][:, 0]
    np.testing.assert_allclose(found, scaled / np.sqrt(1 + (scaled / 3) ** 2), rtol=1e-5)
    mostly = np.where(np.arange(100) < 90, 5.0, np.arange(100))  # both quartiles are 5
    encoder = fit_encoder({"x": mostly}, scale="robust")
    assert encoder.std["x"] == (99 - 5) / 2


@pytest.mark.parametrize("scale", ["quantile", "robust"])
def test_two_values_become_0_and_1_and_constants_0(scale):
    table = {"two": [3.0, 7.0, np.nan, 3.0], "one": [5.0] * 4, "age": [1.0, 2.0, 3.0, 4.0]}
    encoder = fit_encoder(table, scale=scale)
    assert encoder.numbers == ["one", "age"]
    assert encoder.names == ["one", "age", "two missing", "two>3"]
    features = encode(encoder, table)["features"]
    assert features[:, 3].tolist() == [0, 1, 0, 0] and features[:, 2].tolist() == [0, 0, 1, 0]
    assert not features[:, 0].any() and (np.diff(features[:, 1]) > 0).all()


def test_rare_texts_share_a_feature_and_new_ones_have_none():
    plan = np.array(["a"] * 50 + ["b"] * 30 + ["c"] * 3 + ["d", "e"] + [""] * 15, object)
    encoder = fit_encoder({"plan": plan}, least=4)
    assert encoder.names == ["plan=", "plan=a", "plan=b", "plan rare"]
    assert encoder.rare == {"plan": ["c", "d", "e"]}
    features = encode(encoder, {"plan": ["a", "c", "e", "", "new"]})["features"]
    assert features.argmax(1)[:4].tolist() == [1, 3, 3, 0]
    assert features.sum(1).tolist() == [1, 1, 1, 1, 0]
    assert fit_encoder({"plan": plan}, most=2).rare == {"plan": ["", "c", "d", "e"]}
    assert fit_encoder({"plan": plan}).rare == {}


def test_texts_by_their_number_are_scikit_learns_ordinals():
    columns = {
        "age": RNG.uniform(size=60).round(2),
        "plan": RNG.choice(["x", "y"], 60).astype(object),
        "city": RNG.choice([f"c{i}" for i in range(12)], 60).astype(object),
    }
    encoder = fit_encoder(columns, codes=2)
    assert encoder.codes == ["city"] and encoder.categories == (13,)
    assert encoder.names == ["age", "plan=x", "plan=y", "city"]
    ordinals = OrdinalEncoder().fit_transform(columns["city"][:, None])[:, 0]
    np.testing.assert_array_equal(encode(encoder, columns)["features"][:, -1], 1 + ordinals)
    new = {name: column[:1] for name, column in columns.items()} | {"city": ["nowhere"]}
    assert encode(encoder, new)["features"][0, -1] == 0
    assert Encoder(**json.loads(json.dumps(encoder._asdict()))) == encoder


def test_a_hundred_thousand_categories_are_bounded():
    codes = RNG.integers(0, 100_000, 250_000).astype(str).astype(object)
    encoder = fit_encoder({"item": codes}, codes=8, least=3, most=1000)
    assert encoder.categories == (1002,) and len(encoder.names) == 1
    features = encode(encoder, {"item": codes})["features"]
    assert features.min() >= 1 and features.max() == 1001
    assert len(fit_encoder({"item": codes}, least=3, most=1000).names) == 1001


def test_refuses_another_scale():
    with pytest.raises(ValueError, match="scale must be one of standard, quantile, robust, got"):
        fit_encoder({"x": [1.0, 2.0]}, scale="log")
