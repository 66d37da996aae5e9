"""Models between before and after fine-tuning: what `search_interpolation` finds, and what that is worth on test."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from catalogue import Run
from fine_tuning import BATCH_SIZE, MAX_HELD_OUT, Samples, fine_tune, of_classes, split_target
from make import loaded, pretrained
from torch.nn.utils import parametrize

import finecal
from finecal._core.files import write_atomically
from finecal._core.results import to_json
from models import Classifier


def interpolate(run: Run, cache: Path) -> dict[str, Any]:
    """Fine-tune as for the task file, and score the model at each alpha: accuracies in points.

    A low-rank update is added to the weights first. Batch norms whose statistics fine-tuning has changed measure them
    anew, on the samples for fine-tuning.
    """
    domains = loaded(run.load, cache)
    before = pretrained(run.load, cache, run.head, run.pretraining_epochs, run.seed).eval()
    splits = split_target(domains, run.setting, run.seed)
    after = _merged(fine_tune(before, splits.train, run.recipe, run.seed))
    mask = splits.seen_mask
    held_out = of_classes(splits.held_out, mask)[slice(MAX_HELD_OUT)]
    batches = {"batch_norm_loader": [batch for batch in _batches(splits.train) if len(batch[1]) > 1]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        found = finecal.weights.search_interpolation(
            before, after, _batches(held_out), seen_mask=mask, progress=False, **batches
        )
        steps = []
        for step in found.steps:
            model = finecal.weights.interpolate_weights(before, after, step.alpha, **batches)
            samples = finecal.collect_logits(model, _batches(splits.test), progress=False)
            curve = finecal.tradeoff_curve(samples, mask)
            at = curve.at(step.gamma)
            steps.append(
                {
                    "alpha": step.alpha,
                    "gamma": step.gamma.gamma,
                    "held_out_acc_seen_within": 100 * step.acc_seen_within,
                    "acc_all": 100 * at.acc_all,
                    "balanced": 100 * at.balanced,
                    "best_acc_all": 100 * float(curve.acc_all.max()),
                    "acc_absent_within": 100 * at.acc_absent_within,
                }
            )
    return {"control": run.setting.control, "n_held_out": found.n, "alpha": found.alpha, "steps": steps}


def interpolate_all(runs: Sequence[Run], out: Path, cache: Path) -> None:
    """Interpolate the models of the runs on one thread, and print a line about each."""
    torch.set_num_threads(1)
    for run in runs:
        found = interpolate(run, cache)
        write_atomically(out / f"{run.name}.json", to_json(found).encode())
        steps = {step["alpha"]: step for step in found["steps"]}
        gain = steps[found["alpha"]]["acc_all"] - steps[1.0]["acc_all"]
        print(f"{run.name}: alpha = {found['alpha']:g}; Acc_Y/Y {gain:+.1f}", flush=True)


def _merged(model: Classifier) -> Classifier:
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            parametrize.remove_parametrizations(module, "weight")
    return model


def _batches(samples: Samples) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(samples.inputs.split(BATCH_SIZE), samples.labels.split(BATCH_SIZE), strict=True))
