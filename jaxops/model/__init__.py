"""A finished model: its file, its compiled predictor, exact top-k."""
