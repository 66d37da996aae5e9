"""Colours that the colour-blind tell apart too, and that stand out against the axes they are drawn on."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RGB: TypeAlias = tuple[float, float, float]

# Colours of Okabe and Ito.
BLUE, SKY_BLUE, VERMILION, ORANGE = "#0072B2", "#56B4E9", "#D55E00", "#E69F00"
PURPLE, GREEN = "#CC79A7", "#009E73"
BLACK, WHITE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
LEAST_CONTRAST, LEAST_CONTRAST_OF_TEXT = 3.0, 4.5
"""Of graphics and of text, by the Web Content Accessibility Guidelines, level AA."""


class Palette(NamedTuple):
    """A colour for each thing that the pictures show, and one for text and one for what stays in the background."""

    face: RGB
    ink: RGB
    guide: RGB
    seen: RGB
    absent: RGB
    gamma: RGB
    best: RGB
    other: RGB


def palette_of(ax: Axes) -> Palette:
    """Choose the colours for the face colour of `ax`."""
    from matplotlib import rcParams
    from matplotlib.colors import to_rgb

    face = _face_of(ax)
    ink = to_rgb(rcParams["text.color"])
    if contrast(ink, face) < LEAST_CONTRAST_OF_TEXT:
        ink = max(BLACK, WHITE, key=lambda colour: contrast(colour, face))

    def visible(*candidates: str) -> RGB:
        clearest = max(map(to_rgb, candidates), key=lambda colour: contrast(colour, face))
        shades = (mixed(clearest, ink, step / 20) for step in range(21))
        return next((shade for shade in shades if contrast(shade, face) >= LEAST_CONTRAST), ink)

    return Palette(
        face=face,
        ink=ink,
        guide=next(
            shade
            for shade in (mixed(face, ink, step / 20) for step in range(8, 21))
            if contrast(shade, face) >= LEAST_CONTRAST or shade == ink
        ),
        seen=visible(BLUE, SKY_BLUE),
        absent=visible(VERMILION),
        gamma=visible(PURPLE),
        best=visible(ORANGE),
        other=visible(GREEN),
    )


def mixed(start: RGB, end: RGB, share: float) -> RGB:
    """Return the colour that lies `share` of the way from `start` to `end`."""
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(start, end, strict=True))
    return red, green, blue


def contrast(colour: RGB, other: RGB) -> float:
    """Return the contrast ratio of the Web Content Accessibility Guidelines, from 1 to 21."""
    darker, lighter = sorted((_luminance(colour), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: RGB) -> float:
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _face_of(ax: Axes) -> RGB:
    """Return what is seen behind the data: the face of the axes over that of the figure over paper."""
    from matplotlib.colors import to_rgba

    face = WHITE
    for layer in (ax.figure.get_facecolor(), ax.get_facecolor()):
        *colour, alpha = to_rgba(layer)
        red, green, blue = colour
        face = mixed(face, (red, green, blue), alpha)
    return face
