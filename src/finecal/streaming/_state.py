"""What all states share: named tensors, of which settings are given once and sums grow."""

import copy
from collections.abc import Mapping, Sequence
from typing import Self

import torch
from torch import Tensor

from .._arrays import ArrayLike, as_tensor
from .._checks import (
    as_bool_mask,
    check_mask_values,
    check_same_kind,
    check_settings_agree,
    check_state_entries,
    check_state_names,
)


class State:
    """Private: what all states share. Settings are given once, sums grow; both are named tensors.

    Sums are replaced, never changed in place, so that a `state_dict` stays as it was taken.
    """

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
        check_same_kind(self, other)
        check_state_names(self, self._collected(), other._collected(), "the other state")
        check_settings_agree(self, self._settings, other._settings)
        self._add(other._collected())
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the settings and the sums as named tensors."""
        return {**self._settings, **self._collected()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Self:
        """Replace the sums by those in the `state_dict` of a state with the same settings."""
        check_state_names(self, self.state_dict(), state_dict, "state_dict")
        given = {name: as_tensor(value, f"state_dict[{name!r}]") for name, value in state_dict.items()}
        check_settings_agree(self, self._settings, given)
        own = self._collected()
        check_state_entries(self, own, given, growing=self._growing)
        self._replace({name: given[name].to(self.device, copy=True) for name in own})
        return self

    def to(self, device: torch.device | str) -> Self:
        """Move the state to `device`."""
        self._settings = {name: value.to(device) for name, value in self._settings.items()}
        self._nothing = {name: value.to(device) for name, value in self._nothing.items()}
        self._replace({name: value.to(device) for name, value in self._collected().items()})
        return self

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        self._sums = {name: value + sums[name].to(value.device) for name, value in self._sums.items()}

    def _collected(self) -> dict[str, Tensor]:
        return self._sums

    def _replace(self, sums: dict[str, Tensor]) -> None:
        self._sums = sums


class RowState(State):
    """Private: a state that keeps a row of each sample."""

    _growing = True
    _blocks: list[dict[str, Tensor]]

    def _add(self, sums: Mapping[str, Tensor]) -> None:
        """Append a block, joined with the last one while that is no longer: few are left, and no row moves often."""
        kept, block = self._blocks, {name: sums[name].to(self.device) for name in self._blocks[0]}
        while kept and _length(kept[-1]) <= _length(block):
            block, kept = _joined([kept[-1], block]), kept[:-1]
        self._blocks = [*kept, block]

    def _collected(self) -> dict[str, Tensor]:
        if len(self._blocks) > 1:
            self._replace(_joined(self._blocks))
        return self._blocks[0]

    def _replace(self, sums: dict[str, Tensor]) -> None:
        self._blocks = [sums]


def _length(block: Mapping[str, Tensor]) -> int:
    return len(next(iter(block.values())))


def _joined(blocks: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}


def settled_mask(seen_mask: ArrayLike) -> Tensor:
    return check_mask_values(as_bool_mask(seen_mask)).clone()
