"""How often intervals and the promise of a budget hold where positions of one picture are alike, by position and by
picture. See README.md.
"""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence

import numpy as np

import finecal
from finecal._core.results import format_table

SEEN, CLASSES = 5, 10
MASK = np.arange(CLASSES) < SEEN
LEAD, SHIFT = 2.5, 3.0
"""By how much the own logit of a position is larger, and by how much the seen logits have outgrown the absent ones."""
OF_PICTURE, OF_CLASS = 0.8, 0.5
"""Standard deviations, over pictures, of the offset of the seen logits and of each logit."""
FEW_CLASSES = 0.5
"""Of the Dirichlet distribution of the classes of a picture: the smaller, the fewer classes it has."""
BUDGET, CONFIDENCE = 0.1, 0.95


def drawn(rng: np.random.Generator, pictures: int, positions: int) -> finecal.Samples:
    """Draw positions in groups, which are pictures, each with classes and with offsets that its logits share."""
    content = rng.dirichlet(np.full(CLASSES, FEW_CLASSES), pictures)
    groups = np.repeat(np.arange(pictures), positions)
    labels = (rng.random((pictures * positions, 1)) > content.cumsum(1)[groups]).sum(1).clip(max=CLASSES - 1)
    offset = OF_PICTURE * rng.normal(size=(pictures, 1)) * MASK + OF_CLASS * rng.normal(size=(pictures, CLASSES))
    logits = rng.normal(size=(len(labels), CLASSES), scale=1.0) + SHIFT * MASK + offset[groups]
    logits[np.arange(len(labels)), labels] += LEAD
    return finecal.Samples(logits.astype(np.float32), labels, groups=groups)


def without_groups(samples: finecal.Samples) -> finecal.Samples:
    return finecal.Samples(samples.logits, samples.labels)


def of_seen_classes(samples: finecal.Samples) -> finecal.Samples:
    return samples[MASK[samples.labels]]


Estimate = Callable[[finecal.Samples, dict[str, int]], finecal.GammaEstimate]
ESTIMATES: dict[str, Estimate] = {
    "max_logit_gap": lambda samples, options: finecal.estimators.max_logit_gap(samples, MASK, **options),
    "mixed_pair_gap": lambda samples, options: finecal.estimators.mixed_pair_gap(samples, MASK, 0.5, **options),
    "residual_gap": lambda samples, options: finecal.estimators.residual_gap(samples, MASK, 0.5, **options),
    "search_gamma": lambda samples, options: finecal.search_gamma(samples, MASK, "balanced", **options),
    "known_share_gamma": lambda samples, options: finecal.estimators.known_share_gamma(samples, MASK, 0.5, **options),
}
OF_ALL = "search_gamma", "known_share_gamma"
"""From positions of all classes; the others are from those of the seen ones."""


def quietly(estimate: Callable[..., finecal.GammaEstimate], *arguments: object) -> finecal.GammaEstimate:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        return estimate(*arguments)


def given_to(name: str, samples: finecal.Samples) -> finecal.Samples:
    return samples if name in OF_ALL else of_seen_classes(samples)


def coverage(options: argparse.Namespace, population: finecal.Samples) -> list[list[str]]:
    """Return for each estimator how many intervals hold the gamma of the population, and how wide they are."""
    population = without_groups(population)
    truths = {name: quietly(of, given_to(name, population), {}).gamma for name, of in ESTIMATES.items()}
    held: dict[tuple[str, bool], list[tuple[bool, float]]] = {}
    for seed in range(options.sets):
        samples = drawn(np.random.default_rng(seed), options.pictures, options.positions)
        for by_picture, given in ((False, without_groups(samples)), (True, samples)):
            for name, of in ESTIMATES.items():
                estimate = quietly(of, given_to(name, given), {"n_bootstrap": options.bootstrap, "seed": seed})
                low, high = estimate.interval or (np.nan, np.nan)
                held.setdefault((name, by_picture), []).append((low <= truths[name] <= high, high - low))
    rows = []
    for name, truth in truths.items():
        cells = [f"{100 * statistics.fmean(holds for holds, _ in held[name, by]):.0f} %" for by in (False, True)] + [
            f"{statistics.median(width for _, width in held[name, by]):.2f}" for by in (False, True)
        ]
        rows.append([name, f"{truth:.2f}", *cells])
    return rows


def budgets(options: argparse.Namespace, population: finecal.Samples) -> list[list[str]]:
    """Return how often `seen_budget_gamma` keeps its budget in the population, and what it spends.

    The loss is the share of the seen positions that gamma loses: of all, or the mean over pictures.
    """
    seen = of_seen_classes(population)
    margins = seen.margins(MASK)
    counts = np.bincount(seen.groups)
    of_picture = 1 / counts[seen.groups] / np.count_nonzero(counts)
    rows = []
    for by_picture in (False, True):
        losses = []
        for seed in range(options.sets):
            positions = drawn(np.random.default_rng(seed), options.budget_pictures, options.positions)
            samples = of_seen_classes(positions if by_picture else without_groups(positions))
            gamma = quietly(finecal.estimators.seen_budget_gamma, samples, MASK, BUDGET, CONFIDENCE).gamma
            lost = margins.hit & (margins.margin >= 0) & (margins.margin < gamma)
            losses.append((lost.mean(), of_picture[lost].sum()))
        cells = [
            cell
            for column in np.transpose(losses)
            for cell in (f"{100 * np.mean(column <= BUDGET):.0f} %", f"{100 * np.median(column):.1f}")
        ]
        rows.append(["picture" if by_picture else "position", *cells])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0].replace("\n", " "))
    parser.add_argument("--sets", type=int, default=200, help="simulated data sets (default 200)")
    parser.add_argument("--pictures", type=int, default=40, help="pictures of each (default 40)")
    parser.add_argument("--positions", type=int, default=200, help="positions of each picture (default 200)")
    parser.add_argument("--bootstrap", type=int, default=200, help="resamplings of each interval (default 200)")
    parser.add_argument("--budget-pictures", type=int, default=100, help="pictures for the budget (default 100)")
    parser.add_argument("--population", type=int, default=20_000, help="pictures of the population (default 20000)")
    options = parser.parse_args(arguments)
    population = drawn(np.random.default_rng(10**6), options.population, options.positions // 10)
    print(
        f"{options.sets} data sets of {options.pictures} pictures with {options.positions} positions. 95 % intervals "
        "that hold the gamma of the population, and their median width:\n"
    )
    heads = ["estimator", "gamma", "by position", "by picture", "width", "by picture"]
    print(format_table(heads, coverage(options, population)))
    print(
        f"\n{options.sets} data sets of {options.budget_pictures} pictures: how often the population loses at most "
        f"{100 * BUDGET:g} points (promised: {100 * CONFIDENCE:g} %), and the median loss in points:\n"
    )
    heads = ["seen_budget_gamma by", "over positions", "points", "over pictures", "points"]
    print(format_table(heads, budgets(options, population)))


if __name__ == "__main__":
    main()
