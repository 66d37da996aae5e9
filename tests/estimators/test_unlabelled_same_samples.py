"""The same samples in two arguments that should hold different ones."""

import numpy as np
import pytest
import torch

import finecal
from finecal._estimators.unlabelled import Rows, count_shared

SAME = "these are the same samples"
MASK = np.arange(8) < 5


def drawn(rng, n, classes=range(8)):
    labels = rng.choice(list(classes), n)
    logits = rng.normal(size=(n, 8)).astype(np.float32) + 2 * MASK
    logits[np.arange(n), labels] += 3
    return logits, labels


def rows_of(logits):
    tensor = torch.as_tensor(logits)
    return Rows(
        tensor, torch.as_tensor(finecal.Samples(tensor, torch.zeros(len(tensor), dtype=int)).margins(MASK).margin)
    )


def sames(warnings):
    return [sentence for sentence in map(str, warnings) if SAME in sentence]


AGAIN = {
    "the same object": lambda logits, labels: (logits, labels),
    "the same memory": lambda logits, labels: (logits[:], labels),
    "a copy": lambda logits, labels: (logits.copy(), labels.copy()),
    "in another order": lambda logits, labels: (logits[::-1], labels[::-1]),
    "a part": lambda logits, labels: (logits[10:60], labels[10:60]),
    "a part that overlaps by half": lambda logits, labels: (
        np.r_[logits[:50], logits[:50] + 1],
        np.r_[labels, labels][:100],
    ),
    "as a tensor of another dtype": lambda logits, labels: (torch.tensor(logits).double(), torch.tensor(labels)),
}


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
@pytest.mark.parametrize("again", AGAIN)
def test_training_samples_as_held_out_ones(rng, again):
    train = drawn(rng, 200, range(5))
    other = AGAIN[again](*train)
    found = finecal.estimate_gamma(MASK, train=train, held_out=other)
    (sentence,) = sames(found.warnings)
    shared = {"a part": "50 of the 50", "a part that overlaps by half": "50 of the 100"}.get(again, "200 of the 200")
    assert sentence.startswith(f"{shared} samples of held_out have the very logits of samples of train: ")
    assert not sames(finecal.estimate_gamma(MASK, train=train, held_out=drawn(rng, 200, range(5))).warnings)


def test_comparisons_warn_of_both_pairs(rng):
    train, labelled = drawn(rng, 200, range(5)), drawn(rng, 300)
    with pytest.warns(finecal.FinecalWarning) as record:
        finecal.compare_estimators(MASK, train=train, held_out=train, labelled=labelled, test=labelled)
    assert [str(w.message).split(": ")[0] for w in record] == [
        "200 of the 200 samples of held_out have the very logits of samples of train",
        "300 of the 300 samples of test have the very logits of samples of labelled",
    ]
    held_out, test = drawn(rng, 200, range(5)), drawn(rng, 300)
    finecal.compare_estimators(MASK, train=train, held_out=held_out, labelled=labelled, test=test)


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_held_out_samples_as_unlabelled_ones(rng):
    (logits, labels), (others, _) = drawn(rng, 200, range(5)), drawn(rng, 300)
    for unlabelled, same in ((logits, 1), (logits[::-1].copy(), 1), (others, 0), (np.concatenate([logits, others]), 0)):
        assert len(sames(finecal.estimators.mixture_gamma(logits, unlabelled, MASK).warnings)) == same
        estimate = finecal.estimate_gamma(MASK, held_out=(logits, labels), unlabelled=unlabelled)
        assert len(sames(estimate.warnings)) == same


@pytest.mark.filterwarnings("ignore:labels are exactly")
def test_shared_rows_are_counted(rng):
    for _ in range(50):
        first, second = (rng.normal(size=(int(rng.integers(2, 40)), 8)) for _ in range(2))
        copied = rng.random(len(second)) < 0.7
        second[copied] = first[rng.integers(0, len(first), int(copied.sum()))]
        expected = sum(any((row == other).all() for other in first) for row in second)
        found = count_shared(rows_of(first), rows_of(second))
        assert found == (expected if 2 * expected >= min(len(first), len(second)) else 0)


@pytest.mark.parametrize(("n", "m"), [(3000, 30_000), (30_000, 3000), (20_000, 20_000)])
@pytest.mark.parametrize("part", [0.0, 0.3, 0.6])
def test_shared_rows_of_many_are_counted(rng, n, m, part):
    """A look at some thousand of them decides whether to count, and never that there are fewer than half."""
    first, second = (rng.normal(size=(size, 8)) for size in (n, m))
    shared = round(part * min(n, m))
    second[rng.permutation(m)[:shared]] = first[rng.permutation(n)[:shared]]
    rows = [Rows(torch.as_tensor(logits), torch.as_tensor(logits[:, 0])) for logits in (first, second)]
    assert count_shared(*rows) == (shared if part > 0.5 else 0)


@pytest.mark.filterwarnings("ignore:labels are exactly")
def test_rows_that_agree_in_part_are_different(rng):
    first = rng.normal(size=(50, 8))
    second = first.copy()
    second[:, 1] = -9.0  # no maximum, and none of the columns that are looked at first
    first[:, 1] = -8.0
    assert count_shared(rows_of(first), rows_of(second)) == 0


def test_interleaved_views_of_one_array_are_different_samples(rng):
    logits, labels = drawn(rng, 400, range(5))
    halves = [(logits[start::2], labels[start::2]) for start in (0, 1)]
    assert not sames(finecal.estimate_gamma(MASK, train=halves[0], held_out=halves[1]).warnings)
