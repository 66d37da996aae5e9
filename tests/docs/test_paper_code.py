"""What the page on the paper's code says agrees, or does not: the released computations, written down a second time."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import auc

import finecal
from pages import blocks

PROBLEMS = range(20)


def problem(rng, dtype=np.float64, least=0.5):
    """Logits of a random number of classes, some of which have grown, and which are better than a guess."""
    classes, count = int(rng.integers(6, 20)), int(rng.integers(120, 400))
    labels = rng.integers(classes, size=count)
    seen_mask = rng.permutation(classes) < rng.integers(3, classes - 2)
    logits = rng.normal(size=(count, classes)) + rng.uniform(1.5, 4) * np.eye(classes)[labels]
    return (logits + rng.uniform(least, 4) * seen_mask).astype(dtype), labels, seen_mask


def accuracies(logits, labels, seen_mask):
    """Percentages: all, seen, absent with all classes allowed; seen and absent within their groups."""
    seen, best = seen_mask[labels], np.argsort(-logits, axis=1)[:, 0]
    within = [np.argsort(-np.where(group, logits, -np.inf), axis=1)[:, 0] for group in (seen_mask, ~seen_mask)]
    right = [best == labels, (best == labels)[seen], (best == labels)[~seen]]
    right += [(within[0] == labels)[seen], (within[1] == labels)[~seen]]
    return [float(100 * each.astype(np.float32).mean()) for each in right]


def visited(logits, seen_mask):
    """The gammas of the curve: from 0 up and from 0 down, half-way to the second next margin, and 1 beyond the last."""
    logits = logits.astype(np.float64)
    gammas = []
    for sign in (1, -1):
        shifted, gamma, is_last = logits.copy(), 0.0, False
        while not is_last:
            ahead = sign * (shifted[:, seen_mask].max(1) - shifted[:, ~seen_mask].max(1))
            ahead = np.unique(ahead[ahead >= 0])
            is_last = len(ahead) < 2
            step = (ahead[0] + ahead[1]) / 2 if len(ahead) > 1 else ahead[0] + 1 if len(ahead) else 0.0
            shifted[:, ~seen_mask] += sign * step
            gamma += sign * step
            gammas.append(gamma)
    return gammas


def points(logits, labels, seen_mask):
    """Rows of gamma, and the accuracies of all, seen and absent samples."""
    rows = []
    for gamma in visited(logits, seen_mask):
        right = (logits.astype(np.float64) + gamma * ~seen_mask).argmax(1) == labels
        rows.append([gamma, right.mean(), right[seen_mask[labels]].mean(), right[~seen_mask[labels]].mean()])
    return np.array(rows)


def area(rows, order):
    return auc(rows[order, 2], rows[order, 3])


@pytest.mark.parametrize("number", PROBLEMS)
def test_areas_differ_within_the_bound(number):
    rng = np.random.default_rng(number)
    logits, labels, seen_mask = problem(rng)
    curve = finecal.tradeoff_curve(logits, labels, seen_mask)
    rows = points(logits, labels, seen_mask)
    triangle = 1 / (2 * curve.n_seen * curve.n_absent)
    bound = curve.acc_absent_within / curve.n_seen + triangle
    orders = [np.argsort(rows[:, 2], kind="stable"), np.lexsort((rows[:, 3], rows[:, 2]))]
    for _ in range(20):
        shuffled = rng.permutation(len(rows))
        orders.append(shuffled[np.argsort(rows[shuffled, 2], kind="stable")])
    assert max(abs(area(rows, order) - curve.ausuc) for order in orders) <= bound
    falling = np.lexsort((-rows[:, 3], rows[:, 2]))
    assert abs(area(rows, falling) - curve.ausuc) <= triangle + 1e-12

    # All intervals between margins but the one that holds gamma = 0, and the same ends.
    margins = np.sort(logits[:, seen_mask].max(1) - logits[:, ~seen_mask].max(1))
    intervals = np.searchsorted(margins, rows[:, 0])
    assert sorted(intervals) == sorted(set(range(len(margins) + 1)) - {np.searchsorted(margins, 0.0)})
    ends = rows[falling[[0, -1]], 2:]
    assert ends == pytest.approx(np.array([[0, curve.acc_absent_within], [curve.acc_seen_within, 0]]))


def test_margins_within_a_rounding_step_are_equal_in_float32():
    """Of a seen sample and an absent one, both classified correctly, each in its own group."""
    logits = np.array([[1.0, -9.0, -(2.0**-25), -9.0], [-9.0, 1.0, -9.0, 0.0]], dtype=np.float32)
    labels, seen_mask = np.array([0, 3]), np.array([True, True, False, False])
    rows = points(logits, labels, seen_mask)
    released = area(rows, np.lexsort((-rows[:, 3], rows[:, 2])))
    exact = finecal.tradeoff_curve(logits.astype(np.float64), labels, seen_mask).ausuc
    assert (released, exact, finecal.tradeoff_curve(logits, labels, seen_mask).ausuc) == (1.0, 1.0, 0.5)


@pytest.mark.parametrize("number", PROBLEMS)
def test_accuracies_agree(number):
    logits, labels, seen_mask = problem(np.random.default_rng(number), np.float32)
    report = finecal.evaluate(logits, labels, seen_mask)
    own = report.acc_all, report.acc_seen, report.acc_absent, report.acc_seen_within, report.acc_absent_within
    assert accuracies(logits, labels, seen_mask) == pytest.approx([100 * each for each in own], abs=1e-4)


def test_columns_in_neither_group_only_cost(rng):
    """As with the 800 columns that are no classes of ImageNet-R."""
    logits, labels, seen_mask = problem(rng)
    others = rng.normal(size=(len(labels), 30)) + 2
    for gamma in (-2.0, 0.0, 2.0):
        alone = logits + gamma * ~seen_mask
        with_others = np.argmax(np.hstack([alone, others]), axis=1)
        assert set(np.flatnonzero(with_others == labels)) < set(np.flatnonzero(alone.argmax(1) == labels))


def alg_a_sample_at_a_time(logits, labels, seen_mask):
    """In float32, with a list of means for either group."""
    wrong, absent = [], []
    for row, label in zip(logits, labels, strict=True):
        wrong.append(np.float32(np.mean([row[c] for c in np.flatnonzero(seen_mask) if c != label])))
        absent.append(np.float32(row[~seen_mask].mean()))
    return float(np.mean(wrong, dtype=np.float32) - np.mean(absent, dtype=np.float32))


@pytest.fixture
def page():
    saving, loading, alg, pcv = blocks("docs/how-to/paper-code.md", "python")
    return {"saving": saving, "loading": loading, "alg": alg, "pcv": pcv}


@pytest.mark.parametrize("number", PROBLEMS)
def test_alg_of_all_samples_and_of_seen_ones(page, number):
    logits, labels, seen_mask = problem(np.random.default_rng(number), np.float32)
    names = {"np": np, "finecal": finecal, "test_logits": logits, "test_labels": labels, "seen_mask": seen_mask}
    exec(page["alg"], names)
    released = alg_a_sample_at_a_time(logits, labels, seen_mask)
    assert names["gamma_as_released"] == pytest.approx(released, rel=1e-5, abs=1e-5)
    seen = seen_mask[labels]
    of_seen = names["alg_of_all_samples"](logits[seen].astype(np.float64), labels[seen], seen_mask)
    assert names["gamma_of_seen"].gamma == pytest.approx(of_seen, rel=1e-6)
    with pytest.raises(ValueError, match="labels contain absent class"):
        finecal.estimators.average_logit_gap(logits, labels, seen_mask)


def released_choice(fold, required=None):
    """Gamma and the accuracy of a fold, on the columns of S; None where no gamma meets the constraint."""
    rows = points(*fold)
    allowed = rows if required is None else rows[rows[:, 3] >= required]
    return allowed[allowed[:, 1].argmax()] if len(allowed) else None


def fold_problem(rng):
    logits, labels, pseudo = problem(rng, least=-4)
    better = rng.choice([0, 0.5, 1.5]) * np.eye(len(pseudo))[labels]
    pretrained = logits + better - rng.uniform(0, 6) * pseudo
    absent = np.full((len(labels), 4), 50.0)  # columns outside S, which are ignored
    seen_mask = np.arange(len(pseudo) + 4) < len(pseudo)
    wide = [np.hstack([scores, absent]) for scores in (logits, pretrained)]
    fold = finecal.estimators.PseudoFold(
        finecal.Samples(wide[0], labels, pretrained_logits=wide[1]), np.append(pseudo, [False] * 4)
    )
    return fold, (logits, labels, pseudo), pretrained, seen_mask


def choices(number, constrained):
    """The released choice in a fold, and finecal's; whether some gamma meets the constraint; and the fold's curve."""
    fold, (logits, labels, pseudo), pretrained, seen_mask = fold_problem(np.random.default_rng(number))
    required = (pretrained.argmax(1) == labels)[~pseudo[labels]].mean() if constrained else None
    released = released_choice((logits, labels, pseudo), required)
    gamma = finecal.estimators.pseudo_cv_gamma([fold], seen_mask, objective="overall", constrained=constrained).gamma
    curve = finecal.tradeoff_curve(logits, labels, pseudo)
    assert (released is None) == (required is not None and curve.acc_absent.max() < required)
    if released is not None:
        assert required is None or curve.at(gamma).acc_absent >= required
    return released, gamma, curve


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
@pytest.mark.parametrize("constrained", [False, True])
def test_choice_in_a_fold(constrained):
    """None of these has its best interval at gamma = 0, which the released code does not try."""
    met, same = 0, 0
    for number in range(40):
        released, gamma, curve = choices(number, constrained)
        if released is None:
            assert gamma == choices(number, False)[1]
            continue
        met += 1
        same += gamma == pytest.approx(released[0])
        assert curve.at(gamma).acc_all == pytest.approx(released[1], abs=1e-12)
    assert same > met / 2
    assert (met < 40) == constrained


@pytest.mark.parametrize("number", PROBLEMS)
def test_best_interval_at_zero_is_not_tried(number):
    """Moved to where gamma = 0 is best: the released choice is another interval, worse or at most as good."""
    logits, labels, seen_mask = problem(np.random.default_rng(number))
    logits = logits + finecal.search_gamma(logits, labels, seen_mask).gamma * ~seen_mask
    curve = finecal.tradeoff_curve(logits, labels, seen_mask)
    gamma, accuracy, *_ = released_choice((logits, labels, seen_mask))
    assert not np.array_equal((logits + gamma * ~seen_mask).argmax(1), logits.argmax(1))
    assert curve.at(0.0).acc_all >= accuracy


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_the_constraint_binds():
    free, bound = ([choices(number, constrained)[1] for number in range(40)] for constrained in (False, True))
    assert sum(after > before for before, after in zip(free, bound, strict=True)) > 5


def test_python_of_the_folds_runs(page, rng):
    fold, (logits, labels, pseudo), pretrained, seen_mask = fold_problem(rng)
    samples = fold.samples
    refits = [(samples.logits, samples.labels, samples.pretrained_logits, fold.pseudo_seen_mask)]
    names = {"finecal": finecal, "refits": refits, "seen_mask": seen_mask}
    exec(page["pcv"], names)
    expected = finecal.estimators.pseudo_cv_gamma([fold], seen_mask, objective="overall", constrained=True)
    assert names["gamma"].gamma == expected.gamma
    required = (pretrained.argmax(1) == labels)[~pseudo[labels]].mean()
    assert finecal.tradeoff_curve(logits, labels, pseudo).at(expected).acc_absent >= required


def test_nearest_class_means_agree(rng):
    logits, labels, seen_mask = problem(rng)
    classes = len(seen_mask)
    means = rng.normal(size=(classes, 8))
    reference_labels = np.arange(400) % classes
    features, reference = (means[y] + rng.normal(size=(len(y), 8)) for y in (labels, reference_labels))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (features, reference)]
    centres = np.array([unit[1][reference_labels == c].mean(0) for c in range(classes)])
    cosines = unit[0] @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    samples = finecal.Samples(logits, labels, pretrained_logits=logits, features=features)
    others = finecal.Samples(np.zeros((400, classes)), reference_labels, features=reference)
    ncm = finecal.diagnose(samples, seen_mask, reference=others).finetuned_ncm
    own = ncm.acc_all, ncm.acc_seen, ncm.acc_absent, ncm.acc_seen_within, ncm.acc_absent_within
    assert accuracies(cosines, labels, seen_mask) == pytest.approx([100 * each for each in own], abs=1e-4)


THEIR_CLASSES = {
    "py/data/common.py": "class DomainInfo: pass\n",
    "py/util/evaluate.py": "class Extraction: pass\nclass Evaluation: pass\n",
}
SAVE = """
import torch
from py.data.common import DomainInfo
from py.util.evaluate import Evaluation, Extraction
evaluation, generator = Evaluation(), torch.Generator().manual_seed(0)
evaluation.extraction, evaluation.domain_info = Extraction(), DomainInfo()
evaluation.extraction.labels = torch.arange(120) % 12
evaluation.extraction.logits = torch.randn(120, 12, generator=generator) + 3 * torch.eye(12)[torch.arange(120) % 12]
evaluation.domain_info.visible_classes = torch.tensor([7, 2, 9, 4])
evaluation.domain_info.invisible_classes = torch.tensor([0, 11, 3, 5, 8])
torch.save(evaluation, "19.pth")
"""


def test_saved_evaluation_is_read(page, tmp_path, monkeypatch, capsys):
    """With modules of the names that the pickle asks for; three of the twelve classes are in neither group."""
    monkeypatch.chdir(tmp_path)
    for file, text in THEIR_CLASSES.items():
        for folder in ("py", "py/data", "py/util"):
            (tmp_path / folder).mkdir(exist_ok=True)
            (tmp_path / folder / "__init__.py").touch()
        (tmp_path / file).write_text(text)
    saving = page["saving"].replace('map_location="cpu")', 'map_location="cpu", weights_only=False)')
    for script in (SAVE, saving):
        subprocess.run([sys.executable, "-c", script], check=True)
    names = {}
    exec(page["loading"], names)
    saved, columns = names["saved"], [7, 2, 9, 4, 0, 11, 3, 5, 8]
    rows = np.isin(saved["labels"], columns)
    assert rows.sum() == 90
    assert np.array_equal(names["test_logits"], saved["logits"][rows][:, columns])
    assert [columns[label] for label in names["test_labels"]] == saved["labels"][rows].tolist()
    assert names["seen_mask"].tolist() == [True] * 4 + [False] * 5
    allowed = np.where(np.isin(np.arange(12), columns), saved["logits"], -np.inf)
    accuracy = (allowed.argmax(1) == saved["labels"])[rows].mean()
    assert f"{100 * accuracy:.1f}" in capsys.readouterr().out
