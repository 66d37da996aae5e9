"""What the tests of `estimate_gamma` share."""

import numpy as np
import pytest

from four_classes import labelled


@pytest.fixture
def data(rng):
    return {
        "train": labelled(rng, lead=7),
        "held_out": labelled(rng, 150),
        "unlabelled": np.concatenate([labelled(rng, 100)[0], labelled(rng, 100)[0][:, ::-1] + [3, 3, 0, 0]]),
        "seen_share": 0.4,
    }
