"""``finecal fold``: a saved classifier and its fine-tuning data in, the same classifier with gamma in its head out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._calibrators.additive_bias import AdditiveBias
from .._core.arrays import check_share
from .._core.calibrate import drop_classes
from .._core.checks import check_background, check_mask_values
from .._core.curve import tradeoff_curve
from .._core.files import check_destination, check_source, new_directory, new_file
from .._core.logits_file import LogitsFile, read_class_names
from .._core.report import SeenAbsentReport
from .._core.results import format_table, from_to, percent, points, visible
from .._core.samples import Samples
from .._core.seen_mask import types_of_tags
from .._core.warning import error_context
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import TRAINING, GammaEstimate, break_even_in_words, gamma_record
from .._estimators.seen_budget import seen_budget_gamma
from .._models.collect import collect_logits
from .._models.feed import Feed
from .._models.fold import FOLDED, fold_into_head
from .._models.fold_check import foldable_head
from .._models.fold_trial import logits_for
from .._models.positions import Positions, background_kept
from ..integrations._calibration import check_head_fold
from ..integrations._saved_model import IGNORED, Batches, SavedModel, SavedTimm, Scored, card_section, check_written
from .commands import json_of
from .data import Dataset, class_indices
from .saved import check_directory, check_kind, check_running, is_onnx, open_directory, read_data, refuse_options
from .sources import read_seen_mask

_CONFIDENCE = 0.95
_ClassIndices: TypeAlias = Tensor | Sequence[Tensor]
"""Of samples, or of the words of each sentence."""
_GROUPS = {"seen": "acc_seen", "absent": "acc_absent", "all": "acc_all"}


class _Folded(NamedTuple):
    """A copy that was written, and what there is to tell of it."""

    saved: Scored
    classified: _Classified
    found: _Found
    rows: list[list[str]]
    left_out: Sequence[str] = ()


def fold(args: argparse.Namespace, sentences: list[str]) -> None:
    _check_options(args)
    data = _read_data(args)
    folded = _fold_graph(args, data) if is_onnx(args.model) else _fold_head(args, data)
    if args.json:
        print(json_of(_record(args, folded), sentences), end="")
        return
    print(format_table(folded.rows[0], folded.rows[1:]))
    before, after = folded.found.before, folded.found.after
    if before is not None and after is not None:
        print(f"\n{_accuracy_table(args, before, after)}\n")
    if folded.left_out:
        shown = ", ".join(folded.left_out)
        print(visible(f"left out, as they have the weights without gamma: {shown}", and_lines=True))
    print(visible(f"wrote {args.out}, which needs no finecal: {folded.saved.usage(args.out)}", and_lines=True))


def _fold_head(args: argparse.Namespace, data: _Data) -> _Folded:
    saved = _opened(args)
    head = foldable_head(saved.model)
    check_kind(saved, data.train, "--train")
    classified = _classified(args, saved, data, head.outputs)
    first = data.train.items[: args.batch_size]
    inputs = Feed(saved.model).to_model_device(saved.inputs(first))
    with _explain_lengths(args):
        check_head_fold(saved.model, lambda: logits_for(saved.model, inputs))  # before all others are run
        found = _estimated(args, saved, classified)
    fold_into_head(saved.model, AdditiveBias(classified.mask, found.estimate), inputs=inputs)
    record = vars(head.layers[0])[FOLDED]
    added = torch.where(classified.mask, 0.0, found.estimate.gamma)
    rows = _rows(args, found, classified.mask)
    num_absent = int((~classified.mask).sum())
    card = card_section(rows, classified.seen_names(), num_absent, found.estimate.warnings)
    expected = logits_for(saved.model, inputs)
    is_file = args.timm is not None and args.out.suffix.lower() == ".safetensors"
    with new_file(args.out) if is_file else new_directory(args.out) as target:
        left_out = saved.write(target, added, record, card)
        check_written(saved, target, first, expected)
    return _Folded(saved, classified, found, rows, left_out)


def _fold_graph(args: argparse.Namespace, data: _Data) -> _Folded:
    try:
        from ..integrations._saved_onnx import SavedOnnx
    except ImportError as error:
        raise ImportError(
            f"{args.parser.prog} needs onnx and onnxruntime ({error}): pip install 'finecal[onnx]'"
        ) from error
    saved = SavedOnnx(args.model, args.output_name)
    first = data.train.items[: args.batch_size]
    classified = _classified(args, saved, data, saved.num_classes(first))
    found = _estimated(args, saved, classified)
    with new_file(args.out) as target:
        place = saved.write(target, AdditiveBias(classified.mask, found.estimate), first)
    return _Folded(saved, classified, found, [*_rows(args, found, classified.mask), ["place", place]])


# --- what is given ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """The samples: of the fine-tuning, and others if there are any."""

    train: Dataset
    held_out: Dataset | None
    unlabelled: Dataset | None


class _Classified(NamedTuple):
    """Samples to be scored, their class indices, and the seen classes."""

    train: Dataset
    train_labels: _ClassIndices
    held_out: Dataset | None
    held_out_labels: _ClassIndices | None
    unlabelled: Dataset | None
    mask: Tensor
    class_names: tuple[str, ...] | None
    are_words: bool
    background: int | None
    """The class "O", which gamma is estimated without, where labels say which words are outside of entities."""

    def seen_names(self) -> list[str]:
        seen = self.mask.nonzero().squeeze(1).tolist()
        return [str(index) if self.class_names is None else self.class_names[index] for index in seen]


def _check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    elsewhere = {
        "--base": args.base,
        "--max-length": args.max_length,
        "--trust-remote-code": args.trust_remote_code,
    }
    of_torch = {**elsewhere, "--text-column": args.text_column, "--device": args.device}
    check_running(args)
    if (args.model is None) == (args.timm is None):
        raise ValueError("give MODEL_DIR, MODEL.onnx, or --timm NAME with --checkpoint FILE")
    if (args.timm is None) != (args.checkpoint is None):
        raise ValueError("--timm NAME and --checkpoint FILE go together; give both, or MODEL_DIR")
    if args.timm is not None:
        refuse_options(elsewhere, "directories of Hugging Face, not about timm")
    elif is_onnx(args.model):
        refuse_options(of_torch, "models in torch, not about ONNX files")
        check_source(args.model)
        check_destination(args.out, (".onnx",))
    else:
        check_directory(args.model, args.out)
    if not is_onnx(args.model):
        refuse_options({"--output-name": args.output_name}, "ONNX files")
    if args.max_seen_drop is not None:
        check_share(args.max_seen_drop, "--max-seen-drop")
        if args.held_out is None:
            raise ValueError(
                "--max-seen-drop needs --held-out, labelled samples that the model was not trained on: those of "
                "--train do not tell what is lost"
            )
    if args.seen_share is not None:
        check_share(args.seen_share, "--seen-share")
    if args.unlabelled is not None and args.held_out is None and args.seen_share is None:
        raise ValueError(
            "--unlabelled needs --held-out, labelled samples that the model was not trained on, or --seen-share, the "
            "share of seen samples in it; give one of these, or leave it out"
        )


def _read_data(args: argparse.Namespace) -> _Data:
    train, held_out, unlabelled = read_data(args, args.train, args.held_out, args.unlabelled)
    return _Data(train, held_out, unlabelled)


def _opened(args: argparse.Namespace) -> SavedModel:
    """Load the model."""
    if args.timm is not None:
        return SavedTimm(args.checkpoint, args.timm, device=args.device)
    return open_directory(args, args.model, args.base)


def _classified(args: argparse.Namespace, saved: Scored, data: _Data, num_classes: int) -> _Classified:
    """Find the classes of the labels, and choose the samples to be scored."""
    if args.class_names is not None:
        saved.class_names = read_class_names(args.class_names, num_classes)
    names = saved.class_names

    def indices(samples: Dataset) -> _ClassIndices:
        labels: Sequence[Any] = samples.labels or ()
        if samples.kind != "words":
            return class_indices(labels, names, num_classes, samples.path)
        flat = class_indices(list(chain.from_iterable(labels)), names, num_classes, samples.path)
        sentences: tuple[Tensor, ...] = torch.split(flat, list(map(len, labels)))
        return sentences

    are_words = data.train.kind == "words"
    types = types_of_tags(names) if are_words and names is not None else None
    representative = torch.tensor([types.index(kind) for kind in types] if types else range(num_classes))
    every = LogitsFile(torch.empty(0, num_classes), representative[_joined(indices(data.train))], names)
    with error_context(args.train, ValueError):
        mask = read_seen_mask("labels" if args.seen is None else args.seen, every)
        if types:  # a type is seen or absent as a whole, and "O" is seen
            seen_types = {"", *(types[index] for index in mask.nonzero().squeeze(1).tolist())}
            if len(seen_types) == 1:
                raise ValueError("there is no entity, so no type is seen; give sentences that the model was trained on")
            mask = check_mask_values(torch.tensor([kind in seen_types for kind in types]))
    background = types.index("") if types and data.unlabelled is None else None
    counted = mask & ~check_background(background, mask)
    chosen = [None if part is None else part.chosen(args.max_samples, args.seed) for part in vars(data).values()]
    train, held_out, unlabelled = chosen
    assert train is not None
    held_out_labels = None
    if held_out is not None:
        held_out_labels = indices(held_out)
        if not bool(counted[_joined(held_out_labels)].any()):
            raise ValueError(
                f"{held_out.path} has no sample of a seen class, which gamma is estimated from; give such samples too"
            )
    labels = indices(train)
    return _Classified(train, labels, held_out, held_out_labels, unlabelled, mask, names, are_words, background)


def _joined(labels: _ClassIndices) -> Tensor:
    return labels if isinstance(labels, Tensor) else torch.cat(list(labels))


# --- gamma ------------------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    """Gamma, the one that a limit has lowered, and accuracies on the held-out samples of all classes, if there are.

    Of words, also the shares of those labelled "O" that are left so, without gamma and with it.
    """

    estimate: GammaEstimate
    unlimited: GammaEstimate | None
    before: SeenAbsentReport | None
    after: SeenAbsentReport | None
    outside: tuple[float, float] | None


def _estimated(args: argparse.Namespace, saved: Scored, given: _Classified) -> _Found:
    def scored(data: Dataset, labels: _ClassIndices | None) -> Samples:
        items: Sequence[Any] = data.items
        if labels is None and given.are_words:  # they only say which tokens are words
            labels = [torch.zeros(len(words), dtype=torch.int64) for words in items]
        batches = Batches(saved, items, labels, args.batch_size)
        positions = Positions(-1, ignore_index=IGNORED) if given.are_words else None
        found = collect_logits(saved.model, batches, positions=positions, progress=not args.no_progress)
        return found.of_path(data.path)

    def counted(samples: Samples) -> Samples:
        if given.background is None:
            return samples
        kept = drop_classes(samples.logits_tensor, samples.labels_tensor, given.mask, given.background)
        found = Samples(kept.logits, kept.labels, groups=samples.groups[kept.rows]).of_path(Path(samples.source))
        return found.named(samples.name)

    mask = given.mask[~check_background(given.background, given.mask)]
    seen, every, held_out = scored(given.train, given.train_labels), None, None
    train = counted(seen)
    if given.held_out is not None and given.held_out_labels is not None:
        every = scored(given.held_out, given.held_out_labels)
        seen = every[given.mask[every.labels_tensor]].named("held_out")
        held_out = counted(seen)
    unlabelled = None if given.unlabelled is None else scored(given.unlabelled, None)
    estimate = estimate_gamma(
        mask,
        train=train,
        held_out=held_out,
        unlabelled=unlabelled,
        seen_share=args.seen_share,
        seed=args.seed,
    )
    unlimited = None
    if args.max_seen_drop is not None:
        limit = seen_budget_gamma(seen, given.mask, args.max_seen_drop, _CONFIDENCE)
        if limit.gamma < estimate.gamma:
            estimate, unlimited = limit, estimate
    if estimate.gamma == 0:
        raise ValueError(
            f"gamma is 0 ({estimate.method}), so there is nothing to fold, and nothing was written; use "
            f"{saved.path} as it is"
        )
    before = after = None
    if every is not None and not bool(given.mask[every.labels_tensor].all()):
        curve = tradeoff_curve(every, given.mask)
        before, after = curve.at(0.0), curve.at(estimate.gamma)
    outside = None
    if given.background is not None:
        own = seen[seen.labels_tensor == given.background]
        advice = "pass --unlabelled, so that they count as seen ones, or --max-seen-drop"
        outside = background_kept(
            own.logits_tensor, own.labels_tensor, given.mask, estimate, 'words labelled "O"', advice
        )
    return _Found(estimate, unlimited, before, after, outside)


@contextmanager
def _explain_lengths(args: argparse.Namespace) -> Iterator[None]:
    """A model fails in its own words on texts that are longer than it can take."""
    try:
        yield
    except (RuntimeError, IndexError) as error:
        if args.max_length is None:
            raise
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"--max-length is {args.max_length}, and the model fails on such texts ({reason}); pass fewer tokens, or "
            "leave it out"
        ) from error


# --- what is told -----------------------------------------------------------------------------------------------------


def _rows(args: argparse.Namespace, found: _Found, mask: Tensor) -> list[list[str]]:
    """Return a table of what gamma is, what it comes from and what it costs; the first row is its header."""
    estimate = found.estimate
    rows = [["gamma", f"{estimate.gamma:.6g}"], ["method", estimate.method], ["estimated from", estimate.data]]
    if found.unlimited is not None:
        rows.append(
            [
                "limit",
                f"gamma was {found.unlimited.gamma:.6g}, and was lowered so that accuracy on seen classes falls by at "
                f"most {100 * args.max_seen_drop:g} points, with {100 * _CONFIDENCE:g} % confidence",
            ]
        )
    which = "fine-tuning" if estimate.cost_source == TRAINING else "held-out"
    if estimate.acc_seen_at_gamma is not None and estimate.acc_seen_at_zero is not None:
        cost = from_to(estimate.acc_seen_at_zero, estimate.acc_seen_at_gamma)
        optimistic = " (optimistic: the model was trained on them)" if estimate.cost_source == TRAINING else ""
        rows.append([f"accuracy on the seen classes, {which} samples", f"{cost}{optimistic}"])
    if found.outside is not None:
        rows.append([f'words labelled "O" that stay so, {which} samples', from_to(*found.outside)])
    if (pays := break_even_in_words(estimate)) is not None:
        rows.append(["break-even", pays])
    rows.append(["classes", f"{int(mask.sum())} seen, {int((~mask).sum())} absent"])
    return rows


def _accuracy_table(args: argparse.Namespace, before: SeenAbsentReport, after: SeenAbsentReport) -> str:
    columns = asdict(before), asdict(after)
    counts = {"seen": before.n_seen, "absent": before.n_absent, "all": before.n_seen + before.n_absent}
    rows = [
        [
            f"{group}, {counts[group]} samples",
            *(percent(column[name]) for column in columns),
            points(columns[1][name], columns[0][name]),
        ]
        for group, name in _GROUPS.items()
    ]
    title = f"accuracy on {args.held_out.name}, every class allowed, %"
    return format_table([title, "before", "after", "change"], rows)


def _record(args: argparse.Namespace, folded: _Folded) -> dict[str, Any]:
    found, given = folded.found, folded.classified
    record = gamma_record(found.estimate, given.mask, given.class_names)
    record |= {"output": str(args.out), "load": folded.saved.usage(args.out), "left_out": list(folded.left_out)}
    if found.unlimited is not None:
        record["gamma_without_limit"] = found.unlimited.gamma
    if found.outside is not None:
        record["outside"] = found.outside
    if found.before is not None and found.after is not None:
        record |= {"before": asdict(found.before), "after": asdict(found.after)}
    return record
