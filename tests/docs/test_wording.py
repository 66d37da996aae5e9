"""The pages say things as a reader expects them: habits of wording that were removed once do not come back."""

import re

import pytest

from pages import DOCS, ROOT

HABITS = {
    r"rests? on": "is based on, needs, assumes",
    r"for whoever": "for anyone who",
    r"within its noise": "name the noise",
    r"(?:is|are) to be had": "is possible, is available",
    r"the model doubts|doubts of (?:a|the) model": "the model is unsure about",
    r"gr[eo]w(?:n|s)? against": "outgrow",
    r"what it took": "what it used",
    r"honest probabilities": "reliable probabilities",
    r"tells? \w+ from none": "distinguish",
    r"are much where|is much where": "is large if",
    r"it behind it": "name both",
    r"as far as not": "say what happens otherwise",
}
PAGES = [ROOT / "README.md", *sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_habits_stay_away(page):
    text = " ".join(page.read_text(encoding="utf-8").split())
    found = {habit: better for habit, better in HABITS.items() if re.search(rf"\b(?:{habit})\b", text, re.IGNORECASE)}
    assert found == {}, "write instead what is on the right"


def test_habits_are_found():
    for text in (
        "what each rests on is",
        "For whoever fine-tunes",
        "samples that the model doubts",
        "grow against those",
    ):
        assert any(re.search(rf"\b(?:{habit})\b", text, re.IGNORECASE) for habit in HABITS), text
