"""
Write a report
==============

Write the report of a network that was fine-tuned on half of the names of countries, currencies and scripts.

Needs the extras demo and report, no network, and half a minute: python examples/report.py [report.html]

The training is that of `finecal demo`, from a private module of the package; all else is public.
"""

import sys
from pathlib import Path

import finecal
from finecal.datasets import load_names
from finecal.name_classifier import train_names

if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "report.html")
    task = load_names(seed=0)
    logits = train_names(task, seed=0, progress=False, epochs=(10, 25))
    gamma = finecal.mixed_pair_gap(logits.train, task.train.labels, task.seen_mask, n_bootstrap=200)
    page = finecal.html_report(
        logits.test,
        task.test.labels,
        task.seen_mask,
        gamma,
        class_names=task.class_names,
        title="Countries, currencies and scripts, fine-tuned on half of them",
    )
    path.write_text(page, encoding="utf-8")
    for name, at in {"gamma = 0": 0.0, "mixed_pair_gap": gamma}.items():
        report = finecal.evaluate(logits.test, task.test.labels, task.seen_mask, at)
        print(f"{name:<15} {report.gamma:6.3f}  acc_all {100 * report.acc_all:.1f} %")
    print(f"{path}: {len(page.encode()) / 1e6:.2f} MB")
