"""
Prototypes of unlabelled samples
================================

Go beyond gamma: let unlabelled samples tell which of the absent classes it is.

Gamma decides between seen and absent classes. Which of the absent ones it is, the logits decide as before. But samples
of a class lie together in the space of the features, and the unlabelled samples that the model has assigned to it tell
where: at the class's prototype. :func:`finecal.calibrators.fit_prototypes` adds to each logit how near a sample is to
it.

Needs scikit-learn and matplotlib, no network and about 10 seconds: ``python examples/prototypes.py``
"""

import warnings

import torch
from digits_data import SEEN_MASK, load, make_model, score, train
from matplotlib import pyplot as plt

import finecal

# %%
# Gamma first
# -----------
# Data and network are those of :doc:`digits_data`: a network is fine-tuned on faint even digits. Gamma comes from the
# training samples, and stays as it is.

torch.set_num_threads(1)
source, fine_tuning, held_out, test = load(seed=0)
model = make_model()
train(model, source, epochs=40, learning_rate=0.05)
train(model, fine_tuning, epochs=20, learning_rate=0.01)

scored = score(model, test)
logits, labels = scored.logits, scored.labels
gamma = finecal.estimate_gamma(SEEN_MASK, train=score(model, fine_tuning))
print(finecal.evaluate(scored, SEEN_MASK, gamma))

# %%
# Then prototypes
# ---------------
# Half of the test images, without their labels, are what the model meets first; the others come later. Features are
# what the last layer takes: ``collect_logits(model, loader, with_features=True)`` has them. Held-out even digits are a
# check: prototypes that cost accuracy there are not used.


@torch.no_grad()
def features_of(images: torch.Tensor) -> torch.Tensor:
    return model[:-1](images)


features = features_of(test[0])
samples = finecal.Samples(logits, features=features)
check = finecal.Samples(
    score(model, held_out).logits,
    held_out[1],
    features=features_of(held_out[0]),
)
met, later = torch.arange(len(labels)).chunk(2)
prototypes = finecal.calibrators.fit_prototypes(
    samples[met], SEEN_MASK, gamma, held_out=check
)
print(prototypes.report)


def show(rows: torch.Tensor, what: str, calibrated: torch.Tensor) -> None:
    report = finecal.evaluate(calibrated, labels[rows], SEEN_MASK)
    shown = (
        report.acc_all,
        report.acc_seen,
        report.acc_absent,
        report.acc_absent_within,
    )
    print(f"{what:<46}", *(f"{100 * accuracy:5.1f}" for accuracy in shown))


print(f"{'test accuracy, %':<46}   Y/Y   S/Y   U/Y   U/U")
for name, rows in (("met first", met), ("coming later", later)):
    show(
        rows,
        f"images {name}, gamma",
        finecal.calibrate_logits(logits[rows], SEEN_MASK, gamma),
    )
    show(
        rows,
        f"images {name}, gamma and prototypes",
        prototypes(logits[rows], features[rows]),
    )

# %%
# What they change
# ----------------
# Gamma moves a model along its curve; prototypes lift the curve. They take some samples per class: here 25 images of
# ten classes bring nothing yet, and 50 do. The right picture has means of ten draws, scored on the images that come
# later.

COLOURS = {"fine-tuned": "#D55E00", "and prototypes": "#009E73"}
scores = (
    finecal.calibrate_logits(logits[later], SEEN_MASK, gamma),
    prototypes(logits[later], features[later]),
)
figure, (left, right) = plt.subplots(
    1, 2, figsize=(9, 3.6), layout="constrained"
)
for (name, colour), calibrated in zip(COLOURS.items(), scores, strict=True):
    curve = finecal.tradeoff_curve(calibrated, labels[later], SEEN_MASK)
    look = {
        "color": colour,
        "linewidth": 2,
        "linestyle": "--" if name == "fine-tuned" else "-",
    }
    left.plot(
        curve.acc_seen,
        curve.acc_absent,
        label=f"{name}, AUSUC {curve.ausuc:.3f}",
        **look,
    )
    point = curve.at(0.0)
    left.plot(point.acc_seen, point.acc_absent, "o", color=colour, markersize=8)
left.set(
    xlabel="$Acc_{S/Y}$",
    ylabel="$Acc_{U/Y}$",
    title="Images coming later; dots: the gamma that was estimated",
)
left.title.set_fontsize(10)
left.legend(loc="lower left")

generator, numbers, gains = (
    torch.Generator().manual_seed(0),
    (10, 25, 50, 100, 250),
    [],
)
base = finecal.evaluate(scored[later], SEEN_MASK, gamma).acc_all
for number in numbers:
    found = []
    for _ in range(10):
        rows = met[torch.randperm(len(met), generator=generator)[:number]]
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", finecal.FinecalWarning
            )  # that there are few samples
            fitted = finecal.calibrators.fit_prototypes(
                samples[rows], SEEN_MASK, gamma
            )
        found.append(
            finecal.evaluate(
                fitted(logits[later], features[later]), labels[later], SEEN_MASK
            ).acc_all
            - base
        )
    gains.append(100 * sum(found) / len(found))
print(
    "unlabelled images, and points gained:",
    {n: round(gain, 1) for n, gain in zip(numbers, gains, strict=True)},
)
right.plot(numbers, gains, "o-", color=COLOURS["and prototypes"], linewidth=2)
right.axhline(0, color="#888888", linewidth=1)
right.set(
    xscale="log",
    xticks=numbers,
    xticklabels=numbers,
    xlabel="unlabelled images",
)
right.minorticks_off()
right.set_ylabel("points of $Acc_{Y/Y}$ beyond gamma")
right.set_title("Gain by number of images", fontsize=10)

# %%
# Into the model
# --------------
# What prototypes add is linear in the features, so it goes into the weight and the bias of the last layer. The model
# then costs what it cost before, and neither the features nor finecal are needed.

expected = prototypes(logits, features)
finecal.fold_into_head(model, prototypes, inputs=test[0][:8])
difference = (score(model, test).logits - expected).abs().max()
print(
    f"largest difference of the folded model's logits: {float(difference):.0e}"
)
