"""One call a job on texts: what is read, what is learned, what comes back from the files."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import nn, text
from jaxops.data import Tokenizer
from jaxops.text import jobs

RNG = np.random.default_rng(0)
TEAMS = {"lost": "card", "stolen": "card", "euro": "rate", "dollar": "rate", "code": "pin"}
FILLERS = ("my", "where", "please", "the", "is", "it", "now")
N = 120
KEYS = RNG.choice([*TEAMS], N)
TEXTS = [" ".join([*RNG.choice(FILLERS, 3), key]) for key in KEYS]
TEAM = np.array([TEAMS[key] for key in KEYS], object)
TABLE = {
    "ticket": np.array([f"t{i}" for i in range(N)], object),
    "message": np.array(TEXTS, object),
    "team": TEAM,
}
NAMES = {"text": "message", "label": "team", "id": "ticket"}
SMALL = text.NGramBag(2048, 2, width=8)
READ = text.NGrams(context=80, vocabulary=2048)


@pytest.fixture(scope="module")
def model():
    return text.fit(TABLE, SMALL, **NAMES, read=READ, progress=False, epochs=20)


@pytest.fixture(scope="module")
def tags():
    """The labels are the team and the word itself; some texts have none."""
    joined = ["" if i % 10 == 0 else f"{TEAMS[key]}, {key}" for i, key in enumerate(KEYS)]
    table = {"text": TEXTS, "label": joined}
    return text.fit(
        table,
        SMALL,
        separator=",",
        read=READ,
        validation=table,
        optimizer=jo.optim.adam(0.03),
        epochs=20,
        progress=False,
    )


def test_every_kind_of_source_gives_the_same_answer(model, tmp_path):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pd.DataFrame(TABLE)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    wanted = model.predict(TABLE)
    assert wanted.ids.tolist() == TABLE["ticket"].tolist()
    sources = [str(tmp_path / "t.csv"), tmp_path / "t.parquet", frame, pl.from_pandas(frame)]
    for source in [*sources, pl.from_pandas(frame).to_arrow()]:
        answer = model.predict(source)
        assert answer.ids.tolist() == wanted.ids.tolist()
        np.testing.assert_allclose(answer.probabilities, wanted.probabilities, atol=1e-6)
    alone = model.predict(TEXTS)
    assert alone.ids.tolist() == [*range(N)]
    assert alone.labels.tolist() == wanted.labels.tolist()
    columns = wanted.frame()
    assert columns.columns.tolist() == ["id", "label", "in_scope", "p(card)", "p(pin)", "p(rate)"]
    assert text.classify(model, frame, words=False)[0].label == wanted.labels[0]


def test_what_it_learns_and_its_scores(model):
    metrics = pytest.importorskip("sklearn.metrics")
    wrong = {**TABLE, "team": np.where(np.arange(N) % 7 == 0, "pin", TEAM).astype(object)}
    scored, answer = text.evaluate(model, wrong), model.predict(TABLE)
    figures, target = scored.figures(), wrong["team"].tolist()
    assert figures["accuracy"] == metrics.accuracy_score(target, answer.labels.tolist())
    f1 = metrics.f1_score(target, answer.labels.tolist(), average="macro")
    assert figures["macro_f1"] == pytest.approx(f1)
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(target, answer.probabilities))
    low, high = scored.interval("macro_f1")[1:]
    assert low < figures["macro_f1"] < high
    assert (answer.labels == TEAM).mean() > 0.95 < model.about["validation"]["accuracy"]
    assert 0.9 < answer.in_scope.mean() <= 1


def test_several_labels(tags):
    metrics = pytest.importorskip("sklearn.metrics")
    said = tags.predict(["where is my euro", "the lost it"])
    assert said.labels.tolist() == [("euro", "rate"), ("card", "lost")]
    assert said.frame().label.tolist() == ["euro; rate", "card; lost"]
    pairs = {"text": TEXTS, "label": [(TEAMS[key], key) for key in KEYS]}
    figures = text.evaluate(tags, pairs).figures()
    target = text.labels(pairs["label"], tags.task.classes, many=True)
    p = tags.predict(TEXTS).probabilities
    told = p >= tags.reader.threshold
    for average in ("macro", "micro"):
        wanted = metrics.f1_score(target, told, average=average)
        assert figures[f"{average}_f1"] == pytest.approx(wanted)
    assert figures["accuracy"] == metrics.accuracy_score(target, told) > 0.8
    with pytest.raises(ValueError, match=r"got many=True; use model\.predict"):
        text.classify(tags, TEXTS)


def test_new_texts(model):
    other = {**TABLE, "team": np.where(TEAM == "card", "pin", "card").astype(object)}
    turned = text.update(model, other, epochs=30, progress=False)
    before, after = text.evaluate(model, other), text.evaluate(turned, other)
    assert after.paired(before, "accuracy").low > 0
    assert turned.reader is model.reader


def others():
    """The finished models that `fit` does not make, untrained."""
    tokenizer = Tokenizer.train(TEXTS, kind="word")
    words = text.Tokens(tokenizer, context=8)

    def finished(task, reader, rows):
        return jo.Model(task, jo.init_state(task, jo.optim.sgd(0.1), 0, rows), reader)

    encoder = text.contrastive(text.BagEncoder(words.vocabulary, features=4), 8)
    pair = {name: words(TEXTS[:1])["tokens"] for name in ("tokens", "positive")}
    vectors = finished(encoder, text.TextReader(words), pair)
    config = nn.TransformerConfig(
        tokenizer.vocabulary, 16, depth=1, heads=1, width=4, causal=False, segment_types=2
    )
    spans, read = text.spans(text.SpanReader(config), 16), text.Passages(tokenizer, 16)
    reader = finished(spans, text.PassageReader(read), read(["where"], ["it is lost"]))
    library = jo.Model(
        text.index(TEXTS, vectors), None, text.DocumentReader(TABLE["ticket"], text="message")
    )
    both = text.WordsAndNGrams(words, text.NGrams(context=80, vocabulary=512))
    members = text.BagAndCNN(512, 3, words=8, word_vocabulary=words.vocabulary, width=4, filters=4)
    task = text.classifier(members, both.context, ("card", "pin", "rate"))
    side_by_side = finished(task, text.TextReader(both), both(TEXTS[:1]))
    return {"vectors": vectors, "reader": reader, "library": library, "both": side_by_side}


QUESTIONS = {"question": ["where is it", "please"], "passage": ["it is lost now", "the code is it"]}
CHILD = """
import sys, numpy as np, jaxops as jo
folder, message, question, passage = sys.argv[1], *(a.split("|") for a in sys.argv[2:])
names = ("model", "tags", "vectors", "reader", "library", "both")
models = {n: jo.load(f"{folder}/{n}.model") for n in names}
found = models["library"].predict(message, k=3, encode=models["vectors"])
said = models["reader"].predict({"question": question, "passage": passage})
np.savez(f"{folder}/said.npz", model=models["model"].predict(message).probabilities,
         tags=models["tags"].predict(message).probabilities,
         both=models["both"].predict(message).probabilities,
         vectors=models["vectors"].predict(message).vectors, reader=said.scores,
         texts=said.texts.astype(str), library=found.scores, documents=found.documents.astype(str))
"""


def test_the_files_answer_the_same_in_a_new_process(model, tags, tmp_path):
    models = {"model": model, "tags": tags, **others()}
    for name, one in models.items():
        jo.save(tmp_path / f"{name}.model", one)
    lists = ["|".join(one) for one in (TEXTS[:5], *QUESTIONS.values())]
    subprocess.run([sys.executable, "-c", CHILD, tmp_path, *lists], check=True, timeout=120)
    answers = models["reader"].predict(QUESTIONS)
    found = models["library"].predict({"message": TEXTS[:5]}, k=3, encode=models["vectors"])
    wanted = {
        "model": model.predict(TEXTS[:5]).probabilities,
        "tags": tags.predict(TEXTS[:5]).probabilities,
        "both": models["both"].predict(TEXTS[:5]).probabilities,
        "vectors": models["vectors"].predict(TEXTS[:5]).vectors,
        "reader": answers.scores,
        "library": found.scores,
    }
    said = np.load(tmp_path / "said.npz")
    for name, value in wanted.items():
        np.testing.assert_allclose(said[name], value, atol=1e-5)
    assert said["texts"].tolist() == answers.texts.tolist()
    assert said["documents"].tolist() == found.documents.tolist()
    assert found.documents[0, 0] in TABLE["ticket"] and len(found.frame()) == 15
    assert answers.frame().text.tolist() == answers.texts.tolist()


def test_several_methods_and_the_default(capsys):
    both = text.BagAndCNN(512, 2, words=8, word_vocabulary=64, width=8, filters=8)
    untrained = text.NGramBag(512, 2, width=2, dropout=0.9)
    model = text.fit(TABLE, [untrained, both], **NAMES, epochs=8, validation=TABLE)
    losses = model.about["methods"]
    assert losses["2: BagAndCNN"] == min(losses.values()) < losses["1: NGramBag"]
    assert "| 2: BagAndCNN" in capsys.readouterr().out
    assert model.about["validation"]["log_loss"] == losses["2: BagAndCNN"]
    assert model.about["validation"]["accuracy"] > 0.95
    # the words of the longest text, and the n-grams: in steps of 8
    assert model.reader.read.words.context == 8 and model.task.columns[0].shape[0] % 8 == 0
    many = ["my card"] * 20_001
    assert isinstance(jobs._default(many, None), text.NGramBag)
    assert jobs._default(many[1:], None) == text.BagAndCNN(1024, 2, words=32, word_vocabulary=8192)
    assert isinstance(jobs._default(TEXTS, READ), text.NGramBag)
    # 2,000 words of four letters of their own have more n-grams than 2**13
    assert jobs._table_size([f"{n:04}" for n in range(2000)]) == 2**14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "nothing"}, "arrays must have a column 'nothing', got ticket, message, team"),
        ({"keep": 0}, r"keep must be in \(0, 1\], got 0"),
        ({"budget": "soon"}, "budget must be a time such as"),
        ({"seed": -1}, r"seed must be a whole number in \[0, 2\*\*32\), got -1"),
        ({"separator": ""}, "separator must be a text such as"),
        ({"validation": 0}, r"validation must be a share in \(0, 1\), got 0"),
        ({"validation": 1.5}, r"validation must be a share in \(0, 1\), got 1.5"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"method": []}, "method must be at least 1, got an empty list"),
        ({"method": [SMALL, "CNN"]}, "method must be a Flax module, .* got 'CNN'"),
        (
            {"method": text.BagAndCNN(512, 2, words=8, word_vocabulary=64)},
            "read must be WordsAndNGrams for BagAndCNN, and for no other method, got NGrams",
        ),
    ],
)
def test_arguments_that_cannot_be(change, message):
    given = {**NAMES, "method": SMALL, "read": READ, "progress": False, **change}
    with pytest.raises(ValueError, match=message):
        text.fit(TABLE, **given)


def test_texts_and_labels_that_cannot_be(model):
    def fitted(**columns):
        return text.fit({**TABLE, **columns}, SMALL, **NAMES, read=READ, progress=False)

    with pytest.raises(ValueError, match="team must have at least 2 classes, got only pin"):
        fitted(team=["pin"] * N)
    with pytest.raises(ValueError, match=f"hold some out, got 0 and {N} that are alone in their"):
        fitted(team=[f"team {i}" for i in range(N)])
    with pytest.raises(ValueError, match="team must have a value in every row, got none in row 3"):
        fitted(team=[None if i == 3 else one for i, one in enumerate(TEAM)])
    with pytest.raises(ValueError, match="team must have a value in every row, got none in row 5"):
        fitted(team=["  " if i == 5 else one for i, one in enumerate(TEAM)])
    with pytest.raises(ValueError, match="texts must not be empty, got an empty text in row 4"):
        fitted(message=["" if i == 4 else one for i, one in enumerate(TEXTS)])
    with pytest.raises(
        ValueError, match=r"label must be one of 3 classes .*, got 'other' in row 0"
    ):
        text.evaluate(model, {**TABLE, "team": ["other"] * N})
    with pytest.raises(ValueError, match="data must be a file, a frame or arrays with the columns"):
        text.fit(TEXTS)
    with pytest.raises(ValueError, match="texts must be a list of texts, got one str"):
        model.predict("my card")


def test_the_last_training_goes_as_far_as_the_best(monkeypatch):
    """Steps are chosen by the accuracy on held-out texts, and the second training takes as many."""
    calls, real = [], jobs.train

    def mine(logits, batch):
        return jnp.ones(len(logits))

    def train(task, columns, **settings):
        calls.append((len(columns["label"]), settings))
        state = real(task, columns, **settings)
        if "validation" in settings:  # as if it had been best after a quarter
            state = state._replace(step=state.step // 4)
        return state

    monkeypatch.setattr(jobs, "train", train)
    options = {"epochs": 8, "batch_size": 10, "progress": False, "metrics": {"mine": mine}}
    text.fit(TABLE, SMALL, **NAMES, read=READ, **options)
    (first, known), (second, last) = calls
    assert known["metrics"] and last["metrics"] is None  # there is no validation
    assert (known["early_stopping"].metric, known["early_stopping"].mode) == ("accuracy", "max")
    assert second == N and first == 102 and last["early_stopping"] is None
    # 22 of 88 steps of 11 an epoch, so 24 of 96
    assert last["steps"] == 24 and last["epochs"] is None
