"""Images: networks, and what to learn from them."""

from jaxops.vision.models import CNN, MLP
from jaxops.vision.tasks import classifier

__all__ = ["CNN", "MLP", "classifier"]
