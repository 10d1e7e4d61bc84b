"""Short calls: runs of other lengths share a compiled program."""

import pytest

from jaxops.train import pace


@pytest.fixture(autouse=True, scope="package")
def short_calls():
    """A program is compiled for the most steps that a call makes, which is that of the run.

    How the steps are split into calls changes no result; `test_loop.py` shows it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "MAX_STEPS_PER_CALL", 4)
        yield
