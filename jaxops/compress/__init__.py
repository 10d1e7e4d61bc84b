"""Finished models in fewer bytes, and a receipt of what that costs: `quantise`, `receipt`."""

from jaxops.compress.quantisation import aware, quantise
from jaxops.compress.receipts import Receipt, receipt
from jaxops.nn.packed import Packed

__all__ = ["Packed", "Receipt", "aware", "quantise", "receipt"]
