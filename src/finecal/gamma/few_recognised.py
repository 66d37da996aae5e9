"""Smoothed `Acc_{S/Y}` of few recognised samples."""

from __future__ import annotations

import math

from torch import Tensor

from ..evaluation.samples import Scan
from ..inputs.groups import groups_of
from .design_effect import design_effect
from .expected_accuracy import LOGISTIC, SeenAccuracy

_ENOUGH = 50
"""Number of recognised samples from which the measured curve is used."""


class SmoothedAccuracy(SeenAccuracy):
    r"""`Acc_{S/Y}`, smoothed for n < 50 recognised samples (independent ones, by their design effect).

    Margins of mean :math:`\bar m` and standard deviation s shrink towards the mean and are spread by a logistic kernel,
    which keeps mean and variance:

    .. math:: m \to \bar m + \sqrt{n / 50} \, (m - \bar m), \qquad \text{kernel of variance } (1 - n / 50) \, s^2

    A single sample, and the largest allowed gamma, stay.
    """

    def __init__(self, scan: Scan) -> None:
        super().__init__(scan)
        self._widening = 0.0
        chosen = scan.scalars.hit & scan.margin.isfinite()
        n = int(chosen.sum()) / design_effect(scan.margin[chosen], groups_of(scan.groups, chosen))
        if len(self._kept) < 2 or n >= _ENOUGH:
            return
        away = self._kept - self._kept.mean()
        largest = float(away.abs().max())
        if largest > 0:
            deviation = largest * float((away / largest).square().mean().sqrt())  # squares of margins may overflow
            self._widening = LOGISTIC * math.sqrt(1 - n / _ENOUGH) * deviation
            self._kept = self._kept.mean() + math.sqrt(n / _ENOUGH) * away

    def at(self, gamma: Tensor, bandwidth: float) -> Tensor:
        """Return the accuracy at each gamma, smoothed by a logistic kernel."""
        return super().at(gamma, math.hypot(bandwidth, self._widening))
