"""
Write a report
==============

A page for the browser shows what gamma does to a network that was fine-tuned on half of its classes.

Needs the extras demo and report, no network, and half a minute: ``python examples/report.py [report.html]``

The training is that of ``finecal demo``, from a private module of the package; everything else is public.
"""

import sys
from pathlib import Path

from matplotlib import pyplot as plt

import finecal
from finecal import plots
from finecal._demo.names import load_names
from finecal._demo.run import train_names

# %%
# A fine-tuned network
# --------------------
# It recognises countries, currencies and scripts by their names. Pre-trained on names in English and the Romance
# languages, it is fine-tuned on half of the classes with names in 40 other languages.

task = load_names(seed=0)
logits = train_names(task, seed=0, progress=False, epochs=(10, 25))
train = finecal.Samples(logits.train, task.train.labels)
test = finecal.Samples(logits.test, task.test.labels)
print(
    f"{int(task.seen_mask.sum())} of {len(task.class_names)} classes seen, {len(task.test)} test names"
)

# %%
# Gamma
# -----
# Estimated from the logits of the training names, with an interval. ``train=`` says that the network was trained on
# them, and the page says so too.

gamma = finecal.estimate_gamma(task.seen_mask, train=train, n_bootstrap=200)
for name, at in {"gamma = 0": 0.0, "estimate_gamma": gamma}.items():
    report = finecal.evaluate(test, task.seen_mask, at)
    print(
        f"{name:<15} {report.gamma:6.3f}  acc_all {100 * report.acc_all:.1f} %"
    )

# %%
# Two of the pictures in the report:

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 4.6), layout="constrained"
)
curve = finecal.tradeoff_curve(test, task.seen_mask)
plots.plot_tradeoff(curve, left, gammas={"estimate_gamma": gamma})
plots.plot_accuracy(curve, right, gamma=gamma)
plt.show()

# %%
# The page
# --------
# One file that needs no network, for a colleague or an archive.

page = finecal.html_report(
    test,
    task.seen_mask,
    gamma,
    class_names=task.class_names,
    title="How gamma changes accuracy on countries, currencies and scripts",
)
path = Path(sys.argv[1] if len(sys.argv) > 1 else "report.html")
path.write_text(page, encoding="utf-8")
print(f"{path}: {len(page.encode()) / 1e6:.2f} MB")

# %%
# Its slider moves gamma; accuracies, pictures and tables follow. The upper part of it:
#
# .. image:: ../images/report.png
#    :width: 700px
#    :alt: The accuracies before and with gamma, its slider, a summary in words and three pictures

# sphinx_gallery_thumbnail_path = "images/report.png"
