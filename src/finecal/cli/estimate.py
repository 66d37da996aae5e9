"""``finecal estimate``, from parsed arguments to printed results."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from torch import Tensor

from ..evaluation.logit_gaps import GAPS
from ..gamma.auto import estimate_gamma
from ..gamma.estimate import GammaEstimate, interval_name
from ..gamma.estimators import BY_NAME, ESTIMATORS, Data
from ..gamma.file import gamma_record
from ..inputs.checks import check_not_empty
from ..inputs.warning import naming
from ..logits.file import LogitsFile, read_class_names
from ..results.display import format_table
from ..results.files import write_text
from ..results.format import percent
from ..streaming.gaps import GapSums
from .output import check_output, json_of, say_written
from .seen import read_seen_mask
from .sources import labels_of, read_source, read_unlabelled


@dataclass(frozen=True)
class Method:
    """What LOGITS must be, which options apply, and why some of them are required."""

    logits: str
    options: set[str]
    required: Mapping[str, str] = field(default_factory=dict)


_HELD_OUT = {"held_out": "LOGITS must be samples that the model was not trained on"}
_BY_DATA = {
    Data.SEEN: Method("labelled seen samples", {"labels", "held_out"}),
    Data.HELD_OUT: Method("labelled held-out seen samples", {"labels", "held_out"}, _HELD_OUT),
    Data.LABELLED: Method("labelled samples of all classes", {"labels"}),
    Data.SHARE: Method(
        "unlabelled samples of all classes", {"seen_share"}, {"seen_share": "the share of seen samples in LOGITS"}
    ),
    Data.MIXTURE: Method(
        "held-out seen samples",
        {"held_out", "unlabelled"},
        {**_HELD_OUT, "unlabelled": "a file with logits of unlabelled samples of all classes"},
    ),
}
"""What every estimator from such data takes; the others need more than files of logits."""
METHODS = {
    "auto": Method("labelled seen samples", {"labels", "held_out", "unlabelled", "seen_share", "seed"}),
    **{
        estimator.name: replace(method, options=method.options | estimator.options)
        for estimator in ESTIMATORS
        if (method := _BY_DATA.get(estimator.data)) is not None
    },
}
_KEYWORDS = ("n_bootstrap", "seed", *sorted(set().union(*(estimator.options for estimator in ESTIMATORS)) - {"seed"}))
"""Arguments of estimators that the command line has under the same names."""


def estimate(args: argparse.Namespace, sentences: list[str]) -> None:
    if args.seen is None:
        raise ValueError("--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'")
    options = _applicable_options(args)
    if args.output is not None:
        check_output(args, (".json",))
    result, mask, names = _estimate_on_ray(args) if args.engine == "ray" else _estimate_at_once(args, options)
    text = json_of(gamma_record(result, mask, names), sentences, signed=True)
    if args.output is not None:
        write_text(args.output, text)
    if args.json:
        print(text, end="")
    else:
        print(_estimate_table(args, result, mask))
        say_written(args.output)


_Estimated: TypeAlias = tuple[GammaEstimate, Tensor, Sequence[str] | None]
"""The estimate, the seen mask and the names of the classes, if there are any."""


def _estimate_at_once(args: argparse.Namespace, options: set[str]) -> _Estimated:
    content = read_source(args, with_labels="labels" in options)
    if "labels" in options:
        labels_of(args, content)
    mask = read_seen_mask(args.seen, content)
    with naming(args.logits, ValueError):
        check_not_empty(content.logits.shape[0], f"--method {args.method}")
    with _naming_sources(args):
        return _run_method(args, content, mask), mask, content.class_names


def _estimate_on_ray(args: argparse.Namespace) -> _Estimated:
    """Estimate gamma from a folder of files that nobody reads as a whole."""
    try:
        from ..integrations import ray
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray Data ({error}): pip install 'finecal[ray]'") from error
    with ray.running_quietly():
        content = ray.first_classes(args.logits)
        if args.class_names is not None:
            content = replace(content, class_names=read_class_names(args.class_names, content.logits.shape[1]))
        mask = read_seen_mask(args.seen, content)
        state = ray.fill(GapSums(mask), args.logits, progress=not args.no_progress)
    with naming(args.logits, ValueError):
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
    if args.method == "auto":
        keywords["held_out" if args.held_out else "train"] = content.logits, labels_of(args, content)
        if args.unlabelled is not None:
            keywords["unlabelled"] = read_unlabelled(args.unlabelled, content)
        return estimate_gamma(mask, **keywords)
    estimator = BY_NAME[args.method]
    if estimator.data is Data.SHARE:
        return estimator.function(content.logits, mask, **keywords)
    if estimator.data is Data.MIXTURE:
        return estimator.function(content.logits, read_unlabelled(args.unlabelled, content), mask, **keywords)
    return _held_out(args, estimator.function(content.logits, labels_of(args, content), mask, **keywords))


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
        accuracy = f"{percent(result.expected_acc_seen)} %"
        if result.acc_seen_before is not None:
            accuracy += f" ({percent(result.acc_seen_before)} % at gamma = 0)"
        if "held_out" in METHODS[args.method].options and not args.held_out:
            accuracy += ", optimistic if the model was trained on them"
        rows.append(["Acc_S/Y on LOGITS", accuracy])
    if result.interval is not None:
        rows.append([interval_name(result), "{:.6g} to {:.6g}".format(*result.interval)])
    of_labels = " (those among the labels)" if args.seen == "labels" else ""
    rows.append(["classes", f"{int(mask.sum())} seen{of_labels}, {int((~mask).sum())} absent"])
    return format_table(["gamma", f"{result.gamma:.6g}"], rows)
