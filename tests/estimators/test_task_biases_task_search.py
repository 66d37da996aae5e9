import itertools
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

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


# --- ties -------------------------------------------------------------------------------------------------------------

SEEDS = st.integers(0, 100_000)
DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def tied(seed, num_tasks, dtype, masks=False):
    """Few small multiples of a step, so that most margins are equal; some labels and whole tasks are masked."""
    rng = np.random.default_rng(seed)
    tasks = np.append(np.arange(num_tasks), rng.integers(0, num_tasks, rng.integers(1, 4)))
    labels = np.append(np.arange(len(tasks)), rng.integers(0, len(tasks), rng.integers(0, 20)))
    logits = rng.integers(-3, 4, size=(len(labels), len(tasks))) + 2 * (tasks - num_tasks + 1)
    logits = torch.tensor(logits * rng.choice([1, 0.5])).to(dtype)
    if masks:
        logits[torch.tensor(rng.random(logits.shape) < 0.2)] = -torch.inf
    return logits, torch.tensor(labels), torch.tensor(tasks)


def found_of(logits, labels, tasks):
    newest = tasks[labels] == tasks.max()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)  # of few exemplars, and of tasks that are given up
        return finecal.estimators.task_biases(
            logits[newest], labels[newest], tasks, is_held_out=True, exemplars=(logits, labels)
        )


def surely_correct(logits, labels, tasks, bias):
    """Count what is right without a tie between tasks, whose order would decide."""
    added = logits + bias
    others = added.masked_fill(tasks == tasks[labels].unsqueeze(1), -torch.inf).amax(1)
    return int(((added.argmax(1) == labels) & (added.amax(1) > others)).sum())


def most_correct(logits, labels, tasks):
    """Try biases on both sides of each tie of one or two of three tasks: in thirds, multiples of 1/2 never tie."""
    whole = np.arange(-30, 30) / 2
    best = 0
    for first, second in itertools.product(whole, whole):
        for thirds in ((1 / 6, 1 / 3), (1 / 3, 1 / 6)):
            biases = torch.tensor([first + thirds[0], second + thirds[1], 0], dtype=torch.float64)
            best = max(best, correct(logits, labels, tasks, biases))
    return best


@given(SEEDS, DTYPES, st.booleans())
def test_two_tasks_are_search_gamma_exactly(seed, dtype, masks):
    logits, labels, tasks = tied(seed, 2, dtype, masks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        gamma = float(finecal.search_gamma(logits, labels, tasks == 1))
    bias = found_of(logits, labels, tasks)
    assert bias.tolist() == torch.where(tasks == 0, gamma, 0.0).tolist()
    best = max(correct(logits, labels, tasks, torch.tensor([b + 0.1, 0])) for b in np.arange(-30, 30) / 2)
    assert correct(logits.double(), labels, torch.arange(len(tasks)), bias) == best


@given(SEEDS, DTYPES, st.booleans())
def test_no_change_of_one_bias_of_three_is_better_among_ties(seed, dtype, masks):
    logits, labels, tasks = tied(seed, 3, dtype, masks)
    bias, logits = found_of(logits, labels, tasks).double(), logits.double()
    best = surely_correct(logits, labels, tasks, bias)
    assert best > 0
    for task in range(3):
        # Where the task draws level with another one in some sample, and what lies between.
        levels = {float(other) + step / 2 for other in bias[tasks != task] for step in range(-40, 40)}
        for low, high in itertools.pairwise(sorted(levels)):
            changed = torch.where(tasks == task, (low + high) / 2, bias)
            assert surely_correct(logits, labels, tasks, changed) <= best


def test_local_maxima_are_rare_among_ties():
    """In 19 of 20 small problems no pair of biases at all is better, and otherwise by one sample."""
    short = []
    for seed in range(20):
        logits, labels, tasks = tied(seed, 3, torch.float64)
        bias = found_of(logits, labels, tasks)
        short.append(most_correct(logits, labels, tasks) - correct(logits, labels, torch.arange(len(tasks)), bias))
    assert sum(short) <= 1


def test_a_tie_of_two_tasks_counts_for_neither():
    """At biases of 0 both samples of task 1 tie with task 0 or 2, and argmax would give them to the first in order."""
    logits = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    labels = torch.tensor([1, 1, 0, 2])
    biases = search_biases(task_scores(logits, labels, torch.arange(3)))
    largest = (logits + biases).topk(2).values
    assert correct(logits, labels, torch.arange(3), biases) == 4
    assert float((largest[:, 0] - largest[:, 1]).min()) > 0.1


def test_what_half_precision_loses_is_said():
    """The margins 0.5 and 0.625 leave room for gamma, and bfloat16 makes 100.5 of 100.5625, which ties."""
    rows = torch.tensor([[100.5, 100.0], [0.625, 0.0]], dtype=torch.bfloat16)
    logits, labels = rows.repeat(20, 1), torch.tensor([1, 0]).repeat(20)
    newest = logits[labels == 0], labels[labels == 0]
    with pytest.warns(finecal.FinecalWarning) as record:
        bias = finecal.estimators.task_biases(*newest, [1, 0], is_held_out=True, exemplars=(logits, labels))
    assert 0.5 < bias[1] <= 0.625
    right = int((finecal.calibrators.ClassBias(bias)(logits).argmax(1) == labels).sum())
    assert right == 20
    (sentence,) = [str(warning.message) for warning in record]
    assert "the best biases make 40 of 40 samples right, and 20 once they are added in bfloat16" in sentence
