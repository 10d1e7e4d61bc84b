"""Layers that several rooms share."""

from jaxops.nn.convolution import Conv, conv2d, max_pool

__all__ = ["Conv", "conv2d", "max_pool"]
