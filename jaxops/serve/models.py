"""The served models with their versions: loaded, compiled ahead, swapped and taken back."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxops.model.finished import Model
from jaxops.serve import answers
from jaxops.serve.compiled import compiled, powers
from jaxops.serve.inputs import Arrays, Given, Inputs, Table, Texts, encoded
from jaxops.serve.readers import encoded_columns, inputs_of
from jaxops.serve.refused import Refused, short
from jaxops.serve.tensors import datatype

KEPT = 3  # versions of a model, of which the oldest is dropped
NAME = r"[A-Za-z0-9][\w.-]{0,99}"


@dataclass(eq=False)
class Served:
    """A version of a model that answers requests.

    Attributes:
        name: of the model.
        version: its number, as text.
        model: the model.
        file: where it comes from, for people.
    """

    name: str
    version: str
    model: Model
    file: str = ""

    def __post_init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self.inputs: Inputs = inputs_of(self.model)
        columns = encoded_columns(self.model.task)
        self.encoded: Arrays | None = None if columns is None else Arrays(columns)

    def predict(self, parts: Sequence[Given]) -> list[Any]:
        """What `Model.predict` answers to each of several requests with the same options."""
        joined = self.inputs.join([part.data for part in parts])
        return self._cut(self.model.predict(joined, **parts[0].options), parts)

    def infer(self, parts: Sequence[Given]) -> list[dict[str, np.ndarray]]:
        """The tensors that answer each of several requests; see `tensors`."""
        if self.encoded is None:
            return [answers.tensors(answer) for answer in self.predict(parts)]
        outputs = self.model.outputs(self.encoded.join([part.data for part in parts]))
        return [answers.tensors(answer) for answer in self._cut(outputs, parts)]

    def _cut(self, answer: Any, parts: Sequence[Given]) -> list[Any]:
        if parts[0].bucket is None:  # it stands alone; its answers may be of other things than rows
            return [answer]
        ends = [*itertools.accumulate(part.rows for part in parts)]
        numbered = self.inputs.numbered
        return [
            answers.cut(answer, stop - part.rows, stop, ends[-1], numbered, part.first)
            for part, stop in zip(parts, ends, strict=True)
        ]

    def tensors(self, arrays: dict[str, np.ndarray], most: int) -> Given:
        """The checked input tensors of a request.

        They are the encoded columns that the task names. A closed form of tables or texts takes
        raw columns, a tensor (N,) each.

        Raises:
            Refused: 400 for other tensors, 413 for too many rows.
        """
        names = [one["name"] for one in self.metadata["inputs"]]
        if not names:
            raise Refused(400, f"{self.name} must be asked by /models/{self.name}/predict")
        if arrays.keys() != set(names):
            got = ", ".join(map(short, arrays))
            raise Refused(400, f"inputs must be {', '.join(names)}, got {got}")
        if self.encoded is not None:
            return encoded(arrays, self.encoded.columns, most)
        for name, array in arrays.items():
            if array.ndim != 1:
                raise Refused(400, f"{name} must have shape [N], got {[*array.shape]}")
        # NaN stands for a missing number
        lists = {n: [None if x != x else x for x in a.tolist()] for n, a in arrays.items()}
        body = {"texts": lists["texts"]} if isinstance(self.inputs, Texts) else {"rows": lists}
        return self.inputs.read(body, most)

    def warm(self, batch_size: int) -> "Served":
        """Compile for every power of two of rows up to `batch_size`; the same, ready."""
        self.model = compiled(self.model, batch_size)
        self.encoded = self.encoded if self._takes_encoded() else None
        for rows in powers(batch_size):
            example = self.inputs.example(rows)
            if example is not None:
                self.predict([example])
            if self.encoded is not None:
                self.infer([self.encoded.example(rows)])
        self.metadata = self._described()
        return self

    def _takes_encoded(self) -> bool:
        """Whether `infer` takes an example; rows of free length may have to be of some length."""
        try:
            if self.encoded is not None:
                self.infer([self.encoded.example(1)])
        except ValueError:
            return False
        return True

    def _described(self) -> dict[str, Any]:
        """Name, platform, and the tensors that go in and come out, by the protocol."""
        head = {"name": self.name, "platform": "jaxops", "inputs": [], "outputs": []}
        raw = self.inputs.example(1) if isinstance(self.inputs, Table | Texts) else None
        example = raw if self.encoded is None else self.encoded.example(1)
        if example is None:
            return head
        (outputs,) = self.infer([example])
        given = example.data
        if isinstance(self.inputs, Texts) and self.encoded is None:
            column = self.inputs.column
            given = {"texts": np.array(given if column is None else given[column], object)}
        columns = () if self.encoded is None else self.encoded.columns
        shapes = {column.name: column.shape for column in columns}
        free = any(None in shape for shape in shapes.values())

        def told(name: str, value: np.ndarray) -> dict[str, Any]:
            shape = shapes.get(name, [None] * (value.ndim - 1) if free else value.shape[1:])
            rows = [-1, *(-1 if size is None else size for size in shape)]
            return {"name": name, "datatype": datatype(value.dtype), "shape": rows}

        inputs = [told(name, value) for name, value in given.items()]
        return {**head, "inputs": inputs, "outputs": [told(*item) for item in outputs.items()]}


class Models:
    """The served models by name, each with its versions and the one that answers by default."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, Served]] = {}
        self._current: dict[str, Served] = {}

    @property
    def current(self) -> dict[str, Served]:
        """Name -> the version that answers by default."""
        return dict(self._current)

    def versions(self, name: str) -> list[str]:
        """The versions of a model, from the oldest."""
        return [*self._versions[name]]

    def get(self, name: str, version: str | None = None) -> Served:
        """A version of a model; by default the current one.

        Raises:
            Refused: 404.
        """
        if name not in self._current:
            raise Refused(
                404, f"model must be one of {', '.join(self._current)}, got {short(name)}"
            )
        if version is None:
            return self._current[name]
        if version not in self._versions[name]:
            versions = ", ".join(self._versions[name])
            raise Refused(404, f"version must be one of {versions}, got {short(version)}")
        return self._versions[name][version]

    def add(self, name: str, model: Model, file: str, batch_size: int) -> Served:
        """Compile a model for requests, and let it answer those that come from now on.

        Requests that an earlier version has begun are answered by that one. The last versions stay
        loaded, to take a step back.

        Raises:
            ValueError: a name that an address cannot hold, or a model that cannot be served.
        """
        check_name(name)
        versions = self._versions.get(name, {})
        number = 1 + max(map(int, versions), default=0)
        served = Served(name, str(number), model, file).warm(batch_size)
        kept = {**versions, served.version: served}
        while len(kept) > KEPT:
            oldest = next(v for v in kept if kept[v] is not self._current[name])
            del kept[oldest]
        self._versions[name], self._current[name] = kept, served
        return served

    def back(self, name: str, version: str) -> Served:
        """Let a version that is still loaded answer by default.

        Raises:
            Refused: 404.
        """
        self._current[name] = self.get(name, version)
        return self._current[name]


def check_name(name: str) -> None:
    """Raise `ValueError` for a name that is none of letters, digits, `_`, `.` and `-`."""
    if not re.fullmatch(NAME, name, re.ASCII):
        raise ValueError(f"name must be of letters, digits, _, . and -, got {name!r}")
