"""Results that several tests look at."""

import numpy as np
import pytest

from every_result import make_results


@pytest.fixture(scope="session")
def results():
    return make_results(np.asarray)


@pytest.fixture(params=["few classes", "many classes"])
def both_ways(request, monkeypatch):
    """Few classes take rivals, many take winners: what is said here of few has to hold for either."""
    if request.param == "many classes":
        monkeypatch.setattr("finecal._core.kernels._WIDE", 2)
