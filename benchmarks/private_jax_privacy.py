"""JAX-Privacy's side of `benchmarks.private`: its clipped gradient of jaxops's loss."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax_privacy
import optax

from benchmarks import private_jax


def make(form: str, folder: str, started: float) -> private_jax.Step:
    """The object that answers the commands; the form is "vmap", the only one it has."""
    return Step(form, Path(folder))


class Step(private_jax.Step):
    """One compiled step of SGD with its clipping and its noise."""

    def compiled(self, task: Any, optimizer: Any) -> Any:
        """The step; its state is `(parameters, optimizer state, noise state)`."""
        params, extra = self.state.params, self.state.extra
        rows = len(self.batch["mask"])

        def loss(params: Any, batch: Any) -> Any:
            return task.loss(params, extra, batch, jax.random.key(0), True)[0]

        clipped = jax_privacy.clipped_grad(loss, l2_clip_norm=1.0, normalize_by=rows)
        noise = jax_privacy.noise_addition.gaussian_privatizer(
            stddev=clipped.sensitivity() if callable(clipped.sensitivity) else 1.0,
            prng_key=jax.random.key(1),
        )

        @functools.partial(jax.jit, donate_argnums=0)
        def step(state: Any, batch: Any) -> Any:
            params, kept, noise_state = state
            grads, noise_state = noise.update(clipped(params, batch), noise_state)
            updates, kept = optimizer.update(grads, kept, params)
            return (optax.apply_updates(params, updates), kept, noise_state), jnp.zeros(())

        self.state = (params, optimizer.init(params), noise.init(params))
        return step.lower(self.state, self.batch).compile()
