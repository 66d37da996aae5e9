"""Classes that are masked by a large negative number in place of -inf."""

import math

from torch import Tensor

from ..inputs.checks import named_classes

_LOOKED_AT = 1 << 15
"""Logits, of rows from all over the data."""
_LOWEST = -50.0
"""Logits above this are no mask, which is told by one look at the smallest."""
_FAR = 10.0
"""Times the spread of the other logits, that a mask lies below them."""


def mask_warnings(logits: Tensor, name: str = "logits") -> list[str]:
    """Return a warning if many of the checked logits lie together, far below all others.

    The number may be one and the same, or have the logit added to it. Seen and absent maxima are then as far apart as
    the mask is low, in rows that mask a whole group, and gamma is a matter of the mask.
    """
    n, classes = logits.shape
    height = max(1, min(n, _LOOKED_AT // classes))
    rows = logits[:: -(-n // height)] if n else logits
    finite = rows.isfinite()
    if not bool((finite & (rows < _LOWEST)).any()):
        return []
    ordered = rows[finite].double().sort().values
    gaps = ordered.diff()
    if not bool(gaps.any()):
        return []
    last = int(gaps.argmax())
    (lowest, end), (low, high) = (ordered[[0, last]].tolist(), ordered[[last + 1, -1]].tolist())
    gap = low - end
    together = (high - low) * _FAR < gap and (end - lowest) * _FAR < gap and end < _LOWEST and high > low
    if not together or 2 * (last + 1) < len(rows):
        return []
    masked = finite & (rows.double() <= end)
    always = masked.all(0)
    where = named_classes(always) if bool(always.any()) else f"{int(masked.any(0).count_nonzero())} classes"
    how = "in every row" if bool(always.any()) else "in some rows each"
    return [
        f"{name} look masked by a large number, which gamma would have to make up for. They are about {lowest:.4g} for "
        f"{where} {how}, and all others lie from {low:.4g} to {high:.4g}: mask by -inf, which is left out: "
        f"{name}[{name} < {_cut(end, low):.4g}] = -inf"
    ]


def _cut(below: float, above: float) -> float:
    """Return a short number between the two."""
    return above - min((above - below) / 2, 10.0 ** math.ceil(math.log10(max(1.0, abs(above)))))
