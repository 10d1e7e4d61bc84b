"""Flax modules, and the closed form of a regression in a finished model."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from jaxops.model.finished import Program
from jaxops.nn import Dense, Units
from jaxops.nn.units import units_of_widths
from jaxops.survival.aft import AFTFit
from jaxops.survival.cox import CoxFit
from jaxops.task import Batch, Column, recorded


class MLP(nn.Module):
    """A multi-layer perceptron: dense layers with ReLU and dropout.

    Attributes:
        widths: units of each hidden layer.
        outputs: number of outputs; a job sets it to what its method needs.
        dropout: probability of dropping a hidden unit in training.

    >>> MLP(outputs=3).init_with_output(jax.random.key(0), np.ones((2, 5), np.float32))[0].shape
    (2, 3)
    """

    widths: tuple[int, ...] = (64, 64)
    outputs: int = 1
    dropout: float = 0.3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Outputs (B, outputs) of features (B, d)."""
        dense = functools.partial(Dense, kernel_init=nn.initializers.he_normal())
        for i, width in enumerate(self.widths):
            x = nn.relu(dense(width, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{i}")(x)
        # curves start as equal for all rows
        return Dense(self.outputs, kernel_init=nn.initializers.zeros, name="outputs")(x)

    def units(self) -> list[Units]:
        """The hidden units."""
        return units_of_widths(self.widths, last="outputs")


@recorded
class Regression(NamedTuple):
    """Cox's or an accelerated failure time regression on the features of an encoder.

    Attributes:
        fit: the regression, in the user's units.
        places: (P,), which of the encoded features it has.
        scale: (P,), the unit of each encoded feature.
        centre: (P,), what the encoder took off, in the user's units.
        method: such as `Cox()`, by which `survival.update` fits it again; None in older files.

    >>> fit = CoxFit(["age"], np.array([0.5]), np.eye(1), np.array([3.0]), 0.0, 0.0, 9, 9, None)
    >>> one = Regression(fit, np.array([1]), np.array([2.0]), np.array([3.0]))
    >>> one.outputs({"features": np.array([[9.0, 1.0]])}, batch_size=8).tolist()
    [1.0]
    """

    fit: CoxFit | AFTFit
    places: np.ndarray
    scale: np.ndarray
    centre: np.ndarray
    method: Any = None

    @property
    def names(self) -> list[str]:
        """Of the P features."""
        own = self.fit.names
        return own if isinstance(self.fit, CoxFit) else own[1:-1]

    def design(self, features: Any) -> np.ndarray:
        """The regression's features (N, P), float64, in the user's units."""
        return np.asarray(features, np.float64)[:, self.places] * self.scale + self.centre

    def outputs(self, columns: Any, batch_size: int) -> np.ndarray:
        """The log hazards or locations (N,) of encoded columns."""
        x = self.design(columns["features"])
        return self.fit.log_hazard(x) if isinstance(self.fit, CoxFit) else self.fit.location(x)

    def exported(self) -> Program:
        """The log hazards or locations of rows (B, P) of its features, for `jaxops.export`."""
        fit = self.fit
        if isinstance(fit, CoxFit):
            slopes, start = fit.coefficients, (self.centre - fit.mean) @ fit.coefficients
        else:
            slopes = fit.coefficients[1:-1]
            start = fit.coefficients[0] + self.centre @ slopes

        def function(params: Any, columns: Batch) -> jax.Array:
            # no product of matrices, which an accelerator may round
            return params["start"] + (params["slopes"] * columns["features"]).sum(-1)

        params = {"slopes": (self.scale * slopes)[None], "start": start}
        columns = (Column("features", (len(slopes),)),)
        return Program(function, params, columns, {"places": self.places.tolist()})
