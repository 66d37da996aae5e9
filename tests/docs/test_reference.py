"""The reference names everything that is public, once."""

import re

import finecal
from pages import DOCS


def test_reference_has_each_public_name_once():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    found = re.findall(r"^\.\. auto(?:function|class|exception):: finecal\.(\w+)$", text, re.MULTILINE)
    assert sorted(found) == sorted(finecal.__all__)


def test_each_page_and_the_overview_list_the_names_of_each_page():
    index = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    pages = [path.stem for path in (DOCS / "api").glob("*.rst") if path.stem != "index"]
    assert sorted(re.findall(r"^\.\. summaries:: (\w+)$", index, re.MULTILINE)) == sorted(pages)
    assert sorted(re.findall(r"^   (\w+)$", index.partition(":hidden:")[2], re.MULTILINE)) == sorted(pages)
    for page in pages:
        assert "\n.. summaries::\n" in (DOCS / "api" / f"{page}.rst").read_text(encoding="utf-8"), page


def test_reference_shows_what_results_inherit():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    results = [name for name in finecal.__all__ if "to_markdown" in dir(getattr(finecal, name))]
    assert len(results) >= 7
    for name in results:
        (options,) = re.findall(rf"^\.\. autoclass:: finecal\.{name}\n((?: +:.*\n)+)", text, re.MULTILINE)
        assert ":inherited-members:" in options or "to_dict, to_pandas, to_markdown" in options, name
