import numpy as np
import pytest
import torch

import finecal
from finecal._estimators.task_biases import search_biases, task_scores

TASKS = torch.tensor([0, 1, 0, 2, 2, 1])


def samples(rng, n=60, num_classes=6):
    """Small integers, so that many are equal; the first task is pushed down by 3, the second by 1."""
    labels = torch.tensor(np.arange(n) % num_classes)
    logits = rng.integers(0, 5, size=(n, num_classes)) + 3 * np.eye(num_classes)[labels]
    return torch.tensor(logits - np.array([3, 1, 0])[TASKS]), labels


def correct(logits, labels, tasks, biases):
    return int(((logits + biases[tasks]).argmax(1) == labels).sum())


def test_scores_by_hand():
    logits = torch.tensor([[4.0, 1.0, 4.0, 2.0, 3.0, 0.0], [5.0, 1.0, 6.0, -torch.inf, -torch.inf, 1.0]])
    scores = task_scores(logits, torch.tensor([2, 1]), TASKS)
    assert scores.largest.tolist() == [[4, 1, 3], [6, 1, -torch.inf]]
    assert scores.own.tolist() == [0, 1]
    assert scores.hit.tolist() == [False, True]  # at a tie the lower index has it: class 0, and class 1


def test_a_masked_label_is_no_hit():
    logits = torch.tensor([[0.0, -torch.inf, 1.0, 2.0, 3.0, -torch.inf]])
    assert task_scores(logits, torch.tensor([1]), TASKS).hit.tolist() == [False]


def test_biases_by_hand():
    """Three tasks of one class: all three samples are right where 4 < a < 7, 1 < b < 7 and b - 1 < a < b + 3."""
    logits = torch.tensor([[1.0, 0.0, 5.0], [0.0, 3.0, 4.0], [0.0, 0.0, 7.0]])
    labels = tasks = torch.arange(3)
    a, b, last = search_biases(task_scores(logits, labels, tasks)).tolist()
    assert last == 0
    assert 4 < a < 7
    assert 1 < b < 7
    assert b - 1 < a < b + 3


def test_no_change_of_one_bias_makes_more_correct(rng):
    logits, labels = samples(rng)
    biases = search_biases(task_scores(logits, labels, TASKS))
    best = correct(logits, labels, TASKS, biases)
    assert best > correct(logits, labels, TASKS, torch.zeros(3))
    for task in range(3):
        for change in np.arange(-20, 20, 0.05):
            changed = biases.clone()
            changed[task] += change
            assert correct(logits, labels, TASKS, changed) <= best


def test_constants_make_no_difference(rng):
    logits, labels = samples(rng)
    logits = logits + torch.tensor(rng.normal(size=logits.shape))
    constants = torch.tensor([7.0, -3.0, 2.0], dtype=torch.float64)
    before = search_biases(task_scores(logits, labels, TASKS))
    after = search_biases(task_scores(logits + constants[TASKS], labels, TASKS))
    assert torch.allclose(after + constants - constants[-1], before, atol=1e-5)


def test_two_tasks_are_search_gamma(rng):
    logits, labels = samples(rng)
    logits = logits + torch.tensor(rng.normal(size=logits.shape))
    tasks = torch.tensor([0, 1, 0, 1, 1, 0])
    gamma = float(finecal.search_gamma(logits, labels, tasks == 1))
    bias, last = search_biases(task_scores(logits, labels, tasks)).tolist()
    assert last == 0
    assert bias == pytest.approx(gamma, abs=1e-5)


def test_a_task_that_is_masked_in_all_samples(rng):
    """Nothing of it can be right, and the others are searched as if it were not there."""
    logits, labels = samples(rng)
    logits[:, TASKS == 1] = -torch.inf
    biases = search_biases(task_scores(logits, labels, TASKS))
    assert biases.isfinite().all()
    rest = TASKS != 1
    gamma = finecal.search_gamma(
        logits[rest[labels]][:, rest], (torch.cumsum(rest, 0) - 1)[labels[rest[labels]]], TASKS[rest] == 2
    )
    of_gamma = torch.tensor([float(gamma), 0.0, 0.0])
    assert correct(logits, labels, TASKS, biases) == correct(logits, labels, TASKS, of_gamma)
