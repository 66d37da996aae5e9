import math

import numpy as np
import torch

from finecal.logits.reductions import largest_two


def test_masked_values_do_not_count():
    values = torch.tensor([[3.0, 1.0, 2.0], [3.0, -math.inf, -math.inf], [-math.inf] * 3])
    found = largest_two(values)
    assert found.largest.tolist() == [3.0, 3.0, -math.inf]
    assert found.spacing.tolist() == [1.0, 0.0, 0.0]
    assert found.number.tolist() == [3.0, 1.0, 0.0]


def test_one_value_has_no_next():
    found = largest_two(torch.tensor([[3.0], [-1.0]]))
    assert found.spacing.tolist() == [0.0, 0.0]


def test_spacing_says_how_far_the_maximum_moves(rng):
    """With exponential values the mean rise and fall are exactly what the docstring says."""
    values = rng.exponential(size=(200_000, 6))
    found = largest_two(torch.tensor(values[:, :5]))
    rise = np.maximum(values.max(1) - values[:, :5].max(1), 0)
    fall = values[:, :5].max(1) - values[:, :4].max(1)
    for moves, expected in ((rise, found.spacing / 6), (fall, found.spacing / 5)):
        error = 4 * moves.std() / math.sqrt(len(moves))
        assert abs(moves.mean() - float(expected.mean())) < 2 * error
