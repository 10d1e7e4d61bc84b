"""What the command line's `fit` takes, room by room."""

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
    """What every room's fit takes."""

    data: tyro.conf.Positional[str]
    """what to learn from; see the room's `fit`"""
    out: Path
    """the model file to write"""
    method: str = ""
    """the model and its settings, such as "TabM(members=8)", or what gives several, such as
    "short_list()" of tables; by default the room's recipe"""


@dataclass(frozen=True)
class Common(Given):
    """What every room's training takes."""

    budget: str | None = None
    """time after which training stops, by default 10min; of tables without a method it is spent on
    `short_list()`"""
    seed: int = 0
    """of the validation rows and of training"""


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
    """train once for each of so many folds, and answer with the mean"""
    text: tuple[str, ...] = ()
    """columns of text, though their values may be numbers or dates"""
    target: str | None = None
    """what the label is: classes, number, counts, quantiles or zero_inflated"""
    levels: tuple[float, ...] = ()
    """of the quantiles"""


@dataclass(frozen=True)
class Survival(Common):
    """Predict when rows have an event that many have not had yet."""

    time: str = tyro.MISSING
    """the column of times until the event, or until a row was last seen"""
    event: str = tyro.MISSING
    """the column that says whether the event was seen: 0 or 1, or the number of a cause"""
    entry: str | None = None
    """the column of times from which on a row was watched"""
    id: str | None = None
    """the column of the rows' ids"""
    drop: tuple[str, ...] = ()
    """columns to leave out"""
    text: tuple[str, ...] = ()
    """columns of text, though their values may be numbers or dates"""


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
    """Tell who is still a customer, how often each will buy and what they bring, from a log."""

    horizon: float = tyro.MISSING
    """units of time ahead"""
    customer: str = tyro.MISSING
    """the column of customers"""
    time: str = tyro.MISSING
    """the column of times"""
    amount: str | None = None
    """the column of amounts"""
    cutoff: str | None = None
    """the last day to learn from, such as 2024-12-31, or a number where times are numbers"""
    unit: Literal["hour", "day", "week", "month", "year"] | None = None
    """of time, by default days"""
    period: Literal["hour", "day", "week", "month", "year"] | None = None
    """within which a customer's rows are one purchase, by default a day"""
    refunds: Literal["error", "drop", "net"] = "error"
    """what to do with negative amounts"""


@dataclass(frozen=True)
class Language(Common):
    """Write text as the given files do."""
