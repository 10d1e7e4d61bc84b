"""TracIn against loops over rows with jax.grad, in closed form, and on labels that are wrong."""

import jax
import numpy as np
import pytest
from made_tables import table, untrained
from sklearn.metrics import roc_auc_score

import jaxops as jo
from jaxops import explain, tabular

TASK = tabular.classifier(tabular.MLP((5,), outputs=3), 3, ("a", "b", "c"))


def columns(count, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return {"features": x, "label": x.argmax(1).astype(np.int32)}


def state(seed):
    return jo.init_state(TASK, jo.optim.adam(0.1), seed=seed, batch=columns(1))


@jax.jit
def loss(params, row):
    return TASK.loss(params, {}, row, jax.random.key(0), False)[0]


gradient_of = jax.jit(jax.grad(loss))


def one_row(rows, place):
    return {name: x[place : place + 1] for name, x in rows.items()}


def loops(states, rates, train, queries, part):
    """A loop over states and rows, the gradient of one row at a time."""

    def gradient(state, rows, place):
        leaves = jax.tree_util.tree_leaves_with_path(
            gradient_of(state.params, one_row(rows, place))
        )
        return np.concatenate([
            np.asarray(leaf, np.float64).ravel()
            for path, leaf in leaves if part in jax.tree_util.keystr(path)
        ])  # fmt: skip

    total = 0
    for one, rate in zip(states, rates, strict=True):
        a, b = (
            np.stack([gradient(one, rows, i) for i in range(len(rows["label"]))])
            for rows in (queries, train)
        )
        total = total + rate * a @ b.T
    return total


@pytest.mark.parametrize("part", ["", "logits"])
def test_products_of_gradients_are_those_of_loops(part):
    train, queries, states = columns(11), columns(3, seed=1), [state(0), state(1)]
    want = loops(states, (0.1, 0.02), train, queries, part)
    found = explain.influence(
        TASK, train, queries, states=states, rates=[0.1, 0.02], params=part, batch_size=4
    )
    np.testing.assert_allclose(found, want, atol=1e-5)
    own = explain.self_influence(
        TASK, train, states=states, rates=[0.1, 0.02], params=part, batch_size=4
    )
    square = loops(states, (0.1, 0.02), train, train, part)
    np.testing.assert_allclose(own, square.diagonal(), atol=1e-5)


def test_a_step_on_a_row_lowers_a_query_s_loss_by_its_influence():
    """The first order of the change, by a small step of gradient descent itself."""
    train, queries, one, rate = columns(6), columns(2, seed=1), state(0), 1e-3
    found = explain.influence(TASK, train, queries, states=one, rates=[rate])

    before = [loss(one.params, one_row(queries, i)) for i in range(2)]
    for place in range(2):
        steps = gradient_of(one.params, one_row(train, place))
        after = jax.tree.map(lambda p, g: p - rate * g, one.params, steps)
        falls = [before[i] - loss(after, one_row(queries, i)) for i in range(2)]
        np.testing.assert_allclose(falls, found[:, place], atol=2e-5)


@pytest.mark.slow
def test_wrong_labels_have_the_largest_influence_on_themselves():
    """20 of 200 labels are wrong: self-influence ranks them first, as Pruthi et al. show."""
    train = columns(200)
    wrong = np.arange(0, 200, 10)
    train["label"][wrong] = (train["label"][wrong] + 1) % 3
    trained = jo.fit(TASK, train, optimizer=jo.optim.adam(1e-2), batch_size=50, epochs=15,
                     progress=False)  # fmt: skip
    own = explain.self_influence(TASK, train, states=trained)
    assert roc_auc_score(np.isin(np.arange(200), wrong), own) > 0.9
    # and a wrong label speaks against what its neighbours say
    found = explain.influence(TASK, train, columns(50, seed=2), states=trained)
    assert found[:, wrong].mean() < 0 < np.delete(found, wrong, 1).mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": "conv"}, r"params must match one of hidden_0/bias, .*, got 'conv'"),
        (
            {"rates": [1.0, 2.0]},
            "rates must be one for each of the states, at least one, got 2 rates",
        ),
        ({"states": []}, "rates must be one for each of the states"),
        (
            {"model": "a model"},
            "model must be a finished model or a task, whose loss has gradients, got",
        ),
        ({"train": {"features": np.ones((2, 3), np.float32)}}, "columns must include 'label'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_what_has_no_gradients_is_refused(options, message):
    given = {"model": TASK, "states": state(0), "train": columns(2), "queries": columns(2)}
    with pytest.raises(ValueError, match=message):
        explain.influence(**{**given, **options})


def test_a_loss_that_couples_rows_is_refused():
    with pytest.raises(ValueError, match="model must have a loss for each row by itself"):
        explain.self_influence(TASK._replace(coupled=True), columns(2), states=state(0))


def test_a_finished_model_reads_the_table():
    model, rows = untrained(), table()
    found = explain.influence(model, rows, {name: x[:2] for name, x in rows.items()})
    columns = model.reader.columns(rows, label=True)[1]
    two = {name: x[:2] for name, x in columns.items()}
    want = explain.influence(model.task, columns, two, states=model.state)
    assert found.shape == (2, 120) and np.array_equal(found, want)
    assert explain.self_influence(model, rows)[0] == pytest.approx(found[0, 0], rel=1e-5)
