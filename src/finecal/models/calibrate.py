"""From a fine-tuned model and a loader to the calibrated model, in one call."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from ..calibrators.additive_bias import AdditiveBias
from ..calibrators.base import Calibrator
from ..calibrators.prototypes_fit import fit_prototypes
from ..evaluation.samples import Samples
from ..gamma.auto import estimate_gamma
from ..gamma.estimate import GammaEstimate
from ..inputs.arrays import Mask
from ..inputs.background import Background, check_background
from ..inputs.checks import as_bool_mask, check_mask_values, check_num_columns
from ..inputs.numbers import check_flag
from ..inputs.seen_mask import check_complete_sample, seen_mask_from_labels
from ..inputs.warning import warn
from ..logits.dense import Layout
from .calibrated_model import CalibratedModel, check_uncalibrated
from .collection import check_dense, check_loader, run_over
from .feed import Feed, SplitBatch, way_out
from .fold_proof import logits_for, prove
from .foldable import foldable_head
from .folding import fold_proven
from .head_inputs import recorded_inputs, single_head
from .heads import Head
from .positions import PositionRows, Sampling
from .repeatability import doubts_about_samples
from .rows import SampleRows

ModelT = TypeVar("ModelT", bound=nn.Module)


@overload
def calibrate_model(
    model: nn.Module,
    seen_loader: Iterable[Any],
    *,
    held_out: bool,
    seen_mask: Mask | None = None,
    unlabelled_loader: Iterable[Any] | None = None,
    seen_share: float | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    verbose: bool = True,
    fold: Literal[False] = False,
    prototypes: bool = False,
    dim: int | None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
) -> CalibratedModel: ...
@overload
def calibrate_model(
    model: ModelT,
    seen_loader: Iterable[Any],
    *,
    held_out: bool,
    seen_mask: Mask | None = None,
    unlabelled_loader: Iterable[Any] | None = None,
    seen_share: float | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    verbose: bool = True,
    fold: Literal[True],
    prototypes: bool = False,
    dim: int | None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
) -> ModelT: ...
@overload
def calibrate_model(
    model: nn.Module,
    seen_loader: Iterable[Any],
    *,
    held_out: bool,
    seen_mask: Mask | None = None,
    unlabelled_loader: Iterable[Any] | None = None,
    seen_share: float | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    verbose: bool = True,
    fold: bool = False,
    prototypes: bool = False,
    dim: int | None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
) -> nn.Module: ...
def calibrate_model(
    model: nn.Module,
    seen_loader: Iterable[Any],
    *,
    held_out: bool,
    seen_mask: Mask | None = None,
    unlabelled_loader: Iterable[Any] | None = None,
    seen_share: float | None = None,
    n_bootstrap: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    batch: SplitBatch | None = None,
    progress: bool = True,
    verbose: bool = True,
    fold: bool = False,
    prototypes: bool = False,
    dim: int | None = None,
    ignore_index: int | None = None,
    per_item: int | None = None,
    balanced: bool = False,
    background: Background | None = None,
) -> nn.Module:
    r"""Estimate gamma for a fine-tuned model from labelled samples of its seen classes, and put the two together.

    Parameters
    ----------
    model : nn.Module
        The fine-tuned model, with logits for all C classes.
    seen_loader : iterable of batches
        Labelled samples of the seen classes, as in `collect_logits`.
    held_out : bool
        True if the model was not trained on the samples of `seen_loader`, False if it was.
    seen_mask : (C,) bool, optional
        True for the seen classes; default: those that occur in `seen_loader`, which must then have all of them.
    unlabelled_loader : iterable of batches, optional
        Samples of all classes, in the proportions in which the model will be used; labels are ignored. Needs
        ``held_out=True`` or `seen_share`.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used; default: estimated from `unlabelled_loader`, else
        \|S\| / C.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval.
    seed : int, default 0
        Of the resamplings, and of the pairs of `mixed_pair_gap`.
    device : torch.device or str, optional
        As in `collect_logits`.
    batch : callable, optional
        From a batch of either loader to ``(inputs, labels)``, as in `collect_logits`.
    progress : bool, default True
        Whether to show bars on stderr, if tqdm is installed.
    verbose : bool, default True
        Whether to print the estimate to stderr. Warnings are issued either way.
    fold : bool, default False
        Whether to fold gamma into the head of `model` and return that, in place of a wrapper. The fold is proven on the
        first batch of `seen_loader`, as by ``fold_into_head(model, calibrator, inputs=...)``.
    prototypes : bool, default False
        Whether to add prototypes of the samples of `unlabelled_loader`, which it needs, to gamma: see `fit_prototypes`.
        The features are the inputs of the final linear layer, taken in the same pass as the logits; with
        ``held_out=True`` the samples of `seen_loader` serve as a check.
    dim, ignore_index, per_item, balanced, background : optional
        For dense logits, such as `(B, C, H, W)` with ``dim=1``: which positions of each picture gamma is estimated
        from, as in `collect_logits`. Background classes are neither seen nor absent; gamma is not added to them, and
        `unlabelled_loader` cannot be used with them. The interval is by resampling whole pictures.

    Returns
    -------
    CalibratedModel
        Around `model` itself, not a copy. Its ``calibrator.estimate`` is the `GammaEstimate`: gamma, the method, the
        data, what gamma costs the seen classes, and warnings. With prototypes its ``calibrator.report`` is a
        `PrototypesReport`.
    nn.Module
        With ``fold=True``: `model` itself, of its own class, folded. The estimate is then in the attribute
        `finecal_folded` of its head (of ``model.config`` as well, where Hugging Face's models have one), as a dict of
        its fields: ``model.fc.finecal_folded["estimate"]["gamma"]``. To keep the calibrator too, in a file or for
        `unfold_from_head`, fold by `fold_into_head` instead.

    Raises
    ------
    TypeError, ValueError
        As `collect_logits`, `estimate_gamma`, `CalibratedModel` and, with ``fold=True``, `fold_into_head`, with
        ``prototypes=True``, `fit_prototypes`; TypeError if `held_out`, `fold` or `prototypes` is no bool; ValueError if
        `seen_loader` has no labels, `unlabelled_loader` could not be used or is missing where prototypes are made of
        its samples, or, without `seen_mask`, classes with a single sample suggest that others are missing from
        `seen_loader`: they would be taken for absent, and boosted.

    Warns
    -----
    FinecalWarning
        As `collect_logits`, `estimate_gamma` and `fit_prototypes`; if the samples of `seen_loader` come out differently
        when a few of them are drawn again: they are augmented at random. Of a DataLoader only this can be told.

    Notes
    -----
    The logits of all samples are kept while gamma is estimated. Where they do not fit into memory, feed a state of
    `finecal.streaming` by ``collect_logits(..., into=state)``, and make the `CalibratedModel` of an `AdditiveBias`.

    Examples
    --------
    >>> import torch, finecal
    >>> model = torch.nn.Linear(4, 4)
    >>> with torch.no_grad():
    ...     _ = (
    ...         model.weight.copy_(torch.eye(4)),
    ...         model.bias.copy_(torch.tensor([2.0, 2.0, 0.0, 0.0])),
    ...     )
    >>> batches = [(5 * torch.eye(4)[:2], torch.tensor([0, 1]))] * 20
    >>> calibrated = finecal.calibrate_model(
    ...     model, batches, held_out=False, progress=False, verbose=False
    ... )
    >>> calibrated.calibrator
    AdditiveBias(gamma=4.84166, method='estimate_gamma(mixed_pair_gap, seen_share=0.5)', seen=2, absent=2)
    >>> print(calibrated.calibrator.estimate)
    gamma = 4.84166  (estimate_gamma(mixed_pair_gap, seen_share=0.5); from 40 labelled training samples (seen classes))
    Cost: accuracy on seen classes stays at 100.0 % on these samples (training samples, so optimistic)
    >>> folded = finecal.calibrate_model(
    ...     model, batches, held_out=False, progress=False, verbose=False, fold=True
    ... )
    >>> (
    ...     folded is model,
    ...     model.bias.data,
    ...     round(model.finecal_folded["estimate"]["gamma"], 4),
    ... )
    (True, tensor([2.0000, 2.0000, 4.8417, 4.8417]), 4.8417)
    """
    _check_model_data(held_out, unlabelled_loader is not None, seen_share is not None, fold, prototypes)
    check_uncalibrated(model)
    check_flag(progress, "progress")
    check_flag(verbose, "verbose")
    sampling = Sampling(Layout.checked(-1 if dim is None else dim, ignore_index), per_item, balanced, background, seed)
    check_dense(dim, sampling, "prototypes" if prototypes else None)
    check_loader(seen_loader, "seen_loader")
    if unlabelled_loader is not None:
        check_loader(unlabelled_loader, "unlabelled_loader")
        if background is not None:
            raise ValueError(
                "background cannot be told from other positions without labels, so those of unlabelled_loader would be "
                "taken for seen or absent ones; leave out one of the two"
            )
    head = foldable_head(model) if fold else None
    linear = single_head(model) if prototypes else None
    feed = Feed(model, device, batch)
    mask = None if seen_mask is None else check_mask_values(as_bool_mask(seen_mask).cpu())
    if mask is not None:  # else it is not yet known how many classes there are
        check_background(background, mask)
    for sentence in doubts_about_samples(seen_loader, "pass a loader with the transform of the test"):
        warn(f"calibrate_model: {sentence}")
    with recorded_inputs(linear) as inputs:
        recorded = inputs if prototypes else None
        of_seen = recorded if held_out else None
        batches = _FirstKept(model, seen_loader, head, feed, sampling.layout.dim)
        rows = SampleRows(of_seen) if dim is None else PositionRows(sampling)
        others = SampleRows(recorded) if dim is None else PositionRows(replace(sampling, balanced=False))
        seen = _Seen(rows, mask, batches)
        run_over(model, batches, seen, feed, progress, of_seen, dim)
        if unlabelled_loader is not None:
            run_over(model, unlabelled_loader, _Unlabelled(others), feed, progress, recorded, dim)
    logits, labels, groups = rows.joined()
    if mask is None:
        check_complete_sample(labels)
    all_seen = torch.ones(seen.classes, dtype=torch.bool, device="cpu")
    kept = ~check_background(background, all_seen if mask is None else mask)
    mask_of_kept = seen_mask_from_labels(labels, logits.shape[1]) if mask is None else mask[kept]
    mask = all_seen.masked_scatter(kept, mask_of_kept)
    unlabelled, _, unlabelled_groups = others.joined() if unlabelled_loader is not None else (None, None, None)
    samples = Samples(logits, labels, groups=groups)
    estimate = estimate_gamma(
        mask_of_kept,
        train=None if held_out else samples,
        held_out=samples if held_out else None,
        unlabelled=None if unlabelled is None else Samples(unlabelled, groups=unlabelled_groups),
        seen_share=seen_share,
        n_bootstrap=n_bootstrap,
        seed=seed,
    )
    if verbose:
        print(_summary(estimate, mask_of_kept, held_out, unlabelled is not None), file=sys.stderr)
    calibrator: Calibrator
    if unlabelled is not None and prototypes and isinstance(rows, SampleRows) and isinstance(others, SampleRows):
        check = (logits, labels, rows.features.joined()) if held_out else None
        calibrator = fit_prototypes(unlabelled, others.features.joined(), mask, estimate, held_out=check)
        if verbose:
            print(calibrator.report, file=sys.stderr)
    else:
        calibrator = AdditiveBias(mask, estimate, dim=sampling.layout.dim)
    calibrator = calibrator.to(seen.device)
    return fold_proven(model, calibrator, batches.run) if fold else CalibratedModel(model, calibrator)


def _check_model_data(
    held_out: object, has_unlabelled: bool, has_share: bool, fold: object, prototypes: object
) -> None:
    """What `calibrate_model` cannot make use of, before the model runs over it."""
    if check_flag(prototypes, "prototypes") and not has_unlabelled:
        raise ValueError(
            "prototypes are made of unlabelled samples of what the model meets; pass them as unlabelled_loader="
        )
    if not isinstance(fold, bool):
        raise TypeError(
            f"fold is a {type(fold).__name__}; pass True to have gamma folded into the head of model, False for a "
            "CalibratedModel (to fold into a layer of your choice, use fold_into_head)"
        )
    if not isinstance(held_out, bool):
        raise TypeError(
            f"held_out is a {type(held_out).__name__}; pass True if the model was not trained on the samples of "
            "seen_loader, False if it was"
        )
    if has_unlabelled and not held_out and not has_share:
        raise ValueError(
            "unlabelled_loader needs samples that the model was not trained on, seen_loader with held_out=True, or "
            "seen_share=, the share of seen-class samples in it; give one of these, or leave it out"
        )


class _FirstKept:
    """The batches of a loader, which may give them once only: the first is kept, and shows whether a fold will work."""

    def __init__(self, model: nn.Module, loader: Iterable[Any], head: Head | None, feed: Feed, dim: int) -> None:
        self._model, self._loader, self._head, self._feed, self.dim = model, loader, head, feed, dim
        self.first: Any = None

    def run(self) -> Tensor:
        """Return the logits of the first batch."""
        return logits_for(self._model, self._feed.parted(self.first)[0])

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._loader):
            if number == 0:
                self.first = batch
                if self._head is not None:
                    prove(self._head, torch.zeros(self._head.outputs), self.run, self.dim)
            yield batch

    def __len__(self) -> int:
        return len(self._loader)  # type: ignore[arg-type]  # a TypeError, where it has none, as of the loader itself


class _Seen:
    """Hands labelled batches on, checked at the first one as far as that tells; notes what the logits are like."""

    def __init__(self, rows: SampleRows | PositionRows, mask: Tensor | None, batches: _FirstKept) -> None:
        self._rows, self._mask, self._batches = rows, mask, batches
        self.device = torch.device("cpu")
        self.classes = 0

    def update(self, logits: Tensor, labels: object) -> None:
        if labels is None:
            raise ValueError(
                "seen_loader has no labels; its batches must be (inputs, labels), or mappings with the key 'labels': "
                f"{way_out(self._batches.first)}"
            )
        self.device, self.classes = logits.device, logits.shape[self._batches.dim]
        if self._mask is not None:
            dense_shape = logits.shape if logits.ndim > 2 else ()
            check_num_columns(self.classes, self._mask.shape[0], dense_shape=dense_shape)
        self._rows.update(logits, labels)


class _Unlabelled:
    """Hands logits on without the labels, which may be anything where they are not known."""

    def __init__(self, rows: SampleRows | PositionRows) -> None:
        self._rows = rows

    def update(self, logits: Tensor, labels: object) -> None:
        self._rows.update(logits, None)


def _summary(estimate: GammaEstimate, mask: Tensor, held_out: bool, has_unlabelled: bool) -> str:
    """Say what was done, what to expect, and what cannot be seen, without the warnings, which are issued as such."""
    seen = int(mask.sum())
    return (
        f"{replace(estimate, warnings=())}\n{seen} seen, {mask.shape[0] - seen} absent classes\n"
        f"{_unseen(held_out, has_unlabelled)}"
    )


def _unseen(held_out: bool, has_unlabelled: bool) -> str:
    """Say what the data at hand cannot show, and which data would."""
    if has_unlabelled:
        return (
            "Unlabelled samples cannot show how often absent classes are confused with each other: a few labelled "
            "samples of all classes would, with search_gamma."
        )
    what = (
        "Seen samples cannot show what gamma brings back, nor the share of absent ones: unlabelled samples of all "
        "classes would, with unlabelled_loader="
    )
    if held_out:
        return f"{what}."
    cost = "Training samples cannot show the true cost: held-out samples would, with held_out=True."
    return f"{cost} {what} beside held-out ones."
