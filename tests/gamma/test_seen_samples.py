import pytest

import finecal
from finecal.evaluation.samples import scan_labelled
from finecal.gamma.absent_health import health_of_rivals
from finecal.gamma.bootstrap import Bootstrap
from finecal.gamma.few_recognised import SteadyAccuracy
from finecal.gamma.gap_evidence import evidence_of_held_out, evidence_of_training
from finecal.gamma.seen_samples import SeenSamples
from problems import MASK, doubtful_problem

OPTIONS = Bootstrap(5, 2)


@pytest.fixture
def scan(rng):
    return scan_labelled(*doubtful_problem(rng), MASK)


def test_findings_are_those_of_the_functions(scan):
    new, known = (SeenSamples(scan, OPTIONS, are_new=are_new) for are_new in (True, False))
    assert new.evidence == evidence_of_held_out(scan, OPTIONS)
    assert known.evidence == evidence_of_training(scan, OPTIONS) != new.evidence
    assert new.health == known.health == health_of_rivals(scan)
    assert new.accuracy.range == SteadyAccuracy(scan).range


def test_each_is_found_once(scan, monkeypatch):
    calls = []

    def counted(*given):
        calls.append(given)
        return evidence_of_held_out(*given)

    monkeypatch.setattr("finecal.gamma.seen_samples.evidence_of_held_out", counted)
    samples = SeenSamples(scan, OPTIONS, are_new=True)
    assert calls == []
    assert samples.evidence is samples.evidence
    assert len(calls) == 1


def test_a_comparison_looks_for_evidence_once(rng, monkeypatch):
    """Three of its estimates are from the same held-out samples."""
    calls = []

    def counted(*given):
        calls.append(given)
        return evidence_of_held_out(*given)

    monkeypatch.setattr("finecal.gamma.seen_samples.evidence_of_held_out", counted)
    held_out = doubtful_problem(rng)
    unlabelled = doubtful_problem(rng)[0]
    comparison = finecal.compare_estimators(MASK, held_out=held_out, unlabelled=unlabelled, seen_share=0.5)
    assert [row.method for row in comparison.rows].count("estimate_gamma") == 2
    assert len(calls) == 1
