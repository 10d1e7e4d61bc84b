"""The program `run.py` of an export, in modules that `jaxops.export` joins; see `exported.run`.

They import the standard library, NumPy, SciPy, JAX and each other; `jaxops.export` leaves out the
imports of each other.
"""
