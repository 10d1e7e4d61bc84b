"""Layers: Flax modules and functions that the rooms share."""

from jaxops.nn.attention import Attention, attention_mask, dot_product_attention, rotary, sinusoidal
from jaxops.nn.blocks import Block, TransformerConfig
from jaxops.nn.convolution import Conv, conv2d, max_pool
from jaxops.nn.embedding import Embed
from jaxops.nn.normalization import BatchNorm
from jaxops.nn.product import Dense, computing, matmul
from jaxops.nn.recurrence import GRU, LSTM
from jaxops.nn.transformer import Cache, EncoderDecoder, Transformer, empty_cache
from jaxops.nn.units import Units

__all__ = [
    "GRU",
    "LSTM",
    "Attention",
    "BatchNorm",
    "Block",
    "Cache",
    "Conv",
    "Dense",
    "Embed",
    "EncoderDecoder",
    "Transformer",
    "TransformerConfig",
    "Units",
    "attention_mask",
    "computing",
    "conv2d",
    "dot_product_attention",
    "empty_cache",
    "matmul",
    "max_pool",
    "rotary",
    "sinusoidal",
]
