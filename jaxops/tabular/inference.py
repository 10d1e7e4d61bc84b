"""What a trained classifier says of rows of a table: a probability and a label for each."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.encoders import Encoder, encode
from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train.evaluation import predict


class Scored(NamedTuple):
    """The probability and the label of each row.

    Attributes:
        labels: `str` objects (N,), names of classes.
        probabilities: float32 (N,), of class 1.
    """

    labels: np.ndarray
    probabilities: np.ndarray


def classify(
    task: Task,
    state: TrainState,
    encoder: Encoder,
    columns: Mapping[str, Any],
    threshold: float = 0.5,
) -> Scored:
    """Label each row of a table: class 1 where its probability is at least `threshold`.

    Args:
        task: see `tabular.classifier`; its `classes` are the labels.
        state: its trained state.
        encoder: the one that made the train rows' features, see `tabular.fit_encoder`.
        columns: name -> (N,), raw columns as the encoder was fitted on; the label may be absent.
        threshold: in [0, 1]; lower it where a missed class 1 costs more than a false one. The
            probability at which both decisions cost the same is
            cost(false 1) / (cost(false 1) + cost(missed 1)).

    Returns:
        `Scored`, in the order of the rows.

    Raises:
        ValueError: a threshold outside [0, 1], columns that the encoder cannot read, or an encoder
            that makes another number of features than the task has.

    >>> import jaxops as jo
    >>> from jaxops import tabular
    >>> table = {"age": np.array([20.0, 40.0]), "plan": np.array(["a", "b"])}
    >>> encoder = tabular.fit_encoder(table)
    >>> task = tabular.classifier(tabular.MLP((2,)), len(encoder.names), ("stays", "leaves"))
    >>> state = jo.init_state(task, jo.optim.adam(0.001), 0, tabular.encode(encoder, table))
    >>> tabular.classify(task, state, encoder, table, threshold=0.0)
    Scored(labels=array(['leaves', 'leaves'], dtype=object), probabilities=array(...))
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    features = encode(encoder, columns)["features"]
    probabilities = predict(task, state, {"features": features})
    names = np.array(task.classes, object)
    return Scored(names[(probabilities >= threshold).astype(int)], probabilities)
