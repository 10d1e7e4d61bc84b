"""Forecasting networks, their inputs and their outputs."""
