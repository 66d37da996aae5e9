"""
Every picture
=============

Draw every picture of `finecal.plots` on the model of digits.py, in a light and in a dark version.

Needs scikit-learn and matplotlib, no network and a few seconds: python examples/pictures.py [FOLDER]

The folder `docs/images` of the documentation holds what this script writes.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from digits import SEEN_MASK, load, make_model, score, train
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import finecal
from finecal import plots

STYLES = {
    "light": ["default"],
    "dark": ["dark_background", {"figure.facecolor": "#131416", "axes.facecolor": "#131416"}],
}


def pictures() -> dict[str, Callable[[], Axes]]:
    """Fine-tune on the even digits, and return what draws each picture."""
    source, fine_tuning, held_out, test = load(seed=0)
    model = make_model()
    train(model, source, epochs=40, learning_rate=0.05)
    before, _ = score(model, test)
    train(model, fine_tuning, epochs=20, learning_rate=0.01)
    logits, labels = score(model, test)

    seen = score(model, held_out)
    gamma = finecal.residual_gap(*seen, SEEN_MASK, n_bootstrap=200)
    curve = finecal.tradeoff_curve(logits, labels, SEEN_MASK)
    report = finecal.evaluate_probabilities(logits, labels, SEEN_MASK, gamma)
    comparison = finecal.compare_estimators(
        SEEN_MASK, train=score(model, fine_tuning), held_out=seen, unlabelled=logits, test=(logits, labels)
    )
    diagnosis = finecal.diagnose(logits, labels, SEEN_MASK, pretrained_logits=before)
    return {
        "tradeoff": lambda: plots.plot_tradeoff(curve, gammas={"residual_gap": gamma}),
        "margins": lambda: plots.plot_margins(curve.samples, gamma=gamma),
        "accuracy": lambda: plots.plot_accuracy(curve, gamma=gamma),
        "reliability": lambda: plots.plot_reliability(report),
        "estimators": lambda: plots.plot_estimators(comparison),
        "gaps": lambda: plots.plot_gaps(diagnosis),
    }


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # The same figures on every machine.
    for name, draw in pictures().items():
        for version, style in STYLES.items():
            with plt.style.context(style):
                draw().figure.savefig(folder / f"plot_{name}_{version}.png")
    print(f"{len(list(folder.glob('plot_*.png')))} pictures in {folder}")
