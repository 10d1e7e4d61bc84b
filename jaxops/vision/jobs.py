"""One function for each job on images: `fit` a classifier, `evaluate` it, `update` it."""

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxops import optim
from jaxops.data.augment import Affine, Compose, Flip
from jaxops.data.dataset import take
from jaxops.data.images import check_shape, opened
from jaxops.data.splits import held_out
from jaxops.devices import hosts
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.model.selection import best_of, check_methods, settings_within, trained_further
from jaxops.monitor.observing import reference_of
from jaxops.optim import averaged
from jaxops.task import Task
from jaxops.train import evaluation
from jaxops.train.loop import fit as train
from jaxops.train.settings import EarlyStopping
from jaxops.trust.evaluation import Evaluation, of_classes
from jaxops.vision.data import ImageReader, Images, files_of, labels_of
from jaxops.vision.inference import reader_of
from jaxops.vision.models import ConvNet
from jaxops.vision.tasks import classifier

LARGEST = 64  # by default larger images are reduced to this side, in pixels
SAMPLE = 100  # number of files whose size and colour are looked at
ORIENTATION = 0x0112  # the EXIF tag; values from 5 on mean that width and height are exchanged
TRIED = 500  # least number of images on which augmentation is tried; or a third of the images
NONE, AFFINE, FLIP = "none", "rotate, shift and scale", "flip"  # names of augmentations


def fit(
    data: Images,
    method: Any = None,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    validation: Images | float = 0.15,
    budget: str | float = "10min",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Train a model to tell the class of an image.

    The default method is `ConvNet`, with the moving average of the parameters. The same share of
    the images of each class is held out for validation. The validation loss decides whether images
    are rotated, shifted and scaled in training, and whether they are mirrored.

    Args:
        data: a folder that holds a folder of images for each class; or a dict with `image`, uint8
            (N, H, W, C) or N files, and `label` (N,).
        method: a Flax module, images (B, H, W, C) float32 to logits (B, classes), such as `CNN()`.
            Its `classes` are set for the data. If this is a list, each method is trained in turn,
            and the result is the one with the best validation loss, or a blend of them.
        size: (height, width) to which files are resized; by default their median size, at most 64
            pixels a side.
        channels: 3 for colour, 1 for grey; by default 1 if all files are grey.
        validation: the share of images to hold out, or a folder or arrays.
        budget: time after which training stops, such as "10min", or seconds.
        seed: the seed of the split and of training.
        progress: print a progress bar and the validation figures.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`.

    Returns:
        A model; `model.predict(images)` gives `Classes`. To choose the augmentation, the first
        method is trained with each on a third of the train images, or on 500 if that is more. These
        trainings take at most a third of the budget, unless `early_stopping`, `epochs` or `steps`
        are given. `about["augmentations"]` has their validation losses, and `about["augmentation"]`
        the choice. With `checkpoints`, or if the budget is too short, nothing is tried, and images
        are rotated, shifted and scaled. The `reference` is of the validation images, see
        `jaxops.monitor`.

    Raises:
        ValueError: images that cannot be read; fewer than 2 classes; see also `jaxops.fit`.
        FileNotFoundError: no such folder.

    >>> from jaxops import vision
    >>> label = np.arange(64) % 2
    >>> bright = {"image": np.full((64, 6, 6, 1), 200, np.uint8) * label[:, None, None, None]
    ...           .astype(np.uint8), "label": label}
    >>> model = vision.fit(bright, vision.MLP((4,)), epochs=5, progress=False)
    >>> model.predict(bright).labels[:3].tolist()
    ['0', '1', '0']
    >>> model = vision.update(model, bright, epochs=1, progress=False)
    >>> vision.evaluate(model, bright).figures()["accuracy"]
    1.0
    """
    start = time.monotonic()
    several = isinstance(method, list | tuple)
    check_methods(method, options)
    classes = _classes(data)
    reader = _reader(data, size, channels)
    ids, columns = reader.columns(data, classes)
    own = columns
    if isinstance(validation, int | float):
        target = columns["label"]
        rows, held = held_out(len(target), validation, target, seed=seed)
        ids, own, other = ids[held], take(columns, rows), take(columns, held)
    else:
        ids, other = reader.columns(validation, classes)
    about: dict[str, Any] = {"data": fingerprint(columns), "rows": len(own["label"])}
    given = {"seed": seed, "progress": progress, **options}

    def task_of(method: Any, augmentation: str) -> Task:
        return _task(method, reader, classes, own["image"], augmentation)

    def trained(method: Any, left: float) -> tuple[Model, Evaluation]:
        task = task_of(method, about["augmentation"])
        settings = settings_within(left, task, own, recipe, given)
        state = averaged(train(task, own, validation=other, **settings))
        model = Model(task, state._replace(opt_state=()), reader, about)
        scored = _scored(model, ids, other)
        return replace(model, about={**about, "validation": scored.figures()}), scored

    end, losses = start + seconds(budget), dict[str, float]()
    if options.get("checkpoints") is None:
        first = functools.partial(task_of, method[0] if several and method else method)
        losses = _augmentations(first, own, other, (end - time.monotonic()) / 3, given)
    kept = min(losses, key=losses.__getitem__, default=AFFINE)
    about |= {"augmentation": kept, "augmentations": losses}
    if progress and losses:
        told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        print(f"augmentation: {kept}; log_loss of short trainings: {told}", flush=True)
    left = end - time.monotonic()
    if several:

        def loss(p: np.ndarray) -> float:
            scored = of_classes("image", ids, p, other["label"])
            return float(scored.values["log_loss"].mean())

        return _with_reference(best_of(method, trained, "log_loss", loss, left, progress), other)
    model, scored = trained(method, left)
    if progress:
        print(f"validation, {len(scored):,} images\n{scored}")
    return _with_reference(model, other)


def recipe(
    count: int,
    left: float,
    batch_size: int | None = None,
    epochs: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The options of `jaxops.fit` for a number of images: one cosine cycle, averaged parameters.

    Args:
        count: number of train images.
        left: seconds until training stops.
        batch_size: replaces the default.
        epochs: replaces the default.
        **options: further arguments of `jaxops.fit`.

    >>> recipe(50_000, 60.0)["epochs"], recipe(500, 60.0)["batch_size"]
    (12, 32)
    """
    batch_size = batch_size or min(count, 32 if count < 4_000 else 128)
    an_epoch = -(-count // batch_size)
    epochs = max(12, min(60, 1_500 // an_epoch)) if epochs is None else epochs
    steps = options.get("steps") or max(epochs * an_epoch, 1)
    rate = optim.cosine(1e-2, steps, warmup=steps // 5)
    adamw = optim.adamw(rate, b2=0.99, weight_decay=1e-2, mask=optim.decay_mask)
    length = {} if "steps" in options else {"epochs": epochs}
    return {
        "optimizer": optim.chain(adamw, optim.ema(0.998)),
        "batch_size": batch_size,
        "early_stopping": EarlyStopping("loss", patience=epochs + 1, seconds=left),
        **length,
        **options,
    }


def evaluate(model: Model, data: Images) -> Evaluation:
    """Score a model on images whose classes are known.

    Args:
        model: a model from `fit`.
        data: see `fit`.

    Returns:
        "accuracy", "log_loss" and "macro_f1", and for two classes "auc". The units are the images.

    Raises:
        ValueError: images that the model cannot read, or a label that is not one of its classes.
    """
    ids, columns = reader_of(model).columns(data, model.task.classes)
    return _scored(model, ids, columns)


def update(model: Model, new: Images, epochs: int = 5, **options: Any) -> Model:
    """Train a model further on new images, from its present parameters, with the same reader.

    In a blend each model is trained, and the weights stay. The new images are also what later ones
    are compared with, see `jaxops.monitor`.

    Args:
        model: a model from `fit`.
        new: see `fit`.
        epochs: passes over the new images.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`.

    Raises:
        ValueError: images that the model cannot read, or a label that is not one of its classes.
    """
    _, columns = reader_of(model).columns(new, model.task.classes)
    settings = recipe(len(columns["label"]), np.inf, epochs=epochs, **options)
    model = trained_further(model, columns, settings | {"early_stopping": None})
    return _with_reference(model, columns)


def _with_reference(model: Model, columns: dict[str, np.ndarray]) -> Model:
    """The model with the sketch of images."""
    return replace(model, reference=reference_of(model, columns))


def _scored(model: Model, ids: np.ndarray, columns: dict[str, np.ndarray]) -> Evaluation:
    p = model.outputs({"image": columns["image"]})
    scored = of_classes("image", ids, p, columns["label"])
    return replace(scored, parts=scored.parts | {"outputs": p})


def _reader(data: Images, size: tuple[int, int] | None, channels: int | None) -> ImageReader:
    """The reader for images of the size and the channels of the data."""
    found = files_of(data)
    if found is None:
        shape = np.shape(data["image"])
        if len(shape) not in (3, 4):
            raise ValueError(f"image must have shape (N, H, W, C) or (N, H, W), got {shape}")
        own, grey = shape[1:3], len(shape) == 3 or shape[3] == 1
    else:
        shapes, grey = [], True
        for path in found[:: -(-len(found) // SAMPLE)]:
            with opened(path) as image:
                turned = image.getexif().get(ORIENTATION, 1) > 4
                shapes.append(image.size if turned else image.size[::-1])
                grey &= image.mode in ("1", "L")
        own = tuple(min(int(side), LARGEST) for side in np.median(shapes, axis=0))
    if channels is None:
        channels = 1 if grey else 3
    size = own if size is None else size
    check_shape(size, channels)
    return ImageReader((size[0], size[1]), channels)


def _classes(data: Images) -> tuple[str, ...]:
    if isinstance(data, str | Path) and not Path(data).is_dir():
        raise FileNotFoundError(f"{data}: no such folder")
    names = labels_of(data, np.array([str(path) for path in files_of(data) or ()], object))
    # if all names are numbers, they are in the order of the numbers
    number = all(name.isdecimal() for name in names)
    classes = tuple(sorted(set(names), key=int if number else str))
    if len(classes) < 2:
        raise ValueError(f"data must have at least 2 classes, got only {', '.join(classes)}")
    return classes


def _task(
    method: Any,
    reader: ImageReader,
    classes: tuple[str, ...],
    images: np.ndarray,
    augmentation: str,
) -> Task:
    """The task, with the mean and the standard deviation of each channel of the train images."""
    shape = (*reader.size, reader.channels)
    module = _network(reader.size) if method is None else method
    if hasattr(module, "classes"):
        module = module.clone(classes=len(classes))
    some = images[:: -(-len(images) // 5_000)].astype(np.float32) / 255
    mean, std = some.mean((0, 1, 2)), np.maximum(some.std((0, 1, 2)), 1e-3)
    affine = Affine(degrees=10, shift=min(reader.size) / 14, scale=0.1)
    parts = (Flip(),) * (FLIP in augmentation) + (affine,) * (AFFINE in augmentation)
    augment = parts[0] if len(parts) == 1 else Compose(parts) if parts else None
    middle, scale = (tuple(np.round(v.astype(float), 4).tolist()) for v in (mean, std))
    return classifier(module, shape, classes, middle, scale, augment)


def _network(size: tuple[int, int]) -> ConvNet:
    if min(size) < 4:
        raise ValueError(f"size must be at least 4 pixels a side for ConvNet, got {size}")
    stages = min(3 if min(size) <= 40 else 4, int(np.log2(min(size) - 2)))
    return ConvNet((32, 64, 128, 256)[:stages])


def _augmentations(
    task_of: Callable[[str], Task],
    own: dict[str, np.ndarray],
    other: dict[str, np.ndarray],
    left: float,
    given: dict[str, Any],
) -> dict[str, float]:
    """The validation loss with each augmentation for which there is time, trained on some images.

    The number of images is reduced instead of the number of epochs, because the effect of
    augmentation shows only after images have been seen several times. Mirroring is added to the
    better of the other two.
    """
    if hosts.agreed(left <= 0):
        return {}
    end, count = time.monotonic() + left, len(own["label"])
    size = max(-(-count // 3), min(count, TRIED))
    some = np.sort(np.random.default_rng(given["seed"]).permutation(count)[:size])
    few, losses = take(own, some), dict[str, float]()
    given = {**given, "progress": False, "reports": (), "state": None}
    if given.get("steps"):
        given["steps"] = -(-given["steps"] // 3)
    if given.get("batch_size"):
        given["batch_size"] = min(given["batch_size"], size)
    # the slowest augmentation determines the number of epochs, so that all have the same
    settings = settings_within(left / 3, task_of(f"{FLIP} and {AFFINE}"), few, recipe, given)
    for name in (NONE, AFFINE, FLIP):
        if hosts.agreed(time.monotonic() > end):
            break
        if name == FLIP and losses[AFFINE] < losses[NONE]:
            name = f"{FLIP} and {AFFINE}"
        task = task_of(name)
        state = averaged(train(task, few, validation=other, **settings))
        losses[name] = evaluation.evaluate(task, state, other)["loss"]
    return losses if len(losses) > 1 else {}  # with only one there is nothing to choose
