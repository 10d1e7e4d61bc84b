"""Generation against plain loops over whole prefixes, and beam search against all sequences."""

import dataclasses
import functools
import itertools
import math

import jax
import numpy as np
import pytest

import jaxops as jo
from jaxops import language
from jaxops.language import decoding
from jaxops.language.inference import generate, stream
from jaxops.language.requests import check_vocabulary
from jaxops.nn import EncoderDecoder, Transformer, TransformerConfig

VOCABULARY, CONTEXT = 23, 96
DECODERS = {
    "learned": {},
    "rotary": {
        "position": "rotary",
        "norm": "rms",
        "activation": "swiglu",
        "qk_norm": True,
        "depth": 2,
    },
    "window": {"window": 5, "position": "rotary"},
}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11, 1, 1, 2], [3, 3]]
STEPS = 9


def config(**changes):
    shape = {"vocabulary": VOCABULARY, "context": CONTEXT, "depth": 1, "heads": 2, "width": 16}
    return TransformerConfig(**{**shape, **changes})


@functools.cache
def made(model, size=0.3):
    """A task of it, and a state whose logits differ by more than rounding: wide kernels."""
    one = jax.ShapeDtypeStruct((1, 4), "int32")
    inputs = (one, one) if isinstance(model, EncoderDecoder) else (one,)
    shapes = jax.eval_shape(model.init, jax.random.key(7), *inputs)["params"]
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        return rng.normal(path[-1].key == "scale", size, leaf.shape).astype(np.float32)

    params = jax.tree_util.tree_map_with_path(fill, shapes)
    task = jo.Task(None, None, None, recipe=(None, (("module", model),)))
    return task, jo.TrainState(np.int32(0), params, (), {}, jax.random.key(0))


@functools.cache
def _last(model):
    """Logits after `length` tokens, by the model on all of them, padded behind; a draw from them.

    All prompts and prefixes have one shape, so this compiles once.
    """

    def last(params, source, segments, tokens, length, seed, row, i, temperature):
        both = isinstance(model, EncoderDecoder)
        arguments = (source, tokens, segments) if both else (tokens,)
        logits = model.apply({"params": params}, *arguments)[0, length - 1]
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), row), i)
        draw = jax.random.categorical(key, logits / temperature)
        return jax.nn.log_softmax(logits), draw

    return jax.jit(last)


def after(model, state, prompt, answer, begin=0, seed=0, row=0, temperature=1.0):
    """Log-probabilities of what comes next, NumPy, and the draw by the documented key."""

    def padded(tokens):
        return np.array([[*tokens, *[0] * (24 - len(tokens))]], np.int32)

    seen = [begin, *answer] if isinstance(model, EncoderDecoder) else [*prompt, *answer]
    source = padded(prompt), padded([1] * len(prompt))
    how = (len(seen), seed, row, len(answer), temperature)
    scores, draw = _last(model)(state.params, *source, padded(seen), *how)
    return np.asarray(scores), int(draw)


def plain(model, state, prompt, steps=STEPS, stop=(), drawn=False, **how):
    """Tokens one by one, without a cache."""
    answer, total = [], 0.0
    for _ in range(steps):
        scores, token = after(model, state, prompt, answer, **how)
        if not drawn:
            token = int(scores.argmax())
        total += float(scores[token])
        if token in stop:
            return answer, total
        answer.append(token)
    return answer, total


LEARNED = Transformer(config())
SEQUENCES = EncoderDecoder(config(position="relative", norm="rms", bias=False))


def models():
    """Of the other kinds, tests/nn/test_transformer.py shows that their caches are right."""
    every = {name: Transformer(config(**changes)) for name, changes in DECODERS.items()}
    every |= {"encoder-decoder": SEQUENCES}
    for name, model in every.items():
        yield pytest.param(model, id=name, marks=[pytest.mark.slow] * (name == "window"))


@functools.cache
def whole(model):
    """Logits without a cache, compiled once a shape."""
    return jax.jit(model.apply)


@pytest.mark.parametrize("model", list(models()))
def test_equals_generation_without_a_cache(model):
    task, state = made(model)
    asked = {
        "drawn": generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS, temperature=0.8, seed=5)
    }
    if model in (LEARNED, SEQUENCES):  # of the others what is drawn tells as much
        asked["greedy"] = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS)
    for row, prompt in enumerate(PROMPTS):
        draw = {"drawn": True, "seed": 5, "temperature": 0.8, "row": row}
        for name, answers in asked.items():
            tokens, total = plain(model, state, prompt, **(draw if name == "drawn" else {}))
            assert answers[row].tokens.tolist() == tokens
            assert answers[row].log_probability == pytest.approx(total, abs=1e-3)
            assert not answers[row].stopped
    assert len({tuple(a.tokens.tolist()) for a in asked["drawn"]}) == len(PROMPTS)


@pytest.mark.parametrize(
    ("model", "new_tokens"),
    [
        (LEARNED, 80),
        pytest.param(
            Transformer(config(position="rotary", context=300)), 140, marks=pytest.mark.slow
        ),
    ],
    ids=["doubled", "doubled twice"],
)
def test_a_long_answer_outgrows_its_cache_and_stays_right(model, new_tokens):
    task, state = made(model)
    answer = generate(jo.Model(task, state), PROMPTS, new_tokens=new_tokens)
    tokens = np.zeros((1, model.config.context), np.int32)
    for prompt, found in zip(PROMPTS, answer, strict=True):
        # every token is the most probable one after those before it: one look at all of them
        both = [*prompt, *found.tokens.tolist()]
        tokens[0, : len(both)] = both
        best = np.asarray(whole(model)({"params": state.params}, tokens))[0].argmax(-1)
        assert best[len(prompt) - 1 : len(both) - 1].tolist() == found.tokens.tolist()


def test_prompts_up_to_the_context_are_answered():
    task, state = made(LEARNED)
    prompt = np.random.default_rng(0).integers(0, VOCABULARY, CONTEXT - 3)
    (found,) = generate(jo.Model(task, state), [prompt], new_tokens=3)
    tokens = np.array([[*prompt, *found.tokens]], np.int32)
    best = np.asarray(whole(LEARNED)({"params": state.params}, tokens))[0].argmax(-1)
    assert best[-4:-1].tolist() == found.tokens.tolist()


@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.0, "seed": 2},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"temperature": 1.0, "top_k": 8, "seed": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_answer_does_not_depend_on_the_other_prompts(how):
    task, state = made(LEARNED)
    together = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS, **how)
    others = [PROMPTS[0], [9] * 40, *PROMPTS[2:], *[[8] * 5] * 3]
    again = generate(jo.Model(task, state), others, new_tokens=STEPS, **how)
    in_parts = generate(jo.Model(task, state), others, new_tokens=STEPS, batch_size=4, **how)
    for row in (0, 2, 3):
        assert together[row].tokens.tolist() == again[row].tokens.tolist()
    assert [a.tokens.tolist() for a in again] == [a.tokens.tolist() for a in in_parts]
    alone = generate(jo.Model(task, state), PROMPTS[:1], new_tokens=STEPS, **how)
    assert alone[0].tokens.tolist() == together[0].tokens.tolist()


def test_the_seed_decides_and_equal_prompts_have_answers_of_their_own():
    task, state = made(LEARNED)
    ask = functools.partial(
        generate, jo.Model(task, state), [[1, 2]] * 4, new_tokens=12, temperature=1.0
    )
    first, again, other = ask(seed=1), ask(seed=1), ask(seed=2)
    assert [a.tokens.tolist() for a in first] == [a.tokens.tolist() for a in again]
    rows = [tuple(a.tokens.tolist()) for a in first + other]
    assert len(set(rows)) == 8


@pytest.mark.parametrize(
    "how",
    [
        {"top_k": 1},
        pytest.param({"top_p": 1e-6}, marks=pytest.mark.slow),
        pytest.param({"min_p": 1.0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_filters_are_applied(how):
    task, state = made(LEARNED)
    ask = functools.partial(generate, jo.Model(task, state), PROMPTS, new_tokens=STEPS)
    greedy = [a.tokens.tolist() for a in ask()]
    assert [a.tokens.tolist() for a in ask(temperature=3.0, **how)] == greedy


def test_the_penalty_counts_prompt_and_answer():
    task, state = made(LEARNED)
    free = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS)
    found = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS, repetition_penalty=4.0)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        tokens = np.zeros((1, CONTEXT), np.int32)
        tokens[0, : len(prompt) + STEPS] = [*prompt, *answer.tokens]
        logits = np.array(whole(LEARNED)({"params": state.params}, tokens))[0]
        for i in range(len(prompt), len(prompt) + STEPS):
            now = logits[i - 1]
            for token in set(tokens[0, :i].tolist()):
                now[token] = now[token] / 4 if now[token] > 0 else now[token] * 4
            assert tokens[0, i] == now.argmax()
    assert [a.tokens.tolist() for a in free] != [a.tokens.tolist() for a in found]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(LEARNED, id="decoder"),
        pytest.param(SEQUENCES, id="encoder-decoder", marks=pytest.mark.slow),
    ],
)
def test_rows_that_have_stopped_are_not_extended(model):
    task, state = made(model)
    free = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS)
    stop = [int(free[0].tokens[4]), int(free[2].tokens[2])]
    found = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS, stop=stop)
    for row, prompt in enumerate(PROMPTS):
        tokens, total = plain(model, state, prompt, stop=stop)
        assert found[row].tokens.tolist() == tokens
        assert found[row].stopped == (len(tokens) < STEPS)
        assert found[row].log_probability == pytest.approx(total, abs=1e-3)
    assert found[2].stopped


def test_the_loop_ends_when_all_have_stopped():
    task, state = made(LEARNED)
    stop = range(VOCABULARY)
    found = list(stream(jo.Model(task, state), PROMPTS, new_tokens=50, stop=stop))
    assert found == []
    asked = decoding.aligned([np.array(prompt) for prompt in PROMPTS], 0, None, CONTEXT)
    programs = decoding.programs(LEARNED)
    variables = {"params": state.params}
    run = programs.begin(variables, asked, jax.random.key(0), slots=64)
    stops = np.arange(VOCABULARY, dtype=np.int32)
    run, _ = programs.sample(variables, run, np.int32(50), stops, decoding.Sampling())
    assert int(run.made) == 1


def test_a_stream_gives_the_same_tokens():
    task, state = made(LEARNED)
    how = {"new_tokens": 29, "temperature": 1.0, "seed": 3, "stop": [4, 9]}
    answers = generate(jo.Model(task, state), PROMPTS, **how)
    steps = list(stream(jo.Model(task, state), PROMPTS, **how))
    assert all(step.shape == (len(PROMPTS),) for step in steps)
    for row, answer in enumerate(answers):
        streamed = [int(step[row]) for step in steps]
        assert [t for t in streamed if t >= 0] == answer.tokens.tolist()
        assert set(streamed[len(answer.tokens) :]) <= {-1}
    assert len(steps) == max(len(a.tokens) for a in answers)


def test_a_stream_comes_while_it_is_made():
    task, state = made(LEARNED)
    steps = stream(jo.Model(task, state), PROMPTS, new_tokens=60)
    first = np.stack([next(steps) for _ in range(3)], 1)
    answers = generate(jo.Model(task, state), PROMPTS, new_tokens=3)
    assert first.tolist() == [answer.tokens.tolist() for answer in answers]


class Bytes:
    """Two tokens for each character above 127, so that some steps complete none."""

    def encode(self, text):
        return [t for b in text.encode() for t in divmod(b, 16)]

    def decode(self, tokens):
        pairs = zip(tokens[::2], tokens[1::2], strict=False)
        return bytes(16 * (a % 16) + b % 16 for a, b in pairs).decode(errors="replace")


def test_texts_in_and_texts_out():
    task, state = made(LEARNED)
    how = {"new_tokens": 40, "temperature": 2.0, "tokenizer": Bytes(), "stop": [21, 22]}
    prompts = ["hä", "x", "ä", "xy"]
    answers = generate(jo.Model(task, state), prompts, **how)
    tokens = [Bytes().encode(text) for text in prompts]
    raw = generate(jo.Model(task, state), tokens, **{**how, "tokenizer": None})
    assert [a.tokens.tolist() for a in answers] == [a.tokens.tolist() for a in raw]
    assert [a.text for a in answers] == [Bytes().decode(a.tokens.tolist()) for a in raw]
    assert raw[0].text is None
    pieces = list(stream(jo.Model(task, state), prompts, **how))
    for row, answer in enumerate(answers):
        assert "".join(piece[row] for piece in pieces) == answer.text
    assert len(pieces) > 8


@functools.cache
def llama_tokenizer():
    """As Llama's file: <unk>, <s>, </s>, 20 words, and <s> before each text."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(VOCABULARY - 3))]
    numbers = {name: number for number, name in enumerate(names)}
    rust = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="<unk>"))
    rust.add_special_tokens(names[:3])
    rust.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    rust.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return jo.data.Tokenizer.from_json(rust.to_str())


def test_prompts_get_the_special_tokens_of_a_file():
    """Greedy answers to a text are those to its tokens with <s> in front, as transformers'."""
    model = jo.Model(*made(LEARNED))
    how = {"new_tokens": 6, "tokenizer": llama_tokenizer()}
    texts = ["w0 w5 w2", "w7"]
    with_s, without = (
        [a.tokens.tolist() for a in generate(model, [[*s, 3, 8, 5], [*s, 10]], new_tokens=6)]
        for s in ([1], [])
    )
    assert with_s != without

    def answers(model, **more):
        return [a.tokens.tolist() for a in generate(model, texts, **how, **more)]

    assert answers(model) == with_s and answers(model, special=False) == without
    reader = language.TokenReader(llama_tokenizer(), context=CONTEXT)
    asked = dataclasses.replace(reader, special=False)
    assert answers(dataclasses.replace(model, reader=reader), stop=[]) == with_s
    assert answers(dataclasses.replace(model, reader=asked), stop=[]) == without
    pieces = [*stream(model, texts, **how)]
    whole = [" ".join(piece[row] for piece in pieces).split() for row in range(2)]
    assert whole == [[f"w{token - 3}" for token in row] for row in with_s]


def test_an_unknown_word_is_told_once_with_the_number_of_its_prompt():
    model = jo.Model(*made(LEARNED), language.TokenReader(llama_tokenizer(), context=CONTEXT))
    with pytest.warns(UserWarning, match="the first in row 1: 'who'") as seen:
        generate(model, ["w0", "who"], new_tokens=2)
    assert len(seen) == 1


def test_a_tokenizer_of_another_vocabulary_is_refused():
    words = [f"w{i}" for i in range(VOCABULARY - 5)]  # and 5 special tokens
    own = jo.data.Tokenizer.train([" ".join(words)], kind="word")
    task, state = made(LEARNED)
    assert generate(jo.Model(task, state), ["w3"] * 4, new_tokens=2, tokenizer=own)[0].text
    for count in (VOCABULARY - 6, VOCABULARY - 4):
        other = jo.data.Tokenizer.train([" ".join(f"w{i}" for i in range(count))], kind="word")
        with pytest.raises(
            ValueError, match=rf"vocabulary of 23 \(the module\'s\), got {count + 5}"
        ):
            generate(jo.Model(task, state), ["w3"], new_tokens=2, tokenizer=other)
        with pytest.raises(ValueError, match=r"tokenizer must have a vocabulary of"):
            next(stream(jo.Model(task, state), ["w3"], new_tokens=2, tokenizer=other))


def test_a_model_may_have_rows_to_a_multiple_of_64():
    check_vocabulary(Bytes(), config())  # which says nothing
    tokenizer = jo.data.Tokenizer.train(["w0 w1"], kind="word")
    check_vocabulary(tokenizer, config(vocabulary=64))
    with pytest.raises(ValueError, match=r"a vocabulary of 192 .*, got 7"):
        check_vocabulary(tokenizer, config(vocabulary=192))


def test_an_encoder_decoder_begins_with_what_it_is_told():
    task, state = made(SEQUENCES)
    found = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS, begin=5)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        assert answer.tokens.tolist() == plain(SEQUENCES, state, prompt, begin=5)[0]
    assert found[0].tokens.tolist() != plain(SEQUENCES, state, PROMPTS[0], begin=0)[0]


# beam search

TINY = Transformer(config(vocabulary=4, context=24))
TINY_SEQUENCES = EncoderDecoder(config(vocabulary=4, context=24, scan=True))


@functools.cache
def log_probabilities(model, prompt):
    """Those after an answer to the prompt, computed once for all searches."""
    _, state = made(model, 0.5)
    return functools.cache(lambda answer: after(model, state, prompt, answer)[0].astype(float))


def exhaustive(score_of, steps, stop, alpha):
    """The best of all sequences that end by `stop` or by length."""
    best = (-math.inf, None)
    for length in range(1, steps + 1):
        for tokens in itertools.product(range(4), repeat=length):
            ends = tokens[-1] == stop
            if stop in tokens[:-1] or not (ends or length == steps):
                continue
            total = sum(score_of(tokens[:i])[token] for i, token in enumerate(tokens))
            best = max(best, (total / length**alpha, tokens[:-1] if ends else tokens, total))
    return best


def beam_search(score_of, beams, steps, stop, alpha):
    """As in the textbooks: lists, sorted."""
    live, ended = [(0.0, ())], []
    for _ in range(steps):
        grown = [(s + score_of(t)[v], (*t, v)) for s, t in live for v in range(4)]
        grown.sort(reverse=True)
        ended += [(s, t) for s, t in grown[:beams] if t[-1] == stop]
        live = [(s, t) for s, t in grown if t[-1] != stop][:beams]
    finished = [(s / len(t) ** alpha, t[:-1], s) for s, t in ended]
    return max(finished + [(s / steps**alpha, t, s) for s, t in live])


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(TINY, id="decoder"),
        pytest.param(TINY_SEQUENCES, id="encoder-decoder", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("stop", [2, 3])
def test_beam_search_wide_enough_is_exact_and_narrower_the_textbooks(model, alpha, stop):
    task, state = made(model, 0.5)
    prompts, steps = [[1, 3, 0], [2], [0, 0, 1, 3]], 4
    for beams in (64, 2):
        found = generate(
            jo.Model(task, state),
            prompts,
            new_tokens=steps,
            beams=beams,
            stop=[stop],
            length_penalty=alpha,
        )
        for prompt, answer in zip(prompts, found, strict=True):
            score_of = log_probabilities(model, tuple(prompt))
            search = functools.partial(beam_search, score_of, beams)
            score, tokens, total = (
                exhaustive(score_of, steps, stop, alpha)
                if beams == 64
                else search(steps, stop, alpha)
            )
            assert tuple(answer.tokens.tolist()) == tokens
            assert answer.log_probability == pytest.approx(total, abs=1e-4)
            length = len(tokens) + answer.stopped
            assert total / length**alpha == pytest.approx(score, rel=1e-6)


def test_more_beams_find_answers_that_greedy_search_does_not():
    task, state = made(LEARNED)
    greedy = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS)
    wide = generate(jo.Model(task, state), PROMPTS, new_tokens=STEPS, beams=16)
    gains = [b.log_probability - a.log_probability for a, b in zip(greedy, wide, strict=True)]
    assert min(gains) > -1e-3 and max(gains) > 0.01


# what compiles, and what is refused


def test_one_compilation_for_each_bucket_of_lengths():
    model = Transformer(config(hidden=24))
    task, state = made(model)
    programs = decoding.programs(model)

    def ask(prompts, new_tokens=5, **how):
        generate(jo.Model(task, state), prompts, new_tokens=new_tokens, **how)
        return programs.begin._cache_size(), programs.sample._cache_size()

    assert ask([[1] * 3, [2]]) == (1, 1)
    assert ask([[1] * 17, [2] * 9], new_tokens=47) == (1, 1)  # prompts in 16 slots, of 64
    assert ask([[1] * 18, [2] * 9]) == (2, 1)  # in 32
    assert ask([[1] * 4, [2]], new_tokens=60) == (2, 2)  # 128 slots
    assert ask([[1] * 4] * 3) == (3, 3)  # 4 rows
    assert ask([[1] * 5] * 4) == (3, 3)
    assert ask([[1], [2]], temperature=1.0) == (3, 4)
    for seed, temperature, top_k in ((1, 0.3, 3), (2, 2.0, 4)):
        assert ask([[1], [2]], temperature=temperature, seed=seed, top_k=top_k) == (3, 5)
    list(stream(jo.Model(task, state), [[1], [2]], new_tokens=30))
    assert (programs.begin._cache_size(), programs.sample._cache_size()) == (3, 5)


@pytest.mark.parametrize(
    ("prompts", "how", "says"),
    [
        ([], {}, "prompts must have at least one prompt, got none"),
        ([[1], []], {}, r"prompts\[1\] must have at least one token, got none"),
        ([1, 2], {}, "prompts must be a list of prompts, got a single one"),
        ("text", {}, r"prompts\[0\] must be tokens without a tokenizer, got a text"),
        (["text"], {}, r"prompts\[0\] must be tokens without a tokenizer, got a text"),
        ([[1.5]], {}, r"prompts\[0\] must be int \(n,\), got float64\(1,\)"),
        ([[[1]]], {}, r"prompts\[0\] must be int \(n,\), got int64\(1, 1\)"),
        ([[1], [2, VOCABULARY]], {}, r"prompts\[1\] must be tokens in \[0, 23\) .*, got 23"),
        ([[-1]], {}, r"tokens in \[0, 23\) .*, got -1"),
        (
            [[1] * 90],
            {"new_tokens": 7},
            r"prompts\[0\] and new_tokens must have at most 96 .* together, got 90 and 7",
        ),
        ([[1]], {"new_tokens": 0}, "new_tokens must be a whole number of at least 1, got 0"),
        ([[1]], {"temperature": -1.0}, "temperature must be a number of at least 0, got -1.0"),
        ([[1]], {"temperature": math.nan}, "temperature must be .*, got nan"),
        (
            [[1]],
            {"temperature": 1.0, "top_k": 0},
            "top_k must be a whole number of at least 1, got 0",
        ),
        ([[1]], {"temperature": 1.0, "top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ([[1]], {"temperature": 1.0, "top_p": 1.1}, r"top_p must be in \(0, 1\], got 1.1"),
        ([[1]], {"temperature": 1.0, "min_p": 2.0}, r"min_p must be in \(0, 1\], got 2.0"),
        ([[1]], {"top_p": 0.9}, "temperature must be above 0 with top_p, got 0"),
        ([[1]], {"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0"),
        ([[1], "a", ""], {"tokenizer": Bytes()}, r"prompts\[2\] must .* token, got an empty text"),
        ([[1]], {"stop": 3}, "stop must be numbers of tokens in a list, got 3"),
        ([[1]], {"stop": ["that is"]}, r"stop must be numbers of tokens, got \['that is'\]; of a"),
        ([[1]], {"stop": [99]}, r"stop must be tokens in \[0, 23\) .*, got 99"),
        ([[1]], {"beams": 0}, "beams must be a whole number of at least 1, got 0"),
        ([[1]], {"beams": 2, "temperature": 1.0}, "beams must be 1 with temperature, got 2"),
        (
            [[1]],
            {"beams": 2, "length_penalty": -1.0},
            "length_penalty must be at least 0, got -1.0",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(prompts, how, says):
    task, state = made(LEARNED)
    with pytest.raises(ValueError, match=says):
        generate(jo.Model(task, state), prompts, **{"new_tokens": 5, **how})
    if not {"beams", "length_penalty"} & set(how):
        with pytest.raises(ValueError, match=says):
            stream(jo.Model(task, state), prompts, **{"new_tokens": 5, **how})


def test_a_source_may_be_as_long_as_the_context_and_no_longer():
    task, state = made(SEQUENCES)
    assert len(generate(jo.Model(task, state), [[1] * CONTEXT], new_tokens=2)[0].tokens) == 2
    with pytest.raises(ValueError, match=r"must have at most 96 tokens .* each, got 97 and 2"):
        generate(jo.Model(task, state), [[1] * (CONTEXT + 1)], new_tokens=2)
    with pytest.raises(ValueError, match=r"begin must be tokens in .*, got 23"):
        generate(jo.Model(task, state), [[1]], begin=VOCABULARY)


def test_models_that_do_not_write_are_refused():
    task, state = made(Transformer(config(causal=False)))
    with pytest.raises(
        ValueError, match=r"task must have a decoder \(causal=True\), got an encoder"
    ):
        generate(jo.Model(task, state), [[1]])
    with pytest.raises(ValueError, match=r"task must be made with .*, got one made by hand"):
        generate(jo.Model(task._replace(recipe=None), state), [[1]])
