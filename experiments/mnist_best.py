"""The best MNIST accuracy in minutes on two CPU cores, with what the articles name to regularise.

Three stages of convolution, max-pool, batch norm and ReLU (`vision.ConvNet`, 104,650 parameters);
rotation, shift and scale drawn anew for each image inside the step; AdamW under one cosine cycle
with warm-up; and the moving average of the parameters (EMA). `--members 3` averages the
probabilities of three models. The recipe was chosen by validation on 10,000 train rows, as
`--validate` does.

The figure to beat is that of Flax's own MNIST example, 99.17 % in ten epochs. Expected: 99.57 %
with a standard deviation of 0.05 over three seeds, in under three minutes a seed on two CPU cores.

    python -m experiments.mnist_best [--seeds 3]
"""

from dataclasses import dataclass
from pathlib import Path

import jaxops as jo
from experiments import common
from jaxops import vision
from jaxops.data import augment

PUBLISHED = {"accuracy": "0.9917 (the MNIST example of Flax, 10 epochs)"}


@dataclass(frozen=True)
class Settings(common.Settings):
    """The recipe."""

    epochs: int = 12
    batch_size: int = 128
    learning_rate: float = 1e-2
    weight_decay: float = 1e-2
    ema: float = 0.998
    members: int = 1
    """networks whose probabilities are averaged"""
    validate: bool = False
    """learn from 50,000 rows and look at the other 10,000, instead of at the test set"""


def run(settings: Settings, seed: int, folder: Path) -> dict[str, float]:
    """Train the members, test their mean once."""
    digits = common.mnist(settings.smoke, validation=1 / 6 if settings.validate else 0.0)
    held_out = digits.validation if settings.validate else digits.test
    log = common.Log(folder, settings.resume)
    task = vision.classifier(
        vision.ConvNet((8, 16)) if settings.smoke else vision.ConvNet(),
        mean=0.1307,
        std=0.3081,
        augment=augment.Affine(degrees=10, shift=2, scale=0.1),
    )
    epochs = 1 if settings.smoke else settings.epochs
    steps = epochs * -(-len(digits.train["label"]) // settings.batch_size)
    rate = jo.optim.cosine(settings.learning_rate, steps, warmup=steps // 5)
    optimizer = jo.optim.chain(
        jo.optim.adamw(rate, b2=0.99, weight_decay=settings.weight_decay, mask=jo.optim.decay_mask),
        jo.optim.ema(settings.ema),
    )
    members = [
        jo.fit(
            task,
            digits.train,
            optimizer=optimizer,
            batch_size=settings.batch_size,
            epochs=epochs,
            seed=seed * settings.members + member,
            checkpoints=folder / ("checkpoints" if member == 0 else f"checkpoints-{member}"),
            reports=jo.Reports(log if member == 0 else ()),
        )
        for member in range(settings.members)
    ]
    values = common.speed(log, task, optimizer, members[0], digits.train, settings.batch_size)
    best, state = task, jo.optim.averaged(members[0])
    if settings.members > 1:
        best = jo.ensemble(task, members=settings.members)
        state = jo.stack([jo.optim.averaged(member) for member in members])
    return common.look_at_test(best, state, held_out, folder, log) | values


if __name__ == "__main__":
    common.experiment("mnist_best", Settings, run, PUBLISHED)
