"""The accuracy of seen samples where few of them are recognised: a smooth curve in place of a few steps."""

from __future__ import annotations

import math

from torch import Tensor

from ..evaluation.samples import Scan
from ..inputs.groups import groups_of
from .design_effect import design_effect
from .expected_accuracy import LOGISTIC, SeenAccuracy

_ENOUGH = 50
"""Recognised samples from which on the curve is taken as it was measured."""


class SmoothedAccuracy(SeenAccuracy):
    r"""`Acc_{S/Y}` as measured, but with steps that are smoothed where a decision would follow single samples.

    The largest expected accuracy is the luckiest place of a curve of few steps, and lies too high where little is to
    be gained. So of n < 50 margins, of mean :math:`\bar m` and standard deviation s, each is drawn towards the mean and
    spread by a logistic kernel, so that mean and variance stay what they are:

    .. math:: m \to \bar m + \sqrt{n / 50} \, (m - \bar m), \qquad \text{kernel of variance } (1 - n / 50) \, s^2

    A single sample stays as it is, and so does the limit of what gamma may cost. Of samples of groups, n is how many
    independent ones they count for.
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
