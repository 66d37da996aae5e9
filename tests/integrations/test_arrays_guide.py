"""The guide to libraries that give arrays: each block puts into the model what the estimate says."""

import arrays
import numpy as np
import pytest

from finecal._core.arrays import to_numpy

pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("library", arrays.LIBRARIES)
def test_block(library, tmp_path, monkeypatch):
    pytest.importorskip(arrays.LIBRARIES[library][1])
    monkeypatch.chdir(tmp_path)
    names = arrays.run(library)
    before, after, shift = (to_numpy(names[name]) for name in ("uncalibrated", "calibrated", "shift"))
    assert (shift[arrays.SEEN :] == shift.max()).all()
    assert (shift[: arrays.SEEN] == 0).all()
    expected = before + shift
    if library in ("Keras", "spaCy"):  # logarithms of probabilities
        expected = expected - np.log(np.exp(expected).sum(1, keepdims=True))
    chosen = expected > -15 if library == "spaCy" else np.ones_like(expected, bool)
    np.testing.assert_allclose(after[chosen], expected[chosen], rtol=0, atol=2e-4)
