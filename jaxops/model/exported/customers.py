"""Customers at a cut-off, a row each, and what is expected of them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxops.model.exported.tables import Columns, by_name, column, ids_of, none_such, numbers


def read_customers(reader: Columns, raw: Any) -> tuple[np.ndarray, Columns]:
    """The ids of customers; frequency, monetary value and times, as their clocks show them."""
    raw, count = by_name(raw)
    ids = ids_of(raw["id"]) if "id" in raw else np.arange(count)
    names = ["frequency", "recency", "T", *["monetary_value"] * reader["amounts"]]
    known: Columns = {name: numbers(name, column(raw, name)) for name in names}
    check_customers(known)
    horizon = np.full(count, reader["horizon"])
    if "horizon" in raw:
        given = numbers("horizon", raw["horizon"])
        horizon = np.where(np.isnan(given), horizon, given)
    fine = (horizon > 0) & np.isfinite(horizon)
    none_such(~fine, horizon, "horizon must be finite and above 0")
    log_pace = np.full(count, -reader["log_unit"])
    for name, log_factor in reader["covariates"].items():
        given = numbers(name, column(raw, name))
        none_such(~np.isfinite(given), given, f"{name} must be finite")
        log_pace += given * log_factor
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite is refused by the program
        pace = np.exp(log_pace)
        times = {"recency": known["recency"], "T": known["T"], "horizon": horizon}
        known |= {name: time * pace for name, time in times.items()}
    return ids, known | {"frequency": known["frequency"].astype(np.int64)}


def of_customers(reader: Columns, ids: np.ndarray, outputs: Columns) -> Columns:
    """P(alive), P(buys again), and the expected purchases with their value."""
    names = ("alive", "returns", "purchases", "value")
    return {"ids": ids, **{name: outputs[name] for name in names if name in outputs}}


def check_customers(columns: Mapping[str, np.ndarray]) -> None:
    """Check that the columns can be those of customers; see `jaxops.customers.Summary`.

    Args:
        columns: (N,) each, `frequency`, `recency`, `T` and maybe `monetary_value`.

    Raises:
        ValueError: a row that cannot be; names column and row.

    >>> check_customers({"frequency": np.ones(1), "recency": np.array([9.0]), "T": np.array([3.0])})
    Traceback (most recent call last):
    ValueError: recency must be in [0, T], got 9.0 in row 0 (counted from 0; 1 such rows)
    """
    wanted = {
        "frequency": (lambda x: (x >= 0) & (x == np.round(x)), "whole numbers of at least 0"),
        "T": (lambda x: x >= 0, "at least 0"),
        "recency": (lambda x: (x >= 0) & (x <= columns["T"]), "in [0, T]"),
        "monetary_value": (lambda x: x >= 0, "at least 0"),
    }
    for name, (fine, text) in wanted.items():
        if name in columns:
            value = columns[name]
            none_such(~(np.isfinite(value) & fine(value)), value, f"{name} must be {text}")
    recency = columns["recency"]
    late = (columns["frequency"] == 0) & (recency > 0)
    none_such(late, recency, "recency must be 0 where frequency is 0")
