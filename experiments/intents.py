"""Shared by banking_intents and clinc_intents: training, the baseline, and the report."""

import dataclasses
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import jaxops as jo
from experiments import common
from jaxops import nn, text
from jaxops.data.packing import pack
from jaxops.data.tokenizer import MASK, UNKNOWN, Tokenizer
from jaxops.language.tasks import masked_tokens
from jaxops.trust import report

ENSEMBLE = ("bag", "cnn")  # the two that are best alone, on validation rows
Columns = dict[str, np.ndarray]
Probabilities = dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings(common.Settings):
    """The recipe, chosen by validation rows of both sets."""

    epochs: int = 12
    """of the bag and the CNN"""
    transformer_epochs: int = 8
    pretraining_epochs: int = 5
    """passes over the train texts to restore masked words, before labels are looked at"""
    batch_size: int = 128
    label_smoothing: float = 0.1
    length: int = 32
    """words that the CNN and the transformer see"""
    grams: int = 320
    """n-grams that the bag sees"""
    compute: str = "bfloat16"
    """of matrix products"""
    validate: bool = False
    """learn from fewer rows and look at the others, instead of at the test set"""


class Questions(NamedTuple):
    """Texts by what they are for, `text` and `label` each, of which those out of scope have none.

    Attributes:
        train: to learn from.
        held_out: to be looked at once.
        validation: to fit temperature and threshold; `None` where all rows are learned from.
        outside: out of scope, "held_out" and "validation"; empty where there are none.
        classes: names of the intents.
    """

    train: Columns
    held_out: Columns
    validation: Columns | None
    outside: dict[str, np.ndarray]
    classes: tuple[str, ...]

    def texts(self) -> dict[str, np.ndarray]:
        """Everything to be classified."""
        texts = {"held_out": self.held_out["text"]}
        texts |= {} if self.validation is None else {"validation": self.validation["text"]}
        return texts | {f"outside {name}": rows for name, rows in self.outside.items()}


class Learner(NamedTuple):
    """A network, how it reads texts, and how it learns; its temperature where none is fitted."""

    read: text.Reader
    model: Any
    epochs: int
    learning_rate: float
    temperature: float
    pretraining_epochs: int = 0


def learners(settings: Settings, texts: np.ndarray, classes: int) -> dict[str, Learner]:
    """The n-gram bag, the CNN, and the transformer without and with pre-training."""
    tokenizer = Tokenizer.train(texts, kind="word", vocabulary=4096, lowercase=True)
    words, grams = text.Tokens(tokenizer, settings.length), text.NGrams(settings.grams)
    if settings.smoke:
        grams = text.NGrams(settings.grams, vocabulary=1024)
    config = nn.TransformerConfig(
        vocabulary=tokenizer.vocabulary,
        context=settings.length,
        depth=1 if settings.smoke else 2,
        heads=4,
        width=32 if settings.smoke else 128,
        causal=False,
        dropout=0.1,
    )
    bag = text.NGramBag(grams.vocabulary, classes, dropout=0.1, hidden_dropout=0.1)
    cnn = text.TextCNN(
        tokenizer.vocabulary,
        classes,
        width=32 if settings.smoke else 256,
        widths=(1, 2, 3),
        filters=32 if settings.smoke else 512,
        word_dropout=0.1,
    )
    transformer = text.TransformerClassifier(config, classes, dropout=0.3, word_dropout=0.1)
    scratch = Learner(words, transformer, settings.transformer_epochs, 1e-3, 0.8)
    return {
        "bag": Learner(grams, bag, settings.epochs, 3e-3, 0.59),
        "cnn": Learner(words, cnn, settings.epochs, 2e-3, 0.56),
        "transformer": scratch,
        "pretrained": scratch._replace(pretraining_epochs=settings.pretraining_epochs),
    }


def optimizer(settings: Settings, rate: float, rows: int, epochs: int) -> Any:
    """AdamW under one cosine cycle."""
    steps = epochs * -(-rows // settings.batch_size)
    schedule = jo.optim.cosine(rate, steps, warmup=steps // 10)
    return jo.optim.adamw(schedule, weight_decay=0.01, mask=jo.optim.decay_mask)


def train(
    settings: Settings, learner: Learner, questions: Questions, seed: int, log: Any
) -> tuple[jo.Task, jo.TrainState]:
    """From texts and labels to a trained network."""
    read, rows = learner.read, questions.train
    task = text.classifier(
        learner.model,
        read.context,
        questions.classes,
        label_smoothing=settings.label_smoothing,
    )
    columns = {**read(rows["text"]), "label": rows["label"]}
    epochs = 1 if settings.smoke else learner.epochs
    tx = optimizer(settings, learner.learning_rate, len(rows["label"]), epochs)
    state = None
    if learner.pretraining_epochs:
        state = jo.init_state(task, tx, seed, {k: v[:1] for k, v in columns.items()})
        known = pretrain(settings, learner, columns["tokens"], seed)
        state = state._replace(params={**state.params, "encoder": known}, opt_state=())
    state = jo.fit(
        task,
        columns,
        optimizer=tx,
        batch_size=settings.batch_size,
        epochs=epochs,
        seed=seed,
        state=state,
        compute=settings.compute,
        reports=log,
        progress=False,
    )
    return task, state


def pretrain(settings: Settings, learner: Learner, tokens: np.ndarray, seed: int) -> Any:
    """The encoder's parameters after it has learned to restore masked words."""
    task = masked_tokens(nn.Transformer(learner.model.config), MASK, special=(UNKNOWN,))
    packed = pack([row[row > 0] for row in tokens], settings.length).columns
    epochs = 1 if settings.smoke else learner.pretraining_epochs
    return jo.fit(
        task,
        packed,
        optimizer=optimizer(settings, 1e-3, len(packed["tokens"]), epochs),
        batch_size=settings.batch_size,
        epochs=epochs,
        seed=seed,
        progress=False,
    ).params


def support_vectors(questions: Questions) -> Probabilities:
    """The rival: a linear SVM on the tf-idf of words and of characters; its scores (N, classes)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union
    from sklearn.svm import LinearSVC

    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    rows = questions.train
    machine = LinearSVC(C=1.0).fit(features.fit_transform(rows["text"]), rows["label"])
    found = {
        name: machine.decision_function(features.transform(texts))
        for name, texts in questions.texts().items()
    }
    # of two classes the score of the second alone
    return {name: np.c_[-x, x] if x.ndim == 1 else x for name, x in found.items()}


def scores(name: str, probabilities: Probabilities, questions: Questions) -> dict[str, float]:
    """Accuracy; out of scope also AUROC and recall, of the largest probability as the score.

    `oos_recall` is where 90 % of the held-out rows in scope are still right. The threshold of
    `..._by_validation` is that of the validation rows, as a user would have it.
    """
    label = questions.held_out["label"]
    right = probabilities["held_out"].argmax(1) == label
    values = {"accuracy": float(right.mean())}
    if questions.outside:
        inside, outside = probabilities["held_out"].max(1), probabilities["outside held_out"].max(1)
        both = np.concatenate([inside, outside])
        in_scope = np.repeat([1.0, 0.0], [len(inside), len(outside)])
        values["oos_auroc"] = jo.metrics.Scores(both, in_scope, np.ones(len(both))).auc()
        values["oos_recall"], _ = text.refusal(inside, right, outside)
        assert questions.validation is not None
        p, validation_label = probabilities["validation"], questions.validation["label"]
        _, threshold = text.refusal(p.max(1), p.argmax(1) == validation_label, outside)
        values["oos_recall_by_validation"] = float((outside < threshold).mean())
        values["accuracy_by_validation"] = float((right & (inside >= threshold)).mean())
    return {key + (f"_{name}" if name != "ensemble" else ""): v for key, v in values.items()}


def compare(settings: Settings, questions: Questions, seed: int, folder: Path) -> dict[str, float]:
    """Train each, look at the held-out rows once, write down what they and their mean say."""
    # of the longest questions some n-grams are left out; in a smoke test some words are unknown
    warnings.filterwarnings("ignore", message="texts must ")
    if settings.smoke:
        settings = dataclasses.replace(settings, batch_size=16, length=16, grams=64)
    values: dict[str, float] = {}
    if seed == 0:  # it draws nothing at random
        start = time.perf_counter()
        values |= scores("svm", support_vectors(questions), questions)
        values["seconds_svm"] = time.perf_counter() - start
        common.say(f"svm {values['accuracy_svm']:.2%}")
    known: dict[str, Probabilities] = {}
    classifiers: dict[str, jo.Model] = {}
    texts = questions.texts()
    for name, learner in learners(
        settings, questions.train["text"], len(questions.classes)
    ).items():
        start, log = time.perf_counter(), common.Log(folder / name, resume=False)
        task, state = train(settings, learner, questions, seed, log)
        reader = text.TextReader(learner.read, temperature=learner.temperature)
        one = jo.Model(task, state, reader)
        if questions.validation is not None:
            rows = questions.validation
            one = text.calibrate(one, rows["text"], rows["label"])
        known[name] = {key: one.predict(rows).probabilities for key, rows in texts.items()}
        classifiers[name] = one
        values |= scores(name, known[name], questions)
        values[f"seconds_{name}"] = time.perf_counter() - start
        report.plot_curves(log.records, folder / name / "curves.png")
        common.say(
            f"{name} {values[f'accuracy_{name}']:.2%}, temperature {one.reader.temperature:.2f}, "
            f"{values[f'seconds_{name}']:.0f} s"
        )
    together = {
        name: {key: np.mean([known[m][key] for m in members], axis=0) for key in texts}
        for name, members in (("all", tuple(known)), ("ensemble", ENSEMBLE))
    }
    ensemble = together["ensemble"]
    for name, probabilities in together.items():
        values |= scores(name, probabilities, questions)
    common.say(f"ensemble {values['accuracy']:.2%} of {len(questions.held_out['label']):,} rows")
    values |= draw(ensemble, questions, folder)
    jo.save(folder / "model.safetensors", classifiers["bag"])
    explain(folder / "model.safetensors", questions.held_out["text"][:5].tolist())
    return values


def draw(probabilities: Probabilities, questions: Questions, folder: Path) -> dict[str, float]:
    """Confusion, reliability, and where there are questions out of scope the ROC curve."""
    p, label, classes = probabilities["held_out"], questions.held_out["label"], questions.classes
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (label, p.argmax(1)), 1)
    report.plot_confusion(counts, classes, folder / "confusion.png")
    text.plot_reliability(p, label, folder / "reliability.png")
    if questions.outside:
        both = np.concatenate([p.max(1), probabilities["outside held_out"].max(1)])
        inside = (np.arange(len(both)) < len(p)).astype(float)
        report.plot_roc(jo.metrics.Scores(both, inside, np.ones(len(both))), folder / "roc.png")
    return {"ece": text.ece(p, label), "rows": len(label)}


def explain(model_file: Path, texts: Sequence[str]) -> None:
    """What the saved model says of some texts, and the word that spoke most for it."""
    decisions = text.classify(jo.load(model_file), texts)
    rows = [
        {
            "text": question[:60],
            "label": d.label,
            "probability": f"{d.probability:.0%}",
            "word": max(d.words, key=lambda pair: pair[1])[0],
        }
        for question, d in zip(texts, decisions, strict=True)
    ]
    print(report.table(rows))


def load(name: str, smoke: bool) -> jo.data.Dataset:
    """BANKING77 or CLINC150, whose source is printed; made-up questions for a smoke test."""
    data = made_up(name) if smoke else jo.data.load(name)
    print(f"data: {data.source}")
    return data


def made_up(name: str) -> jo.data.Dataset:
    """Questions of three intents, each named by one word, in the splits of the data set `name`."""
    rng = np.random.default_rng(0)
    fillers = ("my", "card", "please", "when", "did", "the", "bank", "is", "it")
    intents = ("lost", "arrive", "pin")
    label = np.arange(200, dtype=np.int32) % len(intents)
    splits: dict[str, Columns] = {}
    for split in {"banking77": ("train", "test")}.get(name, ("train", "validation", "test")):
        words = [rng.choice(fillers, 6) for _ in label]
        questions = [" ".join([*row, intents[n]]) for row, n in zip(words, label, strict=True)]
        splits[split] = {"text": np.array(questions, object), "label": label}
        if name == "clinc150":
            outside = [" ".join([*row, "weather"]) for row in words[:50]]
            splits[f"{split}_out_of_scope"] = {"text": np.array(outside, object)}
    return jo.data.Dataset(splits, intents, f"made-up questions in place of {name}, a smoke test")
