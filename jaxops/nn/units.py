"""Which entries of a module's parameters make and read each of its units, so that units can go."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from jaxops.nn.blocks import TransformerConfig


@dataclass(frozen=True)
class Units:
    """Units of a module that `jaxops.compress.structured` can take out.

    A module names its units by a method `units()`, which returns a list of these. An axis that has
    the units has them in the order (parts, count, width), for any number of parts, such as the
    pixels of a flattened image, or the queries, keys and values of one product.

    Attributes:
        kind: "units", "channels" or "heads".
        count: how many there are.
        own: a regular expression, searched for in paths such as "hidden_0/kernel", of the arrays
            that make a unit: their last axis has the units.
        read: a regular expression of the kernels that read a unit: their last axis but one has the
            units.
        resized: `(module, count) -> module` with so many units.
        width: number of entries of a unit that lie side by side; 1 in an axis of `count` entries.

    >>> import flax.linen as nn
    >>> class Small(nn.Module):
    ...     hidden: int = 8
    ...
    ...     @nn.compact
    ...     def __call__(self, x):
    ...         return nn.Dense(1, name="out")(nn.relu(nn.Dense(self.hidden, name="hidden")(x)))
    ...
    ...     def units(self):
    ...         resized = lambda module, count: module.clone(hidden=count)
    ...         return [Units("units", self.hidden, "^hidden/", "^out/kernel", resized)]
    >>> Small().units()[0].resized(Small(), 4).hidden
    4
    """

    kind: str
    count: int
    own: str
    read: str
    resized: Callable[[Any, int], Any]
    width: int = 1


def units_of_widths(
    widths: tuple[int, ...],
    own: str = "hidden",
    last: str = "logits",
    kind: str = "units",
) -> list[Units]:
    """The units of layers in a row, of which the attribute `widths` has the numbers.

    Args:
        widths: the number of units of each layer.
        own: a layer's name before its number; its batch norm is called "norm".
        last: the layer that reads the last of them.
        kind: of the units.

    >>> [units.read for units in units_of_widths((8, 4))]
    ['^hidden_1/kernel$', '^logits/kernel$']
    """

    def one(i: int) -> Units:
        reader = f"{own}_{i + 1}" if i + 1 < len(widths) else last
        return Units(kind, widths[i], rf"^({own}|norm)_{i}/", f"^{reader}/kernel$", in_widths(i))

    return [one(i) for i in range(len(widths))]


def in_widths(i: int) -> Callable[[Any, int], Any]:
    """What sets one of a module's `widths`.

    >>> from jaxops import vision
    >>> in_widths(1)(vision.MLP((8, 8)), 4).widths
    (8, 4)
    """

    def resized(module: Any, count: int) -> Any:
        return module.clone(widths=(*module.widths[:i], count, *module.widths[i + 1 :]))

    return resized


def units_of_transformer(config: TransformerConfig, paths: Iterable[str]) -> list[Units]:
    """The hidden units of the feed-forward networks and the heads of all blocks among the paths.

    Heads are left out where several heads of queries share one of keys and values. With relative
    positions, whose biases the blocks share, head n is one unit of all blocks of a stack.

    Args:
        config: the configuration.
        paths: of the parameters, such as "stack/block_0/feed_forward/up/kernel".

    Raises:
        ValueError: blocks whose parameters are stacked (`config.scan`).

    >>> config = TransformerConfig(vocabulary=65, context=8, depth=1, heads=2, width=16)
    >>> [units.count for units in units_of_transformer(config, ["block_0/feed_forward/up/kernel"])]
    [64]
    """
    if config.scan:
        raise ValueError("module.config.scan must be False to take out units, got True")
    found = (re.match(r"(.*/)?block_\d+/(attention|cross_attention|feed_forward)/", path)
             for path in paths)  # fmt: skip
    parts = dict.fromkeys((match[0], match[1] or "", match[2]) for match in found if match)
    hidden, units = config.hidden or 4 * config.width, dict[str, Units]()
    for path, stack, part in parts:
        if part == "feed_forward":
            own, read = f"^{path}(up|gate_up)/", f"^{path}down/kernel$"
            units[own] = Units("units", hidden, own, read, _with_hidden)
            continue
        if (config.kv_heads or config.heads) != config.heads:
            continue
        own, read = f"^{path}(qkv|query|key_value)/", f"^{path}out/kernel$"
        if config.position == "relative" and part == "attention":
            own = rf"^{stack}(block_\d+/attention/qkv|relative)/"
            read = rf"^{stack}block_\d+/attention/out/kernel$"
        units[own] = Units("heads", config.heads, own, read, _with_heads, config.per_head)
    return list(units.values())


def _with_hidden(module: Any, count: int) -> Any:
    return module.clone(config=replace(module.config, hidden=count))


def _with_heads(module: Any, count: int) -> Any:
    config = module.config
    kv_heads = None if config.kv_heads is None else count
    return module.clone(
        config=replace(config, heads=count, kv_heads=kv_heads, head_width=config.per_head)
    )
