"""One table of customers, and the model that is trained on it once."""

import numpy as np
import pytest

from jaxops import tabular


@pytest.fixture(scope="session")
def table():
    rng = np.random.default_rng(2)
    sex = rng.choice(["f", "m"], 800)
    age = rng.normal(40 + 6 * (sex == "m"), 10, 800)
    left = np.where(age + rng.normal(0, 8, 800) > 44, "yes", "no")
    who = np.arange(800) + 100
    paid = 2 * age + rng.normal(0, 10, 800)
    return {"who": who, "age": age, "sex": sex, "left": left, "paid": paid}


@pytest.fixture(scope="session")
def model(table):
    fitted = tabular.fit(
        table,
        tabular.MLP((8,)),
        label="left",
        id="who",
        drop=["sex", "paid"],
        epochs=5,
        progress=False,
    )
    assert fitted.reference is not None
    return fitted
