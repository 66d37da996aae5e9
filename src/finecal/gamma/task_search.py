"""One bias a task from labelled samples of all tasks: exact search, one task at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.margins import Margins
from ..evaluation.objectives import best_point
from ..evaluation.operating_points import gamma_inside
from ..logits.reductions import margin_of


class TaskScores(NamedTuple):
    """All that questions about a bias per task need to know of N labelled samples of T tasks."""

    largest: Tensor
    """The largest logit within each task: `(N, T)` float64; -inf where a whole task is masked."""
    own: Tensor
    """The task of the label, `(N,)`."""
    hit: Tensor
    """Whether the label has the largest logit within its task, `(N,)` bool: the lowest index at a tie."""


def task_scores(logits: Tensor, labels: Tensor, tasks: Tensor) -> TaskScores:
    """Reduce logits `(N, C)` of classes whose tasks `(C,)` are numbered 0 to T - 1."""
    rows = torch.arange(len(labels), device=logits.device)
    largest, winner = [], []
    for task in range(int(tasks.max()) + 1):
        columns = (tasks == task).nonzero().squeeze(1)
        values, positions = logits[:, columns].max(1)
        largest.append(values.double())
        winner.append(columns[positions])
    own = tasks[labels]
    hit = (torch.stack(winner, 1)[rows, own] == labels) & (logits[rows, labels] > -math.inf)
    return TaskScores(torch.stack(largest, 1), own, hit)


def search_biases(scores: TaskScores) -> Tensor:
    """Return the biases `(T,)`, float64, at which no change of a single one makes more predictions correct.

    The last task is the reference and has 0. The start makes the largest logits of all tasks equal on average, so that
    a constant that somebody has added to a task makes no difference.
    """
    finite = scores.largest.isfinite()
    counts = finite.sum(0).clamp(min=1)
    biases = -scores.largest.where(finite, 0.0).sum(0) / counts
    correct = -1
    while True:
        before = correct
        for task in range(len(biases)):
            change, correct = _best_change(scores, biases, task)
            biases[task] += change
        if correct <= before:
            return biases - biases[-1]


def _best_change(scores: TaskScores, biases: Tensor, task: int) -> tuple[float, int]:
    """Return what to add to the bias of one task, and how many predictions are correct then."""
    largest = scores.largest + biases
    others = largest.clone()
    others[:, task] = -math.inf
    rival, winner = others.max(1)
    is_other = scores.own != task
    hit = scores.hit & ((winner == scores.own) | ~is_other)
    curve = Margins(margin_of(rival, largest[:, task]), is_other, hit, None).curve()
    point = best_point(curve)
    return gamma_inside(curve.breakpoints, point), int(curve.seen_correct[point] + curve.absent_correct[point])
