"""
The problem in one picture
==========================

A small network that knows 291 countries, currencies and scripts by their names in English and the Romance languages is
fine-tuned on half of them in 40 other languages. What becomes of the other half, and what one number does about it.

Needs the extra demo, no network and half a minute: ``python examples/the_problem.py [FOLDER]``

The folder ``docs/images`` of the documentation holds what this script writes. The training is that of ``finecal demo``,
from a private module of the package; all else is public.
"""

# %%
# The names come with the package pycountry. Training gives logits over all classes: of the fine-tuning names, and of
# test names of all classes, before and after fine-tuning.

import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import finecal
from finecal._demo.names import load_names
from finecal._demo.run import train_names
from finecal.plots import plot_tradeoff
from finecal.plots._axes import palette_of

torch.set_num_threads(1)  # The same figures on every machine.
task = load_names(seed=0)
logits = train_names(task, seed=0, progress=False, epochs=(10, 25))

# %%
# Gamma comes from the logits and labels of the fine-tuning names alone: nobody has seen a name of the other half.

train = finecal.Samples(logits.train, task.train.labels)
before = finecal.Samples(logits.pretrained_test, task.test.labels)
test = finecal.Samples(logits.test, task.test.labels)
mask = task.seen_mask
gamma = finecal.estimate_gamma(mask, train=train)
reports = {
    "pre-trained": finecal.evaluate(before, mask),
    "fine-tuned on\nthe seen classes": finecal.evaluate(test, mask),
    "fine-tuned,\nwith gamma": finecal.evaluate(test, mask, gamma),
}
print(gamma)
for name, report in reports.items():
    seen, absent = 100 * report.acc_seen, 100 * report.acc_absent
    print(
        f"{name.replace(chr(10), ' '):<30} seen {seen:4.1f} %, absent {absent:4.1f} %"
    )

# %%
# The features have become better for all classes; what broke is the scale of the logits. On the right, every accuracy
# that some gamma gives.


def draw_accuracies(ax: Axes) -> None:
    colours = palette_of(ax)
    for shift, group, hatch in ((-0.2, "seen", ""), (0.2, "absent", "///")):
        heights = [
            100 * getattr(report, f"acc_{group}") for report in reports.values()
        ]
        places = [place + shift for place in range(3)]
        style = {
            "color": getattr(colours, group),
            "hatch": hatch,
            "edgecolor": colours.face,
            "label": f"{group} classes",
        }
        ax.bar_label(
            ax.bar(places, heights, width=0.38, **style), fmt="%.1f", padding=2
        )
    ax.set_xticks(range(3), reports)
    ax.set(ylim=(0, 100), title="Accuracy on test names, %")
    ax.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False
    )
    ax.spines[["top", "right"]].set_visible(False)


def draw_curve(ax: Axes) -> None:
    curve = finecal.tradeoff_curve(test, mask)
    plot_tradeoff(curve, ax, gammas={"estimate_gamma": gamma})


figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 4.2), layout="constrained"
)
draw_accuracies(left)
draw_curve(right)
plt.show()

# %%
# Each in a light and in a dark version, for the first page of the documentation:

if len(sys.argv) > 1:
    from _light_and_dark import save_light_and_dark

    for name, draw in {
        "accuracies": draw_accuracies,
        "curve": draw_curve,
    }.items():

        def drawn(draw=draw):
            figure, ax = plt.subplots(
                figsize=(4.8, 4.2), dpi=160, layout="constrained"
            )
            draw(ax)
            return figure

        save_light_and_dark(drawn, Path(sys.argv[1]), f"the_problem_{name}")
