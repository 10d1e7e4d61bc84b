"""Rows of a table to features and labels.

`fit_encoder` learns from the train rows what the values of each column mean: the mean and standard
deviation of numbers, the known values of text. `encode` applies it to any rows. Both are defined in
`jaxops.data.encoders`, below the rooms.
"""

from jaxops.data.encoders import Encoder, encode, fit_encoder

__all__ = ["Encoder", "encode", "fit_encoder"]
