"""The page that says how to cite: the entries are of this version, and of the paper that the README names."""

import re

import finecal
from pages import DOCS, blocks


def fields(entry):
    return {name: " ".join(value.split()) for name, value in re.findall(r"(\w+)\s*= \{(.*?)\},?\n", entry, re.DOTALL)}


def test_entries():
    paper, software = blocks("docs/how-to/paper-code.md", "bibtex")
    (of_readme,) = blocks("README.md", "bibtex")
    for name in ("title", "author", "booktitle", "year"):
        assert fields(paper)[name] == fields(of_readme)[name]
    assert fields(paper)["url"] == "https://arxiv.org/abs/2409.16223"
    assert software.startswith("@software{finecal,")
    assert fields(software)["version"] == finecal.__version__


def test_sentence_for_a_paper_names_this_version():
    text = (DOCS / "how-to" / "training-script.md").read_text(encoding="utf-8")
    assert f"of finecal {finecal.__version__}, from 354 training and 88 held-out samples" in text
