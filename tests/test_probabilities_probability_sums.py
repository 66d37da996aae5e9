"""Bins of confidences."""

import numpy as np
import torch

from finecal.probabilities import bin_of, equal_mass_edges, equal_width_edges


def test_bins_are_open_below_and_closed_above():
    edges = equal_width_edges(4, torch.device("cpu"))
    values = torch.tensor([0, 0.1, 0.25, np.nextafter(0.25, 1), 0.5, 0.75, 0.8, 1], dtype=torch.float64)
    assert bin_of(values, edges).tolist() == [0, 0, 0, 1, 1, 2, 3, 3]


def test_bins_of_equal_mass():
    width = equal_width_edges(4, torch.device("cpu"))
    confidence = torch.arange(1, 9, dtype=torch.float64) / 10
    edges = equal_mass_edges(confidence.flip(0), width)
    assert torch.bincount(bin_of(confidence, edges)).tolist() == [2, 2, 2, 2]
    same = torch.full((8,), 0.5, dtype=torch.float64)
    assert torch.bincount(bin_of(same, equal_mass_edges(same, width)), minlength=4).tolist() == [8, 0, 0, 0]
    assert torch.equal(equal_mass_edges(confidence[:0], width), width)
