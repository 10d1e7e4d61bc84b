"""Corruptions beside SciPy, Pillow and colorsys, or by definition; what they cost models."""

import colorsys

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.ndimage
from PIL import Image

import jaxops as jo
from jaxops import forecast, robustness, tabular, vision
from jaxops.robustness import images, typos
from jaxops.robustness.corrupting import LEVELS, corrupt, corrupted
from jaxops.trust.intervals import interval

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
SMOOTH = scipy.ndimage.gaussian_filter(COLOUR, (0, 3, 3, 0)).astype(np.uint8)
GREY = np.full((12, 32, 32, 3), 128, np.uint8)


@pytest.mark.parametrize(
    ("kind", "std"),
    [
        ("gaussian_noise", 255 * 0.09),
        ("shot_noise", 255 * np.sqrt(128 / 255 / 75)),
        ("impulse_noise", 127.5 * np.sqrt(0.05)),
    ],
)
def test_noise_has_its_mean_and_spread(kind, std):
    change = corrupt(GREY, kind, 4).astype(float) - 128
    assert change.std() == pytest.approx(std, rel=0.05)
    assert abs(change.mean()) < 0.6
    assert len({one.tobytes() for one in change}) == len(change)  # each image has its own


def test_impulses_are_black_and_white_alike():
    changed = corrupt(GREY, "impulse_noise", 5)
    for value in (0, 255):
        assert (changed == value).mean() == pytest.approx(0.035, rel=0.1)
    assert {*np.unique(changed)} == {0, 128, 255}


@pytest.mark.parametrize("level", [1, 5])
def test_blur_is_scipy_s(level):
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[level - 1]
    wanted = scipy.ndimage.gaussian_filter(COLOUR / 255, (0, sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(corrupt(COLOUR, "gaussian_blur", level), wanted * 255, atol=0.51)


@pytest.mark.parametrize("level", LEVELS)
def test_pixels_are_pillow_s(level):
    small = int(32 * (0.95, 0.9, 0.85, 0.75, 0.65)[level - 1])
    found = corrupt(COLOUR, "pixelate", level)
    for one, told in zip(COLOUR, found, strict=True):
        wanted = Image.fromarray(one).resize((small, small), Image.BOX).resize((32, 32), Image.BOX)
        assert np.abs(told.astype(int) - np.asarray(wanted)).max() <= 1


def test_contrast_and_brightness():
    x = COLOUR / 255
    mean = x.mean((1, 2), keepdims=True)
    wanted = np.clip((x - mean) * 0.4 + mean, 0, 1) * 255
    np.testing.assert_allclose(corrupt(COLOUR, "contrast", 3), wanted, atol=0.51)
    few = np.concatenate([COLOUR[:1, :2, :2], np.zeros((1, 2, 2, 3), np.uint8)])
    found = corrupt(few, "brightness", 5)
    for one, told in zip(few.reshape(-1, 3), found.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(one / 255))
        wanted = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.3, 1))
        np.testing.assert_allclose(told, np.array(wanted) * 255, atol=0.51)


def test_motion_is_a_mean_of_places_along_a_line():
    found = corrupt(SMOOTH, "motion_blur", 3, seed=5)
    key = jax.random.fold_in(jax.random.key(5), 2)  # of image number 2
    angle = float(jax.random.uniform(key, minval=-np.pi / 4, maxval=np.pi / 4))
    down, right = np.meshgrid(np.arange(32), np.arange(32), indexing="ij")
    weights = np.exp(-0.5 * (np.arange(13) / 2) ** 2)
    wanted = np.zeros((32, 32))
    for tap, weight in enumerate(weights / weights.sum()):
        at = [down + tap * np.sin(angle), right + tap * np.cos(angle)]
        wanted += weight * scipy.ndimage.map_coordinates(
            SMOOTH[2, :, :, 0].astype(float), at, order=1, mode="nearest"
        )
    np.testing.assert_allclose(found[2, :, :, 0], wanted, atol=0.6)


def test_rotation_to_either_side():
    found = corrupt(SMOOTH, "rotation", 3)[:, 6:-6, 6:-6].astype(float)
    sides = []
    for one, told in zip(SMOOTH.astype(float), found, strict=True):
        turned = [scipy.ndimage.rotate(one, angle, order=1, reshape=False)[6:-6, 6:-6]
                  for angle in (15, -15)]  # fmt: skip
        apart = [np.abs(told - wanted).max() for wanted in turned]
        assert min(apart) <= 0.6
        sides.append(int(np.argmin(apart)))
    assert {*sides} == {0, 1}


def test_occlusion_is_a_box_inside():
    found = corrupt(GREY, "occlusion", 5)
    starts = set()
    for one in found:
        down, right = np.nonzero(one[:, :, 0] == 0)
        assert len(down) == 16 * 16 and np.ptp(down) == np.ptp(right) == 15
        starts.add((down.min(), right.min()))
    assert len(starts) > 8
    assert (corrupt(GREY, "occlusion", 1)[0, :, :, 0] == 0).sum() == 25  # 2 % of 1,024


def test_equal_arguments_give_equal_images_by_one_program(monkeypatch):
    grey = COLOUR[..., 0]
    one = corrupt({"image": grey, "label": np.arange(12)}, "gaussian_noise", 1, seed=3)
    assert one["image"].shape == grey.shape and one["label"].tolist() == [*range(12)]
    monkeypatch.setattr(images, "AT_ONCE", 4 * 32 * 32)  # four images at a time
    before = images._corrupted._cache_size()
    several = [corrupt(grey, "gaussian_noise", level, seed=3) for level in LEVELS]
    assert images._corrupted._cache_size() == before + 1
    np.testing.assert_array_equal(several[0], one["image"])
    spread = [np.std(found.astype(float) - grey) for found in several]
    assert spread == sorted(spread) and (several[0] != corrupt(grey, "gaussian_noise", 1)).any()


def table(rows=400):
    x = np.random.default_rng(1).standard_normal(rows)
    return pd.DataFrame(
        {"id": np.arange(rows), "size": x, "count": np.arange(rows) % 9, "plan": ["a", "b"] * 200}
    )


def test_outliers_move_by_robust_deviations():
    before, found = table(), [corrupt(table(), "outliers", n, columns=["size", "count"])
                              for n in (2, 5)]  # fmt: skip
    for name in ("size", "count"):
        x = before[name].to_numpy(float)
        far = 10 * 1.4826 * np.median(np.abs(x - np.median(x)))
        few, many = (np.abs(one[name].to_numpy(float) - x) for one in found)
        np.testing.assert_allclose(many[many > 0], far, atol=1e-3 if name == "size" else 0.5)
        assert (many > 0).mean() == pytest.approx(0.2, abs=0.06)
        assert (few > 0).mean() == pytest.approx(0.02, abs=0.02) and ((few > 0) <= (many > 0)).all()
    assert found[1]["count"].dtype == np.int64
    pd.testing.assert_frame_equal(found[1][["id", "plan"]], before[["id", "plan"]])
    array = np.ones((50, 2), np.float32) * np.arange(50, dtype=np.float32)[:, None]
    assert corrupt(array, "outliers", 5).dtype == np.float32


def test_missing_cells_leave_the_others():
    before, found = table(), corrupt(table(), "missing", 4)
    assert found["count"].dtype == "Int64"
    for name in before:
        gone = found[name].isna().to_numpy()
        assert gone.mean() == pytest.approx(0.3, abs=0.08)
        assert (found[name][~gone] == before[name][~gone]).all()


def test_gaps_and_spikes_of_series():
    rows = pd.DataFrame({"id": ["a", "b"] * 50, "value": np.arange(100.0) ** 2})
    gaps = corrupt(rows, "gaps", 4, by="id")
    for name in "ab":
        gone = np.flatnonzero(gaps["value"][gaps["id"] == name].isna())
        assert len(gone) == 10 and np.ptp(gone) == 9 and gone[0] > 0 and gone[-1] < 49
    spikes = corrupt(rows, "spikes", 5, by="id", seed=2)["value"] - rows["value"]
    for name in "ab":
        x = rows["value"][rows["id"] == name]
        own = spikes[rows["id"] == name]
        far = 10 * 1.4826 * (x - x.median()).abs().median()
        np.testing.assert_allclose(own[own != 0].abs(), far, rtol=1e-4)
        assert 0 < (own != 0).sum() < 15


def test_typing_errors():
    words = ["transfer", "Dispute", "refund", "topup"] * 100
    texts = [" ".join(words)]
    for kind in typos.TYPOS:
        (found,) = corrupt(texts, kind, 5)
        pairs = [(a, b) for a, b in zip(words, found.split(" "), strict=True)]
        changed = [(a, b) for a, b in pairs if a != b]
        assert len(changed) / len(pairs) == pytest.approx(0.5, abs=0.1)
        few = corrupt(texts, kind, 1)[0].split(" ")
        assert all(b in (a, c) for (a, c), b in zip(pairs, few, strict=True))
        for a, b in changed:
            if kind == "swap":
                assert sorted(a) == sorted(b)
                assert sum(x != y for x, y in zip(a, b, strict=True)) == 2
            elif kind == "neighbour":
                ((x, y),) = [(x, y) for x, y in zip(a, b, strict=True) if x != y]
                assert y.lower() in typos.NEAR[x.lower()] and x.isupper() == y.isupper()
            else:
                shorter, longer = sorted((a, b), key=len)
                assert len(longer) - len(shorter) == 1
                places = [i for i in range(len(longer)) if longer[:i] + longer[i + 1 :] == shorter]
                assert places and (kind == "drop" or b[places[0]] == b[places[0] + 1])
    assert {*typos.NEAR["s"]} == {*"adwezx"} and {*typos.NEAR["q"]} == {*"wa"}
    told = corrupt({"message": ["my  card\nis lost"], "n": [1]}, "drop", 5, columns=["message"])
    assert "  " in told["message"][0] and "\n" in told["message"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], "fog", 1), "kind must be one of gaussian_noise, .*, got 'fog'"),
        ((["a"], "drop", 6), "level must be in 1 to 5, got 6"),
        ((["a"], "contrast", 1), "rows must be images, uint8 .*, got list"),
        ((GREY / 255, "contrast", 1), "rows must be images, uint8"),
        (([1], "drop", 1), "rows must be texts for drop, got int"),
        (({"a": ["b"]}, "drop", 1), "columns must name the texts"),
        (({"a": ["b"]}, "outliers", 1), "rows must have a column of numbers for outliers, got a"),
        (({"a": [1.0]}, "outliers", 1, 0, ["b"]), "rows must have a column 'b', got a"),
        (({"a": [1.0], "b": ["x"]}, "gaps", 1, 0, ["b"]), "columns must be numbers for gaps"),
        (({"a": [1.0]}, "outliers", 1, 0, "a"), "columns must be names"),
        (({"a": [1.0]}, "outliers", 1, 0, None, "a"), "by must be None for outliers, got 'a'"),
        ((GREY, "contrast", 1, 0, ["a"]), "columns and by must be None for contrast"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(*arguments)


@pytest.fixture(scope="module")
def line():
    """A classifier of "id", "size" and "count", by the sign of the size."""
    rows = table()
    rows["label"] = np.where(rows["size"] > 0, "large", "small")
    model = tabular.fit(rows, tabular.MLP((8,)), label="label", id="id", epochs=20, progress=False)
    return model, rows


def test_what_corruptions_cost_a_classifier(line):
    model, rows = line
    found = corrupted(model, rows, rows["label"], kinds=["outliers"], levels=(1, 5))
    assert found.metric == "accuracy" and found.interval().mean > 0.9
    changed = corrupt(rows, "outliers", 5, columns=["size", "count"])
    right = model.predict(changed).labels == rows["label"]
    np.testing.assert_array_equal(found.values["outliers", 5], right)
    told = found.interval("outliers", 5)
    p, z, n = right.mean(), 1.959964, 400  # Wilson's score interval
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    np.testing.assert_allclose(told, [p, middle - half, middle + half], rtol=1e-5)
    change = found.change("outliers", 5)
    assert change == interval(right - found.clean) and change.high < 0
    assert found.rows()[-1]["level"] == 5 and "| outliers" in str(found)
    assert found.frame()["kind"].tolist() == ["clean", "outliers", "outliers"]


def test_wrong_kinds_levels_and_labels(line):
    model, rows = line
    with pytest.raises(ValueError, match=r"kinds must be among .*, got 'rain'"):
        corrupted(model, rows, rows["label"], kinds=["rain"])
    with pytest.raises(ValueError, match=r"levels must be some of 1 to 5, got \[0\]"):
        corrupted(model, rows, rows["label"], levels=[0])
    with pytest.raises(ValueError, match="labels must be among large, small, got '0' in row 0"):
        corrupted(model, rows, np.zeros(400, int))


def test_forecasts_of_corrupted_series():
    days = pd.date_range("2024-01-01", periods=20).astype(str)
    rows = pd.DataFrame({"id": np.repeat(["a", "b"], 20), "time": [*days] * 2,
                         "value": np.tile(np.arange(20.0), 2)})  # fmt: skip
    reader = forecast.SeriesReader(2, "D", fill="linear")
    model = jo.Model(forecast.Baseline("repeat_last"), None, reader)
    found = corrupted(model, rows, np.full((2, 2), 19.0))
    assert {kind for kind, _ in found.values} == {"spikes", "gaps"}
    assert found.metric == "absolute error" and found.clean.tolist() == [0, 0]
    assert all(found.values["gaps", level].tolist() == [0, 0] for level in LEVELS)
    for level in LEVELS:  # a forecast moves where the last value does
        changed = corrupt(rows, "spikes", level, columns=["value"], by="id")["value"]
        wanted = np.abs(changed[[19, 39]] - 19)
        np.testing.assert_allclose(found.values["spikes", level], wanted, rtol=1e-5)


@pytest.mark.slow
def test_images_of_a_model_without_a_reader():
    task = vision.classifier(vision.MLP((), classes=2), (32, 32, 3), classes=("no", "yes"))
    model = jo.Model(task, jo.init_state(task, jo.optim.sgd(0.1), 0, {"image": COLOUR}))
    found = corrupted(model, COLOUR, ["no", "yes"] * 6, levels=[3])
    assert [kind for kind, _ in found.values] == [*images.IMAGES]
    assert {*robustness.KINDS} > {*images.IMAGES}
