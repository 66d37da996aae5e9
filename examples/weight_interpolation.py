"""
Gamma at its limits
===================

Hold gamma against a perfect gate, against a change of the share of seen samples, and against averages of the weights.

The network and the names are those of `finecal demo`, fine-tuned twice for 12 epochs (the demo takes 25): at the usual
learning rate, and at four times that, which damages the absent classes.

Needs the extra demo, no network, and about 40 seconds on one processor core. As a script it prints figures;
the pictures are for the gallery and for notebooks. The network and its training come from a private
module of the package; all else is public.
"""

import math
import warnings

import torch
from matplotlib import pyplot as plt

import finecal
from finecal._demo.names import load_names
from finecal._demo.run import NameClassifier, fine_tune, pretrain, score

torch.set_num_threads(1)  # The same figures on every machine.
warnings.simplefilter(
    "ignore", finecal.FinecalWarning
)  # of gaps too small to be told from none
SEEN, ABSENT, ALL, FAINT = "#0072B2", "#D55E00", "#009E73", "#888888"
RATES = {"learning rate 0.2": 0.2, "learning rate 0.8": 0.8}

task = load_names(seed=0)
mask, train, held_out, test = (
    task.seen_mask,
    task.train,
    task.held_out,
    task.test,
)
pretrained = pretrain(task, 0, torch.Generator().manual_seed(0))
models = {
    name: fine_tune(
        pretrained,
        train,
        torch.Generator().manual_seed(0),
        epochs=12,
        learning_rate=rate,
    )
    for name, rate in RATES.items()
}


def curve_of(model: NameClassifier) -> finecal.TradeoffCurve:
    return finecal.tradeoff_curve(score(model, test).logits, test.labels, mask)


def estimated(
    model: NameClassifier, seen_share: float | None = None
) -> finecal.GammaEstimate:
    """Return gamma from the training samples."""
    samples = finecal.Samples(score(model, train).logits, train.labels)
    return finecal.estimate_gamma(mask, train=samples, seen_share=seen_share)


def percent(*accuracies: float) -> str:
    return "".join(f"{100 * accuracy:7.1f}" for accuracy in accuracies)


# %%
# One number against a perfect gate
# ---------------------------------
#
# A gate that always knew whether a sample is of a seen or of an absent class would reach the mean of `Acc_{S/S}` and
# `Acc_{U/U}`, weighted by the shares of the groups. No gamma can exceed that, and none changes the two.

print(
    "                      S/S    U/U   gate | best gamma: S/Y    U/Y    Y/Y | AUSUC"
)
for name, model in {"pre-trained": pretrained, **models}.items():
    curve = curve_of(model)
    share = curve.n_seen / (curve.n_seen + curve.n_absent)
    gate = share * curve.acc_seen_within + (1 - share) * curve.acc_absent_within
    best = curve.at(curve.best())
    print(
        f"{name:18}{percent(curve.acc_seen_within, curve.acc_absent_within, gate)} |",
        end="        ",
    )
    print(
        f"{percent(best.acc_seen, best.acc_absent, best.acc_all)} | {curve.ausuc:.3f}"
    )

# %%
# Gamma against averages of the weights
# -------------------------------------
#
# WiSE-FT takes `(1 - alpha)` pre-trained and `alpha` fine-tuned weights: `interpolate_weights` makes such a model. Each
# of them has a gamma of its own. Solid lines are without gamma, dashed ones with gamma by `estimate_gamma` from the
# training samples.

paths = {}
for name, model in models.items():
    print(
        f"\n{name}\nalpha    S/Y    U/Y    Y/Y | gamma    S/Y    U/Y    Y/Y | oracle    U/U  AUSUC"
    )
    paths[name] = []
    for alpha in (step / 10 for step in range(11)):
        mixed = finecal.weights.interpolate_weights(pretrained, model, alpha)
        curve, gamma = curve_of(mixed), estimated(mixed)
        zero, moved, best = (
            curve.at(value) for value in (0.0, gamma, curve.best())
        )
        paths[name].append((alpha, zero, moved))
        print(
            f"{alpha:5.1f}{percent(zero.acc_seen, zero.acc_absent, zero.acc_all)} | {float(gamma):5.2f}",
            end="",
        )
        print(
            f"{percent(moved.acc_seen, moved.acc_absent, moved.acc_all)} |{percent(best.acc_all)}",
            end="",
        )
        print(f"{percent(zero.acc_absent_within)}  {curve.ausuc:.3f}")

figure, axes = plt.subplots(
    1, 2, figsize=(9, 3.6), sharey=True, layout="constrained"
)
for ax, (name, path) in zip(axes, paths.items(), strict=True):
    alphas = [alpha for alpha, _, _ in path]
    for label, colour, marker, field in (
        ("$Acc_{S/Y}$", SEEN, "o", "acc_seen"),
        ("$Acc_{U/Y}$", ABSENT, "s", "acc_absent"),
        ("$Acc_{Y/Y}$", ALL, "^", "acc_all"),
    ):
        look = {"color": colour, "marker": marker, "markersize": 5}
        ax.plot(
            alphas,
            [getattr(zero, field) for _, zero, _ in path],
            label=label,
            linewidth=2,
            **look,
        )
        ax.plot(
            alphas,
            [getattr(moved, field) for _, _, moved in path],
            "--",
            linewidth=2,
            **look,
        )
    ax.plot([], [], "--", color=FAINT, label="with gamma")
    ax.set(
        xlabel="alpha, share of the fine-tuned weights",
        title=name.capitalize(),
        ylim=(-0.02, 1),
    )
axes[0].set_ylabel("accuracy on the test names")
axes[0].legend(fontsize=8, loc="lower left")

# %%
# Alpha without labels of absent classes
# --------------------------------------
#
# `search_interpolation` looks at held-out names of the seen classes alone. It takes the smallest alpha that costs them
# nothing in `Acc_{S/S}`.

held_out_batches = [(pretrained.encode(held_out.names), held_out.labels)]
for name, model in models.items():
    found = finecal.weights.search_interpolation(
        pretrained, model, held_out_batches, seen_mask=mask, progress=False
    )
    chosen = finecal.weights.interpolate_weights(pretrained, model, found.alpha)
    print(f"\n{name}\n{found}")
    for alpha, at in (
        (found.alpha, curve_of(chosen).at(found.gamma)),
        (1, curve_of(model).at(found.steps[-1].gamma)),
    ):
        accuracies = percent(at.acc_seen, at.acc_absent, at.acc_all)
        print(
            f"test names, alpha = {alpha:g}: Acc_S/Y, Acc_U/Y, Acc_Y/Y{accuracies}"
        )

# %%
# One gamma for one share of seen samples
# ---------------------------------------
#
# Weigh the test names so that seen ones have another share. The best gamma moves by about T times the log-odds; the
# rule here starts at the estimate for a half, with T = 1. A gamma that knows nothing of the change costs accuracy.

curve = curve_of(models["learning rate 0.2"])
start = estimated(models["learning rate 0.2"], seen_share=0.5)
print("seen share |   best gamma    Y/Y | rule: gamma    Y/Y | for a half: Y/Y")
for share in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95):
    overall = share * curve.acc_seen + (1 - share) * curve.acc_absent
    by_rule = float(start) + math.log((1 - share) / share)
    reports = [
        curve.at(gamma)
        for gamma in (curve.gamma[overall.argmax()], by_rule, start)
    ]
    values = [
        share * at.acc_seen + (1 - share) * at.acc_absent for at in reports
    ]
    print(
        f"{share:10.2f} | {reports[0].gamma:12.2f}{percent(values[0])} |",
        end="",
    )
    print(f"{by_rule:12.2f}{percent(values[1])} |      {percent(values[2])}")

# %%
# Probabilities need a temperature too
# ------------------------------------
#
# Gamma puts the decisions right, and the likelihood of the absent names up. How confident the model is on all of them
# is another matter: that is for a temperature, fitted here on held-out names of seen classes alone, after gamma.

model = models["learning rate 0.2"]
logits, gamma = score(model, test).logits, estimated(model)
temperature = finecal.calibrators.fit_temperature(
    finecal.calibrate_logits(score(model, held_out).logits, mask, gamma),
    held_out.labels,
)
with_gamma = finecal.calibrate_logits(logits, mask, gamma)
print("                          NLL  calibration error  Y/Y")
for name, scores in (
    ("gamma = 0", logits),
    ("gamma", with_gamma),
    ("gamma and temperature", temperature(with_gamma)),
):
    probabilities = finecal.probabilities.evaluate_probabilities(
        scores, test.labels, mask
    ).all
    accuracy = (scores.argmax(1) == test.labels).double().mean()
    print(
        f"{name:22} {probabilities.nll:6.2f} {probabilities.ece:18.3f}{percent(accuracy)}"
    )
