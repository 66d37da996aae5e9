"""Gamma from unlabelled samples of all classes: by a known share of seen samples, or by one that is estimated."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .._core.arrays import Mask, NumpyArray, check_share
from .._core.groups import Bootstrap, design_effect, group_warnings, in_groups, number_in_words, percentile_interval
from .._core.plausibility import mask_warnings, rounding_warnings
from .._core.samples import Samples, UnlabelledLike, unlabelled_samples
from .estimate import ESTIMATED, GIVEN, GammaEstimate, with_warnings

_COLUMNS = 4
_MULTIPLIER = 0x9E3779B97F4A7C15
"""Odd, with random-looking bits: a product with it spreads the bits of a number."""
_LOOKED_UP = 1024
_SUSPICIOUS = 0.5
"""Share of the smaller set that causes a warning: single rows may be equal by chance, or duplicates."""


class Rows:
    """Logits `(N, C)` and their margins `(N,)`, which differ for most rows."""

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
    """Return how many rows of `second` are rows of `first`; 0 if less than half of the smaller set is."""
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
    """Estimate from a subsample whether at least a quarter of the smaller set is shared."""
    step = max(1, min(len(keys), len(others)) // _LOOKED_UP)
    some, which = np.unique(others[::step], return_inverse=True)
    place = np.minimum(np.searchsorted(some, keys), len(some) - 1)
    found = np.zeros(len(some), dtype=bool)
    found[place[some[place] == keys]] = True
    return bool(4 * step * np.count_nonzero(found[which]) >= min(len(keys), len(others)))


def same_sample_warnings(first: Samples, second: Samples, seen_mask: Mask, remedy: str) -> list[str]:
    """Return a warning if at least half of the smaller set is shared."""
    shared, smaller = _count(first, second, seen_mask), min(len(first), len(second))
    if shared == 0 or shared < _SUSPICIOUS * smaller:
        return []
    return [_sentence(shared, first, second, remedy)]


def same_unlabelled_warnings(seen: Samples, unlabelled: Samples, seen_mask: Mask) -> list[str]:
    """Return a warning if all unlabelled samples are held-out seen ones; a part of them does no harm."""
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


SHARE_BOUNDS = (0.02, 0.98)
_THRESHOLD_QUANTILES = torch.linspace(0.05, 0.95, 91, dtype=torch.float64)


def best_bin_share(seen: Tensor, unlabelled: Tensor, effects: tuple[float, float] = (1.0, 1.0)) -> float:
    """Return the smallest ratio of what exceeds a threshold, since absent samples rarely have large margins.

    Best Bin Estimation, see `mixture_gamma`. By their design effects, as in `design_effect`, samples of groups have
    larger standard errors.
    """
    seen, unlabelled = seen.double().sort().values, unlabelled.double().sort().values
    positions = _THRESHOLD_QUANTILES.to(seen.device) * (len(seen) - 1)
    below = positions.floor().long()
    low, high = seen[below], seen[(below + 1).clamp(max=len(seen) - 1)]
    thresholds = torch.where(low == high, low, torch.lerp(low, high, positions - below))

    def exceeding(ordered: Tensor, errors: int, effect: float) -> Tensor:
        count = len(ordered) - torch.searchsorted(ordered, thresholds, right=True).double()
        # An empty bin, without an error of its own, would send the share to its lower bound.
        fraction = count.clamp(min=effect) / len(ordered)
        return count / len(ordered) + errors * (effect * fraction * (1 - fraction) / len(ordered)).sqrt()

    numerator, denominator = exceeding(unlabelled, 1, effects[1]), exceeding(seen, -1, effects[0])
    ratios = torch.where(denominator > 0, numerator / denominator, math.inf)
    return min(max(float(ratios.min()), SHARE_BOUNDS[0]), SHARE_BOUNDS[1])


_FEW_SAMPLES = 50


def known_share_gamma(
    logits: UnlabelledLike,
    seen_mask: Mask,
    seen_share: float,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Find the gamma at which a known share of unlabelled samples is predicted as seen.

    .. math:: \gamma = \text{the } (1 - \pi)\text{-quantile of} \quad \max_{c \in S} z_c - \max_{c \in U} z_c

    with linear interpolation between order statistics.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax of unlabelled samples of all classes.
    seen_mask : (C,) bool
        True for the seen classes.
    seen_share : float in (0, 1)
        :math:`\pi`, the share of seen-class samples among them.
    n_bootstrap, seed : int, default 0
        Resamplings for a 95 % interval, and their seed.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError also if there are no samples, `seen_share` is not in (0, 1), or -inf logits make the
        quantile infinite.

    Warns
    -----
    FinecalWarning
        If gamma sends all samples to one group, because their margins tie.

    Notes
    -----
    `O(NC + N log N)`. Mistakes in both directions are then equally many, which is close to the best overall accuracy.

    Examples
    --------
    >>> import finecal
    >>> logits, mask = [[3.0, 1.0, 1.0], [0.0, 1.0, 2.0]], [True, True, False]
    >>> finecal.estimators.known_share_gamma(logits, mask, seen_share=0.5).gamma
    0.5
    """
    share = check_share(seen_share, "seen_share")
    samples = logits if isinstance(logits, Samples) else Samples(logits)
    margin, grouping = samples.margin(seen_mask), samples.grouping
    samples.check_not_empty("known_share_gamma")
    bootstrap = Bootstrap.from_arguments(n_bootstrap, seed)
    replicates = [share_quantile(drawn, share) for drawn in bootstrap.resample(margin, groups=grouping)]
    estimate = GammaEstimate(
        finite_quantile(margin, share),
        f"known_share_gamma(seen_share={share:.4g})",
        f"{len(margin)} unlabelled samples{in_groups(grouping)}",
        len(margin),
        interval=percentile_interval(replicates),
        seen_share=share,
        seen_share_source=GIVEN,
        sources={"unlabelled": len(margin)},
    )
    x = samples.logits_tensor
    about_logits = [*mask_warnings(x), *rounding_warnings(x, estimate.gamma)]
    few = group_warnings(grouping) if n_bootstrap else []
    return with_warnings(estimate, [*about_logits, *quantile_warnings(margin, estimate.gamma), *few])


def mixture_gamma(
    seen: UnlabelledLike,
    unlabelled: UnlabelledLike,
    seen_mask: Mask,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Find gamma from unlabelled samples, with their share of seen samples estimated from held-out ones.

    .. math:: \hat\pi = \min_t \frac{\hat P_\text{unlabelled}(\text{margin} > t) + \text{s.e.}}
                                    {\hat P_\text{seen}(\text{margin} > t) - \text{s.e.}}

    over the 5 % to 95 % quantiles t of the seen margins, with one binomial standard error (s.e.) each, taken as for one
    sample if there is none, clipped to [0.02, 0.98]. Then as `known_share_gamma`.

    Parameters
    ----------
    seen : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax of *held-out* seen-class samples: margins of memorised ones are too large. No labels
        needed.
    unlabelled : (M, C) tensor or array; or Samples
        Scores of unlabelled samples of all classes.
    seen_mask : (C,) bool
        True for the seen classes.
    n_bootstrap, seed : int, default 0
        Resamplings of both for a 95 % interval, and their seed.

    Returns
    -------
    GammaEstimate
        `data` names the estimated share.

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError also if either is empty, or -inf logits make the quantile infinite.

    Warns
    -----
    FinecalWarning
        If the share is at a bound, there are fewer than 50 samples of either kind, or both are the same samples.

    Notes
    -----
    `O((N + M) C + (N + M) log(N + M))`. Best Bin Estimation (Garg et al., "Mixture Proportion Estimation and PU
    Learning: A Modern Approach", NeurIPS 2021), on the margin.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> rng = np.random.default_rng(0)
    >>> seen = rng.normal([8, 0], [1, 0], (400, 2))
    >>> absent = rng.normal([2, 0], [1, 0], (600, 2))
    >>> samples = seen, np.concatenate([seen, absent]), [True, False]
    >>> 3 < finecal.estimators.mixture_gamma(*samples).gamma < 6
    True
    """
    held_out, stream = unlabelled_samples(seen, "seen"), unlabelled_samples(unlabelled, "unlabelled")
    of_seen, of_stream = held_out.margin(seen_mask), stream.margin(seen_mask)
    held_out.check_not_empty("mixture_gamma")
    stream.check_not_empty("mixture_gamma")
    groups = held_out.grouping, stream.grouping
    effects = design_effect(of_seen, groups[0]), design_effect(of_stream, groups[1])
    share = best_bin_share(of_seen, of_stream, effects)
    bootstrap = Bootstrap.from_arguments(n_bootstrap, seed)
    draws = zip(
        bootstrap.resample(of_seen, groups=groups[0]),
        bootstrap.resample(of_stream, substream=1, groups=groups[1]),
        strict=True,
    )
    replicates = [share_quantile(others, best_bin_share(drawn, others, effects)) for drawn, others in draws]
    estimate = GammaEstimate(
        finite_quantile(of_stream, share),
        "mixture_gamma",
        f"{len(stream)} unlabelled samples{in_groups(groups[1])}, {100 * share:.0f} % of them seen as estimated "
        f"with {len(held_out)} held-out seen samples{in_groups(groups[0])}",
        len(stream) + len(held_out),
        interval=percentile_interval(replicates),
        seen_share=share,
        seen_share_source=ESTIMATED,
        sources={"unlabelled": len(stream), "held_out": len(held_out)},
    )
    same = same_unlabelled_warnings(held_out, stream, seen_mask)
    about_logits = [s for of in (held_out, stream) for s in mask_warnings(of.logits_tensor, of.origin)]
    about_logits += rounding_warnings(stream.logits_tensor, estimate.gamma)
    doubts = quantile_warnings(of_stream, estimate.gamma)
    if share in SHARE_BOUNDS:
        doubts.append(
            f"the estimated share of seen samples is at its bound, {share:g}: the seen samples' margins do not "
            "resemble those of any part of the unlabelled ones; check that the seen samples are held-out and of the "
            "same model, and that the two are not swapped"
        )
    doubts += few_sample_warnings(of_seen, of_stream, effects)
    few = group_warnings(*groups) if n_bootstrap else []
    return with_warnings(estimate, [*about_logits, *same, *doubts, *few])


def few_sample_warnings(seen: Tensor, unlabelled: Tensor, effects: tuple[float, float] = (1.0, 1.0)) -> list[str]:
    """Return a warning for each kind with fewer than 50 independent samples."""
    kinds = ((seen, "held-out seen"), (unlabelled, "unlabelled"))
    return [
        f"only {number_in_words(len(samples), effect, kind)}: the estimated share of seen samples is uncertain"
        for (samples, kind), effect in zip(kinds, effects, strict=True)
        if len(samples) / effect < _FEW_SAMPLES
    ]


def share_quantile(margin: Tensor, share: float) -> float:
    ordered = margin.double().sort().values
    position = (1 - share) * (len(ordered) - 1)
    below = math.floor(position)
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    return low if position == below or low == high else low + (position - below) * (high - low)


def finite_quantile(margin: Tensor, share: float) -> float:
    gamma = share_quantile(margin, share)
    if not math.isfinite(gamma):
        raise ValueError(
            f"logits are -inf on a whole group for so many samples that the {1 - share:.3g}-quantile of the margins "
            "is infinite; drop the samples whose seen or absent classes are masked"
        )
    return gamma


def quantile_warnings(margin: Tensor, gamma: float) -> list[str]:
    if len(margin) == 1 or bool((margin.double() < gamma).any()):
        return []
    return [f"gamma = {gamma:.4g} sends all {len(margin)} samples to the seen classes: most of their margins are equal"]
