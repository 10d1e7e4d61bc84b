"""Flax modules for forecasting, their inputs and their outputs."""
