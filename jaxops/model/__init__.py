"""Finished models: their files, compiled predictors, and exact top-k."""
