"""
Gamma in production
===================

Twelve weeks of traffic whose share of seen samples moves: follow it with gamma, and notice when gamma is not to blame.

A network that tells a country, currency or script by its name was fine-tuned on half of the classes. Its traffic comes
without labels, but for a trickle of samples of seen classes. It is drawn, with replacement, from real names in 40
languages that the network was not trained on; in the last two weeks the names are cut to five characters, as by
a change in somebody's form. Needs the extra demo, no network, and half a minute: ``python examples/production.py``
"""

# %%
# The model that is deployed
# --------------------------

import math
import warnings
import zlib
from collections.abc import Sequence

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn import functional as F

import finecal
from finecal._demo.names import NamesSplit, load_names
from finecal.streaming import AccuracySums

torch.set_num_threads(1)  # The same figures on every machine.
torch.manual_seed(0)
CODES = 8192


def encode(names: Sequence[str]) -> Tensor:
    """Return the codes of the n-grams of each name; 0 pads."""
    rows = []
    for name in names:
        text = f"<{name.casefold()}>"
        grams = [
            text[start : start + n]
            for n in (1, 2, 3, 4)
            for start in range(len(text) - n + 1)
        ]
        rows.append(
            torch.tensor(
                [zlib.crc32(gram.encode()) % (CODES - 1) + 1 for gram in grams]
            )
        )
    return nn.utils.rnn.pad_sequence(rows, batch_first=True)


class Classifier(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.grams = nn.EmbeddingBag(CODES, 128, mode="mean", padding_idx=0)
        self.head = nn.Linear(128, num_classes)

    def forward(self, codes: Tensor) -> Tensor:
        return self.head(F.relu(self.grams(codes)))


def learn(
    model: nn.Module, split: NamesSplit, epochs: int, rate: float
) -> None:
    inputs, optimiser = (
        encode(split.names),
        torch.optim.Adam(model.parameters(), lr=rate),
    )
    for _ in range(epochs):
        for batch in torch.randperm(len(split)).split(64):
            optimiser.zero_grad()
            F.cross_entropy(
                model(inputs[batch]), split.labels[batch]
            ).backward()
            optimiser.step()


@torch.no_grad()
def score(model: nn.Module, names: Sequence[str]) -> Tensor:
    return model(encode(names))


task = load_names(seed=0)
seen_mask = task.seen_mask
model = Classifier(len(seen_mask))
learn(model, task.source, epochs=15, rate=0.02)
learn(model, task.train, epochs=10, rate=0.005)
held_out = finecal.Samples(
    score(model, task.held_out.names), task.held_out.labels
)

deployed = finecal.estimate_gamma(seen_mask, held_out=held_out)
print(deployed)

# %%
# How far a change of the share moves gamma
# -----------------------------------------
# About T times the change of log((1 - share) / share): what to expect, and what to be alarmed by.

for share in (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9):
    estimate = finecal.estimate_gamma(
        seen_mask, held_out=held_out, seen_share=share
    )
    print(f"{100 * share:3.0f} % seen: gamma {float(estimate):5.2f}")

# %%
# Twelve weeks
# ------------
# 60 samples a day, of which 10 seen ones come back with a label. Each week three questions are asked:
#
# - Does the share of samples that the deployed gamma sends to the seen classes leave the band of the first week?
# - Is the accuracy on the labelled seen samples below what `acc_seen_at_gamma` promised, by more than chance? One right
#   and one wrong sample are added to the promise, so that 100 % leave room for chance.
# - What gamma does `estimate_gamma` find in the week's unlabelled logits?
#
# One service keeps the first gamma; another takes the new one, unless the second alarm rings or the estimate warns.

SHARES = [0.5] * 3 + [0.4, 0.3, 0.2, 0.1, 0.1] + [0.8] * 4
SICK = 10  # The first week with names cut short.
PER_WEEK, LABELLED = 7 * 60, 7 * 10
BAND = 3.0  # Standard errors.

is_seen = seen_mask[task.test.labels]
seen_rows, absent_rows = (
    is_seen.nonzero().squeeze(1),
    (~is_seen).nonzero().squeeze(1),
)
whole = score(model, task.test.names)
cut = score(model, [name[:5] for name in task.test.names])


def draw(rows: Tensor, count: int) -> Tensor:
    return rows[torch.randint(len(rows), (count,))]


def standard_error(share: float, *counts: int) -> float:
    return math.sqrt(share * (1 - share) * sum(1 / count for count in counts))


fixed = followed = float(deployed)
weeks = []
for week, share in enumerate(SHARES):
    n_seen = round(share * PER_WEEK)
    rows = torch.cat(
        [draw(seen_rows, n_seen), draw(absent_rows, PER_WEEK - n_seen)]
    )
    logits, labels = (
        (cut if week >= SICK else whole)[rows],
        task.test.labels[rows],
    )

    sent = float(
        seen_mask[finecal.predict(logits, seen_mask, fixed)].double().mean()
    )
    if week == 0:
        usual = sent
    share_alarm = abs(sent - usual) > BAND * standard_error(
        usual, PER_WEEK, PER_WEEK
    )

    at_fixed = AccuracySums(seen_mask, deployed)
    for day in torch.arange(LABELLED).chunk(
        7
    ):  # The labels trickle in, and are added day by day.
        at_fixed.update(logits[day], labels[day])
    accuracy, promised = at_fixed.compute().acc_seen, deployed.acc_seen_at_gamma
    likely = (promised * deployed.n + 1) / (deployed.n + 2)
    accuracy_alarm = accuracy < promised - BAND * standard_error(
        likely, LABELLED, deployed.n
    )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        estimate = finecal.estimate_gamma(
            seen_mask, held_out=held_out, unlabelled=logits
        )
    found = float(
        seen_mask[finecal.predict(logits, seen_mask, estimate)].double().mean()
    )

    curve = finecal.tradeoff_curve(logits, labels, seen_mask)
    overall = {
        name: curve.at(gamma).acc_all
        for name, gamma in (("fixed", fixed), ("followed", followed))
    }
    best = curve.best()
    weeks.append(
        {
            "share": share,
            "sent": sent,
            "found": found,
            "accuracy": accuracy,
            "gamma": followed,
            "oracle": best,
            "deployed": fixed,
            **overall,
            "best": curve.at(best).acc_all,
            "alarms": " ".join(
                name
                for name, on in (
                    ("share", share_alarm),
                    ("accuracy", accuracy_alarm),
                )
                if on
            ),
        }
    )
    if not accuracy_alarm and not estimate.warnings:
        followed = float(estimate)  # From next week on.

# %%
# *fixed*, *followed* and *best* are accuracies on all samples of the week, which in production nobody knows. The gamma
# that is followed is that of the week before.

COLUMNS = (
    "share",
    "sent",
    "found",
    "accuracy",
    "gamma",
    "oracle",
    "fixed",
    "followed",
    "best",
)
print("week" + "".join(f"{name:>9}" for name in COLUMNS) + "  alarms")
for number, row in enumerate(weeks, start=1):
    cells = (
        f"{row[name]:9.2f}"
        if name in ("gamma", "oracle")
        else f"{100 * row[name]:9.1f}"
        for name in COLUMNS
    )
    print(f"{number:4}" + "".join(cells) + f"  {row['alarms']}")

# %%
# What no warning says
# --------------------
# Twelve weeks of 50 % seen samples: the names whole, cut short, and whole but logged by mistake with gamma added. How
# steady are the estimators, and does gamma send as many samples to the seen classes as the estimate took for seen?

added = finecal.calibrate_logits(whole, seen_mask, deployed)
for name, log, bare in (
    ("whole", whole, whole),
    ("cut short", cut, cut),
    ("gamma added", added, whole),
):
    gammas, mixture_gammas, n_warned = [], [], 0
    for _ in range(12):
        rows = torch.cat(
            [draw(seen_rows, PER_WEEK // 2), draw(absent_rows, PER_WEEK // 2)]
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", finecal.FinecalWarning)
            estimate = finecal.estimate_gamma(
                seen_mask, held_out=held_out, unlabelled=log[rows]
            )
            mixture_gammas.append(
                float(
                    finecal.estimators.mixture_gamma(
                        held_out, log[rows], seen_mask
                    )
                )
            )
        gammas.append(float(estimate))
        n_warned += bool(estimate.warnings)
    sent = float(
        seen_mask[finecal.predict(bare[rows], seen_mask, estimate)]
        .double()
        .mean()
    )
    print(
        f"{name:11}  estimate_gamma {min(gammas):.2f} to {max(gammas):.2f}, {n_warned} with warnings;"
        f" mixture_gamma {min(mixture_gammas):.2f} to {max(mixture_gammas):.2f}"
    )
    print(
        f"{'':11}  last: {100 * sent:.1f} % sent to the seen classes; {estimate.data}"
    )

# %%
# The picture
# -----------
# Grey are the weeks with names cut short: there the accuracy falls at every gamma, and the alarm that matters is that
# of the labelled samples.

numbers = range(1, len(weeks) + 1)
figure, axes = plt.subplots(
    3, 1, figsize=(7, 8.5), sharex=True, layout="constrained"
)
LINES = (
    (
        "share",
        {
            "share": "true",
            "sent": "sent to the seen classes",
            "found": "at the new gamma",
        },
    ),
    ("gamma", {"oracle": "oracle", "deployed": "fixed", "gamma": "followed"}),
    (
        "accuracy, all samples",
        {"best": "oracle", "fixed": "fixed", "followed": "followed"},
    ),
)
for ax, (title, lines) in zip(axes, LINES, strict=True):
    for (name, label), style in zip(
        lines.items(), ("k--", "C1o-", "C0s-"), strict=True
    ):
        ax.plot(
            numbers,
            [row[name] for row in weeks],
            style,
            ms=4,
            lw=1.5,
            label=label,
        )
    ax.axvspan(SICK + 0.5, len(weeks) + 0.5, color="0.9", lw=0)
    ax.set_ylabel(title)
    ax.legend(
        fontsize="small",
        frameon=False,
        ncols=3,
        loc="lower left",
        bbox_to_anchor=(0, 1),
    )
axes[-1].set(xlabel="week", xticks=numbers, xlim=(0.5, len(weeks) + 0.5))
