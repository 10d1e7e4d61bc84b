"""Recommenders: sequence models, two towers, and closed forms."""
