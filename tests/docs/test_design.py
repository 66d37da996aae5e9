"""The page on design tells the truth about the code."""

import re

import numpy as np
import pytest

import finecal
from pages import DOCS, ROOT, blocks

PAGE = "docs/design.md"


def test_estimator_of_the_page():
    (block,) = blocks(PAGE, "python")
    names = {}
    exec(block, names)
    rng = np.random.default_rng(0)
    mask = np.arange(8) < 4
    logits, labels = rng.normal(size=(201, 8)) + 5 * mask, rng.integers(4, size=201)
    logits[np.arange(201), labels] += 6
    gaps = [row[mask & (np.arange(8) != own)].max() - row[~mask].max() for row, own in zip(logits, labels, strict=True)]
    estimate = names["median_logit_gap"](logits, labels, mask, n_bootstrap=50)
    assert estimate.gamma == pytest.approx(np.median(gaps))
    assert estimate.interval[0] < estimate.gamma < estimate.interval[1]
    assert estimate.method == "median_logit_gap"
    with pytest.raises(ValueError, match="absent class"):
        names["median_logit_gap"](logits, labels + 4, mask)
    assert estimate.expected_acc_seen == finecal.evaluate(logits, labels, mask, estimate).acc_seen


def test_files_of_the_page_exist():
    text = (DOCS / "design.md").read_text(encoding="utf-8")
    table = text.partition("| files | hold |")[2].partition("##")[0]
    named = re.findall(r"`([a-z_]+(?:\.py|/))`", table)
    assert len(named) > 30
    assert [name for name in named if not (ROOT / "src" / "finecal" / name).exists()] == []
    for path in re.findall(r"`((?:tests|src|docs)/[\w/]+\.(?:py|md))`", text):
        assert (ROOT / path).exists() or path == "tests/test_median_gap.py", path
