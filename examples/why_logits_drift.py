"""
Watch the logits drift
======================

Watch fine-tuning on half of the classes push the logits of the other half down, all alike.

A small network tells a country, currency or script by its name, as in `finecal demo`: pre-trained on every class in
English and the Romance languages, fine-tuned on half of the classes in other languages, and tested on all classes in
those. It is fine-tuned by plain gradient descent with cross-entropy over all classes, at a constant learning rate.

Needs the extra demo, no network, and about 30 seconds on one processor core. As a script it prints figures;
the pictures are for the gallery and for notebooks. The network and its pre-training come from a private
module of the package; all else is public.
"""

import copy
import warnings
from collections.abc import Iterator

import torch
from matplotlib import pyplot as plt
from torch.nn import functional as F

import finecal
from finecal._demo.names import load_names
from finecal._demo.run import NameClassifier, pretrain, score

torch.set_num_threads(1)  # The same figures on every machine.
EPOCHS = 12
SEEN, ABSENT, OTHER, FAINT = "#0072B2", "#D55E00", "#009E73", "#888888"

task = load_names(seed=0)
pretrained = pretrain(task, 0, torch.Generator().manual_seed(0))
mask, test = task.seen_mask, task.test
print(f"{int(mask.sum())} seen and {int((~mask).sum())} absent classes")
print(f"{len(task.train)} names for fine-tuning, {len(test)} for the test")


def fine_tune(
    learning_rate: float, frozen: str = "", distillation: float = 0.0
) -> Iterator[NameClassifier]:
    """Yield the model after each epoch; parameters whose name begins with one of the words in `frozen` stay."""
    model = copy.deepcopy(pretrained)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(frozen.split())))
    optimiser = torch.optim.SGD(
        (p for p in model.parameters() if p.requires_grad), learning_rate
    )
    codes, generator = (
        model.encode(task.train.names),
        torch.Generator().manual_seed(0),
    )
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(codes), generator=generator).split(64):
            logits = model(codes[batch])
            loss = F.cross_entropy(logits, task.train.labels[batch])
            if distillation:
                with torch.no_grad():
                    target = pretrained(codes[batch]).softmax(1)
                loss = loss + distillation * F.cross_entropy(logits, target)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        yield model


def curve_of(model: NameClassifier) -> finecal.TradeoffCurve:
    return finecal.tradeoff_curve(score(model, test).logits, test.labels, mask)


def absent_margin(curve: finecal.TradeoffCurve) -> float:
    """Return the mean margin of the absent samples: their largest seen logit less their largest absent one."""
    return float(curve.samples.margin[~curve.samples.is_seen].mean())


# %%
# Epoch by epoch
# --------------
#
# Three learning rates. The margin of an absent sample has to be below 0, or gamma, for it to be predicted as absent: it
# rises with the epochs and with the learning rate. At 0.2, the rate that suits these data, `Acc_{U/Y}` is lost in the
# first epoch, while `Acc_{U/U}` and AUSUC rise. At 0.8 the absent classes are damaged as well.

histories, models = {}, {}
for rate in (0.05, 0.2, 0.8):
    histories[rate] = [curve_of(pretrained)]
    for model in fine_tune(rate):
        histories[rate].append(curve_of(model))
    models[rate] = model
model = models[0.2]

print(
    "rate  epoch    S/Y    U/Y    S/S    U/U  AUSUC  margin of absent names  best gamma"
)
for rate, history in histories.items():
    for epoch in (0, 1, 4, 12):
        at = history[epoch].at(0.0)
        accuracies = (
            at.acc_seen,
            at.acc_absent,
            at.acc_seen_within,
            at.acc_absent_within,
        )
        print(
            f"{rate:<4}  {epoch:>5}",
            *(f"{100 * accuracy:6.1f}" for accuracy in accuracies),
            end="",
        )
        print(
            f"  {at.ausuc:.3f}  {absent_margin(history[epoch]):22.2f}  {history[epoch].best():10.2f}"
        )

figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 3.6), layout="constrained"
)
history = histories[0.2]
for label, colour, style, values in (
    ("$Acc_{S/Y}$", SEEN, "-", [curve.at(0.0).acc_seen for curve in history]),
    (
        "$Acc_{U/Y}$",
        ABSENT,
        "-",
        [curve.at(0.0).acc_absent for curve in history],
    ),
    (
        "$Acc_{U/U}$",
        ABSENT,
        "--",
        [curve.acc_absent_within for curve in history],
    ),
    (
        "$Acc_{U/Y}$, best gamma",
        ABSENT,
        ":",
        [curve.at(curve.best()).acc_absent for curve in history],
    ),
    ("AUSUC", FAINT, "-", [curve.ausuc for curve in history]),
):
    left.plot(values, style, color=colour, label=label, linewidth=2)
left.set(xlabel="epoch", ylim=(0, 1), title="Accuracies, learning rate 0.2")
left.legend(fontsize=8, loc="center right", bbox_to_anchor=(1, 0.37))
for (rate, curves), style in zip(
    histories.items(), (":", "-", "--"), strict=True
):
    right.plot(
        [absent_margin(curve) for curve in curves],
        style,
        color=ABSENT,
        label=f"rate {rate}",
        linewidth=2,
    )
right.axhline(0, color=FAINT, linewidth=1)
right.set(
    xlabel="epoch",
    ylabel="largest seen - largest absent logit",
    title="Mean margin of absent names",
)
right.legend(fontsize=8)

# %%
# What moves in the head
# ----------------------
#
# Gradients of cross-entropy sum to zero over the classes, so that what the absent biases lose the seen ones win. The
# rows of the absent classes move in nearly the same direction: against the mean feature of the fine-tuning data.

change = (model.head.weight - pretrained.head.weight).detach()
bias_change = (model.head.bias - pretrained.head.bias).detach()
print(
    f"sum of the changes of the biases: seen {bias_change[mask].sum():+.3f}, absent {bias_change[~mask].sum():+.3f}"
)
print(
    f"absent biases that fell: {int((bias_change[~mask] < 0).sum())} of {int((~mask).sum())}"
)

direction = F.normalize(change)
cosines = direction @ direction.T
pairs = torch.ones_like(cosines, dtype=torch.bool).triu(1)
groups = {
    "absent, absent": cosines[pairs & ~mask & ~mask[:, None]],
    "seen, absent": cosines[pairs & (mask ^ mask[:, None])],
    "seen, seen": cosines[pairs & mask & mask[:, None]],
}
for name, values in groups.items():
    print(f"mean cosine of two updates, {name:15} {values.mean():+.2f}")
mean_feature = F.normalize(score(model, task.train).features.mean(0), dim=0)
for name, group in (("absent", ~mask), ("seen", mask)):
    print(
        f"mean cosine of an update with the mean feature, {name:6} {(direction[group] @ mean_feature).mean():+.2f}"
    )

figure, ax = plt.subplots(figsize=(6, 3.2), layout="constrained")
bins = torch.linspace(-1, 1, 81).tolist()
for (name, values), colour in zip(
    groups.items(), (ABSENT, FAINT, SEEN), strict=True
):
    ax.hist(
        values.tolist(),
        bins,
        density=True,
        histtype="step",
        color=colour,
        label=name,
        linewidth=1.8,
    )
ax.set(
    xlabel="cosine of the updates of two rows of the head",
    ylabel="density",
    title="Rows of absent classes move together",
)
ax.legend(fontsize=8, loc="upper left")

# %%
# What is left
# ------------
#
# The nearest class mean needs no head. The means are those of the fine-tuning languages, of all classes; of the absent
# classes the model has seen none of these names. On absent names among absent classes, features have become better.

reference = load_names(
    seed=0, seen_fraction=0.999
).train  # names of (nearly) all classes; the same test
scored = []
for names in (test, reference):
    before, after = score(pretrained, names), score(model, names)
    scored.append(
        finecal.Samples(
            after.logits,
            names.labels,
            features=after.features,
            pretrained_logits=before.logits,
            pretrained_features=before.features,
        )
    )
with warnings.catch_warnings():
    warnings.simplefilter(
        "ignore", finecal.FinecalWarning
    )  # one class has no reference names
    diagnosis = finecal.diagnose(scored[0], mask, reference=scored[1])
for name, before, after in (
    ("head", diagnosis.pretrained, diagnosis.finetuned),
    ("nearest class mean", diagnosis.pretrained_ncm, diagnosis.finetuned_ncm),
):
    print(
        f"{name:18}  U/U {100 * before.acc_absent_within:.1f} -> {100 * after.acc_absent_within:.1f}",
        end="",
    )
    print(
        f"  U/Y {100 * before.acc_absent:.1f} -> {100 * after.acc_absent:.1f}"
    )
print(
    f"change of U/U: head {diagnosis.absent_change}, nearest class mean {diagnosis.ncm_absent_change}"
)

# %%
# One gamma
# ---------
#
# The curve of the fine-tuned model lies above that of the pre-trained one; only its point without calibration lies at
# the bottom. `estimate_gamma` moves it up, from training samples alone.

gamma = finecal.estimate_gamma(
    mask, train=(score(model, task.train).logits, task.train.labels)
)
for name, at in (
    ("before", history[0].at(0.0)),
    ("after", history[-1].at(0.0)),
    ("estimate_gamma", history[-1].at(gamma)),
    ("oracle", history[-1].at(history[-1].best())),
):
    print(
        f"{name:14} {at.gamma:5.2f}  S/Y {100 * at.acc_seen:.1f}  U/Y {100 * at.acc_absent:.1f}",
        end="",
    )
    print(f"  Y/Y {100 * at.acc_all:.1f}")

figure, ax = plt.subplots(figsize=(5.2, 5.4), layout="constrained")
history[-1].plot(ax, gammas={"estimate_gamma": gamma})
ax.plot(history[0].acc_seen, history[0].acc_absent, color=FAINT, linestyle="--")
ax.text(
    0.03,
    history[0].acc_absent_within - 0.01,
    "before fine-tuning",
    va="top",
    fontsize=9,
)
ax.text(
    0.03, history[-1].acc_absent_within + 0.01, "after", va="bottom", fontsize=9
)
ax.set_title(
    f"AUSUC {history[0].ausuc:.3f} before, {history[-1].ausuc:.3f} after"
)

# %%
# Where the argument fails
# ------------------------
#
# With the head frozen its rows cannot move, and the gap is small; with only the head trained the features cannot get
# better. Distillation holds the absent logits up: there is next to no gap. At a large rate the features are damaged,
# and no gamma brings `Acc_{U/U}` back. The best gamma is that of the test labels.

recipes = {
    "all weights": model,
    "head frozen": list(fine_tune(0.2, frozen="head"))[-1],
    "only the head": list(fine_tune(0.2, frozen="embedding filters"))[-1],
    "distilled": list(fine_tune(0.2, distillation=1.0))[-1],
    "rate 0.8": models[0.8],
}
print(
    "                 S/Y    U/Y  S/Y at best  U/Y at best    U/U  AUSUC  best gamma  estimate_gamma"
)
for name, end in {"pre-trained": pretrained, **recipes}.items():
    curve = curve_of(end)
    zero, best = curve.at(0.0), curve.at(curve.best())
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", finecal.FinecalWarning
        )  # of a gap too small to be told from none
        estimate = finecal.estimate_gamma(
            mask, train=(score(end, task.train).logits, task.train.labels)
        )
    print(
        f"{name:13} {100 * zero.acc_seen:6.1f} {100 * zero.acc_absent:6.1f} {100 * best.acc_seen:12.1f}",
        end="",
    )
    print(
        f" {100 * best.acc_absent:12.1f} {100 * zero.acc_absent_within:6.1f}  {curve.ausuc:.3f}",
        end="",
    )
    print(
        f" {best.gamma:11.2f} {estimate.gamma:15.2f}{'  warned' if estimate.warnings else ''}"
    )
