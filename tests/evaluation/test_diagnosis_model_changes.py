"""What changed in fine-tuning: paired counts, gaps, head rows and nearest class means."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import NearestCentroid

import finecal
from before_and_after import MASK, C, D, diagnosed, linear_problem, reference_samples, scores
from finecal._evaluation import diagnosis as model_changes
from finecal._evaluation.diagnosis import PairedChange, head_rows

INF = math.inf


# --- counts -----------------------------------------------------------------------------------------------------------


def test_direction_is_mcnemars_test():
    for gained, lost in product(range(40), repeat=2):
        change = PairedChange(gained, lost, 150)
        statistic = max(abs(gained - lost) - 1, 0) ** 2 / max(gained + lost, 1)
        rejects = stats.chi2.sf(statistic, 1) < 0.05 and abs(gained - lost) >= 1.5
        assert change.direction == (int(np.sign(gained - lost)) if rejects else 0)
        # and never where the exact test is far from it
        if change.direction:
            assert stats.binomtest(gained, gained + lost).pvalue < 0.05
    assert PairedChange(0, 400, 100_000).direction == 0  # certain, but less than a point
    assert math.isnan(PairedChange(0, 0, 0).change)
    assert PairedChange(0, 0, 0).direction == 0


# --- nearest class means ----------------------------------------------------------------------------------------------


def cosine_classes(features, means):
    """The class of the largest cosine, a class without mean never; the order of groups does not matter without ties."""
    return [
        max((c for c in range(C) if means[c] is not None), key=lambda c: f @ means[c] / np.linalg.norm(f))
        for f in features
    ]


@pytest.mark.parametrize("half", [np.float64, np.float32, np.float16])
def test_nearest_class_means(rng, monkeypatch, half):
    monkeypatch.setattr(model_changes, "_BLOCK_ELEMENTS", 40 * D)  # several blocks, the last one shorter
    features, labels, old, new = linear_problem(rng, noise=2.0)
    features = features.astype(half)
    unit = features.astype(float) / np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    query, known = slice(0, 200), slice(200, 400)
    means = [unit[known][labels[known] == c].mean(0) for c in range(C)]
    means = [m / np.linalg.norm(m) for m in means]
    predicted = np.array(cosine_classes(unit[query], means))

    samples = finecal.Samples(
        scores(features, new).astype(float),
        labels,
        pretrained_logits=scores(features, old),
        features=features,
        pretrained_features=np.tile(features, 2),
    )
    diagnosis = finecal.diagnose(samples[query], MASK, reference=samples[known])
    report, y, seen = diagnosis.finetuned_ncm, labels[query], MASK[labels[query]]
    assert report.acc_all == np.mean(predicted == y)
    assert report.acc_seen == np.mean((predicted == y)[seen])
    assert report.acc_absent == np.mean((predicted == y)[~seen])
    cosines = np.where(MASK[y][:, None] == MASK, unit[query] @ np.array(means).T, -INF)
    assert report.acc_absent_within == np.mean((cosines.argmax(1) == y)[~seen])
    assert diagnosis.pretrained_ncm == report
    assert diagnosis.ncm_absent_change == (0, 0, (~seen).sum())

    # on unit features and unit means, the nearest centroid has the largest cosine
    centroids = NearestCentroid().fit(unit[known], labels[known])
    centroids.centroids_ = np.array(means)
    assert np.array_equal(centroids.predict(unit[query]), predicted)


def test_classes_without_reference_samples(rng):
    features, labels, old, new = linear_problem(rng, noise=2.0)
    known = ~np.isin(labels, [1, 4])
    given = {"features": features, "reference": reference_samples(labels[known], features=features[known])}
    with pytest.warns(finecal.FinecalWarning) as record:
        diagnosis = diagnosed((features, labels, old, new), **given)
    assert len(record) == 1
    assert diagnosis.warnings == (
        f"reference lacks 2 of 7 classes (class 1, 4), which have no mean: {(~known).sum()} of 400 samples are "
        "left out of the NCM accuracies",
    )
    assert str(record[0].message) == f"diagnose: {diagnosis.warnings[0]}"
    assert record[0].filename.endswith("before_and_after.py")
    assert f"warning: {diagnosis.warnings[0][:60]}" in str(diagnosis)
    assert diagnosis.finetuned_ncm.n_seen + diagnosis.finetuned_ncm.n_absent == known.sum()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = [unit[labels == c].mean(0) if c not in (1, 4) else None for c in range(C)]
    means = [m if m is None else m / np.linalg.norm(m) for m in means]
    assert diagnosis.finetuned_ncm.acc_all == np.mean(cosine_classes(unit[known], means) == labels[known])

    only_seen = MASK[labels]
    for rows, group in ((only_seen, "absent"), (~only_seen, "seen")):
        with pytest.raises(ValueError, match=f"reference has labels of no {group} class"):
            diagnosed(
                (features, labels, old, new),
                features=features,
                reference=reference_samples(labels[rows], features=features[rows]),
            )


def test_a_class_without_mean_does_not_win_by_cosine_zero():
    # all cosines with the two means are negative
    logits = np.array([[3.0, 2.0, 1.0, 0.0], [2.0, 3.0, 1.0, 0.0]])
    features = np.array([[-1.0, 0.0], [-1.0, 3.0]])
    samples = finecal.Samples(logits, [0, 2], pretrained_logits=logits, features=features)
    reference = reference_samples([0, 2], 4, features=np.array([[1.0, -2.0], [1.0, 0.0]]))
    with pytest.warns(finecal.FinecalWarning, match=r"lacks 2 of 4 classes \(class 1, 3\)"):
        diagnosis = finecal.diagnose(samples, [True, True, False, False], reference=reference)
    assert (diagnosis.finetuned_ncm.acc_seen, diagnosis.finetuned_ncm.acc_absent) == (1.0, 1.0)


def test_features_and_means_of_norm_zero():
    # class 0's reference features cancel; the zero feature has cosine 0 with all: the first seen class
    logits = np.array([[3.0, 2.0, 0.0], [2.0, 3.0, 0.0]])
    features = np.array([[0.0, 0.0], [5.0, 1.0]])
    samples = finecal.Samples(logits, [0, 1], pretrained_logits=logits, features=features)
    means_of = np.array([[0.0, 1.0], [0.0, -1.0], [2.0, 0.0], [0.0, 9.0]])
    reference = reference_samples([0, 0, 1, 2], 3, features=means_of)
    diagnosis = finecal.diagnose(samples, [True, False, False], reference=reference)
    assert diagnosis.finetuned_ncm.acc_all == 1.0


def test_one_hot_features_are_no_probabilities():
    eye = np.eye(4)
    labels = np.arange(4)
    samples = finecal.Samples(9 * eye, labels, pretrained_logits=9 * eye, features=eye)
    diagnosis = finecal.diagnose(samples, [True, True, False, False], reference=samples)
    assert diagnosis.finetuned_ncm.acc_all == 1.0


# --- gaps -------------------------------------------------------------------------------------------------------------


def gaps_of_row(row, label):
    """Largest seen and absent logit, and the gap of means, the label's own logit and masked ones left out."""
    groups = [[z for c, z in enumerate(row) if MASK[c] == g and c != label and z != -INF] for g in (True, False)]
    return (*(max(group) for group in groups), np.mean(groups[0]) - np.mean(groups[1]))


def test_gaps(rng, device, dtype):
    features, labels, _, new = linear_problem(rng, n=80, shift=4.0)
    logits = torch.tensor(scores(features, new)).to(device, dtype)
    logits[3, 0] = logits[4, 1] = logits[5, labels[5]] = -INF
    y = torch.tensor(labels, device=device)
    with pytest.warns(finecal.FinecalWarning) as record:
        gaps = finecal.diagnose(finecal.Samples(logits, y, pretrained_logits=logits), MASK).finetuned_gaps
    own = int((logits[torch.arange(80), y] == -INF).sum())
    assert [str(warning.message).partition(": these count as wrong, which is no damage")[0] for warning in record] == [
        f"diagnose: {prefix}logits are -inf on the label in {own} of 80 samples" for prefix in ("pretrained_", "")
    ]
    rows = np.array([gaps_of_row(r, c) for r, c in zip(logits.tolist(), labels, strict=True)])
    for gap, group in ((gaps.seen, MASK[labels]), (gaps.absent, ~MASK[labels])):
        seen_max, absent_max, average = rows[group].mean(0)
        assert gap == pytest.approx((seen_max, absent_max, seen_max - absent_max, average), rel=1e-6)


def test_gaps_worked_by_hand():
    logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0], [5.0, 2.0, 7.0, 1.0], [4.0, 3.0, 0.0, 6.0]])
    diagnosis = finecal.diagnose(
        finecal.Samples(logits, [0, 1, 2, 3], pretrained_logits=logits - 1), [True, True, False, False]
    )
    assert diagnosis.finetuned_gaps.seen == (3.5, 1.5, 2.0, 2.5)
    assert diagnosis.finetuned_gaps.absent == (4.5, 0.5, 4.0, 3.0)
    assert diagnosis.pretrained_gaps.absent == (3.5, -0.5, 4.0, 3.0)
    estimate = finecal.estimators.max_logit_gap(logits[:2], [0, 1], [True, True, False, False])
    assert diagnosis.finetuned_gaps.seen.max_gap == estimate.gamma


@pytest.mark.filterwarnings("ignore:diagnose. there is only one absent class")
@pytest.mark.parametrize("seen", [[0], [0, 1]])
def test_a_group_of_one_class_has_no_gap_of_its_own_samples(seen):
    mask = np.isin(np.arange(3), seen)
    logits = np.array([[9.0, 4.0, 1.0], [3.0, 8.0, 0.0], [5.0, 2.0, 7.0]])
    diagnosis = finecal.diagnose(finecal.Samples(logits, [0, 1, 2], pretrained_logits=logits), mask)
    alone, other = diagnosis.finetuned_gaps if len(seen) == 1 else diagnosis.finetuned_gaps[::-1]
    assert all(math.isnan(value) for value in alone)
    assert all(math.isfinite(value) for value in other)
    assert " - |" in str(diagnosis)


# --- heads ------------------------------------------------------------------------------------------------------------


def test_head_rows_worked_by_hand():
    old = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [5.0, 0.0]])
    update = torch.tensor([[3.0, 4.0], [0.0, 0.0], [2.0, 0.0], [0.0, 0.5], [1.0, 1.0]])
    rows = head_rows(old, old + update, torch.tensor([True, True, False, False, False]))
    assert rows.seen[:2] == (3.0, 5.5)
    assert math.isnan(rows.seen.update_cosine)  # one row moved
    assert rows.absent.pretrained_norm == pytest.approx(8 / 3)
    assert rows.absent.finetuned_norm == pytest.approx((3 + 2.5 + math.sqrt(37)) / 3)
    assert rows.absent.update_cosine == pytest.approx((0 + 2 * math.sqrt(0.5)) / 3)


def test_head_rows_equal_the_mean_over_pairs(rng):
    old, new = rng.normal(size=(2, C, D))
    rows = head_rows(torch.tensor(old), torch.tensor(new), torch.tensor(MASK))
    for group, members in ((rows.seen, MASK), (rows.absent, ~MASK)):
        cosines = [u @ v / np.linalg.norm(u) / np.linalg.norm(v) for u, v in combinations((new - old)[members], 2)]
        assert group.update_cosine == pytest.approx(np.mean(cosines))
        assert group.finetuned_norm == pytest.approx(np.linalg.norm(new[members], axis=1).mean())
