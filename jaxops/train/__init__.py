"""Training, evaluation and prediction: the loop, its checkpoints and its measurements."""
