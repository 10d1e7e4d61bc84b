"""Trustworthy figures: intervals, comparisons, calibration, and the report of a run."""
