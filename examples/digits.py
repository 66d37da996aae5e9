"""
Calibrate a training script
===========================

A network fine-tuned on even digits takes odd ones for even; a few lines at the end of its training script mend that.

Needs scikit-learn and matplotlib, no network and a few seconds: ``python examples/digits.py``
"""

import torch
from digits_data import SEEN_MASK, load, make_model, score, train
from matplotlib import pyplot as plt

import finecal
from finecal import plots

# %%
# Train as usual
# --------------
# The images are those of :doc:`digits_data`: plain digits for pre-training, faint and noisy ones after that. For
# fine-tuning there are even digits only. The same seed and one thread give the same figures again.

torch.set_num_threads(1)
source, fine_tuning, held_out, test = load(seed=0)
model = make_model()
train(model, source, epochs=40, learning_rate=0.05)
pretrained = finecal.evaluate(score(model, test), SEEN_MASK)
train(model, fine_tuning, epochs=20, learning_rate=0.01)


# %%
# What fine-tuning did
# --------------------
# `finecal.evaluate` tells the accuracies on samples of seen classes, of absent ones, and of all. Fine-tuning has taught
# the network to read faint digits, and not to answer with an odd one.


def show(name: str, report: finecal.SeenAbsentReport) -> None:
    seen, absent, overall = (
        100 * value
        for value in (report.acc_seen, report.acc_absent, report.acc_all)
    )
    print(
        f"{name:<40} {report.gamma:6.2f} {seen:7.1f} {absent:7.1f} {overall:7.1f}"
    )


scored = score(model, test)
print(
    f"{'test accuracy, %':<40} {'gamma':>6} {'seen':>7} {'absent':>7} {'all':>7}"
)
show("pre-trained on all ten digits", pretrained)
show("fine-tuned on the even digits", finecal.evaluate(scored, SEEN_MASK))

# %%
# Find gamma
# ----------
# From here on it is finecal. The training data are enough: no sample of an odd digit is needed. Even digits that the
# model was not trained on tell what gamma really costs them.

on_training = finecal.estimate_gamma(SEEN_MASK, train=score(model, fine_tuning))
print(on_training)
estimate = finecal.estimate_gamma(
    SEEN_MASK, train=score(model, fine_tuning), held_out=score(model, held_out)
)
print(estimate)

# %%
# Gamma is added to the logits of the absent classes; what comes out are logits like those before, for whatever comes
# after.

calibrated = finecal.calibrate_logits(scored.logits, SEEN_MASK, estimate)
changed = (calibrated.argmax(1) != scored.logits.argmax(1)).sum()
print(f"It changes the prediction for {changed} of {len(scored)} test images.")

# %%
# What it buys
# ------------
# For comparison: the same with the test images as unlabelled samples, two other estimators, on the held-out even
# digits, and the best gamma that the test labels could find.

unlabelled = finecal.estimate_gamma(
    SEEN_MASK,
    train=score(model, fine_tuning),
    held_out=score(model, held_out),
    unlabelled=scored,
)
gap = finecal.estimators.max_logit_gap(score(model, held_out), SEEN_MASK)
residual = finecal.estimators.residual_gap(score(model, held_out), SEEN_MASK)
oracle = finecal.search_gamma(scored, SEEN_MASK)
for name, gamma in {
    "estimate_gamma: training samples": on_training,
    "estimate_gamma: also held-out": estimate,
    "estimate_gamma: also unlabelled": unlabelled,
    "max_logit_gap: held-out": gap,
    "residual_gap: held-out": residual,
    "oracle: the best on the test labels": oracle,
}.items():
    show(name, finecal.evaluate(scored, SEEN_MASK, gamma))

# %%
# All of them bring most of the odd digits back. With as few classes as here, mixed pairs of samples put gamma too high,
# and `estimate_gamma` relies on them because the model makes hardly any mistakes. The held-out samples hardly change
# gamma; what they change is the cost that is printed, which no longer comes from memorised samples. Unlabelled samples
# bring gamma a little closer. The two gaps of held-out samples come closest here. On the models of
# :doc:`../theory/estimators` their worst results are far below the worst of `estimate_gamma`, which therefore remains
# the first choice. Every gamma there is, on one curve:

_, ax = plt.subplots(layout="constrained")
curve = finecal.tradeoff_curve(scored, SEEN_MASK)
plots.plot_tradeoff(
    curve, ax, gammas={"estimate_gamma": estimate, "max_logit_gap": gap}
)
plt.show()

# %%
# How to keep gamma with the weights is shown in :doc:`wrap_model`.
