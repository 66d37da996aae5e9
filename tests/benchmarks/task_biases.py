"""Class-incremental learning: `task_biases` beside one gamma, BiC and weight aligning. See README.md."""

import argparse
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

import finecal
from estimators import load, task_files
from finecal._core.results import format_table

LOOKED_AT = "digits", "kanji", "languages", "names", "sections"
"""Families of data that were looked at while the method was designed; it is judged by the others."""
LOST = -1.0
"""Points: a model that loses more is counted."""
EXEMPLARS = 2
"""Of each class."""

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Model:
    """What a file of `increments.py` holds; logits of the classes so far."""

    name: str
    tasks: Tensor
    weight_norm: Tensor
    bias: Tensor
    train: Labelled
    """Samples of the newest task that the model was trained on."""
    held_out: Labelled
    """Samples of the newest task that were kept aside."""
    exemplars: Labelled
    """Two samples of each class that were kept aside."""
    test: Labelled

    @classmethod
    def read(cls, path: Path) -> "Model":
        found = {name: torch.from_numpy(array) for name, array in load(path).items()}
        tasks = found["task_of_class"]
        parts = {part: (found[f"{part}_logits"], found[f"{part}_labels"]) for part in ("train", "held_out", "test")}
        logits, labels = parts["held_out"]
        newest = tasks[labels] == tasks.max()
        parts["held_out"] = logits[newest], labels[newest]
        few = torch.cat([(labels == label).nonzero().squeeze(1)[:EXEMPLARS] for label in labels.unique()])
        return cls(path.stem, tasks, found["weight_norm"], found["bias"], exemplars=(logits[few], labels[few]), **parts)

    @property
    def family(self) -> str:
        return self.name.split("_")[0]

    @property
    def way(self) -> str:
        return self.name.split("_")[2]

    @property
    def seen_mask(self) -> Tensor:
        return self.tasks == self.tasks.max()


# --- methods: the logits of the test samples, corrected ---------------------------------------------------------------


def weight_aligned(model: Model) -> Tensor:
    """Scale the rows of the newest task to the mean norm of the others, and not their biases."""
    logits, mask = model.test[0], model.seen_mask
    factor = model.weight_norm[~mask].mean() / model.weight_norm[mask].mean()
    return torch.where(mask, factor * (logits - model.bias) + model.bias, logits)


def bias_corrected(model: Model) -> Tensor:
    """Fit a factor and a shift for the newest task to the exemplars, the second stage of BiC."""
    mask, (logits, labels) = model.seen_mask, model.exemplars
    factor, shift = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for start in (1.0, 0.0))
    optimiser = torch.optim.LBFGS([factor, shift], max_iter=200, line_search_fn="strong_wolfe")

    def corrected(logits: Tensor) -> Tensor:
        return torch.where(mask, factor * logits.double() + shift, logits.double())

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = F.cross_entropy(corrected(logits), labels)
        loss.backward()
        return loss

    optimiser.step(closure)
    return corrected(model.test[0]).detach()


def one_gamma(model: Model) -> Tensor:
    gamma = finecal.estimate_gamma(model.seen_mask, held_out=model.held_out)
    return finecal.calibrate_logits(model.test[0], model.seen_mask, gamma)


def best_gamma(model: Model) -> Tensor:
    gamma = finecal.tradeoff_curve(*model.test, model.seen_mask).best()
    return finecal.calibrate_logits(model.test[0], model.seen_mask, gamma)


def by_training(model: Model) -> Tensor:
    return model.test[0] + finecal.estimators.task_biases(*model.train, model.tasks, is_held_out=False)


def by_held_out(model: Model) -> Tensor:
    return model.test[0] + finecal.estimators.task_biases(*model.held_out, model.tasks, is_held_out=True)


def by_exemplars(model: Model) -> Tensor:
    return model.test[0] + _of_exemplars(model)


def per_class(model: Model) -> Tensor:
    return finecal.calibrators.fit_class_bias(*model.exemplars, model.seen_mask)(model.test[0])


def both(model: Model) -> Tensor:
    bias, (logits, labels) = _of_exemplars(model), model.exemplars
    return finecal.calibrators.fit_class_bias(logits + bias, labels, model.seen_mask)(model.test[0] + bias)


def best_biases(model: Model) -> Tensor:
    return model.test[0] + finecal.estimators.task_biases(
        *model.held_out, model.tasks, is_held_out=True, exemplars=model.test
    )


def _of_exemplars(model: Model) -> Tensor:
    return finecal.estimators.task_biases(*model.held_out, model.tasks, is_held_out=True, exemplars=model.exemplars)


METHODS: dict[str, Callable[[Model], Tensor]] = {
    "no bias": lambda model: model.test[0],
    "weight aligning (WA)": weight_aligned,
    "BiC, second stage, exemplars": bias_corrected,
    "estimate_gamma, held-out samples": one_gamma,
    "oracle, one gamma": best_gamma,
    "task_biases, training samples": by_training,
    "task_biases, held-out samples": by_held_out,
    "task_biases, exemplars": by_exemplars,
    "fit_class_bias, exemplars": per_class,
    "both, exemplars": both,
    "oracle, a bias a task": best_biases,
}

# --- tables -----------------------------------------------------------------------------------------------------------


class Found(NamedTuple):
    """What a method did for a model: accuracy on test samples and what it gained, in points, and whether it warned."""

    accuracy: float
    gain: float
    warned: bool

    @property
    def lost(self) -> bool:
        return self.gain < LOST


def measure(model: Model) -> dict[str, Found]:
    labels = model.test[1]

    def accuracy(logits: Tensor) -> float:
        return 100 * float((logits.argmax(1) == labels).double().mean())

    start, found = accuracy(model.test[0]), {}
    for name, method in METHODS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", finecal.FinecalWarning)
            after = accuracy(method(model))
        warned = any(issubclass(warning.category, finecal.FinecalWarning) for warning in caught)
        found[name] = Found(after, after - start, warned)
    return found


Results = Sequence[tuple[Model, dict[str, Found]]]


def summary(results: Results) -> tuple[list[str], list[list[str]]]:
    head = ["", "accuracy", "lost", "without a warning", "largest loss", "warned"]
    rows = []
    for name in METHODS:
        of = [found[name] for _, found in results]
        mean = statistics.fmean(one.accuracy for one in of)
        lost = [one for one in of if one.lost]
        silent = sum(not one.warned for one in lost)
        largest = f"{-min(one.gain for one in lost):.1f}" if lost else "-"
        warned = sum(one.warned for one in of)
        rows.append([name, f"{mean:.1f}", str(len(lost)), str(silent), largest, str(warned)])
    return head, rows


def by(part: Callable[[Model], str], results: Results) -> tuple[list[str], list[list[str]]]:
    parts = list(dict.fromkeys(part(model) for model, _ in results))
    counts = [sum(part(model) == name for model, _ in results) for name in parts]
    rows = []
    for name in METHODS:
        cells = []
        for chosen in parts:
            of = [found[name] for model, found in results if part(model) == chosen]
            cells.append(f"{statistics.fmean(one.accuracy for one in of):.1f} ({sum(one.lost for one in of)})")
        rows.append([name, *cells])
    return ["", *(f"{name}, {count}" for name, count in zip(parts, counts, strict=True))], rows


def losses(results: Results) -> tuple[list[str], list[list[str]]]:
    rows = [
        [model.name, name, f"{of.accuracy - of.gain:.1f}", f"{of.gain:+.1f}", "warned" if of.warned else ""]
        for model, found in results
        for name, of in found.items()
        if of.lost and "task_biases" in name
    ]
    return ["model", "method", "no bias", "points", ""], rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of the files that runs/increments.py wrote (.npz)")
    parser.add_argument("--losses", action="store_true", help="list the models that a bias a task makes worse as well")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    models = list(map(Model.read, task_files([options.folder])))
    if not models:
        parser.error(f"no .npz files in {options.folder}")
    results = [(model, measure(model)) for model in models]
    print(
        f"Accuracy on all classes so far, in %; models that lost more than {-LOST:g} point; of these, those without a\n"
        "warning; the largest loss, in points; models with a warning."
    )
    groups = {
        "Families that were not looked at": [pair for pair in results if pair[0].family not in LOOKED_AT],
        "Families that were looked at": [pair for pair in results if pair[0].family in LOOKED_AT],
    }
    for title, chosen in groups.items():
        if not chosen:
            continue
        families = ", ".join(dict.fromkeys(model.family for model, _ in chosen))
        print(f"\n{title}: {len(chosen)} models ({families})\n")
        print(format_table(*summary(chosen)))
        print("\nBy the way of training, and their number: accuracy (models that lost)\n")
        print(format_table(*by(lambda model: model.way, chosen)))
        print("\nBy family\n")
        print(format_table(*by(lambda model: model.family, chosen)))
    if options.losses:
        print("\nModels that lost\n")
        print(format_table(*losses(results)))


if __name__ == "__main__":
    main()
