"""What to learn from texts: each is a way to make a question of a batch of tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxops import metrics
from jaxops.language.decoding import greedy
from jaxops.language.spans import make_spans
from jaxops.language.token_tasks import (
    START,
    Question,
    config_of,
    length_of,
    rows_seen,
    seen_by,
    token_columns,
    token_task,
)
from jaxops.nn.attention import document_positions
from jaxops.task import Array, Batch, Column, Extra, Key, Params, Task, recorded, row_weights


@recorded
def next_token(model: Any, length: int | None = None, packed: bool = True) -> Task:
    """Foretell each token from those before it (GPT).

    A batch holds `tokens` and `segments`, integers (B, T), as `pack` and `windows` make them. Of
    the first token of a document nothing is foretold. The loss of a target token with logits z
    and id y is `logsumexp(z) - z_y`, in nats; a step divides by the number of target tokens.

    Args:
        model: a causal `nn.Transformer`, or a module called as it is: `(tokens, segments,
            positions, train=)` to logits (B, T, vocabulary).
        length: the most tokens it sees at once; its context by default.
        packed: a row may hold several documents, or begin with padding; the model is given
            segments and positions. False, for rows of one text each as from `windows`, spares the
            mask: a causal model sees nothing of the padding behind a text.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It predicts the
        log-probability of each token but the first, given those before it in its document,
        (B, T - 1); 0 where nothing is foretold. `jaxops.monte_carlo` makes mean and spread of it,
        over networks that the model's dropout draws.

    Raises:
        ValueError: a model that sees the tokens to come; when it is traced, rows that are too long.

    References:
        Radford et al. 2018, "Improving language understanding by generative pre-training".

    >>> from jaxops import nn
    >>> config = nn.TransformerConfig(vocabulary=65, context=64, depth=2, heads=2, width=32)
    >>> [column.name for column in next_token(nn.Transformer(config)).columns]
    ['tokens', 'segments']
    """
    config = config_of(model, causal=True)
    seen = length_of(config, length)

    def ask(batch: Batch, key: Key | None) -> Question:
        tokens, segments = seen_by(batch, seen, 1, key)
        own, following = segments[:, :-1], segments[:, 1:]
        given = (own, document_positions(own)) if packed else ()
        there = (own == following) & (following > 0)
        return Question((tokens[:, :-1], *given), tokens[:, 1:], there.astype(jnp.float32))

    def predict(params: Params, extra: Extra, batch: Batch, key: Key | None = None) -> Array:
        question = ask(batch, None)
        drop: dict[str, Any] = {} if key is None else {"train": True, "rngs": {"dropout": key}}
        logits = model.apply({"params": params, **extra}, *question.arguments, **drop)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, question.targets)
        return jnp.where(question.weights > 0, -losses, 0.0)

    task = token_task(model, ask, predict, START, token_columns(config.vocabulary))
    return task._replace(sample=predict)


@recorded
def masked_tokens(
    model: Any,
    mask: int,
    special: tuple[int, ...] = (),
    share: float = 0.15,
    length: int | None = None,
) -> Task:
    """Restore tokens that were chosen at random and hidden (BERT).

    Each token is chosen with probability `share`. Of the chosen, 80 % become `mask`, 10 % a token
    drawn from the whole vocabulary, and 10 % stay; all of them, and no others, are targets. They
    are drawn inside the step, anew each time; in an evaluation the same of a row each time.

    A batch holds `tokens` and `segments`, integers (B, T), as `pack` and `windows` make them.

    Args:
        model: an `nn.Transformer` with `causal=False`, or a module called as it is.
        mask: the token that stands for a hidden one.
        special: tokens that are never chosen, such as those that begin and end a text.
        share: of the tokens that are chosen.
        length: the most tokens the model sees at once; its context by default.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It predicts the tokens,
        int (B, T), with the likeliest one wherever `mask` is found.

    Raises:
        ValueError: a causal model, `mask` or a special token that is not in its vocabulary, or a
            share outside (0, 1).

    References:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1.
    """
    config = config_of(model, causal=False)
    vocabulary, seen = config.vocabulary, length_of(config, length)
    for token in (mask, *special):
        if not 0 <= token < vocabulary:
            raise ValueError(f"mask, special: token {token} found, in [0, {vocabulary}) wanted")
    if not 0 < share < 1:
        raise ValueError(f"share: {share} found, between 0 and 1 wanted")
    never = np.asarray([mask, *special], np.int32)

    def hide(key: Key, tokens: Array) -> tuple[Array, Array]:
        """One row (T,): what the model is shown, and which tokens are chosen."""
        choose, how, what = jax.random.split(key, 3)
        chosen = jax.random.uniform(choose, tokens.shape) < share
        dice = jax.random.uniform(how, tokens.shape)
        other = jax.random.randint(what, tokens.shape, 0, vocabulary)
        shown = jnp.where(dice < 0.8, mask, jnp.where(dice < 0.9, other, tokens))
        chosen &= ~jnp.isin(tokens, never)
        return jnp.where(chosen, shown, tokens), chosen

    def given(tokens: Array, segments: Array) -> tuple[Array, ...]:
        return tokens, segments, document_positions(segments)

    def ask(batch: Batch, key: Key | None) -> Question:
        tokens, segments, keys = rows_seen(batch, seen, key)
        shown, chosen = jax.vmap(hide)(keys, tokens)
        weights = (chosen & (segments > 0)).astype(jnp.float32)
        return Question(given(shown, segments), tokens, weights)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        tokens, segments = seen_by(batch, seen, 0, None)
        logits = model.apply({"params": params, **extra}, *given(tokens, segments))
        return jnp.where(tokens == mask, logits.argmax(-1), tokens)

    return token_task(model, ask, predict, START, token_columns(vocabulary))


@recorded
def span_corruption(
    model: Any,
    length: int | None = None,
    share: float = 0.15,
    mean_span: float = 3.0,
    end: int = 1,
    padding: int = 0,
    first_sentinel: int | None = None,
) -> Task:
    """Restore spans that were cut out at random, each behind the sentinel in its place (T5).

    Of a row of n tokens round(n * share) are cut out, in round(n * share / mean_span) spans of
    random lengths and places, drawn inside the step, anew each time; in an evaluation the same of
    a row each time. The source is the row with a sentinel in place of each span, the target each
    sentinel with its span behind it, and both have `end` at their ends. Sentinel k is the token
    `first_sentinel - k`; the data must have neither them nor tokens above.

    A batch holds `tokens` and `segments`, integers (B, T), as `pack` and `windows` make them; the
    documents of a row are taken as one text, as T5 does.

    Args:
        model: an `nn.EncoderDecoder`.
        length: the most tokens of text in a row; by default as many as leave a source that fits
            the context, for a context of 512 (as in T5) 568.
        share: of the tokens that are cut out.
        mean_span: tokens in a span, on average.
        end: the token that ends a source and a target.
        padding: the token behind the end, and the one that the decoder starts with.
        first_sentinel: the vocabulary's last token by default. T5's is 32_099: its vocabulary of
            32_128 ends with tokens that stand for nothing.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It predicts the target of
        the source that an evaluation makes of a row, token by token, each the likeliest, int
        (B, longest target). To fill in texts with sentinels of your own, `sequence_to_sequence`
        takes the same parameters.

    Raises:
        ValueError: a length whose sources or targets do not fit the context, a share or mean
            span that cannot be, or sentinels that are not in the vocabulary.

    References:
        Raffel et al. 2020, arXiv:1910.10683, section 3.1.4.
    """
    config = config_of(model, causal=None)
    first = config.vocabulary - 1 if first_sentinel is None else first_sentinel
    if first >= config.vocabulary:
        raise ValueError(f"first_sentinel: {first} found, below {config.vocabulary} wanted")
    spans = make_spans(first, config.context, length, share, mean_span, end, padding)

    def corrupted(batch: Batch, key: Key | None) -> tuple[Array, Array]:
        tokens, segments, keys = rows_seen(batch, spans.length, key)
        return jax.vmap(spans.corrupt)(keys, tokens, (segments > 0).sum(1))

    def ask(batch: Batch, key: Key | None) -> Question:
        return _answered(*corrupted(batch, key), padding)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        source, target = corrupted(batch, None)
        return greedy(model, {"params": params}, source, target.shape[1], end, padding)

    columns = token_columns(first + 1 - spans.sentinels)
    return token_task(model, ask, predict, START * 2, columns)


@recorded
def sequence_to_sequence(model: Any, target_length: int, end: int = 1, padding: int = 0) -> Task:
    """Answer a text with a text (T5): each target token from the source and the targets before it.

    A batch holds `source`, integers (B, S), and `target`, integers (B, target_length), with
    `padding` behind each text, as `padded` makes them; a target has `end` as its last token. The
    decoder starts with `padding`, as in T5.

    Args:
        model: an `nn.EncoderDecoder`.
        target_length: tokens in a row of targets.
        end: the token that ends an answer.
        padding: the token behind the end.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It predicts answers,
        int (B, target_length), token by token, each the likeliest (greedy), with padding behind
        the end; `language.generate` has other ways. `evaluate(..., metrics={"exact_match":
        exact_match})` counts the answers that are right from end to end.

    Raises:
        ValueError: targets longer than the context, or tokens that are not in the vocabulary.
    """
    config = config_of(model, causal=None)
    vocabulary = config.vocabulary
    if not 1 <= target_length <= config.context:
        raise ValueError(
            f"target_length: {target_length} found, 1 to {config.context}, the context, wanted"
        )
    if not (0 <= end < vocabulary and 0 <= padding < vocabulary) or end == padding:
        raise ValueError(f"end, padding: {end}, {padding} found, two of {vocabulary} tokens wanted")

    def ask(batch: Batch, key: Key | None) -> Question:
        source, target = (jnp.asarray(batch[name], jnp.int32) for name in ("source", "target"))
        if source.shape[1] > config.context:
            raise ValueError(
                f"source: rows of {source.shape[1]} tokens found, at most {config.context}, the "
                "model's context, wanted"
            )
        return _answered(source, target, padding)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        source = jnp.asarray(batch["source"], jnp.int32)
        return greedy(model, {"params": params}, source, target_length, end, padding)

    columns = (
        Column("source", (None,), "int", classes=vocabulary),
        Column("target", (target_length,), "int", classes=vocabulary, target=True),
    )
    return token_task(model, ask, predict, START * 2, columns)


def _answered(source: Array, target: Array, padding: int) -> Question:
    """The decoder has seen the target one place later, behind the padding that starts it."""
    known = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=padding)
    there = (source != padding).astype(jnp.int32)
    return Question((source, known, there), target, (target != padding).astype(jnp.float32))


def exact_match(answers: Array, batch: Batch) -> metrics.Mean:
    """How often an answer is right from end to end, as a metric for `jaxops.evaluate` and `fit`.

    Args:
        answers: (B, T), as `sequence_to_sequence` predicts them.
        batch: with `target` (B, T), and a `mask` if rows are padded.

    >>> batch = {"target": jnp.array([[5, 1], [6, 1]])}
    >>> exact_match(jnp.array([[5, 1], [7, 1]]), batch).compute()
    0.5
    """
    return metrics.mean((answers == batch["target"]).all(-1), row_weights(batch))
