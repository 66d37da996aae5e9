"""The gap between the seen and the absent logits of each sample."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..logits.tiles import tile_rows, tiles
from ..logits.workers import map_row_chunks
from .samples import Scan


def _average_gaps(scan: Scan) -> Tensor:
    """Return each sample's gap of means, in float64; over the finite logits only where some are -inf."""
    seen = scan.mask.double()
    absent = 1 - seen
    weight = seen / (seen.sum() - 1) - absent / absent.sum()

    def kernel(logits: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        parts = []
        owns = torch.split(labels.unsqueeze(1), tile_rows(logits))
        for (rows, _), own in zip(tiles(logits, torch.float64, writable=True), owns, strict=True):
            gaps = rows.scatter_(1, own, 0) @ weight
            if not bool(gaps.isfinite().all()):
                finite = rows.scatter_(1, own, -math.inf).isfinite()
                rows, finite = rows.masked_fill_(~finite, 0), finite.double()
                gaps = (rows @ seen) / (finite @ seen) - (rows @ absent) / (finite @ absent)
            parts.append(gaps)
        return (torch.cat(parts),)

    (gaps,) = map_row_chunks(kernel, scan.logits, scan.labels)
    return gaps


def _max_gaps(scan: Scan) -> Tensor:
    return scan.scalars.seen_rival.double() - scan.scalars.absent_rival.double()


GAPS: dict[str, Callable[[Scan], Tensor]] = {"average_logit_gap": _average_gaps, "max_logit_gap": _max_gaps}
"""The gap of each sample, in float64."""
