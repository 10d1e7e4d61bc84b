import numpy as np
import optax
import pytest
from PIL import Image

import jaxops as jo
from jaxops import vision
from jaxops.state import init_state
from jaxops.train.evaluation import predict

TASK = vision.classifier(vision.MLP((8,), classes=3), (4, 5, 1), classes=("cat", "dog", "owl"))
IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 1), np.uint8)


@pytest.fixture(scope="module")
def state():
    return init_state(TASK, optax.sgd(0.1), 0, {"image": IMAGES})


def test_the_likeliest_classes_come_first(state):
    probabilities = predict(TASK, state, {"image": IMAGES})
    labelled = vision.classify(jo.Model(TASK, state), IMAGES, k=3)
    assert labelled.labels.shape == labelled.probabilities.shape == (6, 3)
    np.testing.assert_array_equal(labelled.probabilities, -np.sort(-probabilities, axis=1))
    for row, names in enumerate(labelled.labels):
        by_name = dict(zip(TASK.classes, probabilities[row], strict=True))
        assert [by_name[name] for name in names] == labelled.probabilities[row].tolist()
    first = vision.classify(jo.Model(TASK, state), IMAGES)
    np.testing.assert_array_equal(first.labels, labelled.labels[:, :1])
    assert len(set(first.labels.ravel())) > 1  # the images do not all look alike to it


@pytest.mark.parametrize("k", [0, 4])
def test_k_out_of_range(state, k):
    with pytest.raises(ValueError, match=rf"k must be in \[1, 3\] .*, got {k}"):
        vision.classify(jo.Model(TASK, state), IMAGES, k=k)


def test_images_that_the_task_does_not_read(state):
    with pytest.raises(
        ValueError, match=r"image must have rows of shape \(4, 5, 1\), got \(3, 5, 1\)"
    ):
        vision.classify(jo.Model(TASK, state), IMAGES[:, :3])


def test_files_are_read_as_the_task_wants_them(tmp_path, state):
    for i, image in enumerate(IMAGES):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in (3, 0, 5)]
    images = vision.read_images(paths, (4, 5, 1))
    np.testing.assert_array_equal(images, IMAGES[[3, 0, 5]])
    assert vision.read_images([str(paths[0])], (8, 10, 3)).shape == (1, 8, 10, 3)
    read, held = (vision.classify(jo.Model(TASK, state), x) for x in (images, IMAGES[[3, 0, 5]]))
    np.testing.assert_array_equal(read.labels, held.labels)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        vision.read_images([tmp_path / "nowhere.png"], (4, 5, 1))
    (tmp_path / "words.png").write_text("no image")
    with pytest.raises(ValueError, match=r"words.png must be a readable image"):
        vision.read_images([tmp_path / "words.png"], (4, 5, 1))
    with pytest.raises(ValueError, match=r"paths must be a list of files, got one path 'a.png'"):
        vision.read_images("a.png", (4, 5, 1))
    with pytest.raises(ValueError, match="paths must name at least 1 file, got none"):
        vision.read_images([], (4, 5, 1))
    with pytest.raises(ValueError, match=r"channels must be 1 .* got 4"):
        vision.read_images(["a.png"], (4, 5, 4))
