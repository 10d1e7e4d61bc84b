"""C01: the MNIST model of article 000, 784-128-10 (101,770 parameters).

The article: PyTorch, Normalize(0.5, 0.5), batches of 64, Adam 1e-3, ten epochs, a report every 100
steps, "about 97 %" on the test set.

Expected: 97.2 % with a standard deviation of 0.2 over five seeds, in three seconds a seed on two
CPU cores.

    python -m experiments.mnist_mlp [--seeds 5]
"""

from dataclasses import dataclass
from pathlib import Path

import jaxops as jo
from experiments import common
from jaxops import vision

PUBLISHED = {"accuracy": "0.970 (article 000, section 5.4)"}


@dataclass(frozen=True)
class Settings(common.Settings):
    """The article's settings."""

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float = 1e-3


def run(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train once, test once."""
    digits = common.mnist(settings.smoke)
    log = common.Log(folder, settings.resume)
    task = vision.classifier(vision.MLP((128,), initializer="torch"), mean=0.5, std=0.5)

    steps_per_epoch = -(-len(digits.train["label"]) // settings.batch_size)

    def as_the_article_prints(record: dict) -> None:
        if record["split"] == "steps":
            epoch, step = divmod(record["step"], steps_per_epoch)
            common.say(f"[{epoch + 1},{step:5d}] loss: {record['loss']:.3f}")

    optimizer = jo.optim.adam(settings.learning_rate)
    state = jo.fit(
        task,
        digits.train,
        optimizer=optimizer,
        batch_size=settings.batch_size,
        epochs=1 if settings.smoke else settings.epochs,
        seed=seed,
        checkpoints=folder / "checkpoints",
        reports=jo.Reports([log, as_the_article_prints], every=100),
    )
    values = common.look_at_test(task, state, digits.test, folder, log)
    print("the article's test accuracy: 97.0 %")
    return values | common.speed(log, task, optimizer, state, digits.train, settings.batch_size)


if __name__ == "__main__":
    common.experiment("mnist_mlp", Settings, run, PUBLISHED)
