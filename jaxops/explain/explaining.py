"""`explain`: any method for rows of any model, with the completeness gap of each row."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxops.explain.activations import grad_cam
from jaxops.explain.games import Game, game, padded
from jaxops.explain.gradients import gradient, smooth_grad
from jaxops.explain.integrals import expected_gradients, input_x_gradient, integrated_gradients
from jaxops.explain.results import Attributions, Explanation
from jaxops.explain.shapley import exact_shapley, kernel_shap
from jaxops.model.finished import Model


def occlusion(game: Game) -> Attributions:
    """How much the number falls when a player is absent, each by itself.

    It works for every model. Of two players that say the same, neither has much value.

    Args:
        game: of any model. With a background it is the mean over its rows.

    References:
        Zeiler and Fergus 2014, arXiv:1311.2901.

    >>> from jaxops import Model, init_state, optim, tabular
    >>> from jaxops.explain import game
    >>> task, x = tabular.classifier(tabular.MLP(()), features=2), np.ones((1, 2), np.float32)
    >>> model = Model(task, init_state(task, optim.sgd(0.1), seed=0, batch={"features": x}))
    >>> kernel = np.asarray(model.state.params["logits"]["kernel"])[:, 0]
    >>> bool(np.allclose(occlusion(game(model, x, "1")).values[0], kernel, atol=1e-6))
    True
    """
    real = game.players.real
    rows, player = np.nonzero(real)
    values = np.zeros(real.shape)
    for part, count in padded({"row": rows, "player": player}, game.batch(len(rows))):
        row, out = part["row"], part["player"]
        left = np.arange(real.shape[1])[None] != out[:, None]
        fall = game.full[row] - game.value(row, left, game.background)
        values[row[:count], out[:count]] = fall[:count]
    return Attributions(values, np.full(len(values), np.nan))


METHODS: dict[str, Callable[..., Attributions]] = {
    "integrated_gradients": integrated_gradients,
    "expected_gradients": expected_gradients,
    "gradient": gradient,
    "input_x_gradient": input_x_gradient,
    "smooth_grad": smooth_grad,
    "occlusion": occlusion,
    "grad_cam": grad_cam,
    "shapley": exact_shapley,
    "kernel_shap": kernel_shap,
}
ALONE = ("gradient", "smooth_grad", "grad_cam")  # compare a row with no baseline


def explain(
    model: Model,
    rows: Any,
    method: str = "integrated_gradients",
    target: Any = None,
    *,
    scale: str | None = None,
    baseline: Any = None,
    patch: int = 1,
    **settings: Any,
) -> Explanation:
    """Why a model predicts what it does for some rows, in the user's terms.

    Each word of a text, pixel of an image, cell of a table, event of a history or lag of a series
    has a value: its part of the number that the model gives for the row.

    Args:
        model: a finished model of any room.
        rows: N rows as `model.predict` takes them.
        method: "integrated_gradients", "expected_gradients", "gradient", "input_x_gradient",
            "smooth_grad" or "grad_cam" for networks; "occlusion", "shapley" or "kernel_shap" for
            every model.
        target: the explained output: a class, an item or another output by its name or number, or
            one for each row. By default the likeliest class of each row, or the first output.
        scale: of classes "log-odds", in nats, or "probability"; see `game`.
        baseline: what an absent player is: one row, or several for the methods that average over
            them. By default the mean of numbers and no text, black pixels, and no word; see the
            table in docs/how_to/explain.md.
        patch: of an image, the side of the squares of pixels that are one player.
        **settings: of the method, such as `steps`.

    Returns:
        An `Explanation` with the completeness gap of each row; see `checked` for further tests.

    Raises:
        ValueError: an unknown method, target, scale or setting; a method that does not apply to the
            model, with those that do; a baseline for a method that has none; or rows that the model
            cannot read.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(40.0), "left": np.arange(40) // 20}
    >>> model = tabular.fit(table, tabular.MLP((4,)), label="left", epochs=1, progress=False)
    >>> told = explain(model, {"age": [30.0]}, target="1")
    >>> told.names.tolist(), told.cells.tolist(), told.unit(), bool(told.gap[0] < 1e-3)
    ([['age']], [[30.0]], 'log-odds of 1', True)
    """
    check_settings(method, settings)
    if baseline is not None and method in ALONE:
        raise ValueError(f"baseline must be None for {method}, which has none, got one")
    one = game(model, rows, target, scale, baseline, patch)
    return of_game(one, method, settings)


def check_settings(method: str, settings: dict[str, Any]) -> None:
    """Raise `ValueError` for an unknown method, or settings that it does not have."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    known = [*inspect.signature(METHODS[method]).parameters][1:]
    for name in settings:
        if name not in known:
            some = ", ".join(known) or "none"
            raise ValueError(f"settings of {method} must be among {some}, got {name!r}")


def of_game(game: Game, method: str, settings: dict[str, Any]) -> Explanation:
    """The explanation of a game by a method of `METHODS`."""
    players, found = game.players, METHODS[method](game, **settings)
    return Explanation(
        method,
        players.kind,
        game.scale,
        players.ids,
        np.array([players.outputs[i] for i in game.target], object),
        players.names,
        players.cells,
        players.real,
        found.values,
        game.full,
        found.baseline,
        np.abs(found.values.sum(1) - (game.full - found.baseline)),
        found.signed,
        players.shape,
        next(iter(players.columns.values())) if players.kind == "pixels" else None,
        found.settings,
    )
