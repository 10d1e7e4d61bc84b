"""Flax modules that forecast, their inputs and their outputs."""
