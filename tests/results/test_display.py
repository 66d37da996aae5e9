import pytest

from finecal.results.display import format_table


def test_numbers_stand_to_the_right():
    table = format_table(
        ["name", "n", "%", "what", "gap"],
        [["a long name", "5", "12.5%", "x", "-"], ["b", "1000", "100.0%", "", "-1.5"], ["3", "", "nan", "7", ""]],
    )
    assert table.splitlines() == [
        "| name        |    n |      % | what |  gap |",
        "| ----------- | ---: | -----: | ---- | ---: |",
        "| a long name |    5 |  12.5% | x    |    - |",
        "| b           | 1000 | 100.0% |      | -1.5 |",
        "| 3           |      |    nan | 7    |      |",
    ]


def test_columns_are_wide_enough_for_markdown():
    assert format_table(["a", "b"], [["1", "2"]]).splitlines()[1] == "| --- | --: |"


def test_a_word_at_the_end_keeps_a_column_to_the_left():
    assert format_table(["", "x"], [["", "1"], ["", "one"]]).splitlines()[2] == "|     | 1   |"


def test_rows_must_be_complete():
    with pytest.raises(ValueError, match="zip"):
        format_table(["a", "b"], [["1"]])
