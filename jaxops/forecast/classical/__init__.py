"""Classical methods and naive baselines. Each forecasts all series in one call."""
