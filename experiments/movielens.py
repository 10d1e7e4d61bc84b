"""MovieLens 1M: the next of 3,706 films for 6,040 users, by the script of `beauty_sequences`.

It has not been run here: the log may not be redistributed (GroupLens's licence), so fetch it
yourself: `ratings.dat` of ml-1m.zip, or TFDS's `movielens/1m-ratings`, prepared in a format with
random access: `tfds.builder("movielens/1m-ratings", file_format="array_record")
.download_and_prepare()`. Every rating is an event, whatever its stars.

Published under this protocol (leave one out, ranked among all items not yet seen), HR@10 / NDCG@10:
SASRec with one negative 0.2500 / 0.1341, BERT4Rec 0.2843 / 0.1537, SASRec by cross-entropy 0.3152 /
0.1821 ("Turning Dross Into Gold Loss", Klenitskiy and Vasilev 2023, arXiv:2309.07602). Many ratings
of a user have the same second, and the published figures use the order of BERT4Rec's file: with the
order of `ratings.dat` the figures may differ.

    python -m experiments.movielens --file ratings.dat [--seeds 3]
    python -m experiments.movielens                      (TFDS)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jaxops as jo
from experiments import beauty_sequences, common
from jaxops import recommend as r

PUBLISHED = {
    "hr@10": "0.3152 (SASRec by cross-entropy)",
    "ndcg@10": "0.1821 (SASRec by cross-entropy)",
}


@dataclass(frozen=True)
class Settings(beauty_sequences.Settings):
    """Which log; the recipe is that of Beauty with longer histories."""

    file: Path | None = None
    """ratings.dat, or lines of `user item`; TFDS by default"""
    context: int = 200


def read(settings: Settings) -> r.Split:
    """The log, split."""
    if settings.smoke or (settings.file and settings.file.suffix != ".dat"):
        return beauty_sequences.read(settings)
    if settings.file:
        header = ("user", "item", "rating", "time")
        log = r.events(settings.file, header=header, separator="::")
    else:
        ratings = jo.data.Dataset.from_tfds("movielens/1m-ratings").splits["train"]
        names = {"user": "user_id", "item": "movie_id", "time": "timestamp"}
        log = r.events({name: ratings[column] for name, column in names.items()})
    print(f"data: {log.report}")
    return r.leave_one_out(log)


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """As Beauty's."""
    return beauty_sequences.compare(settings, read(settings), seed, folder)


if __name__ == "__main__":
    common.experiment("movielens", Settings, run, PUBLISHED)
