"""Class-incremental learning: one bias a task, for tasks that were learned one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.arrays import (
    ArrayLike,
    Labels,
    Logits,
    as_tensor,
    as_type_of,
    check_flag,
    check_seed,
    dtype_name,
    shape_of,
)
from .._core.checks import check_num_columns, check_scores
from .._core.kernels import wide_dtype
from .._core.objectives import best_point, gamma_inside
from .._core.plausibility import rounding_warnings
from .._core.report import Margins
from .._core.samples import Samples, SamplesLike, Scan, labelled_samples, samples_of, takes_samples
from .._core.warning import error_context, warn, without_warnings
from .auto import estimate_gamma


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

    The last task is the reference and has 0. The best of three ways up is taken, which start where a quartile of the
    largest logits is the same in all tasks: so a constant that somebody has added to a task makes no difference. They
    are logits: no mean brings fractions in, by which equal margins would differ once they are rounded.
    """
    ordered = scores.largest.sort(0).values
    masked = (ordered == -math.inf).sum(0)
    ways = []
    for quarters in (2, 1, 3):
        place = masked + (len(ordered) - 1 - masked) * quarters // 4
        quartile = ordered.gather(0, place.unsqueeze(0)).squeeze(0)
        ways.append(_climb(scores, -quartile.nan_to_num(neginf=0.0)))
    biases = max(ways, key=lambda way: way[1])[0]
    return biases - biases[-1]


def _climb(scores: TaskScores, biases: Tensor) -> tuple[Tensor, int]:
    """Change one bias after the other, in place, until none gains; return them, and how many predictions are right."""
    tasks, most = range(len(biases)), 0
    while True:
        for task in tasks:
            change, correct = _best_change(scores, biases, task)
            biases[task] += change
        # Moving a bias to the middle of its gap may let another gain.
        steps = [_best_change(scores, biases, task) for task in tasks]
        best = max(tasks, key=lambda task: steps[task][1])
        if steps[best][1] <= max(most, correct):
            return biases, correct
        change, most = steps[best]
        biases[best] += change


def _best_change(scores: TaskScores, biases: Tensor, task: int) -> tuple[float, int]:
    """Return what to add to the bias of one task, and how many predictions are correct then.

    It leads into the middle of a gap between the margins of two samples, so that no tie decides.
    """
    rival = scores.largest - scores.largest[:, task : task + 1] + (biases - biases[task])
    rival.masked_fill_(scores.largest == -math.inf, -math.inf)[:, task] = -math.inf
    is_other = scores.own != task
    hit = torch.where(is_other, _is_right(scores, biases, beside=task), scores.hit)
    curve = Margins(rival.amax(1), is_other, hit, None).curve()
    point = best_point(curve)
    return gamma_inside(curve.breakpoints, point), int(curve.seen_correct[point] + curve.absent_correct[point])


def _is_right(scores: TaskScores, biases: Tensor, beside: int | None = None) -> Tensor:
    """Whether the label has the largest logit of all tasks, but for one, and no other task ties with it: `(N,)`."""
    own = scores.own.unsqueeze(1)
    is_ahead = scores.largest.gather(1, own) - scores.largest > biases - biases[own]
    is_ahead.scatter_(1, own, True)
    if beside is not None:
        is_ahead[:, beside] = True
    return scores.hit & is_ahead.all(1)


_FEW_EXEMPLARS = 20
_NOT_IN_USE = -1


@takes_samples
def task_biases(
    logits: Logits,
    labels: Labels,
    task_of_class: ArrayLike,
    *,
    is_held_out: bool,
    exemplars: SamplesLike | None = None,
    seed: int = 0,
) -> Any:
    r"""Estimate one bias a task for a model that learned its classes in tasks, one after the other.

    .. math:: b_c = \gamma_{t(c)}, \qquad \gamma_T = 0

    t(c) is the task of class c and T the newest task. Without `exemplars`, :math:`\gamma_t` is that of `estimate_gamma`
    for the classes of task t (absent) and of the newest (seen), from samples of the newest. With `exemplars`:

    .. math:: \gamma = \arg\max_\gamma \sum_n \big[ \arg\max_c (z_{nc} + \gamma_{t(c)}) = y_n \big]

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax of samples of the *newest* task; `groups` and `pretrained_logits` as in `estimate_gamma`.
        -inf masks a class.
    labels : (N,) int
        Class indices in ``[0, C)``, of classes of the newest task only.
    task_of_class : (C,) int
        The task of each class. The newest is the largest number; -1 marks classes of later tasks, whose columns are
        ignored.
    is_held_out : bool
        False if the model was trained on the samples of `logits`.
    exemplars : Samples, or (logits, labels), optional
        `(M, C)` scores and `(M,)` labels of samples of *all* tasks, not used for training, with as many samples of each
        class as in use. They alone decide.
    seed : int, default 0
        Seed of the pairs of `mixed_pair_gap`.

    Returns
    -------
    (C,) float32 tensor or array
        For `ClassBias`, of the type and device of `logits`: 0 for the newest and for later tasks, and for all classes
        while there is one task only.

    Raises
    ------
    TypeError, ValueError
        As `estimate_gamma`; TypeError also if `task_of_class` is not of integers, or `is_held_out` not a bool;
        ValueError if labels are of other tasks than the newest, a task has no exemplars, or the newest has one class
        only and there are no exemplars.

    Warns
    -----
    FinecalWarning
        As `estimate_gamma`, with the tasks: if an earlier task is as high as the newest one or higher (after
        distillation, or a loss that leaves out the earlier classes). If tasks have fewer than 20 exemplars, none of a
        task is predicted correctly at the best biases, the dtype of their logits loses what the biases gain, or labels
        of the exemplars look wrong.

    Notes
    -----
    Finecal's own; each :math:`\gamma_t` is for equally frequent classes. The search is exact in each bias, but may end
    in a local maximum; with two tasks it is `search_gamma`. `O(MC)` once, then `O(T M (T + log M))` for each of a
    handful of rounds. Compare BiC (Wu et al., "Large Scale Incremental Learning", CVPR 2019).

    Examples
    --------
    Three tasks, of which the first was pushed down by 6 and the second by 2:

    >>> import numpy as np, finecal
    >>> rng, tasks = np.random.default_rng(0), np.repeat([0, 1, 2], 4)
    >>> labels = rng.integers(8, 12, size=500)  # of the newest task
    >>> logits = rng.normal(size=(500, 12)) + 3 * np.eye(12)[labels]
    >>> logits -= np.array([6, 2, 0])[tasks]
    >>> bias = finecal.estimators.task_biases(logits, labels, tasks, is_held_out=True)
    >>> bias[::4].round(1)
    array([6.3, 2.7, 0. ], dtype=float32)
    """
    samples = samples_of(logits, labels)
    x, y = samples.logits_tensor, samples.labels_tensor
    tasks = _check_tasks(task_of_class, samples.num_classes, x.device)
    samples.check_not_empty("task_biases")
    check_flag(is_held_out, "is_held_out")
    check_seed(seed)
    kept = None if exemplars is None else labelled_samples(exemplars, "exemplars")
    newest = int(tasks.max())
    _check_newest(y, tasks, newest)
    in_use = (tasks != _NOT_IN_USE).nonzero().squeeze(1)
    check_scores(x, x[:, in_use].amax(1))
    earlier = sorted(set(tasks[in_use].tolist()) - {newest})
    bias = torch.zeros(len(tasks), dtype=torch.float32, device=x.device)
    if kept is not None:
        found = _search_exemplars(kept, tasks, in_use, [*earlier, newest])
    else:
        found = _estimate_biases(samples, tasks, earlier, newest, is_held_out, seed)
    for task, gamma in found.items():
        bias[tasks == task] = gamma
    return as_type_of(samples.logits)(bias)


def _estimate_biases(
    samples: Samples, tasks: Tensor, earlier: Sequence[int], newest: int, is_held_out: bool, seed: int
) -> dict[int, float]:
    """Compare each earlier task with the newest alone; warn once of what holds for several."""
    if earlier and int((tasks == newest).sum()) == 1:
        raise ValueError(
            f"task_of_class has one class in the newest task, {newest}; without exemplars the classes of the newest "
            "task that a sample does not belong to are compared, and two are needed: pass exemplars=(logits, labels)"
        )
    found, about = {}, dict[str, list[int]]()
    for task in earlier:
        pair = ((tasks == task) | (tasks == newest)).nonzero().squeeze(1)
        given = _of_classes(samples, pair)
        with error_context(f"task {task}"), without_warnings():
            seen_mask = tasks[pair] == newest
            if is_held_out:
                estimate = estimate_gamma(seen_mask, held_out=given, seed=seed)
            else:
                estimate = estimate_gamma(seen_mask, train=given, seed=seed)
        found[task] = estimate.gamma
        for sentence in estimate.warnings:
            about.setdefault(sentence, []).append(task)
    for sentence, of in about.items():
        warn(f"task_biases: {_name_tasks(of)} (absent) against task {newest} (seen): {sentence}")
    return found


def _of_classes(samples: Samples, classes: Tensor) -> Samples:
    """Return the samples with the columns of some classes, among which are all labels."""
    before = samples.pretrained_logits
    return Samples(
        samples.logits_tensor[:, classes],
        torch.searchsorted(classes, samples.labels_tensor),
        groups=samples.groups,
        pretrained_logits=None if before is None else as_tensor(before, "pretrained_logits")[:, classes],
    )


def _search_exemplars(exemplars: Samples, tasks: Tensor, in_use: Tensor, numbers: Sequence[int]) -> dict[int, float]:
    """Search the biases on labelled samples of all tasks."""
    x, y = exemplars.logits_tensor, exemplars.labels_tensor
    tasks, in_use = tasks.to(x.device), in_use.to(x.device)
    with exemplars.naming_errors():
        check_num_columns(exemplars.num_classes, len(tasks), "task_of_class")
        counts = _exemplars_of_tasks(y, tasks, numbers)
        if len(numbers) == 1:
            return {}
        positions = torch.searchsorted(torch.tensor(numbers, device=x.device), tasks[in_use])
        scan = Samples(x[:, in_use], torch.searchsorted(in_use, y)).scan(positions == len(numbers) - 1)
    scores = task_scores(scan.logits, scan.labels, positions)
    if len(numbers) == 2:
        found = scores.largest.new_tensor([scan.margins.curve().best(), 0.0])
    else:
        found = search_biases(scores)
    right = _is_right(scores, found)
    given_up = [task for place, task in enumerate(numbers) if not bool(right[scores.own == place].any())]
    biases = found.tolist()
    lost = rounding_warnings(scan.logits, max(biases, key=abs)) or _rounded(scan, found[positions], int(right.sum()))
    for sentence in [*scan.doubts(), *lost, *_warnings(dict(zip(numbers, counts, strict=True)), given_up)]:
        warn(f"task_biases: exemplars: {sentence}")
    return dict(zip(numbers, biases, strict=True))


def _rounded(scan: Scan, bias: Tensor, most: int) -> list[str]:
    """Return a warning if fewer than `most` are right once a bias a class `(C,)` is added, as `ClassBias` does."""
    logits = scan.logits
    added = (logits.to(wide_dtype(logits.dtype)) + bias.float()).to(logits.dtype)
    right = int((added.argmax(1) == scan.labels).sum())
    if right >= most:
        return []
    return [
        f"the best biases make {most} of {len(logits)} samples right, and {right} once they are added in "
        f"{dtype_name(logits)}: convert the logits to a wider dtype before ClassBias"
    ]


def _warnings(counts: dict[int, int], given_up: Sequence[int]) -> list[str]:
    sentences = []
    if given_up:
        sentences.append(
            f"the best biases give up {_name_tasks(given_up)}: no sample of it is predicted correctly. Give as many "
            "samples of each class as in use, and more of them"
        )
    few = {task: count for task, count in counts.items() if count < _FEW_EXEMPLARS}
    if few:
        least = min(few, key=few.__getitem__)
        sentences.append(
            f"{_name_tasks(list(few))} of {len(counts)} ha{'s' if len(few) == 1 else 've'} fewer than {_FEW_EXEMPLARS} "
            f"samples (task {least}: {few[least]}), so biases are rough"
        )
    return sentences


def _check_tasks(task_of_class: ArrayLike, num_classes: int, device: torch.device) -> Tensor:
    """Return the task of each class, `(C,)` int64 on the device of the logits."""
    tasks = as_tensor(task_of_class, "task_of_class")
    if tasks.dtype == torch.bool or tasks.is_floating_point() or tasks.is_complex():
        raise TypeError(
            f"task_of_class has dtype {dtype_name(tasks)}; pass the number of each class's task, an integer: 0 for the "
            "first task, and -1 for classes that no task has brought yet"
        )
    if tasks.ndim != 1:
        raise ValueError(f"task_of_class has shape {shape_of(tasks)}; expected (C,), the number of each class's task")
    check_num_columns(num_classes, len(tasks), "task_of_class")
    tasks = tasks.to(device, torch.int64)
    low, high = (int(value) for value in torch.aminmax(tasks))
    if low < _NOT_IN_USE:
        raise ValueError(f"task_of_class contains {low}; tasks are numbered from 0, and -1 is for classes not in use")
    if high == _NOT_IN_USE:
        raise ValueError("task_of_class is -1 for all classes: none is in use; pass the number of each class's task")
    return tasks


def _check_newest(labels: Tensor, tasks: Tensor, newest: int) -> None:
    """No label of another task than the newest."""
    own = tasks[labels]
    wrong = own != newest
    if bool(wrong.any()):
        label, task = int(labels[wrong][0]), int(own[wrong][0])
        of = "that no task has brought yet" if task == _NOT_IN_USE else f"of task {task}"
        raise ValueError(
            f"labels contain class {label} {of} ({int(wrong.sum())} of {len(labels)} samples), and task_of_class says "
            f"that the newest task is {newest}: give samples of its classes only (those of a memory as exemplars), as "
            "indices of columns, and -1 as the task of classes that are yet to come"
        )


def _exemplars_of_tasks(labels: Tensor, tasks: Tensor, numbers: Sequence[int]) -> list[int]:
    """Return the number of exemplars of each task: at least one."""
    own = tasks[labels]
    unused = own == _NOT_IN_USE
    if bool(unused.any()):
        raise ValueError(
            f"labels contain class {int(labels[unused][0])}, which task_of_class says is not in use "
            f"({int(unused.sum())} of {len(labels)} samples); drop them"
        )
    counts = [int((own == task).sum()) for task in numbers]
    if 0 in counts:
        raise ValueError(
            f"there is no sample of task {numbers[counts.index(0)]} ({len(labels)} samples); give some of every task, "
            "the newest included"
        )
    return counts


def _name_tasks(tasks: Sequence[int]) -> str:
    """Return "task 0", or "tasks 0, 1 and 2"."""
    if len(tasks) == 1:
        return f"task {tasks[0]}"
    return f"tasks {', '.join(map(str, tasks[:-1]))} and {tasks[-1]}"
