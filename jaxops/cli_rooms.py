"""The arguments of `jaxops fit` for each room."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxops._optional import require

if TYPE_CHECKING:
    import tyro
else:
    tyro = require("tyro", extra="cli")


@dataclass(frozen=True)
class Given:
    """The arguments that `fit` takes in every room."""

    data: tyro.conf.Positional[str]
    """the training data; see the room's `fit`"""
    out: Path
    """the model file to write"""
    method: str = ""
    """the model and its settings, such as "TabM(members=8)", or a function that returns several
    models, such as "short_list()" for tables; by default the room's `fit` chooses"""


@dataclass(frozen=True)
class Common(Given):
    """The arguments of all rooms that train networks."""

    budget: str | None = None
    """time after which training stops, by default 10min; of tables without a method it is spent on
    `short_list()`"""
    seed: int = 0
    """the seed of the choice of validation rows and of training"""


@dataclass(frozen=True)
class Tabular(Common):
    """Predict a column of a table: two classes, many, or a number; or several of two classes."""

    label: str | tuple[str, ...] = tyro.MISSING
    """the column to predict, or several"""
    id: str | None = None
    """the column of the rows' ids"""
    drop: tuple[str, ...] = ()
    """columns to leave out"""
    groups: str | None = None
    """a column, such as the customer, whose rows stay together"""
    time: str | None = None
    """a column of dates or numbers; the validation rows are the latest"""
    since: str | None = None
    """a column of dates; the days of other dates since this one are features too"""
    weights: str | None = None
    """the column of the rows' weights"""
    class_weights: Literal["balanced"] | dict[str, float] | None = None
    """what classes count in training: balanced, or names and weights such as yes 5 no 1"""
    folds: int | None = None
    """number of folds; one model is trained for each, and their mean is the answer"""
    text: tuple[str, ...] = ()
    """columns to read as text, also if their values look like numbers or dates"""
    target: str | None = None
    """what the label is: classes, number, counts, quantiles or zero_inflated"""
    levels: tuple[float, ...] = ()
    """the levels of the quantiles"""


@dataclass(frozen=True)
class Survival(Common):
    """Predict when each row has an event, from rows many of which have not had it yet."""

    time: str = tyro.MISSING
    """the column of times until the event, or until a row was last seen"""
    event: str = tyro.MISSING
    """the column that says whether the event was seen: 0 or 1, or the number of a cause"""
    entry: str | None = None
    """the column of the times at which the observation of a row began"""
    id: str | None = None
    """the column of the rows' ids"""
    drop: tuple[str, ...] = ()
    """columns to leave out"""
    text: tuple[str, ...] = ()
    """columns to read as text, also if their values look like numbers or dates"""


@dataclass(frozen=True)
class Text(Common):
    """Predict the label of a text."""

    text: str = tyro.MISSING
    """the column of texts"""
    label: str = tyro.MISSING
    """the column to predict"""


@dataclass(frozen=True)
class Vision(Common):
    """Predict the class of an image, from a folder of images for each class."""


@dataclass(frozen=True)
class Recommend(Common):
    """Recommend items to users, from a log of events."""

    user: str = tyro.MISSING
    """the column of users"""
    item: str = tyro.MISSING
    """the column of items"""
    time: str = tyro.MISSING
    """the column of times"""


@dataclass(frozen=True)
class Forecast(Common):
    """Forecast series."""

    id: str = tyro.MISSING
    """the column of the series' ids"""
    time: str = tyro.MISSING
    """the column of times"""
    value: str = tyro.MISSING
    """the column of values"""
    horizon: int = tyro.MISSING
    """number of steps to forecast"""


@dataclass(frozen=True)
class Customers(Given):
    """Predict from a log who is still a customer, how often each will buy and for how much."""

    horizon: float = tyro.MISSING
    """number of time units to predict ahead"""
    customer: str = tyro.MISSING
    """the column of customers"""
    time: str = tyro.MISSING
    """the column of times"""
    amount: str | None = None
    """the column of amounts"""
    cutoff: str | None = None
    """the last day to learn from, such as 2024-12-31, or a number where times are numbers"""
    unit: Literal["hour", "day", "week", "month", "year"] | None = None
    """the unit of time, by default days"""
    period: Literal["hour", "day", "week", "month", "year"] | None = None
    """the period within which a customer's rows count as one purchase, by default a day"""
    refunds: Literal["error", "drop", "net"] = "error"
    """what to do with negative amounts"""


@dataclass(frozen=True)
class Language(Common):
    """Write text as the given files do."""
