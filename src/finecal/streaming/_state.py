"""Moments of each class's logit, from batches."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from itertools import starmap
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, as_tensor, check_device, dtype_name, shape_of
from .._core.calibrate import Layout
from .._core.checks import as_bool_mask, check_mask_values, check_only_seen, check_scores
from .._core.kernels import map_row_chunks, tile_rows, tiles
from .._core.samples import Samples, samples_of


class State:
    """Settings, given once, and sums, which grow: both named tensors, replaced and never changed in place."""

    _growing = False
    """Whether the sums have a row per sample."""
    _sums: dict[str, Tensor]

    def __init__(
        self, seen_mask: Tensor, sums: Mapping[str, Tensor], settings: Mapping[str, Tensor] | None = None
    ) -> None:
        device = seen_mask.device
        self._settings = {"seen_mask": seen_mask} | {k: value.to(device) for k, value in (settings or {}).items()}
        self._nothing = {name: value.to(device, copy=True) for name, value in sums.items()}
        self._replace(self._nothing)

    @property
    def seen_mask(self) -> Tensor:
        """True for the seen classes."""
        return self._settings["seen_mask"]

    @property
    def device(self) -> torch.device:
        """Where the sums are kept."""
        return self.seen_mask.device

    def emptied(self) -> Self:
        """Return another state with the same settings and no samples: for a part of the data, to be merged."""
        other = copy.copy(self)
        other._replace(self._nothing)
        return other

    def merge(self, other: Self) -> Self:
        """Add the samples of `other`, a state with the same settings, which stays as it is."""
        if type(other) is not type(self):
            name = type(self).__name__
            raise TypeError(f"other is a {type(other).__name__}; a {name} can be merged with a {name} only")
        check_state_names(self, self._current_sums(), other._current_sums(), "the other state")
        check_settings_agree(self, self._settings, other._settings)
        self._add(other._current_sums())
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the settings and the sums as named tensors."""
        return {**self._settings, **self._current_sums()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Replace the sums by those in the `state_dict` of a state with the same settings."""
        check_state_names(self, self.state_dict(), state_dict, "state_dict")
        given = {name: as_tensor(value, f"state_dict[{name!r}]") for name, value in state_dict.items()}
        check_settings_agree(self, self._settings, given)
        own = self._current_sums()
        check_state_entries(self, own, given, growing=self._growing)
        self._replace({name: given[name].to(self.device, copy=True) for name in own})
        return self

    def to(self, device: torch.device | str) -> Self:
        """Move the state to `device`."""
        device = check_device(device)
        self._settings = {name: value.to(device) for name, value in self._settings.items()}
        self._nothing = {name: value.to(device) for name, value in self._nothing.items()}
        self._replace({name: value.to(device) for name, value in self._current_sums().items()})
        return self

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        self._sums = {name: value + sums[name].to(value.device) for name, value in self._sums.items()}

    def _current_sums(self) -> dict[str, Tensor]:
        return self._sums

    def _replace(self, sums: dict[str, Tensor]) -> None:
        self._sums = sums


class LabelledState(State):
    """Private: a state of labelled samples, or of the positions of dense outputs."""

    def __init__(
        self,
        seen_mask: Tensor,
        sums: Mapping[str, Tensor],
        settings: Mapping[str, Tensor] | None = None,
        *,
        layout: Layout,
    ) -> None:
        super().__init__(seen_mask, sums, settings)
        self._layout = layout

    @property
    def dim(self) -> int:
        """Where the classes are in dense logits."""
        return self._layout.dim

    @property
    def ignore_index(self) -> int | None:
        """The label of positions that do not count."""
        return self._layout.ignore_index

    def update(self, logits: Logits | Samples, labels: Labels | None = None) -> Self:
        """Add a batch: `(B, C)` logits with `(B,)` labels, or dense logits with labels of their shape without `dim`.

        A `Samples` in their place is of rows. All are checked as by the function of the same purpose. After an error
        the state is as it was.
        """
        before = vars(self).copy()
        try:
            for samples in self._pieces(logits, labels):
                self._add_samples(samples)
        except BaseException:
            vars(self).update(before)
            raise
        return self

    def _pieces(self, logits: Logits | Samples, labels: Labels | None) -> Iterable[Samples]:
        """Return the rows of a batch, their labels checked."""
        if labels is None or isinstance(logits, Samples):
            return [samples_of(logits, labels)]
        return starmap(Samples, self._layout.pieces(logits, labels))

    @staticmethod
    def _arrays(logits: Logits | Samples, labels: Labels | None) -> tuple[Logits, Labels]:
        """Return the logits and the labels of a batch."""
        if labels is None or isinstance(logits, Samples):
            samples = samples_of(logits, labels)
            return samples.logits_tensor, samples.labels_tensor
        return logits, labels

    def _add_samples(self, samples: Samples) -> None:
        """Add labelled samples; the values of their logits are checked here."""
        raise NotImplementedError


class RowState(LabelledState):
    """Private: a state that keeps a row of each sample."""

    _growing = True
    _blocks: list[dict[str, Tensor]]

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        """Append a block, joined with the last one while that is no longer: few are left, and no row moves often."""
        kept, block = self._blocks, {name: sums[name].to(self.device) for name in self._blocks[0]}
        while kept and _length(kept[-1]) <= _length(block):
            block, kept = _concatenate([kept[-1], block]), kept[:-1]
        self._blocks = [*kept, block]

    def _current_sums(self) -> dict[str, Tensor]:
        if len(self._blocks) > 1:
            self._replace(_concatenate(self._blocks))
        return self._blocks[0]

    def _replace(self, sums: dict[str, Tensor]) -> None:
        self._blocks = [sums]


def _length(block: Mapping[str, Tensor]) -> int:
    return len(next(iter(block.values())))


def _concatenate(blocks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def copy_checked_mask(seen_mask: Mask) -> Tensor:
    return check_mask_values(as_bool_mask(seen_mask)).clone()


def check_settings_agree(state: object, own: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    """The same seen classes, bins and so on."""
    for key, value in own.items():
        if not torch.equal(value, others[key].to(value.device)):
            raise ValueError(
                f"{key} differs between the two states; construct both {type(state).__name__} with the same {key}"
            )


def check_state_entries(
    state: object, own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, growing: bool
) -> None:
    """Entries of a `state_dict` have the state's dtypes and shapes; in growing states, one row per sample."""
    name = type(state).__name__
    for key, value in own.items():
        loaded = given[key]
        shape = (given[next(iter(own))].numel(),) if growing else value.shape
        margins = growing and value.is_floating_point() and loaded.dtype in (torch.float32, torch.float64)
        if (loaded.dtype != value.dtype and not margins) or loaded.shape != shape:
            raise ValueError(
                f"state_dict has {key} of shape {shape_of(loaded)} and dtype {dtype_name(loaded)}; this {name} needs "
                f"shape {tuple(shape)} and dtype {dtype_name(value)}"
            )


def check_state_names(state: object, own: Iterable[str], given: Iterable[str], what: str) -> None:
    if not isinstance(given, Mapping):
        raise TypeError(f"{what} is a {type(given).__name__}; pass what state_dict() returned")
    if set(given) != set(own):
        raise ValueError(
            f"{what} has the entries {sorted(map(str, given))}; this {type(state).__name__} has {sorted(own)}"
        )


class ClassMoments(NamedTuple):
    """Statistics of each class's logit; made by `ClassSums`.

    Attributes
    ----------
    loc, scale : (C,) float64
        Mean and standard deviation (variance divided by the number of samples, not by one less); NaN without samples.
    counts : (C,) int64
        Number of samples.
    """

    loc: Tensor
    scale: Tensor
    counts: Tensor


class ClassSums(LabelledState):
    r"""Mean and standard deviation of each class's logit, over seen samples of other classes.

    .. math:: \mu_c = \langle z_c \rangle_{y \in S,\, y \ne c}, \qquad
              \sigma_c^2 = \langle (z_c - \mu_c)^2 \rangle_{y \in S,\, y \ne c}

    -inf logits are left out. `O(NC)` time, `O(C)` memory. Means and sums of squared deviations are merged: Chan, Golub
    and LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 1983.

    Parameters
    ----------
    seen_mask, dim, ignore_index
        As in `AccuracySums`, with its errors.

    Examples
    --------
    >>> from finecal.streaming import ClassSums
    >>> state = ClassSums([True, True, False]).update([[9.0, 1, 2], [2, 8, 4]], [0, 1])
    >>> state.compute().loc
    tensor([2., 1., 3.], dtype=torch.float64)
    """

    def __init__(self, seen_mask: Mask, *, dim: int = -1, ignore_index: int | None = None) -> None:
        mask = copy_checked_mask(seen_mask)
        zero = torch.zeros_like(mask, dtype=torch.float64)
        sums = {"count": zero.long(), "mean": zero, "deviation": zero}
        super().__init__(mask, sums, layout=Layout.from_arguments(dim, ignore_index))

    def _add_samples(self, samples: Samples) -> None:
        x, y, mask = samples.logits_tensor, samples.labels_tensor, samples.check_mask(self.seen_mask)
        check_scores(x, x.amax(1))
        check_only_seen(y, mask, "ClassSums")
        for sums in zip(*map_row_chunks(_moments_of_tiles, x, y), strict=True):
            self._add(dict(zip(self._sums, sums, strict=True)))

    def compute(self) -> ClassMoments:
        """Return the moments of all samples so far."""
        count = self._sums["count"]
        loc = self._sums["mean"].masked_fill(count == 0, torch.nan)
        return ClassMoments(loc, (self._sums["deviation"] / count).sqrt(), count.clone())

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        count, mean, deviation = (self._sums[name] for name in ("count", "mean", "deviation"))
        new, new_mean, new_deviation = (sums[name].to(self.device) for name in ("count", "mean", "deviation"))
        total = count + new
        share = new.double() / total.clamp(min=1)
        distance = new_mean - mean
        deviation = deviation + new_deviation + distance.square() * share * count
        # The nearer mean is moved, so that a state merged into an empty one is copied exactly.
        merged = torch.where(share < 0.5, mean + distance * share, new_mean - distance * (1 - share))
        self._sums = {"count": total, "mean": torch.where(new > 0, merged, mean), "deviation": deviation}


def _moments_of_tiles(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Return count, mean and sum of squared deviations of each column of each tile, `(tiles, C)` each."""
    blocks = zip(tiles(logits, torch.float64, writable=True), torch.split(labels, tile_rows(logits)), strict=True)
    parts = [_moments_without_own(rows, own.unsqueeze(1), scratch) for (rows, scratch), own in blocks]
    return tuple(torch.stack(column) for column in zip(*parts, strict=True))


def _moments_without_own(rows: Tensor, own: Tensor, scratch: Tensor | None) -> tuple[Tensor, ...]:
    """Return count, mean and sum of squared deviations of each column of a writable tile, less own and -inf logits."""
    ones = rows.new_ones(rows.shape[0])
    rows.scatter_(1, own, 0)
    count = rows.shape[0] - torch.bincount(own.squeeze(1), minlength=rows.shape[1])
    total = ones @ rows
    masked = None
    if not bool(total.isfinite().all()):
        masked = rows == -torch.inf
        count = count - masked.sum(0)
        total = ones @ rows.masked_fill_(masked, 0)
    mean = total / count.clamp(min=1)
    rows.sub_(mean).scatter_(1, own, 0)
    if masked is not None:
        rows.masked_fill_(masked, 0)
    return count, mean, ones @ torch.mul(rows, rows, out=scratch)
