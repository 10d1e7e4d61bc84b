"""The models a product team runs on, in JAX: pure steps, exact resume, numbers to trust."""

from jaxops import data, devices, losses, metrics, nn, optim
from jaxops._version import __version__ as __version__
from jaxops.devices.plans import Plan
from jaxops.model.files import Model, load, save
from jaxops.model.predictors import predictor
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
    "fit",
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
