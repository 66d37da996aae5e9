"""The reference names everything that is public, once."""

import re

import finecal
from finecal.gamma.estimators import ESTIMATORS, Data
from pages import DOCS, ROOT


def test_reference_has_each_public_name_once():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    found = re.findall(r"^\.\. auto(?:function|class|exception):: finecal\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted(finecal.__all__)


def test_overview_has_each_public_name_once():
    text = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    found = re.findall(r"^   ([A-Za-z]\w*)$", text.partition(".. currentmodule")[2], re.MULTILINE)
    assert text.count("\n.. estimators::\n") == 1  # the table in the code
    assert sorted([*found, *(estimator.name for estimator in ESTIMATORS)]) == sorted(finecal.__all__)


def test_pages_for_the_choice_name_each_estimator():
    pages = [ROOT / "README.md", DOCS / "theory" / "estimators.md"]
    texts = [path.read_text(encoding="utf-8") for path in pages]
    for estimator in ESTIMATORS:
        name = estimator.name.removesuffix("_gamma") if estimator.data is Data.FOLDS else estimator.name
        assert [path.name for path, text in zip(pages, texts, strict=True) if name not in text] == []
