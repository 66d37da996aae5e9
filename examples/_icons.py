"""Pictures with icons of twenty classes on textured ground, with label maps and boxes, drawn on the spot.

In a clear picture the colours are strong; in a foggy one they are faint, and there is noise.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.path import Path
from torch.nn.functional import interpolate

Grid = np.ndarray
Points = Sequence[tuple[float, float]]


def polygon(*corners: tuple[float, float]) -> Callable[[Grid, Grid], Grid]:
    path = Path([*corners, corners[0]])

    def inside(x: Grid, y: Grid) -> Grid:
        points = np.stack([x.ravel(), y.ravel()], axis=1)
        return path.contains_points(points).reshape(x.shape)

    return inside


def disc(
    x0: float = 0.0, y0: float = 0.0, radius: float = 1.0
) -> Callable[[Grid, Grid], Grid]:
    return lambda x, y: (x - x0) ** 2 + (y - y0) ** 2 < radius**2


def box(
    left: float, bottom: float, right: float, top: float
) -> Callable[[Grid, Grid], Grid]:
    return lambda x, y: (x > left) & (x < right) & (y > bottom) & (y < top)


def union(
    *shapes: Callable[[Grid, Grid], Grid],
) -> Callable[[Grid, Grid], Grid]:
    return lambda x, y: np.any([shape(x, y) for shape in shapes], axis=0)


def cut(
    shape: Callable[[Grid, Grid], Grid], hole: Callable[[Grid, Grid], Grid]
) -> Callable[[Grid, Grid], Grid]:
    return lambda x, y: shape(x, y) & ~hole(x, y)


def star_corners(points: int, inner: float) -> list[tuple[float, float]]:
    angles = np.pi / 2 + np.arange(2 * points) * np.pi / points
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return list(
        zip(radii * np.cos(angles), radii * np.sin(angles), strict=True)
    )


# Each within the square from -1 to 1, y upwards. Every second one is much like the one before it.
SHAPES = {
    "disc": disc(),
    "ring": cut(disc(), disc(radius=0.55)),
    "square": box(-0.85, -0.85, 0.85, 0.85),
    "frame": cut(box(-0.9, -0.9, 0.9, 0.9), box(-0.45, -0.45, 0.45, 0.45)),
    "cross": union(box(-0.3, -1, 0.3, 1), box(-1, -0.3, 1, 0.3)),
    "sword": union(box(-0.2, -1, 0.2, 1), box(-0.7, -0.55, 0.7, -0.2)),
    "triangle": polygon((-1, -0.8), (1, -0.8), (0, 0.95)),
    "tree": union(
        polygon((-0.9, -0.5), (0.9, -0.5), (0, 1)), box(-0.22, -1, 0.22, -0.4)
    ),
    "star": polygon(*star_corners(5, 0.42)),
    "sun": union(polygon(*star_corners(8, 0.5)), disc(radius=0.6)),
    "heart": union(
        disc(-0.46, 0.38, 0.52),
        disc(0.46, 0.38, 0.52),
        polygon((-0.93, 0.18), (0.93, 0.18), (0, -0.95)),
    ),
    "drop": union(
        disc(0, -0.38, 0.62), polygon((-0.58, -0.18), (0.58, -0.18), (0, 1))
    ),
    "arrow": union(
        polygon((-0.75, 0.15), (0.75, 0.15), (0, 1)), box(-0.25, -1, 0.25, 0.2)
    ),
    "bolt": polygon(
        (0.25, 1),
        (-0.65, -0.15),
        (-0.05, -0.15),
        (-0.25, -1),
        (0.65, 0.2),
        (0.05, 0.2),
    ),
    "moon": cut(disc(), disc(0.5, 0.2, 0.8)),
    "cup": union(
        box(-0.8, -0.8, 0.35, 0.8),
        cut(disc(0.4, 0, 0.58), disc(0.4, 0, 0.3)),
    ),
    "hourglass": union(
        polygon((-0.8, 0.95), (0.8, 0.95), (0, -0.15)),
        polygon((-0.8, -0.95), (0.8, -0.95), (0, 0.15)),
    ),
    "fish": union(
        lambda x, y: ((x + 0.25) / 0.75) ** 2 + (y / 0.6) ** 2 < 1,
        polygon((0.3, 0), (1, 0.65), (1, -0.65)),
    ),
    "crown": polygon(
        (-0.9, -0.75),
        (-0.95, 0.75),
        (-0.45, 0.05),
        (0, 0.9),
        (0.45, 0.05),
        (0.95, 0.75),
        (0.9, -0.75),
    ),
    "house": polygon(
        (-0.75, -0.9), (-0.75, 0.1), (0, 0.95), (0.75, 0.1), (0.75, -0.9)
    ),
}
# Class 0 is the background, so icon number k has the class k + 1.
CLASSES = ("background", *SHAPES)
RESOLUTION = 96


def _stencil(shape: Callable[[Grid, Grid], Grid]) -> Grid:
    """The share of each cell of a grid that the shape covers, row 0 at the top."""
    fine = (np.arange(4 * RESOLUTION) + 0.5) / (2 * RESOLUTION) - 1
    x, y = np.meshgrid(fine, -fine)
    cells = shape(x, y).reshape(RESOLUTION, 4, RESOLUTION, 4)
    return cells.mean((1, 3), dtype=np.float32)


class Pictures(NamedTuple):
    """Images in [0, 1]; the class of each pixel; boxes (x1, y1, x2, y2) and their classes for each picture."""

    images: torch.Tensor
    label_maps: torch.Tensor
    boxes: list[torch.Tensor]
    labels: list[torch.Tensor]


def draw_pictures(
    count: int,
    *,
    seed: int,
    classes: Iterable[int] = range(1, len(CLASSES)),
    labelled: Iterable[int] = range(1, len(CLASSES)),
    foggy: bool = False,
    size: int = 96,
    icons: tuple[int, int] = (2, 5),
    radii: tuple[float, float] = (0.09, 0.17),
) -> Pictures:
    """Draw pictures with some icons of the classes given; those that are not labelled are part of the background.

    The same seed gives the same pictures, whatever is labelled.
    """
    rng = np.random.default_rng(seed)
    classes, labelled = np.array(sorted(classes)), set(labelled)
    stencils = np.stack([_stencil(shape) for shape in SHAPES.values()])
    images = _grounds(rng, count, size)
    label_maps = np.zeros((count, size, size), dtype=np.int64)
    boxes, labels = [], []
    for image, label_map in zip(images, label_maps, strict=True):
        corners, kinds = [], []
        for x0, y0, radius in _places(
            rng, rng.integers(icons[0], icons[1] + 1), radii, size
        ):
            kind = int(rng.choice(classes))
            window, cover = _placed(rng, stencils[kind - 1], x0, y0, radius)
            colour = _colour(rng)[:, None, None]
            image[:, *window] += cover * (colour - image[:, *window])
            if kind in labelled:
                label_map[window][cover > 0.5] = kind
                rows, columns = (cover > 0.5).nonzero()
                top, left = window[0].start, window[1].start
                corners.append(
                    (
                        left + columns.min(),
                        top + rows.min(),
                        left + columns.max() + 1,
                        top + rows.max() + 1,
                    )
                )
                kinds.append(kind)
        boxes.append(torch.tensor(corners, dtype=torch.float32).reshape(-1, 4))
        labels.append(torch.tensor(kinds, dtype=torch.int64))
    noise = rng.standard_normal(images.shape, dtype=np.float32)
    if foggy:
        images = 0.7 + 0.35 * (images - 0.7)
    images += (0.07 if foggy else 0.03) * noise
    return Pictures(
        torch.from_numpy(images.clip(0, 1)),
        torch.from_numpy(label_maps),
        boxes,
        labels,
    )


def _grounds(rng: np.random.Generator, count: int, size: int) -> Grid:
    """Dark clouds of a few scales in a colour of their own."""
    ground = rng.uniform(0.1, 0.4, (count, 3, 1, 1)).astype(np.float32)
    for cells, strength, channels in (
        (4, 0.1, 3),
        (16, 0.07, 1),
        (48, 0.06, 1),
    ):
        cloud = rng.standard_normal(
            (count, channels, cells, cells), dtype=np.float32
        )
        cloud = interpolate(
            torch.from_numpy(cloud), size, mode="bilinear", align_corners=True
        )
        ground = ground + strength * cloud.numpy()
    return ground


def _places(
    rng: np.random.Generator,
    count: int,
    radii: tuple[float, float],
    size: int,
) -> Iterable[tuple[int, int, float]]:
    """Centres and radii of icons that do not touch; fewer than wanted where there is no more room."""
    taken: list[tuple[int, int, float]] = []
    for _ in range(8 * count):
        radius = size * rng.uniform(*radii)
        edge = int(1.45 * radius) + 1  # the corners of a turned square
        x0, y0 = rng.integers(edge, size - edge, 2)
        if all(
            max(abs(x0 - x), abs(y0 - y)) > 1.2 * (radius + other)
            for x, y, other in taken
        ):
            taken.append((int(x0), int(y0), radius))
        if len(taken) == count:
            break
    return taken


def _placed(
    rng: np.random.Generator, stencil: Grid, x0: int, y0: int, radius: float
) -> tuple[tuple[slice, slice], Grid]:
    """Where the stencil goes in a picture, turned and scaled, and how far it covers the pixels there."""
    angle = rng.uniform(-0.4, 0.4)
    edge = int(1.45 * radius) + 1
    steps = np.arange(-edge, edge + 1) / radius
    x, y = np.meshgrid(steps, steps)
    turned = np.stack(
        [
            y * np.cos(angle) - x * np.sin(angle),
            x * np.cos(angle) + y * np.sin(angle),
        ]
    )
    cells = ((turned + 1) / 2 * RESOLUTION).astype(np.int64)
    inside = ((turned > -1) & (turned < 1)).all(0)
    row, column = cells.clip(0, RESOLUTION - 1)
    window = slice(y0 - edge, y0 + edge + 1), slice(x0 - edge, x0 + edge + 1)
    return window, stencil[row, column] * inside


def _colour(rng: np.random.Generator) -> Grid:
    """A bright colour: one channel full, one weak, one in between."""
    channels = (
        rng.uniform(0.85, 1),
        rng.uniform(0.2, 0.6),
        rng.uniform(0.3, 1),
    )
    return rng.permutation(np.array(channels, dtype=np.float32))
