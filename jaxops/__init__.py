"""A JAX library of the models that a product team runs on: pure steps, exact resume, checked data.

Every name is imported when it is first used. This includes the rooms, such as `jaxops.vision`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxops._version import __version__ as __version__

if TYPE_CHECKING:
    from jaxops import data, devices, losses, metrics, nn, optim
    from jaxops.devices.plans import Plan
    from jaxops.model.export import export
    from jaxops.model.files import load, save
    from jaxops.model.finished import Model
    from jaxops.model.predictors import predictor
    from jaxops.nnx import from_nnx
    from jaxops.state import TrainState, init_state
    from jaxops.step import eval_step, many_steps, pmap_train_step, train_step
    from jaxops.task import Column, Out, Task, recorded, row_weights, supervised
    from jaxops.train import clock, tune
    from jaxops.train.cache import compilation_cache
    from jaxops.train.checkpoint import Checkpointer
    from jaxops.train.clock import Clock
    from jaxops.train.evaluation import evaluate, predict
    from jaxops.train.loop import fit
    from jaxops.train.settings import Checkpoints, EarlyStopping, Reports
    from jaxops.train.signals import PREEMPTED
    from jaxops.train.size import Size, size
    from jaxops.transforms import ensemble, gathered, monte_carlo, remat, stack
    from jaxops.trust import report

# The same names for the interpreter: those of each module, and modules that have another path.
_NAMES = {
    "devices.plans": ("Plan",),
    "model.export": ("export",),
    "model.files": ("load", "save"),
    "model.finished": ("Model",),
    "model.predictors": ("predictor",),
    "nnx": ("from_nnx",),
    "state": ("TrainState", "init_state"),
    "step": ("eval_step", "many_steps", "pmap_train_step", "train_step"),
    "task": ("Column", "Out", "Task", "recorded", "row_weights", "supervised"),
    "train.cache": ("compilation_cache",),
    "train.checkpoint": ("Checkpointer",),
    "train.clock": ("Clock",),
    "train.evaluation": ("evaluate", "predict"),
    "train.loop": ("fit",),
    "train.settings": ("Checkpoints", "EarlyStopping", "Reports"),
    "train.signals": ("PREEMPTED",),
    "train.size": ("Size", "size"),
    "transforms": ("ensemble", "gathered", "monte_carlo", "remat", "stack"),
}
_MODULES = {"clock": "train.clock", "report": "trust.report", "tune": "train.tune"}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "PREEMPTED",
    "Checkpointer",
    "Checkpoints",
    "Clock",
    "Column",
    "EarlyStopping",
    "Model",
    "Out",
    "Plan",
    "Reports",
    "Size",
    "Task",
    "TrainState",
    "clock",
    "compilation_cache",
    "data",
    "devices",
    "ensemble",
    "eval_step",
    "evaluate",
    "export",
    "fit",
    "from_nnx",
    "gathered",
    "init_state",
    "load",
    "losses",
    "many_steps",
    "metrics",
    "monte_carlo",
    "nn",
    "optim",
    "pmap_train_step",
    "predict",
    "predictor",
    "recorded",
    "remat",
    "report",
    "row_weights",
    "save",
    "size",
    "stack",
    "supervised",
    "train_step",
    "tune",
]

if not TYPE_CHECKING:  # with __getattr__ a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            value = getattr(importlib.import_module(f"jaxops.{_MODULE_OF[name]}"), name)
            globals()[name] = value
            return value
        module = f"jaxops.{_MODULES.get(name, name)}"
        try:
            return globals().setdefault(name, importlib.import_module(module))
        except ModuleNotFoundError as error:
            if error.name != module:  # the module exists, and a package that it needs does not
                raise
        raise AttributeError(f"module 'jaxops' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
