"""How bright colours are, and how they stand out."""

import numpy as np
from matplotlib.colors import to_rgb


def linear(rgb):
    rgb = np.asarray(rgb)
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(one, other):
    """Of the Web Content Accessibility Guidelines 2.1."""
    luminances = [linear(to_rgb(colour)) @ [0.2126, 0.7152, 0.0722] for colour in (one, other)]
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)
