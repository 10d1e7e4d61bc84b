"""One call a job on images: what is read, what is learned, what comes back from the file."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxops as jo
from jaxops import vision
from jaxops.model.selection import Blend

RNG = np.random.default_rng(0)
N = 96
LABEL = np.arange(N) % 2
IMAGES = RNG.integers(0, 80, (N, 12, 12, 1)).astype(np.uint8)
IMAGES[LABEL == 1, 3:9, 3:9] += 120
NAMES = np.array(["empty", "square"], object)[LABEL]
ROWS = {"image": IMAGES, "label": NAMES}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("photos")
    for name in ("empty", "square"):
        (path / name).mkdir()
    for i, (image, name) in enumerate(zip(IMAGES, NAMES, strict=True)):
        Image.fromarray(image[..., 0]).save(path / name / f"{i:03}.png")
    return path


@pytest.fixture(scope="module")
def model(folder):
    return vision.fit(folder, vision.ConvNet((4,)), epochs=10, progress=False)


def test_every_kind_of_source_gives_the_same_answer(model, folder):
    assert model.reader == vision.ImageReader((12, 12), 1)
    assert model.task.classes == ("empty", "square")
    order = np.argsort(LABEL, kind="stable")  # as the folders are read
    paths = sorted(folder.rglob("*.png"))
    wanted = model.predict(IMAGES[order])
    sources = [folder, str(folder), paths, [*map(str, paths)], IMAGES[order, :, :, 0]]
    sources += [{"image": IMAGES[order]}, {"image": np.array([*map(str, paths)])}]
    for source in sources:
        answer = model.predict(source)
        assert answer.labels.tolist() == wanted.labels.tolist()
        np.testing.assert_array_equal(answer.probabilities, wanted.probabilities)
    assert model.predict(folder).ids.tolist() == [*map(str, paths)]
    assert wanted.ids.tolist() == [*range(N)]
    assert model.predict(paths[3]).probabilities.shape == (1, 2)
    assert wanted.frame().columns.tolist() == ["id", "label", "p(empty)", "p(square)"]
    assert vision.classify(model, folder).labels[:, 0].tolist() == wanted.labels.tolist()


def test_what_it_learns_and_its_scores(model, folder):
    metrics = pytest.importorskip("sklearn.metrics")
    wrong = np.where(np.arange(N) % 7 == 0, "empty", NAMES).astype(object)
    scored, answer = vision.evaluate(model, {**ROWS, "label": wrong}), model.predict(IMAGES)
    figures, target, told = scored.figures(), wrong.tolist(), answer.labels.tolist()
    assert figures["accuracy"] == metrics.accuracy_score(target, told)
    f1 = metrics.f1_score(target, told, average="macro")
    assert figures["macro_f1"] == pytest.approx(f1)
    p = answer.probabilities.astype(np.float64)
    loss = metrics.log_loss(target, p / p.sum(1, keepdims=True))
    assert figures["log_loss"] == pytest.approx(loss, rel=1e-5)
    assert vision.evaluate(model, folder).figures()["accuracy"] > 0.95
    assert model.about["validation"]["accuracy"] > 0.9


def test_new_images(model, tmp_path):
    turned = vision.update(model, {**ROWS, "label": NAMES[::-1]}, epochs=24, progress=False)
    assert (turned.predict(IMAGES).labels != NAMES).mean() > 0.9
    assert turned.reader is model.reader
    # of a blend each member learns what it would learn alone, with other draws
    both = jo.Model(Blend.of([model, model], (0.25, 0.75)), None, model.reader, model.about)
    again = vision.update(both, {**ROWS, "label": NAMES[::-1]}, epochs=24, progress=False)
    wanted = turned.predict(IMAGES).probabilities
    np.testing.assert_allclose(again.predict(IMAGES).probabilities, wanted, atol=0.05)
    assert again.task.weights == (0.25, 0.75) and again.about == turned.about
    with pytest.raises(ValueError, match="checkpoints must be None where 2 trainings follow"):
        vision.update(both, ROWS, checkpoints=tmp_path)


def arrows(count, mirrored):
    """Arrows to the left and to the right, at places that differ."""
    label, rng = np.arange(count) % 2, np.random.default_rng(count)
    y, x = np.mgrid[:28, :28][:, None] - rng.integers(12, 17, (2, count, 1, 1))
    side = np.where(label[:, None, None] == 0, 1, -1)
    arrow = (np.abs(side * x + 4 - np.abs(y)) < 2) & (np.abs(y) < 6)
    pixels = arrow * 150 + rng.integers(0, 105, (count, 28, 28))
    return {"image": pixels[..., None].astype(np.uint8), "label": label}


def corners(count, mirrored):
    """The upper and the lower corners of a square, of one side or of both."""
    label, rng = np.arange(count) % 2, np.random.default_rng(count)
    pixels = rng.integers(0, 105, (count, 28, 28))
    pixels[label == 0, 6, 6:22] += 150
    pixels[label == 1, 21, 6:22] += 150
    pixels[:, 6:22, 6] += 150
    pixels[::mirrored] = pixels[::mirrored, :, ::-1]
    return {"image": np.minimum(pixels, 255)[..., None].astype(np.uint8), "label": label}


@pytest.mark.parametrize(
    ("images", "flips"), [(arrows, False), pytest.param(corners, True, marks=pytest.mark.slow)]
)
def test_validation_chooses_the_augmentation(images, flips, capsys):
    train, held = images(60, 60), images(200, 3)
    model = vision.fit(train, vision.MLP((16,)), validation=held, epochs=20)
    losses, kept = model.about["augmentations"], model.about["augmentation"]
    assert kept == min(losses, key=losses.get) and kept.startswith("flip") == flips
    assert list(losses)[:2] == ["none", "rotate, shift and scale"] and len(losses) == 3
    if images is arrows:
        assert kept == "rotate, shift and scale"
    assert f"augmentation: {kept}; log_loss of short trainings: none" in capsys.readouterr().out
    assert flips == ("Flip" in str(dict(model.task.recipe[1])["augment"]))


def test_with_checkpoints_or_without_time_there_is_one_training(tmp_path):
    options = {"epochs": 1, "checkpoints": tmp_path, "progress": False}
    about = vision.fit(ROWS, vision.MLP(()), **options).about
    assert (about["augmentation"], about["augmentations"]) == ("rotate, shift and scale", {})
    many = {name: np.tile(column, (7, *[1] * (column.ndim - 1))) for name, column in ROWS.items()}
    assert N * 7 * 0.85 > 560 > 500  # augmentation is tried on 500 images, in one batch
    large = vision.fit(many, vision.MLP(()), epochs=1, batch_size=560, progress=False).about
    assert len(large["augmentations"]) == 3
    short = vision.fit(ROWS, vision.MLP(()), epochs=1, budget=0.01, progress=False).about
    assert (short["augmentation"], short["augmentations"]) == ("rotate, shift and scale", {})


CHILD = """
import sys, numpy as np, jaxops as jo
answer = jo.load(sys.argv[1]).predict(sys.argv[2])
np.savez(sys.argv[3], ids=answer.ids.astype(str), p=answer.probabilities)
"""


def test_several_methods_and_their_blend(folder, tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    methods = [vision.ConvNet((4,)), vision.MLP((8,))]
    model = vision.fit(folder, methods, epochs=3, progress=False, validation=ROWS)
    losses = model.about["methods"]
    assert list(losses) == ["1: ConvNet", "2: MLP"]
    scored = vision.evaluate(model, ROWS)
    # no worse than the better of both, on the images that chose
    assert isinstance(model.task, Blend) == (scored.figures()["log_loss"] < min(losses.values()))
    assert scored.figures()["log_loss"] <= min(losses.values()) + 1e-6
    p = model.predict(IMAGES).probabilities
    assert scored.figures()["auc"] == pytest.approx(metrics.roc_auc_score(LABEL, p[:, 1]))
    jo.save(tmp_path / "blend.model", model)
    np.testing.assert_array_equal(
        jo.load(tmp_path / "blend.model").predict(IMAGES).probabilities, p
    )


def test_the_file_answers_the_same_in_a_new_process(model, folder, tmp_path):
    jo.save(tmp_path / "m.model", model)
    arguments = [tmp_path / "m.model", folder, tmp_path / "said.npz"]
    subprocess.run([sys.executable, "-c", CHILD, *map(str, arguments)], check=True, timeout=120)
    said, wanted = np.load(tmp_path / "said.npz"), model.predict(folder)
    np.testing.assert_allclose(said["p"], wanted.probabilities, atol=1e-6)
    assert said["ids"].tolist() == wanted.ids.tolist()


def test_the_reader_by_default(tmp_path):
    """Colour where a file has it; the median size, at most 64; whole numbers in their order."""
    for name in ("2", "10"):
        (tmp_path / name).mkdir()
        for i in range(12):
            pixels = RNG.integers(0, 255, (70, 20, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    fitted = vision.fit(tmp_path, vision.MLP(()), epochs=0, validation=0.5, progress=False)
    assert fitted.reader == vision.ImageReader((64, 20), 3) and fitted.task.classes == ("2", "10")


def test_files_by_name_and_their_size_upright(tmp_path):
    """As a table of file names and classes has them; photographs lie as the camera was held."""
    for i in range(8):
        image = Image.fromarray(RNG.integers(0, 255, (6, 9)).astype(np.uint8))
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(tmp_path / f"{i}.png", exif=exif)
    files = {"image": [str(tmp_path / f"{i}.png") for i in range(8)], "label": [*"abababab"]}
    fitted = vision.fit(files, vision.MLP(()), epochs=0, validation=0.5, progress=False)
    assert fitted.reader == vision.ImageReader((9, 6), 1) and fitted.task.classes == ("a", "b")
    assert fitted.predict(files).ids.tolist() == files["image"]


def test_whole_numbers_are_names_without_a_fraction():
    rows = {"image": IMAGES, "label": LABEL.astype(float)}
    fitted = vision.fit(rows, vision.MLP(()), epochs=0, progress=False)
    assert fitted.task.classes == ("0", "1")


@pytest.mark.parametrize(
    ("data", "change", "message"),
    [
        (ROWS, {"budget": "soon"}, "budget must be a time such as"),
        (ROWS, {"validation": 1.5}, r"validation must be a share in \(0, 1\), got 1.5"),
        ({"image": IMAGES}, {}, "data must have a column 'label', got image"),
        ({"label": LABEL}, {}, "data must have a column 'image', got label"),
        ({**ROWS, "label": 0 * LABEL}, {}, "data must have at least 2 classes, got only 0"),
        ({**ROWS, "label": LABEL[:3]}, {}, "label must have 96 rows, as image, got 3"),
        ({**ROWS, "image": IMAGES / 255}, {}, r"image must have dtype uint8, got f.* \* 255"),
        (
            {**ROWS, "image": IMAGES.astype(np.uint16) * 257},
            {},
            r"image must have dtype uint8, got uint16; .* // 257",
        ),
        (
            {**ROWS, "label": [None] + ["a"] * (N - 1)},
            {},
            "a value in every row, got None in row 0",
        ),
        ({**ROWS, "label": [0.0, np.nan] * (N // 2)}, {}, "in every row, got nan in row 1"),
        ({**ROWS, "label": np.eye(N)}, {}, r"label must be one name or number a row, got \(96, 96"),
        (
            {**ROWS, "image": IMAGES[:, :2]},
            {"method": None},
            r"at least 4 .* ConvNet, got \(2, 12\)",
        ),
        ((IMAGES, LABEL), {}, "images must be a folder, a list of files, .*, got ndarray"),
        ({"image": [*IMAGES], "label": LABEL}, {}, "images must be a .*, got ndarray"),
        ({"image": IMAGES[0, ..., 0], "label": LABEL[:12]}, {}, r"\(N, H, W\), got \(12, 12\)"),
        (["a.png"], {}, "a folder for each class, or a dict .* and label, got list"),
        (ROWS, {"validation": 0}, r"validation must be a share in \(0, 1\), got 0"),
        (ROWS, {"validation": None}, "images must be a folder, .*, got NoneType"),
        (
            ROWS,
            {"method": vision.MLP},
            "method must be a Flax module, .* got the class MLP",
        ),
        (ROWS, {"budget": None}, "budget must be a time such as .*, got None"),
        (ROWS, {"size": 8}, r"size must be \(height, width\) in pixels, got 8"),
    ],
)
def test_what_cannot_be_learned(data, change, message):
    with pytest.raises(ValueError, match=message):
        vision.fit(data, **{"method": vision.MLP(()), "progress": False} | change)


def test_what_cannot_be_read(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        vision.fit(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"must hold images \(.bmp"):
        model.predict(tmp_path)
    Image.fromarray(IMAGES[0, :, :, 0]).save(tmp_path / "alone.png")
    with pytest.raises(ValueError, match="must hold one folder of images for each class"):
        vision.fit(tmp_path)
    for split in ("test", "train"):
        (tmp_path / "set" / split / "cat").mkdir(parents=True)
        Image.fromarray(IMAGES[0, :, :, 0]).save(tmp_path / "set" / split / "cat" / "1.png")
    with pytest.raises(
        ValueError, match=r"got folders of folders \(test, train\); .* .*set/train$"
    ):
        vision.fit(tmp_path / "set")
    with pytest.raises(ValueError, match="label must be one of empty, square, got 'other' in row"):
        vision.evaluate(model, {**ROWS, "label": ["other"] * N})
    with pytest.raises(ValueError, match="model must be of the vision room, got str"):
        vision.classify(jo.Model("text"), IMAGES)
