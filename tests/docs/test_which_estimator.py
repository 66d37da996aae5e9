"""The answer to "which estimator do I need?" is the same wherever it is given."""

import re
import subprocess
import sys

import pytest

import finecal
from finecal._cli import main
from finecal._estimators.table import CHOICES, MODELS
from pages import DOCS, ROOT


def test_pictures_are_drawn_from_the_table(tmp_path):
    subprocess.run([sys.executable, DOCS / "which_estimator.py", tmp_path], check=True)
    for version in ("light", "dark"):
        name = f"which_estimator_{version}.svg"
        drawn = (tmp_path / name).read_text(encoding="utf-8")
        assert drawn == (DOCS / "images" / name).read_text(encoding="utf-8")
        texts = " ".join(re.findall(r"<text[^>]*>(.*?)</text>", drawn))
        for choice in CHOICES:
            assert f"{choice.call} recovers {choice.recovered} %" in texts
            assert choice.question in texts


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/theory/estimators.md"])
def test_pages_show_the_picture(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert all(f"images/which_estimator_{version}.svg" in text for version in ("light", "dark"))
    assert f"{MODELS} fine-tuned models" in " ".join(text.split())


def test_the_docstring_has_the_figures():
    docstring = " ".join(finecal.estimate_gamma.__doc__.split())
    labelled, training, held_out, unlabelled = (choice.recovered for choice in CHOICES)
    assert f"`search_gamma`, recovers {labelled} %" in docstring
    assert held_out == unlabelled
    assert f"recovers {held_out} % of what the best gamma gains" in docstring
    assert f"and {training} % from training samples alone" in docstring
    assert f"the median of {MODELS} fine-tuned models" in docstring


def test_the_command_line_has_them(capsys):
    with pytest.raises(SystemExit):
        main(["estimate", "--help"])
    shown = capsys.readouterr().out
    for choice in CHOICES:
        assert re.search(rf"{re.escape(choice.have)} +{choice.recovered} % +{re.escape(choice.options)}\n", shown)


def test_questions_and_calls_exist():
    assert [bool(choice.question) for choice in CHOICES] == [True, True, True, False]
    assert all(hasattr(finecal, choice.call.split("(")[0]) for choice in CHOICES)
