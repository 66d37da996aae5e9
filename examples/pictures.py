"""
Every picture
=============

Every picture of `finecal.plots`, on one fine-tuned model.

Needs scikit-learn and matplotlib, no network and a few seconds: ``python examples/pictures.py [FOLDER]``. With a
folder, it writes each picture there, in a light and in a dark version: those of :doc:`../how-to/results`.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from digits_data import SEEN_MASK, load, make_model, score, train
from matplotlib import pyplot as plt

import finecal
from finecal import plots

# %%
# A model, fine-tuned on even digits
# ----------------------------------
# The images are those of :doc:`digits_data`. Gamma is found from held-out even digits, with a bootstrap interval.

torch.set_num_threads(1)
source, fine_tuning, held_out, test = load(seed=0)
model = make_model()
train(model, source, epochs=40, learning_rate=0.05)
pretrained = score(model, test)
train(model, fine_tuning, epochs=20, learning_rate=0.01)
scored = score(model, test)
gamma = finecal.estimators.residual_gap(
    score(model, held_out), SEEN_MASK, n_bootstrap=200
)
print(gamma)

# %%
# What does gamma trade?
# ----------------------
# Each picture takes a result of finecal. ``draw_tradeoff()`` would make a figure of its own; here each is drawn on axes
# of matplotlib's.

curve = finecal.tradeoff_curve(scored, SEEN_MASK)
draw_tradeoff = partial(
    plots.plot_tradeoff, curve, gammas={"residual_gap": gamma}
)
draw_tradeoff(plt.figure(layout="constrained").subplots())

# %%
# Which samples change sides?
# ---------------------------
# The curve remembers the margins that it was made from.

draw_margins = partial(plots.plot_margins, curve.samples, gamma=gamma)
draw_margins(plt.figure(layout="constrained").subplots())

# %%
# How precisely must gamma be known?
# ----------------------------------
# The band is the bootstrap interval.

draw_accuracy = partial(plots.plot_accuracy, curve, gamma=gamma)
draw_accuracy(plt.figure(layout="constrained").subplots())

# %%
# Can the probabilities be believed?
# ----------------------------------
# Confidence against accuracy, after gamma.

report = finecal.probabilities.evaluate_probabilities(scored, SEEN_MASK, gamma)
draw_reliability = partial(plots.plot_reliability, report)
draw_reliability(plt.figure(layout="constrained").subplots())

# %%
# Which estimator suits my data?
# ------------------------------
# All that the data allow, scored on the test labels.

comparison = finecal.compare_estimators(
    SEEN_MASK,
    train=score(model, fine_tuning),
    held_out=score(model, held_out),
    unlabelled=scored,
    test=scored,
)
draw_estimators = partial(plots.plot_estimators, comparison)
draw_estimators(plt.figure(figsize=(6.4, 6.4), layout="constrained").subplots())

# %%
# Did fine-tuning shift the logits?
# ---------------------------------
# The mean gap between seen and absent logits, before fine-tuning and after it.

samples = finecal.Samples(
    scored.logits, scored.labels, pretrained_logits=pretrained.logits
)
diagnosis = finecal.diagnose(samples, SEEN_MASK)
draw_gaps = partial(plots.plot_gaps, diagnosis)
draw_gaps(plt.figure(layout="constrained").subplots())
plt.show()

# %%
# Save them
# ---------
# On a dark background the colours are others. Without axes, each picture makes a figure in the size in which its text
# can be read at 400 pixels.

if len(sys.argv) > 1:
    from _light_and_dark import save_light_and_dark

    folder = Path(sys.argv[1])
    save_light_and_dark(lambda: draw_tradeoff().figure, folder, "plot_tradeoff")
    save_light_and_dark(lambda: draw_margins().figure, folder, "plot_margins")
    save_light_and_dark(lambda: draw_accuracy().figure, folder, "plot_accuracy")
    save_light_and_dark(
        lambda: draw_reliability().figure, folder, "plot_reliability"
    )
    save_light_and_dark(
        lambda: draw_estimators().figure, folder, "plot_estimators"
    )
    save_light_and_dark(lambda: draw_gaps().figure, folder, "plot_gaps")
    print(f"{len(list(folder.glob('plot_*.png')))} pictures in {folder}")

# sphinx_gallery_thumbnail_number = 5
