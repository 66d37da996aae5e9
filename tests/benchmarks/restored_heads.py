"""Heads whose absent rows were thrown away, and restored: over the pre-trained model and under the kept head."""

import argparse
import statistics
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from prototypes import LOOKED_AT, Found
from torch import Tensor

import finecal
from estimators import load, task_files
from finecal._calibrators.head_map import expected_accuracy, fit_head_map, restored_gap, restored_head
from finecal._core.results import format_table

LOOKED_AT = {*LOOKED_AT, "languages", "icons", "inst", "pkg", "xrf"}
Points = dict[str, float]


def accuracy(logits: Tensor, labels: Tensor, mask: Tensor, gamma: float = 0.0) -> float:
    return 100 * float((finecal.predict(logits, mask, gamma) == labels).double().mean())


def best(logits: Tensor, labels: Tensor, mask: Tensor) -> float:
    return accuracy(logits, labels, mask, finecal.tradeoff_curve(logits, labels, mask).best())


def measure(path: Path) -> tuple[str, Points] | None:
    """Return the name and accuracies of a model, None if the file lacks what is needed."""
    task = load(path)
    parts = [
        f"{of}{part}_{what}" for part in ("val", "test") for of, what in (("", "features"), ("pretrained_", "logits"))
    ]
    if not {*parts, "weight", "bias"} <= task.keys():
        return None
    t = {name: torch.as_tensor(a).double() if a.dtype.kind == "f" else torch.as_tensor(a) for name, a in task.items()}
    mask, labels, own = t["seen_mask"].bool(), t["test_labels"].long(), t["val_labels"].long()
    x, y, fx, fy = (t[name] for name in parts)
    seen = mask.nonzero()[:, 0]
    old_weight = t.get("pretrained_weight")
    old_weight = old_weight if old_weight is not None and old_weight.shape == t["weight"].shape else None
    kept, kept_val = (t.get(f"kept_{part}_logits", t[f"{part}_logits"]) for part in ("test", "val"))
    gamma = float(finecal.estimate_gamma(mask, held_out=finecal.Samples(kept_val.float(), own)))
    share = float(mask.double().mean())

    def fit(x: Tensor, y: Tensor, rows: Tensor, pull: bool = True):
        found = restored_head(
            fit_head_map(x, y, old_weight if pull else None), t["weight"][seen], t["bias"][seen], seen, x[rows], y[rows]
        )
        return found, restored_gap(found.leave_one_out(x[rows], y[rows]), own[rows], mask, y[rows], seen).gamma(share)

    every = torch.arange(len(own))
    points = {"pre": accuracy(fy, labels, mask), "kept": accuracy(kept, labels, mask, gamma)}
    rows, g = fit(x, y, every)
    z = rows(fx)
    points["fine-tuned"] = accuracy(z.masked_fill(~mask, -1e9), labels, mask)
    points |= {"seen samples alone": accuracy(z, labels, mask, g), "seen, best gamma": best(z, labels, mask)}
    points["warned"] = float(expected_accuracy(rows, rows.leave_one_out(x, y), x, y, own, g).is_doubtful)
    plain, plain_gamma = fit(x, y, every, pull=False)
    points["seen, without the old head"] = accuracy(plain(fx), labels, mask, plain_gamma)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    half, others = order[: len(order) // 2], order[len(order) // 2 :]
    both_x, both_y = torch.cat([x, fx[half]]), torch.cat([y, fy[half]])
    rows, g = fit(both_x, both_y, every)
    z, truth = rows(fx[others]), labels[others]
    shift = points["pre"] - accuracy(fy[others], truth, mask)  # to compare with all test samples
    points["with unlabelled"] = accuracy(z, truth, mask, g) + shift
    points["with unlabelled, best gamma"] = best(z, truth, mask) + shift
    samples = finecal.Samples(rows(fx[half]).float(), features=fx[half].float())
    prototypes = finecal.calibrators.fit_prototypes(samples, mask, g)
    points["with prototypes"] = accuracy(prototypes(z.float(), fx[others].float()), truth, mask) + shift
    new, old = t["test_logits"][:, mask], fy * rows.scale
    side = old.clone()
    side[:, mask] = new
    of_val = y * rows.scale
    of_val[:, mask] = t["val_logits"][:, mask]
    points["both models"] = accuracy(side, labels, mask, restored_gap(of_val, own, mask, y, seen).gamma(share))
    return path.stem, points


def group_of(name: str) -> str:
    """Return whether the family was looked at, and whether the model is a control."""
    found = Found(name, {})
    kind = "looked at" if found.family in LOOKED_AT else "others"
    return f"controls, {kind}" if "_nogap" in name else kind


def table(models: Sequence[tuple[str, Points]]) -> list[list[str]]:
    lines = []
    skipped = ("pre", "kept", "fine-tuned", "warned")
    for group in dict.fromkeys(group_of(name) for name, _ in models):
        found = [points for name, points in models if group_of(name) == group]
        for row in (name for name in found[0] if name not in skipped):
            cells = []
            for than in ("pre", "kept"):
                gains = [points[row] - points[than] for points in found]
                cells.append(f"{statistics.median(gains):+.1f} / {min(gains):+.1f}")
            lines.append([row, group, str(len(found)), *cells])
        bad = [p["seen samples alone"] < max(p["pre"], p["fine-tuned"]) - 1 for p in found]
        marked = [bool(p["warned"]) for p in found]
        both = sum(b and w for b, w in zip(bad, marked, strict=True))
        lines.append([f"warned {sum(marked)}, should {sum(bad)}, both {both}", group, str(len(found)), "", ""])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", finecal.FinecalWarning)
    models = [found for path in task_files(parser.parse_args().folders) if (found := measure(path))]
    print(format_table(["fitted on", "families", "models", "over pre-trained", "over kept head"], table(models)))


if __name__ == "__main__":
    main()
