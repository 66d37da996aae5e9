"""Lines of text for CTC: which of their frames are samples, and what is read at a gamma."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from .._core.arrays import Logits, Mask, as_tensor, as_type_of, check_count, check_flag, check_number, shape_of
from .._core.calibrate import predict
from .._core.checks import (
    as_logits,
    check_background,
    check_index_dtype,
    check_index_range,
    check_mask,
    check_mask_values,
    check_same_device,
    check_scores,
    gamma_as_float,
    labels_as_tensor,
)
from .._core.kernels import wide_dtype
from .._core.samples import Samples
from .._core.warning import warn
from .._models.positions import have_labels
from ._alignment import align

_KEYS = {"targets", "input_lengths", "target_lengths"}


class CtcFrames:
    r"""The frames of lines of text that are samples: a state that takes batches of a CTC model.

    Each line is aligned with its text: the likeliest path that spells it gives each frame a character or the blank.
    Frames of the blank are left out, and so is its column. A line without text gets its likeliest path of all, the
    largest logit of each frame. `collect_logits` takes the state as ``into=``. `calibrate_model` takes its settings as
    ``positions=``.

    Parameters
    ----------
    batch_first : bool
        Whether logits are `(B, T, C)`, or else `(T, B, C)`, as `torch.nn.CTCLoss` takes them.
    blank : int, default 0
        Class of the blank.
    best_only : bool, default False
        Whether to keep one frame of each character, that of its largest probability. Default: all of them.
    min_confidence : float, default 0
        Leaves out lines whose path has a smaller probability per frame, the geometric mean. In [0, 1].

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type or out of its range.

    See Also
    --------
    greedy_decode, character_scores

    Examples
    --------
    >>> import torch, finecal
    >>> logits = torch.tensor([[[0.0, 5, 1], [0, 4, 1], [6, 0, 0], [0, 1, 3]]])
    >>> frames = finecal.sequences.CtcFrames(batch_first=True)
    >>> samples = frames.update(logits, torch.tensor([[1, 2]])).samples()
    >>> samples, samples.labels, samples.groups
    (Samples(3 x 2 logits, labels, groups), tensor([0, 0, 1]), tensor([0, 0, 0]))
    """

    dim = 2
    """Where `collect_logits` finds the classes."""

    def __init__(
        self, *, batch_first: bool, blank: int = 0, best_only: bool = False, min_confidence: float = 0.0
    ) -> None:
        self.batch_first: bool = check_flag(batch_first, "batch_first")
        self.blank: int = check_count(blank, "blank")
        self.best_only: bool = check_flag(best_only, "best_only")
        self.min_confidence: float = check_number(min_confidence, "min_confidence")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence is {self.min_confidence}; it is a probability per frame, in [0, 1]")
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._as_given = as_type_of(torch.empty(0))
        self._labelled: bool | None = None
        self._lines = self._unaligned = 0

    def update(self, logits: Logits, labels: Any = None) -> CtcFrames:
        """Add a batch of B lines.

        Parameters
        ----------
        logits : (B, T, C) or (T, B, C) tensor or array, float64, float32, float16 or bfloat16
            Scores of each frame, by `batch_first`; log-probabilities are fine.
        labels : (B, S) int, or mapping, optional
            The texts, as class indices, padded with the blank or with any negative number. Or a mapping with some of
            "targets", "input_lengths" and "target_lengths", which are what `torch.nn.CTCLoss` takes: targets also one
            after the other; without "input_lengths" all frames count. Without targets, the lines have no text.

        Returns
        -------
        CtcFrames
            Itself.

        Raises
        ------
        TypeError
            If `logits` is not floating point, or labels or lengths are not integer.
        ValueError
            If shapes, devices or the classes of batches differ, targets hold a blank or no class, lengths are out of
            range, logits hold NaN, +inf or probabilities, or only some batches have targets.
        """
        x, input_lengths = _lines_of(logits, _entry(labels, "input_lengths"), self.batch_first, self.blank)
        name, targets = ("targets", _entry(labels, "targets")) if isinstance(labels, Mapping) else ("labels", labels)
        labelled = have_labels(targets, self._labelled)
        classes = self._rows[0][0].shape[1] + 1 if self._rows else x.shape[2]
        if x.shape[2] != classes:
            raise ValueError(f"logits have {x.shape[2]} classes, and had {classes} before; pass those of one model")
        log_probs = x.to(wide_dtype(x.dtype)).log_softmax(2)
        inside = _inside(input_lengths, x.shape[1])
        _check_frames(x[inside])
        if labelled:
            texts, lengths = _texts_of(targets, name, _entry(labels, "target_lengths"), x, self.blank)
            paths, totals = align(log_probs, texts, input_lengths, lengths, self.blank)
        else:
            largest, paths = log_probs.max(2)
            paths = paths.where(inside, self.blank)
            totals = largest.where(inside, 0.0).sum(1)
        aligned = totals > -torch.inf
        per_frame = (totals / input_lengths.clamp(min=1)).exp()
        kept = (paths != self.blank) & (aligned & (per_frame >= self.min_confidence))[:, None]
        if self.best_only:
            kept &= _best_of_runs(paths, log_probs.gather(2, paths[:, :, None])[:, :, 0])
        line, frame = kept.nonzero(as_tuple=True)
        own = paths[line, frame]
        columns = torch.arange(x.shape[2], device=x.device) != self.blank
        self._rows.append((x[line, frame][:, columns], own - (own > self.blank).long(), line + self._lines))
        self._as_given, self._labelled = as_type_of(logits), labelled
        self._lines += len(x)
        self._unaligned += int((~aligned).sum())
        return self

    def samples(self) -> Samples:
        """Return the frames without the column of the blank, in groups that are their lines.

        Returns
        -------
        Samples
            Of C - 1 classes, of the type of the logits: the mask that goes with them is that of all classes without
            its entry for the blank. Groups are numbered in the order of the lines.

        Raises
        ------
        ValueError
            If there was no batch.

        Warns
        -----
        FinecalWarning
            If lines were left out because no path of theirs spells the text: it has more characters, with a blank
            between two equal ones, than there are frames; or -inf masks one of them.
        """
        if not self._rows:
            raise ValueError("there is no line; call update(logits, labels) for each batch first")
        if self._unaligned:
            warn(
                f"CtcFrames: {self._unaligned} of {self._lines} lines were left out, since their frames are too few to "
                "spell their texts, or -inf masks a character; check input_lengths, and that texts fit their pictures"
            )
        rows, labels, groups = (self._as_given(torch.cat(parts)) for parts in zip(*self._rows, strict=True))
        return Samples(rows, labels if self._labelled else None, groups=groups)

    def emptied(self) -> CtcFrames:
        """Private: the same settings, without a line."""
        return CtcFrames(
            batch_first=self.batch_first,
            blank=self.blank,
            best_only=self.best_only,
            min_confidence=self.min_confidence,
        )

    def __repr__(self) -> str:
        return f"CtcFrames({self._lines} lines)"


def greedy_decode(
    logits: Logits,
    seen_mask: Mask,
    gamma: SupportsFloat = 0.0,
    *,
    batch_first: bool,
    blank: int = 0,
    input_lengths: Any = None,
) -> list[list[int]]:
    r"""Read lines of text, with gamma added to the logits of the absent classes.

    The class that `predict` gives each frame; repeated ones are merged, then blanks are dropped.

    Parameters
    ----------
    logits : (B, T, C) or (T, B, C) tensor or array, float64, float32, float16 or bfloat16
        Scores of each frame; log-probabilities are fine.
    seen_mask : (C,) bool
        True for the seen classes, and for the blank: gamma is not added to it.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        0 for a calibrated model, whose logits have it.
    batch_first : bool
        Whether logits are `(B, T, C)`, or else `(T, B, C)`.
    blank : int, default 0
        Class of the blank.
    input_lengths : (B,) int, optional
        How many frames of each line count. Default: all.

    Returns
    -------
    list of list of int
        The class indices of each line.

    Raises
    ------
    TypeError, ValueError
        As `predict`; ValueError if `seen_mask` is False for the blank, shapes do not match, or logits hold NaN or
        +inf; if `gamma` is not 0, also if they hold probabilities.

    Examples
    --------
    >>> import torch, finecal
    >>> logits = torch.tensor([[[0.0, 5, 1], [0, 4, 1], [6, 0, 0], [0, 2, 1]]])
    >>> seen_mask = torch.tensor([True, True, False])
    >>> finecal.sequences.greedy_decode(logits, seen_mask, batch_first=True)
    [[1, 1]]
    >>> finecal.sequences.greedy_decode(logits, seen_mask, 2.0, batch_first=True)
    [[1, 2]]
    """
    check_flag(batch_first, "batch_first")
    blank = check_count(blank, "blank")
    x, lengths = _lines_of(logits, input_lengths, batch_first, blank)
    mask = check_mask_values(check_mask(seen_mask, x.shape[2], x.device, x.shape))
    check_background(blank, mask, "blank")
    inside = _inside(lengths, x.shape[1])
    rows = x[inside]
    if gamma_as_float(gamma) or not bool((rows.amax(1) < torch.inf).all()):
        _check_frames(rows)  # with gamma 0 probabilities give the same classes
    paths = predict(x, mask, gamma).where(inside, blank)
    starts = (paths != blank) & _starts_of_runs(paths)
    return [path[start].tolist() for path, start in zip(paths, starts, strict=True)]


def _lines_of(logits: object, input_lengths: object, batch_first: bool, blank: int) -> tuple[Tensor, Tensor]:
    """Return logits as `(B, T, C)`, and how many frames of each line count."""
    x = as_logits(as_tensor(logits, "logits"), any_batch=True).detach()
    if x.ndim != 3:
        form = "(B, T, C)" if batch_first else "(T, B, C)"
        raise ValueError(f"logits have shape {shape_of(x)}; with batch_first={batch_first} they must be {form}")
    if blank >= x.shape[2]:
        raise ValueError(f"blank is {blank}, but logits have only {x.shape[2]} classes")
    x = x if batch_first else x.transpose(0, 1)
    if input_lengths is None:
        return x, torch.full((len(x),), x.shape[1], device=x.device)
    return x, _lengths_of(input_lengths, "input_lengths", x, x.shape[1], "frames of the logits")


def _check_frames(rows: Tensor) -> None:
    """Refuse NaN, +inf and probabilities, as PaddleOCR's recognisers return them."""
    check_scores(rows, rows.amax(1))


def _entry(labels: object, name: str) -> Any:
    """Return an entry of labels that are a mapping, or None."""
    if not isinstance(labels, Mapping):
        return None
    if unknown := sorted(map(str, labels.keys() - _KEYS)):
        raise ValueError(f"labels have the entry {unknown[0]!r:.60}; expected some of {sorted(_KEYS)}")
    return labels.get(name)


def _lengths_of(lengths: object, name: str, logits: Tensor, most: int, bound: str) -> Tensor:
    """Return an integer in [0, most] for each line, as int64."""
    own = labels_as_tensor(lengths, name)
    if own.shape != (len(logits),):
        raise ValueError(
            f"{name} have shape {shape_of(own)}; expected ({len(logits)},), one for each line of the logits"
        )
    if own.numel():
        check_index_dtype(own, name)
    check_same_device(own, logits.device, name)
    return check_index_range(own, most + 1, name, f"{bound}, and one more", "lengths are of the padded arrays at most")


def _inside(lengths: Tensor, width: int) -> Tensor:
    """Return `(B, width)` bool, True within the length of each row."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def _texts_of(targets: object, name: str, lengths: object, logits: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """Return texts as `(B, S)` class indices, padded with the blank, and their lengths; `name` is the argument's."""
    own = labels_as_tensor(targets, name)
    if own.numel():
        check_index_dtype(own, name)
    check_same_device(own, logits.device, name)
    own = own.to(torch.int64)
    if not (own.ndim == 2 and len(own) == len(logits)) and not (own.ndim == 1 and lengths is not None):
        raise ValueError(
            f"{name} have shape {shape_of(own)} for logits of {len(logits)} lines; pass ({len(logits)}, S), padded "
            "with the blank or a negative number, or all texts one after the other together with target_lengths"
        )
    if lengths is not None:
        each = _lengths_of(lengths, "target_lengths", logits, own.shape[-1], f"width of {name}")
    else:
        each = ((own >= 0) & (own != blank)).long().cumprod(1).sum(1)
        if bool((~_inside(each, own.shape[1]) & (own >= 0) & (own != blank)).any()):
            raise ValueError(f"{name} have a class after the blank {blank} or a negative number, which end a text")
    if own.ndim == 1 and int(each.sum()) != len(own):
        raise ValueError(f"target_lengths add up to {int(each.sum())}, but {name} have {len(own)} entries")
    inside = _inside(each, int(each.max()) if own.ndim == 1 and len(each) else own.shape[-1])
    flat = own if own.ndim == 1 else own[inside]
    check_index_range(flat, logits.shape[2], name, "number of classes of the logits")
    if bool((flat == blank).any()):
        raise ValueError(f"{name} hold the blank, {blank}, within a text; leave it out, or check blank=")
    return torch.full(inside.shape, blank, device=own.device).masked_scatter(inside, flat), each


def _starts_of_runs(paths: Tensor) -> Tensor:
    """Return `(B, T)` bool, True where a frame is of another class than the one before it."""
    starts = torch.ones_like(paths, dtype=torch.bool)
    starts[:, 1:] = paths[:, 1:] != paths[:, :-1]
    return starts


def _best_of_runs(paths: Tensor, values: Tensor) -> Tensor:
    """Return `(B, T)` bool, True at the largest value of each run of equal classes, the first one at a tie."""
    runs = _starts_of_runs(paths).flatten().cumsum(0)
    order = values.flatten().argsort(descending=True, stable=True)
    order = order[runs[order].argsort(stable=True)]
    best = torch.zeros_like(runs, dtype=torch.bool)
    best[order[_starts_of_runs(runs[order][None])[0]]] = True
    return best.view_as(paths)
