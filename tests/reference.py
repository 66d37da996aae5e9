"""Slow and obvious: the rules of the design, sample by sample in Python floats."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
from scipy import optimize, special


def group_max(row, mask, group):
    return max(float(z) for z, seen in zip(row, mask, strict=True) if bool(seen) == group)


def first_argmax(row, mask, group):
    best = group_max(row, mask, group)
    return next(c for c in range(len(row)) if bool(mask[c]) == group and float(row[c]) == best)


def margin(row, mask):
    seen, absent = group_max(row, mask, True), group_max(row, mask, False)
    return math.inf if seen == absent == -math.inf else seen - absent


def predict(row, mask, gamma):
    return first_argmax(row, mask, not margin(row, mask) < gamma)


def is_hit(row, label, mask):
    return first_argmax(row, mask, bool(mask[label])) == label


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def accuracies(logits, labels, mask, gamma, average="micro"):
    """Return Acc_{S/Y}, Acc_{U/Y}, Acc_{Y/Y} by predicting every sample."""
    correct = [predict(row, mask, gamma) == label for row, label in zip(logits, labels, strict=True)]
    if average == "micro":
        seen = [ok for ok, label in zip(correct, labels, strict=True) if mask[label]]
        absent = [ok for ok, label in zip(correct, labels, strict=True) if not mask[label]]
        return mean(seen), mean(absent), mean(correct)
    per_class = {c: mean(ok for ok, y in zip(correct, labels, strict=True) if y == c) for c in set(map(int, labels))}
    return (
        mean(acc for c, acc in per_class.items() if mask[c]),
        mean(acc for c, acc in per_class.items() if not mask[c]),
        mean(per_class.values()),
    )


def plateaus(logits, labels, mask):
    """Return one gamma inside every interval in which no prediction changes, in ascending order."""
    edges = sorted({m for row in logits if math.isfinite(m := margin(row, mask))})
    if not edges:
        return [0.0]
    return [edges[0] - 1, *((a + b) / 2 for a, b in pairwise(edges)), edges[-1] + 1]


def mean_ious(logits, labels, mask, gamma, background=()):
    """Return mean IoU over the seen, the absent and all classes with labels, as fractions; None where there is none."""
    pairs = [(predict(row, mask, gamma), int(y)) for row, y in zip(logits, labels, strict=True)]
    ious = {
        c: Fraction(sum(p == y == c for p, y in pairs), sum(c in pair for pair in pairs)) for c in {y for _, y in pairs}
    }
    of_groups = (
        [iou for c, iou in ious.items() if mask[c] and c not in background],
        [iou for c, iou in ious.items() if not mask[c]],
        list(ious.values()),
    )
    return tuple(sum(group) / len(group) if group else None for group in of_groups)


def objective(name, acc_seen, acc_absent, acc_all):
    if name == "overall":
        return acc_all
    if name == "balanced":
        return (acc_seen + acc_absent) / 2
    if name == "absent":
        return acc_absent
    return 2 * acc_seen * acc_absent / (acc_seen + acc_absent) if acc_seen + acc_absent > 0 else 0.0


def best_value(logits, labels, mask, name, max_seen_drop=None, average="micro"):
    """Return the maximum of an objective over every plateau."""
    floor = -1.0
    if max_seen_drop is not None:
        floor = accuracies(logits, labels, mask, 0.0, average)[0] - max_seen_drop - 1e-12
    points = [accuracies(logits, labels, mask, gamma, average) for gamma in [0.0, *plateaus(logits, labels, mask)]]
    return max(objective(name, *point) for point in points if point[0] >= floor)


def ausuc(logits, labels, mask):
    """Acc_{S/S} times Acc_{U/U} times the probability that a seen hit has the larger margin, ties counting half."""
    hits = [(margin(row, mask), bool(mask[y])) for row, y in zip(logits, labels, strict=True) if is_hit(row, y, mask)]
    seen = [m for m, of_seen in hits if of_seen]
    absent = [m for m, of_seen in hits if not of_seen]
    wins = sum((s > u) + 0.5 * (s == u) for s in seen for u in absent)
    n_seen = sum(bool(mask[y]) for y in labels)
    return wins / (n_seen * (len(labels) - n_seen))


def integer_problem(rng, max_samples=24, max_classes=8, spread=4):
    """Draw a small problem of integer logits, full of ties, with both groups among the labels."""
    classes = int(rng.integers(2, max_classes + 1))
    mask = rng.permutation(np.arange(classes) < rng.integers(1, classes))
    labels = rng.integers(0, classes, int(rng.integers(2, max_samples + 1)))
    labels[0], labels[1] = rng.choice(np.flatnonzero(mask)), rng.choice(np.flatnonzero(~mask))
    logits = rng.integers(-spread, spread + 1, (len(labels), classes)).astype(np.float32)
    if (logits >= 0).all() and (logits.sum(1) == 1).all():
        logits += 2  # finecal refuses what looks like probabilities
    return logits, labels, mask


def average_gap(row, label, mask):
    seen = [float(z) for c, z in enumerate(row) if mask[c] and c != label and z != -math.inf]
    absent = [float(z) for c, z in enumerate(row) if not mask[c] and z != -math.inf]
    return mean(seen) - mean(absent)


def max_gap(row, label, mask):
    seen = max(float(z) for c, z in enumerate(row) if mask[c] and c != label)
    return seen - group_max(row, mask, False)


def mixed_pair_gap(first, y, second, w, mask):
    """Return the gap of the mixture in which classes y and w tie, None where a row prefers the other's class."""
    lead, other_lead = first[y] - first[w], second[w] - second[y]
    if not (lead > 0 and other_lead > 0):
        return None
    share = lead / (lead + other_lead)
    mixture = [(1 - share) * a + share * b for a, b in zip(first, second, strict=True)]
    assert abs(mixture[y] - mixture[w]) < 1e-9
    absent = sorted((z for z, seen in zip(mixture, mask, strict=True) if not seen), reverse=True)
    spacing = (absent[0] - absent[1]) / len(absent) if len(absent) > 1 else 0.0
    return group_max(mixture, mask, True) - absent[0] + spacing


def residual_gap(rows, labels, mask, temperature):
    """Return the gamma, for equally many seen and absent samples, that equals the weighted mean of the gaps."""
    gaps, own, seen_rival, absent_rival = [], [], [], []
    for row, label in zip(rows, labels, strict=True):
        seen = sorted((z for c, z in enumerate(row) if mask[c] and c != label and z > -math.inf), reverse=True)
        absent = sorted((z for c, z in enumerate(row) if not mask[c] and z > -math.inf), reverse=True)
        rise = (seen[0] - seen[1]) / (len(seen) + 1) if len(seen) > 1 else 0.0
        fall = (absent[0] - absent[1]) / len(absent) if len(absent) > 1 else 0.0
        gaps.append((seen[0] + rise) - (absent[0] - fall))
        own.append(row[label])
        seen_rival.append(seen[0])
        absent_rival.append(absent[0])

    def excess(gamma):
        weights = [
            special.expit((max(s, u + gamma) - z) / temperature)
            for z, s, u in zip(own, seen_rival, absent_rival, strict=True)
        ]
        return sum(w * g for w, g in zip(weights, gaps, strict=True)) / sum(weights) - gamma

    return optimize.brentq(excess, min(gaps) - 1, max(gaps) + 1, xtol=1e-12)


def seen_temperature(rows, labels, mask):
    """Return the T that minimises the mean NLL of the labels over the seen classes, plus (log T)^2 / 200."""
    seen = np.array(rows)[:, mask]
    own = np.array(rows)[np.arange(len(rows)), labels]

    def loss(log_t):
        nll = special.logsumexp(seen / math.exp(log_t), axis=1) - own / math.exp(log_t)
        return nll.mean() + log_t**2 / 200

    return math.exp(optimize.minimize_scalar(loss, bounds=(-4, 4), method="bounded").x)


def binomial_error(count, n):
    p = max(count, 1) / n
    return math.sqrt(p * (1 - p) / n)


def best_bin_share(seen, unlabelled):
    """Best Bin Estimation over the 91 quantiles of the seen margins, with one binomial standard error each."""
    ratios = []
    for t in np.quantile(seen, np.linspace(0.05, 0.95, 91)):
        u = np.mean(unlabelled > t) + binomial_error(np.sum(unlabelled > t), len(unlabelled))
        s = np.mean(seen > t) - binomial_error(np.sum(seen > t), len(seen))
        if s > 0:
            ratios.append(u / s)
    return min(max(min(ratios, default=math.inf), 0.02), 0.98)
