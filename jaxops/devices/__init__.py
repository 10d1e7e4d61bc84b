"""Devices and how a state and a batch are placed on them."""

from jaxops.devices import hardware
from jaxops.devices.hosts import start
from jaxops.devices.plans import Plan, Rules, data_parallel, fsdp, plan, replicated, single, tensor

__all__ = [
    "Plan",
    "Rules",
    "data_parallel",
    "fsdp",
    "hardware",
    "plan",
    "replicated",
    "single",
    "start",
    "tensor",
]
