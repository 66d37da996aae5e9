"""``finecal estimate`` and ``finecal compare``, from parsed arguments to printed results."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor

from .._calibrators.additive_bias import AdditiveBias
from .._calibrators.compare import compare_estimators
from .._calibrators.file import save
from .._calibrators.prototypes import Prototypes, fit_prototypes
from .._core.files import write_text
from .._core.logits_file import read_class_names
from .._core.results import format_table, from_to, percent, visible
from .._core.warning import error_context
from .._estimators.auto import estimate_gamma
from .._estimators.estimate import (
    COST_SOURCES,
    HELD_OUT,
    KINDS,
    TRAINING,
    GammaEstimate,
    break_even_in_words,
    gamma_record,
    interval_name,
    share_in_words,
)
from .._estimators.gaps import GAPS
from .._estimators.table import BY_NAME, ESTIMATORS, Data
from ..streaming._sums import GapSums
from .commands import check_output, json_of, say_written
from .sources import FILES, Given, option_of, paths_of, read_samples, read_seen_mask

COMPARISON_SUFFIXES = (".json", ".md", ".csv")


@dataclass(frozen=True)
class Method:
    """The data that a method needs, in words, the options that apply, and why some of them are required."""

    data: str
    options: set[str]
    required: Mapping[str, str] = field(default_factory=dict)


_HELD_OUT = {"held_out": "labelled seen samples that the model was not trained on"}
_UNLABELLED = {"unlabelled": "samples of all classes, whose labels are not looked at"}
_BY_DATA = {
    Data.SEEN: Method("--train or --held-out", {"train", "held_out"}),
    Data.HELD_OUT: Method("--held-out", {"held_out"}, _HELD_OUT),
    Data.LABELLED: Method("--labelled", {"labelled"}, {"labelled": "labelled samples of all classes"}),
    Data.SHARE: Method(
        "--unlabelled and --seen-share",
        {"unlabelled", "seen_share", "prototypes"},
        {**_UNLABELLED, "seen_share": "the share of seen samples among the unlabelled ones"},
    ),
    Data.MIXTURE: Method(
        "--held-out and --unlabelled",
        {"held_out", "unlabelled", "prototypes"},
        {"held_out": "seen samples that the model was not trained on", **_UNLABELLED},
    ),
}
"""What every estimator from such data takes; the others need more than files of samples."""
METHODS = {
    "auto": Method(
        "all that is given of --train, --held-out and --unlabelled",
        {"train", "held_out", "unlabelled", "seen_share", "seed", "prototypes"},
    ),
    **{
        estimator.name: replace(method, options=method.options | estimator.options)
        for estimator in ESTIMATORS
        if (method := _BY_DATA.get(estimator.data)) is not None
    },
}
_KEYWORDS = ("n_bootstrap", "seed", *sorted(set().union(*(estimator.options for estimator in ESTIMATORS)) - {"seed"}))
"""Arguments of estimators that the command line has under the same names."""


# --- estimate ---------------------------------------------------------------------------------------------------------


def estimate(args: argparse.Namespace, sentences: list[str]) -> None:
    _check_seen(args)
    _check_options(args)
    if args.output is not None:
        check_output(args, (".safetensors",) if args.prototypes else (".json", ".safetensors"))
    found = _estimate_on_ray(args) if args.engine == "ray" else _estimate_at_once(args)
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


def _estimate_at_once(args: argparse.Namespace) -> _Estimated:
    needs_no_labels = _data_of(args) is Data.MIXTURE
    given = read_samples(args, set(FILES) - {"unlabelled", *(["held_out"] if needs_no_labels else [])})
    if args.prototypes and given.samples["unlabelled"].features_tensor is None:
        raise ValueError(
            f"{args.unlabelled} has no features, which --prototypes needs; save what the model's final linear layer "
            "takes, under the key 'features'"
        )
    result = _run_method(args, given)
    prototypes = _prototypes(given, result) if args.prototypes else None
    return _Estimated(result, given.seen_mask, given.class_names, prototypes)


def _prototypes(given: Given, result: GammaEstimate) -> Prototypes:
    """Make prototypes, and check them on the held-out samples if these have what it takes."""
    check = given.samples.get("held_out")
    if check is not None and (check.features is None or check.labels is None):
        check = None
    return fit_prototypes(given.samples["unlabelled"], given.seen_mask, result, held_out=check)


def _estimate_on_ray(args: argparse.Namespace) -> _Estimated:
    """Estimate gamma from a folder of files that nobody reads as a whole."""
    try:
        from ..integrations import ray
    except ImportError as error:
        raise ImportError(f"--engine ray needs Ray Data ({error}): pip install 'finecal[ray]'") from error
    name = _seen_samples(args)
    (folder,) = paths_of(args, name)
    with ray.run_ray():
        content = ray.first_classes(folder)
        if args.class_names is not None:
            content = replace(content, class_names=read_class_names(args.class_names, content.logits.shape[1]))
        mask = read_seen_mask(args.seen, content)
        state = ray.fill(GapSums(mask), folder, progress=not args.no_progress)
    with error_context(folder, ValueError):
        result = state.estimate(args.method)
    data = f"{result.n} labelled {KINDS[name]} samples (seen classes)"
    result = replace(result, data=data, cost_source=COST_SOURCES[name], sources={name: result.n})
    return _Estimated(result, mask, content.class_names)


def _check_seen(args: argparse.Namespace) -> None:
    if args.seen is None:
        raise ValueError("--seen is missing: a file with the seen classes' names or indices, a .npy mask, or 'labels'")
    if args.seen == "labels" and args.train is None and args.held_out is None:
        raise ValueError(
            "--seen labels takes the classes that occur in --train, or else in --held-out; give one of these, or the "
            "seen classes in a file"
        )


def _check_options(args: argparse.Namespace) -> None:
    """Refuse an option that does not apply to the method, and a method without an option that it needs."""
    method = METHODS[args.method]
    options = set(method.options)
    if args.engine == "ray":
        _check_adds_up(args)
    elif args.no_progress:
        raise ValueError("--no-progress is about the bar of --engine ray; leave it out")
    if args.seen == "labels":
        options.add("held_out" if args.train is None else "train")  # which have the labels
    if args.n_bootstrap:
        options.add("seed")
    every = sorted(set().union(*(other.options for other in METHODS.values())))
    given = [option for option in every if getattr(args, option) is not None and getattr(args, option) is not False]
    for option in given:
        if option not in options:
            others = ", ".join(name for name, other in METHODS.items() if option in other.options)
            without = " without --bootstrap" if option == "seed" else ""
            raise ValueError(
                f"{option_of(option)} does not apply to --method {args.method}{without}; leave it out, or choose a "
                f"method that takes it: {others}"
            )
    for option, reason in method.required.items():
        if option not in given:
            raise ValueError(f"--method {args.method} needs {option_of(option)}: {reason}")
    if _data_of(args) is Data.SEEN and (args.train is None) == (args.held_out is None):
        both = "takes one of these, and both are given" if args.train is not None else "needs one of these"
        raise ValueError(f"--method {args.method} {both}: --train, --held-out")
    if args.method == "auto":
        _check_unlabelled(args)
        if args.train is None and args.held_out is None and args.unlabelled is None:
            raise ValueError("there are no samples; give --train, --held-out, or --unlabelled with --seen-share")
    if args.prototypes and args.unlabelled is None:
        raise ValueError("--prototypes needs --unlabelled: samples of all classes, with features")


def _data_of(args: argparse.Namespace) -> Data | None:
    """Return what the method needs; None for auto."""
    return None if args.method == "auto" else BY_NAME[args.method].data


def _check_unlabelled(args: argparse.Namespace) -> None:
    if args.unlabelled is not None and args.held_out is None and args.seen_share is None:
        raise ValueError(
            "--unlabelled needs --held-out, labelled samples that the model was not trained on, or --seen-share, the "
            "share of seen samples in it; give one of these, or leave it out"
        )


def _check_adds_up(args: argparse.Namespace) -> None:
    """Refuse what needs the logits or labels of all files at once."""
    if args.method not in GAPS:
        raise ValueError(
            f"--method {args.method} needs all logits at once, which no machine has with --engine ray; choose --method "
            f"{' or '.join(GAPS)}, which add up over files"
        )
    for name in ("train", "held_out"):
        if len(paths_of(args, name)) > 1:
            raise ValueError(f"{option_of(name)} takes one folder with --engine ray, of files with logits and labels")
    for flag, value in {"--bootstrap": args.n_bootstrap, "--seen labels": args.seen == "labels"}.items():
        if value:
            raise ValueError(f"{flag} needs the samples of all files at once, which no machine has with --engine ray")


def _run_method(args: argparse.Namespace, given: Given) -> GammaEstimate:
    keywords: dict[str, Any] = {name: value for name in _KEYWORDS if (value := getattr(args, name)) is not None}
    samples, mask = given.samples, given.seen_mask
    if args.method == "auto":
        return estimate_gamma(mask, **keywords | samples)
    estimator = BY_NAME[args.method]
    if estimator.data is Data.SHARE:
        return estimator.function(samples["unlabelled"], mask, **keywords)
    if estimator.data is Data.MIXTURE:
        return estimator.function(samples["held_out"], samples["unlabelled"], mask, **keywords)
    name = {Data.LABELLED: "labelled", Data.HELD_OUT: "held_out"}.get(estimator.data) or _seen_samples(args)
    return estimator.function(samples[name].named(name), mask, **keywords)


def _seen_samples(args: argparse.Namespace) -> str:
    return "held_out" if args.train is None else "train"


def _estimate_table(args: argparse.Namespace, result: GammaEstimate, mask: Tensor) -> str:
    rows = [["method", result.method], ["estimated from", result.data]]
    if result.acc_seen_at_gamma is not None:
        accuracy = f"{percent(result.acc_seen_at_gamma)} %"
        if result.acc_seen_at_zero is not None:
            accuracy = from_to(result.acc_seen_at_zero, result.acc_seen_at_gamma)
        if result.cost_source == TRAINING:
            accuracy += " (training samples, so optimistic)"
        measured_on = {TRAINING: "train", HELD_OUT: "held_out"}.get(result.cost_source or "", "labelled")
        rows.append([f"seen accuracy on {visible(paths_of(args, measured_on)[0].name)}", accuracy])
    if (pays := break_even_in_words(result)) is not None:
        rows.append(["break-even", pays])
    if result.interval is not None:
        rows.append([interval_name(result), "{:.6g} to {:.6g}".format(*result.interval)])
    if (share := share_in_words(result)) is not None:
        rows.append(["share of seen samples", share])
    of_labels = " (those among the labels)" if args.seen == "labels" else ""
    rows.append(["classes", f"{int(mask.sum())} seen{of_labels}, {int((~mask).sum())} absent"])
    return format_table(["gamma", f"{result.gamma:.6g}"], rows)


# --- compare ----------------------------------------------------------------------------------------------------------


def compare(args: argparse.Namespace, sentences: list[str]) -> None:
    _check_seen(args)
    _check_unlabelled(args)
    if all(not paths_of(args, name) for name in FILES if name != "test"):
        raise ValueError(
            "there are no samples to estimate gamma from; give --train, --held-out, --labelled, or --unlabelled with "
            "--seen-share"
        )
    if args.output is not None:
        check_output(args, COMPARISON_SUFFIXES)
    given = read_samples(args, set(FILES) - {"unlabelled"})
    keywords: dict[str, Any] = {name: getattr(args, name) or 0 for name in ("n_bootstrap", "seed")}
    comparison = compare_estimators(given.seen_mask, seen_share=args.seen_share, **keywords | given.samples)
    text = json_of(comparison.to_dict(), sentences)
    if args.output is not None:
        suffix, exported = args.output.suffix.lower(), text
        if suffix == ".md":
            exported = comparison.to_markdown() + "\n"
        elif suffix == ".csv":
            exported = comparison.to_pandas().to_csv(index=False, lineterminator="\n")
        write_text(args.output, exported)
    if args.json:
        print(text, end="")
    else:
        print(comparison)
        say_written(args.output)
