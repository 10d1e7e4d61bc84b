"""What the tests of tables share."""

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """More threads of scikit-learn than cores that are free take many times as long."""
    pytest.importorskip("sklearn.ensemble")  # what is loaded later has its own number of threads
    with pytest.importorskip("threadpoolctl").threadpool_limits(1):
        yield
