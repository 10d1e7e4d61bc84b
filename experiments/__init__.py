"""Experiments: one file each, run as `python -m experiments.NAME`; `common` is what they share."""
