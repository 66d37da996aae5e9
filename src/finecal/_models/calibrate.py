"""From a fine-tuned model and a loader to the calibrated model, in one call."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .._calibrators.additive_bias import AdditiveBias, Calibrator
from .._calibrators.prototypes import fit_prototypes
from .._core.arrays import Mask, check_flag
from .._core.calibrate import are_ignored, shape_without
from .._core.checks import as_bool_mask, check_background, check_mask_values, check_num_columns, labels_as_tensor
from .._core.seen_mask import check_complete_sample, seen_mask_from_labels
from .._core.warning import warn
from .._estimators.auto import estimate_gamma
from .calibrated_model import CalibratedModel
from .collect import check_loader, check_rows_wanted, run_over
from .feed import Feed, SplitBatch
from .fold import check_uncalibrated
from .heads import HeadInputs, capture_head_inputs, single_head
from .output import Output
from .positions import LineFrames, PositionRows, Positions, SampleRows, check_selection
from .repeatability import AUGMENTED, are_augmented
from .shares import Share


def calibrate_model(
    model: nn.Module,
    seen_loader: Iterable[Any],
    *,
    is_held_out: bool,
    seen_mask: Mask | None = None,
    unlabelled_loader: Iterable[Any] | None = None,
    seen_share: float | None = None,
    with_prototypes: bool = False,
    positions: Positions | LineFrames | None = None,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    n_bootstrap: int = 0,
    verbose: bool = True,
) -> CalibratedModel:
    r"""Estimate gamma for a fine-tuned model from labelled samples of its seen classes, and put the two together.

    Parameters
    ----------
    model : nn.Module
        The fine-tuned model, with logits for all C classes.
    seen_loader : iterable of batches
        Labelled samples of the seen classes, as in `collect_logits`.
    is_held_out : bool
        True if the model was not trained on the samples of `seen_loader`, False if it was.
    seen_mask : (C,) bool, optional
        True for the seen classes; default: those that occur in `seen_loader`, which must then have all of them.
    unlabelled_loader : iterable of batches, optional
        Samples of all classes, in the proportions in which the model will be used; labels are ignored, except for the
        `ignore_index` of `positions`. Needs ``is_held_out=True`` or `seen_share`.
    seen_share : float in (0, 1), optional
        Share of seen-class samples where the model will be used; default: estimated from `unlabelled_loader`, else
        \|S\| / C.
    with_prototypes : bool, default False
        Whether to add prototypes of the samples of `unlabelled_loader`, which it needs, to gamma: see `fit_prototypes`.
        The features are the inputs of the final linear layer, taken in the same pass as the logits; with
        ``is_held_out=True`` the samples of `seen_loader` serve as a check.
    positions : Positions or sequences.CtcFrames, optional
        For dense logits, such as `(B, C, H, W)`: which positions of each picture gamma is estimated from. Gamma is not
        added to background classes, and `unlabelled_loader` cannot be used with them. For lines of text, the settings
        by which frames are samples; gamma is not added to the blank.
    batch, output
        As in `collect_logits`, for both loaders; `output` for the `CalibratedModel`, too.
    n_bootstrap : int, default 0
        Resamplings for a 95 % interval; of whole pictures for dense logits.
    verbose : bool, default True
        Whether to print the estimate to stderr, and to show bars there if tqdm is installed. Warnings are issued either
        way.

    Returns
    -------
    CalibratedModel
        Around `model` itself, not a copy. Its ``calibrator.estimate`` is the `GammaEstimate`; with prototypes its
        ``calibrator.report`` is a `PrototypesReport`.

    Raises
    ------
    TypeError, ValueError
        As `collect_logits`, `estimate_gamma`, `CalibratedModel` and, with ``with_prototypes=True``, `fit_prototypes`;
        TypeError if `is_held_out` or `with_prototypes` is no bool; ValueError if `seen_loader` has no labels,
        `unlabelled_loader` could not be used or is missing where prototypes are made of its samples, or, without
        `seen_mask`, classes with a single sample suggest that others are missing from `seen_loader`; in every process,
        if the samplers of several differ (length, seed, epoch), or a model that communicates (FSDP, buffers under DDP)
        would run unequally often.

    Warns
    -----
    FinecalWarning
        As `collect_logits`, `estimate_gamma` and `fit_prototypes`; if the samples of a DataLoader are augmented at
        random; if gamma takes more than a tenth of the background for absent classes.

    Notes
    -----
    The logits of all samples are kept while gamma is estimated. Where they do not fit into memory, feed a state of
    `finecal.streaming` by ``collect_logits(..., into=state)``, and make the `CalibratedModel` of an `AdditiveBias`.

    In a process group all processes call this, and all get the same estimate, from the samples of all. What a
    `DistributedSampler` or a loader of Accelerate repeats counts once, as do samples that all processes have; what
    other loaders repeat counts again. See :doc:`/how-to/distributed`.

    Examples
    --------
    >>> import torch, finecal
    >>> model = torch.nn.Linear(4, 4)
    >>> _ = model.weight.data.copy_(torch.eye(4))
    >>> _ = model.bias.data.copy_(torch.tensor([2.0, 2.0, 0.0, 0.0]))
    >>> batches = [(5 * torch.eye(4)[:2], torch.tensor([0, 1]))] * 20
    >>> calibrated = finecal.calibrate_model(
    ...     model, batches, is_held_out=False, verbose=False
    ... )
    >>> calibrated.calibrator
    AdditiveBias(gamma=4.84166, method='estimate_gamma(mixed_pair_gap, seen_share=0.5)', seen=2, absent=2)
    >>> print(calibrated.calibrator.estimate)
    gamma = 4.84166  (estimate_gamma(mixed_pair_gap, seen_share=0.5); from 40 labelled training samples (seen classes))
    Cost: accuracy on seen classes stays at 100.0 % on these samples (training samples, so optimistic)
    Pays at any share of absent samples
    >>> folded = calibrated.fold(batches[0][0])
    >>> folded is model, model.bias.data
    (True, tensor([2.0000, 2.0000, 4.8417, 4.8417]))
    """
    _check_arguments(is_held_out, unlabelled_loader is not None, seen_share is not None, with_prototypes)
    check_uncalibrated(model)
    check_flag(verbose, "verbose")
    check_rows_wanted(check_selection(positions), with_prototypes, "with_prototypes")
    check_loader(seen_loader, "seen_loader")
    lines = positions if isinstance(positions, LineFrames) else None
    dense = Positions(lines.dim, background=lines.blank, shift=0) if lines is not None else positions
    assert not isinstance(dense, LineFrames)
    background = None if dense is None else dense.background
    items = 0 if lines is None or lines.batch_first else 1
    if unlabelled_loader is not None:
        check_loader(unlabelled_loader, "unlabelled_loader")
        if background is not None and lines is None:
            raise ValueError(
                "background cannot be told from other positions without labels, so those of unlabelled_loader would be "
                "taken for seen or absent ones; leave out one of the two"
            )
    linear = single_head(model) if with_prototypes else None
    feed = Feed(model, None, batch, output)
    mask = None if seen_mask is None else check_mask_values(as_bool_mask(seen_mask).cpu())
    if mask is not None:  # else it is not yet known how many classes there are
        check_background(background, mask, "background" if lines is None else "blank")
    dim = None if dense is None else dense.dim
    with capture_head_inputs(linear) as inputs:
        recorded = inputs if with_prototypes else None
        of_seen = recorded if is_held_out else None
        rows = _rows(lines, dense, of_seen, watches_background=background is not None)
        seen = _Seen(rows, mask, -1 if dim is None else dim)
        share = Share(seen_loader, model, "seen_loader")
        verbose = verbose and share.is_first
        state = share.counted(seen, dim, items)
        run_over(model, seen_loader, state, feed, verbose, of_seen, dense, needs_labels="seen_loader")
        samples = share.gather(rows.samples().to("cpu"))
        augmented = are_augmented(seen_loader, again=True)
        if augmented:
            warn(f"calibrate_model: {AUGMENTED}: pass a loader with the transform of the test")
        unlabelled = None
        if unlabelled_loader is not None:
            if dense is not None:
                dense = replace(dense, class_balanced=False, shift=dense.shift or 0)
            others = _rows(lines, dense, recorded)
            share = Share(unlabelled_loader, model, "unlabelled_loader")
            state = share.counted(_Unlabelled(others, dense), dim, items)
            run_over(model, unlabelled_loader, state, feed, verbose, recorded, dense)
            unlabelled = share.gather(others.samples().to("cpu"))
    if mask is None:
        check_complete_sample(samples.labels_tensor)
    all_seen = torch.ones(seen.classes, dtype=torch.bool, device="cpu")
    kept = ~check_background(background, all_seen if mask is None else mask)
    mask_of_kept = seen_mask_from_labels(samples.labels_tensor, samples.num_classes) if mask is None else mask[kept]
    mask = all_seen.masked_scatter(kept, mask_of_kept)
    estimate = estimate_gamma(
        mask_of_kept,
        train=None if is_held_out else samples,
        held_out=samples if is_held_out else None,
        unlabelled=unlabelled,
        seen_share=seen_share,
        n_bootstrap=n_bootstrap,
    )
    if isinstance(rows, PositionRows):
        rows.check_background(mask, estimate, "calibrate_model")
    if verbose:
        print(replace(estimate, warnings=()), file=sys.stderr)  # they were issued
        count = int(mask_of_kept.sum())
        print(f"{count} seen, {len(mask_of_kept) - count} absent classes", file=sys.stderr)
        print(_not_shown(is_held_out, unlabelled is not None), file=sys.stderr)
        if augmented is None:
            print(_AUGMENTED_OR_NOT, file=sys.stderr)
    calibrator: Calibrator
    if unlabelled is not None and with_prototypes:
        calibrator = fit_prototypes(unlabelled, mask, estimate, held_out=samples if is_held_out else None)
        if verbose:
            print(calibrator.report, file=sys.stderr)
    else:
        calibrator = AdditiveBias(mask, estimate, dim=-1 if dim is None or lines is not None else dim)
    return CalibratedModel(model, calibrator.to(seen.device), output=output)


_AUGMENTED_OR_NOT = (
    "It cannot be told whether seen_loader augments the samples at random, which it should not: it gives them once, or "
    "in an order of its own."
)


def _check_arguments(is_held_out: object, has_unlabelled: bool, has_share: bool, with_prototypes: object) -> None:
    """Reject arguments that cannot be used together, before the model runs."""
    if check_flag(with_prototypes, "with_prototypes") and not has_unlabelled:
        raise ValueError(
            "prototypes are made of unlabelled samples of what the model meets; pass them as unlabelled_loader="
        )
    if not isinstance(is_held_out, bool):
        raise TypeError(
            f"is_held_out is a {type(is_held_out).__name__}; pass True if the model was not trained on the samples of "
            "seen_loader, False if it was"
        )
    if has_unlabelled and not is_held_out and not has_share:
        raise ValueError(
            "unlabelled_loader needs samples that the model was not trained on, seen_loader with is_held_out=True, or "
            "seen_share=, the share of seen-class samples in it; give one of these, or leave it out"
        )


def _rows(
    lines: LineFrames | None, dense: Positions | None, recorded: HeadInputs | None, watches_background: bool = False
) -> SampleRows | PositionRows | LineFrames:
    """Return the state that keeps samples."""
    if lines is not None:
        return lines.emptied()
    return SampleRows(recorded) if dense is None else PositionRows(dense, watches_background)


class _Seen:
    """Passes labelled batches on, compares their width with the mask, and notes the device and width of the logits."""

    def __init__(self, rows: SampleRows | PositionRows | LineFrames, mask: Tensor | None, dim: int) -> None:
        self._rows, self._mask, self._dim = rows, mask, dim
        self.device = torch.device("cpu")
        self.classes = 0

    def update(self, logits: Tensor, labels: object) -> None:
        self.device, self.classes = logits.device, logits.shape[self._dim]
        if self._mask is not None:
            dense_shape = logits.shape if logits.ndim > 2 else ()
            check_num_columns(self.classes, self._mask.shape[0], dense_shape=dense_shape)
        self._rows.update(logits, labels)


class _Unlabelled:
    """Passes logits on without labels, but for what does not count: the label of padding, the lengths of lines.

    Anything else may stand in the place of labels in unlabelled batches.
    """

    def __init__(self, rows: SampleRows | PositionRows | LineFrames, positions: Positions | None) -> None:
        self._rows, self._positions = rows, positions

    def update(self, logits: Tensor, labels: object) -> None:
        own: object = None if self._positions is None else self._ignored(logits, labels)
        if isinstance(self._rows, LineFrames):
            lengths = labels.get("input_lengths") if isinstance(labels, Mapping) else None
            own = None if lengths is None else {"input_lengths": lengths}
        self._rows.update(logits, own)

    def _ignored(self, logits: Tensor, labels: object) -> Tensor | None:
        """Return labels that say which positions do not count; None if there are none."""
        assert self._positions is not None
        dim, ignore_index = self._positions.layout
        if ignore_index is None or labels is None:
            return None
        own = labels_as_tensor(labels, "labels")
        if own.shape != shape_without(logits, dim):
            return None
        return torch.where(are_ignored(own, ignore_index), ignore_index, 0)


def _not_shown(is_held_out: bool, has_unlabelled: bool) -> str:
    """Name the quantities that the given data cannot show, and the data that would show them."""
    if has_unlabelled:
        return (
            "Unlabelled samples cannot show how often absent classes are confused with each other: a few labelled "
            "samples of all classes would, with search_gamma."
        )
    limits = (
        "Seen samples cannot show what gamma brings back, nor the share of absent ones: unlabelled samples of all "
        "classes would, with unlabelled_loader="
    )
    if is_held_out:
        return f"{limits}."
    cost = "Training samples cannot show the true cost: held-out samples would, with is_held_out=True."
    return f"{cost} {limits} beside held-out ones."
