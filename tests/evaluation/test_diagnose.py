import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import NearestCentroid

import finecal
import reference
from finecal.evaluation import model_changes
from finecal.evaluation.model_changes import PairedChange, head_rows
from finecal.inputs.features import check_head, doubts_about_head

INF = math.inf
MASK = np.array([True, False, True, False, True, False, False])
C, D = len(MASK), 12


def linear_problem(rng, n=400, noise=1.0, shift=0.0, shuffle=False):
    """Samples around their class's head row; fine-tuning raised the seen logits, and swapped two absent rows."""
    labels = rng.integers(0, C, n)
    old = 3 * np.linalg.qr(rng.normal(size=(D, C)))[0].T
    features = old[labels] + noise * rng.normal(size=(n, D))
    new = old.copy()
    if shuffle:
        new[[5, 6]] = new[[6, 5]]
    bias = shift * MASK
    return features, labels, (old, np.zeros(C)), (new, bias)


def scores(features, head):
    return features @ head[0].T + head[1]


def diagnosed(problem, **more):
    features, labels, old, new = problem
    return finecal.diagnose(scores(features, new), labels, MASK, pretrained_logits=scores(features, old), **more)


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shift", "shuffle", "verdict", "helps"),
    [
        (0.0, False, "no gap", False),
        (30.0, False, "calibration helps", True),
        (-30.0, False, "calibration helps", True),
        (30.0, True, "damaged", True),
        (-30.0, True, "damaged", True),
    ],
)
def test_known_damage(rng, shift, shuffle, verdict, helps):
    diagnosis = diagnosed(linear_problem(rng, noise=0.3, shift=shift, shuffle=shuffle))
    assert (diagnosis.verdict, diagnosis.calibration_helps, diagnosis.damaged) == (verdict, helps, shuffle)
    if not shuffle:
        assert diagnosis.oracle.acc_all == pytest.approx(diagnosis.pretrained.acc_all, abs=0.01)
        assert diagnosis.absent_change == (0, 0, (~MASK[linear_problem(np.random.default_rng(0))[1]]).sum())
    if shift:
        assert diagnosis.oracle.gamma == pytest.approx(shift, abs=5)
    start = {
        "no gap": "No gap: ",
        "calibration helps": "Calibration will help: ",
        "damaged": "Absent classes' features or head rows were damaged (told apart ",
    }
    assert diagnosis.sentences[0].startswith(start[verdict])


def test_damage_that_calibration_cannot_ease():
    # every absent sample is taken for the other absent class; the groups are told apart without fault
    labels = np.arange(200) % 4
    old = 9 * np.eye(4)[labels]
    new = old[:, [0, 1, 3, 2]]
    diagnosis = finecal.diagnose(new, labels, [True, True, False, False], pretrained_logits=old)
    assert (diagnosis.verdict, diagnosis.calibration_helps) == ("damaged", False)
    assert diagnosis.sentences[:2] == (
        "Absent classes' features or head rows were damaged (told apart among themselves, Acc_U/U: 100.0 -> 0.0 %, "
        "-100.0 ± 10.0 points), and calibration will not help: even the oracle gamma = 8 changes Acc_Y/Y by +0.0 ± 0.0 "
        "points, which is within noise or too little to matter.",
        "Part of what told the absent classes apart was lost, and no gamma brings it back; Acc_U/Y cannot exceed "
        "Acc_U/U = 0.0 %.",
    )


def test_absent_classes_told_apart_better_are_said_to(rng):
    features, labels, (old, zero), _ = linear_problem(rng, noise=0.3)
    worse = old + 3 * rng.normal(size=old.shape)
    given = {"pretrained_features": features, "pretrained_reference_features": features, "reference_labels": labels}
    given |= {"features": rng.normal(size=features.shape), "reference_features": features}
    diagnosis = diagnosed((features, labels, (worse, zero), (old, zero)), **given)
    assert diagnosis.absent_change.direction == 1
    assert diagnosis.sentences[1].startswith("The absent classes are told apart better than before fine-tuning: ")
    # and by the head alone
    assert diagnosis.sentences[-1].endswith("the absent classes' features were damaged.")


def test_a_change_below_a_point_is_not_called_noise():
    labels = np.arange(100_000) % 4
    old = 9 * np.eye(4)[labels]
    new = old.copy()
    new[labels == 2, 3] += 99 * (np.arange(25_000) < 400)
    diagnosis = finecal.diagnose(new, labels, [True, True, False, False], pretrained_logits=old)
    assert not diagnosis.damaged
    assert diagnosis.sentences[1].startswith(
        "How well the absent classes are told apart changed by no more than noise or a point: Acc_U/U 100.0 -> 99.2 %"
    )


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


def test_luck_is_no_gap():
    # without a gap, the best gamma gains something on most samples: rarely enough to be called one
    rng = np.random.default_rng(1)
    called, gains, trials = 0, [], 300
    for _ in range(trials):
        labels = rng.integers(0, 4, 150)
        logits = rng.normal(size=(150, 4)) + 0.8 * np.eye(4)[labels]
        diagnosis = finecal.diagnose(logits, labels, [True, False] * 2, pretrained_logits=logits)
        called += diagnosis.calibration_helps
        gains.append(diagnosis.gain.change)
    assert np.median(gains) > 0.01
    assert called <= stats.binom.ppf(0.99, trials, 0.05)
    assert stats.rayleigh.sf(2.72) == pytest.approx(0.025, abs=5e-4)


def test_a_gain_that_may_be_luck_asks_for_more_samples():
    labels = np.array([0, 0, 1])
    logits = np.array([[2.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    with pytest.warns(finecal.FinecalWarning, match="there is one absent class only.*damage does not show"):
        diagnosis = finecal.diagnose(logits, labels, [True, False], pretrained_logits=logits)
    assert (diagnosis.verdict, diagnosis.gain) == ("no gap", (1, 0, 3))
    assert "A gain of this size may be luck in so few samples: more labelled samples would tell." in diagnosis.sentences


# --- accuracies -------------------------------------------------------------------------------------------------------


def test_reports_are_those_of_evaluate(rng, device, dtype):
    features, labels, old, (weight, bias) = linear_problem(rng, noise=2.0, shift=4.0)
    new = weight + rng.normal(size=weight.shape), bias
    logits, before = (torch.tensor(scores(features, head)).to(device, dtype) for head in (new, old))
    y = torch.tensor(labels, device=device)
    diagnosis = finecal.diagnose(logits, y, MASK, pretrained_logits=before)
    gamma = finecal.tradeoff_curve(logits, y, MASK).best()
    assert diagnosis.finetuned == finecal.evaluate(logits, y, MASK)
    assert diagnosis.pretrained == finecal.evaluate(before, y, MASK)
    assert diagnosis.oracle == finecal.evaluate(logits, y, MASK, gamma)

    def correct(rows, gamma):
        return [reference.predict(row, MASK, gamma) == c for row, c in zip(rows.tolist(), labels, strict=True)]

    pairs = list(zip(correct(logits.double(), 0.0), correct(logits.double(), gamma), strict=True))
    assert diagnosis.gain == (pairs.count((False, True)), pairs.count((True, False)), len(labels))
    hits = [[reference.is_hit(r, c, MASK) for r, c in zip(x.tolist(), labels, strict=True)] for x in (before, logits)]
    pairs = [pair for *pair, c in zip(*hits, labels, strict=True) if not MASK[c]]
    assert diagnosis.absent_change == (pairs.count([False, True]), pairs.count([True, False]), len(pairs))
    assert diagnosis.gain.change == pytest.approx(diagnosis.oracle.acc_all - diagnosis.finetuned.acc_all)
    assert diagnosis.seen_change.change != 0
    assert diagnosis.seen_change.change == pytest.approx(
        diagnosis.finetuned.acc_seen_within - diagnosis.pretrained.acc_seen_within
    )


def test_same_for_tensors_arrays_and_lists(rng):
    features, labels, old, new = linear_problem(rng, n=60, shift=4.0)
    given = {
        "features": features,
        "reference_features": features[::-1],
        "reference_labels": labels[::-1],
        "pretrained_logits": scores(features, old),
    }
    expected = finecal.diagnose(scores(features, new), labels, MASK, **given)
    tensors = {name: torch.tensor(value.copy()) for name, value in given.items()}
    logits = torch.tensor(scores(features, new), requires_grad=True)
    assert finecal.diagnose(logits, torch.tensor(labels), torch.tensor(MASK), **tensors) == expected
    lists = {name: value.tolist() for name, value in given.items()}
    assert finecal.diagnose(logits.tolist(), labels.tolist(), MASK.tolist(), **lists) == expected


def test_invariances(rng):
    features, labels, old, new = linear_problem(rng, noise=2.0, shift=4.0)
    given = {"reference_labels": labels[:300], "reference_features": features[:300]}
    expected = diagnosed((features, labels, old, new), features=features, **given)
    # a constant per row, the order of samples, the scale of features
    logits, before = scores(features, new) + 8 * rng.normal(size=(400, 1)), scores(features, old)
    order = rng.permutation(400)
    moved = finecal.diagnose(
        logits[order],
        labels[order],
        MASK,
        pretrained_logits=before[order],
        features=1e4 * features[order],
        reference_features=1e-4 * features[:300],
        reference_labels=labels[:300],
    )
    # the order of classes
    renamed = rng.permutation(C)
    inverse = np.argsort(renamed)
    permuted = finecal.diagnose(
        scores(features, new)[:, renamed],
        inverse[labels],
        MASK[renamed],
        pretrained_logits=before[:, renamed],
        features=features,
        reference_features=features[:300],
        reference_labels=inverse[labels[:300]],
    )
    for other in (moved, permuted):
        assert (other.gain, other.absent_change) == (expected.gain, expected.absent_change)
        assert other.finetuned_ncm == expected.finetuned_ncm
        for gap, same in zip(other.finetuned_gaps, expected.finetuned_gaps, strict=True):
            assert gap[2:] == pytest.approx(same[2:])


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

    diagnosis = finecal.diagnose(
        scores(features, new)[query].astype(float),
        labels[query],
        MASK,
        pretrained_logits=scores(features, old)[query],
        features=features[query],
        pretrained_features=np.tile(features[query], 2),
        reference_features=features[known],
        pretrained_reference_features=np.tile(features[known], 2),
        reference_labels=labels[known],
    )
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
    given = {"features": features, "reference_features": features[known], "reference_labels": labels[known]}
    with pytest.warns(finecal.FinecalWarning) as record:
        diagnosis = diagnosed((features, labels, old, new), **given)
    assert len(record) == 1
    assert diagnosis.warnings == (
        f"reference_labels lack 2 of 7 classes (class 1, 4), which have no mean: {(~known).sum()} of 400 samples are "
        "left out of the NCM accuracies",
    )
    assert str(record[0].message) == f"diagnose: {diagnosis.warnings[0]}"
    assert record[0].filename.endswith("test_diagnose.py")
    assert f"warning: {diagnosis.warnings[0][:60]}" in str(diagnosis)
    assert diagnosis.finetuned_ncm.n_seen + diagnosis.finetuned_ncm.n_absent == known.sum()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = [unit[labels == c].mean(0) if c not in (1, 4) else None for c in range(C)]
    means = [m if m is None else m / np.linalg.norm(m) for m in means]
    assert diagnosis.finetuned_ncm.acc_all == np.mean(cosine_classes(unit[known], means) == labels[known])

    only_seen = MASK[labels]
    for rows, group in ((only_seen, "absent"), (~only_seen, "seen")):
        with pytest.raises(ValueError, match=f"reference_labels hold no {group} class"):
            diagnosed(
                (features, labels, old, new),
                features=features,
                reference_features=features[rows],
                reference_labels=labels[rows],
            )


def test_a_class_without_mean_does_not_win_by_cosine_zero():
    # all cosines with the two means are negative
    logits = np.array([[3.0, 2.0, 1.0, 0.0], [2.0, 3.0, 1.0, 0.0]])
    with pytest.warns(finecal.FinecalWarning, match=r"lack 2 of 4 classes \(class 1, 3\)"):
        diagnosis = finecal.diagnose(
            logits,
            [0, 2],
            [True, True, False, False],
            pretrained_logits=logits,
            features=np.array([[-1.0, 0.0], [-1.0, 3.0]]),
            reference_features=np.array([[1.0, -2.0], [1.0, 0.0]]),
            reference_labels=[0, 2],
        )
    assert (diagnosis.finetuned_ncm.acc_seen, diagnosis.finetuned_ncm.acc_absent) == (1.0, 1.0)


def test_features_and_means_of_norm_zero():
    # class 0's reference features cancel; the zero feature has cosine 0 with all: the first seen class
    logits = np.array([[3.0, 2.0, 0.0], [2.0, 3.0, 0.0]])
    diagnosis = finecal.diagnose(
        logits,
        [0, 1],
        [True, False, False],
        pretrained_logits=logits,
        features=np.array([[0.0, 0.0], [5.0, 1.0]]),
        reference_features=np.array([[0.0, 1.0], [0.0, -1.0], [2.0, 0.0], [0.0, 9.0]]),
        reference_labels=[0, 0, 1, 2],
    )
    assert diagnosis.finetuned_ncm.acc_all == 1.0


def test_one_hot_features_are_no_probabilities():
    eye = np.eye(4)
    labels = np.arange(4)
    diagnosis = finecal.diagnose(
        9 * eye,
        labels,
        [True, True, False, False],
        pretrained_logits=9 * eye,
        features=eye,
        reference_features=eye,
        reference_labels=labels,
    )
    assert diagnosis.finetuned_ncm.acc_all == 1.0


def test_ncm_tells_a_damaged_head_from_damaged_features(rng):
    problem = linear_problem(rng, noise=0.3, shift=30.0, shuffle=True)
    features, labels = problem[:2]
    given = {
        "pretrained_features": features,
        "pretrained_reference_features": features,
        "reference_features": features,
        "reference_labels": labels,
    }
    head_only = diagnosed(problem, features=features, **given)
    assert head_only.sentences[0].startswith("Absent classes were damaged (told apart ")
    assert head_only.sentences[-1].endswith("the absent classes' features changed by no more than noise or a point.")
    noisy = np.where(MASK[labels][:, None], features, rng.normal(size=features.shape))
    both = diagnosed(problem, features=noisy, **given)
    assert both.sentences[0].startswith("Absent classes' features were damaged (told apart ")
    assert both.sentences[-1].endswith("the absent classes' features were damaged.")


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
        gaps = finecal.diagnose(logits, y, MASK, pretrained_logits=logits).finetuned_gaps
    own = int((logits[torch.arange(80), y] == -INF).sum())
    assert [str(warning.message).partition(": that they count as wrong is no damage")[0] for warning in record] == [
        f"diagnose: {prefix}logits are -inf on the label in {own} of 80 samples" for prefix in ("pretrained_", "")
    ]
    rows = np.array([gaps_of_row(r, c) for r, c in zip(logits.tolist(), labels, strict=True)])
    for gap, group in ((gaps.seen, MASK[labels]), (gaps.absent, ~MASK[labels])):
        seen_max, absent_max, average = rows[group].mean(0)
        assert gap == pytest.approx((seen_max, absent_max, seen_max - absent_max, average), rel=1e-6)


def test_gaps_worked_by_hand():
    logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0], [5.0, 2.0, 7.0, 1.0], [4.0, 3.0, 0.0, 6.0]])
    diagnosis = finecal.diagnose(logits, [0, 1, 2, 3], [True, True, False, False], pretrained_logits=logits - 1)
    assert diagnosis.finetuned_gaps.seen == (3.5, 1.5, 2.0, 2.5)
    assert diagnosis.finetuned_gaps.absent == (4.5, 0.5, 4.0, 3.0)
    assert diagnosis.pretrained_gaps.absent == (3.5, -0.5, 4.0, 3.0)
    estimate = finecal.max_logit_gap(logits[:2], [0, 1], [True, True, False, False])
    assert diagnosis.finetuned_gaps.seen.max_gap == estimate.gamma


@pytest.mark.filterwarnings("ignore:diagnose. there is one absent class only")
@pytest.mark.parametrize("seen", [[0], [0, 1]])
def test_a_group_of_one_class_has_no_gap_of_its_own_samples(seen):
    mask = np.isin(np.arange(3), seen)
    logits = np.array([[9.0, 4.0, 1.0], [3.0, 8.0, 0.0], [5.0, 2.0, 7.0]])
    diagnosis = finecal.diagnose(logits, [0, 1, 2], mask, pretrained_logits=logits)
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


def test_a_head_is_a_linear_layer_or_a_pair(rng, device):
    features, labels, old, new = linear_problem(rng, shift=0.0, shuffle=True)
    linear = torch.nn.Linear(D, C, bias=False, device=device, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(new[0]))
    pairs = diagnosed((features, labels, old, new), head=new, pretrained_head=list(old))
    layer = diagnosed((features, labels, old, new), head=linear, pretrained_head=(torch.tensor(old[0]), None))
    assert layer.head_rows == pairs.head_rows
    assert "| absent " in str(layer)


@pytest.mark.parametrize(
    ("head", "error", "match"),
    [
        (np.ones((C, D)), TypeError, "head is a ndarray"),
        (torch.nn.Conv1d(D, C, 1), TypeError, "head is a Conv1d"),
        ((np.ones((D, C)), np.ones(C)), ValueError, r"expected \(7, D\) and \(7,\)"),
        ((np.ones((C, D)), np.ones(D)), ValueError, r"expected \(7, D\) and \(7,\)"),
        ((np.ones((C, D), int), None), TypeError, "the weight of head has dtype int64"),
        ((np.ones((C, D)), np.ones(C, int)), TypeError, "the bias of head has dtype int64"),
        ((np.full((C, D), np.nan), None), ValueError, "the weight of head contains NaN"),
        ((np.ones((C, D)), np.full(C, INF)), ValueError, "the bias of head contains NaN or infinity"),
        ((None, None), TypeError, "the weight of head is None"),
        ((np.ones((C, D + 1)), None), ValueError, "pretrained_head takes 12 features, head 13"),
    ],
)
def test_wrong_heads(rng, head, error, match):
    problem = linear_problem(rng)
    with pytest.raises(error, match=match):
        diagnosed(problem, head=head, pretrained_head=problem[2])


@pytest.mark.parametrize("half", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("what", ["logits", "features", "head", "all", "log-probabilities"])
def test_rounding_is_no_mismatch(rng, half, what):
    features, _, _, (weight, bias) = linear_problem(rng, n=3000, shift=5.0)
    x, w, b = (torch.tensor(array) for array in (features, weight, bias))
    z = x @ w.T + b
    z = z.log_softmax(1) if what == "log-probabilities" else z
    x, w, b, z = (
        t.to(half) if what in (name, "all", "log-probabilities") else t
        for t, name in ((x, "features"), (w, "head"), (b, "head"), (z, "logits"))
    )
    z[0, 2] = -INF
    assert doubts_about_head(z, x, *check_head((w, b), C, z.device)) == []


def test_mixed_precision_is_no_mismatch(rng):
    features, _, _, (weight, bias) = linear_problem(rng, n=3000, shift=5.0)
    linear = torch.nn.Linear(D, C)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor(weight))
        linear.bias.copy_(torch.tensor(bias))
        x = torch.tensor(features, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            z = linear(x).float()
    assert doubts_about_head(z, x, *check_head(linear, C, z.device)) == []


def test_heads_that_do_not_fit_are_warned_of(rng):
    features, labels, old, new = linear_problem(rng, shift=5.0)
    with pytest.warns(finecal.FinecalWarning) as record:
        diagnosis = diagnosed((features, labels, old, new), features=features, head=old, pretrained_head=old)
    assert len(record) == 1
    assert diagnosis.warnings[0].startswith("head applied to features does not give logits: they differ by up to 2.")
    assert "in 400 of 400 samples checked" in diagnosis.warnings[0]
    with pytest.warns(finecal.FinecalWarning, match="pretrained_head applied to pretrained_features does not give"):
        diagnosed((features, labels, old, new), pretrained_features=features[::-1], head=new, pretrained_head=old)
    with pytest.raises(ValueError, match="pretrained_features have 11 columns, pretrained_head takes 12"):
        diagnosed((features, labels, old, new), pretrained_features=features[:, 1:], head=new, pretrained_head=old)


# --- what may be left out ---------------------------------------------------------------------------------------------


def test_every_combination_of_optional_arguments(rng):
    problem = linear_problem(rng, n=90, shift=5.0)
    features, labels, old, new = problem
    optional = {
        "features": features,
        "pretrained_features": features,
        "reference_features": features,
        "pretrained_reference_features": features,
        "reference_labels": labels,
        "head": new,
        "pretrained_head": old,
    }
    accepted = 0
    for given in product([False, True], repeat=len(optional)):
        has = dict(zip(optional, given, strict=True))
        usable = has["head"] == has["pretrained_head"]
        for prefix in ("", "pretrained_"):
            own, means = has[f"{prefix}features"], has[f"{prefix}reference_features"]
            usable &= not means or (own and has["reference_labels"])
            usable &= not own or means or has["head"]
        usable &= not has["reference_labels"] or has["reference_features"] or has["pretrained_reference_features"]
        arguments = {name: value for name, value in optional.items() if has[name]}
        if not usable:
            with pytest.raises(ValueError, match="pass both|pass all three|pass either|are given without"):
                diagnosed(problem, **arguments)
            continue
        accepted += 1
        diagnosis = diagnosed(problem, **arguments)
        assert (diagnosis.finetuned_ncm is not None) == has["reference_features"]
        assert (diagnosis.pretrained_ncm is not None) == has["pretrained_reference_features"]
        assert (diagnosis.ncm_absent_change is not None) == (
            has["reference_features"] and has["pretrained_reference_features"]
        )
        assert (diagnosis.head_rows is not None) == has["head"]
        text = str(diagnosis)
        assert max(map(len, text.splitlines())) <= 120
        assert ("NCM" in text) == has["reference_labels"]
        assert ("head rows" in text) == has["head"]
    assert accepted == 13


@pytest.mark.parametrize(
    ("name", "value", "error", "match"),
    [
        (
            "pretrained_logits",
            np.ones((30, C + 1)),
            ValueError,
            r"pretrained_logits have shape \(30, 8\), logits \(30, 7\)",
        ),
        ("pretrained_logits", np.ones((30, C), int), TypeError, "pretrained_logits has dtype int64"),
        ("pretrained_logits", np.full((30, C), np.nan), ValueError, "pretrained_logits contain NaN"),
        ("pretrained_logits", np.full((30, C), 1 / C), ValueError, "pretrained_logits look like probabilities"),
        ("features", np.ones((29, D)), ValueError, r"features have shape \(29, 12\); expected \(30, D\)"),
        ("features", np.ones((30, D), int), TypeError, "features have dtype int64"),
        ("features", np.full((30, D), INF), ValueError, r"features contain NaN or infinity \(first in row 0, 30 of 30"),
        ("features", np.ones((30, D - 1)), ValueError, "reference_features have 12 columns, features 11"),
        ("features", np.ones((30, 0)), ValueError, r"features have shape \(30, 0\)"),
        ("features", np.where(np.eye(30, D), np.nan, 1), ValueError, r"features contain NaN .* row 0, 12 of 30"),
        ("reference_features", np.ones(D), ValueError, r"expected \(R, D\)"),
        (
            "reference_labels",
            np.zeros(29, int),
            ValueError,
            "reference_labels have shape .* rows of reference_features",
        ),
        ("reference_labels", np.zeros(30), TypeError, "reference_labels have dtype float64"),
        ("reference_labels", np.full(30, C), ValueError, r"reference_labels contain 7, outside \[0, 7\)"),
        ("labels", np.zeros(30, int), ValueError, "labels are of seen classes only"),
        ("labels", np.ones(30, int), ValueError, "labels are of absent classes only"),
    ],
)
def test_wrong_input(rng, name, value, error, match):
    features, labels, old, new = linear_problem(rng, n=30)
    given = {
        "labels": labels,
        "pretrained_logits": scores(features, old),
        "features": features,
        "reference_features": features,
        "reference_labels": labels,
    }
    with pytest.raises(error, match=match):
        finecal.diagnose(scores(features, new), seen_mask=MASK, **(given | {name: value}))


def test_no_samples():
    with pytest.raises(ValueError, match="diagnose has nothing to estimate from"):
        finecal.diagnose(np.ones((0, C)), np.ones(0, int), MASK, pretrained_logits=np.ones((0, C)))


def test_prints_for_a_terminal():
    # worked by hand: each sample is 3 times its class's unit vector, and fine-tuning shifts all its seen logits by 1.5
    # and all its absent ones by -1.5
    labels = np.arange(60) % 4
    features, old = 3 * np.eye(4)[labels], np.eye(4)
    new = old + np.array([0.5, 0.5, -0.5, -0.5])[:, None]
    diagnosis = finecal.diagnose(
        features @ new.T,
        labels,
        [True, True, False, False],
        pretrained_logits=features @ old.T,
        features=features,
        pretrained_features=features,
        reference_features=features,
        pretrained_reference_features=features,
        reference_labels=labels,
        head=(new, None),
        pretrained_head=(old, None),
    )
    text = str(diagnosis)
    assert " ".join(text.partition("\n\n")[0].split()) == (
        "verdict: calibration helps Calibration will help: the oracle gamma = 3 gives accuracy on all classes "
        "(Acc_Y/Y) 50.0 -> 100.0 % (+50.0 ± 9.1 points), on absent ones (Acc_U/Y) 0.0 -> 100.0 %, on seen ones "
        "(Acc_S/Y) 100.0 -> 100.0 %. How well the absent classes are told apart changed by no more than noise or a "
        "point: Acc_U/U 100.0 -> 100.0 % (+0.0 ± 0.0 points); Acc_U/Y cannot exceed Acc_U/U = 100.0 %. Against the "
        "model before fine-tuning, the oracle gamma leaves Acc_Y/Y +0.0 points, Acc_U/Y +0.0 points and Acc_S/Y +0.0 "
        "points. On samples of absent classes the gap between the largest seen and absent logits (the label's own left "
        "out) went from 0 to 3 in fine-tuning. By nearest class means (NCM), which do without the head, Acc_U/U 100.0 "
        "-> 100.0 % (+0.0 ± 0.0 points): the absent classes' features changed by no more than noise or a point."
    )
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| accuracy, %                      | gamma | Acc_Y/Y | Acc_S/Y | Acc_U/Y | Acc_S/S | Acc_U/U |  AUSUC |",
        "| -------------------------------- | ----: | ------: | ------: | ------: | ------: | ------: | -----: |",
        "| before fine-tuning               |     0 |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| fine-tuned                       |     0 |    50.0 |   100.0 |     0.0 |   100.0 |   100.0 | 1.0000 |",
        "| fine-tuned, oracle gamma         |     3 |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| NCM, features before fine-tuning |       |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| NCM, features fine-tuned         |       |   100.0 |   100.0 |   100.0 |   100.0 |   100.0 | 1.0000 |",
        "| mean logits of samples         | largest seen | largest absent |  gap | gap of means |",
        "| ------------------------------ | -----------: | -------------: | ---: | -----------: |",
        "| with seen labels, before       |         0.00 |           0.00 | 0.00 |         0.00 |",
        "| with seen labels, fine-tuned   |         1.50 |          -1.50 | 3.00 |         3.00 |",
        "| with absent labels, before     |         0.00 |           0.00 | 0.00 |         0.00 |",
        "| with absent labels, fine-tuned |         1.50 |          -1.50 | 3.00 |         3.00 |",
        "| head rows | norm before | norm fine-tuned | cosine of updates |",
        "| --------- | ----------: | --------------: | ----------------: |",
        "| seen      |        1.00 |            1.73 |              1.00 |",
        "| absent    |        1.00 |            1.00 |              1.00 |",
    ]
    assert text.splitlines()[12] == "60 labelled samples: 30 of seen classes, 30 of absent ones"


def test_a_group_without_samples_prints_a_dash():
    # the absent reference class is another than that of the only absent sample
    logits = np.array([[4.0, 1.0, 3.0], [2.0, 5.0, 2.5]])
    with pytest.warns(finecal.FinecalWarning, match=r"lack 1 of 3 classes \(class 1\)"):
        diagnosis = finecal.diagnose(
            logits,
            [0, 1],
            [True, False, False],
            pretrained_logits=logits,
            features=logits,
            pretrained_features=logits,
            reference_features=logits,
            pretrained_reference_features=logits,
            reference_labels=[0, 2],
        )
    assert diagnosis.ncm_absent_change == (0, 0, 0)
    assert "| NCM, features fine-tuned         |       |   100.0 |   100.0 |       - |" in str(diagnosis)
