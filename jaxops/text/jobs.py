"""One function for each job on texts: `fit` a classifier, `evaluate` it, `update` it."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxops import optim
from jaxops.data.dataset import take
from jaxops.data.splits import held_out
from jaxops.data.tables import Source
from jaxops.data.tokenizer import Tokenizer, check_texts
from jaxops.model.finished import Model, fingerprint, inside, seconds
from jaxops.model.selection import best_of, check_methods, settings_within, trained_further
from jaxops.monitor.observing import reference_of, with_reference
from jaxops.optim import averaged
from jaxops.text import linear
from jaxops.text.data import NGrams, Reader, Tokens, WordsAndNGrams, labels
from jaxops.text.inference import calibrated, check_keep
from jaxops.text.models import BagAndCNN, LinearBag, NGramBag
from jaxops.text.readers import TextReader, columns_of, has_many, names_of
from jaxops.text.tasks import classifier
from jaxops.train.evaluation import predict
from jaxops.train.loop import fit as train
from jaxops.train.settings import EarlyStopping
from jaxops.trust.evaluation import Evaluation, of_classes, of_labels

GRAMS, WORDS = 1024, 256  # the largest numbers of n-grams and words of a text, by default
FEW, FIRST = 20_000, 32  # up to this many texts a CNN is trained too, on this many first words
SAMPLE = 2000  # number of texts whose lengths are measured


def fit(
    data: Source,
    method: Any = None,
    *,
    text: str = "text",
    label: str = "label",
    id: str | None = None,
    separator: str | None = None,
    groups: str | None = None,
    read: Reader | None = None,
    validation: Source | float = 0.15,
    keep: float = 0.95,
    budget: str | float = "10min",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Train a model to tell the class of a text, or the several labels of a text.

    For at most 20,000 train texts the default method is `BagAndCNN`, which reads hashed n-grams of
    words and characters, and the first words in order. If each text has one label, a linear SVM of
    the n-grams (`LinearBag`) is added, with the weight that is best on the validation texts. For
    more texts the default is `NGramBag`. The same share of the texts of each class is held out for
    validation. On these the number of steps is chosen (by accuracy; with many labels by the loss),
    temperature and threshold are fitted, and the figures are measured. Then, if the budget allows,
    the model is trained once more, on all texts, for the number of epochs that was best.

    Args:
        data: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name.
        method: a Flax module, tokens (B, T) int32 to logits (B, classes), such as
            `TextCNN(8192, 1)`. Its `classes`, and the `vocabulary` of a module that reads words,
            are set for the data. If this is a list, each method is trained in turn, and the one
            with the best validation loss is kept.
        text: the column of the texts.
        label: the column of the labels: names, or lists of names.
        id: the column of the texts' ids, which answers repeat.
        separator: the separator of the labels of a text, such as ", ", if a text may have several.
        groups: a column, such as the author; no group is in both training and validation.
        read: turns texts into tokens; by default `NGrams` for an `NGramBag`, `WordsAndNGrams` for
            a `BagAndCNN`, else `Tokens` of the words of the train texts.
        validation: the share of texts to hold out, or a table.
        keep: share of the validation texts that is in scope at the threshold. With many labels the
            threshold is that of the best F1 over all labels.
        budget: time after which training stops, such as "10min", or seconds.
        seed: the seed of the split and of training.
        progress: print a progress bar and the validation figures.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`.

    Returns:
        A model; `model.predict(texts)` gives `Classes`. Its `reference` is of the validation texts,
        see `jaxops.monitor`.

    Raises:
        ValueError: a table that cannot be read; an empty text or a missing label, with its row;
            fewer than 2 classes; as `jaxops.fit`.

    >>> from jaxops import text
    >>> table = {"text": ["my card is lost", "a new pin"] * 20, "label": ["card", "pin"] * 20}
    >>> model = text.fit(table, text.NGramBag(256, 2, width=4), epochs=20, progress=False)
    >>> model.predict(["the pin", "lost card"]).labels.tolist()
    ['pin', 'card']
    >>> model = text.update(model, table, epochs=1, progress=False)
    >>> text.evaluate(model, table).figures()["accuracy"]
    1.0
    """
    start = time.monotonic()
    check_keep(keep)
    check_methods(method, options)
    ids, texts, target, classes, many, rows, held = _parts(
        data, id, text, label, groups, separator, validation, seed
    )
    given = {"seed": seed, "progress": progress, **options}

    def trained(method: Any, left: float) -> tuple[Model, Evaluation]:
        own, default = [texts[i] for i in rows], method is None
        method = method or _default(own, read)
        reads = read or _reader(method, own)
        reader = TextReader(reads, text, label, id, separator)
        task = _task(method, reads, classes, many)
        columns = {**reads(texts), "label": target}
        known, other = ids[held], take(columns, held)
        if not isinstance(validation, int | float):
            known, other = reader.columns(validation, classes, many)
        begin, first = time.monotonic(), take(columns, rows)
        settings = _settings(left, task, first, given)
        state = averaged(train(task, first, validation=other, **settings))
        about = _about(columns, settings, int(state.step), len(rows))
        model = Model(task, state._replace(opt_state=()), reader, about)
        model = _with_linear(model, first, other, begin + left) if default else model
        model = _calibrated(model, other, keep)
        scored = _scored(model, known, other)
        told = {"validation": scored.figures(), "seconds": round(time.monotonic() - begin, 1)}
        return replace(model, about={**model.about, **told}), scored

    left = seconds(budget) - (time.monotonic() - start)
    if isinstance(method, list | tuple):
        model = best_of(method, trained, "log_loss", None, left, progress)
    else:
        model, scored = trained(method, left)
        if progress:
            print(f"validation, {len(scored):,} texts\n{scored}")
    # the second training takes a quarter longer than the first, because it has more texts
    over = time.monotonic() - start + 1.25 * model.about["seconds"] > seconds(budget)
    once = {"early_stopping", "checkpoints", "state"} & options.keys()
    model = _with_reference(model, texts, held, validation)
    if isinstance(validation, int | float) and not over and not once:
        model = _on_all(model, {**model.reader.read(texts), "label": target}, given)
    return model


def _with_reference(
    model: Model, texts: list[str], held: np.ndarray, validation: Source | float
) -> Model:
    """The model with the sketch of the validation texts."""
    seen = [texts[i] for i in held] if isinstance(validation, int | float) else validation
    return with_reference(model, seen)


class Parts(NamedTuple):
    """N texts with their labels, and which of them are for validation.

    Attributes:
        ids: (N,), the ids.
        texts: the N texts.
        label: the label column of the task.
        classes: the names of the classes.
        many: whether a text may have several labels.
        rows: the rows for training.
        held: the rows for validation.
    """

    ids: np.ndarray
    texts: list[str]
    label: np.ndarray
    classes: tuple[str, ...]
    many: bool
    rows: np.ndarray
    held: np.ndarray


def _parts(
    data: Source,
    id: str | None,
    text: str,
    label: str,
    groups: str | None,
    separator: str | None,
    validation: Source | float,
    seed: int,
) -> Parts:
    ids, table = columns_of(data, id, text, label, groups=groups)
    texts = check_texts(table[text])
    many = separator is not None or any(_is_list(cell) for cell in table[label])
    names = names_of(label, table[label], separator, many)
    classes = tuple(sorted({name for row in names for name in (row if many else [row])}))
    if len(classes) < 2:
        raise ValueError(f"{label} must have at least 2 classes, got only {', '.join(classes)}")
    target = labels(names, classes, many)
    rows = held = np.arange(len(texts))
    if isinstance(validation, int | float):
        of = None if groups is None else [str(one) for one in table[groups]]
        rows, held = held_out(len(texts), validation, None if many else target, of, seed)
    return Parts(ids, texts, target, classes, many, rows, held)


def recipe(
    count: int,
    left: float,
    batch_size: int | None = None,
    epochs: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The options of `jaxops.fit` for a number of train texts: AdamW with one cosine cycle.

    Args:
        count: number of train texts.
        left: seconds until training stops.
        batch_size: replaces the default.
        epochs: replaces the default.
        **options: further arguments of `jaxops.fit`.

    >>> recipe(10_000, 60.0)["epochs"], recipe(500, 60.0)["batch_size"]
    (12, 32)
    """
    batch_size = batch_size or min(count, 32 if count < 4_000 else 128)
    an_epoch = -(-count // batch_size)
    if epochs is None:
        epochs = 4 if count > 100_000 else max(12, min(100, 1_000 // an_epoch))
    steps = options.get("steps") or max(epochs * an_epoch, 1)
    rate = optim.cosine(3e-3, steps, warmup=steps // 10)
    length = {} if "steps" in options else {"epochs": epochs}
    return {
        "optimizer": optim.adamw(rate, weight_decay=0.01, mask=optim.decay_mask),
        "batch_size": batch_size,
        "early_stopping": EarlyStopping("loss", patience=epochs + 1, seconds=left),
        **length,
        **options,
    }


def evaluate(model: Model, data: Source) -> Evaluation:
    """Score a model on texts that have labels.

    Args:
        model: a model from `fit`.
        data: see `fit`.

    Returns:
        "accuracy" (with many labels: all of them right), "log_loss" and "macro_f1"; for two classes
        also "auc", and with many labels also "micro_f1". The units are the texts.

    Raises:
        ValueError: a table that the model cannot read, or a label that is not one of its classes.
    """
    task, _ = model.trained()
    ids, columns = _reader_of(model).columns(data, task.classes, has_many(task))
    return _scored(model, ids, columns)


def update(model: Model, new: Source, epochs: int = 5, **options: Any) -> Model:
    """Train a model further on new texts, from its present parameters, with the same reader.

    The new texts are also what later ones are compared with, see `jaxops.monitor`.

    Args:
        model: a model from `fit`.
        new: a table with the labels; see `fit`.
        epochs: passes over the new texts.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`.

    Raises:
        ValueError: a table that the model cannot read, or a label that is not one of its classes.
    """
    task, _ = model.trained()
    _, columns = _reader_of(model).columns(new, task.classes, has_many(task))
    settings = recipe(len(columns["label"]), np.inf, epochs=epochs, **options)
    model = trained_further(model, columns, settings | {"early_stopping": None})
    return replace(model, reference=reference_of(model, columns))


def _reader_of(model: Model) -> TextReader:
    reader: TextReader = inside(
        model, lambda part: isinstance(part, TextReader), "a classifier of texts"
    )
    return reader


def _is_list(cell: Any) -> bool:
    return not isinstance(cell, str) and hasattr(cell, "__len__")


def _default(texts: Sequence[str], read: Reader | None) -> Any:
    """The default method for the train texts; `_task` sets what depends on the reader."""
    if isinstance(read, WordsAndNGrams) or (read is None and len(texts) <= FEW):
        size = NGrams.vocabulary if read else _table_size(texts)
        return BagAndCNN(size, 2, words=FIRST, word_vocabulary=8192)
    return NGramBag(NGrams.vocabulary, 2, dropout=0.1, hidden_dropout=0.1)


def _table_size(texts: Sequence[str]) -> int:
    """The size of the hash table: the number of distinct n-grams, rounded up to a power of 2."""
    grams, distinct = NGrams(vocabulary=2**24), set[int]()
    for text in texts:
        distinct.update(grams._numbers(text))
        if len(distinct) > NGrams.vocabulary:
            break
    return min(NGrams.vocabulary, 2 ** int(np.ceil(np.log2(max(len(distinct), 1024)))))


def _reader(method: Any, texts: Sequence[str]) -> Reader:
    """A reader of n-grams, words or both, with rows long enough for nearly all texts."""
    some = texts[:: -(-len(texts) // SAMPLE)]
    if isinstance(method, NGramBag):
        return _grams(method.vocabulary, some)
    both, config = isinstance(method, BagAndCNN), getattr(method, "config", None)
    vocabulary = method.word_vocabulary if both else min(method.vocabulary, 8192)
    most = method.words if both else WORDS if config is None else config.context
    tokenizer = Tokenizer.train(texts, "word", vocabulary, lowercase=True)
    words = Tokens(tokenizer, _context([len(tokenizer.encode(t)) for t in some], most))
    return WordsAndNGrams(words, _grams(method.vocabulary, some)) if both else words


def _grams(vocabulary: int, some: Sequence[str]) -> NGrams:
    grams = NGrams(vocabulary=vocabulary)
    return replace(grams, context=_context([len(grams._numbers(t)) for t in some], GRAMS))


def _context(lengths: Sequence[int], most: int) -> int:
    wanted = 8 * int(np.ceil(np.quantile(lengths, 0.995) / 8))
    return min(max(wanted, 8), most)


def _task(method: Any, read: Reader, classes: tuple[str, ...], many: bool) -> Any:
    module = method
    if hasattr(module, "config"):
        module = module.clone(config=replace(module.config, vocabulary=read.vocabulary))
    elif hasattr(module, "vocabulary"):
        module = module.clone(vocabulary=read.vocabulary)
    if isinstance(module, BagAndCNN) != isinstance(read, WordsAndNGrams):
        raise ValueError(
            "read must be WordsAndNGrams for BagAndCNN, and for no other method, got "
            f"{type(read).__name__} for {type(module).__name__}"
        )
    if isinstance(read, WordsAndNGrams):
        words = read.words
        module = module.clone(words=words.context, word_vocabulary=words.vocabulary)
    if hasattr(module, "classes"):
        module = module.clone(classes=len(classes))
    return classifier(module, read.context, classes, many, label_smoothing=0.1)


def _calibrated(model: Model, columns: dict[str, np.ndarray], keep: float) -> Model:
    """The model with temperature and threshold fitted on encoded validation texts."""
    p, target = predict(*model.trained(), {"tokens": columns["tokens"]}), columns["label"]
    if not has_many(model.task):
        return replace(model, reader=calibrated(model.reader, p, target, keep))
    target = target > 0
    limits = np.linspace(0.05, 0.95, 19)
    f1 = [2 * (target & (p >= t)).sum() / (target.sum() + (p >= t).sum()) for t in limits]
    return replace(model, reader=replace(model.reader, threshold=float(limits[np.argmax(f1)])))


def _scored(model: Model, ids: np.ndarray, columns: dict[str, np.ndarray]) -> Evaluation:
    task, state = model.trained()
    reader = _reader_of(model)
    answer = reader.answer(task, ids, predict(task, state, {"tokens": columns["tokens"]}))
    if not has_many(task):
        return of_classes("text", ids, answer.probabilities, columns["label"])
    return of_labels("text", ids, answer.probabilities, columns["label"], reader.threshold)


def _settings(
    left: float, task: Any, columns: dict[str, np.ndarray], given: dict[str, Any]
) -> dict[str, Any]:
    """The settings of the recipe. With one label for each text, accuracy chooses the number of
    steps, because it rises for longer than the loss falls; of equal values the last is taken."""
    settings = settings_within(left, task, columns, recipe, given)
    if not has_many(task) and "early_stopping" not in given:
        by = {"metric": "accuracy", "mode": "max", "min_delta": -1e-6}
        settings["early_stopping"] = settings["early_stopping"]._replace(**by)
    return settings


def _with_linear(
    model: Model, first: dict[str, np.ndarray], other: dict[str, np.ndarray], end: float
) -> Model:
    """A `BagAndCNN` with a linear model as a member, if that is better on the validation texts."""
    task: Any = model.task
    state, classes = model.trained()[1], len(task.classes)
    if has_many(task) or not isinstance(_module(task), BagAndCNN):
        return model
    if len(np.unique(first["label"])) < 2:  # with groups, all texts of a label may be held out
        return model
    if 3 * linear.cost(first["tokens"], classes) > end - time.monotonic():  # once more on all texts
        return model
    params = {c: _linear(task, first, c) for c in linear.CHARACTERS}
    module, grams = LinearBag(_module(task).vocabulary, classes), _grams_of(task, other)
    alone = classifier(module, grams.shape[1], task.classes)
    fitted = linear.chosen(
        predict(task, state, {"tokens": other["tokens"]}),
        {c: predict(alone, state._replace(params=p), {"tokens": grams}) for c, p in params.items()},
        other["label"],
    )
    task, state = linear.joined(task, state, params[fitted.characters], fitted)
    return replace(model, task=task, state=state, about={**model.about, "linear": list(fitted)})


def _module(task: Any) -> Any:
    return dict(task.recipe[1])["module"]


def _grams_of(task: Any, columns: dict[str, np.ndarray]) -> np.ndarray:
    """The part of a `BagAndCNN`'s rows that holds n-grams."""
    grams: np.ndarray = columns["tokens"][:, _module(task).words :]
    return grams


def _linear(task: Any, columns: dict[str, np.ndarray], characters: float) -> dict[str, np.ndarray]:
    size, classes = _module(task).vocabulary, len(task.classes)
    return linear.parameters(_grams_of(task, columns), columns["label"], size, classes, characters)


def _about(
    columns: dict[str, np.ndarray], settings: dict[str, Any], steps: int, rows: int
) -> dict[str, Any]:
    about = {"data": fingerprint(columns), "rows": len(columns["label"])}
    share = steps / max(_steps(settings, rows), 1)
    return {**about, "epochs": settings.get("epochs"), "share of steps": share}


def _steps(settings: dict[str, Any], count: int) -> int:
    steps: int = settings.get("steps") or settings["epochs"] * -(-count // settings["batch_size"])
    return steps


def _on_all(model: Model, columns: dict[str, np.ndarray], given: dict[str, Any]) -> Model:
    """The model after the same training on the texts of train and validation together, for the
    share of the steps that was best. It keeps the reference, which is of texts that the model had
    not learned: of those that it has learned it is surer."""
    length = {"epochs": model.about["epochs"]} if "steps" not in given else {}
    settings = recipe(len(columns["label"]), np.inf, **given | length)
    settings |= {"early_stopping": None, "metrics": None}
    if model.about["share of steps"] < 1:
        steps = model.about["share of steps"] * _steps(settings, len(columns["label"]))
        settings |= {"epochs": None, "steps": max(round(steps), 1)}
    fitted = linear.Fitted(*model.about.get("linear", ()))
    task = linear.weighted(model.task, 0) if fitted.weight else model.task
    state = averaged(train(task, columns, **settings))._replace(opt_state=())
    if fitted.weight:
        task, state = linear.joined(task, state, _linear(task, columns, fitted.characters), fitted)
    return replace(model, task=task, state=state)
