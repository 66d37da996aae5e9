"""
The problem in one picture
==========================

A small network that knows 291 countries, currencies and scripts by their names in English and the Romance languages is
fine-tuned on half of them in 40 other languages. What becomes of the other half, and what one number does about it.

Needs the extra finecal[demo], no network and half a minute: python examples/the_problem.py [FOLDER]

The folder ``docs/images`` of the documentation holds what this script writes. The training is that of ``finecal demo``,
from a private module of the package; all else is public.
"""

# %%
# The names come with the package pycountry. Training gives logits over all classes: of the fine-tuning names, and of
# test names of all classes, before and after fine-tuning.

import sys
from pathlib import Path

import torch
from _light_and_dark import save_light_and_dark
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import finecal
from finecal.datasets import load_names
from finecal.name_classifier import train_names
from finecal.plots import plot_tradeoff
from finecal.plots.palette import palette_of

torch.set_num_threads(1)  # The same figures on every machine.
task = load_names(seed=0)
logits = train_names(task, seed=0, progress=False, epochs=(10, 25))

# %%
# Gamma comes from the logits and labels of the fine-tuning names alone: nobody has seen a name of the other half.

gamma = finecal.estimate_gamma(task.seen_mask, train=(logits.train, task.train.labels))
reports = {
    "pre-trained": finecal.evaluate(logits.pretrained_test, task.test.labels, task.seen_mask),
    "fine-tuned": finecal.evaluate(logits.test, task.test.labels, task.seen_mask),
    f"with gamma = {float(gamma):.1f}": finecal.evaluate(logits.test, task.test.labels, task.seen_mask, gamma),
}
for name, report in reports.items():
    print(f"{name:<16} seen {100 * report.acc_seen:4.1f} %, absent {100 * report.acc_absent:4.1f} %")

# %%
# The features have become better for all classes; what broke is the scale of the logits. On the right, every accuracy
# that some gamma gives.


def draw() -> Figure:
    figure, (bars, curve) = plt.subplots(1, 2, figsize=(9, 3.6), width_ratios=(5, 4), layout="constrained")
    colours = palette_of(bars)
    for shift, group, colour in ((-0.2, "seen", colours.seen), (0.2, "absent", colours.absent)):
        heights = [100 * getattr(report, f"acc_{group}") for report in reports.values()]
        places = [place + shift for place in range(3)]
        drawn = bars.bar(places, heights, width=0.38, color=colour, label=f"{group} classes")
        bars.bar_label(drawn, fmt="%.0f", padding=2)
    bars.set_xticks(range(3), reports)
    bars.set(ylim=(0, 112), ylabel="accuracy, %", title="Test names in 40 languages")
    bars.legend(loc="upper center", ncols=2, frameon=False)
    bars.spines[["top", "right"]].set_visible(False)
    tradeoff = finecal.tradeoff_curve(logits.test, task.test.labels, task.seen_mask)
    plot_tradeoff(tradeoff, curve, gammas={"estimate_gamma": gamma})
    return figure


draw()
plt.show()

# %%
# In a light and in a dark version, for the documentation:

if len(sys.argv) > 1:
    save_light_and_dark(draw, Path(sys.argv[1]), "the_problem")
