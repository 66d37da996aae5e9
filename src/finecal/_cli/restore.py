"""``finecal restore``: a classifier whose head was made anew in, the same with a head of all classes out."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._core.arrays import check_share
from .._core.files import check_source, new_directory, new_file
from .._core.logits_file import read_class_names
from .._core.results import format_table, percent, visible
from .._models.feed import Feed
from .._models.fold_trial import logits_for
from .._models.heads import single_head
from .._models.restore import RESTORED, restore_head
from ..integrations._saved_model import Batches, SavedModel, SavedTimm, check_written, restored_section
from .commands import json_of
from .data import Dataset, class_indices
from .saved import check_directory, check_kind, check_running, open_directory, read_data, refuse_options

_NOT_AN_OLD_CLASS = "-1"
_ADVICE = "restore it from Python: finecal.restore_head(model, pretrained, loader), then save the model"


def restore(args: argparse.Namespace, sentences: list[str]) -> None:
    _check_options(args)
    data, held_out, unlabelled = read_data(args, args.data, args.held_out, args.unlabelled)
    if data.kind == "words":
        raise ValueError(
            f"{data.path} has words, and finecal restore is for classifiers of texts or of images; {_ADVICE}"
        )
    is_adapter = (args.model / "adapter_config.json").is_file()
    saved = _opened(args, args.model, str(args.pretrained) if is_adapter else None)
    pretrained = _opened(args, args.pretrained)
    check_kind(saved, data, "--data")
    check_kind(pretrained, data, "--data")
    names = _names(args, saved, pretrained)
    data = data.chosen(args.max_samples, args.seed)
    labels = class_indices(data.labels or (), names.new, len(names.new), data.path)
    first = data.items[: args.batch_size]
    _check_same_inputs(saved, pretrained, first)
    held_out_labels = None
    if held_out is not None:
        held_out = held_out.chosen(args.max_samples, args.seed)
        held_out_labels = class_indices(held_out.labels or (), names.whole, len(names.whole), held_out.path)
    stream = None
    if unlabelled is not None:
        stream = Batches(saved, unlabelled.chosen(args.max_samples, args.seed).items, None, args.batch_size)
    restore_head(
        saved.model,
        pretrained.model,
        Batches(saved, data.items, labels, args.batch_size),
        new_to_old=names.new_to_old,
        unlabelled_loader=stream,
        with_prototypes=args.prototypes,
        seen_share=args.seen_share,
        seed=args.seed,
        verbose=not args.no_progress,
    )
    record = vars(single_head(saved.model))[RESTORED]
    rows = _rows(record, names)
    num_restored = len(names.whole) - len(names.new)
    expected = logits_for(saved.model, Feed(saved.model).to_model_device(saved.inputs(first)))
    accuracies = None
    if held_out is not None and held_out_labels is not None:
        accuracies = _accuracies(args, (pretrained, saved), held_out, held_out_labels, names)
    card = restored_section(rows, names.new, num_restored, sentences)
    is_file = _is_checkpoint(args, args.model) and args.out.suffix.lower() == ".safetensors"
    with new_file(args.out) if is_file else new_directory(args.out) as target:
        left_out = saved.write_restored(target, names.whole, card)
        check_written(saved, target, first, expected, _ADVICE)
    if args.json:
        written = {"output": str(args.out), "load": saved.usage(args.out), "left_out": list(left_out)}
        classes = {"class_names": list(names.whole), "fine_tuned_classes": list(names.new)}
        print(json_of({**record, **classes, "accuracies": accuracies, **written}, sentences), end="")
        return
    print(format_table(rows[0], rows[1:]))
    if accuracies is not None and held_out is not None:
        groups = [[group, percent(before), percent(after)] for group, (before, after) in accuracies.items()]
        print(f"\n{format_table([f'accuracy on {held_out.path.name}, %', 'pre-trained', 'restored'], groups)}\n")
    if left_out:
        print(visible(f"left out, as they have the weights before: {', '.join(left_out)}", and_lines=True))
    print(visible(f"wrote {args.out}, which needs no finecal: {saved.usage(args.out)}", and_lines=True))


def _check_options(args: argparse.Namespace) -> None:
    """Refuse what cannot be, before anything is read."""
    check_running(args)
    if args.timm is not None:
        elsewhere = {"--max-length": args.max_length, "--trust-remote-code": args.trust_remote_code}
        refuse_options(elsewhere, "directories of Hugging Face, not about timm")
        if not (_is_checkpoint(args, args.model) or _is_checkpoint(args, args.pretrained)):
            raise ValueError(f"--timm {args.timm} is about files of weights; give one, or leave it out")
    for path in (args.model, args.pretrained):
        if _is_checkpoint(args, path):
            check_source(path)
        else:
            check_directory(path, args.out)
    if args.seen_share is not None:
        check_share(args.seen_share, "--seen-share")
    if args.prototypes and args.unlabelled is None:
        raise ValueError("--prototypes are made of unlabelled samples of all classes; give some as --unlabelled")


def _is_checkpoint(args: argparse.Namespace, path: Path) -> bool:
    """Whether a path is for a file of weights; with --timm it may be a directory as well."""
    return args.timm is not None and not path.is_dir()


def _opened(args: argparse.Namespace, path: Path, base: str | None = None) -> SavedModel:
    if _is_checkpoint(args, path):
        return SavedTimm(path, args.timm, device=args.device)
    return open_directory(args, path, base)


# --- names ------------------------------------------------------------------------------------------------------------


class _Names(NamedTuple):
    """Names of the fine-tuned and of the old classes, which may repeat, and the old class of each new one, or -1."""

    new: tuple[str, ...]
    old: tuple[str, ...]
    new_to_old: list[int]

    @property
    def whole(self) -> tuple[str, ...]:
        own = (name for name, place in zip(self.new, self.new_to_old, strict=True) if place < 0)
        return (*self.old, *own)


def _names(args: argparse.Namespace, saved: SavedModel, pretrained: SavedModel) -> _Names:
    """Match the classes by the file that says how, or by their names in both configurations."""
    new = _class_names(saved, args.class_names)
    old = _class_names(pretrained, args.pretrained_names)
    if args.new_to_old is not None:
        places = _places_in_file(args, new, old)
        if _are_placeholders(new) and not _are_placeholders(old):
            new = tuple(name if place < 0 else old[place] for name, place in zip(new, places, strict=True))
    else:
        for names, path, option in (
            (new, args.model, "--class-names"),
            (old, args.pretrained, "--pretrained-names"),
        ):
            if _are_placeholders(names):
                raise ValueError(
                    f"{path} has no class names; give them by {option}, or say by --new-to-old which old class each "
                    "new one is"
                )
        repeated = next((name for name in new if old.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(
                f"{args.pretrained} has {old.count(repeated)} classes of the name {repeated!r}; say by --new-to-old "
                "which old class each new one is"
            )
        places = [old.index(name) if name in old else -1 for name in new]
        if max(places) < 0:
            raise ValueError(
                f"no class of {args.model} ({new[0]!r}, ...) has the name of one of {args.pretrained} ({old[0]!r}, "
                "...); say by --new-to-old which old class each new one is"
            )
    if set(places) >= set(range(len(old))):
        raise ValueError(
            f"{args.model} has all {len(old)} classes of {args.pretrained} in its head, so there is none to restore; "
            "if some had no fine-tuning data, see finecal fold"
        )
    if _are_placeholders(old) and not _are_placeholders(new):
        names_of_old = dict(zip(places, new, strict=True))
        old = tuple(names_of_old.get(index, name) for index, name in enumerate(old))
    return _Names(new, old, places)


def _class_names(saved: SavedModel, file: Path | None) -> tuple[str, ...]:
    """Return the names in a file, else those in the configuration; where there are none, those of transformers."""
    if saved.class_names is not None and file is None:
        return saved.class_names
    count: Any = saved.model.num_classes if saved.class_names is None else len(saved.class_names)
    return tuple(f"LABEL_{index}" for index in range(count)) if file is None else read_class_names(file, count)


def _places_in_file(args: argparse.Namespace, new: Sequence[str], old: Sequence[str]) -> list[int]:
    """Return the old class that each line of the file names, by name or by index; -1 for none."""
    lines = read_class_names(args.new_to_old, len(new))
    known = [line for line in lines if line != _NOT_AN_OLD_CLASS]
    found = iter(class_indices(known, old, len(old), args.new_to_old).tolist() if known else ())
    places = [-1 if line == _NOT_AN_OLD_CLASS else next(found) for line in lines]
    repeated = next((place for place in places if place >= 0 and places.count(place) > 1), None)
    if repeated is not None:
        raise ValueError(
            f"{args.new_to_old} gives the old class {old[repeated]!r} to two new ones; give each a class of its own"
        )
    own = next((name for name, place in zip(new, places, strict=True) if place < 0 and name in old), None)
    if own is not None:
        raise ValueError(
            f"{args.new_to_old} says that {own!r} is no old class, but {args.pretrained} has one of this name; rename "
            "it in config.json"
        )
    return places


def _are_placeholders(names: Sequence[str]) -> bool:
    return all(name == f"LABEL_{index}" for index, name in enumerate(names))


def _check_same_inputs(saved: SavedModel, pretrained: SavedModel, items: Sequence[Any]) -> None:
    """Refuse models whose tokenizers or image processors differ: both are given the inputs of the first."""
    ours, theirs = (
        {"": inputs} if isinstance(inputs, Tensor) else inputs
        for inputs in (saved.inputs(items), pretrained.inputs(items))
    )
    if ours.keys() != theirs.keys() or not all(torch.equal(ours[name], theirs[name]) for name in ours):
        what = "image processors" if saved.kind == "images" else "tokenizers"
        raise ValueError(
            f"the {what} of {saved.path} and {pretrained.path} make different inputs of the same samples, so that "
            f"their logits do not go together; {_ADVICE}"
        )


# --- what is told -----------------------------------------------------------------------------------------------------


def _rows(record: Mapping[str, Any], names: _Names) -> list[list[str]]:
    """Return a table of what was done; the first row is its header."""
    estimate = record["estimate"]
    own = len(names.whole) - len(names.old)
    return [
        ["gamma", f"{estimate['gamma']:.6g}"],
        ["method", estimate["method"]],
        ["estimated from", estimate["data"]],
        ["old logits that the features explain", f"{percent(record['explained'])} %"],
        [
            "classes",
            f"{len(names.new)} fine-tuned"
            + (f" ({own} that the pre-trained model does not have)" if own else "")
            + f", {len(names.whole) - len(names.new)} restored",
        ],
    ]


def _accuracies(
    args: argparse.Namespace, models: Sequence[SavedModel], data: Dataset, labels: Tensor, names: _Names
) -> dict[str, tuple[float, ...]]:
    """Return the accuracies of models on the fine-tuned, the restored and all classes, where there are samples."""
    tuned = {*names.new_to_old, *range(len(names.old), len(names.whole))}
    is_tuned = torch.tensor([index in tuned for index in range(len(names.whole))])[labels]
    right = []
    for saved in models:
        batches = Batches(saved, data.items, labels, args.batch_size)
        right.append(
            torch.cat(
                [
                    logits_for(saved.model, Feed(saved.model).to_model_device(inputs)).argmax(1).cpu() == indices
                    for inputs, indices in batches
                ]
            )
        )
    groups = {"fine-tuned classes": is_tuned, "restored classes": ~is_tuned, "all": torch.ones_like(is_tuned)}
    return {
        f"{group}, {int(rows.sum())} samples": tuple(float(hits[rows].double().mean()) for hits in right)
        for group, rows in groups.items()
        if bool(rows.any())
    }
