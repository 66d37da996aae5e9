"""
Where estimators hold, and where they break
===========================================

Six models on which estimators of gamma hold or break: a panel each, with every estimator's gamma against the best.

Names of countries, currencies and scripts, as in `finecal demo`. Grey is where gamma is good: it recovers at least 90 %
of what the best gamma gains on the test names or, where there is no gap, costs at most half a point.

Needs the extra finecal[demo], no network and about a minute: python examples/when_estimators_fail.py [FOLDER]

The folder `docs/images` of the documentation holds what this script writes. The training is that of `finecal demo`,
from two private modules of the package; all else is public.
"""

import copy
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from pictures import STYLES

import finecal
from finecal.datasets import NamesSplit, load_names
from finecal.name_classifier import NameClassifier, fine_tune, pretrain, score, train_fold
from finecal.plots.palette import palette_of

SEED = 0
GOOD, HARMLESS = 0.9, 0.005
"""Of the oracle's gain; of all test samples."""


class Case(NamedTuple):
    """A fine-tuned model, and what is known of it."""

    title: str
    model: NameClassifier
    pretrained: NameClassifier
    seen_mask: torch.Tensor
    train: NamesSplit
    held_out: NamesSplit
    test: NamesSplit
    folds: list[finecal.PseudoFold]


def first(split: NamesSplit, rows: torch.Tensor) -> NamesSplit:
    return NamesSplit(tuple(split.names[row] for row in rows.tolist()), split.labels[rows])


def cases() -> list[Case]:
    """Fine-tune four models, two of which are looked at twice."""
    generator = torch.Generator().manual_seed(SEED)
    half, few, all_classes = (load_names(SEED, fraction) for fraction in (0.5, 0.021, 0.999))
    pretrained = pretrain(half, SEED, generator)
    frozen = copy.deepcopy(pretrained).requires_grad_(False)
    frozen.head.requires_grad_(True)

    def case(title: str, start: NameClassifier, task: finecal.datasets.NamesTask, rate: float = 0.2) -> Case:
        model = fine_tune(start, task.train, torch.Generator().manual_seed(SEED), learning_rate=rate)
        folds = [
            train_fold(task, start, pseudo, SEED) for pseudo in finecal.pseudo_cv_splits(task.seen_mask, seed=SEED)
        ]
        return Case(title, model, pretrained, task.seen_mask, task.train, task.held_out, task.test, folds)

    usual = case("The usual case", pretrained, half)
    order = torch.randperm(len(usual.held_out), generator=generator)
    is_seen = usual.seen_mask[usual.test.labels]
    absent, seen = (~is_seen).nonzero().squeeze(1), is_seen.nonzero().squeeze(1)
    rare = torch.cat([absent, seen[: len(absent) // 9]])
    balanced = fine_tune(pretrained, all_classes.train, torch.Generator().manual_seed(SEED))
    of_seen = {name: getattr(all_classes, name).of_classes(half.seen_mask) for name in ("train", "held_out")}
    return [
        usual,
        case("Frozen backbone", frozen, half),
        usual._replace(title="No gap (trained on all)", model=balanced, folds=[], **of_seen),
        case(f"{int(few.seen_mask.sum())} seen classes", pretrained, few),
        usual._replace(title="One name in ten is seen", test=first(usual.test, rare)),
        usual._replace(title="15 held-out names", held_out=first(usual.held_out, order[:15])),
    ]


def estimates(case: Case) -> dict[str, float | None]:
    """Return gamma by the estimators and what they are given; None without the refits that one needs."""
    mask, unlabelled = case.seen_mask, score(case.model, case.test).logits
    train, held_out = ((score(case.model, s).logits, s.labels) for s in (case.train, case.held_out))
    heads = {"head": case.model.head, "pretrained_head": case.pretrained.head}
    features = score(case.model, case.held_out).features
    known = {"seen_share": float(mask[case.test.labels].double().mean())}
    attempts = {
        "average_logit_gap\ntrain": lambda: finecal.average_logit_gap(*train, mask),
        "max_logit_gap\ntrain": lambda: finecal.max_logit_gap(*train, mask),
        "mixed_pair_gap\ntrain": lambda: finecal.mixed_pair_gap(*train, mask),
        "estimate_gamma\ntrain": lambda: finecal.estimate_gamma(mask, train=train),
        "residual_gap\nheld-out": lambda: finecal.residual_gap(*held_out, mask),
        "head_drift_gamma\nheld-out": lambda: finecal.head_drift_gamma(*held_out, mask, features=features, **heads),
        "pseudo_cv\nrefits": lambda: finecal.pseudo_cv_gamma(case.folds, mask),
        "mixture_gamma\nunlabelled": lambda: finecal.mixture_gamma(held_out[0], unlabelled, mask),
        "estimate_gamma\nboth, unlabelled": lambda: finecal.estimate_gamma(
            mask, train=train, held_out=held_out, unlabelled=unlabelled
        ),
        "known_share_gamma\nunlabelled": lambda: finecal.known_share_gamma(unlabelled, mask, **known),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return {
            name: float(attempt()) if case.folds or "refits" not in name else None for name, attempt in attempts.items()
        }


def good_gammas(case: Case) -> tuple[float, float, float]:
    """Return the best gamma, and the smallest and the largest one that is nearly as good."""
    curve = finecal.tradeoff_curve(score(case.model, case.test).logits, case.test.labels, case.seen_mask)
    best, before, accuracy = float(curve.best()), curve.at(0.0).acc_all, torch.as_tensor(curve.acc_all)
    most = curve.at(best).acc_all
    good = accuracy >= (before + GOOD * (most - before) if case.folds else before - HARMLESS)
    gammas = torch.as_tensor(curve.gamma)[good]
    return best, float(gammas.min()), float(gammas.max())


def draw(ax: Axes, case: Case, gammas: dict[str, float | None]) -> None:
    colours, (best, low, high) = palette_of(ax), good_gammas(case)
    ax.axvspan(low, high, color=colours.guide, alpha=0.35, lw=0)
    ax.axvline(best, color=colours.best, lw=2)
    for row, gamma in enumerate(gammas.values()):
        if gamma is None:
            ax.text(0.5, row, "no refits", transform=ax.get_yaxis_transform(), ha="center", va="center", fontsize=9)
            continue
        good = low <= gamma <= high
        colour = colours.seen if good else colours.absent
        ax.plot(gamma, row, "o" if good else "X", color=colour, ms=8 if good else 9, mec=colours.face, zorder=3)
    ax.set(title=case.title, xlabel="gamma", ylim=(len(gammas) - 0.5, -0.5))
    ax.set_yticks(range(len(gammas)), gammas)
    ax.tick_params(axis="y", labelsize=9, length=0)
    ax.title.set_fontsize(10.5)
    ax.spines[["top", "right", "left"]].set_visible(False)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # The same figures on every machine.
    found = [(case, estimates(case)) for case in cases()]
    for version, style in STYLES.items():
        with plt.style.context(style):
            figure, axes = plt.subplots(3, 2, figsize=(6.4, 12), sharey=True, layout="constrained")
            for ax, (case, gammas) in zip(axes.flat, found, strict=True):
                draw(ax, case, gammas)
            figure.savefig(folder / f"when_estimators_fail_{version}.png", dpi=110)
    for case, gammas in found:
        best, low, high = good_gammas(case)
        print(f"\n{case.title}: best gamma {best:.2f}, good from {low:.2f} to {high:.2f}")
        for name, gamma in gammas.items():
            text = "no refits" if gamma is None else f"{gamma:6.2f}{'' if low <= gamma <= high else '  off'}"
            print(f"  {name.replace(chr(10), ', '):36} {text}")
