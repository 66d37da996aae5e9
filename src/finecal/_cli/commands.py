"""``finecal evaluate``, ``apply``, ``report`` and ``demo``, and what all commands print and write."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from .._core.arrays import dtype_name
from .._core.calibrate import calibrate_logits, predict
from .._core.curve import tradeoff_curve
from .._core.files import check_destination, with_checksum, write_text
from .._core.logits_file import LOGITS_SUFFIXES, PAGE_SUFFIXES, PREDICTION_SUFFIXES, write_logits, write_predictions
from .._core.results import decimal, format_table, percent, points, strict_json, to_json, visible
from .._core.warning import error_context
from .._demo.run import run_demo
from .._estimators.estimate import GammaEstimate
from .._report.document import html_report
from .._version import __version__
from .sources import FILES, labels_of, mask_of_seen, option_of, read_gamma_for, read_logits_of

_SOURCES = {
    "logits": "the logits before calibration",
    **{name: f"the file of {option_of(name)}" for name in (*FILES, "labels", "class_names", "seen", "gamma")},
}
"""What commands read, by argument."""


def evaluate(args: argparse.Namespace, sentences: list[str]) -> None:
    given = read_gamma_for(args, read_logits_of(args))
    labels, gamma = labels_of(args, given.content), given.source.gamma
    curve = tradeoff_curve(given.content.logits, labels, given.seen_mask, args.average)
    titles, reports = ["gamma = 0", f"gamma = {gamma:.6g}"], [curve.at(0.0), curve.at(gamma)]
    if (calibrated := given.with_prototypes()) is not None:
        curve = tradeoff_curve(calibrated, labels, given.seen_mask, args.average)
        titles.append("with prototypes")
        reports.append(replace(curve.at(0.0), gamma=gamma))
    columns = [asdict(report) for report in reports]
    before, alone, after = columns[0], columns[1], columns[-1]
    if args.json:
        record = {"average": args.average, "before": before, "after": after}
        if calibrated is not None:
            record["by_gamma_alone"] = alone
        print(json_of(record, sentences), end="")
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
        [title, *(percent(column[name]) for column in columns), points(after[name], before[name])]
        for title, name in percents.items()
    ]
    print(format_table([f"accuracy ({args.average}), %", *titles, "change"], rows))
    ausuc = decimal(after["ausuc"], 4)
    if calibrated is not None:
        ausuc += f" ({decimal(alone['ausuc'], 4)} by gamma alone)"
    print(f"{curve.n_seen} seen and {curve.n_absent} absent samples, AUSUC {ausuc}")
    if curve.n_absent == 0:
        print("no samples of absent classes: this shows only what gamma costs")


def apply(args: argparse.Namespace, sentences: list[str]) -> None:
    check_output(args, PREDICTION_SUFFIXES if args.predictions else LOGITS_SUFFIXES)
    given = read_gamma_for(args, read_logits_of(args))
    content, mask, gamma = given.content, given.seen_mask, given.source.gamma
    calibrated = given.with_prototypes()
    classes = predict(content.logits, mask, gamma) if calibrated is None else predict(calibrated, mask)
    if args.predictions:
        write_predictions(args.output, classes, content.class_names)
    else:
        if calibrated is None:
            calibrated = calibrate_logits(content.logits, mask, gamma)
        if bool(calibrated.isposinf().any()):
            raise ValueError(
                f"gamma = {gamma:.6g} makes logits infinite in {dtype_name(calibrated)}, and finecal could not read "
                "them again: convert the logits to float32 or wider, or write --predictions"
            )
        write_logits(args.output, replace(content, logits=calibrated, gamma=gamma))
    changed = int((classes != predict(content.logits, mask)).sum())
    if args.json:
        record = {"output": str(args.output), "gamma": gamma, "n": len(classes), "changed_predictions": changed}
        print(json_of(record, sentences), end="")
    else:
        what = "changes" if given.prototypes is None else "and prototypes change"
        print(f"gamma = {gamma:.6g} {what} the prediction for {changed} of {len(classes)} samples")
        say_written(args.output)


def report(args: argparse.Namespace, sentences: list[str]) -> None:
    check_output(args, PAGE_SUFFIXES)
    content = read_logits_of(args)
    labels = labels_of(args, content)
    gamma: GammaEstimate | float | None = None
    prototypes = None
    if args.gamma is not None:
        content, source, mask, prototypes = read_gamma_for(args, content)
        gamma = source.gamma if source.estimate is None else source.estimate
    elif args.seen is not None:
        mask = mask_of_seen(args, content)
    else:
        raise ValueError(
            "--seen is missing: a file with the seen classes' names or indices, or a .npy mask; or give --gamma with "
            "what finecal estimate -o wrote"
        )
    with error_context(args.labels or args.logits, ValueError):
        page = html_report(
            content.logits,
            labels,
            mask,
            gamma,
            class_names=content.class_names,
            average=args.average,
            title=f"How gamma changes accuracy on {args.logits.name}" if args.title is None else args.title,
            prototypes=prototypes,
        )
    write_text(args.output, page)
    say_written(args.output)


def demo(args: argparse.Namespace, sentences: list[str]) -> None:
    print(run_demo(args.out, args.seed))


# --- what is printed and written --------------------------------------------------------------------------------------


def check_output(args: argparse.Namespace, suffixes: Sequence[str]) -> None:
    """Refuse an output that cannot be written, or that would replace a file that the command reads."""
    check_destination(args.output, suffixes)
    for name, what in _SOURCES.items():
        given = getattr(args, name, None)
        for source in given if isinstance(given, list) else [given]:
            if source is not None and args.output.exists() and os.path.exists(source) and args.output.samefile(source):
                raise ValueError(f"-o {args.output} would replace {what}; choose another name")


def say_written(path: Path | None) -> None:
    if path is not None:
        print(f"wrote {visible(str(path), and_lines=True)}")


def json_of(record: Mapping[str, Any], sentences: list[str], *, signed: bool = False) -> str:
    """Return a record as JSON, with the sentences of the warnings; `signed` adds a checksum, for who reads it again."""
    whole = strict_json({**record, "warnings": sentences, "finecal": __version__})
    return to_json(with_checksum(whole) if signed else whole)
