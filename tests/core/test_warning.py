"""Where a warning points, how it is kept back, and how an error says what it is about."""

import warnings

import pytest

import finecal
from finecal._core.warning import error_context, warn, without_warnings, wrap


def test_points_at_the_caller():
    with pytest.warns(finecal.FinecalWarning, match="^mind this$") as record:
        warn("mind this")
    assert record[0].filename == __file__


def test_is_shown_in_lines_and_filtered_as_one(monkeypatch):
    monkeypatch.setattr("finecal._core.warning.WIDTH", 30)
    message = "gamma is 0: " + "no gap is seen, as in a distilled model " * 3
    with pytest.warns(finecal.FinecalWarning) as record:
        warn(message)
    lines = str(record[0].message).split("\n")
    assert len(lines) > 4
    assert max(map(len, lines)) <= 30
    assert lines[0] == "gamma is 0: no gap is seen, as"
    assert all(line.startswith("  ") for line in lines[1:])
    assert " ".join(map(str.strip, lines)) == message.strip()
    assert record[0].message.args == (message,)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "gamma is 0: .* model no gap", finecal.FinecalWarning)
        warn(message)


def test_a_word_that_is_longer_than_a_line_stays_whole(monkeypatch):
    monkeypatch.setattr("finecal._core.warning.WIDTH", 20)
    assert wrap("x " + "y-y" * 20 + " z").split() == ["x", "y-y" * 20, "z"]


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
    with pytest.raises(raised, match="^train: it is wrong$") as caught, error_context("train", kind):
        raise error("it is wrong")
    assert type(caught.value) is raised
    assert type(caught.value.__cause__) is error


def test_other_errors_stay_what_they_are():
    with pytest.raises(KeyError, match="^'it is wrong'$"), error_context("train"):
        raise KeyError("it is wrong")
