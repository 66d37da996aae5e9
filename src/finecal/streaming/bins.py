"""The seen-absent curve in fixed memory, from batches, and the exact best gamma in a second pass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..evaluation.guessing import GroupHits, group_sizes, warn_of_hits
from ..evaluation.samples import Samples, batch_margins
from ..inputs.arrays import Mask
from ..inputs.numbers import check_bins, check_temperature
from ..logits.dense import Layout
from .binned_curve import BinnedCurve, bin_edges, exact_best
from .state import LabelledState, RowState, copy_checked_mask


class MarginBins(LabelledState):
    r"""The seen-absent curve in fixed memory, from batches of any number: exact at 65,535 gammas, bounded in between.

    Parameters
    ----------
    n_bins : int, default 65536
        Bins of margins, half of them below 0.
    scale : float, default 16
        In units of the logits. Half of the bins hold margins from -`scale` to `scale`; at a margin m a bin is about
        :math:`2 (s + |m|)^2 / (s B)` wide: 0.0005 at 0, 0.0013 at 10.
    seen_mask, dim, ignore_index
        As in `AccuracySums`.

    Raises
    ------
    TypeError, ValueError
        As `AccuracySums`; also if another argument is out of its range.

    Notes
    -----
    `O(NC + N log B)` time, 16 B bytes of memory: 1 MiB by default, whatever N is. The bound falls with the number of
    bins. For gamma that is best over all reals, pass over the data again with a `BestGamma`.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import MarginBins
    >>> state = MarginBins(np.array([True, True, False]))
    >>> for row, label in [([4.0, 1, 3], 0), ([2.0, 5, 4.5], 2), ([6.0, 1, 2], 0)]:
    ...     state = state.update(np.array([row]), [label])
    >>> state.compute()
    BinnedCurve(65536 bins, 2 seen and 1 absent samples, AUSUC 1.0000 ± 0.0e+00)
    """

    def __init__(
        self,
        seen_mask: Mask,
        n_bins: int = 1 << 16,
        scale: float = 16.0,
        *,
        dim: int = -1,
        ignore_index: int | None = None,
    ) -> None:
        edges = bin_edges(check_bins(n_bins, least=2), check_temperature(scale, "scale"))
        count = torch.zeros(len(edges) - 1, dtype=torch.int64)
        group = torch.zeros(2, dtype=torch.int64)
        sums = {"seen_hits": count, "absent_hits": count, "samples": group, "hits": group, "always_correct": group}
        layout = Layout.from_arguments(dim, ignore_index)
        super().__init__(copy_checked_mask(seen_mask), sums, {"edges": edges}, layout=layout)

    def _add_samples(self, samples: Samples) -> None:
        batch = batch_margins(samples, self.seen_mask)
        margin, is_seen, hit = batch.margin, batch.is_seen, batch.hit
        finite, edges = margin.isfinite(), self._settings["edges"].to(margin.device)
        bins = torch.bucketize(margin.double(), edges[1:-1], right=True)

        def by_group(of: Tensor) -> Tensor:
            return torch.stack([(of & is_seen).sum(), (of & ~is_seen).sum()])

        stays = torch.where(is_seen, margin == math.inf, margin == -math.inf)
        self._add(
            {
                "seen_hits": torch.bincount(bins[hit & finite & is_seen], minlength=len(edges) - 1),
                "absent_hits": torch.bincount(bins[hit & finite & ~is_seen], minlength=len(edges) - 1),
                "samples": by_group(torch.ones_like(hit)),
                "hits": by_group(hit),
                "always_correct": by_group(hit & stays),
            }
        )

    def compute(self) -> BinnedCurve:
        """Return the curve of all samples so far; NaN for a group without samples. Warns as `AccuracySums.compute`."""
        sums = self._sums
        (n_seen, n_absent), within = sums["samples"].tolist(), (sums["hits"].double() / sums["samples"]).tolist()
        warn_of_hits(map(GroupHits, sums["samples"].tolist(), sums["hits"].tolist(), group_sizes(self.seen_mask)))
        always_seen, always_absent = sums["always_correct"]
        zero = sums["seen_hits"].new_zeros(1)
        seen = always_seen + torch.cat([sums["seen_hits"].flip(0).cumsum(0).flip(0), zero])
        absent = always_absent + torch.cat([zero, sums["absent_hits"].cumsum(0)])
        return BinnedCurve(self._settings["edges"].clone(), seen, absent, n_seen, n_absent, *within)


class BestGamma(RowState):
    """The best gamma over all reals, in a second pass over data that `MarginBins` has counted.

    It keeps the margins in the few bins that may hold the best gamma, by branch and bound.

    Parameters
    ----------
    bins : MarginBins
        After all samples; it stays as it is.
    objective : {"overall", "balanced", "harmonic", "absent"}
        As in `TradeoffCurve.best`.

    Raises
    ------
    TypeError, ValueError
        If `bins` is not a `MarginBins`, its samples are of one group only, or `objective` is none of the four.

    Notes
    -----
    `O(NC)` time; memory 9 bytes for each margin in the bins left, of which `MarginBins` knows the number.

    Examples
    --------
    >>> import numpy as np
    >>> from finecal.streaming import BestGamma, MarginBins
    >>> logits, labels = np.array([[4.0, 1, 3], [2.0, 5, 4.5], [6.0, 1, 2]]), [0, 2, 0]
    >>> bins = MarginBins(np.array([True, True, False])).update(logits, labels)
    >>> BestGamma(bins).update(logits, labels).compute()
    0.75
    """

    def __init__(self, bins: MarginBins, objective: str = "overall") -> None:
        if not isinstance(bins, MarginBins):
            raise TypeError(
                f"bins is a {type(bins).__name__}; pass the MarginBins of a first pass over the same samples"
            )
        self._curve, self._objective = bins.compute(), objective
        windows = self._curve.windows(objective)
        rows = {"margin": torch.empty(0, dtype=torch.float64), "is_seen": torch.empty(0, dtype=torch.bool)}
        settings = {"windows": windows, **bins.state_dict()}
        super().__init__(settings.pop("seen_mask"), rows, settings, layout=bins._layout)

    def _add_samples(self, samples: Samples) -> None:
        batch = batch_margins(samples, self.seen_mask)
        edges, windows = (self._settings[name].to(batch.margin.device) for name in ("edges", "windows"))
        margin = batch.margin.double()
        kept = batch.hit & margin.isfinite() & windows[torch.bucketize(margin, edges[1:-1], right=True)]
        self._add({"margin": margin[kept], "is_seen": batch.is_seen[kept]})

    def compute(self) -> float:
        """Return gamma, as `TradeoffCurve.best` chooses it; ValueError if the samples are not those of `bins`."""
        rows, windows = self._current_sums(), self._settings["windows"]
        expected = [int(self._settings[name][windows].sum()) for name in ("seen_hits", "absent_hits")]
        found = [int(rows["is_seen"].sum()), int((~rows["is_seen"]).sum())]
        if found != expected:
            raise ValueError(
                f"BestGamma has {found[0]} seen and {found[1]} absent samples in the bins that matter, MarginBins has "
                f"{expected[0]} and {expected[1]}: pass all samples of the first pass once more, and no others"
            )
        return exact_best(self._curve, windows, rows["margin"], rows["is_seen"], self._objective)
