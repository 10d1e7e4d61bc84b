import pytest

from benchmarks import forecasting_data, jax_forecasting
from benchmarks.forecasting_data import Size

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("network", forecasting_data.SIZES)
def test_both_sides_compute_the_same_loss(tmp_path, network):
    from benchmarks import torch_forecasting

    size = Size(network, 40, horizon=6, batch=8, train=120)
    forecasting_data.write(tmp_path, forecasting_data.generated(200), size)
    ours = jax_forecasting.make("train float32", tmp_path, 0.0)
    ours.weights()
    side = torch_forecasting.make("train careful", tmp_path, 0.0)
    assert side.check(windows=30) == pytest.approx(ours.check(windows=30), rel=1e-5)
