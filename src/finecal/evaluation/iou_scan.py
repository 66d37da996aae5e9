"""One checked pass over logits of any shape: at which gamma the prediction of a position changes, from what to what."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.checks import (
    as_logits,
    check_mask,
    check_mask_values,
    check_scores,
    labels_as_tensor,
)
from ..logits.dense import Layout, are_ignored, rows_of
from ..logits.reductions import margin_of
from ..logits.tiles import wide_dtype
from ..logits.torch_kernels import winners

_POSITIONS = {"cpu": 1 << 17}
_POSITIONS_ELSEWHERE = 1 << 22
"""In a piece, which takes about 40 bytes of each."""


class Positions(NamedTuple):
    """What mean IoU needs to know of positions: each is predicted `absent` if its margin is below gamma, else `seen`.

    `(n,)` each; classes are integers of any width.
    """

    margin: Tensor
    seen: Tensor
    absent: Tensor
    label: Tensor

    def predicted(self, gamma: float) -> Tensor:
        """Return the class of each position at gamma."""
        return torch.where(self.margin.double() < gamma, self.absent, self.seen)

    @property
    def first(self) -> Tensor:
        """The class of each position where gamma is below all finite margins."""
        return torch.where(self.margin == -math.inf, self.absent, self.seen)

    @classmethod
    def joined(cls, pieces: Sequence[Positions], logits: Tensor) -> Positions:
        """Join pieces of the positions of these logits; there may be none."""
        nothing = logits.new_empty(0, dtype=wide_dtype(logits.dtype))
        none = cls(nothing, *nothing.new_empty((3, 0), dtype=torch.int16))
        return cls(*map(torch.cat, zip(*pieces, strict=True))) if pieces else none

    def compact(self, num_classes: int) -> Positions:
        """Return them with classes in as few bytes as hold all of these."""
        narrow = torch.int16 if num_classes <= torch.iinfo(torch.int16).max else torch.int32
        return Positions(self.margin, *(classes.to(narrow) for classes in self[1:]))


class DenseInput(NamedTuple):
    """Checked logits and labels of any shape, of which nothing has been read yet."""

    logits: Tensor
    labels: Tensor
    mask: Tensor
    layout: Layout

    @classmethod
    def checked(cls, logits: Logits, labels: Labels, seen_mask: Mask, layout: Layout) -> DenseInput:
        """Check types, shapes and devices."""
        x = as_logits(logits, any_batch=True, dim=layout.dim).detach()
        y = labels_as_tensor(labels, "labels")
        mask = check_mask_values(check_mask(seen_mask, x.shape[layout.dim], x.device, x.shape))
        layout.check_shapes(x, y)
        return cls(x, y.flatten(), mask, layout)

    @property
    def num_classes(self) -> int:
        return self.mask.shape[0]

    def pieces(self) -> Iterator[Positions]:
        """Yield the positions that count, some 100,000 at a time, in order: the logits are read once, and not copied.

        Values are checked on the way.
        """
        start = 0
        size = _POSITIONS.get(self.logits.device.type, _POSITIONS_ELSEWHERE)
        for view in rows_of(self.logits, self.layout.dim):
            for rows in torch.split(view, size) if len(view) else ():
                yield self._positions(rows, start)
                start += len(rows)

    def _positions(self, rows: Tensor, start: int) -> Positions:
        label = self.labels[start : start + len(rows)]
        best = winners(rows, self.mask)
        top = torch.maximum(best.seen_max, best.absent_max)
        positions = Positions(margin_of(best.seen_max, best.absent_max), best.seen, best.absent, label)
        if self.layout.ignore_index is not None:
            ignored = are_ignored(label, self.layout.ignore_index)
            if bool(ignored.any()):
                top = top.masked_fill(ignored, 0.5)  # which no check objects to
                positions = Positions(*(column[~ignored] for column in positions))
        check_scores(rows, top, first_row=start)
        return positions._replace(label=self.layout.check_range(positions.label, self.num_classes))
