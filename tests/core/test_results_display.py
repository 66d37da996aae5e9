"""Results as text, Markdown and HTML, and their pictures in a notebook."""

import re
import sys
from dataclasses import replace

import numpy as np
import pytest

import finecal
from every_result import CLASSES, MASK, SHOWN, Reader, markdown_tables
from finecal._core.results import Caution, Table, as_html, as_markdown, as_text, format_table, visible

TABLES = ["report", "comparison", "diagnosis", "probabilities", "class_bias"]


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


STEERING = "a\x1b[31m\x07b\x9b\u202ec\ud800"


ESCAPED = r"a\x1b[31m\x07b\x9b\u202ec\ud800"


def test_characters_that_steer_a_terminal_are_shown():
    assert visible(STEERING) == ESCAPED
    assert visible("é\N{ZERO WIDTH JOINER}漢\n") == "é\N{ZERO WIDTH JOINER}漢\n"
    assert visible("a\nb", and_lines=True) == r"a\nb"
    blocks = [[STEERING, Caution(STEERING), Table([STEERING, "n"], [[STEERING, "1"]])]]
    assert as_text(blocks).count(ESCAPED) == 4
    assert as_html(blocks).count(ESCAPED) == 4
    assert as_markdown(blocks).count(ESCAPED.replace("\\", "\\\\")) == 4
    for text in (as_text(blocks), as_html(blocks), as_markdown(blocks)):
        assert all(character.isprintable() or character == "\n" for character in text)


@pytest.mark.parametrize("name", SHOWN)
def test_markdown_and_html_hold_the_same(results, name):
    result, page = results[name], Reader(results[name]._repr_html_())
    text = result.to_markdown()
    assert markdown_tables(text) == page.tables
    paragraphs = [part.removeprefix("> ") for part in text.split("\n\n") if not part.startswith("|")]
    assert paragraphs == page.paragraphs
    for line in text.splitlines() if name in TABLES else ():
        assert not line.startswith("|") or line in str(result).splitlines()


def test_tables_show_the_numbers(results):
    report, curve = results["report"], results["curve"]
    (table,) = markdown_tables(report.to_markdown())
    assert [float(cell) for cell in table[1][1:]] == pytest.approx(
        [100 * report.acc_seen, 100 * report.acc_absent, 100 * report.acc_all], abs=0.05
    )
    (table,) = markdown_tables(curve.to_markdown())
    for (name, _, *cells), objective in zip(table[2:], ("overall", "balanced", "harmonic"), strict=True):
        at = curve.at(curve.best(objective))
        assert "oracle" in name
        shown = [at.acc_seen, at.acc_absent, at.acc_all, at.balanced, at.harmonic_mean]
        assert [float(cell) / 100 for cell in cells] == pytest.approx(shown, abs=0.0005)


def test_numbers_stand_to_the_right_in_html(results):
    html = results["report"]._repr_html_()
    assert re.search(r'<td style="text-align: right[^>]*>\d', html)
    assert re.search(r'<th scope="row" style="text-align: left[^>]*>every class', html)


def test_warnings_stand_out_and_nothing_is_taken_for_a_tag(results):
    evil = "<script>alert('x')</script> & | <!-- y"
    estimate = replace(results["estimate"], method=evil, warnings=(evil,))
    page = Reader(estimate._repr_html_())
    assert page.paragraphs[-1] == f"warning: {evil}"
    assert "<script" not in estimate._repr_html_()
    assert "border-left" in estimate._repr_html_()
    assert r"> warning: \<script>alert('x')\</script> & | \<!-- y" in estimate.to_markdown()
    assert f"warning: {evil}" in str(estimate)

    comparison = finecal.estimators.EstimatorComparison((finecal.estimators.ComparedEstimate(evil, "x\ny", estimate),))
    assert "<script" not in comparison._repr_html_()
    (table,) = markdown_tables(comparison.to_markdown())
    assert table[1][0].replace("\\", "") == evil
    assert table[1][-1] == "x y"


def test_markdown_shows_a_text_as_it_is(results):
    text = r"*a* **b** `c` ~~d~~ [e](f) &amp; &#60; __g__ _h i_ <j> \ max_logit_gap Acc_S/Y 1 < 2 & 3 [0, C)"
    shown = (
        r"\*a\* \*\*b\*\* \`c\` \~\~d\~\~ [e]\(f) \&amp; \&#60; \_\_g\_\_ \_h i\_ \<j> \\ "
        "max_logit_gap Acc_S/Y 1 < 2 & 3 [0, C)"
    )
    assert replace(results["estimate"], warnings=(text,)).to_markdown().endswith(f"\n\n> warning: {shown}")


def test_a_large_curve_stays_small_in_a_notebook(rng):
    labels = rng.integers(0, CLASSES, 60_000)
    logits = rng.normal(size=(60_000, CLASSES)) + 2 * np.eye(CLASSES)[labels]
    curve = finecal.tradeoff_curve(logits, labels, MASK)
    assert len(curve.gamma) > 40_000
    html = curve._repr_html_()
    assert len(html) < 100_000
    (picture,) = Reader(html).pictures
    assert picture["src"].startswith("data:image/png;base64,iVBOR")
    assert "Acc_U/Y" in picture["alt"]


def test_without_matplotlib_there_is_the_table(results, monkeypatch):
    for module in [module for module in sys.modules if module.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    page = Reader(results["curve"]._repr_html_())
    assert page.tables
    assert not page.pictures
