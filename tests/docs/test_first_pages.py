"""README and the quickstart run from top to bottom, and print what they show."""

import re

import pytest
import torch

from pages import ROOT

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
POINTS, PART = 2.0, 0.05
"""By how much numbers may differ, absolutely or relatively: processors round differently."""


def steps(page):
    """Return the Python blocks of a page, each with the text that it shows after it, or None."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(python|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    for (language, code), (after, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if language == "python":
            yield code, shown if after == "text" else None


def assert_alike(printed, shown):
    """The same words in the same columns, and numbers that are nearly the same."""
    words = [" ".join(NUMBER.sub("0", text).split()) for text in (printed, shown)]
    assert words[0] == words[1]
    for now, before in zip(*(map(float, NUMBER.findall(text)) for text in (printed, shown)), strict=True):
        assert now == pytest.approx(before, abs=POINTS, rel=PART)


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_pages_print_what_they_show(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads, names = torch.get_num_threads(), {}
    try:
        shown_any = False
        for code, shown in steps(page):
            if page == "README.md" and "train_loader" in code:  # the reader's own model
                continue
            exec(code, names)
            printed = capsys.readouterr().out
            assert bool(printed) == (shown is not None)
            if shown is not None:
                shown_any = True
                if "tensor([" in shown:
                    assert printed.count("tensor([") == shown.count("tensor([")
                else:
                    assert_alike(printed, shown)
        assert shown_any
    finally:
        torch.set_num_threads(threads)


def test_the_quickstart_keeps_its_promises(tmp_path, monkeypatch):
    """What is restored is what was saved; odd digits are recognised with gamma, and not one without it."""
    monkeypatch.chdir(tmp_path)
    threads, names = torch.get_num_threads(), {}
    try:
        for code, _ in steps("docs/quickstart.md"):
            exec(code, names)
    finally:
        torch.set_num_threads(threads)
    test, labels = names["faint"][names["test"]], names["labels"][names["test"]]
    assert torch.equal(names["restored"](test), names["calibrated"](test))
    odd = labels % 2 == 1
    alone, calibrated = (names[name](test).argmax(1) for name in ("model", "calibrated"))
    assert float((alone[odd] == labels[odd]).double().mean()) < 0.05
    assert float((calibrated[odd] == labels[odd]).double().mean()) > 0.6
