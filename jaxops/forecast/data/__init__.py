"""Reads series from tables and makes windows, calendar covariates and scales from them."""
