"""Gamma from labelled seen samples by logit gaps: the paper's average gap (ALG), and the gap of maxima (MLG)."""

from __future__ import annotations

from torch import Tensor

from ..evaluation.logit_gaps import GAPS
from ..evaluation.samples import Scan, samples_of, takes_samples
from ..inputs.arrays import Labels, Logits, Mask
from ..inputs.groups import groups_of
from .bootstrap import Bootstrap
from .estimate import GammaEstimate, finish_from_seen, scan_seen


@takes_samples
def average_logit_gap(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by the paper's average logit gap (ALG).

    .. math::
        \gamma = \Big\langle \operatorname*{mean}_{c \in S,\, c \ne y} z_c
                             - \operatorname*{mean}_{c \in U} z_c \Big\rangle

    over the given samples: among the classes that a sample does not belong to, by how much the seen ones score higher.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax; the paper takes the training samples. -inf logits are left out of the means.
    labels : (N,) int
        Class indices, of seen classes only.
    seen_mask : (C,) bool
        True for the seen classes; at least two.
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
        As `margins`; ValueError if a label is absent, there are no samples, or only one class is seen.

    Warns
    -----
    FinecalWarning
        If gamma <= 0 (no gap: a distilled or already balanced model), or gamma sends every sample to the absent
        classes.

    Notes
    -----
    `O(NC)`. Decisions are made by maxima, and the seen logits have the larger spread, so ALG is biased low; see
    `max_logit_gap` and `mixed_pair_gap`. Mai et al., "Fine-Tuning is Fine, if Calibrated", NeurIPS 2024, section 5.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]])
    >>> float(finecal.average_logit_gap(logits, [0, 1], [True, True, False, False]))
    2.5
    """
    scan = scan_seen(samples_of(logits, labels), seen_mask, "average_logit_gap")
    return _estimate(scan, "average_logit_gap", Bootstrap.from_arguments(n_bootstrap, seed))


@takes_samples
def max_logit_gap(
    logits: Logits,
    labels: Labels,
    seen_mask: Mask,
    *,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    r"""Estimate gamma by the maximum logit gap (MLG).

    .. math:: \gamma = \Big\langle \max_{c \in S,\, c \ne y} z_c - \max_{c \in U} z_c \Big\rangle

    over the given samples: as `average_logit_gap`, with the maxima that decide a prediction in place of the means.

    Parameters
    ----------
    logits : (N, C) tensor or array, float64, float32, float16 or bfloat16; or Samples
        Scores before softmax; held-out samples are better than training samples, which the model has memorised.
    labels : (N,) int
        Class indices, of seen classes only.
    seen_mask : (C,) bool
        True for the seen classes; at least two.
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
        As `average_logit_gap`.

    Warns
    -----
    FinecalWarning
        As `average_logit_gap`; and where samples are left out because -inf masks a whole group.

    Notes
    -----
    `O(NC)`. Tends to be low where there is a gap, and has no bias where there is none. Finecal's own, after the paper's
    average logit gap.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.array([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]])
    >>> float(finecal.max_logit_gap(logits, [0, 1], [True, True, False, False]))
    2.0
    """
    scan = scan_seen(samples_of(logits, labels), seen_mask, "max_logit_gap")
    return _estimate(scan, "max_logit_gap", Bootstrap.from_arguments(n_bootstrap, seed))


def _estimate(scan: Scan, method: str, bootstrap: Bootstrap) -> GammaEstimate:
    gaps = GAPS[method](scan)
    total, usable = gap_sum(gaps)
    gamma, sentences = mean_gap(total, usable, gaps.shape[0], method)
    finite = gaps.isfinite()
    draws = bootstrap.counts(int(usable), groups=groups_of(scan.groups, finite))
    replicates = draws.means(gaps[finite])
    return finish_from_seen(scan, gamma, method, replicates, sentences, n=int(usable), gap=gamma)


def gap_sum(gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Return sum and number of the gaps that are finite: -inf logits that mask a whole group leave a sample without."""
    finite = gaps.isfinite()
    return gaps[finite].sum(), finite.sum()


def mean_gap(total: Tensor, usable: Tensor, samples: int, method: str) -> tuple[float, list[str]]:
    """Return gamma, from what `gap_sum` gave, and a warning if samples were left out."""
    if usable == 0:
        raise ValueError(
            "logits are -inf on all absent classes, or on all seen ones but the label, in each of the "
            f"{samples} samples; {method} has nothing to estimate from: pass logits in which both groups are scored"
        )
    sentences = []
    if usable < samples:
        sentences.append(
            f"{samples - int(usable)} of {samples} samples were left out: -inf logits mask all their absent classes, "
            "or all seen ones but the label"
        )
    return float(total / usable), sentences
