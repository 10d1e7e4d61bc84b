"""One function for each job on a language model: `fit` it to texts, `evaluate` it, `update` it."""

import time
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import optax

from jaxops import optim
from jaxops.data.splits import held_out
from jaxops.data.tokenizer import Tokenizer
from jaxops.language.data import Texts, TokenReader, nats_of, texts_of, windows
from jaxops.language.models import nanogpt
from jaxops.language.tasks import next_token
from jaxops.model.finished import Model, fingerprint, inside, seconds
from jaxops.model.selection import best_of, check_methods, trained_further
from jaxops.nn import Transformer
from jaxops.optim import averaged
from jaxops.train.loop import fit as train
from jaxops.train.settings import EarlyStopping, chosen
from jaxops.trust.evaluation import Evaluation

BYTES = 261  # size of a vocabulary with only bytes and special tokens
LARGE = 4_000_000  # from this number of characters on, frequent runs of bytes become tokens
FEW = 10  # with fewer texts than this, each is cut in two for validation


def fit(
    data: Texts,
    method: Any = None,
    *,
    text: str = "text",
    tokenizer: Tokenizer | None = None,
    validation: Texts | float = 0.1,
    budget: str | float = "10min",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Train a model that generates texts like the given ones.

    The default method is a small GPT with rotary positions, trained by Muon: the better network of
    the experiment `shakespeare_gpt`. Some texts are held out for validation; if there are fewer
    than 10 texts, the end of each is held out instead.

    Args:
        data: a pattern such as "letters/*.txt", a folder with .txt files, a list of paths or of
            texts, or a table.
        method: a causal `nn.Transformer`, such as `language.nanogpt()`. Its vocabulary is set to
            that of the tokenizer. If this is a list, each method is trained in turn, and the one
            with the best validation loss is kept.
        text: the column of the texts, if data is a table.
        tokenizer: by default a tokenizer of bytes; from 4 million characters on it has up to 4,096
            tokens for frequent runs of bytes.
        validation: the share to hold out, or texts.
        budget: time after which training stops, such as "10min", or seconds.
        seed: the seed of the split and of training.
        progress: print a progress bar and the validation figures.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`.

    Returns:
        A model for `language.generate`; `model.predict(texts)` gives `Likelihoods`.

    Raises:
        ValueError: texts that cannot be read; a module that is not causal; see also `jaxops.fit`.
        FileNotFoundError: no such files.

    >>> from jaxops import language
    >>> module = language.nanogpt(context=8, depth=1, heads=1, width=8, dropout=0.0)
    >>> model = language.fit(["to be or not to be"] * 20, module, steps=2, progress=False)
    >>> model = language.update(model, ["that is the question"] * 2, steps=1, progress=False)
    >>> language.evaluate(model, ["to be"]).figures()["nats_per_token"] > 1
    True
    """
    start = time.monotonic()
    several = isinstance(method, list | tuple)
    check_methods(method, options)
    _, texts = texts_of(data, text)
    if isinstance(validation, int | float):
        own, other = _held_out(texts, validation, seed)
    else:
        own, other = texts, texts_of(validation, text)[1]
    if tokenizer is None:
        size = BYTES if sum(map(len, own)) < LARGE else 4096
        tokenizer = Tokenizer.train(own, kind="byte", vocabulary=size)
    about = {"data": fingerprint({"text": np.array(texts, object)}), "texts": len(texts)}
    given = {"seed": seed, "progress": progress, **options}

    def trained(method: Any, left: float) -> tuple[Model, Evaluation]:
        module = method or nanogpt(
            context=64, depth=4, heads=4, width=128, dropout=0.0,
            position="rotary", norm="rms", qk_norm=True, activation="relu2",
        )  # fmt: skip
        if not isinstance(module, Transformer):
            raise ValueError(f"method must be a causal nn.Transformer, got {type(module).__name__}")
        module = module.clone(config=replace(module.config, vocabulary=tokenizer.vocabulary))
        task = next_token(module, packed=False)
        reader = TokenReader(tokenizer, module.config.context, text, special=False)
        rows, held = (windows(reader.stream(part), reader.context) for part in (own, other))
        settings = chosen(recipe(len(rows["tokens"]), left, **_length(options)), given)
        state = averaged(train(task, rows, validation=held, **settings))
        model = Model(task, state._replace(opt_state=()), reader, about)
        scored = evaluate(model, other)
        return replace(model, about={**about, "validation": scored.figures()}), scored

    left = seconds(budget) - (time.monotonic() - start)
    if several:
        return best_of(method, trained, "nats_per_token", None, left, progress)
    model, scored = trained(method, left)
    if progress:
        print(f"validation, {len(scored):,} windows\n{scored}")
    return model


def recipe(
    count: int,
    left: float,
    rate: float = 1.0,
    batch_size: int = 24,
    epochs: int | None = None,
    steps: int | None = None,
) -> dict[str, Any]:
    """The options of `jaxops.fit` for a number of windows: Muon with one cosine cycle.

    Args:
        count: number of train windows.
        left: seconds until training stops.
        rate: factor of the learning rates.
        batch_size: the largest number of windows in a step.
        epochs: passes over the windows; by default about three.
        steps: number of steps; replaces `epochs`.

    >>> recipe(17_000, 60.0)["steps"]
    2127
    """
    batch_size = min(count, batch_size)
    per_epoch = -(-count // batch_size)
    if steps is None:
        few = min(max(3 * per_epoch, 300), 3_000)
        steps = few if epochs is None else epochs * per_epoch
    cycle = max(1, steps)

    def schedule(peak: float) -> optax.Schedule:
        return optim.cosine(rate * peak, cycle, warmup=min(50, cycle // 2))

    return {
        "optimizer": optax.contrib.muon(
            schedule(0.02),
            adam_learning_rate=schedule(5e-3),
            adam_b2=0.99,
            muon_weight_dimension_numbers=_matrices,
        ),
        "batch_size": batch_size,
        "steps": steps,
        "early_stopping": EarlyStopping("loss", patience=steps, seconds=left),
    }


def evaluate(model: Model, data: Texts) -> Evaluation:
    """Score a model on texts.

    Args:
        model: a model from `fit`.
        data: see `fit`.

    Returns:
        "nats_per_token" and "nats_per_character": the sum over all windows, divided by the number
        of all tokens (the end of a text is a token) or characters. The units are the windows.

    Raises:
        ValueError: texts that the model cannot read.
    """
    reader = _reader_of(model)
    ids, texts = reader.texts(data)
    rows = reader.windows(texts)
    nats = nats_of(model, rows)
    names = np.array([f"{ids[i]}:{n}" for n, i in enumerate(rows.text)], object)
    counts = {"nats_per_token": rows.tokens, "nats_per_character": rows.characters}

    def whole(count: np.ndarray) -> Any:
        return lambda some: float(nats[some].sum() / count[some].sum())

    # a window may hold only the end of a text
    values = {name: nats / np.where(count > 0, count, np.nan) for name, count in counts.items()}
    wholes = {name: whole(count) for name, count in counts.items()}
    return Evaluation("window", names, values, wholes, frozenset(values))


def update(model: Model, new: Texts, **options: Any) -> Model:
    """Train a model further on new texts, from its present parameters, with the same tokenizer.

    Args:
        model: a model from `fit`.
        new: see `fit`.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`; its learning
            rates are divided by four.

    Raises:
        ValueError: texts that the model cannot read.
    """
    reader = _reader_of(model)
    _, texts = reader.texts(new)
    rows = windows(reader.stream(texts), reader.context)
    defaults = recipe(len(rows["tokens"]), np.inf, 0.25, **_length(options))
    newer = trained_further(model, rows, chosen(defaults | {"early_stopping": None}, options))
    seen = fingerprint({"text": np.array(texts, object)})
    return replace(newer, about={**newer.about, "updated with": seen})


def _length(options: dict[str, Any]) -> dict[str, Any]:
    """Those options of `jaxops.fit` on which the learning rates depend."""
    return {name: options[name] for name in ("batch_size", "epochs", "steps") if name in options}


def _reader_of(model: Model) -> TokenReader:
    reader: TokenReader = inside(
        model, lambda part: isinstance(part, TokenReader), "of the language room"
    )
    return reader


def _matrices(params: Any) -> Any:
    """Which parameters Muon updates: the matrices of blocks; Adam updates embeddings and norms."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            optax.contrib.MuonDimensionNumbers()
            if leaf.ndim == 2 and "embedding" not in jax.tree_util.keystr(path)
            else None
        ),
        params,
    )


def _held_out(texts: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    """Texts for training and for validation."""
    if len(texts) >= FEW:
        rows, held = held_out(len(texts), share, seed=seed)
        return [texts[i] for i in rows], [texts[i] for i in held]
    if not 0 < share < 1:
        raise ValueError(f"validation must be a share in (0, 1), got {share}")
    cuts = [max(1, round(len(text) * (1 - share))) for text in texts]
    parts = [(text[:cut], text[cut:]) for text, cut in zip(texts, cuts, strict=True)]
    own, other = ([text for text in part if text.strip()] for part in zip(*parts, strict=True))
    if not own or not other:
        raise ValueError(f"data must leave text for validation, got {sum(map(len, texts))} letters")
    return own, other
