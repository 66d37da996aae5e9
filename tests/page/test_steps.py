"""Round numbers on an axis and on the slider."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finecal.page.steps import steps_around, steps_inside
from profiles import examples


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0.0, 1.0, 5, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.26, 0.31, 6, [-0.2, -0.1, 0.0, 0.1, 0.2, 0.3]),
        (3.0, 61.0, 6, [10.0, 20.0, 30.0, 40.0, 50.0, 60.0]),
        (-1200.0, 40.0, 4, [-1000.0, -500.0, 0.0]),
        (0.0, 7e-9, 7, [0.0, 1e-9, 2e-9, 3e-9, 4e-9, 5e-9, 6e-9, 7e-9]),
    ],
)
def test_values_are_the_numbers_that_a_reader_writes(low, high, most, expected):
    assert steps_inside(low, high, most).values == expected


@examples(100)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), st.integers(-250, 250), st.integers(1, 2000))
def test_steps_are_inside_or_around(start, width, exponent, most):
    low, high = start * 10.0**exponent, (start + width) * 10.0**exponent
    inside, around = steps_inside(low, high, most), steps_around(low, high, most)
    near = 1e-6 * inside.step
    assert all(low - near <= value <= high + near for value in inside.values)
    assert (high - low) / most - near <= inside.step <= 2.5 * (high - low) / most + near
    assert around.values[0] < low < high < around.values[-1]
    assert around.values[1:-1] == inside.values
