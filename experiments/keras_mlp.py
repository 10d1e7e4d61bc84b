"""C02: the Keras model of article 001, 784-128-10 with softmax (101,770 parameters).

The article calls it a GPT; it is a perceptron for MNIST (the GPT is `shakespeare_gpt`). As written:
Dense 128 ReLU, Dense 10 softmax, Adam, categorical (one-hot) cross-entropy, five epochs in batches
of 32. Its figures, 90 % in training and 85 % in validation, cannot come from this code, and it has
no validation data. Pixels are divided by 255. The cross-entropy with integer labels used here
equals the one-hot cross-entropy of a softmax.

Expected: 97.6 % with a standard deviation of 0.1 over five seeds, in two seconds a seed on two CPU
cores.

    python -m experiments.keras_mlp [--seeds 5]
"""

from dataclasses import dataclass
from pathlib import Path

import jaxops as jo
from experiments import common
from jaxops import vision

PUBLISHED = {"accuracy": "0.85 (article 001, section 5.4)"}


@dataclass(frozen=True)
class Settings(common.Settings):
    """The article's settings."""

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3


def run(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train once, test once."""
    digits = common.mnist(settings.smoke)
    log = common.Log(folder, settings.resume)
    task = vision.classifier(vision.MLP((128,), initializer="keras"))
    # epsilon is Keras's, ten times optax's
    optimizer = jo.optim.adam(settings.learning_rate, eps=1e-7)
    state = jo.fit(
        task,
        digits.train,
        optimizer=optimizer,
        batch_size=settings.batch_size,
        epochs=1 if settings.smoke else settings.epochs,
        seed=seed,
        checkpoints=folder / "checkpoints",
        reports=log,
    )
    values = common.look_at_test(task, state, digits.test, folder, log)
    print("the article's figures: 90 % in training, 85 % in validation")
    return values | common.speed(log, task, optimizer, state, digits.train, settings.batch_size)


if __name__ == "__main__":
    common.experiment("keras_mlp", Settings, run, PUBLISHED)
