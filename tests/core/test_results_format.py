"""Numbers in words."""

import math

import pytest

from finecal._core.results import UNDEFINED, decimal, from_to, percent, points


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (percent(0.5), "50.0"),
        (percent(0), "0.0"),
        (percent(1.0), "100.0"),
        (percent(2 / 3), "66.7"),
        (percent(2 / 3, 0), "67"),
        (percent(1e-4, 2), "0.01"),
        (points(0.515, 0.5), "+1.5"),
        (points(0.5, 0.515), "-1.5"),
        (points(0.02), "+2.0"),
        (points(0.5, 0.5), "+0.0"),
        (from_to(0.125, 0.5), "12.5 -> 50.0 %"),
        (decimal(0.12345, 4), "0.1235"),
        (decimal(-2, 0), "-2"),
        (decimal(math.inf, 2), "inf"),
    ],
)
def test_by_hand(shown, text):
    assert shown == text


def test_what_is_not_defined_is_a_dash():
    nan = math.nan
    shown = [percent(nan), percent(nan, 3), points(nan), points(0.5, nan), points(nan, 0.5), decimal(nan, 4)]
    assert shown == [UNDEFINED] * 6 == ["-"] * 6
    assert from_to(nan, 0.5) == "- -> 50.0 %"
    assert from_to(0.5, nan) == "50.0 -> - %"
