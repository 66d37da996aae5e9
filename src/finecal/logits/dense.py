"""Logits with the classes along any dimension, such as `(B, C, H, W)` of a segmentation model, as rows of classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..inputs.arrays import Labels, Logits, shape_of
from ..inputs.checks import as_logits, check_index_dtype, check_index_range, check_same_device, labels_as_tensor
from ..inputs.numbers import check_dim, check_ignore_index

_PIECE_ELEMENTS = {"cpu": 1 << 22}
_PIECE_ELEMENTS_ELSEWHERE = 1 << 26
_WAY_OUT = "map them to class indices, or pass as ignore_index the label of positions that do not count"


def per_class_view(values: Tensor, ndim: int, dim: int) -> Tensor:
    """Return `(C,)` values so that they broadcast along dimension `dim` of logits with `ndim` dimensions."""
    after = -1 - dim if dim < 0 else ndim - 1 - dim
    return values.reshape(-1, *[1] * after) if after else values


def rows_of(logits: Tensor, dim: int) -> Iterator[Tensor]:
    """Yield `(n, C)` views of the logits, which hold all positions in order: one view, or one for each picture.

    Only logits whose strides allow no view are copied.
    """
    rows = logits.movedim(dim, -1)
    if rows.is_contiguous() or rows.ndim == 2:
        yield rows.reshape(-1, rows.shape[-1])
    else:
        yield from items_of(logits, dim)


def items_of(logits: Tensor, dim: int) -> Iterator[Tensor]:
    """Yield the logits of each item of a batch, such as a picture, as `(n, C)`: views, wherever strides allow one.

    Items lie along the first dimension. If the classes do, there is one item.
    """
    rows = logits.movedim(dim, -1)
    for item in [rows] if dim in (0, -rows.ndim) else rows:
        yield item.movedim(-1, 0).reshape(rows.shape[-1], -1).T


class Layout(NamedTuple):
    """Where the classes are in dense logits, and which labels do not count.

    Attributes
    ----------
    dim : int
        The dimension of the classes.
    ignore_index : int or None
        The label of positions that do not count.
    """

    dim: int = -1
    ignore_index: int | None = None

    @classmethod
    def from_arguments(cls, dim: int, ignore_index: int | None) -> Self:
        """Check the arguments of a user."""
        return cls(check_dim(dim), check_ignore_index(ignore_index))

    def pieces(self, logits: Logits, labels: Labels) -> Iterator[tuple[Logits, Labels]]:
        """Yield `(n, C)` logits and their `(n,)` labels, without the positions to be ignored.

        Rows that need no change are passed on as they came. Labels are as the logits without their classes: `(B, H, W)`
        for `(B, C, H, W)`. A piece of dense logits is a few megabytes of them: a view, or a copy of the positions that
        count.
        """
        x = as_logits(logits, any_batch=True, dim=self.dim)
        y = labels_as_tensor(labels, "labels")
        is_rows = x.ndim == 2 and self.dim in (-1, 1)
        if is_rows and (self.ignore_index is None or y.shape != x.shape[:1]):
            yield logits, labels
            return
        self.check_shapes(x, y)
        if y.numel() == 0:
            yield x.movedim(self.dim, -1).reshape(0, x.shape[self.dim]), y.flatten()
            return
        start = 0
        size = max(1, _PIECE_ELEMENTS.get(x.device.type, _PIECE_ELEMENTS_ELSEWHERE) // x.shape[self.dim])
        flat = y.flatten()
        for rows in rows_of(x, self.dim):
            own = flat[start : start + rows.shape[0]]
            start += rows.shape[0]
            for some, labels_here in zip(torch.split(rows, size), torch.split(own, size), strict=True):
                index = self.counted_indices(labels_here)
                if len(index) < len(some):
                    some, labels_here = _at(some, index), labels_here[index]
                yield some, self.check_range(labels_here, x.shape[self.dim])

    def counted_indices(self, labels: Tensor) -> Tensor:
        """Return the indices of `(n,)` labels that count."""
        if self.ignore_index is None:
            return torch.arange(labels.shape[0], device=labels.device)
        return (~are_ignored(labels, self.ignore_index)).nonzero().squeeze(1)

    def check_range(self, labels: Tensor, num_classes: int) -> Tensor:
        """Labels that count, `(n,)`, are class indices; returned as int64."""
        return check_index_range(labels, num_classes, "labels", "number of classes of the logits", _WAY_OUT)

    def check_shapes(self, logits: Tensor, labels: Tensor) -> None:
        """Labels are integers, one for each position, on the device of the logits."""
        if labels.numel() > 0:
            check_index_dtype(labels, "labels")
        shape = shape_without(logits, self.dim)
        if labels.shape != shape:
            raise ValueError(
                f"labels have shape {shape_of(labels)} for logits of shape {shape_of(logits)} with classes along "
                f"dim={self.dim}; expected {tuple(shape)}, one label per position{_hint(logits, labels, self.dim)}"
            )
        check_same_device(labels, logits.device)


def are_ignored(labels: Tensor, ignore_index: int) -> Tensor:
    """Return which labels are `ignore_index`, as int64: torch would wrap it round to what a narrow dtype holds."""
    return labels.to(torch.int64) == ignore_index


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """Return rows at indices, a copy that keeps the stride of the class dimension (kernels are faster then)."""
    return rows.T.index_select(1, index).T if rows.stride(0) < rows.stride(1) else rows[index]


def _hint(logits: Tensor, labels: Tensor, dim: int) -> str:
    """Return advice for labels of another shape than that of the logits without their classes."""
    if (fits := next((d for d in range(logits.ndim) if shape_without(logits, d) == labels.shape), None)) is not None:
        return f"; if the classes are along dimension {fits}, pass dim={fits}"
    if labels.shape == logits.shape:
        return f"; for one-hot labels use labels.argmax({dim})"
    if labels.ndim == logits.ndim and labels.shape[dim] == 1:
        return f"; take the dimension of size 1 out: labels.squeeze({dim})"
    if are_of_pictures(logits, labels, dim) and of_same_proportions(logits, labels):
        size = tuple(labels.shape[1:])
        return (
            "; for a model whose logits are of another resolution, bring them to the size of the labels: "
            f"torch.nn.functional.interpolate(logits, {size}, mode='bilinear')"
        )
    return ""


def are_of_pictures(logits: Tensor, labels: Tensor, dim: int) -> bool:
    """Whether logits are `(B, C, h, w)`, and labels `(B, H, W)`."""
    return logits.ndim == 4 and dim in (1, -3) and labels.ndim == 3 and len(labels) == len(logits)


def of_same_proportions(logits: Tensor, labels: Tensor) -> bool:
    """Whether pictures `(B, C, h, w)` and `(B, H, W)` have the same proportions, to within a cell."""
    (height, width), (full_height, full_width) = logits.shape[2:], labels.shape[1:]
    return abs(height * full_width - width * full_height) <= max(full_height, full_width)


def shape_without(logits: Tensor, dim: int) -> tuple[int, ...]:
    """Return the shape of the logits without their classes."""
    place = dim % logits.ndim
    return (*logits.shape[:place], *logits.shape[place + 1 :])
