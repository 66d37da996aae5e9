"""A diagnosis in words and tables, for a reader who has not read the paper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ._display import Block, Caution, Table
from .damage import MATTERS, HeadRows
from .report import SeenAbsentReport

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

WIDTH = 118

_ACCURACY_LEGEND = (
    "Acc_S/Y, Acc_U/Y, Acc_Y/Y: accuracy in % on samples of the seen (S), of the absent (U) and of all classes (Y), "
    "with every class allowed as the answer. Acc_S/S, Acc_U/U: with only the classes of the sample's own group "
    "allowed, so that gamma, which is added to every absent logit, changes nothing. AUSUC: area under Acc_U/Y as a "
    "function of Acc_S/Y over all gamma. The oracle gamma is the best one on these very labels: an upper bound. ±: one "
    "standard error."
)
_NCM_LEGEND = (
    "NCM: the answer is the class whose mean feature, over the reference samples, is nearest (cosine similarity); no "
    "head takes part."
)
_GAP_LEGEND = (
    "Means over samples of the largest seen and of the largest absent logit, of their gap (seen minus absent), and of "
    "the gap between the groups' mean logits; the label's own logit is left out everywhere. A gap that grew in "
    "fine-tuning keeps absent classes from being predicted."
)
_HEAD_LEGEND = (
    "Mean Euclidean norm of the head's rows, and mean cosine similarity of the updates of each two classes of the "
    "group: near 1, fine-tuning moved their rows in one direction, which leaves their order among themselves as it was."
)


def blocks(d: Diagnosis) -> Iterator[Block]:
    """The sentences, then each table with what it shows."""
    n_seen, n_absent = d.finetuned.n_seen, d.finetuned.n_absent
    ncm = "" if d.pretrained_ncm is None and d.finetuned_ncm is None else f" {_NCM_LEGEND}"
    cautions = [Caution(f"warning: {sentence}") for sentence in d.warnings]
    yield [f"verdict: {d.verdict}", *d.sentences, *cautions]
    yield [f"{n_seen + n_absent} labelled samples: {n_seen} of seen classes, {n_absent} of absent ones"]
    yield [_accuracy_table(d), _ACCURACY_LEGEND + ncm]
    yield [_gap_table(d), _GAP_LEGEND]
    if d.head_rows is not None:
        yield [_head_table(d.head_rows), _HEAD_LEGEND]


def headline(d: Diagnosis) -> str:
    """Say what the verdict is, and what calibration recovers."""
    now, best = d.finetuned, d.oracle
    recovered = (
        f"accuracy on all classes (Acc_Y/Y) {_from_to(now.acc_all, best.acc_all)} ({d.gain}), on absent ones (Acc_U/Y) "
        f"{_from_to(now.acc_absent, best.acc_absent)}, on seen ones (Acc_S/Y) {_from_to(now.acc_seen, best.acc_seen)}"
    )
    oracle = f"the oracle gamma = {best.gamma:.4g}"
    nothing = f"even {oracle} changes Acc_Y/Y by {d.gain}, which is within noise or too little to matter"
    if d.damaged:
        what = "Absent classes were damaged"
        if d.ncm_absent_change is None:
            what = "Absent classes' features or head rows were damaged"
        elif d.ncm_absent_change.direction < 0:
            what = "Absent classes' features were damaged"
        fall = _from_to(d.pretrained.acc_absent_within, now.acc_absent_within)
        what += f" (told apart among themselves, Acc_U/U: {fall}, {d.absent_change})"
        if d.calibration_helps:
            return f"{what}: calibration recovers at most, with {oracle}, {recovered}."
        return f"{what}, and calibration will not help: {nothing}."
    if d.calibration_helps:
        return f"Calibration will help: {oracle} gives {recovered}."
    return f"No gap: {nothing}."


def remarks(d: Diagnosis) -> list[str]:
    """Say what remains lost, and where the evidence comes from."""
    before, now, best = d.pretrained, d.finetuned, d.oracle
    within = f"Acc_U/U {_from_to(before.acc_absent_within, now.acc_absent_within)} ({d.absent_change})"
    told_apart = {
        1: f"The absent classes are told apart better than before fine-tuning: {within}",
        0: f"How well the absent classes are told apart changed by no more than noise or a point: {within}",
        -1: "Part of what told the absent classes apart was lost, and no gamma brings it back",
    }[d.absent_change.direction]
    sentences = [
        f"{told_apart}; Acc_U/Y cannot exceed Acc_U/U = {_percent(now.acc_absent_within)} %.",
        f"Against the model before fine-tuning, the oracle gamma leaves Acc_Y/Y "
        f"{_points(best.acc_all, before.acc_all)}, "
        f"Acc_U/Y {_points(best.acc_absent, before.acc_absent)} and Acc_S/Y {_points(best.acc_seen, before.acc_seen)}.",
    ]
    if not d.calibration_helps and d.gain.change >= MATTERS:
        sentences.append("A gain of this size may be luck in so few samples: more labelled samples would tell.")
    old, new = d.pretrained_gaps.absent.max_gap, d.finetuned_gaps.absent.max_gap
    if math.isfinite(old) and math.isfinite(new):
        sentences.append(
            "On samples of absent classes the gap between the largest seen and absent logits (the label's own left "
            f"out) went from {old:.3g} to {new:.3g} in fine-tuning."
        )
    ncm_change = d.ncm_absent_change
    if d.pretrained_ncm is not None and d.finetuned_ncm is not None and ncm_change is not None and ncm_change.n:
        found = {1: "improved", 0: "changed by no more than noise or a point", -1: "were damaged"}[ncm_change.direction]
        ncm = _from_to(d.pretrained_ncm.acc_absent_within, d.finetuned_ncm.acc_absent_within)
        sentences.append(
            f"By nearest class means (NCM), which do without the head, Acc_U/U {ncm} ({ncm_change}): the "
            f"absent classes' features {found}."
        )
    return sentences


def _accuracy_table(d: Diagnosis) -> Table:
    """One row a model and gamma; the nearest class means have no gamma."""
    rows = [
        ("before fine-tuning", d.pretrained),
        ("fine-tuned", d.finetuned),
        ("fine-tuned, oracle gamma", d.oracle),
        ("NCM, features before fine-tuning", d.pretrained_ncm),
        ("NCM, features fine-tuned", d.finetuned_ncm),
    ]
    return Table(
        ["accuracy, %", "gamma", "Acc_Y/Y", "Acc_S/Y", "Acc_U/Y", "Acc_S/S", "Acc_U/U", "AUSUC"],
        [_accuracy_row(name, report) for name, report in rows if report is not None],
    )


def _gap_table(d: Diagnosis) -> Table:
    """One row a group of samples and model."""
    rows = [
        (f"with {group} labels, {when}", *map(_number, getattr(gaps, group)))
        for group in ("seen", "absent")
        for when, gaps in (("before", d.pretrained_gaps), ("fine-tuned", d.finetuned_gaps))
    ]
    return Table(["mean logits of samples", "largest seen", "largest absent", "gap", "gap of means"], rows)


def _head_table(rows: HeadRows) -> Table:
    """One row a group of classes."""
    return Table(
        ["head rows", "norm before", "norm fine-tuned", "cosine of updates"],
        [(group, *map(_number, values)) for group, values in zip(rows._fields, rows, strict=True)],
    )


def _accuracy_row(name: str, report: SeenAbsentReport) -> list[str]:
    accuracies = (
        report.acc_all,
        report.acc_seen,
        report.acc_absent,
        report.acc_seen_within,
        report.acc_absent_within,
    )
    gamma = "" if name.startswith("NCM") else f"{report.gamma:.4g}"
    return [name, gamma, *map(_percent, accuracies), "-" if math.isnan(report.ausuc) else f"{report.ausuc:.4f}"]


def _from_to(before: float, after: float) -> str:
    return f"{_percent(before)} -> {_percent(after)} %"


def _points(after: float, before: float) -> str:
    return f"{100 * (after - before):+.1f} points"


def _percent(fraction: float) -> str:
    """Without the sign, "-" for NaN."""
    return "-" if math.isnan(fraction) else f"{100 * fraction:.1f}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:#.3g}".rstrip(".")
