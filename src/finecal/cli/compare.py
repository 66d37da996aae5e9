"""``finecal compare``, from parsed arguments to printed results."""

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..calibrators.compare import compare_estimators
from ..calibrators.comparison import EstimatorComparison
from ..inputs.checks import check_not_empty
from ..inputs.warning import error_context
from ..logits.file import LogitsFile
from ..results.files import write_text
from .output import check_output, json_of, say_written
from .seen import read_seen_mask
from .sources import labels_in, labels_of, read_beside, read_features, read_source, read_unlabelled

SUFFIXES = (".json", ".md", ".csv")
_NEEDS = {
    "train": (("held_out",), "the samples of LOGITS are then held-out ones; training samples alone go in their place"),
    "pretrained": (("test",), "the samples that the model scored before fine-tuning"),
    "features": (("unlabelled", "test", "test_features"), "prototypes are made of the first and scored on the others"),
    "test_features": (("features",), "those of the unlabelled samples, of which prototypes are made"),
    "held_out_features": (("held_out", "features"), "prototypes are checked on held-out samples"),
}
"""Options without which another one says nothing, and why."""


def compare(args: argparse.Namespace, sentences: list[str]) -> None:
    _check_options(args)
    if args.output is not None:
        check_output(args, SUFFIXES)
    comparison = _compared(args)
    text = json_of(comparison.to_dict(), sentences)
    if args.output is not None:
        write_text(args.output, _exported(comparison, args.output.suffix.lower(), text))
    if args.json:
        print(text, end="")
    else:
        print(comparison)
        say_written(args.output)


def _check_options(args: argparse.Namespace) -> None:
    if args.seen is None:
        raise ValueError("--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'")
    for option, (others, reason) in _NEEDS.items():
        missing = [other for other in others if getattr(args, other) is None]
        if getattr(args, option) is not None and missing:
            raise ValueError(f"{_flag(option)} needs {' and '.join(map(_flag, missing))}: {reason}")
    if args.unlabelled is not None and not args.held_out and args.seen_share is None:
        raise ValueError(
            "--unlabelled needs --held-out, if the model was not trained on LOGITS, or --seen-share, the share of seen "
            "samples in it; give one of these, or leave it out"
        )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _compared(args: argparse.Namespace) -> EstimatorComparison:
    content = read_source(args)
    labels = labels_of(args, content)
    mask = read_seen_mask(args.seen, content)
    with error_context(args.logits, ValueError):
        check_not_empty(content.logits.shape[0], "finecal compare")
    given: dict[str, Any] = {"n_bootstrap": args.n_bootstrap or 0, "seed": args.seed or 0}
    own = content.logits, labels
    given["held_out_groups" if args.held_out else "train_groups"] = content.groups
    if args.held_out:
        features = _features(args.held_out_features, content.logits)
        given["held_out"] = own if features is None else (*own, features)
        given["train"], given["train_groups"] = _labelled(args.train, content)
    else:
        given["train"] = own
    if args.unlabelled is not None:
        unlabelled = read_unlabelled(args.unlabelled, content)
        features = _features(args.features, unlabelled.logits)
        given["unlabelled"] = unlabelled.logits if features is None else (unlabelled.logits, features)
        given["unlabelled_groups"] = unlabelled.groups
    given["labelled"], given["labelled_groups"] = _labelled(args.labelled, content)
    test, given["test_groups"] = _labelled(args.test, content)
    if test is not None and args.test_features is not None:
        test = (*test, read_features(args.test_features, test[0]))
    given["test"] = test
    if args.pretrained is not None:
        given["pretrained_logits"] = read_unlabelled(args.pretrained, content).logits
    files = {
        "train": args.train if args.held_out else args.logits,
        "held_out": args.logits,
        "unlabelled": args.unlabelled,
        "labelled": args.labelled,
        "test": args.test,
        "pretrained_logits": args.pretrained,
    }
    with _naming_files(files):
        return compare_estimators(mask, seen_share=args.seen_share, **given)


def _labelled(path: Path | None, content: LogitsFile) -> tuple[tuple[Tensor, ...] | None, Tensor | None]:
    """Return the logits and labels of a file, and the groups of its samples."""
    if path is None:
        return None, None
    other = read_beside(path, content)
    return (other.logits, labels_in(other, path)), other.groups


def _features(path: Path | None, logits: Tensor) -> Tensor | None:
    return None if path is None else read_features(path, logits)


@contextmanager
def _naming_files(files: Mapping[str, Path | None]) -> Iterator[None]:
    """Put the file in place of the argument that a sentence names first, and the option in place of the function."""
    try:
        yield
    except ValueError as error:
        sentence = str(error).replace("or use search_gamma", "or give them as --labelled, beside LOGITS")
        argument = re.split(r"\W", sentence, maxsplit=1)[0]
        if files.get(argument) is None:
            raise
        raise ValueError(f"{files[argument]}: {sentence.removeprefix(f'{argument}: ')}") from error


def _exported(comparison: EstimatorComparison, suffix: str, text: str) -> str:
    if suffix == ".md":
        return comparison.to_markdown() + "\n"
    if suffix == ".csv":
        table: str = comparison.to_pandas().to_csv(index=False, lineterminator="\n")
        return table
    return text
