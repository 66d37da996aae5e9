"""One run after the other: load, pre-train, fine-tune, write the task file, and say what came of it."""

import functools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from catalogue import Loader, Run
from fine_tuning import Domains, pretrain, task_arrays

import finecal
from finecal._core.files import npz_bytes, write_atomically
from models import Classifier


@functools.lru_cache(maxsize=1)
def loaded(load: Loader, cache: Path) -> Domains:
    return load(cache)


@functools.lru_cache(maxsize=1)
def pretrained(load: Loader, cache: Path, head: str, epochs: int, seed: int) -> Classifier:
    return pretrain(loaded(load, cache), head, epochs, seed)


def make(run: Run, out: Path, cache: Path) -> str:
    """Write the run's task file, and return a line about it."""
    model = pretrained(run.load, cache, run.head, run.pretraining_epochs, run.seed)
    arrays = task_arrays(loaded(run.load, cache), model, run.setting, run.recipe, run.seed)
    write_atomically(out / f"{run.name}.npz", npz_bytes(arrays))
    return described(run.name, arrays)


def described(name: str, arrays: dict[str, np.ndarray]) -> str:
    """Say in one line what fine-tuning did, and what gamma could bring back; with the old head, if it has a new one."""
    mask, labels = arrays["seen_mask"], arrays["test_labels"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        curve = finecal.tradeoff_curve(arrays.get("kept_test_logits", arrays["test_logits"]), labels, mask)
        start = finecal.evaluate(arrays["pretrained_test_logits"].astype(np.float32), labels, mask)
    before, after = curve.at(0.0), curve.at(curve.best())
    return (
        f"{name}: {len(mask)} classes, {mask.sum()} seen; {len(arrays['train_labels'])} train, "
        f"{len(arrays['val_labels'])} val, {len(labels)} test; Acc_Y/Y {100 * start.acc_all:.1f} pre-trained, "
        f"{100 * before.acc_all:.1f} -> {100 * after.acc_all:.1f} (gain {100 * (after.acc_all - before.acc_all):.1f}); "
        f"Acc_U/Y {100 * before.acc_absent:.1f}, Acc_U/U {100 * start.acc_absent_within:.1f} -> "
        f"{100 * before.acc_absent_within:.1f}"
    )


def make_all(runs: Sequence[Run], out: Path, cache: Path) -> None:
    """Make the runs on one thread, and print a line about each."""
    torch.set_num_threads(1)
    for run in runs:
        print(make(run, out, cache), flush=True)
