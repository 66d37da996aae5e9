"""Results that several tests look at."""

import numpy as np
import pytest

from every_result import make_results


@pytest.fixture(scope="session")
def results():
    return make_results(np.asarray)
