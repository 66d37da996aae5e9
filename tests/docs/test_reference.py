"""The reference names everything that is public, once."""

import re

import finecal
from finecal.gamma.estimators import ESTIMATORS
from pages import DOCS


def test_reference_has_each_public_name_once():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    found = re.findall(r"^\.\. auto(?:function|class|exception):: finecal\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted(finecal.__all__)


def test_overview_has_each_public_name_once():
    text = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    found = re.findall(r"^   ([A-Za-z]\w*)$", text.partition(".. currentmodule")[2], re.MULTILINE)
    assert text.count("\n.. estimators::\n") == 1  # the table in the code
    assert sorted([*found, *(estimator.name for estimator in ESTIMATORS)]) == sorted(finecal.__all__)


def test_reference_shows_what_results_inherit():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    results = [name for name in finecal.__all__ if "to_markdown" in dir(getattr(finecal, name))]
    assert len(results) >= 7
    for name in results:
        (options,) = re.findall(rf"^\.\. autoclass:: finecal\.{name}\n((?: +:.*\n)+)", text, re.MULTILINE)
        assert ":inherited-members:" in options or "to_dict, to_pandas, to_markdown" in options, name
