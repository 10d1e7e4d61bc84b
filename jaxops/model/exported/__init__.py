"""The program `run.py` of an export, in modules that `jaxops.export` joins; see `exported.run`.

They import the standard library, NumPy, JAX and each other; `jaxops.export` leaves the imports of
each other out.
"""
