"""The models a product team runs on, in JAX."""
