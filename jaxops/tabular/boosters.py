"""The gradient-boosted trees of LightGBM, XGBoost and CatBoost.

A model file holds them in the library's own format, which has no code in it; to predict, the
library has to be installed.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxops._optional import require
from jaxops.tabular.data import of_classes
from jaxops.tabular.trees import PATIENCE, Goal, Rows, Trees
from jaxops.task import recorded

# other names that CatBoost has for the settings below
ALIASES = dict.fromkeys(("n_estimators", "num_boost_round", "num_trees"), "iterations") | {
    "eta": "learning_rate",
    "max_depth": "depth",
    "reg_lambda": "l2_leaf_reg",
    "border_count": "max_bin",
}


class LightGBM(Trees):
    """LightGBM's gradient-boosted trees; the extra `trees` installs it.

    The defaults are those that Holzmüller et al. 2024 tuned on other data sets, with a patience of
    100 rounds where they have 300.

    Args:
        **settings: of `lightgbm.LGBMClassifier` (and `LGBMRegressor`), and `max_bin`.

    References:
        Ke et al. 2017; Holzmüller et al. 2024, arXiv:2407.04491.

    >>> LightGBM(num_leaves=15)
    LightGBM(num_leaves=15)
    """

    own = frozenset({"objective", "random_state", "class_weight", "importance_type"})
    defaults = (
        {"learning_rate": 0.04, "num_leaves": 50, "min_child_samples": 40, "subsample": 0.75}
        | {"subsample_freq": 1, "min_child_weight": 1e-7, "n_estimators": 1000},
        {"learning_rate": 0.05, "num_leaves": 100, "min_child_samples": 3, "subsample": 0.7}
        | {"subsample_freq": 1, "min_child_weight": 1e-7, "n_estimators": 1000},
    )

    def classes(self) -> tuple[type, ...]:
        """The library's own classes, for classes and for numbers; the last has `max_bin`."""
        lightgbm = require("lightgbm", extra="trees")
        return lightgbm.LGBMClassifier, lightgbm.LGBMRegressor, _MaxBin

    def boosted(
        self, train: Rows, validation: Rows, goal: Goal, texts: Sequence[int], seed: int, end: float
    ) -> "Boosted":
        """The trees of one training; see `Trees.boosted`."""
        lightgbm = require("lightgbm", extra="trees")

        settings = self.given(goal)
        rounds = settings.pop("n_estimators")
        objectives = {"classes": "binary", "number": "regression", "counts": "poisson"}
        settings |= {"objective": objectives[goal.kind], "seed": seed, "verbosity": -1}
        if goal.classes > 2:
            settings |= {"objective": "multiclass", "num_class": goal.classes}
        losses: dict[str, dict[str, list[float]]] = {}

        def in_time(env: Any) -> None:
            if time.monotonic() > end:
                raise lightgbm.callback.EarlyStopException(env.iteration, [])

        in_time.order = 40  # type: ignore[attr-defined]  # after the losses are recorded
        sets = [
            lightgbm.Dataset(
                _missing(rows.x, len(texts)),
                rows.y,
                weight=rows.weights,
                categorical_feature=[*range(len(texts))],
            )
            for rows in (train, validation)
        ]
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        model = lightgbm.train(
            settings,
            sets[0],
            rounds,
            valid_sets=[sets[1]],
            callbacks=[lightgbm.record_evaluation(losses), stop, in_time],
        )
        text = model.model_to_string(num_iteration=_best(losses))
        return Boosted("lightgbm", np.frombuffer(text.encode(), np.uint8), len(texts))


class _MaxBin:
    """The setting that LightGBM's classes pass on without naming it."""

    def __init__(self, max_bin: int = 255) -> None:
        pass


class XGBoost(Trees):
    """XGBoost's gradient-boosted trees; the extra `trees` installs it.

    The defaults are those that Holzmüller et al. 2024 tuned on other data sets, with a patience of
    100 rounds where they have 300.

    Args:
        **settings: of `xgboost.XGBClassifier` (and `XGBRegressor`), such as `max_depth`.

    References:
        Chen and Guestrin 2016, arXiv:1603.02754; Holzmüller et al. 2024, arXiv:2407.04491.

    >>> XGBoost(max_depth=4)
    XGBoost(max_depth=4)
    """

    own = frozenset(
        {"objective", "random_state", "eval_metric", "early_stopping_rounds", "callbacks"}
        | {"enable_categorical", "feature_types", "missing", "booster", "verbosity"}
        | {"importance_type", "validate_parameters"}
    )
    defaults = (
        {"learning_rate": 0.08, "max_depth": 6, "min_child_weight": 5e-6, "subsample": 0.65}
        | {"colsample_bylevel": 0.9, "reg_lambda": 0.0, "n_estimators": 1000}
        | {"tree_method": "hist"},
        {"learning_rate": 0.05, "max_depth": 9, "min_child_weight": 2.0, "subsample": 0.7}
        | {"reg_lambda": 0.0, "n_estimators": 1000, "tree_method": "hist"},
    )

    def classes(self) -> tuple[type, ...]:
        """The library's own classes, for classes and for numbers."""
        xgboost = require("xgboost", extra="trees")
        return xgboost.XGBClassifier, xgboost.XGBRegressor

    def boosted(
        self, train: Rows, validation: Rows, goal: Goal, texts: Sequence[int], seed: int, end: float
    ) -> "Boosted":
        """The trees of one training; see `Trees.boosted`."""
        xgboost = require("xgboost", extra="trees")
        callback: Any = xgboost.callback.TrainingCallback

        settings = self.given(goal)
        rounds = settings.pop("n_estimators")
        objectives = {"classes": "binary:logistic", "number": "reg:squarederror"}
        settings |= {"objective": objectives.get(goal.kind, "count:poisson"), "seed": seed}
        if goal.classes > 2:
            settings |= {"objective": "multi:softprob", "num_class": goal.classes}
        losses: dict[str, dict[str, list[float]]] = {}

        class InTime(callback):
            def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
                return time.monotonic() > end

        sets = [_for_xgboost(rows, len(texts)) for rows in (train, validation)]
        model = xgboost.train(
            settings,
            sets[0],
            rounds,
            evals=[(sets[1], "validation")],
            early_stopping_rounds=PATIENCE,
            evals_result=losses,
            callbacks=[InTime()],
            verbose_eval=False,
        )
        data = model[: _best(losses)].save_raw("ubj")
        return Boosted("xgboost", np.frombuffer(bytes(data), np.uint8), len(texts))


class CatBoost(Trees):
    """CatBoost's gradient-boosted trees; the extra `trees` installs it.

    The defaults are those that Holzmüller et al. 2024 tuned on other data sets, with a patience of
    100 rounds where they have 300.

    Args:
        **settings: of `catboost.CatBoostClassifier` (and `CatBoostRegressor`), such as `depth`.

    References:
        Prokhorenkova et al. 2018, arXiv:1706.09516; Holzmüller et al. 2024, arXiv:2407.04491.

    >>> CatBoost(depth=4)
    CatBoost(depth=4)
    """

    own = frozenset(
        {"loss_function", "objective", "random_seed", "random_state", "eval_metric", "callback"}
        | {"cat_features", "early_stopping_rounds", "od_wait", "allow_writing_files", "verbose"}
        | {"logging_level", "silent", "use_best_model", "save_snapshot"}
    )
    defaults = (
        {"learning_rate": 0.08, "depth": 7, "random_strength": 0.8, "one_hot_max_size": 15}
        | {"leaf_estimation_iterations": 1, "l2_leaf_reg": 1e-5, "subsample": 0.9, "max_bin": 254}
        | {"boosting_type": "Plain", "bootstrap_type": "Bernoulli", "iterations": 1000},
        {"learning_rate": 0.09, "depth": 9, "random_strength": 0.0, "one_hot_max_size": 20}
        | {"leaf_estimation_iterations": 20, "l2_leaf_reg": 1e-5, "subsample": 0.9, "max_bin": 254}
        | {"boosting_type": "Plain", "bootstrap_type": "Bernoulli", "iterations": 1000},
    )

    def given(self, goal: Goal) -> dict[str, Any]:
        """The settings of the user, and the defaults of the others, also by their other names."""
        named = {ALIASES.get(name, name) for name in self.settings}
        defaults = self.defaults[0 if goal.classes else 1]
        return {name: v for name, v in defaults.items() if name not in named} | self.settings

    def classes(self) -> tuple[type, ...]:
        """The library's own classes, for classes and for numbers."""
        catboost = require("catboost", extra="trees")
        return catboost.CatBoostClassifier, catboost.CatBoostRegressor

    def boosted(
        self, train: Rows, validation: Rows, goal: Goal, texts: Sequence[int], seed: int, end: float
    ) -> "Boosted":
        """The trees of one training; see `Trees.boosted`."""
        model = self.classes()[0 if goal.classes else 1](
            **self.given(goal),
            **({"loss_function": "Poisson"} if goal.kind == "counts" else {}),
            random_seed=seed,
            early_stopping_rounds=PATIENCE,
            allow_writing_files=False,
            verbose=False,
        )

        class InTime:
            def after_iteration(self, info: Any) -> bool:
                return time.monotonic() < end

        sets = [_for_catboost(rows, len(texts)) for rows in (train, validation)]
        model.fit(sets[0], eval_set=sets[1], callbacks=[InTime()])
        with tempfile.TemporaryDirectory() as folder:
            model.save_model(f"{folder}/model.cbm")
            data = Path(folder, "model.cbm").read_bytes()
        return Boosted("catboost", np.frombuffer(data, np.uint8), len(texts))


@recorded
@dataclass(frozen=True, eq=False)
class Boosted:
    """The trees of LightGBM, XGBoost or CatBoost, which that library predicts with.

    Attributes:
        library: "lightgbm", "xgboost" or "catboost".
        data: uint8 (bytes,), the model in the library's own format, which has no code in it.
        texts: how many of the first columns are numbers of texts.
    """

    library: str
    data: np.ndarray
    texts: int

    def predict(self, x: np.ndarray, kind: str) -> np.ndarray:
        """Probabilities (N, classes), or numbers (N,), of rows (N, d).

        Args:
            x: see `trees.matrix`.
            kind: "classes", "number" or "counts".
        """
        rows = Rows(x, np.zeros(0), None)
        outputs = _PREDICT[self.library](self._model, rows, self.texts, kind)
        return of_classes(outputs) if kind == "classes" else outputs

    @functools.cached_property
    def _model(self) -> Any:
        """The library's own model, read when it is first needed."""
        return _READ[self.library](self.data.tobytes())


def _read_lightgbm(data: bytes) -> Any:
    return require("lightgbm", extra="trees").Booster(model_str=data.decode())


def _read_xgboost(data: bytes) -> Any:
    model = require("xgboost", extra="trees").Booster()
    model.load_model(bytearray(data))
    return model


def _read_catboost(data: bytes) -> Any:
    return require("catboost", extra="trees").CatBoost().load_model(blob=data)


def _by_lightgbm(model: Any, rows: Rows, texts: int, kind: str) -> np.ndarray:
    return np.asarray(model.predict(_missing(rows.x, texts)))


def _by_xgboost(model: Any, rows: Rows, texts: int, kind: str) -> np.ndarray:
    return np.asarray(model.predict(_for_xgboost(rows, texts)))


def _by_catboost(model: Any, rows: Rows, texts: int, kind: str) -> np.ndarray:
    types = {"classes": "Probability", "number": "RawFormulaVal", "counts": "Exponent"}
    return np.asarray(model.predict(_for_catboost(rows, texts), prediction_type=types[kind]))


_READ: dict[str, Callable[[bytes], Any]] = {
    "lightgbm": _read_lightgbm,
    "xgboost": _read_xgboost,
    "catboost": _read_catboost,
}
_PREDICT: dict[str, Callable[[Any, Rows, int, str], np.ndarray]] = {
    "lightgbm": _by_lightgbm,
    "xgboost": _by_xgboost,
    "catboost": _by_catboost,
}


def _missing(x: np.ndarray, texts: int) -> np.ndarray:
    """The rows with NaN where a text is none of the train rows."""
    return np.where((x < 0) & (np.arange(x.shape[1]) < texts), np.float32(np.nan), x)


def _for_xgboost(rows: Rows, texts: int) -> Any:
    xgboost = require("xgboost", extra="trees")

    x = _missing(rows.x, texts)
    kinds = ["c"] * texts + ["q"] * (x.shape[1] - texts)
    label = rows.y if len(rows.y) else None
    return xgboost.DMatrix(
        x, label, weight=rows.weights, feature_types=kinds, enable_categorical=True
    )


def _for_catboost(rows: Rows, texts: int) -> Any:
    pd, catboost = require("pandas", extra="data"), require("catboost", extra="trees")

    columns = {
        str(i): column.astype(np.int64) if i < texts else column
        for i, column in enumerate(rows.x.T)
    }
    label = rows.y if len(rows.y) else None
    return catboost.Pool(
        pd.DataFrame(columns), label, weight=rows.weights, cat_features=[*range(texts)]
    )


def _best(losses: dict[str, dict[str, list[float]]]) -> int:
    """How many rounds have the least validation loss."""
    ((metric,),) = (tuple(one.values()) for one in losses.values())
    return int(np.argmin(metric)) + 1
