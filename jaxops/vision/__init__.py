"""Images: one call a job, and below it data, modules, tasks, and what a trained model says."""

from jaxops.vision.data import Classes, ImageReader, read_images
from jaxops.vision.inference import Labelled, classify
from jaxops.vision.jobs import evaluate, fit, recipe, update
from jaxops.vision.models import CNN, MLP, ConvNet
from jaxops.vision.tasks import classifier

__all__ = [
    "CNN",
    "MLP",
    "Classes",
    "ConvNet",
    "ImageReader",
    "Labelled",
    "classifier",
    "classify",
    "evaluate",
    "fit",
    "read_images",
    "recipe",
    "update",
]
