"""One result of each class, and what reads their Markdown and HTML."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import finecal

CLASSES = 6
MASK = np.arange(CLASSES) < 3
NAMES = [
    "report",
    "curve",
    "iou_report",
    "iou_curve",
    "estimate",
    "comparison",
    "diagnosis",
    "probabilities",
    "scores",
    "bins",
    "class_bias",
    "temperature",
    "characters",
]
SHOWN = [name for name in NAMES if name not in ("scores", "bins", "temperature")]


def make_results(convert):
    """One result of each class, of logits that `convert` makes of an array."""
    rng = np.random.default_rng(0)
    labels = np.arange(240) % CLASSES
    pretrained = rng.normal(size=(240, CLASSES)) + 2.0 * np.eye(CLASSES)[labels]
    logits, seen, mask = pretrained + 3.0 * MASK, MASK[labels], convert(MASK)
    z, y = convert(logits), convert(labels)
    curve, probabilities = (
        finecal.tradeoff_curve(z, y, mask),
        finecal.probabilities.evaluate_probabilities(z, y, mask, 1.5, n_bins=4),
    )
    head, pretrained_head = (convert(rng.normal(size=(CLASSES, 4))) for _ in range(2))
    train, scored = (convert(logits[seen]), convert(labels[seen])), finecal.Samples(z, y, features=z)
    samples = finecal.Samples(
        z,
        y,
        pretrained_logits=convert(pretrained),
        features=convert(rng.normal(size=(240, 4))),
        pretrained_features=convert(rng.normal(size=(240, 4))),
    )
    with pytest.warns(finecal.FinecalWarning, match="features"):
        diagnosis = finecal.diagnose(samples, mask, head=(head, None), pretrained_head=(pretrained_head, None))
    return {
        "report": curve.at(1.5),
        "curve": curve,
        "iou_report": finecal.dense.evaluate_iou(z, y, mask, 1.5, background=0),
        "iou_curve": finecal.dense.iou_curve(z, y, mask),
        "estimate": finecal.estimators.max_logit_gap(*train, mask, n_bootstrap=9),
        "comparison": finecal.compare_estimators(mask, held_out=train, unlabelled=scored, test=scored, n_bootstrap=9),
        "diagnosis": diagnosis,
        "probabilities": probabilities,
        "scores": probabilities.seen,
        "bins": probabilities.all.bins,
        "class_bias": finecal.calibrators.fit_class_bias(z, y, mask).report,
        "temperature": finecal.calibrators.fit_temperature(z, y).report,
        "characters": finecal.sequences.character_scores(
            [[1, 2], [3]], [[1, 2], [4, 5]], mask, class_names=list("-abcde")
        ),
    }


class Reader(HTMLParser):
    """Collects the cells of the tables and the paragraphs, and fails where tags are not balanced."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.paragraphs, self.pictures = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag == "img":
            self.pictures.append(dict(attrs))
            return
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag == "p":
            self.paragraphs.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("th", "td"):
            self.tables[-1][-1][-1] += data
        else:
            assert self.open[-1] == "p"
            self.paragraphs[-1] += data


def markdown_tables(text):
    """Return the cells of each table, which must be a paragraph of its own."""
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert sum(map(len, tables)) == len(re.findall(r"^\|.*\|$", text, re.MULTILINE))
    cells = [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines] for lines in tables]
    for rows in cells:
        assert all(re.fullmatch("-{2,}[-:]", cell) for cell in rows.pop(1))
    return cells
