"""What the commands of ``finecal`` do, from parsed arguments to printed results."""

import argparse
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import (
    GammaEstimate,
    __version__,
    average_logit_gap,
    calibrate_logits,
    estimate_gamma,
    html_report,
    known_share_gamma,
    max_logit_gap,
    mixed_pair_gap,
    mixture_gamma,
    predict,
    residual_gap,
    search_gamma,
    seen_budget_gamma,
    tradeoff_curve,
)
from ._checks import check_not_empty
from ._table import format_table
from .gamma_file import GammaFile, gamma_record, read_gamma, to_json
from .gaps import GAPS
from .io import (
    LOGITS_SUFFIXES,
    PAGE_SUFFIXES,
    PREDICTION_SUFFIXES,
    LogitsFile,
    check_destination,
    naming,
    read_class_names,
    read_logits,
    write_atomically,
    write_logits,
    write_predictions,
)
from .report import warn_if_guessed
from .seen_file import read_seen_mask
from .streaming import GapSums

# --- finecal estimate -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Method:
    """What LOGITS must be, which options apply, and why some of them are required."""

    logits: str
    options: set[str]
    required: Mapping[str, str] = field(default_factory=dict)


_HELD_OUT = "LOGITS must be samples that the model was not trained on"
METHODS = {
    "auto": Method("labelled seen samples", {"labels", "held_out", "unlabelled", "seen_share", "seed"}),
    "average_logit_gap": Method("labelled seen samples", {"labels", "held_out"}),
    "max_logit_gap": Method("labelled seen samples", {"labels", "held_out"}),
    "mixed_pair_gap": Method("labelled seen samples", {"labels", "held_out", "seen_share", "seed"}),
    "residual_gap": Method(
        "labelled held-out seen samples", {"labels", "held_out", "seen_share"}, {"held_out": _HELD_OUT}
    ),
    "seen_budget_gamma": Method(
        "labelled held-out seen samples", {"labels", "held_out", "max_seen_drop", "confidence"}, {"held_out": _HELD_OUT}
    ),
    "search_gamma": Method("labelled samples of all classes", {"labels", "objective", "max_seen_drop"}),
    "known_share_gamma": Method(
        "unlabelled samples of all classes", {"seen_share"}, {"seen_share": "the share of seen samples in LOGITS"}
    ),
    "mixture_gamma": Method(
        "held-out seen samples",
        {"held_out", "unlabelled"},
        {"held_out": _HELD_OUT, "unlabelled": "a file with logits of unlabelled samples of all classes"},
    ),
}
_FROM_LABELLED: Mapping[str, Callable[..., GammaEstimate]] = {
    function.__name__: function
    for function in (average_logit_gap, max_logit_gap, mixed_pair_gap, residual_gap, seen_budget_gamma, search_gamma)
}
_KEYWORDS = ("seen_share", "objective", "max_seen_drop", "confidence", "n_bootstrap", "seed")


def estimate(args: argparse.Namespace, sentences: list[str]) -> None:
    if args.seen is None:
        raise ValueError("--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'")
    options = _applicable_options(args)
    if args.output is not None:
        check_destination(args.output, (".json",))
    result, mask, names = _estimate_on_ray(args) if args.engine == "ray" else _estimate_at_once(args, options)
    text = _json(gamma_record(result, mask, names), sentences)
    if args.output is not None:
        write_atomically(args.output, text.encode())
    if args.json:
        print(text, end="")
    else:
        print(_estimate_table(args, result, mask))
        _say_written(args.output)


_Estimated: TypeAlias = tuple[GammaEstimate, Tensor, Sequence[str] | None]
"""The estimate, the seen mask and the names of the classes, if there are any."""


def _estimate_at_once(args: argparse.Namespace, options: set[str]) -> _Estimated:
    content = _read(args, with_labels="labels" in options)
    if "labels" in options:
        _labels(args, content)
    mask = read_seen_mask(args.seen, content)
    with naming(args.logits):
        check_not_empty(content.logits.shape[0], f"--method {args.method}")
    with _naming_sources(args):
        return _run_method(args, content, mask), mask, content.class_names


def _estimate_on_ray(args: argparse.Namespace) -> _Estimated:
    """Estimate gamma from a folder of files that nobody reads as a whole."""
    try:
        from .integrations import ray
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray Data ({error}): pip install 'finecal[ray]'") from error
    with ray.running_quietly():
        content = ray.first_classes(args.logits)
        if args.class_names is not None:
            content = replace(content, class_names=read_class_names(args.class_names, content.logits.shape[1]))
        mask = read_seen_mask(args.seen, content)
        state = ray.fill(GapSums(mask), args.logits, progress=not args.no_progress)
    with naming(args.logits):
        result = state.estimate(args.method)
    return _held_out(args, result), mask, content.class_names


def _applicable_options(args: argparse.Namespace) -> set[str]:
    """Return the options that apply; one that was given and does not, or was not given and must be, is an error."""
    method = METHODS[args.method]
    options = set(method.options)
    if args.engine == "ray":
        _check_adds_up(args)
    elif args.no_progress:
        raise ValueError("--no-progress is about the bar of --engine ray; leave it out")
    if args.seen == "labels":
        options.add("labels")
    if args.n_bootstrap:
        options.add("seed")
    for option in sorted(set().union(*(other.options for other in METHODS.values()))):
        flag = f"--{option.replace('_', '-')}"
        given = getattr(args, option) is not None
        if given and option not in options:
            others = ", ".join(name for name, other in METHODS.items() if option in other.options)
            without = " without --bootstrap" if option == "seed" else ""
            raise ValueError(
                f"{flag} does not apply to --method {args.method}{without}; leave it out, or choose a method that "
                f"takes it: {others}"
            )
        if not given and option in method.required:
            raise ValueError(f"--method {args.method} needs {flag}: {method.required[option]}")
    if args.method == "auto" and args.unlabelled is not None and not args.held_out and args.seen_share is None:
        raise ValueError(
            "--unlabelled needs --held-out, if the model was not trained on LOGITS, or --seen-share, the share of seen "
            "samples in it; give one of these, or leave it out"
        )
    return options


def _check_adds_up(args: argparse.Namespace) -> None:
    """Refuse what needs the logits or labels of all files at once."""
    if args.method not in GAPS:
        raise ValueError(
            f"--method {args.method} needs all logits at once, which no machine has with --engine ray; choose --method "
            f"{' or '.join(GAPS)}, which add up over files"
        )
    given = {"--labels": args.labels, "--bootstrap": args.n_bootstrap, "--seen labels": args.seen == "labels"}
    for flag, value in given.items():
        if value:
            raise ValueError(f"{flag} needs the samples of all files at once, which no machine has with --engine ray")


def _run_method(args: argparse.Namespace, content: LogitsFile, mask: Tensor) -> GammaEstimate:
    keywords = {name: value for name in _KEYWORDS if (value := getattr(args, name)) is not None}
    if args.method == "known_share_gamma":
        return known_share_gamma(content.logits, mask, **keywords)
    if args.method == "mixture_gamma":
        return mixture_gamma(content.logits, _read_unlabelled(args.unlabelled, content), mask, **keywords)
    labels = _labels(args, content)
    if args.method == "auto":
        keywords["held_out" if args.held_out else "train"] = content.logits, labels
        if args.unlabelled is not None:
            keywords["unlabelled"] = _read_unlabelled(args.unlabelled, content)
        return estimate_gamma(mask, **keywords)
    return _held_out(args, _FROM_LABELLED[args.method](content.logits, labels, mask, **keywords))


def _held_out(args: argparse.Namespace, result: GammaEstimate) -> GammaEstimate:
    return replace(result, data=f"{result.n} held-out labelled seen-class samples") if args.held_out else result


@contextmanager
def _naming_sources(args: argparse.Namespace) -> Iterator[None]:
    """Put the file in front of what estimators say about its content, and call methods as the command line does."""
    sources = {
        "labels": args.labels or args.logits,
        "logits": args.logits,
        "seen_logits": args.logits,
        "unlabelled_logits": args.unlabelled,
    }
    arguments = {"train": args.logits, "held_out": args.logits, "unlabelled": args.unlabelled}
    try:
        yield
    except ValueError as error:
        sentence = re.sub(rf"\buse (?=({'|'.join(METHODS)})\b)", "use --method ", str(error))
        argument, _, rest = sentence.partition(": ")
        if argument in arguments:
            source = sources["labels"] if rest.startswith("labels ") else arguments[argument]
            raise ValueError(f"{source}: {rest}") from error
        subject = sentence.partition(" ")[0]
        raise ValueError(f"{sources[subject]}: {sentence}" if subject in sources else sentence) from error


def _estimate_table(args: argparse.Namespace, result: GammaEstimate, mask: Tensor) -> str:
    rows = [["method", result.method], ["estimated from", result.data]]
    if result.expected_acc_seen is not None:
        accuracy = f"{100 * result.expected_acc_seen:.1f} %"
        if result.acc_seen_before is not None:
            accuracy += f" ({100 * result.acc_seen_before:.1f} % at gamma = 0)"
        if "held_out" in METHODS[args.method].options and not args.held_out:
            accuracy += ", optimistic if the model was trained on them"
        rows.append(["Acc_S/Y on LOGITS", accuracy])
    if result.interval is not None:
        rows.append(["95 % bootstrap interval", "{:.6g} to {:.6g}".format(*result.interval)])
    of_labels = " (those among the labels)" if args.seen == "labels" else ""
    rows.append(["classes", f"{int(mask.sum())} seen{of_labels}, {int((~mask).sum())} absent"])
    return format_table(["gamma", f"{result.gamma:.6g}"], rows)


# --- finecal evaluate, apply, report, demo ----------------------------------------------------------------------------


def evaluate(args: argparse.Namespace, sentences: list[str]) -> None:
    content, source, mask = _with_gamma(args, _read(args))
    gamma = source.gamma
    curve = tradeoff_curve(content.logits, _labels(args, content), mask, args.average)
    warn_if_guessed(curve, mask)
    before, after = asdict(curve.at(0.0)), asdict(curve.at(gamma))
    if args.json:
        print(_json({"average": args.average, "before": before, "after": after}, sentences), end="")
        return
    percents = {
        "Acc_Y/Y, all samples": "acc_all",
        "Acc_S/Y, seen": "acc_seen",
        "Acc_U/Y, absent": "acc_absent",
        "harmonic mean of these two": "harmonic_mean",
        "balanced: their mean": "balanced",
        "Acc_S/S, seen among seen": "acc_seen_within",
        "Acc_U/U, absent among absent": "acc_absent_within",
    }
    rows = [
        [title, _percent(before[name]), _percent(after[name]), _percent(after[name] - before[name], "+")]
        for title, name in percents.items()
    ]
    print(format_table([f"accuracy ({args.average}), %", "gamma = 0", f"gamma = {gamma:.6g}", "change"], rows))
    ausuc = "-" if math.isnan(curve.ausuc) else f"{curve.ausuc:.4f}"
    print(f"{curve.n_seen} seen and {curve.n_absent} absent samples, AUSUC {ausuc}")
    if curve.n_absent == 0:
        print("no samples of absent classes: this shows only what gamma costs")


def _percent(fraction: float, sign: str = "") -> str:
    return "-" if math.isnan(fraction) else f"{100 * fraction:{sign}.1f}"


def apply(args: argparse.Namespace, sentences: list[str]) -> None:
    check_destination(args.output, PREDICTION_SUFFIXES if args.predictions else LOGITS_SUFFIXES)
    if args.output.exists() and args.logits.exists() and args.output.samefile(args.logits):
        raise ValueError(f"-o {args.output} would replace the logits before calibration; choose another name")
    content, source, mask = _with_gamma(args, _read(args))
    gamma = source.gamma
    classes = predict(content.logits, mask, gamma)
    if args.predictions:
        write_predictions(args.output, classes, content.class_names)
    else:
        calibrated = calibrate_logits(content.logits, mask, gamma)
        write_logits(args.output, replace(content, logits=calibrated, gamma=gamma))
    changed = int((classes != predict(content.logits, mask)).sum())
    if args.json:
        record = {"output": str(args.output), "gamma": gamma, "n": len(classes), "changed_predictions": changed}
        print(_json(record, sentences), end="")
    else:
        print(f"gamma = {gamma:.6g} changes the prediction for {changed} of {len(classes)} samples")
        _say_written(args.output)


def report(args: argparse.Namespace, sentences: list[str]) -> None:
    check_destination(args.output, PAGE_SUFFIXES)
    content = _read(args)
    labels = _labels(args, content)
    gamma: GammaEstimate | float | None = None
    if args.gamma is not None:
        content, source, mask = _with_gamma(args, content)
        gamma = source.gamma if source.estimate is None else source.estimate
    elif args.seen is not None:
        mask = _mask_of_seen(args, content)
    else:
        raise ValueError(
            "--seen is missing: a file with the seen classes' names or indices, or a .npy mask; or give --gamma with "
            "what finecal estimate -o wrote"
        )
    with naming(args.labels or args.logits):
        page = html_report(
            content.logits,
            labels,
            mask,
            gamma,
            class_names=content.class_names,
            average=args.average,
            title=args.logits.name if args.title is None else args.title,
        )
    write_atomically(args.output, page.encode())
    _say_written(args.output)


def demo(args: argparse.Namespace, sentences: list[str]) -> None:
    from .demo import run_demo

    print(run_demo(args.out, args.seed))


def _with_gamma(args: argparse.Namespace, content: LogitsFile) -> tuple[LogitsFile, GammaFile, Tensor]:
    """Read gamma, and return the logits with class names, where either file has some, and the seen mask."""
    given = None if args.seen is None else _mask_of_seen(args, content)
    source = read_gamma(args.gamma)
    num_classes = content.logits.shape[1]
    if source.seen_mask is not None and len(source.seen_mask) != num_classes:
        raise ValueError(
            f"{args.gamma} is for {len(source.seen_mask)} classes, {args.logits} has {num_classes}; estimate gamma for "
            "this model"
        )
    mask = source.seen_mask if given is None else given
    if mask is None:
        raise ValueError(
            f"--gamma {args.gamma} does not tell the seen classes; give --seen too, or as --gamma what finecal "
            "estimate -o wrote"
        )
    if source.seen_mask is not None and not torch.equal(mask, source.seen_mask):
        example = int((mask != source.seen_mask).nonzero()[0])
        raise ValueError(
            f"--seen {args.seen} and {args.gamma} disagree, first on class {example}; leave --seen out, or estimate "
            "gamma for these classes"
        )
    names = source.class_names
    if names is None:
        return content, source, mask
    if content.class_names is None:
        return replace(content, class_names=names), source, mask
    for column, (expected, found) in enumerate(zip(names, content.class_names, strict=True)):
        if found != expected:
            raise ValueError(
                f"the classes of LOGITS are others than those of {args.gamma}: column {column} is {found!r}, and was "
                f"{expected!r} there; estimate gamma for this model, or give the names in the order of its columns"
            )
    return content, source, mask


def _mask_of_seen(args: argparse.Namespace, content: LogitsFile) -> Tensor:
    if args.seen == "labels":
        raise ValueError(
            "--seen labels tells the seen classes from the fine-tuning data, which LOGITS are not here; give them in a "
            "file, or --gamma with what finecal estimate -o wrote"
        )
    return read_seen_mask(args.seen, content)


def _read(args: argparse.Namespace, with_labels: bool = True) -> LogitsFile:
    content = read_logits(args.logits, labels=args.labels, class_names=args.class_names, with_labels=with_labels)
    return _uncalibrated(args.logits, content)


def _uncalibrated(path: Path, content: LogitsFile) -> LogitsFile:
    if content.gamma != 0:
        raise ValueError(f"{path} already has gamma = {content.gamma:.6g} added; give the logits before calibration")
    return content


def _read_unlabelled(path: Path, content: LogitsFile) -> Tensor:
    logits = _uncalibrated(path, read_logits(path, with_labels=False)).logits
    if logits.shape[1] != content.logits.shape[1]:
        raise ValueError(
            f"{path} has logits of {logits.shape[1]} classes, LOGITS of {content.logits.shape[1]}; give logits of the "
            "same model"
        )
    return logits


def _labels(args: argparse.Namespace, content: LogitsFile) -> Tensor:
    if content.labels is None:
        raise ValueError(f"{args.logits} has no labels; save them under the key 'labels', or give --labels FILE")
    return content.labels


def _say_written(path: Path | None) -> None:
    if path is not None:
        print(f"wrote {path}")


def _json(record: Mapping[str, Any], sentences: list[str]) -> str:
    return to_json({**record, "warnings": sentences, "finecal": __version__})
