"""Gamma on logits, whichever dimension has the classes: add it, predict with it, and drop classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, Self, SupportsFloat, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .arrays import ArrayT, Labels, Logits, Mask, NumpyArray, as_type_of, check_dim, check_ignore_index, shape_of
from .checks import (
    Background,
    as_logits,
    check_background,
    check_gamma,
    check_index_dtype,
    check_index_range,
    check_labels,
    check_mask,
    check_mask_values,
    check_same_device,
    labels_as_tensor,
)
from .kernels import wide_dtype
from .reductions import winning_classes

_PIECE_ELEMENTS = {"cpu": 1 << 22}
_PIECE_ELEMENTS_ELSEWHERE = 1 << 26
_WAY_OUT = "map them to class indices, or pass as ignore_index the label of positions that do not count"


def per_class_view(values: Tensor, ndim: int, dim: int) -> Tensor:
    """Return `(C,)` values so that they broadcast along dimension `dim` of logits with `ndim` dimensions."""
    after = -1 - dim if dim < 0 else ndim - 1 - dim
    return values.reshape(-1, *[1] * after) if after else values


def rows_of(logits: Tensor, dim: int) -> Iterator[Tensor]:
    """Yield `(n, C)` rows of all positions in order: one view, or one per picture; copies only if strides need them."""
    rows = logits.movedim(dim, -1)
    if rows.is_contiguous() or rows.ndim == 2:
        yield rows.reshape(-1, rows.shape[-1])
    else:
        yield from items_of(logits, dim)


def items_of(logits: Tensor, dim: int) -> Iterator[Tensor]:
    """Yield each item of a batch (first dimension) as `(n, C)`; one item if the first dimension has the classes."""
    rows = logits.movedim(dim, -1)
    for item in [rows] if dim in (0, -rows.ndim) else rows:
        yield item.movedim(-1, 0).reshape(rows.shape[-1], -1).T


class Layout(NamedTuple):
    """Dimension of the classes in dense logits (`dim`), and label of positions that do not count (`ignore_index`)."""

    dim: int = -1
    ignore_index: int | None = None

    @classmethod
    def from_arguments(cls, dim: int, ignore_index: int | None) -> Self:
        """Check the arguments of a user."""
        return cls(check_dim(dim), check_ignore_index(ignore_index))

    def pieces(self, logits: Logits, labels: Labels) -> Iterator[tuple[Logits, Labels]]:
        """Yield `(n, C)` logits, a few megabytes at a time, and `(n,)` labels of the positions that count.

        Rows that need no change are passed on as they came, and pieces are views unless positions are left out.
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
        shape = shape_without(logits, self.dim)
        if labels.shape != shape:
            raise ValueError(
                f"labels have shape {shape_of(labels)} for logits of shape {shape_of(logits)} with classes along "
                f"dim={self.dim}; expected {tuple(shape)}, one label per position{_hint(logits, labels, self.dim)}"
            )
        if labels.numel() > 0:
            check_index_dtype(labels, "labels")
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


_FEW_POSITIONS = 64
_COPIED_ROWS = 4096
"""An item of so few positions takes less time to copy, with others, than to look at by itself."""


@overload
def calibrate_logits(logits: Tensor, seen_mask: Mask, gamma: SupportsFloat, *, dim: int = -1) -> Tensor: ...
@overload
def calibrate_logits(
    logits: NumpyArray | Sequence[Any], seen_mask: Mask, gamma: SupportsFloat, *, dim: int = -1
) -> NumpyArray: ...
def calibrate_logits(logits: Logits, seen_mask: Mask, gamma: SupportsFloat, *, dim: int = -1) -> Tensor | NumpyArray:
    r"""Add gamma to the logits of the absent classes.

    .. math:: \tilde z_c = z_c + \gamma \, [c \in U]

    Parameters
    ----------
    logits : (..., C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes, with any other dimensions. Gradients flow through; NaN passes through.
    seen_mask : (C,) bool
        True for the classes of the fine-tuning data; the others are absent.
    gamma : float, 0-d tensor or GammaEstimate
        In units of the logits. Positive values favour the absent classes.
    dim : int, default -1
        Dimension of the classes: 1 for the logits `(B, C, H, W)` of a segmentation model.

    Returns
    -------
    of the type, shape, dtype, device and memory format of `logits`
        Added in float32 or wider and rounded once. A sum that the dtype cannot hold is inf, and a gamma below its
        rounding step is lost: estimators warn of both.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `seen_mask` not boolean, `gamma` not a number, or `dim` not an integer.
    ValueError
        If shapes do not match, `logits` has no dimension `dim`, `seen_mask` has no seen or no absent class, or `gamma`
        is not finite in the dtype of the logits.

    Notes
    -----
    Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024, section 5. The logits are neither copied nor
    transposed. Compiles with ``fullgraph=True``; never synchronises a GPU.

    Examples
    --------
    >>> import torch, finecal
    >>> seen_mask = torch.tensor([True, True, False])
    >>> finecal.calibrate_logits(torch.tensor([[4.0, 1.0, 3.0]]), seen_mask, gamma=1.5)
    tensor([[4.0000, 1.0000, 4.5000]])
    """
    dim = check_dim(dim)
    x = as_logits(logits, any_batch=True, dim=dim)
    x = logits if isinstance(logits, Tensor) else x  # a subclass of Tensor as it is, with what it carries along
    mask = check_mask(seen_mask, x.shape[dim], x.device, x.shape)
    shift = check_gamma(gamma, x.device, x.dtype)
    absent = per_class_view(absent_indicator(mask, x.dtype), x.ndim, dim)
    result: Tensor | NumpyArray = as_type_of(logits)(add_gamma(x, absent, shift))
    return result


@overload
def predict(logits: Tensor, seen_mask: Mask, gamma: SupportsFloat = 0.0, *, dim: int = -1) -> Tensor: ...
@overload
def predict(
    logits: NumpyArray | Sequence[Any], seen_mask: Mask, gamma: SupportsFloat = 0.0, *, dim: int = -1
) -> NDArray[np.int64]: ...
def predict(logits: Logits, seen_mask: Mask, gamma: SupportsFloat = 0.0, *, dim: int = -1) -> Tensor | NumpyArray:
    r"""Predict a class for each sample, or each pixel, with gamma added to the absent logits.

    .. math:: \hat y = \begin{cases}
        \arg\max_{c \in U} z_c & \text{if } \max_{c \in S} z_c - \max_{c \in U} z_c < \gamma \\
        \arg\max_{c \in S} z_c & \text{otherwise}
        \end{cases}

    with the lowest index at a tie within a group. This equals ``calibrate_logits(...).argmax(dim)`` except at exact
    ties between the groups, where the seen class wins, and within one rounding step of the logits' dtype.

    Parameters
    ----------
    logits, seen_mask, gamma, dim
        As in `calibrate_logits`, with its errors; gamma is 0 by default.

    Returns
    -------
    (...) int64 of the type and device of `logits`
        Class indices in ``[0, C)``, in the shape of `logits` without `dim`; any class where there is NaN.

    Notes
    -----
    `O(NC)` time, no memory beyond the result that grows with N. Compiles with ``fullgraph=True``; never synchronises a
    GPU.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> seen_mask = np.array([True, True, False])
    >>> finecal.predict(np.array([[4.0, 1.0, 3.0]]), seen_mask, gamma=1.5)
    array([2])
    >>> finecal.predict(np.zeros((2, 3, 4, 4)), seen_mask, 1.5, dim=1).shape
    (2, 4, 4)
    """
    dim = check_dim(dim)
    x = as_logits(logits, any_batch=True, dim=dim).detach()
    mask = check_mask(seen_mask, x.shape[dim], x.device, x.shape)
    shift = check_gamma(gamma, x.device)
    parts = [winning_classes(rows, mask, shift) for rows in _rows(x, dim)]
    classes = parts[0] if len(parts) == 1 else torch.cat(parts)
    result: Tensor | NumpyArray = as_type_of(logits)(classes.reshape(shape_without(x, dim)))
    return result


def _rows(logits: Tensor, dim: int) -> Iterable[Tensor]:
    """Return all positions as `(n, C)` rows, in order: views, or small copies where an item has few positions."""
    last, classes = logits.movedim(dim, -1), logits.shape[dim]
    if dim in (-1, logits.ndim - 1) or last.is_contiguous() or torch.compiler.is_compiling():
        return [last.reshape(-1, classes)]
    positions = last[0].numel() // classes
    if dim in (0, -logits.ndim) or positions > _FEW_POSITIONS:
        return rows_of(logits, dim)
    return (part.reshape(-1, classes) for part in torch.split(last, _COPIED_ROWS // positions))


def add_gamma(logits: Tensor, absent: Tensor, gamma: float | Tensor) -> Tensor:
    """Add gamma where `absent` (from `absent_indicator`) is 1, in float32 or wider, rounded once."""
    return (logits + gamma * absent).to(logits.dtype)


def absent_indicator(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """1 on absent columns and 0 on seen ones, in the dtype in which gamma is added to logits of `dtype`."""
    return (~mask).to(wide_dtype(dtype))


class KeptClasses(NamedTuple, Generic[ArrayT]):
    """The M samples and K classes that `drop_classes` keeps, of the type and device of the logits.

    Attributes
    ----------
    logits : (M, K) tensor or array
    labels : (M,) int64, or None
        Class indices in ``[0, K)``, the columns of `logits`.
    seen_mask : (K,) bool
    rows : (M,) int64
        Indices of the samples that are kept: ``groups[rows]`` are their groups.
    """

    logits: ArrayT
    labels: ArrayT | None
    seen_mask: ArrayT
    rows: ArrayT


def drop_classes(logits: Logits, labels: Labels | None, seen_mask: Mask, classes: Background) -> KeptClasses[Any]:
    """Take out classes that are neither seen nor absent, such as the background of a segmentation model or a detector.

    Gamma weighs absent against seen classes and is not added to a background class: estimate it without the column of
    the background and without the samples that are labelled with it.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16
        Scores before softmax over all classes.
    labels : (N,) int, or None
        Class indices in ``[0, C)``. Without labels, all samples are kept.
    seen_mask : (C,) bool
        True for the seen classes, and for those to be dropped.
    classes : int or sequence of int
        Indices of the classes to drop.

    Returns
    -------
    KeptClasses
        ``logits, labels, seen_mask, rows``, copies with the kept classes numbered anew. To calibrate, keep the mask of
        all classes: ``AdditiveBias(seen_mask, gamma)``.

    Raises
    ------
    TypeError
        If `logits` is not floating point, `labels` or `classes` not integer, or `seen_mask` not boolean.
    ValueError
        If shapes do not match, `seen_mask` is False for one of `classes`, or no seen or no absent class is left.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> seen_mask = [True, True, False]  # a background, a seen and an absent class
    >>> logits = np.array([[5.0, 1.0, 0.0], [0.0, 4.0, 1.0], [0.0, 3.0, 2.0]])
    >>> kept = finecal.logits.drop_classes(logits, [0, 1, 2], seen_mask, 0)
    >>> kept.logits.tolist(), kept.labels, kept.seen_mask, kept.rows
    ([[4.0, 1.0], [3.0, 2.0]], array([0, 1]), array([ True, False]), array([1, 2]))
    """
    x = as_logits(logits)
    mask = check_mask_values(check_mask(seen_mask, x.shape[1], x.device))
    if classes is None:
        raise TypeError("classes is None; pass the index of the class to drop, or a list of them")
    dropped = check_background(classes, mask, "classes")
    y = None if labels is None else check_labels(labels, x.shape[0], x.shape[1], x.device)
    same = as_type_of(logits)
    columns = (~dropped).nonzero().squeeze(1)
    rows = torch.arange(x.shape[0], device=x.device) if y is None else (~dropped[y]).nonzero().squeeze(1)
    kept = check_mask_values(mask[columns])
    renumbered = None if y is None else same(((~dropped).cumsum(0) - 1)[y[rows]])
    return KeptClasses(same(x[rows][:, columns]), renumbered, same(kept), same(rows))
