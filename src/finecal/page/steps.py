"""Round numbers: the ticks of an axis, and the positions of the slider."""

import math
from typing import NamedTuple

_ROUNDING = 1e-9
"""Of a step: an end that is a multiple itself is one of the multiples."""


class Steps(NamedTuple):
    """Multiples of a round step, from the first to the last one; 0 is one of them if it lies between."""

    first: int
    last: int
    unit: int
    """1, 2 or 5, times a power of ten: the step."""
    exponent: int

    @property
    def step(self) -> float:
        return self._multiple(1)

    @property
    def values(self) -> list[float]:
        return [self._multiple(number) for number in range(self.first, self.last + 1)]

    def _multiple(self, number: int) -> float:
        # Of whole numbers the quotient is the float that the decimal number names: 3 / 10 is 0.3, 3 * 0.1 is not.
        multiple = number * self.unit
        return float(multiple * 10**self.exponent) if self.exponent >= 0 else multiple / 10**-self.exponent


def steps_inside(low: float, high: float, most: int) -> Steps:
    """Return the multiples between `low` and `high` of the smallest round step that fits in there `most` times."""
    unit, exponent = _round_step((high - low) / most)
    step = Steps(0, 0, unit, exponent).step
    return Steps(math.ceil(low / step - _ROUNDING), math.floor(high / step + _ROUNDING), unit, exponent)


def steps_around(low: float, high: float, most: int) -> Steps:
    """Return the same multiples, and those next to them on either side, beyond `low` and `high`."""
    inside = steps_inside(low, high, most)
    return inside._replace(first=inside.first - 1, last=inside.last + 1)


def _round_step(least: float) -> tuple[int, int]:
    """Return unit and exponent of the smallest round number that is no smaller."""
    exponent = math.floor(math.log10(least))
    fitting = (unit for unit in (1, 2, 5) if unit * 10.0**exponent >= least)
    return next(((unit, exponent) for unit in fitting), (1, exponent + 1))
