"""Samples and a classifier that several tests take."""

import numpy as np
import pytest

from animals import SEEN, draw, outgrown


@pytest.fixture
def data(rng):
    return draw(rng)


@pytest.fixture
def seen_data(data):
    X, y = data
    rows = np.isin(y, SEEN)
    return X[rows], y[rows]


@pytest.fixture
def base(data):
    return outgrown(*data)
