"""Gamma from labelled seen samples by mixed pairs (MPG): half-way between two seen classes, as absent ones are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from .._core.arrays import Labels, Logits, Mask, check_share
from .._core.groups import TRAINING, Bootstrap, Resamples
from .._core.kernels import group_limits, map_row_chunks, tile_rows, wide_dtype
from .._core.reductions import largest_two
from .._core.samples import Scan, samples_of, takes_samples
from .estimate import EQUALLY_FREQUENT, GIVEN, GammaEstimate, finish_from_seen, scan_seen


class GapEstimate(NamedTuple):
    """The gap of one estimator."""

    gap: float
    """The gamma for as many seen as absent samples."""
    temperature: float
    """Logits per unit of log-odds, by which the share of seen samples moves gamma."""
    replicates: list[float]
    """The gap of each resampling, NaN where it has none."""
    n: int
    function: str
    sentences: Sequence[str] = ()
    unit: float = 1.0
    """Logits per unit of log-odds as fitted; `temperature` may have been raised above it."""
    spread: float = math.nan
    """Standard deviation of the gaps that this one is the mean of."""

    def gamma(self, share: float) -> float:
        """Return the gamma for a share of seen samples, by Bayes' rule: the log of the prior odds is added."""
        return self.gap + self.share_term(share)

    def gammas(self, share: float) -> list[float]:
        """Return the gamma of each resampling."""
        return [replicate + self.share_term(share) for replicate in self.replicates]

    def share_term(self, share: float) -> float:
        return self.temperature * math.log((1 - share) / share)

    def method(self, share: float) -> str:
        """Return the function with the share."""
        return f"{self.function}(seen_share={share:.4g})"


def equal_share(scan: Scan) -> float:
    """Return the share of seen samples where every class is equally frequent that is not masked in all rows."""
    mask = scored_mask(scan)
    return int(mask.sum()) / len(mask)


def scored_mask(scan: Scan) -> Tensor:
    """Return the mask of the seen classes among those that -inf does not mask in all rows."""
    logits, mask = scan.logits, scan.mask
    if bool((logits[0] == -math.inf).any()):
        mask = mask[logits.amax(0) > -math.inf]
    return mask


def share_or_default(scan: Scan, seen_share: float | None) -> float:
    """Return the given share, checked; by default the one of equally frequent classes."""
    return equal_share(scan) if seen_share is None else check_share(seen_share, "seen_share")


def finish_gap(scan: Scan, found: GapEstimate, seen_share: float | None) -> GammaEstimate:
    """Make the estimate of gamma for a share of seen samples."""
    share = share_or_default(scan, seen_share)
    estimate = finish_from_seen(
        scan,
        found.gamma(share),
        found.method(share),
        found.gammas(share),
        found.sentences,
        n=found.n,
        gap=found.gamma(equal_share(scan)),
    )
    return replace(estimate, seen_share=share, seen_share_source=EQUALLY_FREQUENT if seen_share is None else GIVEN)


_PAIRS_PER_SAMPLE, _MOST_PAIRS = 3, 1 << 14
_MIXED, _LEAST_PAIRS = 1 << 26, 2048
"""Most numbers in all mixtures, which limits the pairs if there are many classes, and fewest pairs even then."""
_PAIRS_AT_A_TIME = 2048
_CORRECTED = 1 << 21
"""Numbers in the mixtures from which the correction is estimated."""
_FEW_PAIRS = 30


@takes_samples
def mixed_pair_gap(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    seen_share: float | None = None,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by mixed pairs (MPG): samples half-way between two seen classes stand in for absent ones.

    For random pairs of samples i, j of different classes, with :math:`d_i = z_i[y_i] - z_i[y_j]` and :math:`d_j =
    z_j[y_j] - z_j[y_i]` both positive, mix the logits until the two classes tie:

    .. math::
        m = (1 - \lambda)\, z_i + \lambda\, z_j, \qquad \lambda = \frac{d_i}{d_i + d_j}

        \gamma = \Big\langle \max_{c \in S} m_c - u_1(m) + \frac{u_1(m) - u_2(m)}{|U|} \Big\rangle
                 + \log \frac{1 - \pi}{\pi}

    :math:`u_1, u_2` are the two largest absent logits; the fraction, 0 if |U| = 1, corrects for the one absent rival
    less that an absent sample has. :math:`\pi` is the share of seen samples where the model will be used.

    Parameters
    ----------
    logits, labels, seen_mask
        As in `average_logit_gap`, of training or held-out samples; labels of at least two classes occur.
    seen_share : float in (0, 1), optional
        :math:`\pi`; default |S| / C, every class equally frequent, but for classes that -inf masks in all samples. 0.5
        aims at balanced accuracy.
    n_bootstrap, seed : int, default 0
        Resamplings of the samples for a 95 % interval, and the seed of these and of the random pairs: three per sample,
        at most 16,384 (2^26 / C with more than 4096 classes, but 2048 at least).

    Returns
    -------
    GammaEstimate

    Raises
    ------
    TypeError, ValueError
        As `average_logit_gap`; ValueError also if all samples are of one class, the model recognises no pair, or
        `seen_share` is not in (0, 1).

    Warns
    -----
    FinecalWarning
        As `average_logit_gap`, gamma without the share term; also if fewer than 30 pairs could be used.

    Notes
    -----
    Finecal's own; :doc:`/theory/estimators` says where it errs. Compare manifold mixup for placeholders of unknown
    classes in Zhou et al., "Learning Placeholders for Open-Set Recognition", CVPR 2021.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> labels, mask = np.tile([0, 1], 20), [True, True, False, False]
    >>> finecal.estimators.mixed_pair_gap(logits, labels, mask).gamma
    5.0
    """
    scan = scan_seen(samples_of(logits, labels), seen_mask, "mixed_pair_gap")
    return finish_gap(scan, estimate_pair_gap(scan, Bootstrap.from_arguments(n_bootstrap, seed)), seen_share)


class NoPairs(ValueError):
    """No two samples can be mixed."""


def estimate_pair_gap(scan: Scan, bootstrap: Bootstrap, substream: int = TRAINING) -> GapEstimate:
    """Return the gap of scanned samples."""
    if bool((scan.labels == scan.labels[0]).all()):
        raise NoPairs(
            f"labels are all of class {int(scan.labels[0])}; mixed_pair_gap needs samples of at least two seen classes"
        )
    first, second, gaps = _mixed_pairs(scan, bootstrap.seed)
    replicates = _replicates(
        first, second, gaps, bootstrap.counts(scan.labels.shape[0], substream=substream, groups=scan.groups)
    )
    sentences = []
    if gaps.shape[0] < _FEW_PAIRS:
        sentences.append(
            f"only {gaps.shape[0]} of {_number_of_pairs(scan)} random pairs could be mixed (both "
            "samples must prefer their own class), so gamma is rough"
        )
    return GapEstimate(
        float(gaps.mean()),
        1.0,
        replicates,
        scan.labels.shape[0],
        "mixed_pair_gap",
        sentences,
        spread=float(gaps.std(correction=0)),
    )


def _number_of_pairs(scan: Scan) -> int:
    samples, classes = scan.logits.shape
    return min(_MOST_PAIRS, max(_LEAST_PAIRS, _MIXED // classes), _PAIRS_PER_SAMPLE * samples)


def _mixed_pairs(scan: Scan, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two samples of each usable pair, and the gap of its mixture in float64."""
    logits, labels = scan.logits, scan.labels
    wide = wide_dtype(logits.dtype)
    n, number = labels.shape[0], _number_of_pairs(scan)
    generator = torch.Generator("cpu").manual_seed(seed)
    # Every sample three times; where that would be too many, evenly spaced ones.
    rounds = -(-number // n)
    first = torch.arange(number, device=labels.device) * (rounds * n) // number % n
    second = torch.randint(n, first.shape, generator=generator, device="cpu").to(labels.device)
    own = scan.scalars.own
    first_lead = own[first] - logits[first, labels[second]].to(wide)
    second_lead = own[second] - logits[second, labels[first]].to(wide)
    total = first_lead + second_lead
    usable = (first_lead > 0) & (second_lead > 0) & total.isfinite()
    first, second, weight = first[usable], second[usable], (first_lead / total)[usable].unsqueeze(1)

    limits = group_limits(scan.mask, logits.dtype)
    step = max(1, -(-len(first) * logits.shape[1] // _CORRECTED))

    def kernel(*pairs: Tensor) -> tuple[Tensor, ...]:
        gaps, corrections = [], []
        height = tile_rows(logits)
        blocks = torch.empty((2, height, logits.shape[1]), dtype=wide, device=logits.device)
        for i, j, w, chosen in zip(*(torch.split(column, height) for column in pairs), strict=True):
            mixture, other = blocks[:, : len(w)]
            mixture.copy_(logits.index_select(0, i)).mul_(1 - w)
            mixture.add_(other.copy_(logits.index_select(0, j)).mul_(w))
            seen_max, absent_max = (torch.minimum(mixture, limit, out=other).amax(1).double() for limit in limits)
            absent = largest_two(other[chosen])
            gaps.append(seen_max - absent_max)
            corrections.append(absent.spacing / absent.number)
        return torch.cat(gaps), torch.cat(corrections)

    looked_at = torch.arange(len(first), device=first.device) % step == 0  # the same ones in any number of threads
    gaps, corrections = map_row_chunks(kernel, first, second, weight, looked_at, elements=len(first) * logits.shape[1])
    usable = gaps.isfinite()
    if not bool(usable.any()):
        raise NoPairs(
            f"logits prefer another class for every pair of the {n} samples (or are -inf on the absent classes); "
            "mixed_pair_gap needs samples that the model recognises: check that labels belong to these logits, or "
            "use max_logit_gap"
        )
    # The correction is computed for evenly spaced pairs; the others get their mean.
    gaps += corrections if step == 1 else corrections[corrections.isfinite()].mean()
    return first[usable], second[usable], gaps[usable]


def _replicates(first: Tensor, second: Tensor, gaps: Tensor, draws: Resamples) -> list[float]:
    """Return the mean gap of each resampling, NaN without pairs; a pair counts the product of its samples' counts."""
    groups = [draws.part[samples.cpu()] for samples in (first, second)]
    every = torch.stack([gaps, torch.ones_like(gaps)], dim=1).cpu()
    means = []
    for times in draws:
        sums = torch.zeros((times.shape[0], 2), dtype=torch.float64, device="cpu")
        columns = times.T.contiguous()
        for *pair, values in zip(*(torch.split(part, _PAIRS_AT_A_TIME) for part in (*groups, every)), strict=True):
            drawn, partner = (columns[group] for group in pair)
            sums += drawn.mul_(partner).T @ values
        means += (sums[:, 0] / sums[:, 1]).tolist()
    return means
