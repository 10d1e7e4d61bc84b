from dataclasses import replace

import numpy as np
import optax
import pytest

from jaxops import tabular
from jaxops.model.finished import Model
from jaxops.state import init_state
from jaxops.train.evaluation import predict

TABLE = {
    "age": np.array([20.0, 40.0, np.nan, 70.0, 31.0]),
    "plan": np.array(["a", "b", "a", "b", "a"]),
    "churn": np.array(["No", "Yes", "No", "Yes", "No"]),
}
ENCODER = tabular.fit_encoder(TABLE, label="churn")
TASK = tabular.classifier(tabular.MLP((4,)), len(ENCODER.names), tuple(ENCODER.classes))


@pytest.fixture(scope="module")
def model():
    state = init_state(TASK, optax.sgd(0.1), 0, tabular.encode(ENCODER, TABLE))
    return Model(TASK, state, tabular.TableReader(ENCODER))


def test_probability_and_label_of_raw_rows(model):
    raw = {name: TABLE[name] for name in ("age", "plan")}
    scored = tabular.classify(model, raw)
    want = predict(TASK, model.state, tabular.encode(ENCODER, TABLE))
    np.testing.assert_array_equal(scored.probabilities[:, 1], want)
    assert scored.labels.tolist() == ["Yes" if p >= 0.5 else "No" for p in want]
    assert set(scored.labels) == {"Yes", "No"}


def test_the_threshold_is_met_by_equality(model):
    probabilities = tabular.classify(model, TABLE).probabilities[:, 1]
    middle = float(np.sort(probabilities)[2])
    labels = tabular.classify(model, TABLE, threshold=middle).labels
    assert labels.tolist() == ["Yes" if p >= middle else "No" for p in probabilities]
    assert (labels == "Yes").sum() == (probabilities >= middle).sum() >= 3


def test_refuses(model):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 50"):
        tabular.classify(model, TABLE, threshold=50)
    with pytest.raises(ValueError, match="plan"):
        tabular.classify(model, {"age": TABLE["age"]})
    other = tabular.fit_encoder({"age": TABLE["age"]})
    with pytest.raises(ValueError, match="features"):
        tabular.classify(replace(model, reader=tabular.TableReader(other)), TABLE)
