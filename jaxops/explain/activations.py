"""What the layers of a network give: feature maps, and Grad-CAM, where a class is seen."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxops.explain import pictures
from jaxops.explain.games import Form, Game, game, padded
from jaxops.explain.points import traced
from jaxops.explain.results import Attributions
from jaxops.model.finished import Model, frame
from jaxops.trust._figures import PathLike

Array = jax.Array


class Maps(NamedTuple):
    """The output of one layer for N images.

    Attributes:
        layer: its path, such as "conv_2".
        ids: (N,), the user's ids, or the numbers of the rows.
        values: float32 (N, H', W', C).

    >>> Maps("conv", np.arange(1), np.zeros((1, 2, 2, 3))).frame().columns.tolist()
    ['id', 'channel', 'mean', 'largest']
    """

    layer: str
    ids: np.ndarray
    values: np.ndarray

    def frame(self) -> Any:
        """A pandas frame with a line for each channel of each image: its mean and largest value."""
        count, channels = len(self.ids), self.values.shape[3]
        flat = self.values.reshape(count, -1, channels)
        return frame(
            {
                "id": np.repeat(self.ids, channels),
                "channel": np.tile(np.arange(channels), count),
                "mean": flat.mean(1).reshape(-1),
                "largest": flat.max(1).reshape(-1),
            }
        )

    def plot(self, row: int = 0, path: PathLike | None = None) -> Any:
        """A picture of the channels of one image with the largest means, at most 16."""
        return pictures.plot_maps(self, row, path)


class _Layers:
    """An interceptor of Flax: outputs (B, H, W, C) of modules, and what one of them is to give."""

    def __init__(self, layer: str = "", instead: Any = None) -> None:
        self.layer, self.instead = layer, instead
        self.outputs: dict[str, Any] = {}

    def __call__(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = call(*args, **kwargs)
        name = "/".join(context.module.path)
        if context.method_name != "__call__" or getattr(result, "ndim", 0) != 4 or not name:
            return result
        if name == self.layer and self.instead is not None and name not in self.outputs:
            result = self.instead
        self.outputs.setdefault(name, result)
        return result


def _layer(game: Game, layer: str | None, method: str) -> str:
    """The named layer, or the last one whose outputs are maps."""
    if game.players.kind != "pixels":
        raise ValueError(
            f"method must be another than {method} for {game.players.kind}, such as "
            "integrated_gradients; it is for convolutional networks of images"
        )
    watch = _Layers()
    traced(game.program, {name: x[:1] for name, x in game.players.columns.items()}, watch)
    names = [name for name, x in watch.outputs.items() if x.shape[0] == 1]
    if not names:
        raise ValueError(
            f"method must be another than {method} for a network without convolutions, such as "
            "integrated_gradients"
        )
    if layer is not None and layer not in names:
        raise ValueError(f"layer must be one of {', '.join(names)}, got {layer!r}")
    return names[-1] if layer is None else layer


@partial(jax.jit, static_argnums=(0, 1))
def _maps(function: Callable[..., Any], layer: str, params: Any, columns: Any) -> Array:
    watch = _Layers()
    with nn.intercept_methods(watch):
        function(params, columns)
    found: Array = watch.outputs[layer]
    return found


@partial(jax.jit, static_argnums=(0, 1))
def _cam(form: Form, layer: str, params: Any, columns: Any, target: Array) -> tuple[Array, Array]:
    """The maps of a layer, and the gradient of the number in them, each (B, H', W', C)."""
    maps = _maps(form.function, layer, params, columns)

    def number(x: Array) -> Array:
        with nn.intercept_methods(_Layers(layer, x)):
            return form(params, ({}, []), columns, target).sum()

    return maps, jax.grad(number)(maps)


def feature_maps(model: Model, rows: Any, layer: str | None = None) -> Maps:
    """The output of a layer of a convolutional network.

    Args:
        model: of images.
        rows: N images as `model.predict` takes them.
        layer: the path of the layer, such as "conv_1"; by default the last one whose outputs are
            maps.

    Raises:
        ValueError: a model without convolutions, or an unknown layer.

    >>> from jaxops import init_state, optim, vision
    >>> task, x = vision.classifier(vision.CNN(), (8, 8, 1)), np.zeros((1, 8, 8, 1), np.uint8)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"image": x}))
    >>> feature_maps(model, x).values.shape
    (1, 6, 6, 32)
    """
    one = game(model, rows)
    name, program, players = _layer(one, layer, "feature_maps"), one.program, one.players
    parts = [
        np.asarray(_maps(program.function, name, program.params, part)[:count])
        for part, count in padded(players.columns, one.batch(len(players.ids)))
    ]
    return Maps(name, players.ids, np.concatenate(parts))


def grad_cam(game: Game, layer: str | None = None) -> Attributions:
    """Where an image has what speaks for the class: Grad-CAM.

    With maps A_c of a layer and g_c the mean over the places of dF / dA_c, a place has
    relu(sum over c of g_c A_c), interpolated to the pixels of the image.

    Args:
        game: of images and a convolutional network.
        layer: the path of the layer; by default the last one whose outputs are maps.

    Raises:
        ValueError: rows that are no images, a network without convolutions, an unknown layer.

    References:
        Selvaraju et al. 2017, arXiv:1610.02391.
    """
    name, players, parts = _layer(game, layer, "grad_cam"), game.players, []
    form, params = game.form(), game.program.params
    assert players.shape is not None  # of pixels
    for part, count in padded({**players.columns, "": game.target}, game.batch(len(game.target))):
        target = part.pop("")
        maps, gradient = _cam(form, name, params, part, target)
        heat = jax.nn.relu((maps * gradient.mean((1, 2), keepdims=True)).sum(-1))
        heat = jax.image.resize(heat, (len(heat), *players.shape), "linear")
        parts.append(np.asarray(heat[:count], np.float64).reshape(count, -1))
    values = np.concatenate(parts)
    return Attributions(values, np.full(len(values), np.nan), {"layer": name}, signed=False)
