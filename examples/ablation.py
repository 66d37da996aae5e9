"""
Where gamma helps
=================

The paper's protocol on real data: fine-tune in many ways on some of the classes, and see where gamma helps.

SGD and Adam at three learning rates, all or a part of the weights trained, and the weights averaged with the
pre-trained ones (WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022), alone and together
with gamma.

Needs the extra demo, no network, and about a minute for each share of seen classes, by default a half:
``python examples/ablation.py [SHARE ...] [--seed SEED]``; for the shares of the paper's protocol,
``python examples/ablation.py 0.2 0.5 0.8``.

The training is that of ``finecal demo``, from two private modules of the package; all else is public.
"""

import argparse
import copy
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import finecal
from finecal._demo.names import NamesTask, load_names
from finecal._demo.run import NameClassifier, fine_tune, pretrain, score
from finecal.plots._axes import palette_of

parser = argparse.ArgumentParser(
    description="Fine-tune in many ways on some of the classes: where does gamma help?"
)
parser.add_argument(
    "shares",
    nargs="*",
    type=float,
    default=[0.5],
    help="of the classes that are seen (default 0.5)",
)
parser.add_argument(
    "--seed",
    type=int,
    default=0,
    help="chooses the seen classes, weights and batches (default 0)",
)
arguments = parser.parse_args()
torch.set_num_threads(1)  # The same figures on every machine.

# %%
# Nine ways to fine-tune
# ----------------------
# The model is a small network that tells a country, currency or script by its name. It knows all classes from names in
# English and the Romance languages, and is fine-tuned on names of the seen classes in other languages.


def everything(model: NameClassifier) -> None:
    """Train all weights."""


def backbone(model: NameClassifier) -> None:
    """Freeze the pre-trained head, and train the rest."""
    model.head.requires_grad_(False)


def head(model: NameClassifier) -> None:
    """Freeze the backbone, and train the pre-trained head."""
    model.requires_grad_(False)
    model.head.requires_grad_(True)


def new_head(model: NameClassifier) -> None:
    """Linear probing: freeze the backbone, and train a head from scratch."""
    model.head = nn.Linear(model.head.in_features, model.head.out_features)
    head(model)


class Recipe(NamedTuple):
    trained: str
    prepare: Callable[[NameClassifier], None]
    optimiser: type[torch.optim.Optimizer]
    learning_rate: float


DEMO = Recipe("everything", everything, torch.optim.SGD, 0.2)
RECIPES = [
    *(DEMO._replace(learning_rate=rate) for rate in (0.05, 0.2, 0.8)),
    *(
        DEMO._replace(optimiser=torch.optim.Adam, learning_rate=rate)
        for rate in (0.0003, 0.001, 0.003)
    ),
    DEMO._replace(trained="backbone (head frozen)", prepare=backbone),
    DEMO._replace(trained="head (backbone frozen)", prepare=head),
    DEMO._replace(trained="new head (linear probing)", prepare=new_head),
]

# %%
# What is measured
# ----------------
# Each model at gamma = 0, and with gamma found in three ways: by `finecal.estimators.average_logit_gap` (ALG) and
# `finecal.estimators.mixed_pair_gap` (MPG) from the training logits, and on the test labels, as the oracle. And the
# models between the pre-trained and the fine-tuned one, with weights (1 - alpha) pre-trained + alpha fine-tuned.

ALPHAS = [alpha / 10 for alpha in range(11)]


class Calibrated(NamedTuple):
    """One model at gamma = 0, and with gamma found in three ways."""

    zero: finecal.SeenAbsentReport
    alg: finecal.SeenAbsentReport
    mpg: finecal.SeenAbsentReport
    oracle: finecal.SeenAbsentReport
    alg_warned: bool
    mpg_warned: bool


def calibrate(
    model: NameClassifier, test_logits: Tensor, task: NamesTask
) -> Calibrated:
    mask = task.seen_mask
    train = finecal.Samples(score(model, task.train).logits, task.train.labels)
    test = finecal.Samples(test_logits, task.test.labels)
    with warnings.catch_warnings():
        # Stars stand for them.
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        alg = finecal.estimators.average_logit_gap(train, mask)
        mpg = finecal.estimators.mixed_pair_gap(train, mask)
        oracle = finecal.search_gamma(test, mask)
    reports = [
        finecal.evaluate(test, mask, gamma) for gamma in (0.0, alg, mpg, oracle)
    ]
    return Calibrated(
        *reports, alg_warned=bool(alg.warnings), mpg_warned=bool(mpg.warnings)
    )


def report(test_logits: Tensor, task: NamesTask) -> finecal.SeenAbsentReport:
    return finecal.evaluate(test_logits, task.test.labels, task.seen_mask)


# %%
# Fine-tune
# ---------
# From the same pre-trained model, with the same batches for every recipe.


class Outcome(NamedTuple):
    """Of one recipe: the fine-tuned model, that half-way to it, and the accuracy of each in between at gamma = 0."""

    fine_tuned: Calibrated
    half: Calibrated
    wise: dict[float, float]


class Ablation(NamedTuple):
    """Of one share of seen classes; `averages` are the models in between for the recipe of the demo."""

    task: NamesTask
    before: finecal.SeenAbsentReport
    outcomes: dict[Recipe, Outcome]
    averages: dict[float, Calibrated]


def ablate(task: NamesTask, seed: int) -> Ablation:
    generator = torch.Generator().manual_seed(seed)
    pretrained = pretrain(task, seed, generator)
    batches = generator.get_state()
    outcomes, averages = {}, {}
    for recipe in RECIPES:
        torch.manual_seed(seed)
        model = copy.deepcopy(pretrained)
        recipe.prepare(model)
        generator.set_state(batches)
        settings = {
            "learning_rate": recipe.learning_rate,
            "optimiser": recipe.optimiser,
        }
        fine_tuned = fine_tune(model, task.train, generator, **settings)
        between = {
            alpha: finecal.weights.interpolate_weights(
                pretrained, fine_tuned, alpha
            )
            for alpha in ALPHAS
        }
        logits = {
            alpha: score(model, task.test).logits
            for alpha, model in between.items()
        }
        wise = {alpha: report(logits[alpha], task).acc_all for alpha in ALPHAS}
        half, end = (
            calibrate(between[alpha], logits[alpha], task)
            for alpha in (0.5, 1.0)
        )
        outcomes[recipe] = Outcome(end, half, wise)
        if recipe == DEMO:
            averages = {
                alpha: calibrate(between[alpha], logits[alpha], task)
                for alpha in ALPHAS
            }
    return Ablation(
        task,
        report(score(pretrained, task.test).logits, task),
        outcomes,
        averages,
    )


ablations = [
    ablate(load_names(arguments.seed, share), arguments.seed)
    for share in arguments.shares
]

# %%
# Every recipe
# ------------
# Accuracies on test names in %. S/Y: seen, U/Y: absent, Y/Y: all names, with every class allowed. U/U: absent names
# with the absent classes only; no gamma changes it, nor AUSUC.
#
# - +ALG, +MPG: Y/Y with that gamma; a star: the estimator warned.
# - oracle: Y/Y with the best gamma on the test labels. rec.: MPG's share of the oracle's gain, if that is a point or
#   more.
# - alpha=0.5: Y/Y of the weights half-way to the pre-trained ones. best, at: the best alpha on the test labels.
# - New head: the backbone is frozen, too, and the head starts from random weights.

EVERY_CLASS = ["S/Y ", "U/Y ", "Y/Y "]
RECIPE_HEADER = [
    "trained",
    "optimiser",
    "rate",
    *EVERY_CLASS,
    "+ALG ",
    "+MPG ",
    "oracle ",
    "rec.",
    "U/U ",
    "AUSUC",
]
WISE_HEADER = ["|", "alpha=0.5 ", "+MPG ", "best ", "at"]


def percent(accuracy: float, star: bool = False) -> str:
    return f"{100 * accuracy:.1f}{'*' if star else ' '}"


def with_every_class(at: finecal.SeenAbsentReport) -> list[str]:
    return [percent(at.acc_seen), percent(at.acc_absent), percent(at.acc_all)]


def recipe_row(recipe: Recipe, outcome: Outcome) -> list[str]:
    at, half, wise = outcome
    possible = at.oracle.acc_all - at.zero.acc_all
    recovered = (
        f"{100 * (at.mpg.acc_all - at.zero.acc_all) / possible:.0f}"
        if possible >= 0.01
        else "-"
    )
    best = max(wise, key=lambda alpha: wise[alpha])
    return [
        *(
            recipe.trained,
            recipe.optimiser.__name__,
            str(recipe.learning_rate),
            *with_every_class(at.zero),
        ),
        *(
            percent(at.alg.acc_all, at.alg_warned),
            percent(at.mpg.acc_all, at.mpg_warned),
        ),
        *(
            percent(at.oracle.acc_all),
            recovered,
            percent(at.zero.acc_absent_within),
            f"{at.zero.ausuc:.3f}",
        ),
        *(
            "|",
            percent(half.zero.acc_all),
            percent(half.mpg.acc_all, half.mpg_warned),
            percent(wise[best]),
            str(best),
        ),
    ]


def pad(column: Sequence[str], justify: Callable[[str, int], str]) -> list[str]:
    return [justify(cell, max(map(len, column))) for cell in column]


def align(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    left, *others = zip(*rows, strict=True)
    columns = [
        pad(left, str.ljust),
        *(pad(column, str.rjust) for column in others),
    ]
    return "\n".join(
        " ".join(row).rstrip() for row in zip(*columns, strict=True)
    )


def title(task: NamesTask) -> str:
    return (
        f"{int(task.seen_mask.sum())} of {len(task.class_names)} classes seen"
    )


for task, before, outcomes, _ in ablations:
    start = [
        *with_every_class(before),
        "",
        "",
        "",
        "",
        percent(before.acc_absent_within),
        f"{before.ausuc:.3f}",
    ]
    rows = [recipe_row(recipe, outcome) for recipe, outcome in outcomes.items()]
    print(
        f"{title(task)}; {len(task.train)} names for fine-tuning, {len(task.test)} for testing\n"
    )
    untrained = ["nothing (pre-trained)", "", "", *start, "|", "", "", "", ""]
    print(align([[*RECIPE_HEADER, *WISE_HEADER], untrained, *rows]), end="\n\n")

# %%
# What gamma adds to the accuracy on all names:

figure, axes = plt.subplots(
    1,
    len(ablations),
    figsize=(2.5 + 4.5 * len(ablations), 4),
    sharey=True,
    squeeze=False,
    layout="constrained",
)
names = [
    f"{recipe.trained}\n{recipe.optimiser.__name__}, {recipe.learning_rate}"
    for recipe in RECIPES
]
for ax, (task, before, outcomes, _) in zip(axes.flat, ablations, strict=True):
    colours = palette_of(ax)
    ax.axvline(
        100 * before.acc_all, color=colours.guide, ls="--", label="pre-trained"
    )
    zero, mpg, oracle = (
        [
            100 * getattr(outcome.fine_tuned, way).acc_all
            for outcome in outcomes.values()
        ]
        for way in ("zero", "mpg", "oracle")
    )
    heights = range(len(names))
    ax.hlines(heights, zero, oracle, color=colours.guide, lw=2, zorder=1)
    ax.plot(zero, heights, "o", color=colours.ink, label="gamma = 0")
    ax.plot(
        oracle,
        heights,
        "*",
        color=colours.best,
        mec=colours.ink,
        mew=0.6,
        ms=10,
        zorder=3,
        label="oracle",
    )
    ax.plot(
        mpg, heights, "D", color=colours.gamma, ms=7, label="mixed_pair_gap"
    )
    ax.set_yticks(heights, names, fontsize=8)
    ax.set(
        title=title(task),
        xlabel="accuracy on all names, %",
        ylim=(len(names) - 0.5, -0.5),
    )
handles = axes[0, 0].get_legend_handles_labels()
figure.legend(*handles, loc="outside lower center", ncols=4, frameon=False)
plt.show()

# %%
# Averaged weights
# ----------------
# Everything trained by SGD at 0.2, at every alpha: at gamma = 0 | with gamma by MPG | with the best gamma.

ALPHA_HEADER = [
    "alpha",
    *EVERY_CLASS,
    "|",
    "gamma",
    *EVERY_CLASS,
    "|",
    "oracle ",
    "U/U ",
    "AUSUC",
]


def alpha_row(alpha: float, at: Calibrated) -> list[str]:
    with_mpg = [
        percent(at.mpg.acc_seen),
        percent(at.mpg.acc_absent),
        percent(at.mpg.acc_all, at.mpg_warned),
    ]
    within = [percent(at.zero.acc_absent_within), f"{at.zero.ausuc:.3f}"]
    with_gamma = [
        f"{at.mpg.gamma:.2f}",
        *with_mpg,
        "|",
        percent(at.oracle.acc_all),
    ]
    return [str(alpha), *with_every_class(at.zero), "|", *with_gamma, *within]


for task, _, _, averages in ablations:
    print(f"{title(task)}\n")
    print(
        align(
            [
                ALPHA_HEADER,
                *(alpha_row(alpha, at) for alpha, at in averages.items()),
            ]
        ),
        end="\n\n",
    )

# %%
# Without gamma, averaging brings some absent classes back, and takes with it some of what was learned. With gamma, the
# accuracy is highest near the fine-tuned end, and higher.

figure, axes = plt.subplots(
    1,
    len(ablations),
    figsize=(2 + 4 * len(ablations), 3.8),
    sharey=True,
    squeeze=False,
    layout="constrained",
)
for ax, (task, _, _, averages) in zip(axes.flat, ablations, strict=True):
    colours = palette_of(ax)
    for way, name, colour, style in (
        ("oracle", "oracle", colours.best, "*:"),
        ("mpg", "mixed_pair_gap", colours.gamma, "D-"),
        ("zero", "gamma = 0", colours.ink, "o-"),
    ):
        ax.plot(
            ALPHAS,
            [100 * getattr(at, way).acc_all for at in averages.values()],
            style,
            color=colour,
            label=name,
        )
    ax.set(
        title=title(task),
        xlabel="alpha: from pre-trained to fine-tuned",
        ylabel="accuracy on all names, %",
    )
    ax.label_outer()
axes[0, 0].legend(frameon=False)
plt.show()
