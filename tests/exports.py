"""Exports: models to export, and what runs without jaxops beside jaxops itself."""

import pickle
import subprocess
import sys
from functools import partial

import jax.numpy as jnp
import numpy as np
from small import filled

import jaxops as jo
from jaxops import forecast
from jaxops.forecast.data.scales import scaling
from jaxops.forecast.models.inputs import Inputs
from jaxops.model.exported import run

CLEAN = """
import pickle, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"jaxops", "flax", "optax", "regex", "tokenizers", "pandas"}:
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
out = {}
for name, raw in pickle.load(open(sys.argv[1], "rb")).items():
    sys.path.insert(0, name)
    from run import load
    out[name] = load(name).predict(raw)
    del sys.path[0], sys.modules["run"]
assert not {"jaxops", "flax", "optax"} & sys.modules.keys()
pickle.dump(out, open(sys.argv[2], "wb"))
"""


def in_a_clean_process(folder, raw):
    """What the exports of a folder answer where jaxops, Flax, Optax and pandas are not there."""
    raw = {str(folder / name): given for name, given in raw.items()}
    (folder / "raw").write_bytes(pickle.dumps(raw))
    command = [sys.executable, "-I", "-c", CLEAN, f"{folder}/raw", f"{folder}/found"]
    subprocess.run(command, check=True, timeout=300, cwd=folder)
    found = pickle.loads((folder / "found").read_bytes())
    return {path.rpartition("/")[2]: answer for path, answer in found.items()}


def forecaster(output, kind="series", covariates=True, **settings):
    rng = np.random.default_rng(5)
    values = rng.gamma(2.0, size=(3, 40, 2)).astype(np.float32)
    more = {}
    if covariates:
        more = {
            "known": {"price": rng.normal(size=(3, 40)), "sale": rng.integers(0, 2, (3, 40))},
            "past": {"rain": rng.normal(size=(3, 40))},
            "static": {"size": [1.0, 2.0, 4.0]},
        }
    series = forecast.from_arrays(list("abc"), list(values), channels=("x", "y"), **more)
    made = scaling(series, kind, np.stack([series.offsets[:-1], series.offsets[1:]], 1))
    module = (
        forecast.TiDE(8, 4, output=output, width=8, temporal=4, encoder=1, decoder=1)
        if covariates
        else forecast.NLinear(8, 4, output=output)
    )
    windows = Inputs.of(jnp.ones((1, 8, 2)), 4)
    if covariates:
        shapes = (1, 8, 2), (1, 8, 1), (1, 12, 2), (1, 1)
        windows = Inputs(*map(jnp.ones, shapes))
    variables = filled(partial(module.init, train=False), windows)
    names = series.channels, series.known_names, series.past_names, series.static_names
    return series, forecast.Forecaster(module, variables, made, *names, "1", **settings)


def exported(model, folder, **options):
    return run.load(jo.export(model, folder, **options))


def assert_close(found, wanted, **names):
    """The answers by name, against a NamedTuple of jaxops with these other names."""
    given = wanted._asdict().items()
    fields = {name for name, value in given if value is not None and np.size(value)}
    left = fields - {names.get(name, name) for name in found}
    assert left <= {"times", "channels"}, left  # of a forecast, whose program reads no dates
    for name, value in found.items():
        want = getattr(wanted, names.get(name, name))
        if np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-6, err_msg=name)
        else:
            assert np.asarray(value, object).tolist() == np.asarray(want, object).tolist(), name
