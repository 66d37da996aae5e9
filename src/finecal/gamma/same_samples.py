"""Whether two arguments hold the same samples."""

import numpy as np
import torch
from torch import Tensor

from ..evaluation.samples import Samples
from ..inputs.arrays import Mask, NumpyArray

_COLUMNS = 4
_MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, with ones and zeros that look random: a product with it spreads the bits of a number."""
_LOOKED_UP = 1024
_SUSPICIOUS = 0.5
"""Of the smaller set: a few rows may be equal by chance, or be duplicates in the data."""


class Rows:
    """Checked logits `(N, C)` and their margins `(N,)`, which tell most rows apart."""

    def __init__(self, logits: Tensor, margin: Tensor) -> None:
        self.logits, self.margin = logits.detach(), margin

    def __len__(self) -> int:
        return len(self.margin)

    def keys(self) -> NumpyArray:
        """Return a number per row, equal where rows are, from the margin and a few columns."""
        columns = np.linspace(0, self.logits.shape[1] - 1, _COLUMNS).astype(int)
        found = [self.margin, *(self.logits[:, column] for column in columns)]
        numbers = [np.ascontiguousarray(values.double().cpu().numpy() + 0.0).view(np.uint64) for values in found]
        keys = np.zeros(len(self), dtype=np.uint64)
        for bits in numbers:
            keys ^= bits
            keys *= np.uint64(_MULTIPLIER)
            keys ^= keys >> np.uint64(32)
        return keys


def count_shared(first: Rows, second: Rows) -> int:
    """Return how many rows of `second` are rows of `first`.

    One sort of the keys, if some of them are equal; whole rows are compared only where many are.
    """
    a, b = first.logits, second.logits
    if a.shape[1] != b.shape[1] or len(first) == 0 or len(second) == 0:
        return 0
    if (a.data_ptr(), a.device, a.dtype, a.shape, a.stride()) == (b.data_ptr(), b.device, b.dtype, b.shape, b.stride()):
        return len(second)
    keys, others = first.keys(), second.keys()
    if not _look_shared(keys, others):
        return 0
    order = keys.argsort()
    place = np.minimum(np.searchsorted(keys, others, sorter=order), len(keys) - 1)
    partner = order[place]
    alike = np.flatnonzero(keys[partner] == others)
    if 2 * len(alike) < min(len(first), len(second)):
        return 0
    shared = 0
    for part in torch.split(torch.from_numpy(np.stack([partner[alike], alike])), 1 << 12, dim=1):
        rows, same = (x[index.to(x.device)].cpu() for x, index in zip((a, b), part, strict=True))
        shared += int((rows == same.to(rows.dtype)).all(1).count_nonzero())
    return shared


def _look_shared(keys: NumpyArray, others: NumpyArray) -> bool:
    """Whether as many of the others as a quarter of the smaller set are among the keys, by some of them."""
    step = max(1, min(len(keys), len(others)) // _LOOKED_UP)
    some, which = np.unique(others[::step], return_inverse=True)
    place = np.minimum(np.searchsorted(some, keys), len(some) - 1)
    found = np.zeros(len(some), dtype=bool)
    found[place[some[place] == keys]] = True
    return bool(4 * step * np.count_nonzero(found[which]) >= min(len(keys), len(others)))


def same_sample_warnings(first: Samples, second: Samples, seen_mask: Mask, remedy: str) -> list[str]:
    """Return a warning if half of the smaller set, or more, are samples of the other one."""
    shared, smaller = _count(first, second, seen_mask), min(len(first), len(second))
    if shared == 0 or shared < _SUSPICIOUS * smaller:
        return []
    return [_sentence(shared, first, second, remedy)]


def same_unlabelled_warnings(seen: Samples, unlabelled: Samples, seen_mask: Mask) -> list[str]:
    """Return a warning if all unlabelled samples are held-out seen ones; some of them there do no harm."""
    shared = _count(seen, unlabelled, seen_mask)
    if shared == 0 or shared < len(unlabelled):
        return []
    remedy = "the unlabelled samples are to be of all classes, as they come where the model will be used"
    return [_sentence(shared, seen, unlabelled, remedy)]


def _count(first: Samples, second: Samples, seen_mask: Mask) -> int:
    rows = [Rows(samples.logits_tensor, samples.margin(seen_mask)) for samples in (first, second)]
    return count_shared(*rows)


def _sentence(shared: int, first: Samples, second: Samples, remedy: str) -> str:
    return (
        f"{shared} of the {len(second)} samples of {second.origin} have the very logits of samples of {first.origin}: "
        f"these are the same samples; {remedy}"
    )
