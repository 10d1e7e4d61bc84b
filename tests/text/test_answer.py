import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import text
from jaxops.data import Tokenizer
from jaxops.data.tokenizer import BOS, EOS, PAD
from jaxops.nn import TransformerConfig

TEXTS = ["what is the code of the red door", "the code of the red door is 4711 .", "nobody knows"]
WORDS = Tokenizer.train(TEXTS, kind="word")
PIECES = Tokenizer.train(TEXTS * 2, kind="bpe", vocabulary=60)


@pytest.mark.parametrize("longest", [1, 3, 7, 100])
def test_the_best_span_is_that_of_brute_force(longest):
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.normal(size=(20, 8)), lambda: rng.integers(0, 3, (20, 8))):  # ties
        start, end = (draw().astype(np.float32) for _ in range(2))
        start[:, 0] = end[:, 0] = 99  # no answer is no span
        found = text.best_span(start, end, longest)
        for row in range(20):
            sums = {
                (i, j): start[row, i] + end[row, j]
                for i in range(1, 8)
                for j in range(i, min(i + longest, 8))
            }
            best = max(sums, key=lambda span: sums[span])  # the first of equals
            assert tuple(int(x[row]) for x in found[:2]) == best
            assert float(found[2][row]) == sums[best]


@pytest.mark.parametrize("tokenizer", [WORDS, PIECES], ids=["words", "pieces"])
def test_the_answer_is_where_its_tokens_are(tokenizer):
    read = text.Passages(tokenizer, context=64)
    passage = TEXTS[1]
    place = passage.index("4711"), passage.index("4711") + 4
    rows = read([TEXTS[0]] * 2, [passage, TEXTS[2]], [place, None])
    assert rows["tokens"].shape == (2, 64) and rows["pair"].tolist() == [0, 1]
    own = slice(rows["start"][0], rows["end"][0] + 1)
    assert tokenizer.decode(rows["tokens"][0][own]) == "4711"
    assert (rows["types"][0][own] == 1).all()
    first, last = rows["characters"][0][own][[0, -1]]
    assert passage[first[0] : last[1]].strip() == "4711"
    assert rows["start"][1] == rows["end"][1] == 0
    question, told = tokenizer.encode(TEXTS[0]), tokenizer.encode(passage)
    wanted = [BOS, *question, EOS, *told, EOS]
    assert rows["tokens"][0].tolist() == wanted + [PAD] * (64 - len(wanted))
    types = [0] * (len(question) + 2) + [1] * len(told)
    assert rows["types"][0].tolist() == types + [0] * (64 - len(types))


def test_a_long_passage_is_read_in_rows_that_overlap_by_half():
    passage = " ".join(TEXTS[1].split()[:9] * 3)  # 27 words
    read = text.Passages(WORDS, context=15)
    question = "the code"  # leaves room for 10
    place = passage.rindex("4711"), len(passage)  # in the last row alone
    rows = read([question], [passage], [place])
    ids = WORDS.encode(passage)
    starts = [0, 5, 10, 15, 20]
    for row, first in enumerate(starts):
        seen = rows["tokens"][row][rows["types"][row] == 1].tolist()
        assert seen == ids[first : first + 10]
    assert len(rows["tokens"]) == len(starts)
    assert (rows["start"] > 0).tolist() == [False, False, False, False, True]
    assert rows["start"].max() == 9 and rows["end"].max() == 10  # words 25 and 26, from 20 on
    assert len(read([question], [" ".join(passage.split()[:10])])["tokens"]) == 1
    exactly = read([question], [" ".join(passage.split()[:11])])["tokens"]
    assert len(exactly) == 2


def test_the_loss_is_the_mean_of_two_cross_entropies():
    class Fixed(nn.Module):
        @nn.compact
        def __call__(self, tokens, types):
            table = self.param("table", nn.initializers.normal(1), (20, 2))
            return table[tokens]

    task = text.spans(Fixed(), context=5)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 20, (3, 5)).astype(np.int32)
    batch = {
        "tokens": tokens,
        "types": np.ones_like(tokens),
        "start": np.array([0, 1, 3]),
        "end": np.array([0, 4, 3]),
    }
    params, extra = jax.jit(task.init)(jax.random.key(0), batch)
    loss = jax.jit(task.loss, static_argnums=4)
    total, out = loss(params, extra, batch, jax.random.key(0), False)
    logits = np.asarray(params["table"], np.float64)[tokens]
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    wanted = -sum(
        log_p[i, batch["start"][i], 0] / 2 + log_p[i, batch["end"][i], 1] / 2 for i in range(3)
    )
    np.testing.assert_allclose(total, wanted, rtol=1e-5)
    np.testing.assert_allclose(
        jax.jit(task.predict)(params, extra, batch), log_p, rtol=1e-5, atol=1e-6
    )
    right = [tuple(log_p[i].argmax(0)) == (batch["start"][i], batch["end"][i]) for i in range(3)]
    assert out.metrics["accuracy"].compute() == pytest.approx(np.mean(right))


CONFIG = TransformerConfig(
    WORDS.vocabulary, context=24, depth=1, heads=2, width=8, causal=False, segment_types=2
)


def test_only_the_passage_and_no_answer_are_possible():
    task, read = text.spans(text.SpanReader(CONFIG), context=24), text.Passages(WORDS, context=24)
    rows = read([TEXTS[0]], [TEXTS[1]], [(0, 3)])
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, rows)
    p = np.exp(jo.predict(task, state, rows))
    possible = rows["types"] == 1
    possible[:, 0] = True
    assert (p[possible] > 0).all() and not p[~possible].any()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)


class Finds(nn.Module):
    """Starts at the first token, ends at the second; how sure it is grows with the row."""

    start: int
    end: int

    @nn.compact
    def __call__(self, tokens, types):
        sure = self.param("sure", nn.initializers.constant(3.0), (1, 1))
        likes = jnp.stack([tokens == self.start, tokens == self.end], -1).astype(jnp.float32)
        logits = jnp.where((types == 1)[..., None], likes * sure[..., None], -1e9)
        none = jnp.full((len(tokens), 1, 2), 1.0)
        return logits.at[:, :1].set(none)


def answered(passages, longest=30, context=15):
    task = text.spans(Finds(WORDS.id("red"), WORDS.id("is")), context=context)
    read = text.Passages(WORDS, context=context)
    example = read(["the code"], ["is"], [(0, 2)])
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, example)
    model = jo.Model(task, state, text.PassageReader(read))
    return text.answer(model, "the code", passages, longest)


def test_the_best_span_of_all_passages():
    passages = ["nobody knows what", "code of  the red , door   is  4711 . nobody knows", "the red"]
    found = answered(passages)
    assert found.text == "red , door   is" and found.passage == 1
    assert passages[1][found.start : found.end] == found.text
    # by hand: ten tokens of the passage and no answer
    logits = np.array([1.0] + [0] * 9 + [3.0])
    log_p = logits - np.log(np.exp(logits).sum())
    assert found.score == pytest.approx(2 * log_p[-1], rel=1e-5)
    # the least log-probability of no answer is that of the passage read with most hope
    assert found.no_answer == pytest.approx(2 * log_p[0] - found.score, rel=1e-4)
    assert found.no_answer < 0 < answered(["nobody knows"]).no_answer
    assert answered(passages, longest=2)[:2] == ("red", 2)  # "is" is too far


def test_an_answer_beyond_the_first_row():
    passage = " ".join(["nobody", "knows"] * 12 + ["the", "red", "door", "is", "4711"])
    found = answered([passage])
    assert found.text == "red door is" and found.start == passage.index("red")


def test_bad_input():
    read = text.Passages(WORDS, context=8)
    bad = {
        "passages and answers must have equal lengths, got 1, 2 and 2": (
            ["the"],
            ["is"] * 2,
            [None] * 2,
        ),
        "texts must not be empty, got an empty text in row 0": ([" "], ["is"], None),
        "questions must have at most 4 tokens .*, got 5 in row 0": (
            ["the code of red is"],
            ["is"],
            None,
        ),
        r"answers must be .* <= 2 .*, got \(1, 9\) in row 0": (["the"], ["is"], [(1, 9)]),
        r"answers must be .*, got \(1, 1\)": (["the"], ["is"], [(1, 1)]),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            read(*arguments)
    with pytest.raises(ValueError, match="longest must be at least 1, got 0"):
        answered(["is"], longest=0)
    with pytest.raises(ValueError, match="texts must be a list of texts, got one str"):
        answered("is it here")
    causal = TransformerConfig(9, context=8, depth=1, heads=1, width=4, segment_types=2)
    with pytest.raises(
        ValueError, match=r"config must have causal=False .*, got causal=True and segment_types=2"
    ):
        text.SpanReader(causal).init(jax.random.key(0), *[jnp.zeros((1, 8), jnp.int32)] * 2)
    task = text.spans(text.SpanReader(CONFIG), context=8)
    rows = text.Passages(WORDS, context=8)(["the"], ["is red"], [(0, 2)])
    with pytest.raises(ValueError, match=r"start must be in \[0, 8\), got 9"):
        wrong = {**rows, "start": rows["start"] + 6}
        jo.fit(task, wrong, optimizer=jo.optim.sgd(0.1), batch_size=1, steps=1)


NAMES = [f"name{i}" for i in range(8)]
COLOURS = [f"colour{i}" for i in range(12)]
THINGS = [f"thing{i}" for i in range(12)]


def facts(rows, seed):
    """Four entries a passage, of three or four words; the answer is the entry of a name."""
    rng = np.random.default_rng(seed)
    questions, passages, places = [], [], []
    for _ in range(rows):
        names = rng.choice(NAMES, 4, replace=False)
        colours = [rng.choice(["", f"{rng.choice(COLOURS)} "]) for _ in names]
        entries = [
            f"{name} has {colour}{rng.choice(THINGS)}"
            for name, colour in zip(names, colours, strict=True)
        ]
        asked = rng.integers(4)
        start = sum(len(entry) + 3 for entry in entries[:asked])
        questions.append(f"what has {names[asked]}")
        passages.append(" . ".join(entries))
        places.append((start, start + len(entries[asked])))
    return questions, passages, places


@pytest.mark.slow
@pytest.mark.optimized  # it trains for longer than it compiles
def test_learns_to_look_up():
    train, test = facts(4800, seed=0), facts(300, seed=1)
    tokenizer = Tokenizer.train([*train[0], *train[1]], kind="word")
    read = text.Passages(tokenizer, context=28)
    config = TransformerConfig(
        tokenizer.vocabulary,
        context=28,
        depth=2,
        heads=4,
        width=64,
        hidden=128,
        causal=False,
        segment_types=2,
        position="rotary",
    )
    task = text.spans(text.SpanReader(config), context=28)
    rows = read(*train)
    state = jo.fit(
        task,
        rows,
        optimizer=jo.optim.adam(jo.optim.cosine(3e-3, 400, warmup=40)),
        batch_size=32,
        steps=400,
        progress=False,
    )
    log_p = jo.predict(task, state, read(*test[:2]))
    found = np.stack(text.best_span(log_p[..., 0], log_p[..., 1], 8)[:2])
    wanted = read(*test)
    exact = (found == [wanted["start"], wanted["end"]]).all(0).mean()
    assert exact > 0.95
    # of several passages, one of which names it
    right, model = 0, jo.Model(task, state, text.PassageReader(read))
    for asked, own, place in zip(*(part[:50] for part in test), strict=True):
        others = [passage for passage in test[1] if f"{asked.split()[-1]} " not in passage][:3]
        right += text.answer(model, asked, [*others, own]).text == own[slice(*place)]
    assert right > 45


def test_passages_of_a_tokenizer_with_other_special_tokens():
    """As BERT's: its own [CLS] and [SEP], each once."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, pre_tokenizers, processors

    names = ["[PAD]", "[unused]", "[UNK]", "[CLS]", "[SEP]", "who", "Ada"]
    numbers = {name: number for number, name in enumerate(names)}
    rust = Rust(models.WordLevel(numbers, unk_token="[UNK]"))
    rust.add_special_tokens(names[:5])
    rust.pre_tokenizer = pre_tokenizers.Whitespace()
    rust.post_processor = processors.BertProcessing(("[SEP]", 4), ("[CLS]", 3))
    rust.enable_padding(length=9)
    read = text.Passages(Tokenizer.from_json(rust.to_str()), context=8)
    rows = read(["who"], ["Ada"], [(0, 3)])
    assert rows["tokens"].tolist() == [[3, 5, 4, 6, 4, 0, 0, 0]]
    assert rows["start"].tolist() == rows["end"].tolist() == [3]
