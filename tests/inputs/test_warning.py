"""Where a warning points, how it is kept back, and how an error says what it is about."""

import warnings

import pytest

import finecal
from finecal.inputs.warning import naming, warn, without_warnings


def test_points_at_the_caller():
    with pytest.warns(finecal.FinecalWarning, match="^mind this$") as record:
        warn("mind this")
    assert record[0].filename == __file__


def test_keeps_back_what_finecal_warns_of_and_nothing_else():
    with without_warnings():
        warn("mind this")
    with without_warnings(), pytest.warns(UserWarning, match="^and that$"):
        warnings.warn("and that", UserWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("error", "kind", "raised"),
    [
        (TypeError, None, TypeError),
        (ValueError, None, ValueError),
        (UnicodeError, None, ValueError),  # takes other arguments than a text
        (TypeError, ValueError, ValueError),
    ],
)
def test_names_what_an_error_is_about(error, kind, raised):
    with pytest.raises(raised, match="^train: it is wrong$") as caught, naming("train", kind):
        raise error("it is wrong")
    assert type(caught.value) is raised
    assert type(caught.value.__cause__) is error


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError, match="^'it is wrong'$"), naming("train"):
        raise KeyError("it is wrong")
