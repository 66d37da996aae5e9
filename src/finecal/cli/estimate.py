"""``finecal estimate``, from parsed arguments to printed results."""

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from ..calibrators.additive_bias import AdditiveBias
from ..calibrators.file import save
from ..calibrators.prototypes import Prototypes
from ..calibrators.prototypes_fit import fit_prototypes
from ..evaluation.logit_gaps import GAPS
from ..gamma.auto import estimate_gamma
from ..gamma.estimate import HELD_OUT, TRAINING, GammaEstimate, interval_name, share_in_words
from ..gamma.estimators import BY_NAME, ESTIMATORS, Data
from ..gamma.file import gamma_record
from ..inputs.checks import check_not_empty
from ..inputs.warning import naming
from ..logits.file import LogitsFile, read_class_names
from ..results.display import format_table, visible
from ..results.files import write_text
from ..results.format import from_to, percent
from ..streaming.gaps import GapSums
from .output import check_output, json_of, say_written
from .seen import read_seen_mask
from .sources import labels_of, read_features, read_source, read_unlabelled


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
        "unlabelled samples of all classes",
        {"seen_share", "features"},
        {"seen_share": "the share of seen samples in LOGITS"},
    ),
    Data.MIXTURE: Method(
        "held-out seen samples",
        {"held_out", "unlabelled", "features"},
        {**_HELD_OUT, "unlabelled": "a file with logits of unlabelled samples of all classes"},
    ),
}
"""What every estimator from such data takes; the others need more than files of logits."""
METHODS = {
    "auto": Method("labelled seen samples", {"labels", "held_out", "unlabelled", "features", "seen_share", "seed"}),
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
        check_output(args, (".json", ".safetensors") if args.features is None else (".safetensors",))
    found = _estimate_on_ray(args) if args.engine == "ray" else _estimate_at_once(args, options)
    text = json_of(found.record(), sentences, signed=True)
    if args.output is not None and args.output.suffix.lower() == ".json":
        write_text(args.output, text)
    elif args.output is not None:
        save(found.calibrator(), args.output, class_names=found.class_names)
    if args.json:
        print(text, end="")
    else:
        print(_estimate_table(args, found.estimate, found.seen_mask))
        if found.prototypes is not None and found.prototypes.report is not None:
            print(replace(found.prototypes.report, warnings=()))
        say_written(args.output)


class _Estimated(NamedTuple):
    """The estimate, the classes that it is for, with their names if there are any, and prototypes if they were made."""

    estimate: GammaEstimate
    seen_mask: Tensor
    class_names: Sequence[str] | None
    prototypes: Prototypes | None = None

    def record(self) -> dict[str, Any]:
        """Return what JSON says of it, without the warnings."""
        record = gamma_record(self.estimate, self.seen_mask, self.class_names)
        if self.prototypes is None or self.prototypes.report is None:
            return record
        report = self.prototypes.report.to_dict()
        del report["warnings"]
        return {**record, "prototypes": report}

    def calibrator(self) -> AdditiveBias | Prototypes:
        return AdditiveBias(self.seen_mask, self.estimate) if self.prototypes is None else self.prototypes


def _estimate_at_once(args: argparse.Namespace, options: set[str]) -> _Estimated:
    content = read_source(args, with_labels="labels" in options)
    if "labels" in options:
        labels_of(args, content)
    mask = read_seen_mask(args.seen, content)
    with naming(args.logits, ValueError):
        check_not_empty(content.logits.shape[0], f"--method {args.method}")
    # With known_share_gamma, LOGITS are the unlabelled samples.
    unlabelled = content if args.unlabelled is None else read_unlabelled(args.unlabelled, content)
    features = None if args.features is None else read_features(args.features, unlabelled.logits)
    with _naming_sources(args):
        result = _run_method(args, content, unlabelled, mask)
    prototypes = None if features is None else fit_prototypes(unlabelled.logits, features, mask, result)
    return _Estimated(result, mask, content.class_names, prototypes)


def _estimate_on_ray(args: argparse.Namespace) -> _Estimated:
    """Estimate gamma from a folder of files that nobody reads as a whole."""
    try:
        from ..integrations import ray
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray Data ({error}): pip install 'finecal[ray]'") from error
    with ray.run_ray():
        content = ray.first_classes(args.logits)
        if args.class_names is not None:
            content = replace(content, class_names=read_class_names(args.class_names, content.logits.shape[1]))
        mask = read_seen_mask(args.seen, content)
        state = ray.fill(GapSums(mask), args.logits, progress=not args.no_progress)
    with naming(args.logits, ValueError):
        result = state.estimate(args.method)
    return _Estimated(_held_out(args, result), mask, content.class_names)


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
    if args.method == "auto" and args.features is not None and args.unlabelled is None:
        raise ValueError("--features needs --unlabelled: the logits of the samples whose features they are")
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


def _run_method(args: argparse.Namespace, content: LogitsFile, unlabelled: LogitsFile, mask: Tensor) -> GammaEstimate:
    keywords = {name: value for name in _KEYWORDS if (value := getattr(args, name)) is not None}
    logits, groups = content.logits, content.groups
    if args.method == "auto":
        name = "held_out" if args.held_out else "train"
        keywords |= {name: (logits, labels_of(args, content)), f"{name}_groups": groups}
        if args.unlabelled is not None:
            keywords |= {"unlabelled": unlabelled.logits, "unlabelled_groups": unlabelled.groups}
        return estimate_gamma(mask, **keywords)
    estimator = BY_NAME[args.method]
    if estimator.data is Data.SHARE:
        return estimator.function(logits, mask, groups=groups, **keywords)
    if estimator.data is Data.MIXTURE:
        keywords |= {"seen_groups": groups, "unlabelled_groups": unlabelled.groups}
        return estimator.function(logits, unlabelled.logits, mask, **keywords)
    return _held_out(args, estimator.function(logits, labels_of(args, content), mask, groups=groups, **keywords))


def _held_out(args: argparse.Namespace, result: GammaEstimate) -> GammaEstimate:
    if not args.held_out:
        return result
    data = result.data.replace("labelled samples", "labelled held-out samples")
    return replace(result, data=data, cost_source=HELD_OUT)


@contextmanager
def _naming_sources(args: argparse.Namespace) -> Iterator[None]:
    """Put the file in front of what estimators say about its content, and call methods as the command line does."""
    sources = {
        "labels": args.labels or args.logits,
        "logits": args.logits,
        "seen_logits": args.logits,
        "unlabelled_logits": args.unlabelled,
        **dict.fromkeys(("groups", "seen_groups", "train_groups", "held_out_groups"), args.logits),
        "unlabelled_groups": args.unlabelled,
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
            accuracy = from_to(result.acc_seen_before, result.expected_acc_seen)
        if result.cost_source == TRAINING:
            accuracy += " (training samples, so optimistic)"
        elif "held_out" in METHODS[args.method].options and not args.held_out:
            accuracy += " (optimistic if the model was trained on them)"
        rows.append([f"seen accuracy on {visible(args.logits.name)}", accuracy])
    if result.interval is not None:
        rows.append([interval_name(result), "{:.6g} to {:.6g}".format(*result.interval)])
    if (share := share_in_words(result)) is not None:
        rows.append(["share of seen samples", share])
    of_labels = " (those among the labels)" if args.seen == "labels" else ""
    rows.append(["classes", f"{int(mask.sum())} seen{of_labels}, {int((~mask).sum())} absent"])
    return format_table(["gamma", f"{result.gamma:.6g}"], rows)
