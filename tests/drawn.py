"""What tests of pictures draw, and look for in them."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch

import finecal


def artist(ax, gid):
    """The one artist with this id."""
    (found,) = ax.findobj(lambda artist: artist.get_gid() == gid)
    return found


def point(ax, gid):
    """Where the marker with this id is."""
    (position,) = np.asarray(artist(ax, gid).get_offsets())
    return tuple(position)


def legend(ax):
    """The texts of the legend."""
    return [text.get_text() for text in ax.get_legend().get_texts()]


def make(n=300, torch_tensors=False, seed=0):
    """Logits whose first three of six classes have outgrown the others, before and after."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, n)
    before = (rng.normal(size=(n, 6)) + 3 * np.eye(6)[labels]).astype(np.float32)
    seen_mask = np.arange(6) < 3
    logits = before + 3 * seen_mask.astype(np.float32)
    if torch_tensors:
        return torch.from_numpy(before), torch.from_numpy(logits), torch.from_numpy(labels), seen_mask
    return before, logits, labels, seen_mask


@cache
def compared(long=False, impossible=(), test=False, n_bootstrap=0):
    _, logits, labels, seen_mask = make()
    seen = seen_mask[labels]
    train, held_out = np.flatnonzero(seen)[:80], np.flatnonzero(seen)[80:]
    comparison = finecal.compare_estimators(
        seen_mask,
        train=(logits[train], labels[train]),
        held_out=(logits[held_out], labels[held_out]),
        unlabelled=logits,
        test=(logits, labels) if test else None,
        n_bootstrap=n_bootstrap,
    )
    rows = [
        replace(
            row,
            method=row.method + "_of_a_very_long_name" * (long and row.method != "oracle"),
            **({"estimate": None, "report": None, "error": "no", "recovered": None} if i in impossible else {}),
        )
        for i, row in enumerate(comparison.rows)
    ]
    return replace(comparison, rows=tuple(rows))


def diagnosed(scale=1.0, absent=True):
    before, logits, labels, seen_mask = make()
    diagnosis = finecal.diagnose(finecal.Samples(scale * logits, labels, pretrained_logits=before / scale), seen_mask)
    if absent:
        return diagnosis
    gaps = {
        name: getattr(diagnosis, name)._replace(absent=getattr(diagnosis, name).absent._replace(max_gap=np.nan))
        for name in ("pretrained_gaps", "finetuned_gaps")
    }
    return replace(diagnosis, **gaps)


def samples(n=300):
    _, logits, labels, seen_mask = make(n)
    return finecal.Samples(logits, labels).margins(seen_mask)


def only_seen():
    _, logits, labels, seen_mask = make()
    rows = seen_mask[labels]
    return logits[rows], labels[rows], seen_mask


def two():
    """A seen and an absent sample, both with the same margin."""
    return np.array([[1.0, 0.0, 0.5, 0.0], [1.0, 0.0, 0.5, 0.0]]), [0, 2], [True, True, False, False]


def estimate(gamma, *interval):
    return finecal.GammaEstimate(gamma=float(gamma), method="mine", data="3 samples", n=3, interval=interval)


def accuracies(gamma, n=300):
    """Of the seen, of the absent and of all samples, by the argmax of calibrated logits."""
    _, logits, labels, seen_mask = make(n)
    right = (logits.astype(np.float64) + gamma * ~seen_mask).argmax(1) == labels
    seen = seen_mask[labels]
    return right[seen].mean(), right[~seen].mean(), right.mean()


def every_gamma(n=300):
    """Gammas between any two margins, and beyond them."""
    _, logits, _, seen_mask = make(n)
    margin = np.unique(logits[:, seen_mask].max(1) - logits[:, ~seen_mask].max(1)).astype(np.float64)
    return np.concatenate([[margin[0] - 1], (margin[1:] + margin[:-1]) / 2, [margin[-1] + 1]])
