"""What a comparison prints."""

import pytest

import finecal
from problems import OUTGROWN, data_of_every_kind, data_with_features


@pytest.fixture
def data(rng):
    return data_of_every_kind(rng)


def test_print(data):
    logits, labels = data["test"]
    pretrained = logits - 3.0 * OUTGROWN
    data["test"] = finecal.Samples(logits, labels, pretrained_logits=pretrained)
    comparison = finecal.compare_estimators(OUTGROWN, **data, n_bootstrap=20)
    assert comparison.pretrained == finecal.evaluate(pretrained, labels, OUTGROWN)
    lines = str(comparison).splitlines()
    last = len(comparison.rows) + 3  # below the header, a rule, and the models without gamma
    assert len({len(line) for line in lines[: last + 1]}) == 1
    assert len(lines[0]) <= 120
    header = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    accuracies = ["S/Y", "U/Y", "Y/Y", "harmonic"]
    assert header == ["Acc in %", "gamma", "interval", "cost", *accuracies, "recovered", "needs"]
    fine_tuned = dict(zip(header, (cell.strip() for cell in lines[3].split("|")[1:-1]), strict=True))
    assert fine_tuned["Acc in %"] == "fine-tuned"
    assert fine_tuned["Y/Y"] == f"{100 * comparison.uncalibrated.acc_all:.1f}"
    oracle = dict(zip(header, (cell.strip() for cell in lines[last].split("|")[1:-1]), strict=True))
    low, high = comparison.rows[-1].estimate.interval
    assert (oracle["Acc in %"], oracle["recovered"]) == ("oracle", "100")
    assert oracle["interval"] == f"{low:.2f}, {high:.2f}"
    text = str(comparison)
    at = comparison.uncalibrated
    assert f"; fine-tuned {100 * at.acc_seen_within:.1f}, {100 * at.acc_absent_within:.1f} and {at.ausuc:.3f}." in text
    assert "Interval: 95 % sampling interval of gamma; of estimate_gamma with the error of the method." in text
    assert "Cost: points of Acc_S/Y lost against gamma = 0, on 120 held-out samples." in text
    for row in comparison.rows:
        for sentence in row.estimate.warnings:
            assert f"Warning of {row.method} from {row.needs}: {sentence}" in text


def test_prototypes_print_beside_gamma(rng):
    data = data_with_features(rng)
    comparison = finecal.compare_estimators(OUTGROWN, **data)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in str(comparison).splitlines() if "|" in line]
    shown = dict(zip(lines[0], lines[-2], strict=True))
    row = comparison.rows[-2]
    assert shown["Acc in %"] == "estimate_gamma + prototypes"
    assert shown["gamma"] == f"{row.estimate.gamma:.2f}"
    assert shown["Y/Y"] == f"{100 * row.report.acc_all:.1f}"
    assert shown["cost"] == f"{100 * (row.estimate.acc_seen_at_zero - row.estimate.acc_seen_at_gamma):.1f}"
    at = row.report
    within = f"{100 * at.acc_seen_within:.1f}, {100 * at.acc_absent_within:.1f} and {at.ausuc:.3f}"
    assert f"; with prototypes {within}." in str(comparison)
    assert comparison.to_dict()["rows"][-2]["prototypes"]["n"] == 300
    table = comparison.to_pandas()
    assert table["method"].tolist()[-2] == row.method
    assert table["acc_all"].tolist()[-2] == row.report.acc_all
    assert table["warnings"].tolist()[-2] == "; ".join(row.prototypes.warnings)


def test_small_gammas_keep_three_digits(data):
    labelled = data["labelled"][0] * 1e-4, data["labelled"][1]
    cells = str(finecal.compare_estimators(OUTGROWN, labelled=labelled)).split()
    assert f"{finecal.search_gamma(*labelled, OUTGROWN).gamma:.6f}" in cells


def test_an_estimator_that_is_not_possible_says_why(data):
    logits, labels = data["train"]
    one_class = labels == 0
    comparison = finecal.compare_estimators(OUTGROWN, train=(logits[one_class], labels[one_class]), test=data["test"])
    (row,) = (row for row in comparison.rows if row.method == "mixed_pair_gap")
    assert (row.estimate, row.report, row.recovered) == (None, None, None)
    assert row.error.startswith("labels are all of class 0")
    assert f"Not possible: mixed_pair_gap from training logits: {row.error}" in str(comparison)
