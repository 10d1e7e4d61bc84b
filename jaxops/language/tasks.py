"""Tasks on texts: the next token, masked tokens, cut-out spans, or answers to texts."""

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
    TokenTargets,
    config_of,
    context_of,
    read_rows,
    read_rows_with_keys,
    token_columns,
    token_task,
)
from jaxops.nn.attention import document_positions
from jaxops.task import Array, Batch, Column, Extra, Key, Params, Task, recorded, row_weights


@recorded(formerly={"model": "module", "length": "context"})
def next_token(module: Any, context: int | None = None, packed: bool = True) -> Task:
    """Causal language modelling: predict each token from those before it (GPT).

    A batch holds `tokens` and `segments`, integers (B, T), which `pack` and `windows` make. The
    first token of a document is not a prediction target. The loss of a target token y with logits z
    is `logsumexp(z) - z_y`, in nats; a step divides by the number of target tokens.

    Args:
        module: a causal `nn.Transformer`, or a module with the same call: `(tokens, segments,
            positions, train=)` to logits (B, T, vocabulary).
        context: number of tokens that are read at once; by default, and at most, the module's
            context.
        packed: whether a row may hold several documents, or begin with padding; the module then
            gets segments and positions. Set it to False for rows of one text each, such as those of
            `windows`; this saves the attention mask, because a causal module does not see padding
            after a text.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It predicts the
        log-probability of each token except the first, given the tokens before it in its document,
        (B, T - 1), with 0 where there is no target. `jaxops.monte_carlo` turns this into mean and
        standard deviation over dropout masks.

    Raises:
        ValueError: the module is not causal, or the context is larger than the module's; in
            tracing, rows that are too long.

    References:
        Radford et al. 2018, "Improving language understanding by generative pre-training".

    >>> from jaxops import nn
    >>> config = nn.TransformerConfig(vocabulary=65, context=64, depth=2, heads=2, width=32)
    >>> [column.name for column in next_token(nn.Transformer(config)).columns]
    ['tokens', 'segments']
    """
    config = config_of(module, causal=True)
    context = context_of(config, context)

    def make_targets(batch: Batch, key: Key | None) -> TokenTargets:
        tokens, segments = read_rows(batch, context, 1, key)
        current, following = segments[:, :-1], segments[:, 1:]
        documents = (current, document_positions(current)) if packed else ()
        is_target = (current == following) & (following > 0)
        return TokenTargets(
            (tokens[:, :-1], *documents), tokens[:, 1:], is_target.astype(jnp.float32)
        )

    def predict(params: Params, extra: Extra, batch: Batch, key: Key | None = None) -> Array:
        arguments, targets, weights = make_targets(batch, None)
        drop: dict[str, Any] = {} if key is None else {"train": True, "rngs": {"dropout": key}}
        logits = module.apply({"params": params, **extra}, *arguments, **drop)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        return jnp.where(weights > 0, -losses, 0.0)

    task = token_task(module, make_targets, predict, START, token_columns(config.vocabulary))
    return task._replace(sample=predict)


@recorded(formerly={"model": "module", "length": "context"})
def masked_tokens(
    module: Any,
    mask: int,
    special: tuple[int, ...] = (),
    share: float = 0.15,
    context: int | None = None,
) -> Task:
    """Masked language modelling: predict tokens that were chosen at random and masked (BERT).

    Each token is chosen with probability `share`. Of the chosen tokens, 80 % become `mask`, 10 %
    become a token drawn from the whole vocabulary, and 10 % are not changed; the chosen tokens are
    the targets. Each step draws anew, on the device; an evaluation always masks the same tokens of
    a row.

    A batch holds `tokens` and `segments`, integers (B, T), which `pack` and `windows` make.

    Args:
        module: an `nn.Transformer` with `causal=False`, or a module with the same call.
        mask: the token that replaces a masked one.
        special: tokens that are never chosen, such as those that begin and end a text.
        share: expected share of tokens that are chosen.
        context: number of tokens that are read at once; by default, and at most, the module's
            context.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It predicts the tokens,
        int (B, T), where each `mask` is replaced by the likeliest token.

    Raises:
        ValueError: the module is causal; `mask` or a special token is outside its vocabulary; or
            the share is outside (0, 1).

    References:
        Devlin et al. 2018, arXiv:1810.04805, section 3.1.

    >>> from jaxops import nn
    >>> config = nn.TransformerConfig(65, context=64, depth=2, heads=2, width=32, causal=False)
    >>> [column.classes for column in masked_tokens(nn.Transformer(config), mask=4).columns]
    [65, None]
    """
    config = config_of(module, causal=False)
    vocabulary, context = config.vocabulary, context_of(config, context)
    for token in (mask, *special):
        if not 0 <= token < vocabulary:
            raise ValueError(f"mask and special must be in [0, {vocabulary}), got {token}")
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    never = np.asarray([mask, *special], np.int32)

    def hide(key: Key, tokens: Array) -> tuple[Array, Array]:
        """For one row (T,): the tokens that the module reads, and which are chosen."""
        choose, how, what = jax.random.split(key, 3)
        chosen = jax.random.uniform(choose, tokens.shape) < share
        dice = jax.random.uniform(how, tokens.shape)
        other = jax.random.randint(what, tokens.shape, 0, vocabulary)
        shown = jnp.where(dice < 0.8, mask, jnp.where(dice < 0.9, other, tokens))
        chosen &= ~jnp.isin(tokens, never)
        return jnp.where(chosen, shown, tokens), chosen

    def arguments(tokens: Array, segments: Array) -> tuple[Array, ...]:
        return tokens, segments, document_positions(segments)

    def make_targets(batch: Batch, key: Key | None) -> TokenTargets:
        tokens, segments, keys = read_rows_with_keys(batch, context, key)
        shown, chosen = jax.vmap(hide)(keys, tokens)
        weights = (chosen & (segments > 0)).astype(jnp.float32)
        return TokenTargets(arguments(shown, segments), tokens, weights)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        tokens, segments = read_rows(batch, context, 0, None)
        logits = module.apply({"params": params, **extra}, *arguments(tokens, segments))
        return jnp.where(tokens == mask, logits.argmax(-1), tokens)

    return token_task(module, make_targets, predict, START, token_columns(vocabulary))


@recorded(formerly={"model": "module"})
def span_corruption(
    module: Any,
    length: int | None = None,
    share: float = 0.15,
    mean_span: float = 3.0,
    end: int = 1,
    padding: int = 0,
    first_sentinel: int | None = None,
) -> Task:
    """Restore spans that were cut out at random, each marked by a sentinel token (T5).

    From a row of n tokens, round(n * share) are cut out in round(n * share / mean_span) spans of
    random lengths at random positions. Each step draws anew, on the device; an evaluation always
    cuts the same spans out of a row. The source is the row with a sentinel in place of each span.
    The target is each sentinel followed by its span. Both end with `end`. Sentinel k is the token
    `first_sentinel - k`. The data must not contain sentinels or tokens above them.

    A batch holds `tokens` and `segments`, integers (B, T), which `pack` and `windows` make; the
    documents of a row are treated as one text, as in T5.

    Args:
        module: an `nn.EncoderDecoder`.
        length: largest number of tokens in a row before spans are cut out. By default the largest
            number whose source fits the module's context: 568 for a context of 512, as in T5.
        share: share of the tokens that are cut out.
        mean_span: mean number of tokens in a span.
        end: the token that ends a source and a target.
        padding: the token after the end, with which the decoder also starts.
        first_sentinel: by default the last token of the vocabulary. T5's is 32_099: the last tokens
            of its vocabulary of 32_128 are unused.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It cuts the same spans out
        of a row as an evaluation, and predicts the target by greedy decoding, int (B, longest
        target). To fill in texts with your own sentinels, use `sequence_to_sequence` with the same
        parameters.

    Raises:
        ValueError: sources or targets of this length exceed the context; the share is outside (0,
            1); the mean span is below 1; or sentinels are outside the vocabulary.

    References:
        Raffel et al. 2020, arXiv:1910.10683, section 3.1.4.

    >>> from jaxops import nn
    >>> config = nn.TransformerConfig(100, context=32, depth=1, heads=2, width=8)
    >>> task = span_corruption(nn.EncoderDecoder(config), length=24)
    >>> task.columns[0].classes  # two sentinels are above the tokens of the data
    99
    """
    config = config_of(module, causal=None)
    first = config.vocabulary - 1 if first_sentinel is None else first_sentinel
    if first >= config.vocabulary:
        raise ValueError(
            f"first_sentinel must be below {config.vocabulary} (the vocabulary), got {first}"
        )
    spans = make_spans(first, config.context, length, share, mean_span, end, padding)

    def corrupted(batch: Batch, key: Key | None) -> tuple[Array, Array]:
        tokens, segments, keys = read_rows_with_keys(batch, spans.length, key)
        return jax.vmap(spans.corrupt)(keys, tokens, (segments > 0).sum(1))

    def make_targets(batch: Batch, key: Key | None) -> TokenTargets:
        return _decoder_targets(*corrupted(batch, key), padding)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        source, target = corrupted(batch, None)
        return greedy(module, {"params": params}, source, target.shape[1], end, padding)

    columns = token_columns(first + 1 - spans.sentinels)
    return token_task(module, make_targets, predict, START * 2, columns)


@recorded(formerly={"model": "module"})
def sequence_to_sequence(module: Any, target_length: int, end: int = 1, padding: int = 0) -> Task:
    """Answer a text with a text (T5): predict each target token from source and earlier targets.

    A batch holds `source`, integers (B, S), and `target`, integers (B, target_length), with
    `padding` after each text; `padded` makes such rows. The last token of a target is `end`. The
    decoder starts with `padding`, as in T5.

    Args:
        module: an `nn.EncoderDecoder`.
        target_length: number of tokens in a row of targets.
        end: the token that ends an answer.
        padding: the token after the end.

    Returns:
        A task with the metrics loss, accuracy and perplexity, by token. It predicts answers by
        greedy decoding, int (B, target_length), with padding after the end; `language.generate` has
        sampling and beam search. `evaluate(..., metrics={"exact_match": exact_match})` gives the
        share of answers that are completely right.

    Raises:
        ValueError: targets are longer than the context, or tokens are outside the vocabulary; in
            tracing, sources are longer than the context.

    >>> from jaxops import nn
    >>> config = nn.TransformerConfig(100, context=32, depth=1, heads=2, width=8)
    >>> task = sequence_to_sequence(nn.EncoderDecoder(config), target_length=8)
    >>> [(column.name, column.shape) for column in task.columns]
    [('source', (None,)), ('target', (8,))]
    """
    config = config_of(module, causal=None)
    vocabulary = config.vocabulary
    if not 1 <= target_length <= config.context:
        raise ValueError(
            f"target_length must be in 1 to {config.context} (the context), got {target_length}"
        )
    if not (0 <= end < vocabulary and 0 <= padding < vocabulary) or end == padding:
        raise ValueError(
            f"end and padding must be two tokens in [0, {vocabulary}), got {end} and {padding}"
        )

    def make_targets(batch: Batch, key: Key | None) -> TokenTargets:
        source, target = (jnp.asarray(batch[name], jnp.int32) for name in ("source", "target"))
        if source.shape[1] > config.context:
            raise ValueError(
                f"source must be rows of at most {config.context} tokens (the module's context), "
                f"got rows of {source.shape[1]}"
            )
        return _decoder_targets(source, target, padding)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        source = jnp.asarray(batch["source"], jnp.int32)
        return greedy(module, {"params": params}, source, target_length, end, padding)

    columns = (
        Column("source", (None,), "int", classes=vocabulary),
        Column("target", (target_length,), "int", classes=vocabulary, target=True),
    )
    return token_task(module, make_targets, predict, START * 2, columns)


def _decoder_targets(source: Array, target: Array, padding: int) -> TokenTargets:
    """The decoder reads the target shifted by one position, after the padding it starts with."""
    shifted = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=padding)
    segments = (source != padding).astype(jnp.int32)
    return TokenTargets(
        (source, shifted, segments), target, (target != padding).astype(jnp.float32)
    )


def exact_match(answers: Array, batch: Batch) -> metrics.Mean:
    """The share of answers that are completely right, a metric for `jaxops.evaluate` and `fit`.

    Args:
        answers: (B, T), the predictions of `sequence_to_sequence`.
        batch: columns, with `target` (B, T), and a `mask` if rows are padded.

    >>> batch = {"target": jnp.array([[5, 1], [6, 1]])}
    >>> exact_match(jnp.array([[5, 1], [7, 1]]), batch).compute()
    0.5
    """
    return metrics.mean((answers == batch["target"]).all(-1), row_weights(batch))
