"""jaxops and PyTorch measured in turns: `python -m benchmarks.run --help`."""
