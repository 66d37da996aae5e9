"""
Write a report
==============

Write a page for the browser on what gamma does to a network that was fine-tuned on half of its classes.

Needs the extras demo and report, no network, and half a minute: ``python examples/report.py [report.html]``

The training is that of ``finecal demo``, from a private module of the package; all else is public.
"""

import sys
from pathlib import Path

from matplotlib import pyplot as plt

import finecal
from finecal import plots
from finecal.demo.classifier import train_names
from finecal.demo.names import load_names

# %%
# A fine-tuned network
# --------------------
# It tells a country, a currency or a script by its name. Pre-trained in English and the Romance languages, it is
# fine-tuned on half of the classes in 40 other languages.

task = load_names(seed=0)
logits = train_names(task, seed=0, progress=False, epochs=(10, 25))
test = (logits.test, task.test.labels)
print(f"{int(task.seen_mask.sum())} of {len(task.class_names)} classes seen, {len(task.test)} test names")

# %%
# Gamma
# -----
# From the logits of the training names, with a bootstrap interval.

gamma = finecal.mixed_pair_gap(logits.train, task.train.labels, task.seen_mask, n_bootstrap=200)
for name, at in {"gamma = 0": 0.0, "mixed_pair_gap": gamma}.items():
    report = finecal.evaluate(*test, task.seen_mask, at)
    print(f"{name:<15} {report.gamma:6.3f}  acc_all {100 * report.acc_all:.1f} %")

# %%
# Two of the pictures in the report:

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
curve = finecal.tradeoff_curve(*test, task.seen_mask)
plots.plot_tradeoff(curve, left, gammas={"mixed_pair_gap": gamma})
plots.plot_accuracy(curve, right, gamma=gamma)
plt.show()

# %%
# The page
# --------
# One file that needs no network, for a colleague or an archive.

page = finecal.html_report(
    *test,
    task.seen_mask,
    gamma,
    class_names=task.class_names,
    title="Countries, currencies and scripts, fine-tuned on half of them",
)
path = Path(sys.argv[1] if len(sys.argv) > 1 else "report.html")
path.write_text(page, encoding="utf-8")
print(f"{path}: {len(page.encode()) / 1e6:.2f} MB")

# %%
# Its slider moves gamma, and accuracies, pictures and tables follow. The upper part of it:
#
# .. image:: ../images/report.png
#    :width: 700px
#    :alt: A summary in words, the slider for gamma, a table of accuracies and three pictures

# sphinx_gallery_thumbnail_path = "images/report.png"
