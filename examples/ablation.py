"""
Where gamma helps
=================

The paper's protocol on real data: fine-tune in many ways on some of the classes, and see where gamma helps.

For names of countries, currencies and scripts, with 20, 50 and 80 % of the classes seen: SGD and Adam at three learning
rates, all or a part of the weights trained, and the weights averaged with the pre-trained ones (WiSE-FT: Wortsman et
al., "Robust fine-tuning of zero-shot models", CVPR 2022), alone and together with gamma.

Needs the extra finecal[demo], no network, and two to three minutes on two processor cores:
python examples/ablation.py [--seed SEED] [--quick]

The training is that of `finecal demo`, from two private modules of the package; all else is public.
"""

import argparse
import copy
import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from typing import NamedTuple

import torch
from torch import nn

import finecal
from finecal.datasets import NamesTask, load_names
from finecal.name_classifier import NameClassifier, fine_tune, pretrain, score


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
    *(DEMO._replace(optimiser=torch.optim.Adam, learning_rate=rate) for rate in (0.0003, 0.001, 0.003)),
    DEMO._replace(trained="backbone (head frozen)", prepare=backbone),
    DEMO._replace(trained="head (backbone frozen)", prepare=head),
    DEMO._replace(trained="new head (linear probing)", prepare=new_head),
]
ALPHAS = [alpha / 10 for alpha in range(11)]
EVERY_CLASS = ["S/Y ", "U/Y ", "Y/Y "]
RECIPE_HEADER = ["trained", "optimiser", "rate", *EVERY_CLASS, "+ALG ", "+MPG ", "oracle ", "rec.", "U/U ", "AUSUC"]
WISE_HEADER = ["|", "alpha=0.5 ", "+MPG ", "best ", "at"]
ALPHA_HEADER = ["alpha", *EVERY_CLASS, "|", "gamma", *EVERY_CLASS, "|", "oracle ", "U/U ", "AUSUC"]
LEGEND = """\
Accuracies on test names in %. S/Y: seen, U/Y: absent, Y/Y: all names, with every class allowed. U/U: absent names with
the absent classes only; no gamma changes it, nor AUSUC.
+ALG, +MPG: Y/Y with gamma by average_logit_gap and mixed_pair_gap, from the training logits; a star: it warned.
oracle: Y/Y with the best gamma on the test labels. rec.: MPG's share of the oracle's gain, if that is a point or more.
New head: the backbone is frozen, too, and the head starts from random weights.
alpha: WiSE-FT, (1 - alpha) pre-trained + alpha fine-tuned weights. best, at: the best alpha on the test labels."""


class Calibrated(NamedTuple):
    """One model at gamma = 0, and with gamma found in three ways."""

    zero: finecal.SeenAbsentReport
    alg: finecal.SeenAbsentReport
    mpg: finecal.SeenAbsentReport
    oracle: finecal.SeenAbsentReport
    alg_warned: bool
    mpg_warned: bool


def calibrate(model: NameClassifier, task: NamesTask) -> Calibrated:
    train, mask = (score(model, task.train).logits, task.train.labels), task.seen_mask
    test = (score(model, task.test).logits, task.test.labels)
    with warnings.catch_warnings():
        # Stars stand for them.
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        alg, mpg = finecal.average_logit_gap(*train, mask), finecal.mixed_pair_gap(*train, mask)
        oracle = finecal.search_gamma(*test, mask)
    reports = [finecal.evaluate(*test, mask, gamma) for gamma in (0.0, alg, mpg, oracle)]
    return Calibrated(*reports, alg_warned=bool(alg.warnings), mpg_warned=bool(mpg.warnings))


def interpolate(pretrained: NameClassifier, fine_tuned: NameClassifier, alpha: float) -> NameClassifier:
    model, end = copy.deepcopy(pretrained), fine_tuned.state_dict()
    model.load_state_dict({name: weight.lerp(end[name], alpha) for name, weight in pretrained.state_dict().items()})
    return model


def report(model: NameClassifier, task: NamesTask) -> finecal.SeenAbsentReport:
    return finecal.evaluate(score(model, task.test).logits, task.test.labels, task.seen_mask)


def percent(accuracy: float, star: bool = False) -> str:
    return f"{100 * accuracy:.1f}{'*' if star else ' '}"


def with_every_class(at: finecal.SeenAbsentReport) -> list[str]:
    return [percent(at.acc_seen), percent(at.acc_absent), percent(at.acc_all)]


def recipe_row(recipe: Recipe, at: Calibrated, wise: dict[float, float], half: Calibrated) -> list[str]:
    possible = at.oracle.acc_all - at.zero.acc_all
    recovered = f"{100 * (at.mpg.acc_all - at.zero.acc_all) / possible:.0f}" if possible >= 0.01 else "-"
    best = max(wise, key=lambda alpha: wise[alpha])
    return [
        *(recipe.trained, recipe.optimiser.__name__, str(recipe.learning_rate), *with_every_class(at.zero)),
        *(percent(at.alg.acc_all, at.alg_warned), percent(at.mpg.acc_all, at.mpg_warned)),
        *(percent(at.oracle.acc_all), recovered, percent(at.zero.acc_absent_within), f"{at.zero.ausuc:.3f}"),
        *("|", percent(half.zero.acc_all), percent(half.mpg.acc_all, half.mpg_warned), percent(wise[best]), str(best)),
    ]


def alpha_row(alpha: float, at: Calibrated) -> list[str]:
    with_mpg = [percent(at.mpg.acc_seen), percent(at.mpg.acc_absent), percent(at.mpg.acc_all, at.mpg_warned)]
    within = [percent(at.zero.acc_absent_within), f"{at.zero.ausuc:.3f}"]
    with_gamma = [f"{at.mpg.gamma:.2f}", *with_mpg, "|", percent(at.oracle.acc_all)]
    return [str(alpha), *with_every_class(at.zero), "|", *with_gamma, *within]


def align(rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    left, *others = zip(*rows, strict=True)
    columns = [pad(left, str.ljust), *(pad(column, str.rjust) for column in others)]
    return "\n".join(" ".join(row).rstrip() for row in zip(*columns, strict=True))


def pad(column: Sequence[str], justify: Callable[[str, int], str]) -> list[str]:
    return [justify(cell, max(map(len, column))) for cell in column]


def ablate(seen_fraction: float, seed: int, epochs: tuple[int, int]) -> str:
    """Return a table with a row for each recipe, and one of the averaged weights for the recipe of the demo."""
    task, generator = load_names(seed, seen_fraction), torch.Generator().manual_seed(seed)
    pretrained = pretrain(task, seed, generator, epochs=epochs[0])
    batches = generator.get_state()
    before = report(pretrained, task)
    start = [*with_every_class(before), "", "", "", "", percent(before.acc_absent_within), f"{before.ausuc:.3f}"]
    rows = [[*RECIPE_HEADER, *WISE_HEADER], ["nothing (pre-trained)", "", "", *start, "|", "", "", "", ""]]
    averages = []
    for recipe in RECIPES:
        torch.manual_seed(seed)
        model = copy.deepcopy(pretrained)
        recipe.prepare(model)
        fine_tuned = fine_tune(
            model,
            task.train,
            torch.Generator().set_state(batches),  # the same ones for every recipe
            epochs=epochs[1],
            learning_rate=recipe.learning_rate,
            optimiser=recipe.optimiser,
        )
        between = {alpha: interpolate(pretrained, fine_tuned, alpha) for alpha in ALPHAS}
        wise = {alpha: report(model, task).acc_all for alpha, model in between.items()}
        rows.append(recipe_row(recipe, calibrate(fine_tuned, task), wise, calibrate(between[0.5], task)))
        if recipe == DEMO:
            averages = [alpha_row(alpha, calibrate(model, task)) for alpha, model in between.items()]
    return "\n\n".join(
        [
            f"{int(task.seen_mask.sum())} of {len(task.class_names)} classes seen; {len(task.train)} names for "
            f"fine-tuning, {len(task.test)} for testing",
            align(rows),
            f"WiSE-FT, everything by SGD at {DEMO.learning_rate}: gamma = 0 | gamma by MPG | the best gamma",
            align([ALPHA_HEADER, *averages]),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="chooses the seen classes, weights and batches (default 0)")
    parser.add_argument("--quick", action="store_true", help="half of the classes seen and few epochs: a smoke test")
    arguments = parser.parse_args()
    fractions, epochs = ([0.5], (2, 3)) if arguments.quick else ([0.2, 0.5, 0.8], (10, 25))
    print(LEGEND, flush=True)
    processes = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=processes, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for text in pool.map(ablate, fractions, repeat(arguments.seed), repeat(epochs)):
            print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
