"""Images: one function for each job, and its parts: data, modules, tasks, inference."""

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
