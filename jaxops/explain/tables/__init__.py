"""Questions about a model of tables, by its predictions alone; `jaxops.explain` has the names.

The model is a finished one, or any function from a frame of raw rows to one number a row.
"""
