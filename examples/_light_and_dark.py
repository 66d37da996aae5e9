"""How the documentation gets its own pictures: in a version for light and in one for dark pages."""

from collections.abc import Callable
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

STYLES = {
    "light": ["default"],
    "dark": [
        "dark_background",
        {"figure.facecolor": "#131416", "axes.facecolor": "#131416"},
    ],
}


def save_light_and_dark(
    draw: Callable[[], Figure], folder: Path, name: str
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for version, style in STYLES.items():
        with plt.style.context(style):
            draw().savefig(folder / f"{name}_{version}.png")
