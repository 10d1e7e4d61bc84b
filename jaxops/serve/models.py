"""A version of a model that answers requests: read, joined, compiled ahead, described."""

import itertools
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxops.model.finished import Model
from jaxops.serve import answers
from jaxops.serve.compiled import compiled, powers
from jaxops.serve.generation import read
from jaxops.serve.inputs import Arrays, Given, Inputs, Table, Texts, encoded, is_free
from jaxops.serve.readers import encoded_columns, inputs_of
from jaxops.serve.refused import Refused, short
from jaxops.serve.tensors import datatype

PACKAGE = Path(__file__).parents[1]


class Told(NamedTuple):
    """What a model says to a request: its answer, and sentences of what it warns of."""

    answer: Any
    warnings: list[str]


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
        self.answer: Any = None  # to an example of raw input, if there is one
        self.decoder: Any = None  # of a model that generates text, see `generation`
        self._lacks = "its reader has no decoder"
        self.inputs: Inputs = inputs_of(self.model)
        columns = encoded_columns(self.model.task)
        self.encoded: Arrays | None = None if columns is None else Arrays(columns)
        if columns and isinstance(self.inputs, Texts) and is_free(columns):
            self.encoded = None  # the reader knows which lengths the model takes

    def predict(self, parts: Sequence[Given]) -> list[Told]:
        """What `Model.predict` answers to each of several requests with the same options."""
        joined = self.inputs.join([part.data for part in parts])
        return self._told(lambda: self.model.predict(joined, **parts[0].options), parts)

    def infer(self, parts: Sequence[Given]) -> list[Told]:
        """The tensors that answer each of several requests; see `tensors`."""
        if self.encoded is None:
            found = self.predict(parts)
        else:
            joined = self.encoded.join([part.data for part in parts])
            found = self._told(lambda: self.model.outputs(joined), parts)
        return [told._replace(answer=answers.tensors(told.answer)) for told in found]

    def asked(self, parts: Sequence[Given]) -> list[Told]:
        """What the decoder takes of a request, and whether it asks for events."""
        (part,) = parts
        prompt, options, streams = read(part.data)
        if self.decoder is None:
            raise Refused(400, f"{self.name} must generate text to be asked for it: {self._lacks}")
        return self._told(lambda: (self.decoder.asked(prompt, **options), streams), parts)

    def _told(self, call: Callable[[], Any], parts: Sequence[Given]) -> list[Told]:
        """The answer to each request of a batch, with what was warned of.

        Raises:
            Refused: 400 with the sentence of the reader.
            ValueError: an error of the model; a warning that may be of any of several requests,
                which are then to be asked apart: it may hold a value of another client.
        """
        with warnings.catch_warnings(record=True) as seen:
            # of several requests it comes before the rows are predicted, and so counted
            warnings.simplefilter("always" if len(parts) == 1 else "error", UserWarning)
            try:
                answer = call()
            except UserWarning:
                raise ValueError(
                    "requests must be asked apart, got a warning for several"
                ) from None
            except ValueError as error:
                if _is_of_reading(error):
                    raise Refused(400, str(error)) from None
                raise
        sentences = [str(one.message) for one in seen if issubclass(one.category, UserWarning)]
        return [Told(one, [*dict.fromkeys(sentences)]) for one in self._cut(answer, parts)]

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

    def warm(self, batch_size: int, slots: int) -> "Served":
        """Compile for `slots` texts, and for every power of two of rows up to `batch_size`.

        Returns:
            The same, ready.
        """
        self.model = compiled(self.model, batch_size)
        for rows in powers(batch_size):
            example = self.inputs.example(rows)
            if example is not None:
                self.answer = self.predict([example])[0].answer
            if self.encoded is not None:
                self.infer([self.encoded.example(rows)])
        self.metadata = self._described()
        if (observer := getattr(self.model, "observer", None)) is not None:
            observer.clear()  # of the examples
        if hasattr(self.model.reader, "decoder"):
            try:
                self.decoder = self.model.reader.decoder(self.model, slots)
            except ValueError as error:  # its network reads and does not write, such as BERT
                self._lacks = str(error)
        return self

    def _described(self) -> dict[str, Any]:
        """Name, platform, and the tensors that go in and come out, by the protocol."""
        head = {"name": self.name, "platform": "jaxops", "inputs": [], "outputs": []}
        raw = self.inputs.example(1) if isinstance(self.inputs, Table | Texts) else None
        example = raw if self.encoded is None else self.encoded.example(1)
        if example is None:
            return head
        outputs = self.infer([example])[0].answer
        given = example.data
        if isinstance(self.inputs, Texts) and self.encoded is None:
            column = self.inputs.column
            given = {"texts": np.array(given if column is None else given[column], object)}
        columns = () if self.encoded is None else self.encoded.columns
        shapes = {column.name: column.shape for column in columns}
        free = is_free(columns)

        def told(name: str, value: np.ndarray) -> dict[str, Any]:
            shape = shapes.get(name, [None] * (value.ndim - 1) if free else value.shape[1:])
            rows = [-1, *(-1 if size is None else size for size in shape)]
            return {"name": name, "datatype": datatype(value.dtype), "shape": rows}

        inputs = [told(name, value) for name, value in given.items()]
        return {**head, "inputs": inputs, "outputs": [told(*item) for item in outputs.items()]}


def _is_of_reading(error: ValueError) -> bool:
    """Whether an error is a sentence of a reader; not one of what computes, or of a dependency."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = Path(frames[-1].filename).is_relative_to(PACKAGE)
    computes = any(frame.name == "outputs" for frame in frames)
    return inside and " must " in str(error) and not computes
