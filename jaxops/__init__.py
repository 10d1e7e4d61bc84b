"""The models a product team runs on, in JAX: pure steps, exact resume, numbers to trust."""

from jaxops import clock, data, hardware, losses, metrics, optim, parallel, report, search
from jaxops.cache import compilation_cache
from jaxops.checkpoint import Checkpointer
from jaxops.clock import Clock
from jaxops.ensemble import ensemble, stack
from jaxops.loop import evaluate, fit, predict
from jaxops.model_file import Model, load, save
from jaxops.monte_carlo import monte_carlo
from jaxops.parallel import Plan
from jaxops.predictor import predictor
from jaxops.run import EarlyStopping
from jaxops.signals import PREEMPTED
from jaxops.size import Size, size
from jaxops.state import TrainState, init_state
from jaxops.step import eval_step, many_steps, train_step
from jaxops.task import Column, Out, Task, recorded, remat, row_weights, supervised

__version__ = "0.1.0"
__all__ = [
    "PREEMPTED",
    "Checkpointer",
    "Clock",
    "Column",
    "EarlyStopping",
    "Model",
    "Out",
    "Plan",
    "Size",
    "Task",
    "TrainState",
    "clock",
    "compilation_cache",
    "data",
    "ensemble",
    "eval_step",
    "evaluate",
    "fit",
    "hardware",
    "init_state",
    "load",
    "losses",
    "many_steps",
    "metrics",
    "monte_carlo",
    "optim",
    "parallel",
    "predict",
    "predictor",
    "recorded",
    "remat",
    "report",
    "row_weights",
    "save",
    "search",
    "size",
    "stack",
    "supervised",
    "train_step",
]
