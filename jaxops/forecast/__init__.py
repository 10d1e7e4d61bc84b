"""Forecasting: from a table of series to quantiles, for any series."""
