"""The table of docs/comparison.md has the rows of the script, and what it says of finecal holds."""

import itertools
import re
import sys

import features
import pytest
import torch

from pages import DOCS

PAGE = (DOCS / "comparison.md").read_text(encoding="utf-8")


def table(first_column):
    """Return the page's rows, without the header, of the table that begins with this column."""
    start = re.search(rf"^\| {first_column} .*\n\| -.*\n", PAGE, re.MULTILINE).end()
    lines = itertools.takewhile(lambda line: line.startswith("|"), PAGE[start:].splitlines())
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_page_has_the_rows_and_what_finecal_does():
    shown = table("feature")
    assert [row[0] for row in shown] == [feature.name for feature in features.FEATURES]
    for (name, own), row in zip(features.feature_rows([features.FINECAL]), shown, strict=True):
        if own.endswith("%"):  # the draws of another processor
            assert float(own.rstrip(" %")) == pytest.approx(float(row[1].rstrip(" %")), abs=1), name
        else:
            assert own == row[1], name


def test_page_has_the_accuracies():
    own = features.accuracy_rows([features.FINECAL])
    shown = table("package")
    assert [row[:2] for row in shown[: len(own)]] == [row[:2] for row in own]
    for row, expected in zip(shown, own, strict=False):
        assert [float(cell) for cell in row[2:5]] == pytest.approx([float(cell) for cell in expected[2:5]], abs=1)


def test_page_has_what_finecal_has_of_the_rest():
    assert [row[:2] for row in table("what")] == [row[:2] for row in features.others([features.FINECAL])]


def test_columns_are_the_packages():
    header = re.search(r"^\| feature .*$", PAGE, re.MULTILINE).group()
    assert [cell.strip() for cell in header.strip("|").split("|")][1:] == [peer.name for peer in features.PEERS]


def careless(num_classes):
    return {"none": lambda logits, labels: lambda scores: scores}


def test_what_notices_nothing_is_told():
    peer = features.Peer("careless", "finecal", careless)
    given = features.seen_samples()
    for spoil in (features.with_nan, features.re_indexed, features.probabilities_for_logits):
        assert features.notices(peer, spoil, given) == "no"
        assert features.notices(features.FINECAL, spoil, given) == "yes"
    assert features.fits_seen_only(peer) == "1 of 1"
    before = features.accuracies(features.test_samples().logits)
    assert features.absent_after(peer) == f"{100 * before[2]:.1f} %"


def test_what_raises_is_counted_and_named():
    def refuses(logits, labels):
        raise IndexError("index 10")

    peer = features.Peer("refuses", "finecal", lambda num_classes: {"none": refuses})
    assert features.fits_seen_only(peer) == "0 of 1"
    assert features.accuracy_rows([peer])[1][-1] == "IndexError: index 10"
    assert features.notices(peer, features.with_nan, features.seen_samples()) == features.NONE


def test_names_are_found_by_what_they_are_called():
    assert features.named("fold_?into", features.FINECAL) == "`fold_into_head`"
    assert features.by_name("", "conformal").cell(features.FINECAL) == "no"


def test_shortfall_of_a_wrong_temperature(monkeypatch):
    monkeypatch.setitem(features.peers.FITS, "finecal", lambda given: 3.0)
    worst = max(
        float(torch.nn.functional.cross_entropy(given.logits.double() / 3.0, given.labels)) - features.least_nll(given)
        for given in features.temperature_problems()
    )
    assert worst > 0.1
    assert float(features.temperature_shortfall(features.FINECAL)) == pytest.approx(
        worst, rel=0.5
    )  # one digit is shown


def test_a_missing_package_ends_the_run(monkeypatch):
    missing = features.Peer("no-such-package", "no_such_package")
    monkeypatch.setattr(features, "PEERS", [features.FINECAL, missing])
    monkeypatch.setattr(sys, "argv", ["features.py"])
    with pytest.raises(SystemExit, match=r"pip install no-such-package"):
        features.main()
