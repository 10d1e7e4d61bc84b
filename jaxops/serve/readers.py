"""Which kind of input a finished model has, by what its reader tells of itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from jaxops.data.columns import of_dates
from jaxops.model.finished import Model
from jaxops.serve.fields import Field
from jaxops.serve.inputs import Arrays, Histories, Images, Inputs, Table, Texts
from jaxops.task import Column, Task

STEPS = 100  # horizons of a model of series, that a closed form may go beyond
AMOUNT = {"type": "number", "minimum": 0}
NUMBERS = {"type": "array", "items": {"type": "number"}, "maxItems": 1000}
DAY = "2024-01-01"


def inputs_of(model: Model) -> Inputs:
    """What reads requests for a model.

    Raises:
        ValueError: a model whose reader is of no known kind.

    >>> from jaxops import vision
    >>> inputs_of(Model("a task", None, vision.ImageReader((28, 28), 1))).schema()["required"]
    ['images']
    """
    reader, room = model.reader, model.room
    if reader is None:
        columns = encoded_columns(model.task)
        if columns is None:
            kind = type(model.task).__name__
            raise ValueError(f"model must have a reader, as ROOM.fit gives it, got a bare {kind}")
        return Arrays(columns)
    if hasattr(reader, "rules"):
        return _of_groups(model, reader.protected)
    if hasattr(reader, "margins") and reader.group is not None:
        return _of_groups(model, (reader.group,))
    if hasattr(reader, "encoder"):
        return _of_encoder(reader)
    if room == "text" and hasattr(reader, "question"):
        fields = (
            Field(reader.question, "text", "who", False),
            Field(reader.passage, "text", "I", False),
        )
        return Table((*_ids(reader.id), *fields))
    if room == "text":
        return Texts(most=0 if isinstance(model.task, Task) else len(model.task.words.lengths))
    if room == "language":
        return Texts(reader.text)
    if room == "vision":
        return Images(tuple(reader.size), reader.channels)
    if room == "recommend":
        return Histories(model.task.place_of)
    if room == "forecast":
        return _of_series(reader)
    if room == "customers":
        amount = [] if reader.amount is None else [Field(reader.amount, "number", 1, False)]
        fields = Field(reader.customer, "id", 1, False), Field(reader.time, "time", DAY, False)
        cutoff = {"type": ["string", "number"]}
        options = {"horizon": AMOUNT, "discount": AMOUNT, "cutoff": cutoff}
        return Table((*fields, *amount), options, joins=False)
    raise ValueError(f"model must have a reader of a room, got {type(reader).__name__} of {room!r}")


def encoded_columns(task: Any) -> tuple[Column, ...] | None:
    """The columns that `Model.outputs` takes; None of a closed form that reads raw input.

    >>> from jaxops import tabular
    >>> [column.name for column in encoded_columns(tabular.classifier(tabular.MLP(), features=3))]
    ['features']
    """
    if getattr(task, "reads_table", False):
        return None
    members = [task, *getattr(task, "tasks", ())]  # of a blend
    task = next((one for one in members if isinstance(one, Task)), None)
    return None if task is None else tuple(c for c in task.columns if not c.target)


def _of_encoder(reader: Any) -> Table:
    """The table of a reader that has an `Encoder`."""
    encoder, dates = reader.encoder, tuple(reader.dates or ())
    made = getattr(reader, "derived", of_dates(dates))
    strata = getattr(reader, "strata", ())
    fields = {name: Field(name, "date", DAY) for name in dates}
    for name, mean in encoder.mean.items():
        if name not in (*made, *dates):
            fields[name] = Field(name, "number", mean)
    for name, known in encoder.values.items():
        fields[name] = Field(name, "text", (known or [""])[0])
    fields |= {name: Field(name, "text", None, False) for name in strata}
    options = {"times": NUMBERS} if hasattr(reader, "grid") else {}
    return Table((*_ids(reader.id), *fields.values()), options)


def _of_groups(model: Model, columns: Sequence[str]) -> Table:
    """The table of a model with thresholds or margins by group, with the columns of the groups."""
    inner = inputs_of(replace(model, reader=model.reader.reader))
    if not isinstance(inner, Table):
        raise ValueError(
            "model must read tables to be served with thresholds or margins by group, got one that "
            f"reads {type(inner).__name__}"
        )
    fields = {one.name: one for one in inner.fields}
    # without an example: the value of an unknown group would be refused
    own = {n: replace(fields.get(n, Field(n, "text")), example=None) for n in columns}
    return replace(inner, fields=(*(fields | own).values(),))


def _of_series(reader: Any) -> Table:
    """The table of series: ids, times, values and covariates."""

    def names(given: str | Sequence[str] | None) -> list[str]:
        return [given] if isinstance(given, str) else [*(given or ())]

    if reader.layout != "long" and reader.value is None:
        raise ValueError(
            f"model must name its columns of values to be served, got layout {reader.layout!r} "
            "and value None"
        )
    keys = [Field(reader.time, "time", DAY, False)]
    if reader.layout == "long":
        keys = [Field(reader.id, "id", 1, False), *keys]
    numbers = [*(names(reader.value) or ["value"]), *names(reader.past), *names(reader.static)]
    # those of the calendar are computed where they are not given
    known = tuple(Field(name, "number", null=False, needed=False) for name in names(reader.known))
    fields = (*keys, *(Field(name, "number") for name in numbers), *known)
    count = {"type": "integer", "minimum": 1, "maximum": STEPS * reader.horizon}
    return Table(fields, {"horizon": count}, False, (*keys, *known) if known else ())


def _ids(name: str | None) -> tuple[Field, ...]:
    return () if name is None else (Field(name, "id", 1, False),)
