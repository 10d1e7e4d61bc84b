"""Decisions about texts."""

from jaxops.text.recurrent import Recurrent

__all__ = ["Recurrent"]
