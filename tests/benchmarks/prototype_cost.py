"""Time and memory of `fit_prototypes`, and the time of a model that has prototypes, in one thread. See README.md."""

import copy
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from performance import problem, seconds
from torch import nn

import finecal

SAMPLES, CLASSES, WIDTH = 50_000, 1000, 768
FIT_TURNS, FORWARD_TURNS = 3, 51
BATCHES = {1: 40, 256: 1}
"""Samples in a batch, and forward passes in a turn."""

Runs = dict[str, Callable[[], object]]


def memory(kind: str) -> float:
    """Return a figure of this process in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1000


def extra_memory(run: Callable[[], object]) -> float:
    """Return the MB of resident memory at its peak above those before."""
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    before = memory("VmRSS")
    run()
    return memory("VmHWM") - before


def in_turns(runs: Runs, turns: int, repeats: int = 1) -> list[list[str]]:
    """Return the median time of each, and the median of its ratio to the first in the same turn."""
    for run in runs.values():
        run()
    times = [[seconds(run, repeats) for run in runs.values()] for _ in range(turns)]
    rows = []
    for name, taken in zip(runs, zip(*times, strict=True), strict=True):
        ratio = statistics.median(own / turn[0] for own, turn in zip(taken, times, strict=True))
        rows.append([name, f"{statistics.median(taken):.3g}", f"{ratio:.3g}"])
    return rows


def cost_of_fit() -> list[list[str]]:
    given = problem(SAMPLES, CLASSES)
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    features = torch.randn(SAMPLES, WIDTH, generator=generator).add_(centers[given.labels])

    def fit() -> object:
        return finecal.calibrators.fit_prototypes(finecal.Samples(given.logits, features=features), given.mask, 3.0)

    extra = f"{extra_memory(fit):.0f}"
    runs: Runs = {
        f"logits.amax(1), {SAMPLES} x {CLASSES}": lambda: given.logits.amax(1),
        f"fit_prototypes, {WIDTH} features": fit,
    }
    first, second = in_turns(runs, FIT_TURNS)
    return [[*first, ""], [*second, extra]]


def cost_of_forward() -> list[list[str]]:
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    model = nn.Sequential(*body, nn.Linear(WIDTH, CLASSES)).eval()
    hooked = copy.deepcopy(model)  # a model with prototypes keeps a hook
    hooked.load_state_dict(model.state_dict(), assign=True)  # the same weights in memory
    mask = torch.arange(CLASSES) % 2 == 0
    prototypes = finecal.calibrators.Prototypes(mask, 3.0, torch.randn(CLASSES, WIDTH), torch.randn(WIDTH))
    models = {
        "model": model,
        "CalibratedModel, AdditiveBias": finecal.CalibratedModel(model, finecal.AdditiveBias(mask, 3.0)),
        "CalibratedModel, Prototypes": finecal.CalibratedModel(hooked, prototypes),
    }
    rows = []
    with torch.inference_mode():
        for batch, repeats in BATCHES.items():
            inputs = torch.randn(batch, WIDTH)
            given = model(inputs), body(inputs)
            runs: Runs = {f"{name}, batch of {batch}": lambda m=m, x=inputs: m(x) for name, m in models.items()}
            runs[f"Prototypes.forward, batch of {batch}"] = lambda given=given: prototypes(*given)
            rows += [[*row, ""] for row in in_turns(runs, FORWARD_TURNS, repeats)]
    return rows


def costs() -> list[list[str]]:
    """Return what, seconds, times the first of those in the same turns, and extra memory in MB."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", finecal.FinecalWarning)  # that made-up features hardly cluster
            return cost_of_fit() + cost_of_forward()
    finally:
        torch.set_num_threads(threads)
