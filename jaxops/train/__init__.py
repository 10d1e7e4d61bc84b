"""Training, evaluation and prediction: the loop, its checkpoints and what it measures."""
