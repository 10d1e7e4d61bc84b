"""A user's module, which no one has imported when the model file is read."""

import flax.linen as nn
import jax


class Own(nn.Module):
    """Two layers, with functions among the fields."""

    width: int = 4
    act: object = jax.nn.tanh
    kernel_init: object = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x):
        x = x.reshape(len(x), -1)
        x = self.act(nn.Dense(self.width, kernel_init=self.kernel_init, name="a")(x))
        return nn.Dense(3, name="b")(x)


class Around(nn.Module):
    """A user's module around another one."""

    inner: nn.Module
    act: object = jax.nn.tanh

    @nn.compact
    def __call__(self, x):
        return self.act(self.inner(x.reshape(len(x), -1)))


def activation(x):
    """A function of the user's own, which a file may not name."""
    return x * 2
