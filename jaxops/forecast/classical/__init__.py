"""Classical methods and naive baselines, all series in one call."""
