"""Heads that were replaced, or whose absent rows were thrown away, restored. See README.md."""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from prototypes import LOOKED_AT, Found
from torch import Tensor

import finecal
from estimators import load, task_files
from finecal._calibrators import head_map
from finecal._calibrators.restored_head import RestoredHead, fit_both_heads
from finecal._core.results import format_table
from finecal.weights import fit_restored_head

LOOKED_AT = {*LOOKED_AT, "languages", "icons", "inst", "pkg", "xrf"}
PENALTIES = 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0
WITH_BEST_GAMMA = "held-out seen samples", "held-out, best penalty", "with unlabelled", "with prototypes", "both models"
BAD = 1.0
"""Points below the better of the pre-trained and the fine-tuned model."""
Points = dict[str, float]


class Task(NamedTuple):
    """A head of the seen classes, and what its model and the pre-trained one make of samples.

    Labels of `train` and `held_out` are in the numbering of the new head, those of `test` in that of the old one.
    """

    mask: Tensor
    weight: Tensor
    bias: Tensor | None
    old_weight: Tensor | None
    train: finecal.Samples
    held_out: finecal.Samples
    test: finecal.Samples
    kept: dict[str, Tensor]
    """Logits by the model whose head was kept."""

    def fit(self, samples: finecal.Samples, **options: Any) -> RestoredHead:
        given = {"new_to_old": self.mask.nonzero()[:, 0], "old_weight": self.old_weight, "is_held_out": True}
        return fit_restored_head(samples, self.weight, self.bias, **given | options)

    def new_logits(self, features: Tensor) -> Tensor:
        return features @ self.weight.T + (0 if self.bias is None else self.bias)


def read(path: Path) -> Task | None:
    """Read a task file; None if it lacks what is needed, or is a control."""
    task = {name: torch.as_tensor(array) for name, array in load(path).items()}
    if not {"train_features", "test_features", "pretrained_train_logits"} <= task.keys() or "_nogap" in path.stem:
        return None
    task = {name: array.double() if array.is_floating_point() else array for name, array in task.items()}
    mask = task["seen_mask"].bool()
    rows = slice(None) if len(task["weight"]) < len(mask) else mask
    weight, bias, old = task["weight"][rows], task["bias"][rows], task["pretrained_weight"]

    def samples(part: str) -> finecal.Samples:
        features, labels = task[f"{part}_features"], task[f"{part}_labels"].long()
        before = task[f"pretrained_{part}_logits"]
        logits = before if part == "test" else features @ weight.T + bias
        own = labels if part == "test" else torch.searchsorted(mask.nonzero()[:, 0], labels)
        return finecal.Samples(logits, own, features=features, pretrained_logits=before)

    kept = {part: task.get(f"kept_{part}_logits", task[f"{part}_logits"]).float() for part in ("val", "test")}
    same = old if old.shape == (len(mask), weight.shape[1]) else None
    return Task(mask, weight, bias, same, *map(samples, ("train", "val", "test")), kept)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return 100 * float((logits.argmax(1) == labels).double().mean())


def scored(head: RestoredHead, features: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy, and that with the best gamma."""
    logits = features @ head.weight.T + head.bias
    best = finecal.tradeoff_curve(logits, labels, head.seen_mask).best()
    return accuracy(logits, labels), 100 * float(
        (finecal.predict(logits, head.seen_mask, best) == labels).double().mean()
    )


def side_by_side(task: Task, samples: finecal.Samples) -> Tensor:
    """Return what the head of both models takes."""
    return torch.cat([task.new_logits(samples.features), samples.pretrained_logits], 1)


@contextmanager
def penalty(value: float):
    with patch.object(head_map, "_PENALTIES", (value,)):
        yield


def some(samples: finecal.Samples, per_class: int | None = None, most: int | None = None) -> finecal.Samples:
    """Return random samples, so many of a class or in all."""
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(samples.labels)))
    if per_class is not None:
        labels = samples.labels[order]
        order = torch.cat([order[labels == c][:per_class] for c in labels.unique()])
    return samples[order[:most]]


def with_own_classes(task: Task) -> tuple[RestoredHead, Tensor]:
    """Take every fourth seen class for one that the old head does not have; return the labels of the others' order."""
    seen = task.mask.nonzero()[:, 0]
    own = torch.arange(len(seen)) % 4 == 0
    kept = torch.ones_like(task.mask)
    kept[seen[own]] = False
    place = kept.cumsum(0) - 1
    new_to_old = torch.where(own, -1, place[seen])
    place[seen[own]] = int(kept.sum()) + torch.arange(int(own.sum()))
    held_out = task.held_out
    samples = finecal.Samples(
        held_out.logits,
        held_out.labels,
        features=held_out.features,
        pretrained_logits=held_out.pretrained_logits[:, kept],
    )
    old = None if task.old_weight is None else task.old_weight[kept]
    return task.fit(samples, new_to_old=new_to_old, old_weight=old), place[task.test.labels]


def measure(task: Task) -> Points:
    """Return accuracies, and what was warned of."""
    fx, labels, mask, held_out = task.test.features, task.test.labels, task.mask, task.held_out
    kept = finecal.Samples(task.kept["val"], mask.nonzero()[:, 0][held_out.labels])
    gamma = finecal.estimate_gamma(mask, held_out=kept)
    fine_tuned = torch.full_like(task.test.pretrained_logits, -torch.inf)
    fine_tuned[:, mask] = task.new_logits(fx)
    points = {
        "pre": accuracy(task.test.pretrained_logits, labels),
        "kept": 100 * float((finecal.predict(task.kept["test"], mask, gamma) == labels).double().mean()),
        "fine-tuned": accuracy(fine_tuned, labels),
    }

    def add(name: str, head: RestoredHead, features: Tensor = fx, truth: Tensor = labels, shift: float = 0.0) -> None:
        found, best = scored(head, features, truth)
        points[name], points[f"{name}, best gamma"] = found + shift, best + shift
        points[f"warned: {name}"] = float(any("What helps" in sentence for sentence in head.estimate.warnings))

    add("held-out seen samples", task.fit(held_out))
    add("training samples", task.fit(task.train, is_held_out=False))
    add("held-out, pulled towards zero", task.fit(held_out, old_weight=None))
    with patch.object(head_map, "old_share", return_value=0.0):
        add("held-out, new rows alone", task.fit(held_out))
    every = []
    for value in PENALTIES:
        with penalty(value):
            every.append(scored(task.fit(held_out), fx, labels))
    name = "held-out, best penalty"
    points[name], points[f"{name}, best gamma"] = map(max, zip(*every, strict=True))
    points[f"warned: {name}"] = 0.0
    for name, chosen in (
        ("20 a class", {"per_class": 20}),
        ("5 a class", {"per_class": 5}),
        ("100 in all", {"most": 100}),
    ):
        add(f"training samples, {name}", task.fit(some(task.train, **chosen), is_held_out=False))
        add(f"held-out, {name}", task.fit(some(held_out, **chosen)))
    add("held-out, classes of its own", *_at(with_own_classes(task), fx))
    without = task._replace(bias=None)
    add("held-out, head without bias", without.fit(held_out))

    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    half, others = order[: len(order) // 2], order[len(order) // 2 :]
    shift = points["pre"] - accuracy(task.test.pretrained_logits[others], labels[others])  # to compare with all
    for name, options in (("with unlabelled", {}), ("with prototypes", {"with_prototypes": True})):
        head = task.fit(held_out, unlabelled=task.test[half], **options)
        add(name, head, fx[others], labels[others], shift)
    both = finecal.Samples(
        task.new_logits(held_out.features), held_out.labels, pretrained_logits=held_out.pretrained_logits
    )
    head = fit_both_heads(both, new_to_old=mask.nonzero()[:, 0], is_held_out=True)
    add("both models", head, side_by_side(task, task.test))
    return points


def _at(found: tuple[RestoredHead, Tensor], features: Tensor) -> tuple[RestoredHead, Tensor, Tensor]:
    return found[0], features, found[1]


Groups = dict[str, Callable[[str, float], bool]]
KINDS: Groups = {
    "looked at": lambda name, _: Found(name, {}).family in LOOKED_AT,
    "others": lambda name, _: Found(name, {}).family not in LOOKED_AT,
}
SHARES: Groups = {
    "fewer than 45 % seen": lambda _, share: share < 0.45,
    "45 to 60 % seen": lambda _, share: 0.45 <= share <= 0.6,
    "more than 60 % seen": lambda _, share: share > 0.6,
    "cosine head": lambda name, _: "_cosine" in name,
}


class Measured(NamedTuple):
    name: str
    share: float
    points: Points


def table(models: Sequence[Measured], groups: Groups, rows: Sequence[str] = ()) -> list[list[str]]:
    """Return lines of each group and row: median / worst, and how many were bad, warned of, and both."""
    lines = []
    for group, belongs in groups.items():
        found = [model.points for model in models if belongs(model.name, model.share)]
        for row in rows or [name for name in (found[0] if found else ()) if f"warned: {name}" in found[0]]:
            for name in (row, f"{row}, best gamma")[: 1 + (row in WITH_BEST_GAMMA)]:
                if not found:
                    continue
                cells = []
                for than in ("pre", "kept"):
                    gains = [points[name] - points[than] for points in found]
                    cells.append(f"{statistics.median(gains):+.1f} / {min(gains):+.1f}")
                bad = [p[name] < max(p["pre"], p["fine-tuned"]) - BAD for p in found]
                marked = [bool(p.get(f"warned: {name}")) for p in found]
                counts = [sum(bad), sum(marked), sum(b and m for b, m in zip(bad, marked, strict=True))]
                has = f"warned: {name}" in found[0]
                lines.append(
                    [name, group, str(len(found)), *cells, *(map(str, counts) if has else (str(sum(bad)), "", ""))]
                )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    torch.set_num_threads(1)
    paths = task_files(parser.parse_args(arguments).folders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        models = [
            Measured(path.stem, float(task.mask.double().mean()), measure(task))
            for path in paths
            if (task := read(path))
        ]
    if not models:
        parser.error("no .npz files with features and logits before fine-tuning in the folders")
    head = ["fitted on", "families", "models", "over pre-trained", "over kept head", "bad", "warned", "both"]
    print(format_table(head, table(models, KINDS)))
    print("\nBy share of seen classes, and cosine heads; all families\n")
    print(format_table(head, table(models, SHARES, ["held-out seen samples", "both models"])))


if __name__ == "__main__":
    main()
