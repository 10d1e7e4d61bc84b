"""BANKING77 with differential privacy: 77 intents at epsilon 8, 3 and infinity, delta 1e-5.

A linear classifier of n-grams learns with privacy. Nothing else looks at the private rows: n-grams
are numbered by a hash, their weights (idf) are those of CLINC150's texts, which count as public,
and random signs fold them into 2,048 features of a norm of 1. With a hash, n-grams that no public
text has count too. Every update takes all 10,003 rows, as noise is then the smallest share of the
sum. Delta is a tenth of 1 / rows.

"inf" is the same classifier without clips and noise; the rival is a linear SVM on the tf-idf of the
private rows, also without privacy. Features, updates, clips and learning rates were chosen on a
fifth of the train rows, as `--validate` does; those trials were not recorded, and the search is not
in epsilon. Seeds are fixed here, so that the figures can be had again.

Expected over three seeds: accuracy 84.4 % with a standard deviation of 0.3 at epsilon 8, 76.2 (0.3)
at epsilon 3, 89.8 (0.1) without privacy; SVM 91.2.

    JAXOPS_DATA_DIR=DATA python -m experiments.private_intents --seeds 3
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

import jaxops as jo
from experiments import common, intents
from jaxops import privacy, tabular, text
from jaxops.trust import report

PUBLISHED = {
    "accuracy_eps8": "no publication known; 0.9117 without privacy (linear SVM, this run)",
}
DELTA = 1e-5


class Plan(NamedTuple):
    """How one classifier is trained."""

    epsilon: float | None
    """`None`: without clips and noise"""
    steps: int
    learning_rate: float
    clip: float = 0.0


PLANS = {
    "eps8": Plan(8.0, 80, 320.0, 0.5),
    "eps3": Plan(3.0, 80, 320.0, 0.25),
    "inf": Plan(None, 100, 320.0),
}


@dataclass(frozen=True)
class Settings(common.Settings):
    """The recipe."""

    features: int = 2048
    ema: float = 0.9
    validate: bool = False
    """learn from four fifths of the train rows, look at the others instead of at the test set"""


class Folded:
    """Texts as `features` numbers: tf-idf of n-grams, with the idf of public texts, and signs."""

    def __init__(self, public: np.ndarray, features: int) -> None:
        self.read = text.NGrams(context=2048, vocabulary=2**18)  # cuts no text
        self.idf = np.ones(self.read.vocabulary)
        seen = self._sparse(public).sum(0)
        self.idf = np.log((1 + len(public)) / (1 + np.asarray(seen)[0])) + 1
        draw, n = np.random.default_rng(0), np.arange(len(self.idf))
        signs, places = draw.choice([-1.0, 1.0], len(n)), draw.integers(0, features, len(n))
        self.fold = sparse.csr_matrix((signs, (n, places)), (len(n), features))

    def _sparse(self, texts: np.ndarray) -> sparse.csr_matrix:
        tokens = self.read(texts)["tokens"]
        row, place = np.nonzero(tokens)
        at = tokens[row, place]
        return sparse.csr_matrix((self.idf[at], (row, at)), (len(tokens), len(self.idf)))

    def __call__(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The columns `features` (N, features), of norm 1, and `label`."""
        x = (self._sparse(rows["text"]) @ self.fold).toarray().astype(np.float32)
        return {"features": x / np.linalg.norm(x, axis=1, keepdims=True), "label": rows["label"]}


@functools.lru_cache(maxsize=1)
def read(settings: Settings) -> tuple[intents.Questions, dict, dict]:
    """The questions, and the features of those to learn from and of those to look at."""
    data, public = (intents.load(name, settings.smoke) for name in ("banking77", "clinc150"))
    held_out = data.test
    if settings.validate:
        data = data.split(validation=0.2, stratify="label", seed=0)
        held_out = data.validation
    folded = Folded(
        np.concatenate([rows["text"] for rows in public.splits.values()]), settings.features
    )
    questions = intents.Questions(data.train, held_out, None, {}, data.classes)
    return questions, folded(data.train), folded(held_out)


def train(
    plan: Plan, settings: Settings, task: jo.Task, rows: dict, seed: int, folder: Path
) -> tuple[jo.TrainState, float]:
    """The state of one classifier, and its noise multiplier."""
    folder.mkdir(exist_ok=True)
    log = common.Log(folder, resume=False)
    sgd = jo.optim.sgd(plan.learning_rate)
    how = {
        "optimizer": jo.optim.chain(sgd, jo.optim.ema(settings.ema)),
        "batch_size": len(rows["label"]),
        "steps": 2 if settings.smoke else plan.steps,
        "seed": seed,
        "reports": log,
        "progress": False,
    }
    if plan.epsilon is None:
        state, noise = jo.fit(task, rows, **how), 0.0
    else:
        state, promise = privacy.fit(
            task, rows, epsilon=plan.epsilon, delta=DELTA, clip=plan.clip, **how
        )
        noise = promise.noise_multiplier
    report.plot_curves(log.records, folder / "curves.png")
    return state, noise


def run(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train at each epsilon, look at the held-out rows once."""
    questions, rows, held_out = read(settings)
    model = tabular.MLP((), outputs=len(questions.classes))
    task = tabular.classifier(model, settings.features, questions.classes)
    values: dict[str, float] = {}
    for name, plan in PLANS.items():
        state, noise = train(plan, settings, task, rows, seed, folder / name)
        accuracy = jo.evaluate(task, jo.optim.averaged(state), held_out)["accuracy"]
        common.say(f"seed {seed}, {name}: accuracy {accuracy:.4f}, noise {noise:.3f}")
        values |= {f"accuracy_{name}": accuracy, f"noise_{name}": noise}
    if seed == 0:  # it draws nothing at random
        scores = intents.support_vectors(questions)["held_out"]
        values["accuracy_svm"] = float((scores.argmax(1) == held_out["label"]).mean())
    return values


if __name__ == "__main__":
    common.experiment("private_intents", Settings, run, PUBLISHED)
