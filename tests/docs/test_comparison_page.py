"""The Python of the comparison runs, and scikit-learn's temperature comes behind gamma."""

import numpy as np
import pytest

import finecal
from pages import blocks


def test_python_on_the_comparison_runs(names):
    (block,) = blocks("docs/comparison.md", "python")
    exec(block, names)
    brought_back = names["brought_back"](names["test_logits"]).numpy()
    assert np.array_equal(names["probabilities"].argmax(1), brought_back.argmax(1))
    own = finecal.calibrators.fit_temperature(names["brought_back"](names["valid_logits"]), names["valid_labels"])
    assert names["probabilities"] == pytest.approx(
        own(names["brought_back"](names["test_logits"])).softmax(1).numpy(), abs=1e-3
    )
