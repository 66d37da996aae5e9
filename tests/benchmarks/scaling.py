"""Draw how the time of the whole curve grows with samples and with classes, beside one pass over the logits.

Then print the bytes a second that are read, by dtype, beside those of a copy. Needs matplotlib, numba, 5 GB of memory
and two minutes: python scaling.py [FOLDER]
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from performance import Problem, compiled, floor, problem, seconds, whole_curve

from finecal._core.results import format_table
from finecal.plots._axes import palette_of

STYLES = {
    "light": ["default"],
    "dark": ["dark_background", {"figure.facecolor": "#131416", "axes.facecolor": "#131416"}],
}
SIZES = {
    "samples of 20 classes": [(10**exponent, 20) for exponent in (2, 3, 4, 5, 6, 7)],
    "classes, 1000 samples": [(1000, classes) for classes in (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)],
}
DTYPES = (torch.float32, torch.bfloat16, torch.float64)
ROUNDS = 5


class Times(NamedTuple):
    """Seconds."""

    size: int
    curve: float
    compiled: float
    one_pass: float


def medians(*runs: Callable[[], Any]) -> list[float]:
    """Return the median time of each, in turns, after a first round that compiles."""
    rounds = [[seconds(run) for run in runs] for _ in range(ROUNDS + 1)][1:]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def measure() -> dict[str, list[Times]]:
    times: dict[str, list[Times]] = {}
    for axis, shapes in SIZES.items():
        times[axis] = []
        for shape in shapes:
            given = problem(*shape)
            run = whole_curve(given)
            times[axis].append(Times(shape[axis.startswith("classes")], *medians(run, compiled(run), floor(given))))
    return times


def draw(ax: Axes, axis: str, times: list[Times]) -> None:
    colours = palette_of(ax)
    size, curve, fused, one_pass = ([1e3 * value for value in column] for column in zip(*times, strict=True))
    size = [value / 1e3 for value in size]
    ax.loglog(size, curve, "o-", color=colours.seen, label="curve, AUSUC and best gamma")
    ax.loglog(size, fused, "^-", color=colours.best, label="the same, compile_kernels()")
    ax.loglog(size, one_pass, "s--", color=colours.absent, label="one pass: logits.amax(1)")
    ax.set(xlabel=axis, ylabel="milliseconds")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


def bandwidths() -> str:
    rows = []
    for samples, classes in ((50_000, 1000), (1000, 100_000)):
        given = problem(samples, classes)
        for dtype in DTYPES:
            logits = given.logits.to(dtype)
            run = whole_curve(Problem(logits, given.labels, given.mask))
            into = torch.empty_like(logits)
            curve, fused, copy = medians(run, compiled(run), lambda logits=logits, into=into: into.copy_(logits))
            gigabytes = logits.numel() * logits.itemsize / 1e9
            name = str(dtype).removeprefix("torch.")
            speeds = [f"{gigabytes / time:.1f}" for time in (curve, fused, copy / 2)]
            rows.append([f"{samples:,} x {classes:,} {name}", *speeds])
    return format_table(["GB a second", "curve", "compiled", "copy, read and written"], rows)


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found = measure()
    for version, style in STYLES.items():
        with plt.style.context(style):
            figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharey=True, layout="constrained")
            for ax, (axis, times) in zip(axes, found.items(), strict=True):
                draw(ax, axis, times)
            axes[1].set_ylabel("")
            axes[1].legend(loc="upper left")
            figure.savefig(folder / f"scaling_{version}.png", dpi=120)
    for axis, times in found.items():
        for of in times:
            plain, fused = of.curve / of.one_pass, of.compiled / of.one_pass
            print(f"{of.size:>8} {axis}: {1e3 * of.curve:8.2f} ms, {plain:5.1f} passes, compiled {fused:5.1f}")
    print(bandwidths())
