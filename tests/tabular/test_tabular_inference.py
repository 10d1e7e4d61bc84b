import numpy as np
import optax
import pytest

from jaxops import tabular
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
def state():
    return init_state(TASK, optax.sgd(0.1), 0, tabular.encode(ENCODER, TABLE))


def test_probability_and_label_of_raw_rows(state):
    raw = {name: TABLE[name] for name in ("age", "plan")}
    scored = tabular.classify(TASK, state, ENCODER, raw)
    want = predict(TASK, state, tabular.encode(ENCODER, TABLE))
    np.testing.assert_array_equal(scored.probabilities, want)
    assert scored.labels.tolist() == ["Yes" if p >= 0.5 else "No" for p in want]
    assert set(scored.labels) == {"Yes", "No"}


def test_the_threshold_is_met_by_equality(state):
    probabilities = tabular.classify(TASK, state, ENCODER, TABLE).probabilities
    middle = float(np.sort(probabilities)[2])
    labels = tabular.classify(TASK, state, ENCODER, TABLE, threshold=middle).labels
    assert labels.tolist() == ["Yes" if p >= middle else "No" for p in probabilities]
    assert (labels == "Yes").sum() == (probabilities >= middle).sum() >= 3


def test_refuses(state):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 50"):
        tabular.classify(TASK, state, ENCODER, TABLE, threshold=50)
    with pytest.raises(ValueError, match="plan"):
        tabular.classify(TASK, state, ENCODER, {"age": TABLE["age"]})
    other = tabular.fit_encoder({"age": TABLE["age"]})
    with pytest.raises(ValueError, match="features"):
        tabular.classify(TASK, state, other, TABLE)
