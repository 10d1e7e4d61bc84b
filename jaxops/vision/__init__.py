"""Images: data, modules, tasks, and what a trained model says of them."""

from jaxops.vision.data import read_images
from jaxops.vision.inference import Labelled, classify
from jaxops.vision.models import CNN, MLP, ConvNet
from jaxops.vision.tasks import classifier

__all__ = ["CNN", "MLP", "ConvNet", "Labelled", "classifier", "classify", "read_images"]
