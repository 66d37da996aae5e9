"""The best estimator of gamma that the given data allow."""

from dataclasses import replace
from typing import TypeAlias

from ._arrays import ArrayLike
from .gamma import GammaEstimate, doubts_about_seen, scan_seen, with_cost, with_warnings
from .mixed_pairs import mixed_pair_gap_of
from .unlabelled import known_share_gamma, mixture_gamma

Labelled: TypeAlias = tuple[ArrayLike, ArrayLike]


def estimate_gamma(
    seen_mask: ArrayLike,
    *,
    train: Labelled | None = None,
    held_out: Labelled | None = None,
    unlabelled: ArrayLike | None = None,
    seen_share: float | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
) -> GammaEstimate:
    """Estimate gamma with the best estimator that the given data allow.

    =============================  =====================  ====================================================
    given                          estimator              because
    =============================  =====================  ====================================================
    `unlabelled`, `seen_share`     `known_share_gamma`    a known share is the strongest hint without labels
    `unlabelled`, `held_out`       `mixture_gamma`        the share can be estimated
    `train`, perhaps `held_out`    `mixed_pair_gap`       works although the model has memorised the samples
    `held_out`                     `mixed_pair_gap`       needs no other data
    =============================  =====================  ====================================================

    With labelled samples of all classes use `search_gamma`, which is exact.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    train : (logits, labels), optional
        Samples that the model was fine-tuned on: `(N, C)` scores before softmax and `(N,)` class indices.
    held_out : (logits, labels), optional
        Samples of the seen classes that it was not trained on.
    unlabelled : (M, C) logits, optional
        Samples of all classes, in the proportions in which the model will be used.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used; default: estimated from `unlabelled`, else |S| / C.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval.
    seed : int, default 0
        Of the resamplings, and of the pairs of `mixed_pair_gap`.

    Returns
    -------
    GammaEstimate
        `method` and `data` say what was chosen and from what; `expected_acc_seen` is measured on `held_out` if given,
        else on `train`.

    Raises
    ------
    TypeError, ValueError
        As the estimator chosen; ValueError if the data allow none.

    Warns
    -----
    FinecalWarning
        As the estimator chosen; if `max_logit_gap` on the same labelled samples has the other sign; and if `unlabelled`
        cannot be used.

    Examples
    --------
    >>> import numpy as np, finecal
    >>> logits = np.tile([[9.0, 4.0, 1.0, 2.0], [3.0, 8.0, 0.0, 1.0]], (20, 1))
    >>> labels = np.tile([0, 1], 20)
    >>> estimate = finecal.estimate_gamma([True, True, False, False], train=(logits, labels))
    >>> estimate.gamma, estimate.method, estimate.data
    (5.0, 'mixed_pair_gap(seen_share=0.5)', '40 training labelled seen-class samples')
    """
    pairs = {"train": labelled_pair(train, "train"), "held_out": labelled_pair(held_out, "held_out")}
    scans = {
        name: scan_seen(*pair, seen_mask, "estimate_gamma", min_seen=1)
        for name, pair in pairs.items()
        if pair is not None
    }
    sentences = []
    if unlabelled is not None and seen_share is not None:
        estimate = known_share_gamma(unlabelled, seen_mask, seen_share, n_bootstrap=n_bootstrap, seed=seed)
    elif unlabelled is not None and "held_out" in scans:
        seen_logits = scans["held_out"].logits
        estimate = mixture_gamma(seen_logits, unlabelled, seen_mask, n_bootstrap=n_bootstrap, seed=seed)
    elif scans:
        name, scan = next(iter(scans.items()))
        estimate = mixed_pair_gap_of(scan, seen_share, n_bootstrap=n_bootstrap, seed=seed)
        estimate = replace(estimate, data=f"{estimate.n} {_WORDS[name]} labelled seen-class samples")
        if unlabelled is not None:
            sentences.append(
                "the unlabelled samples were not used: estimating their share of seen samples needs held_out="
            )
    elif unlabelled is not None:
        raise ValueError(
            "unlabelled samples alone do not tell gamma: add seen_share=, their share of seen-class samples, or "
            "held_out=(logits, labels)"
        )
    else:
        raise ValueError(
            "no data to estimate gamma from: pass train=(logits, labels), held_out=(logits, labels), or unlabelled= "
            "with held_out= or seen_share="
        )

    if scans:
        scan = scans.get("held_out") or scans["train"]
        estimate = with_cost(estimate, scan)
        sentences += [s for s in doubts_about_seen(scan, estimate.gamma) if s not in estimate.warnings]
        gaps = scan.scalars.seen_rival.double() - scan.scalars.absent_rival.double()
        gap = float(gaps[gaps.isfinite()].mean())
        if gap * estimate.gamma < 0:
            sentences.append(
                f"max_logit_gap is {gap:.4g} on the same labelled samples, of the other sign than gamma = "
                f"{estimate.gamma:.4g}: the model may be distilled or already balanced, and gamma may do harm"
            )
    return with_warnings(estimate, sentences)


_WORDS = {"train": "training", "held_out": "held-out"}


def labelled_pair(value: object, name: str) -> Labelled | None:
    """Check that `value`, if given, is a pair of logits and labels."""
    if value is None:
        return None
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        items = f" of {len(value)} items" if isinstance(value, (tuple, list)) else ""
        raise TypeError(f"{name} is a {type(value).__name__}{items}; pass a pair: {name}=(logits, labels)")
    return value[0], value[1]
