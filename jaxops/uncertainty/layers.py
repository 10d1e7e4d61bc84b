"""What the last hidden layer of a network says of rows, and its logits."""

from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxops.model.finished import Model, columns_of
from jaxops.nn import Dense
from jaxops.task import Batch, Extra, Params
from jaxops.train.evaluation import predict


class Hidden(NamedTuple):
    """Inside a network, for N rows.

    Attributes:
        features: float32 (N, D), the input of the last dense layer, or the output of the layer that
            was asked for.
        logits: float32 (N, C), the output of the network.

    >>> Hidden(np.zeros((1, 8)), np.zeros((1, 2))).features.shape
    (1, 8)
    """

    features: np.ndarray
    logits: np.ndarray


def hidden(model: Model, data: Any, layer: str | None = None, batch_size: int = 1024) -> Hidden:
    """The features of the last hidden layer and the logits, for raw data.

    The modules are watched while the task predicts, so any Flax module will do.

    Args:
        model: a model of one task, whose reader makes encoded columns; or without a reader.
        data: what `model.predict` takes.
        layer: the path of a layer, such as "hidden_1", whose output is wanted, flattened to one
            vector for each row; None for the input of the dense layer that makes the logits.
        batch_size: number of rows that are computed in one call.

    Raises:
        ValueError: a model of another kind; a layer that there is not; or, without `layer`, a
            network that does not end with a dense layer.

    >>> import jaxops as jo
    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP((16, 8), classes=3), (2, 2, 1), 3)
    >>> images = np.zeros((5, 2, 2, 1), np.uint8)
    >>> model = Model(task, jo.init_state(task, jo.optim.sgd(0.1), 0, {"image": images}))
    >>> features, logits = hidden(model, images)
    >>> features.shape, logits.shape
    ((5, 8), (5, 3))
    """
    task, state = model.trained()

    def look(params: Params, extra: Extra, batch: Batch) -> Any:
        calls: list[tuple[str, Any, Any, Any]] = []

        def watch(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            outputs = call(*args, **kwargs)
            if context.method_name == "__call__":
                calls.append(("/".join(context.module.path), context.module, args, outputs))
            return outputs

        with nn.intercept_methods(watch):
            task.predict(params, extra, batch)
        features, logits = _found(calls, layer)
        rows = len(features)
        return {"features": features.reshape(rows, -1), "logits": logits.reshape(rows, -1)}

    found = predict(
        task._replace(predict=look), state, columns_of(model, data), batch_size=batch_size
    )
    return Hidden(found["features"], found["logits"])


def _found(calls: list[tuple[str, Any, Any, Any]], layer: str | None) -> tuple[Any, Any]:
    """The features and the logits among the calls of modules, in the order in which they ended."""
    names = [*dict.fromkeys(path for path, *_ in calls if path)]
    if not names:
        raise ValueError("model must have a Flax module with layers, got none")
    _, _, _, logits = calls[-1]
    if layer is not None:
        if layer not in names:
            raise ValueError(f"layer must be one of {', '.join(names)}, got {layer!r}")
        return next(outputs for path, *_, outputs in reversed(calls) if path == layer), logits
    dense = [one for one in calls if isinstance(one[1], Dense | nn.Dense)]
    if not dense or dense[-1][3].size != logits.size or dense[-1][2][0].ndim != 2:
        raise ValueError(
            f"layer must be given for a network that does not end with a dense layer, one of "
            f"{', '.join(names)}, got None"
        )
    return dense[-1][2][0], logits
