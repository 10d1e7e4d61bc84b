"""`Decoder`: texts of one model that are made together, and begin and end whenever they like.

Orca (Yu et al. 2022, OSDI) calls it iteration-level scheduling; others say continuous batching. The
cache has a row for each text and room for the whole context. A prompt is read into a row that is
free, by a program for its length, which is rounded up to a power of two. One program makes one
token of every text. So a decoder compiles when it is made, and not again.
"""

import functools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxops._shapes import next_power_of_two
from jaxops.data.tokenizer import Tokenizer
from jaxops.devices.plans import single
from jaxops.language.decoding import LEAST_PROMPT, Prompts, Run, advanced, aligned, begin, jitted
from jaxops.language.pieces import Pieces
from jaxops.language.requests import (
    check_at_least,
    checked_prompt,
    checked_request,
    checked_sampling,
    checked_stops,
    default_length,
    encoded,
)
from jaxops.language.sampling import Sampling, choose_each, each
from jaxops.model.finished import Model
from jaxops.nn import Transformer, TransformerConfig, empty_cache

Array = jax.Array
CHARACTERS = 32  # of a prompt for each token of the context; more are not encoded


class Rows(NamedTuple):
    """The texts in the making, on the device.

    Attributes:
        run: their state; `done` is True for a row that is free.
        sampling: arrays (B, 1), see `choose_each`.
    """

    run: Run
    sampling: Sampling


class Asked(NamedTuple):
    """A checked request for one text.

    Attributes:
        tokens: int32 (n,), the prompt.
        new_tokens: largest number of tokens in the answer.
        stop: the tokens that end it.
        sampling: what `each` returns.
        seed: of the draws.
    """

    tokens: np.ndarray
    new_tokens: int
    stop: frozenset[int]
    sampling: Sampling
    seed: int


class Part(NamedTuple):
    """What a turn adds to a text.

    Attributes:
        token: the token; None for a stop token, which is not part of the text.
        text: the characters that are complete with it; at the end also a character that is not.
        end: None while the text goes on; "stop" after a stop token, "length" at its largest length.
        log_probability: of the text so far, see `Answer`.
    """

    token: int | None
    text: str
    end: str | None
    log_probability: float


@dataclass
class Text:
    """A text in the making, on the host."""

    asked: Asked
    pieces: Pieces
    made: int = 0

    def added(self, token: int, log_probability: float) -> Part:
        """What a token adds."""
        if token in self.asked.stop:
            return Part(None, self.pieces.rest(), "stop", log_probability)
        self.made += 1
        text = self.pieces.added(token)
        if self.made < self.asked.new_tokens:
            return Part(token, text, None, log_probability)
        return Part(token, text + self.pieces.rest(), "length", log_probability)


class Decoder:
    """Makes up to `rows` texts together, each as `generate` makes it alone with the same seed.

    "The same" is up to rounding, as in `generate`. A decoder is not for several threads at once.

    Args:
        model: a model of a causal `nn.Transformer`.
        rows: the most texts at once; each takes the memory of a context of keys and values.
        tokenizer: encodes prompts and decodes texts.
        special: see `generate`.

    Raises:
        ValueError: a model of another kind, or a tokenizer of another vocabulary.

    References:
        Yu et al. 2022, "Orca: A Distributed Serving System for Transformer-Based Generative
        Models", OSDI.

    >>> from jaxops import Task, TrainState, nn
    >>> tokenizer = Tokenizer.train(["to be or not"], kind="character")
    >>> config = nn.TransformerConfig(tokenizer.vocabulary, context=8, depth=1, heads=1, width=4)
    >>> module = nn.Transformer(config)
    >>> variables = jax.jit(module.init)(jax.random.key(0), np.zeros((1, 8), np.int32))
    >>> task = Task(None, None, None, recipe=(None, (("module", module),)))
    >>> model = Model(task, TrainState(0, variables["params"], (), {}, None))
    >>> decoder = Decoder(model, 2, tokenizer, special=False)
    >>> (row,), parts = decoder.turn([], [decoder.asked("to", new_tokens=2, stop=[])])
    >>> _, parts = decoder.turn([row], [])
    >>> parts[row].end
    'length'
    """

    def __init__(self, model: Model, rows: int, tokenizer: Tokenizer, special: bool) -> None:
        check_at_least(1, rows=rows)
        request = checked_request(*model.trained(), [[0]], 1, tokenizer, [], None)
        if not isinstance(request.module, Transformer):
            kind = type(request.module).__name__
            raise ValueError(f"model must have a decoder alone (nn.Transformer), got an {kind}")
        self.rows = rows
        self._module, self._variables = request.module, request.variables
        self._tokenizer, self._special = tokenizer, special
        self._decoded = tokenizer.vocabulary  # a module may have more rows, see `check_vocabulary`
        self._join, self._turn = _programs(self._module)
        self._texts: dict[int, Text] = {}
        self._state: Rows | None = None
        self._compile()

    def asked(
        self,
        prompt: str,
        *,
        new_tokens: int | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float = 1.0,
        stop: Sequence[int] | None = None,
        seed: int = 0,
    ) -> Asked:
        """A request, checked before anything is computed; see `generate` for the arguments.

        Raises:
            ValueError: see `generate`; or a prompt far longer than the context, which would take
                long to encode.
        """
        most = CHARACTERS * self._module.config.context
        if len(prompt) > most:
            raise ValueError(
                f"prompt must have at most {most:,} characters ({CHARACTERS} for each token of the "
                f"context), got {len(prompt):,}"
            )
        sampling = checked_sampling(temperature, top_k, top_p, min_p, repetition_penalty)
        (tokens,) = encoded(prompt, self._tokenizer, self._special)
        if new_tokens is None:
            new_tokens = default_length(self._module.config.context, len(tokens))
        check_at_least(1, new_tokens=new_tokens)
        row = checked_prompt("prompt", tokens, self._module, new_tokens)
        stop = [self._tokenizer.eos] if stop is None else stop
        stops = checked_stops(stop, self._module.config)
        return Asked(row, new_tokens, frozenset(stops.tolist()), each(sampling), seed)

    def turn(
        self, kept: Collection[int], new: Sequence[Asked]
    ) -> tuple[list[int], dict[int, Part]]:
        """Read new prompts into free rows, and make one token of each text.

        Args:
            kept: the rows of texts that go on; others are free.
            new: requests, at most as many as are free.

        Returns:
            The rows of the new texts, and row -> what was added. A text with an `end` has left.
        """
        self._texts = {row: text for row, text in self._texts.items() if row in kept}
        free = [row for row in range(self.rows) if row not in self._texts][: len(new)]
        if len(free) < len(new):
            raise ValueError(f"new must be at most {len(free)} (the free rows), got {len(new)}")
        state, self._state = self._state, None  # it is donated; without one a turn begins anew
        if state is None:
            # where the programs leave it, for arrays that lie otherwise they would compile again
            rows = _free_rows(self._module.config, self.rows)
            state, self._texts = jax.device_put(rows, single().whole()), {}
        for row, asked in zip(free, new, strict=True):
            self._texts[row] = Text(asked, Pieces(self._decode))
            state = self._joined(state, row, asked)
        live = np.array([row in self._texts for row in range(self.rows)])
        state, token = self._turn(self._variables, state, live)
        tokens, totals = jax.device_get((token, state.run.log_probability))
        self._state = state
        parts = {row: text.added(int(tokens[row]), float(totals[row]))
                 for row, text in self._texts.items()}  # fmt: skip
        self._texts = {row: text for row, text in self._texts.items() if parts[row].end is None}
        return free, parts

    def _decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode([token for token in tokens if token < self._decoded])

    def _joined(self, state: Rows, row: int, asked: Asked) -> Rows:
        prompts = aligned([asked.tokens], 0, None, self._module.config.context)
        key = jax.random.key(asked.seed)
        joined: Rows = self._join(
            self._variables, state, np.int32(row), prompts, key, asked.sampling
        )
        return joined

    def _compile(self) -> None:
        """Make a turn with a prompt of each length for which there is a program."""
        longest, width = self._module.config.context - 1, LEAST_PROMPT
        while True:
            prompt = np.zeros(min(width // 2 + 2, longest), np.int32)
            self.turn([], [Asked(prompt, 1, frozenset(), each(Sampling()), 0)])
            if width >= longest - 1:
                return
            width *= 2


@functools.lru_cache(maxsize=32)
def _programs(module: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`_join` and `_turn` for a transformer; equal modules share them."""
    return jitted(_join, module, donate_argnums=1), jitted(_turn, module, donate_argnums=1)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _free_rows(config: TransformerConfig, rows: int) -> Rows:
    """Rows without texts."""
    slots = next_power_of_two(config.context, LEAST_PROMPT)
    nothing = jnp.zeros(rows, jnp.int32)
    cache = empty_cache(replace(config, context=slots), slots, nothing)._replace(length=nothing)
    keys = jax.random.split(jax.random.key(0), rows)
    seen = jnp.zeros((rows, config.vocabulary), bool)
    run = Run(cache, nothing, jnp.ones(rows, bool), jnp.zeros(rows), seen, keys, nothing)
    return Rows(run, jax.tree.map(lambda x: jnp.full((rows, 1), x), each(Sampling())))


def _join(
    module: Any,
    variables: Any,
    rows: Rows,
    row: Array,
    prompts: Prompts,
    key: Any,
    sampling: Sampling,
) -> Rows:
    """Read a prompt alone, as `generate` does, and put it into a row."""
    new: Any = begin(module, variables, prompts, key, slots=prompts.tokens.shape[1], penalty=True)

    def put(many: Array, one: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(many, one.reshape(1, *many.shape[1:]), row, 0)

    def put_layer(path: Any, many: Array, one: Array) -> Array:
        # the text begins at slot 0; the padding comes behind it, where tokens will be written
        one = jnp.roll(one, -prompts.start[0], -1 if path[-1].idx == 0 else -2)
        return lax.dynamic_update_slice_in_dim(many, one, row, int(module.config.scan))

    run: Any = rows.run
    layers = jax.tree_util.tree_map_with_path(put_layer, run.cache.layers, new.cache.layers)
    length = put(run.cache.length, new.cache.length - prompts.start[0])
    cache = run.cache._replace(layers=layers, length=length)
    run = jax.tree.map(put, run._replace(cache=None), new._replace(cache=None))
    return Rows(run._replace(cache=cache), jax.tree.map(put, rows.sampling, sampling))


def _turn(module: Any, variables: Any, rows: Rows, live: Array) -> tuple[Rows, Array]:
    """One more token of each text; rows that are not live stand still at the first slot."""
    sampling, run = rows.sampling, rows.run._replace(done=~live)

    def choice(logits: Array, keys: Array, run: Run) -> Array:
        return choose_each(logits, keys, sampling, run.seen, live)

    # which tokens are stop tokens, each text knows on the host
    run = advanced(module, variables, run, jnp.zeros(0, jnp.int32), choice)
    length = jnp.where(live, run.cache.length, 0)
    return Rows(run._replace(cache=run.cache._replace(length=length)), sampling), run.token
