"""What several tests of evaluation need."""

import pytest


@pytest.fixture(params=["few classes", "many classes"])
def both_ways(request, monkeypatch):
    """Few classes take rivals, many take winners: what is said here of few has to hold for either."""
    if request.param == "many classes":
        monkeypatch.setattr("finecal.logits.torch_kernels._WIDE", 2)
