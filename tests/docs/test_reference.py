"""The reference names everything that is public, once."""

import re

import finecal
from pages import DOCS


def test_reference_has_each_public_name_once():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    found = re.findall(r"^\.\. auto(?:function|class|exception):: finecal\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted(finecal.__all__)


def test_overview_has_each_public_name_once():
    text = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    found = re.findall(r"^   ([A-Za-z]\w*)$", text.partition(".. currentmodule")[2], re.MULTILINE)
    assert sorted(found) == sorted(finecal.__all__)
