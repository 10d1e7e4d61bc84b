"""What a trained classifier says of rows of a table: a probability and a label for each."""

import numpy as np

from jaxops.data.tables import Source
from jaxops.model.finished import Model, inside
from jaxops.tabular.data import Classes, TableReader


def reader_of(model: Model) -> TableReader:
    """The reader of a tabular model.

    Raises:
        ValueError: a model of another room, or one whose classes are not those of its encoder.
    """
    reader: TableReader = inside(
        model, lambda part: isinstance(part, TableReader), "of the tabular room"
    )
    reader.check(model)
    return reader


def classify(model: Model, data: Source, threshold: float = 0.5) -> Classes:
    """Label each row of a table: class 1 where its probability is at least `threshold`.

    Args:
        model: of two classes, see `tabular.fit`.
        data: a table; the label may be absent.
        threshold: in [0, 1]; lower it where a missed class 1 costs more than a false one. The
            probability at which both decisions cost the same is
            cost(false 1) / (cost(false 1) + cost(missed 1)).

    Returns:
        `Classes`, in the order of the rows.

    Raises:
        ValueError: a threshold outside [0, 1], a model of more classes, of several labels or of
            numbers, or a table that it cannot read.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(40.0), "left": np.arange(40) % 2}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> tabular.classify(model, {"age": [3]}, threshold=0.0).labels.tolist()
    ['1']
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    several = reader_of(model).labels
    if several:
        raise ValueError(f"model must be of one label for a threshold, got {', '.join(several)}")
    classes = model.task.classes
    if len(classes) != 2:
        raise ValueError(f"model must have 2 classes for a threshold, got {len(classes)}")
    answer: Classes = model.predict(data)
    chosen = (answer.probabilities[:, 1] >= threshold).astype(int)
    return answer._replace(labels=np.array(classes, object)[chosen])
