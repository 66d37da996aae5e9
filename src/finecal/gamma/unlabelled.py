"""Gamma from unlabelled samples of all classes: by a known share of seen samples, or by one that is estimated."""

from __future__ import annotations

import math

from torch import Tensor

from ..evaluation.masked import mask_warnings
from ..evaluation.rounding import rounding_warnings
from ..evaluation.samples import Samples, UnlabelledLike, unlabelled_samples
from ..inputs.arrays import Mask
from ..inputs.groups import group_warnings, in_groups
from ..inputs.numbers import check_share
from .bootstrap import Bootstrap, percentile_interval
from .design_effect import design_effect, number_in_words
from .estimate import ESTIMATED, GIVEN, GammaEstimate, with_warnings
from .same_samples import same_unlabelled_warnings
from .seen_share import SHARE_BOUNDS, best_bin_share

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
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError if there are no samples, `seen_share` is not in (0, 1), or -inf logits make the
        quantile infinite.

    Warns
    -----
    FinecalWarning
        If gamma sends all samples to one group, because their margins tie.

    Notes
    -----
    `O(NC + N log N)`. The mistakes in both directions are then equally many, which is close to the best overall
    accuracy.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[3.0, 1.0, 1.0], [0.0, 1.0, 2.0]])
    >>> float(finecal.known_share_gamma(logits, [True, True, False], seen_share=0.5))
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

    Margins of unlabelled samples are a mixture of those of seen and of absent samples, and absent samples rarely have
    large ones:

    .. math:: \hat\pi = \min_t \frac{\hat P_\text{unlabelled}(\text{margin} > t) + \text{s.e.}}
                                    {\hat P_\text{seen}(\text{margin} > t) - \text{s.e.}}

    over the 5 % to 95 % quantiles t of the seen margins, with one binomial standard error (s.e.) each, taken as for one
    sample where there is none, clipped to [0.02, 0.98]. Then as `known_share_gamma`.

    Parameters
    ----------
    seen : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax of *held-out* seen-class samples; training samples are memorised and give nonsense. No
        labels needed.
    unlabelled : (M, C) tensor or array; or Samples
        Scores of unlabelled samples of all classes.
    seen_mask : (C,) bool
        True for the seen classes.
    n_bootstrap : int, default 0
        Resamplings of both for a 95 % interval.
    seed : int, default 0
        Seed of the bootstrap.

    Returns
    -------
    GammaEstimate
        `data` names the estimated share.

    Raises
    ------
    TypeError, ValueError
        As `margins`; ValueError if either is empty, or -inf logits make the quantile infinite.

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
    >>> seen = np.stack([rng.normal(8, 1, 400), np.zeros(400)], axis=1)
    >>> absent = np.stack([rng.normal(2, 1, 600), np.zeros(600)], axis=1)
    >>> estimate = finecal.mixture_gamma(
    ...     seen, np.concatenate([seen, absent]), [True, False]
    ... )
    >>> 3 < estimate.gamma < 6
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
    doubts = mixture_warnings(of_seen, of_stream, share, estimate.gamma, effects)
    few = group_warnings(*groups) if n_bootstrap else []
    return with_warnings(estimate, [*about_logits, *same, *doubts, *few])


def mixture_warnings(
    seen: Tensor, unlabelled: Tensor, share: float, gamma: float, effects: tuple[float, float] = (1.0, 1.0)
) -> list[str]:
    """Return warnings about a share that was estimated from margins of held-out and of unlabelled samples."""
    sentences = quantile_warnings(unlabelled, gamma)
    if share in SHARE_BOUNDS:
        sentences.append(
            f"the estimated share of seen samples is at its bound, {share:g}: the seen samples' margins do not "
            "resemble those of any part of the unlabelled ones; check that the seen samples are held-out and of the "
            "same model, and that the two are not swapped"
        )
    return [*sentences, *few_sample_warnings(seen, unlabelled, effects)]


def few_sample_warnings(seen: Tensor, unlabelled: Tensor, effects: tuple[float, float] = (1.0, 1.0)) -> list[str]:
    """Return a warning for each of the samples of which there are few, or as few as are worth these design effects."""
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
