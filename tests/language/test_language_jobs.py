"""One call a job on text files: what is read, what is learned, what comes back from the file."""

import subprocess
import sys
from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxops as jo
from jaxops import language
from jaxops.data import Tokenizer
from jaxops.language.data import texts_of

LETTERS = [f"Dear Ada, engine {n} works. Yours, Charles\n" for n in range(20)]
ADAM = jo.optim.adam(0.01)
SMALL = language.nanogpt(context=32, depth=1, heads=2, width=32, dropout=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("letters")
    for n, letter in enumerate(LETTERS):
        (path / f"{n:02}.txt").write_text(letter)
    return path


@pytest.fixture(scope="module")
def model(folder):
    return language.fit(folder / "*.txt", SMALL, optimizer=ADAM, progress=False, steps=150)


def test_every_kind_of_source_gives_the_same_answer(model, folder, tmp_path):
    pd = pytest.importorskip("pandas")
    wanted = model.predict(LETTERS)
    paths = sorted(folder.glob("*.txt"))
    frame = pd.DataFrame({"text": LETTERS})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for source in (f"{folder}/*.txt", folder, paths, frame, str(tmp_path / "t.csv")):
        answer = model.predict(source)
        np.testing.assert_array_equal(answer.log_probabilities, wanted.log_probabilities)
    assert model.predict(folder).ids.tolist() == [*map(str, paths)]
    assert wanted.characters.tolist() == [*map(len, LETTERS)]
    assert wanted.tokens.tolist() == [len(letter) + 1 for letter in LETTERS]
    assert len(wanted.frame()) == 20


def test_its_scores_are_those_of_single_predictions(model):
    """Every token once, given those before it in its window, by the module itself."""
    letters = [*LETTERS[:2], "caf\u00e9 \u2014 " * 9]
    module, reader = dict(model.task.recipe[1])["module"], model.reader
    apply = jax.jit(lambda params, row: module.apply({"params": params}, row))
    nats = []
    for letter in letters:
        tokens = reader.stream([letter]).astype(int)
        for first in range(0, len(tokens) - 1, 32):
            part = tokens[first : first + 33]
            row = np.zeros((1, 32), int)  # what follows changes nothing, as the module is causal
            row[0, : len(part) - 1] = part[:-1]
            logits = np.asarray(apply(model.state.params, row))[0, : len(part) - 1]
            log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            nats.append(-log_p[np.arange(len(part) - 1), part[1:]].sum())
    scored = language.evaluate(model, letters)
    assert len(scored) == len(nats)
    total, characters = sum(nats), sum(map(len, letters))
    count = sum(len(letter.encode()) + 1 for letter in letters)
    figures = scored.figures()
    assert figures["nats_per_token"] == pytest.approx(total / count, rel=1e-4)
    assert figures["nats_per_character"] == pytest.approx(total / characters, rel=1e-4)
    low, high = language.evaluate(model, LETTERS).interval("nats_per_token")[1:]
    assert low < high < 1.5
    assert model.about["validation"]["nats_per_token"] < 1.5  # of 5.6 for a uniform guess


def test_it_writes(model):
    (answer,) = language.generate(model, "Dear Ada, engine 7")
    assert answer.text.startswith(" works. ") and len(answer.tokens) <= 32 - 18
    pieces = language.stream(model, ["Dear Ada, engine 7"], new_tokens=6)
    assert "".join(piece for (piece,) in pieces) == answer.text[:6]


def test_new_texts(model):
    new = ["0123456789 " * 8] * 4
    turned = language.update(model, new, optimizer=ADAM, progress=False, steps=60)
    before, after = language.evaluate(model, new * 3), language.evaluate(turned, new * 3)
    assert after.paired(before, "nats_per_token").high < 0
    assert turned.reader is model.reader


CHILD = """
import sys, numpy as np, jaxops as jo
from jaxops import language
model = jo.load(sys.argv[1])
said = language.generate(model, "Dear Ada")[0]
np.savez(sys.argv[3], p=model.predict(sys.argv[2]).log_probabilities, said=said.text)
"""


def test_the_file_answers_the_same_in_a_new_process(model, folder, tmp_path):
    jo.save(tmp_path / "m.model", model)
    arguments = [tmp_path / "m.model", folder, tmp_path / "said.npz"]
    subprocess.run([sys.executable, "-c", CHILD, *map(str, arguments)], check=True, timeout=120)
    said = np.load(tmp_path / "said.npz")
    wanted = model.predict(folder).log_probabilities
    np.testing.assert_allclose(said["p"], wanted, rtol=1e-5)
    assert str(said["said"]) == language.generate(model, "Dear Ada")[0].text


def test_of_several_methods_the_best_is_kept():
    methods = [SMALL, SMALL.clone(config=replace(SMALL.config, width=8))]
    model = language.fit(LETTERS, methods, optimizer=ADAM, progress=False, steps=10)
    nats = model.about["methods"]
    assert nats["1: Transformer"] < nats["2: Transformer"]
    assert model.about["validation"]["nats_per_token"] == nats["1: Transformer"]
    assert dict(model.task.recipe[1])["module"].config.width == 32


def test_one_long_text_and_a_tokenizer():
    tokenizer = Tokenizer.train(LETTERS, kind="character")
    fitted = language.fit(["".join(LETTERS)], SMALL, tokenizer=tokenizer, steps=0, progress=False)
    assert fitted.reader.tokenizer is tokenizer
    assert fitted.task.columns[0].classes == tokenizer.vocabulary


def test_what_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such text files"):
        language.fit(tmp_path / "nowhere")
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"a.txt must be UTF-8, got 0xe9 at byte 3"):
        language.fit(tmp_path)
    with pytest.raises(ValueError, match="budget must be a time such as"):
        language.fit(LETTERS, SMALL, budget="soon")
    with pytest.raises(ValueError, match=r"validation must be a share in \(0, 1\), got 1.5"):
        language.fit(LETTERS, SMALL, validation=1.5)
    with pytest.raises(ValueError, match=r"validation must be a share in \(0, 1\), got 0"):
        language.fit(LETTERS, SMALL, validation=0)
    with pytest.raises(ValueError, match=r"method must be a causal nn\.Transformer, got Dense"):
        language.fit(LETTERS, nn.Dense(2))
    with pytest.raises(ValueError, match="texts must be a list of texts, got one NoneType"):
        language.fit(None, SMALL)
    (tmp_path / "a.txt").write_text(" ")
    with pytest.raises(ValueError, match=r"a\.txt must hold text, got an empty file"):
        language.fit(tmp_path, SMALL)
    with pytest.raises(ValueError, match="data must leave text for validation, got 1 letters"):
        language.fit(["a"], SMALL)
    with pytest.raises(ValueError, match="texts must not be empty, got an empty text in row 1"):
        model.predict(["a", ""])
    with pytest.raises(ValueError, match="model must be of the language room, got Task"):
        language.evaluate(jo.Model(model.task, model.state), LETTERS)


def test_names_of_files_are_not_taken_for_texts(tmp_path):
    (tmp_path / "a.txt").write_text("a letter")
    with pytest.raises(ValueError, match=r"data must be paths \(pathlib\.Path\), or texts"):
        language.fit([str(tmp_path / "a.txt")])
    with pytest.raises(ValueError, match=r"got the name of a file as text: 'absent\.txt'"):
        language.fit(["absent.txt"])
    ids, texts = texts_of(["robots.txt", "see robots.txt"])
    assert texts == ["robots.txt", "see robots.txt"] and ids.tolist() == [0, 1]
