"""Draw how the time of the whole curve grows with samples and with classes, beside one pass over the logits.

Needs matplotlib and a minute: python scaling.py [FOLDER]
"""

import statistics
import sys
from pathlib import Path

import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from performance import floor, problem, seconds, whole_curve

from finecal.plots._axes import palette_of

STYLES = {
    "light": ["default"],
    "dark": ["dark_background", {"figure.facecolor": "#131416", "axes.facecolor": "#131416"}],
}
SIZES = {
    "samples of 1000 classes": [(samples, 1000) for samples in (100, 300, 1000, 3000, 10_000, 30_000, 100_000)],
    "classes, 1000 samples": [(1000, classes) for classes in (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)],
}
Times = dict[str, list[tuple[int, float, float]]]


def measure() -> Times:
    """Return size, time of the curve and time of a pass, in seconds."""
    times: Times = {}
    for axis, shapes in SIZES.items():
        times[axis] = []
        for shape in shapes:
            given = problem(*shape)
            runs = whole_curve(given), floor(given)
            rounds = [[seconds(run) for run in runs] for _ in range(8)][1:]
            curve, one_pass = (statistics.median(column) for column in zip(*rounds, strict=True))
            times[axis].append((shape[axis.startswith("classes")], curve, one_pass))
    return times


def draw(ax: Axes, axis: str, times: list[tuple[int, float, float]]) -> None:
    colours = palette_of(ax)
    size, curve, one_pass = zip(*times, strict=True)
    ax.loglog(size, [1e3 * t for t in curve], "o-", color=colours.seen, label="curve, AUSUC and best gamma")
    ax.loglog(size, [1e3 * t for t in one_pass], "s--", color=colours.absent, label="one pass: logits.amax(1)")
    ax.set(xlabel=axis, ylabel="milliseconds")
    ax.grid(alpha=0.3)
    ax.spines[["top", "right"]].set_visible(False)


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
            axes[0].legend()
            figure.savefig(folder / f"scaling_{version}.png", dpi=120)
    for axis, times in found.items():
        for size, curve, one_pass in times:
            print(f"{size:>7} {axis}: {1e3 * curve:8.2f} ms, {curve / one_pass:5.1f} passes")
