"""The same values as Captum's with the same weights.

`NUMBERS` were printed by this script, with captum 0.9.0 and torch 2.13.0 in float64:

SCRIPT
"""
