"""Images: networks, and what to learn from them."""

from jaxops.vision.models import CNN, MLP, ConvNet
from jaxops.vision.tasks import classifier

__all__ = ["CNN", "MLP", "ConvNet", "classifier"]
