import numpy as np
import pytest

import finecal
from finecal._core.groups import Bootstrap
from finecal._estimators.decision import SmoothedAccuracy
from finecal._estimators.evidence import SeenSamples, evidence_of_held_out, evidence_of_training, retention_from_rivals
from problems import MASK, doubtful_problem

OPTIONS = Bootstrap(5, 2)


@pytest.fixture
def samples(rng):
    return finecal.Samples(*doubtful_problem(rng))


def test_findings_are_those_of_the_functions(samples):
    new, known = (SeenSamples(samples.named(name), MASK, "f", OPTIONS) for name in ("held_out", "train"))
    scan = samples.scan(MASK)
    assert new.scan.margin is known.scan.margin is scan.margin
    assert (new.scan.name, known.scan.name) == ("held_out", "train")
    assert new.samples.name == "held_out"
    assert new.evidence == evidence_of_held_out(scan, OPTIONS)
    assert known.evidence == evidence_of_training(scan, OPTIONS) != new.evidence
    assert new.retention == known.retention == retention_from_rivals(scan)
    assert new.accuracy.range == SmoothedAccuracy(scan).range


def test_each_is_found_once(samples, monkeypatch):
    calls = []

    def counted(*given):
        calls.append(given)
        return evidence_of_held_out(*given)

    monkeypatch.setattr("finecal._estimators.evidence.evidence_of_held_out", counted)
    seen = SeenSamples(samples.named("held_out"), MASK, "f", OPTIONS)
    assert calls == []
    assert seen.evidence is seen.evidence
    assert len(calls) == 1


def test_errors_are_of_an_argument(rng):
    logits, labels = doubtful_problem(rng)
    absent = finecal.Samples(logits, np.where(np.arange(len(labels)) == 5, 1, labels), groups=labels * 0)
    with pytest.raises(
        ValueError, match=r"^held_out: labels contain absent class 1 \(1 of \d+ samples\); f needs seen"
    ):
        SeenSamples(absent.named("held_out"), MASK, "f", OPTIONS)
    one_group = finecal.Samples(logits, labels, groups=labels * 0).named("train")
    with pytest.raises(ValueError, match="^train: groups are all the same"):
        SeenSamples(one_group, MASK, "f", OPTIONS)
    assert SeenSamples(one_group, MASK, "f", Bootstrap()).effect > 1


def test_a_comparison_looks_for_evidence_once(rng, monkeypatch):
    """Three of its estimates are from the same held-out samples."""
    calls = []

    def counted(*given):
        calls.append(given)
        return evidence_of_held_out(*given)

    monkeypatch.setattr("finecal._estimators.evidence.evidence_of_held_out", counted)
    held_out = doubtful_problem(rng)
    unlabelled = doubtful_problem(rng)[0]
    comparison = finecal.compare_estimators(MASK, held_out=held_out, unlabelled=unlabelled, seen_share=0.5)
    assert [row.method for row in comparison.rows].count("estimate_gamma") == 2
    assert len(calls) == 1
