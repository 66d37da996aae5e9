"""Choose the share of the fine-tuned weights by held-out samples of the seen classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .._core.arrays import Mask, check_device, check_drop, check_flag
from .._core.checks import as_bool_mask, check_mask_values
from .._core.results import Block, Caution, Result, Table, data_frame, percent
from .._core.samples import Samples
from .._core.seen_mask import check_complete_sample, seen_mask_from_labels
from .._core.warning import warn, without_warnings
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import GammaEstimate
from .collect import check_loader, collect_logits, with_bar
from .feed import SplitBatch
from .interpolate import STALE_STATISTICS, WeightPath, check_alpha
from .output import Output
from .positions import SampleRows
from .shares import Share

if TYPE_CHECKING:
    from pandas import DataFrame

_LEGEND = (
    "S/S: Acc_S/S in %, which no gamma changes. Cost: points of Acc_S/Y lost against gamma = 0, on the same samples."
)


@dataclass(frozen=True)
class InterpolationStep:
    """One row of an `InterpolationSearch`.

    Attributes
    ----------
    alpha : float
        Share of the fine-tuned weights.
    acc_seen_within : float
        `Acc_{S/S}` on the held-out samples, which no gamma changes, as a fraction.
    gamma : GammaEstimate
        By `estimate_gamma` from the held-out samples, for the model at this alpha.
    """

    alpha: float
    acc_seen_within: float
    gamma: GammaEstimate


@dataclass(frozen=True)
class InterpolationSearch(Result):
    """Weights between before and after fine-tuning, made by `search_interpolation`; prints as a table.

    Attributes
    ----------
    alpha : float
        The choice.
    gamma : GammaEstimate
        For the model at this alpha.
    steps : tuple of InterpolationStep
        All that were tried, by alpha.
    max_seen_drop : float
        How much `Acc_{S/S}` may lose against the largest alpha, as a fraction.
    n : int
        Held-out samples.
    warnings : tuple of str
        About alpha; ``gamma.warnings`` are about gamma. Each was also issued as a `FinecalWarning`.

    Examples
    --------
    See `search_interpolation`.
    """

    alpha: float
    gamma: GammaEstimate
    steps: tuple[InterpolationStep, ...]
    max_seen_drop: float
    n: int
    warnings: tuple[str, ...] = ()

    _width = 110

    def to_pandas(self) -> DataFrame:
        """Return a table with a row per alpha: `Acc_{S/S}`, gamma, and the part of `Acc_{S/Y}` that it costs."""
        return data_frame(
            [
                {
                    "alpha": step.alpha,
                    "acc_seen_within": step.acc_seen_within,
                    "gamma": step.gamma.gamma,
                    "cost": _cost(step),
                    "chosen": step.alpha == self.alpha,
                }
                for step in self.steps
            ]
        )

    def _blocks(self) -> Iterator[Block]:
        """The choice, the table, and the warnings."""
        yield [f"alpha = {self.alpha:g}, gamma = {self.gamma.gamma:.6g}", _reason(self)]
        yield [_table(self)]
        yield [_LEGEND]
        sentences = [*self.warnings, *self.gamma.warnings]
        if sentences:
            yield [Caution(f"warning: {sentence}") for sentence in sentences]


def _reason(found: InterpolationSearch) -> str:
    last = found.steps[-1]
    if last.gamma.gamma <= 0:
        return f"No gap is found at alpha = {last.alpha:g}, so nothing is taken back."
    lower = f"at most {percent(found.max_seen_drop)} points" if found.max_seen_drop else "no"
    return (
        f"The smallest alpha that shows the gap and whose Acc_S/S on {found.n} held-out samples is {lower} lower than "
        f"at alpha = {last.alpha:g}, {percent(last.acc_seen_within)} %."
    )


def _table(found: InterpolationSearch) -> Table:
    rows = [
        [
            f"{step.alpha:g}",
            percent(step.acc_seen_within),
            f"{step.gamma.gamma:.4g}",
            percent(_cost(step)),
            "yes" if step.alpha == found.alpha else "",
        ]
        for step in found.steps
    ]
    return Table(["alpha", "S/S", "gamma", "cost", "chosen"], rows)


def _cost(step: InterpolationStep) -> float:
    """Loss of `Acc_{S/Y}` by gamma, on the held-out samples that gamma was estimated from."""
    before, after = step.gamma.acc_seen_at_zero, step.gamma.acc_seen_at_gamma
    return math.nan if before is None or after is None else before - after


_ALPHAS = tuple(step / 10 for step in range(11))
_GAP_KEPT = 0.5
"""An alpha is passed over if its gamma is less than this share of the gamma in proportion to alpha."""
_TIE = 1e-9
"""Accuracies that differ by less are the same."""
_LARGE_ERROR = 0.02
"""Standard error of an accuracy from which a relevant loss may go unnoticed."""


def search_interpolation(
    pretrained: nn.Module | None,
    finetuned: nn.Module,
    loader: Iterable[Any],
    *,
    alphas: Sequence[float] = _ALPHAS,
    max_seen_drop: float = 0.0,
    seen_mask: Mask | None = None,
    seen_share: float | None = None,
    batch_norm_loader: Iterable[Any] | None = None,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    progress: bool = True,
) -> InterpolationSearch:
    r"""Choose how much of fine-tuning to keep, by held-out samples of the seen classes.

    alpha is the smallest whose `Acc_{S/S}` is not below that of the largest alpha by more than `max_seen_drop`. gamma
    is estimated for each alpha.

    Parameters
    ----------
    pretrained, finetuned : nn.Module
        As in `interpolate_weights`.
    loader : iterable of batches
        Labelled samples of the seen classes that the model was not trained on, as in `collect_logits`. It is gone
        through once for each alpha: a DataLoader or a list, not a generator.
    alphas : sequence of float in [0, 1], default 0, 0.1, ..., 1
        What to try.
    max_seen_drop : float, default 0
        How much `Acc_{S/S}` may lose against the largest alpha, as a fraction: 0.02 are two points.
    seen_mask : (C,) bool, optional
        True for the seen classes; default: those that occur in `loader`, which must then have all of them.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used, as in `estimate_gamma`.
    batch_norm_loader : iterable of batches, optional
        As in `interpolate_weights`; gone through once for each alpha, too.
    device, batch, output, progress
        As in `collect_logits`.

    Returns
    -------
    InterpolationSearch
        `alpha`, `gamma`, and a table of all alphas. Make the model by `interpolate_weights`, with the same
        `batch_norm_loader`; `calibrate_model` then puts gamma into it.

    Raises
    ------
    TypeError, ValueError
        As `interpolate_weights`, `collect_logits` and `estimate_gamma`; if `alphas` is empty, or `loader` is used up by
        one pass or has no labels; without `seen_mask`, if classes with a single sample suggest that others are missing
        from `loader`.

    Warns
    -----
    FinecalWarning
        As `interpolate_weights`, and as `estimate_gamma` does for the choice; if the standard error of `Acc_{S/S}`
        (as of independent samples) exceeds two points; if the smallest alpha is chosen.

    See Also
    --------
    finecal.diagnose : tells from labelled samples of all classes whether fine-tuning has damaged the absent ones.

    Notes
    -----
    alpha is passed over if its gamma is less than half of what would be in proportion to alpha: the gap was not found
    there. If gamma is 0 or negative at the largest alpha, that is chosen. The rule is measured in
    :doc:`/theory/logits-drift`.

    In a process group all processes call this, and all get the same result, from the samples of all.

    One copy of the model is made, whose weights are replaced for each alpha; each costs a pass over `loader`. The
    weights are those of WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.

    Examples
    --------
    >>> import torch, finecal
    >>> pretrained, finetuned = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    >>> with torch.no_grad():
    ...     for model, scale, bias in (
    ...         (pretrained, 1.0, [0.0, 3, 0, 0]),
    ...         (finetuned, 2.0, [6.0, 6, 0, 0]),
    ...     ):
    ...         _ = (
    ...             model.weight.copy_(scale * torch.eye(4)),
    ...             model.bias.copy_(torch.tensor(bias)),
    ...         )
    >>> labels = torch.arange(400) % 2
    >>> held_out = [(2 * torch.eye(4)[labels], labels)]
    >>> found = finecal.weights.search_interpolation(
    ...     pretrained, finetuned, held_out, alphas=[0, 0.5, 1], progress=False
    ... )
    >>> print(found)
    alpha = 0.5, gamma = 4.98882
    The smallest alpha that shows the gap and whose Acc_S/S on 400 held-out samples is no lower than at alpha = 1,
    100.0 %.
    <BLANKLINE>
    | alpha |   S/S | gamma | cost | chosen |
    | ----- | ----: | ----: | ---: | ------ |
    | 0     |  50.0 |     0 |  0.0 |        |
    | 0.5   | 100.0 | 4.989 |  0.0 | yes    |
    | 1     | 100.0 | 7.804 |  0.0 |        |
    <BLANKLINE>
    S/S: Acc_S/S in %, which no gamma changes. Cost: points of Acc_S/Y lost against gamma = 0, on the same
    samples.
    """
    shares = _checked_alphas(alphas)
    drop = check_drop(max_seen_drop, "max_seen_drop")
    check_flag(progress, "progress")
    _check_repeatable(loader, "loader")
    if batch_norm_loader is not None:
        _check_repeatable(batch_norm_loader, "batch_norm_loader")
    target = None if device is None else check_device(device)
    mask = None if seen_mask is None else check_mask_values(as_bool_mask(seen_mask).cpu())
    path = WeightPath(pretrained, finetuned, batch)
    steps: list[InterpolationStep] = []
    for alpha in with_bar(shares, desc="search_interpolation", unit="alpha") if progress else shares:
        model = path.move_to(alpha, batch_norm_loader)
        share, rows = Share(loader, model, "loader"), SampleRows()
        state = share.counted(rows, None)
        collect_logits(model, loader, into=state, device=target, batch=batch, output=output, progress=False)
        samples = share.gather(rows.samples())
        if samples.labels is None:
            raise ValueError(
                "loader has no labels; its batches must be (inputs, labels), or mappings with the key 'labels'; for "
                "others pass batch=, a function from a batch to these two"
            )
        if mask is None:
            check_complete_sample(samples.labels)
            mask = seen_mask_from_labels(samples.labels, samples.num_classes)
        steps.append(_step(alpha, samples, mask, seen_share))
    chosen, n = _chosen(steps, drop), len(samples)
    sentences = _doubts(steps, chosen, n)
    if path.batch_norms and batch_norm_loader is None and shares not in ([0.0], [1.0], [0.0, 1.0]):
        sentences.append(STALE_STATISTICS)
    for sentence in sentences:
        warn(f"search_interpolation: {sentence}")
    for sentence in chosen.gamma.warnings:
        warn(f"{chosen.gamma.function}: {sentence}")
    return InterpolationSearch(chosen.alpha, chosen.gamma, tuple(steps), drop, n, tuple(sentences))


# --- checks -----------------------------------------------------------------------------------------------------------


def _checked_alphas(alphas: object) -> list[float]:
    """Return the distinct alphas in ascending order, after checking that they lie in [0, 1]."""
    if isinstance(alphas, (str, bytes)) or not isinstance(alphas, Iterable) or getattr(alphas, "ndim", 1) != 1:
        raise TypeError(f"alphas is a {type(alphas).__name__}; pass several numbers in [0, 1]")
    shares = sorted({check_alpha(alpha, f"alphas[{number}]") for number, alpha in enumerate(alphas)})
    if not shares:
        raise ValueError("alphas are empty; pass numbers in [0, 1]")
    return shares


def _check_repeatable(loader: object, name: str) -> None:
    """Refuse an iterator, which gives its batches for the first alpha only."""
    check_loader(loader, name)
    if isinstance(loader, Iterator):
        raise TypeError(
            f"{name} is a {type(loader).__name__}, which gives its batches once, and they are needed for each alpha; "
            "pass a DataLoader or a list"
        )


# --- the choice -------------------------------------------------------------------------------------------------------


def _step(alpha: float, samples: Samples, mask: Tensor, seen_share: float | None) -> InterpolationStep:
    with without_warnings():  # those of the chosen alpha are issued at the end
        within = float(samples.margin_tensors(mask).hit.double().mean())
        estimate = estimate_gamma(mask, held_out=samples, seen_share=seen_share)
    return InterpolationStep(alpha, within, estimate)


def _chosen(steps: Sequence[InterpolationStep], max_seen_drop: float) -> InterpolationStep:
    """Return the first step that is good enough for the seen classes, and shows the gap that the last one has."""
    last = steps[-1]
    if last.gamma.gamma <= 0:
        return last
    enough = last.acc_seen_within - max_seen_drop - _TIE
    return next(
        step
        for step in steps
        if step.acc_seen_within >= enough and step.gamma.gamma * last.alpha >= _GAP_KEPT * step.alpha * last.gamma.gamma
    )


def _doubts(steps: Sequence[InterpolationStep], chosen: InterpolationStep, n: int) -> list[str]:
    """Return warnings if the held-out samples are few, or alpha is the smallest one tried."""
    if steps[-1].gamma.gamma <= 0:
        return []  # alpha was not chosen by these samples
    sentences, within = [], steps[-1].acc_seen_within
    error = math.sqrt(within * (1 - within) / n)
    if error > _LARGE_ERROR:
        sentences.append(
            f"the standard error of Acc_S/S on {n} held-out samples is {percent(error)} points: a loss as large may "
            "go unnoticed; give more samples"
        )
    if chosen is steps[0] and chosen.alpha == 0:
        sentences.append(
            "alpha = 0 was chosen, the pre-trained model: fine-tuning has taught the seen classes little, or these "
            "samples do not show it"
        )
    elif chosen is steps[0] and len(steps) > 1:
        sentences.append(
            f"the smallest alpha tried was chosen, {chosen.alpha:g}; smaller ones may do as well: add them to alphas"
        )
    return sentences
