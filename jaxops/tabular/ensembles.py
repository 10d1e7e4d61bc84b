"""Several methods, and several folds of the rows, as one model.

A member of an ensemble keeps the encoder of its own train rows, and reads the table itself; so the
members may encode numbers in different ways, and no fold knows anything of the rows that it is
scored on.
"""

import functools
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.encoders import Encoder, Encoding
from jaxops.model.finished import Model, Program, fingerprint
from jaxops.model.players import program_of
from jaxops.model.selection import Blend, best_of, tempered, trained_further
from jaxops.state import TrainState
from jaxops.tabular.boosters import CatBoost, LightGBM, XGBoost
from jaxops.tabular.data import TableReader, encode_target, of_classes, outputs_of
from jaxops.tabular.models import MLP, Periodic, RealMLP, TabM
from jaxops.tabular.parts import Parts, Table
from jaxops.tabular.prepared import widened
from jaxops.tabular.scores import METRICS, loss_of, scores_of
from jaxops.tabular.train_rows import with_places
from jaxops.tabular.trees import HistGradientBoosting
from jaxops.task import Extra, Params, Task, recorded
from jaxops.train.settings import check_one_directory
from jaxops.trust.calibration import temperature
from jaxops.trust.evaluation import Evaluation

COLDEST = 0.5  # temperature that validation rows may ask for
Trained = Callable[[Any, Parts, float], tuple[Model, Evaluation]]


@recorded
@dataclass(frozen=True, eq=False)
class Member:
    """A trained task with the encoder of its train rows: a closed form that reads a table.

    Attributes:
        encoder: makes the features.
        task: what computes.
        params: its parameters.
        extra: its extra.
    """

    reads_table: ClassVar[bool] = True
    encoder: Encoder
    task: Task
    params: Params
    extra: Extra

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.task.classes

    @functools.cached_property
    def _encoding(self) -> Encoding:
        return Encoding(self.encoder)

    def model(self) -> Model:
        """The task and its state, as a model of features."""
        state = TrainState(jnp.int32(0), self.params, (), self.extra, jax.random.key(0))
        return Model(self.task, state)

    def outputs(self, columns: Table, batch_size: int) -> np.ndarray:
        """What the task predicts for rows of a table, see `TableReader.table`."""
        return outputs_of(self.model(), self._encoding, columns, batch_size)

    def exported(self) -> Program:
        """What the task computes, of features by this encoder, for `jaxops.export`."""
        program = program_of(self.model())
        assert program is not None
        return program._replace(reader={"encoder": self.encoder._asdict()})


def selected(
    methods: Sequence[Any], parts: Parts, trained: Trained, left: float, progress: bool
) -> Model:
    """The best of several methods, or their blend: see `model.selection.best_of`.

    With folds each method is trained once for each, and compared by what it predicts for every row
    without having seen it. Mean probabilities get the temperature that these rows need, if that
    raises their likelihood by more than a parameter is worth (Akaike's criterion). With folds it is
    the temperature of models of one fold; the mean of all folds, which answers, is softer than
    they are, and would need a slightly lower one.

    Args:
        methods: modules or trees.
        parts: the rows.
        trained: `(method, parts, seconds) -> model, evaluation` of the validation rows.
        left: seconds for all.
        progress: print the figure of each method when it is trained, and their table.
    """
    reader, target = parts.reader, parts.targets()[1]

    def loss(outputs: np.ndarray) -> float:
        return loss_of(reader, outputs, target)

    def figures(outputs: np.ndarray) -> dict[str, float]:
        return scores_of(reader, outputs, target).figures()

    def one(method: Any, left: float) -> tuple[Model, Evaluation]:
        if parts.folds:
            return bagged(method, parts, trained, left)
        model, scored = trained(method, parts, left)
        return as_member(model, reader), scored

    def warmth(outputs: np.ndarray) -> float:
        # where no row is told wrong the likelihood grows without end, and says nothing of others
        found = max(temperature(of_classes(outputs), target), COLDEST)
        gain = loss(outputs) - loss(tempered(outputs, found))
        return found if gain * len(target) > 1 else 1.0

    warms = warmth if reader.kind == "classes" else None
    options = left, progress, warms, figures
    return unwrapped(best_of(methods, one, METRICS[reader.kind], loss, *options))


def bagged(method: Any, parts: Parts, trained: Trained, left: float) -> tuple[Model, Evaluation]:
    """One model for each fold, as a blend; and the scores of every row by the model of its fold.

    Args:
        method: a module or trees.
        parts: with folds.
        trained: see `selected`.
        left: seconds for all folds.
    """
    end, models = time.monotonic() + left, []
    outputs, target = np.zeros(0), parts.targets()[1]
    for place, (rows, held) in enumerate(parts.folds):
        seconds = max(end - time.monotonic(), 1.0) / (len(parts.folds) - place)
        model, scored = trained(method, parts.fold(rows, held), seconds)
        own = scored.parts["outputs"]
        if not place:
            outputs = np.zeros((len(target), *own.shape[1:]), np.float32)
        outputs[held] = own
        models.append(as_member(model, parts.reader))
    blend = Blend.of(models, [1 / len(models)] * len(models))
    scored = scores_of(parts.reader, outputs, target)
    about = {"data": fingerprint(parts.train), "rows": len(outputs), "left out": parts.left_out}
    about |= {"folds": len(models), "validation": scored.figures()}
    return Model(blend, None, parts.reader, about), scored


def as_member(model: Model, reader: TableReader) -> Model:
    """A model that reads a table itself, with the reader of all members."""
    if not isinstance(model.task, Task):
        return replace(model, reader=reader)
    task, state = model.trained()
    member = Member(model.reader.encoder, task, state.params, state.extra)
    return replace(model, task=member, state=None, reader=reader)


def unwrapped(model: Model) -> Model:
    """A model of one task, instead of a member that is alone."""
    if not isinstance(model.task, Member):
        return model
    inner = model.task.model()
    reader = replace(model.reader, encoder=model.task.encoder)
    return replace(model, task=inner.task, state=inner.state, reader=reader)


def members_further(
    model: Model, table: Table, mask: Table, settings: Callable[[Task], Mapping[str, Any]]
) -> Model:
    """A blend whose members are trained on new rows from their present parameters.

    Args:
        model: whose task is a `Blend` of `Member`s.
        table: the new rows with their label, see `TableReader.table`.
        mask: their weights, see `mask_of`.
        settings: of `jaxops.fit`, for the task of a member.

    Raises:
        ValueError: a member that is no network; one folder of checkpoints for several members.
    """
    members = model.task.models() if isinstance(model.task, Blend) else [model]
    odd = next((part.task for part in members if not isinstance(part.task, Member)), None)
    if odd is not None:
        raise ValueError(
            "model must be of networks alone to be trained further, got "
            f"{type(odd).__name__}; fit trees anew, with all rows"
        )
    further = []
    for part in members:
        columns = with_places(encode_target(part.task.encoder, table) | mask, None)
        task = widened(part.task.task, columns["label"])
        own = settings(task)
        check_one_directory(dict(own), len(members))
        more = trained_further(replace(part.task, task=task).model(), columns, own)
        member = replace(part.task, task=task, params=more.state.params, extra=more.state.extra)
        further.append(Model(member))
    blend = Blend.of(further, model.task.weights, model.task.temperature)
    return replace(model, task=blend, about={**model.about, "updated with": fingerprint(table)})


def short_list(trees: bool = True) -> list[Any]:
    """Methods worth trying on a table: what `tabular.fit` does with a budget and no method.

    `TabM`, `RealMLP` and a perceptron with periodic embeddings of numbers (MLP-PLR).

    Args:
        trees: whether gradient-boosted trees are among them: scikit-learn's, and those of LightGBM,
            XGBoost and CatBoost where they are installed.

    >>> [type(method).__name__ for method in short_list(trees=False)]
    ['TabM', 'RealMLP', 'MLP']
    """
    libraries = {"lightgbm": LightGBM, "xgboost": XGBoost, "catboost": CatBoost}
    installed = [make() for name, make in libraries.items() if importlib.util.find_spec(name)]
    networks = [TabM(), RealMLP(), MLP((256, 256), dropout=0.1, embedding=Periodic())]
    # trees first: they take little of the time, and leave the rest to the networks
    return [*([HistGradientBoosting(), *installed] if trees else []), *networks]
