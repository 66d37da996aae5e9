"""Select positions of dense outputs, such as the pixels of a segmentation model, and note the picture of each."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from .._core.arrays import check_count, check_dim, check_flag, check_ignore_index, check_seed, shape_of
from .._core.calibrate import Layout, are_of_pictures, items_of, of_same_proportions, predict
from .._core.checks import (
    Background,
    background_indices,
    check_background,
    check_features,
    check_labels,
    labels_as_tensor,
)
from .._core.kernels import wide_dtype
from .._core.results import from_to
from .._core.samples import Samples
from .._core.warning import warn
from .._estimators.estimate import GammaEstimate
from .heads import HeadInputs

_BLOCK_BYTES = 1 << 26
"""Large enough for the allocator to give freed blocks back to the system."""
_MOST_LOST = 0.1
"""Of the positions of the background; a larger loss is warned of."""
_OF_BACKGROUND = 20
"""Positions of the background that are kept of each picture, to see what gamma does to them."""
_COUNT_IT = "leave out background=, so that it counts as a seen class, or take a smaller gamma"


class Rows:
    """Rows of numbers that come in batches, on the CPU.

    They fill large blocks, freed one by one as they are joined, so that the rows are never in memory twice.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._blocks: list[Tensor] = []
        self._count = 0
        self._alike: tuple[torch.Size, torch.dtype] | None = None

    def append(self, batch: Tensor) -> None:
        """Add a copy of a batch, since the model may reuse its memory."""
        alike = batch.shape[1:], batch.dtype
        if self._alike is not None and self._alike != alike:
            (width, dtype), (other_width, other_dtype) = self._alike, alike
            raise ValueError(
                f"rows of {self._name} have shape {tuple(width)} and dtype {dtype} in the first batches, then "
                f"{tuple(other_width)} and {other_dtype}; they must be of one model in one setting"
            )
        self._alike = alike
        size = max(1, _BLOCK_BYTES // max(1, batch[:1].nbytes))
        while batch.shape[0]:
            start = self._count % size
            if start == 0:
                self._blocks.append(torch.empty((size, *batch.shape[1:]), dtype=batch.dtype, device="cpu"))
            part = batch[: size - start]
            self._blocks[-1][start : start + part.shape[0]] = part
            self._count += part.shape[0]
            batch = batch[part.shape[0] :]

    def joined(self) -> Tensor:
        """Return all rows; only once, since the blocks are freed."""
        shape, dtype = self._alike or (torch.Size(), torch.float32)
        rows = torch.empty((self._count, *shape), dtype=dtype, device="cpu")
        start = 0
        self._blocks.reverse()
        while self._blocks:
            block = self._blocks.pop()[: self._count - start]
            rows[start : start + block.shape[0]] = block
            start += block.shape[0]
        return rows


def have_labels(labels: object, before: bool | None) -> bool:
    """Return whether a batch has labels, and refuse it if earlier batches (`before`) differ."""
    labelled = labels is not None
    if before not in (None, labelled):
        raise ValueError("some batches have labels and some have none; give all of them labels, or none")
    return labelled


class SampleRows:
    """The logits, labels and, if they are recorded, features of all samples."""

    def __init__(self, recorded: HeadInputs | None = None) -> None:
        self._logits, self._labels, self._features = Rows("logits"), Rows("labels"), Rows("features")
        self._recorded = recorded
        self._labelled: bool | None = None

    def update(self, logits: Tensor, labels: object) -> None:
        """Add a batch, and check its labels at once, so that wrong ones are not found after hours."""
        self._labelled = have_labels(labels, self._labelled)
        if self._labelled:
            own = labels_as_tensor(labels, "labels").cpu()
            self._labels.append(check_labels(own, logits.shape[0], logits.shape[1], own.device))
        self._logits.append(logits)
        if self._recorded is not None:
            self._features.append(check_features(self._recorded.pop(), logits.shape[0], logits.device))

    def samples(self) -> Samples:
        """Return all samples, with labels and features if they have these; only once."""
        labels = self._labels.joined() if self._labelled else None
        features = None if self._recorded is None else self._features.joined()
        return Samples(self._logits.joined(), labels, features=features)


class _State(Protocol):
    def update(self, logits: Any, labels: Any, /) -> Any: ...


@dataclass(frozen=True)
class Positions:
    """Which positions of dense outputs, such as the pixels of a segmentation model, are samples.

    Parameters
    ----------
    dim : int, default 1
        Where the classes are in the logits: 1 for `(B, C, H, W)` of a segmentation model, -1 for `(B, T, C)` of a token
        classifier. Labels have the shape of the logits without that dimension. Logits `(B, C, h, w)` of another size
        than the labels `(B, H, W)` are interpolated to it, bilinearly.
    ignore_index : int, optional
        The label of positions that do not count, such as 255 or -100.
    per_item : int, optional
        How many positions of each picture (each item of a batch) to draw, without replacement. Default: all.
    class_balanced : bool, default False
        Whether to draw as many positions of each class of a picture, as far as there are; needs `per_item`.
    background : int or sequence of int, optional
        Classes that are neither seen nor absent. Their positions are not drawn, and their columns are left out, as by
        `drop_classes`. Without labels their positions cannot be recognised, and are kept. The record has them as a
        sorted tuple.
    shift : int, optional
        How many positions later the label of a position's logits is: 1 for a causal language model whose labels are its
        inputs, 0 for labels of the next tokens or of the tokens themselves. Default: 0, but labels that are the inputs
        are refused, as are those of a causal language model of Hugging Face that are not seen to be the next tokens.
    seed : int, default 0
        Seed of the draw of positions, which does not depend on the size of the batches.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type or out of its range, or ``class_balanced=True`` comes without `per_item`.

    Examples
    --------
    >>> import finecal
    >>> finecal.Positions(1, ignore_index=255, per_item=1000).per_item
    1000
    """

    dim: int = 1
    _: KW_ONLY
    ignore_index: int | None = None
    per_item: int | None = None
    class_balanced: bool = False
    background: Background | None = None
    shift: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        background = None if self.background is None else background_indices(self.background).tolist()
        checked = {
            "dim": check_dim(self.dim),
            "ignore_index": check_ignore_index(self.ignore_index),
            "per_item": None if self.per_item is None else check_count(self.per_item, "per_item"),
            "class_balanced": check_flag(self.class_balanced, "class_balanced"),
            "background": None if background is None else tuple(sorted(set(background))),
            "shift": None if self.shift is None else check_count(self.shift, "shift"),
            "seed": check_seed(self.seed),
        }
        if checked["per_item"] == 0:
            raise ValueError("per_item is 0; pass how many positions of each picture to draw, or None for all")
        if checked["class_balanced"] and checked["per_item"] is None:
            raise ValueError("class_balanced=True needs per_item, the number of positions to draw from each picture")
        for name, value in checked.items():  # plain numbers, so that records are equal however they were given
            object.__setattr__(self, name, value)

    @property
    def layout(self) -> Layout:
        """Private: where the classes are, and which labels do not count."""
        return Layout(self.dim, self.ignore_index)


@runtime_checkable
class LineFrames(Protocol):
    """What `sequences.CtcFrames` is, which may stand in place of `Positions`: the frames of lines that are samples."""

    dim: int
    blank: int
    batch_first: bool

    def emptied(self) -> LineFrames:
        """Return one of the same settings, without a line."""

    def update(self, logits: Any, labels: Any = None) -> Any:
        """Add a batch."""

    def samples(self) -> Samples:
        """Return the frames."""


def check_selection(positions: object) -> Positions | LineFrames | None:
    """Return the argument of a user: a `Positions`, a `CtcFrames`, or None."""
    return positions if isinstance(positions, LineFrames) else check_positions(positions)


def check_positions(positions: object) -> Positions | None:
    """Return the argument of a user: a `Positions`, or None."""
    if positions is not None and not isinstance(positions, Positions):
        raise TypeError(
            f"positions is a {type(positions).__name__}; pass finecal.Positions(dim), such as Positions(1) for logits "
            "(B, C, H, W)"
        )
    return positions


class PositionRows:
    """The logits and labels of the selected positions, and the picture of each: a state with an `update` for batches.

    Pictures are drawn from in the order in which they come, so the size of the batches does not matter. With
    `watches_background` it keeps a few positions of the background, too, which are no samples.
    """

    def __init__(self, positions: Positions, watches_background: bool = False) -> None:
        self._positions = positions
        self._logits, self._labels, self._groups = Rows("logits"), Rows("labels"), Rows("groups")
        self._generator = torch.Generator("cpu").manual_seed(positions.seed)
        self._outside = (Rows("logits"), Rows("labels")) if watches_background else None
        self._chance = torch.Generator("cpu").manual_seed(positions.seed)
        self._items = 0
        self._labelled: bool | None = None

    def update(self, logits: Tensor, labels: object) -> None:
        """Add a batch of dense logits, and labels of their shape without the classes, or None."""
        self._labelled = have_labels(labels, self._labelled)
        if self._positions.class_balanced and not self._labelled:
            raise ValueError(
                "class_balanced=True needs labels, and the loader gives none; leave it out, or give labels"
            )
        layout = self._positions.layout
        flat = None
        if self._labelled:
            own = labels_as_tensor(labels, "labels")
            layout.check_shapes(logits, own)
            flat = own.flatten().cpu()
        start = 0
        for rows in items_of(logits, layout.dim):
            self._add_item(rows, None if flat is None else flat[start : start + len(rows)])
            start += len(rows)

    def _add_item(self, rows: Tensor, labels: Tensor | None) -> None:
        """Add positions of one picture: `(n, C)` logits, and labels on the CPU."""
        classes = rows.shape[1]
        kept = ~check_background(self._positions.background, torch.ones(classes, dtype=torch.bool, device="cpu"))
        if labels is None:
            drawn = self._drawn(torch.arange(len(rows), device="cpu"), None)
        else:
            positions = self._positions.layout.counted_indices(labels)
            own = self._positions.layout.check_range(labels[positions], classes)
            drawn = self._drawn(positions[kept[own]], own[kept[own]])
            self._labels.append((kept.cumsum(0) - 1)[labels[drawn].long()])
            if self._outside is not None:
                outside = positions[~kept[own]]
                few = outside[torch.randperm(len(outside), generator=self._chance, device="cpu")[:_OF_BACKGROUND]]
                for part, values in zip(self._outside, (rows[few.to(rows.device)], labels[few]), strict=True):
                    part.append(values)
        self._logits.append(rows[drawn.to(rows.device)][:, kept.to(rows.device)])
        self._groups.append(torch.full((len(drawn),), self._items, device="cpu"))
        self._items += 1

    def samples(self) -> Samples:
        """Return the positions, in the groups that are their pictures; only once."""
        labels = self._labels.joined() if self._labelled else None
        return Samples(self._logits.joined(), labels, groups=self._groups.joined())

    def check_background(self, seen_mask: Tensor, gamma: GammaEstimate, caller: str) -> None:
        """Warn if gamma takes many of the watched positions of the background for absent classes; only once."""
        if self._outside is not None:
            logits, labels = (part.joined() for part in self._outside)
            if len(labels):
                what = f"{caller}: positions of the background"
                background_kept(logits, labels, seen_mask.cpu(), gamma, what, _COUNT_IT)

    def _drawn(self, positions: Tensor, labels: Tensor | None) -> Tensor:
        """Return a random choice of at most `per_item` positions of a picture, in order."""
        most = self._positions.per_item
        if most is None or len(positions) <= most:
            return positions
        order = torch.randperm(len(positions), generator=self._generator, device="cpu")
        if self._positions.class_balanced and labels is not None:
            ties = torch.rand(len(order), generator=self._generator, dtype=torch.float64, device="cpu")
            order = order[(_ranks_within(labels[order]) + ties).argsort()]
        return positions[order[:most].sort().values]


def _ranks_within(labels: Tensor) -> Tensor:
    """Return for each label the number of equal labels before it."""
    counts = torch.bincount(labels)
    ranks = torch.empty_like(labels)
    by_class = labels.argsort(stable=True)
    ranks[by_class] = torch.arange(len(labels), device="cpu") - (counts.cumsum(0) - counts)[labels[by_class]]
    return ranks


def background_kept(
    logits: Tensor, labels: Tensor, seen_mask: Tensor, gamma: GammaEstimate, what: str, advice: str
) -> tuple[float, float]:
    """Return which share of positions of the background stays so without gamma and with it; warn if many are lost."""
    before, after = (float((predict(logits, seen_mask, each) == labels).double().mean()) for each in (0.0, gamma))
    if after < before - _MOST_LOST:
        warn(f"{what} are taken for absent classes with gamma: {from_to(before, after)} stay so; {advice}")
    return before, after


class AtLabelSize:
    """Passes batches on to a state, with logits of pictures interpolated to the size of their labels."""

    def __init__(self, state: _State, dim: int) -> None:
        self._state, self.dim = state, dim

    def update(self, logits: Tensor, labels: Any) -> None:
        """Pass a batch on whole, or picture by picture if its logits have to be interpolated."""
        own = None if labels is None or logits.ndim != 4 else labels_as_tensor(labels, "labels")
        if own is None or not _interpolable(logits, own, self.dim):
            self._state.update(logits, labels)
            return
        for picture, target in zip(torch.split(logits, 1), torch.split(own, 1), strict=True):
            scaled = interpolate(
                picture.to(wide_dtype(picture.dtype)), target.shape[1:], mode="bilinear", align_corners=False
            )
            self._state.update(scaled.to(picture.dtype), target)


def _interpolable(logits: Tensor, labels: Tensor, dim: int) -> bool:
    """Whether the logits are `(B, C, h, w)` of pictures whose labels are `(B, H, W)`, of the same proportions."""
    if not are_of_pictures(logits, labels, dim) or logits.shape[2:] == labels.shape[1:] or not labels.numel():
        return False
    if not of_same_proportions(logits, labels):
        raise ValueError(
            f"logits have shape {shape_of(logits)} and labels {shape_of(labels)}: pictures of other proportions; "
            "labels must be those of the pictures that the model was given"
        )
    return True
