"""What `fit_prototypes` gains over gamma alone: by family, by the data it gets, beside other methods. See README.md."""

import argparse
import re
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from prototype_cost import costs
from prototype_rivals import RIVALS, STEPS, Apply, Fit, Model, halves, prototypes, without
from torch import Tensor

import finecal
from estimators import task_files
from finecal._core.results import format_table

LOOKED_AT = (
    *("debsec", "digits", "emoji", "fashion", "flights", "glyphm", "kanji", "lang", "letters", "lex", "names"),
    *("pacs", "sections", "signals", "tz"),
)
"""Families that were looked at while the method was designed; it is judged by the others."""
LOST = -0.5
"""Points: a model that loses more is counted."""
NUMBERS = 25, 50, 100, 200, 500
"""Of unlabelled samples."""
FEW = 25, 100
"""Of unlabelled samples, to which the method is fitted without each of its steps as well."""
WRONG = 0.5, 1.5
"""Times gamma."""
WARNINGS = {
    "left alone": "left alone",
    "few": "too few to gain much",
    "missing": "seem not to occur",
    "no clusters": "hardly cluster",
}
"""Column, and what the sentence has."""

Points = dict[str, float]
"""A model's gains by column, in points; or 1 and 0 for what is counted. NaN where there is nothing to tell."""
Part = Callable[[Model], dict[str, Points]]
"""From a model to the rows of a table."""


class Found(NamedTuple):
    """What came of a model: by part, row and column."""

    name: str
    parts: dict[str, dict[str, Points]]

    @property
    def family(self) -> str:
        letters = re.match(r"[a-z]*", self.name).group()
        return "lang" if letters == "langid" else letters

    @property
    def group(self) -> str:
        kind = "looked at" if self.family in LOOKED_AT else "others"
        return f"controls, {kind}" if "_nogap" in self.name else kind


GROUPS = "looked at", "others", "controls, looked at", "controls, others"


def gains(model: Model, apply: Apply, rows: Tensor) -> Points:
    labels, mask = model.labels[rows], model.mask
    after = finecal.evaluate(apply(model.logits[rows], model.features[rows]), labels, mask)
    before, best = (finecal.evaluate(model.logits[rows], labels, mask, gamma) for gamma in (model.gamma, model.best))
    return {
        "Acc_Y/Y": 100 * (after.acc_all - before.acc_all),
        "over best gamma": 100 * (after.acc_all - best.acc_all),
        "balanced": 100 * (after.balanced - before.balanced),
        "balanced, over best gamma": 100 * (after.balanced - best.balanced),
        "AUSUC": 100 * (after.ausuc - before.ausuc),
        "left alone": float(isinstance(apply, finecal.calibrators.Prototypes) and not apply.weight.any()),
    }


def averaged(found: Sequence[Points]) -> Points:
    return {name: statistics.fmean(points[name] for points in found) for name in found[0]}


def both_ways(model: Model) -> Iterator[tuple[Tensor, Tensor]]:
    first, second = halves(len(model.labels))
    yield from ((first, second), (second, first))


def same_and_fresh(fit: Fit, model: Model) -> dict[str, Points]:
    """Score on all samples, which it is fitted to; and each half of them by a fit to the other half."""
    every = torch.arange(len(model.labels))
    return {"the same": gains(model, fit(model, every), every), "fresh": on_fresh(fit, model)}


def on_fresh(fit: Fit, model: Model, number: int | None = None) -> Points:
    """Score each half by a fit to the other half, or to so many samples of it."""
    return averaged([gains(model, fit(model, own[:number]), others) for own, others in both_ways(model)])


def with_held_out(model: Model) -> dict[str, Points]:
    return {} if model.held_out is None else same_and_fresh(partial(prototypes, held_out=model.held_out), model)


def in_a_row(fit: Fit, model: Model) -> Points:
    found = same_and_fresh(fit, model)
    shown = {name: found["the same"][name] for name in ("Acc_Y/Y", "balanced", "AUSUC")}
    return shown | {f"{name}, fresh": found["fresh"][name] for name in ("Acc_Y/Y", "balanced")}


def side_by_side(fits: dict[str, Fit], model: Model) -> dict[str, Points]:
    return {} if "_nogap" in model.name else {name: in_a_row(fit, model) for name, fit in fits.items()}


def steps(model: Model) -> dict[str, Points]:
    if "_nogap" in model.name:
        return {}
    rows = {}
    for step in STEPS:
        with without(step) as fit:
            rows[step] = in_a_row(fit, model)
            rows[step] |= {f"Acc_Y/Y, {number}": on_fresh(fit, model, number)["Acc_Y/Y"] for number in FEW}
        for column in ("Acc_Y/Y", "Acc_Y/Y, fresh", *(f"Acc_Y/Y, {number}" for number in FEW)):
            rows[step][column.replace("Acc_Y/Y", "step")] = rows["all of it"][column] - rows[step][column]
    return rows


# --- by the data ------------------------------------------------------------------------------------------------------


def data(model: Model) -> dict[str, Points]:
    """Fit to samples that are fewer or others than those in use, and score on those of the other half."""
    if "_nogap" in model.name:
        return {}
    rows: dict[str, list[Points]] = {}
    for own, others in both_ways(model):
        for name, points in _by_data(model, own, others):
            rows.setdefault(name, []).append(points)
    return {name: averaged(found) | _warned(found) for name, found in rows.items()}


def _by_data(model: Model, own: Tensor, others: Tensor) -> Iterator[tuple[str, Points]]:
    is_seen, is_seen_there = model.mask[model.labels[own]], model.mask[model.labels[others]]
    drawn = partial(scores_of, model, others=others)
    alike = torch.ones(len(others))
    yield "all", drawn(own, alike)
    for number in NUMBERS:
        if number <= len(own):
            yield f"{number} samples", drawn(own[:number], alike)
    seen, absent = own[is_seen], own[~is_seen]
    for share in (0.9, 1.0):
        few = absent[: round(len(seen) * (1 - share) / share)]
        parts = share / is_seen_there.sum(), (1 - share) / (~is_seen_there).sum()
        yield f"{share:.0%} seen", drawn(torch.cat([seen, few]), torch.where(is_seen_there, *parts))
    absent_classes = (~model.mask).nonzero()[:, 0]
    drawn_classes = torch.randperm(len(absent_classes), generator=torch.Generator().manual_seed(0))
    occurs = model.mask.clone()
    occurs[absent_classes[drawn_classes[: max(1, round(len(absent_classes) / 3))]]] = True
    yield "a third of the absent classes", drawn(own[occurs[model.labels[own]]], occurs[model.labels[others]].float())
    for factor in WRONG:
        yield f"gamma x {factor:g}", drawn(own, alike, factor * model.gamma)
    yield "best gamma", drawn(own, alike, model.best)


def scores_of(model: Model, rows: Tensor, weights: Tensor, gamma: float | None = None, *, others: Tensor) -> Points:
    """Fit to `rows`; score on `others` as they are, and weighted as if they were like `rows`."""
    shift = model.gamma if gamma is None else gamma
    samples = finecal.Samples(model.logits[rows], features=model.features[rows])
    fitted = finecal.calibrators.fit_prototypes(samples, model.mask, shift)
    logits, labels = model.logits[others], model.labels[others]
    before = finecal.predict(logits, model.mask, shift) == labels
    change = (fitted(logits, model.features[others]).argmax(1) == labels).float() - before.float()
    told = " ".join(fitted.report.warnings) if fitted.report else ""
    points = {
        "samples like these": 100 * float((change * weights).sum() / weights.sum()),
        "all samples": 100 * float(change.mean()),
    }
    return points | {name: float(words in told) for name, words in WARNINGS.items()}


def _warned(found: Sequence[Points]) -> Points:
    return {name: max(points[name] for points in found) for name in WARNINGS}


PARTS: dict[str, Part] = {
    "gain": partial(same_and_fresh, prototypes),
    "held-out": with_held_out,
    "data": data,
    "rivals": partial(side_by_side, RIVALS),
    "steps": steps,
}
TITLES = {
    "gain": "Gain over gamma, and over the best gamma",
    "held-out": "With held_out as a check",
    "data": "By the unlabelled samples, scored on others",
    "rivals": "Beside other methods; 'added': to the calibrated logits, with the same spread",
    "steps": "Without a step; 'step': what it brings; 25, 100: unlabelled samples, scored on fresh ones",
}


# --- tables -----------------------------------------------------------------------------------------------------------


def measure(path: Path, parts: Sequence[str]) -> Found | None:
    """Measure a task file; None if it lacks what is needed."""
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        model = Model.read(path)
        return None if model is None else Found(path.stem, {part: PARTS[part](model) for part in parts})


def summary(column: str, points: Sequence[float]) -> str:
    """Return median / mean / worst (models that lose more than half a point), or how many have it."""
    if column in WARNINGS:
        return str(sum(value > 0 for value in points))
    if column.startswith("step"):
        return f"{statistics.fmean(points):+.2f}"
    lost = sum(value < LOST for value in points)
    return f"{statistics.median(points):+.2f} / {statistics.fmean(points):+.2f} / {min(points):+.1f} ({lost})"


def table(found: Sequence[Found], part: str) -> tuple[list[str], list[list[str]]]:
    """Return head and rows: each row of the part, each group."""
    names = list(dict.fromkeys(name for of in found for name in of.parts[part]))
    columns = list(dict.fromkeys(column for of in found for row in of.parts[part].values() for column in row))
    rows = []
    for name in names:
        for group in GROUPS:
            points = [of.parts[part][name] for of in found if of.group == group and name in of.parts[part]]
            if points:
                cells = [summary(column, [row[column] for row in points]) for column in columns]
                rows.append([name, group, str(len(points)), *cells])
    return ["", "families", "models", *columns], rows


def family_table(found: Sequence[Found], part: str) -> tuple[list[str], list[list[str]]]:
    """Return gains of `Acc_{Y/Y}` by family, without controls."""
    families: dict[tuple[str, str], list[Found]] = {}
    for of in found:
        if "_nogap" not in of.name and of.parts[part]:
            families.setdefault((of.group, of.family), []).append(of)
    rows = []
    for (group, family), models in sorted(families.items()):
        both = ([of.parts[part][name]["Acc_Y/Y"] for of in models] for name in ("the same", "fresh"))
        rows.append([family, group, str(len(models)), *(summary("Acc_Y/Y", points) for points in both)])
    return ["family", "families", "models", "the same", "fresh"], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="folders of task files (.npz)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="tables (default: all)")
    parser.add_argument("--only", nargs="*", default=[], metavar="FAMILY", help="families to look at (default: all)")
    parser.add_argument("--cost", action="store_true", help="time and memory instead")
    parser.add_argument("--markdown", action="store_true", help="titles as headings")
    parser.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    options = parser.parse_args(arguments)
    heading = "## " if options.markdown else ""
    if options.cost:
        print(f"{heading}Cost, in one thread\n")
        print(format_table(["what", "seconds", "times the first", "extra MB"], costs()))
        return
    paths = [p for p in task_files(options.folders) if not options.only or Found(p.stem, {}).family in options.only]
    work = partial(measure, parts=options.parts)
    if options.jobs == 1:
        every = list(map(work, paths))
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            every = list(pool.map(work, paths))
    found = [of for of in every if of is not None]
    if not found:
        parser.error("no .npz files with training samples and features of test samples in the folders")
    print(f"{len(found)} models. Points: median / mean / worst (models that lose more than half a point).")
    for part in options.parts:
        print(f"\n{heading}{TITLES[part]}\n")
        print(format_table(*table(found, part)))
        if part in ("gain", "held-out"):
            print("\nAcc_Y/Y over gamma, by family:\n")
            print(format_table(*family_table(found, part)))


if __name__ == "__main__":
    main()
