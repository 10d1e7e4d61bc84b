"""Numbers to trust: intervals, comparisons, calibration, and the report of a run."""
