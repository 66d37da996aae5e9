"""The search puts first what was written for a query, and shows only pages that have all of its words."""

import re

import pytest

from pages import DOCS

ANSWERS = {
    "catastrophic forgetting": "index",
    "fine-tune on a subset": "index",
    "which estimator": "index",
    "predicts only the new classes": "quickstart",
    "forgets old classes": "faq",
    "class imbalance": "faq",
    "logit adjustment": "faq",
    "label shift": "faq",
    "prior shift": "faq",
    "federated vacant classes": "faq",
    "missing classes": "faq",
    "species list": "faq",
    "camera traps": "faq",
    "intents": "faq",
    "add classes without losing the old ones": "faq",
    "forgets old entities": "how-to/entities",
    "ONNX": "how-to/onnx",
    "keep the 1000-way head": "how-to/list-of-classes",
    "calibrated stacking": "how-to/clip",
    "lose zero-shot": "how-to/clip",
    "semantic segmentation": "how-to/segmentation",
    "background shift": "how-to/segmentation",
    "token classification": "how-to/entities",
    "NER": "how-to/entities",
    "entities": "how-to/entities",
    "OCR reads only the fine-tuned characters": "how-to/ocr",
    "CTC": "how-to/ocr",
    "PaddleOCR dictionary": "how-to/ocr",
    "object detection": "how-to/detection",
    "detector sees only the new classes": "how-to/detection",
    "bias correction BiC": "how-to/class-incremental",
    "weight aligning WA": "how-to/class-incremental",
}


def words(text):
    return set(re.findall(r"\w+", text.lower())) - {"a", "on", "only", "the", "which"}


@pytest.mark.parametrize(("query", "page"), ANSWERS.items(), ids=ANSWERS)
def test_page_is_found_first(query, page):
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8").lower()
    missing = {word for word in words(query) if not re.search(rf"\b{word.removesuffix('s')}", text)}
    assert missing == set()
    scorer = (DOCS / "search_scorer.js").read_text(encoding="utf-8")
    lines = dict(re.findall(r'^  "?([\w/-]+)"?: "(.+)",$', scorer, re.MULTILINE))
    assert [name for name, line in lines.items() if words(query) <= words(line)] == [page]


def test_install_is_a_title():
    assert (DOCS / "install.md").read_text(encoding="utf-8").startswith("# Install\n")


def test_scorer_names_pages_that_there_are():
    scorer = (DOCS / "search_scorer.js").read_text(encoding="utf-8")
    pages = set(re.findall(r'^  "?([\w/-]+)"?: "', scorer, re.MULTILINE))
    pages |= set("|".join(re.findall(r"/\^\(([\w|]+)\)\$/", scorer)).split("|"))
    assert {"index", "faq", "changelog"} <= pages
    assert [page for page in pages if not (DOCS / f"{page}.md").is_file()] == []
