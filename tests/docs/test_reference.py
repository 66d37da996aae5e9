"""The reference names everything that is public, once."""

import re

import finecal
from pages import DOCS
from public_names import PUBLIC, SPACES

ELSEWHERE = ("streaming.", "distributed.", "plots.", "sklearn.", "integrations.")


def test_reference_has_each_public_name_once():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    found = re.findall(r"^\.\. auto(?:function|class|exception):: finecal\.([\w.]+)$", text, re.MULTILINE)
    listed = [name for name in found if not name.startswith(ELSEWHERE)]
    public = [f"{space}.{name}" for space in SPACES for name in getattr(finecal, space).__all__]
    own = {name.rpartition(".")[2] for name in public} & set(finecal.__all__)  # these stand at the top as well
    assert sorted(listed) == sorted(
        [*finecal.__all__, *(name for name in public if name.rpartition(".")[2] not in own)]
    )


def test_each_page_and_the_overview_list_the_names_of_each_page():
    index = (DOCS / "api" / "index.rst").read_text(encoding="utf-8")
    pages = [path.stem for path in (DOCS / "api").glob("*.rst") if path.stem != "index"]
    assert sorted(re.findall(r"^\.\. summaries:: (\w+)$", index, re.MULTILINE)) == sorted(pages)
    assert sorted(re.findall(r"^   (\w+)$", index.partition(":hidden:")[2], re.MULTILINE)) == sorted(pages)
    for page in pages:
        assert "\n.. summaries::\n" in (DOCS / "api" / f"{page}.rst").read_text(encoding="utf-8"), page


def test_reference_shows_what_results_inherit():
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "api").glob("*.rst")))
    results = [name for name, kind in PUBLIC.items() if "to_markdown" in dir(kind)]
    assert len(results) >= 7
    for name in results:
        (options,) = re.findall(rf"^\.\. autoclass:: finecal\.(?:\w+\.)?{name}\n((?: +:.*\n)+)", text, re.MULTILINE)
        assert ":inherited-members:" in options or "to_dict, to_pandas, to_markdown" in options, name
