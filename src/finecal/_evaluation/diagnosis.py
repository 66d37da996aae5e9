"""A diagnosis of fine-tuning, in numbers, and in words for a reader who has not read the paper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .._core import results as lazy
from .._core.kernels import LabelScalars
from .._core.reductions import label_scalars, margin_of
from .._core.report import Margins, SeenAbsentReport
from .._core.results import UNDEFINED, Block, Caution, Result, Table, data_frame, decimal, from_to, percent, points
from .._core.samples import Scan
from .._estimators.gaps import GAPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


MATTERS = 0.01
"""Smaller changes of an accuracy are not worth a word, however certain."""
_NOISE = 1.96
"""Standard errors of a change that chance exceeds in 5 % of cases, in either direction."""
_NOISE_AT_BEST = 2.72
"""The same at the highest point of a driftless walk: Rayleigh distributed, 2.5 % on each side of gamma = 0."""


class PairedChange(NamedTuple):
    """Change of an accuracy on the same `n` samples, of which `gained` became correct and `lost` became wrong."""

    gained: int
    lost: int
    n: int

    @property
    def change(self) -> float:
        """Accuracy after minus accuracy before, a fraction; NaN without samples."""
        return (self.gained - self.lost) / self.n if self.n else math.nan

    @property
    def standard_error(self) -> float:
        """Of `change`, if each sample that changed did so either way with equal chance (McNemar)."""
        return math.sqrt(self.gained + self.lost) / self.n if self.n else math.nan

    @property
    def direction(self) -> int:
        """1 for a rise and -1 for a fall of a point or more that McNemar's test (5 %, corrected) finds; else 0."""
        difference = self.gained - self.lost
        if abs(difference) - 1 <= _NOISE * math.sqrt(self.gained + self.lost) or abs(self.change) < MATTERS:
            return 0
        return 1 if difference > 0 else -1

    @property
    def is_gain_at_best(self) -> bool:
        """Whether the change, chosen as the largest over gamma, is a point or more and beyond what luck finds."""
        return self.change >= MATTERS and self.change > _NOISE_AT_BEST * self.standard_error

    def __str__(self) -> str:
        return f"{points(self.change)} ± {percent(self.standard_error)} points"


class LogitGap(NamedTuple):
    """Mean over samples of the groups' largest logits, and by how much the seen ones are larger than the absent."""

    seen_max: float
    absent_max: float
    max_gap: float
    average_gap: float


class GroupGaps(NamedTuple):
    """The logit gap over the samples with a seen, and over those with an absent label."""

    seen: LogitGap
    absent: LogitGap


class RowGroup(NamedTuple):
    """Mean norms of a group's head rows, and mean cosine similarity of the updates of each two of them."""

    pretrained_norm: float
    finetuned_norm: float
    update_cosine: float


class HeadRows(NamedTuple):
    """The head's rows of the seen, and of the absent classes."""

    seen: RowGroup
    absent: RowGroup


def paired_change(before: Tensor, after: Tensor) -> PairedChange:
    """Count the samples that are correct `(N,)` on one side only."""
    return PairedChange(int((after & ~before).sum()), int((before & ~after).sum()), before.shape[0])


def logit_gaps(scan: Scan) -> GroupGaps:
    """Average over the samples of each group in which -inf masks neither group of logits as a whole."""
    is_seen = scan.scalars.is_seen
    # With the groups swapped, the label that is left out is an absent one, and the gap has the other sign.
    gaps_of = GAPS["average_logit_gap"]
    swapped = -gaps_of(replace(scan, mask=~scan.mask))
    averages = torch.where(is_seen, gaps_of(scan), swapped)
    maxima = torch.stack([scan.scalars.seen_rival, scan.scalars.absent_rival], 1).double()

    def over(group: Tensor) -> LogitGap:
        seen_max, absent_max = maxima[group & maxima.isfinite().all(1)].mean(0).tolist()
        average = float(averages[group & averages.isfinite()].mean())
        return LogitGap(seen_max, absent_max, seen_max - absent_max, average)

    return GroupGaps(over(is_seen), over(~is_seen))


def head_rows(before: Tensor, after: Tensor, mask: Tensor) -> HeadRows:
    """Compare the rows of two head weights `(C, D)`; rows that did not move have no direction."""
    update = after - before
    length = update.norm(dim=1)

    def over(group: Tensor) -> RowGroup:
        moved = group & (length > 0)
        count = int(moved.sum())
        # The squared norm of a sum of unit vectors is their number plus the cosines of all ordered pairs.
        square = float((update[moved] / length[moved].unsqueeze(1)).sum(0).square().sum())
        cosine = (square - count) / (count * (count - 1)) if count > 1 else math.nan
        return RowGroup(float(before[group].norm(dim=1).mean()), float(after[group].norm(dim=1).mean()), cosine)

    return HeadRows(over(mask), over(~mask))


_BLOCK_ELEMENTS = 1 << 22


def nearest_mean_margins(
    features: Tensor, labels: Tensor, mask: Tensor, reference: Tensor, reference_labels: Tensor
) -> Margins[Tensor]:
    """Score `(N, D)` features by float64 cosines with reference class means; leave out classes without reference."""
    known = torch.bincount(reference_labels, minlength=mask.shape[0]) > 0
    means = _class_means(reference, reference_labels, mask.shape[0])
    parts = [
        label_scalars((normalize(rows.double()) @ means.T).masked_fill(~known, -math.inf), y, mask)
        for rows, y in _blocks(features, labels, mask.shape[0])
    ]
    scalars = LabelScalars(*(torch.cat(column) for column in zip(*parts, strict=True)))
    margin = margin_of(scalars.seen_max, scalars.absent_max)
    kept = known[labels]
    return Margins(margin[kept], scalars.is_seen[kept], scalars.hit[kept], labels[kept])


def _class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the direction of the mean of each class's normalised features, `(C, D)`; 0 for a class without any."""
    total = torch.zeros((num_classes, features.shape[1]), dtype=torch.float64, device=features.device)
    for rows, y in _blocks(features, labels, num_classes):
        total.index_add_(0, y, normalize(rows.double()))
    return normalize(total)


def _blocks(features: Tensor, labels: Tensor, num_classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    height = max(1, _BLOCK_ELEMENTS // max(num_classes, features.shape[1]))
    return zip(torch.split(features, height), torch.split(labels, height), strict=True)


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
_INTERPOLATION = (
    "for weights between those before and after fine-tuning. On 18 damaged models of the benchmark it gained 3.6 "
    "points over gamma on average: 4 to 36 on five of them, next to nothing on the others."
)


@dataclass(frozen=True)
class Diagnosis(Result):
    """Effect of fine-tuning on the seen and the absent classes; made by `diagnose`. Prints as sentences and tables.

    Attributes
    ----------
    pretrained, finetuned : SeenAbsentReport
        Accuracies of each model at gamma = 0.
    oracle : SeenAbsentReport
        Fine-tuned model at the gamma that is best on these very labels: an upper bound, not an estimate.
    gain : PairedChange
        `Acc_{Y/Y}` from gamma = 0 to the oracle gamma: `gained` and `lost` samples of `n`, and the properties `change`
        and `standard_error`, fractions.
    seen_change, absent_change : PairedChange
        `Acc_{S/S}` and `Acc_{U/U}`, from before to after fine-tuning. Gamma changes neither.
    pretrained_gaps, finetuned_gaps : GroupGaps
        ``.seen`` and ``.absent``, over the samples with such a label: means of the largest seen and of the largest
        absent logit (`seen_max`, `absent_max`), of their difference (`max_gap`, as in `max_logit_gap`) and of the
        difference of the groups' mean logits (`average_gap`, as in `average_logit_gap`), the label's own logit left
        out. NaN where no sample has such logits.
    pretrained_ncm, finetuned_ncm : SeenAbsentReport or None
        Nearest class mean in the features of each model.
    ncm_absent_change : PairedChange or None
        `Acc_{U/U}` of the nearest class mean, from before to after fine-tuning.
    head_rows : HeadRows or None
        ``.seen`` and ``.absent``: mean norms of the rows (`pretrained_norm`, `finetuned_norm`), and the mean cosine
        similarity of the updates of each two classes (`update_cosine`, NaN with fewer than two rows that moved).
    with_prototypes : SeenAbsentReport or None
        Fine-tuned model with the prototypes given, at the gamma that is best on these labels beside theirs.
    prototypes_change : PairedChange or None
        `Acc_{Y/Y}` from the oracle gamma alone to prototypes with theirs.
    warnings : tuple of str
        Each was also issued as a `FinecalWarning`.
    """

    pretrained: SeenAbsentReport
    finetuned: SeenAbsentReport
    oracle: SeenAbsentReport
    gain: PairedChange
    seen_change: PairedChange
    absent_change: PairedChange
    pretrained_gaps: GroupGaps
    finetuned_gaps: GroupGaps
    pretrained_ncm: SeenAbsentReport | None = None
    finetuned_ncm: SeenAbsentReport | None = None
    ncm_absent_change: PairedChange | None = None
    head_rows: HeadRows | None = None
    with_prototypes: SeenAbsentReport | None = None
    prototypes_change: PairedChange | None = None
    warnings: tuple[str, ...] = ()

    _width = 118

    @property
    def damaged(self) -> bool:
        """Whether absent classes are told apart worse than before fine-tuning, beyond noise; gamma may help or not."""
        return self.absent_change.direction < 0

    @property
    def calibration_helps(self) -> bool:
        """Whether the oracle gamma gains more `Acc_{Y/Y}` than luck finds where there is no gap."""
        return self.gain.is_gain_at_best

    @property
    def verdict(self) -> Literal["calibration helps", "damaged", "no gap"]:
        """For a program, in two words; if absent classes were damaged and gamma helps, the larger effect."""
        if self.damaged and not self._gains_more_than_was_damaged:
            return "damaged"
        return "calibration helps" if self.calibration_helps else "no gap"

    @property
    def _gains_more_than_was_damaged(self) -> bool:
        """Whether the oracle gamma gains more samples than can no longer be recovered because of the damage."""
        change = self.absent_change
        return self.calibration_helps and self.gain.gained - self.gain.lost > change.lost - change.gained

    @property
    def next_step(self) -> Literal["gamma", "prototypes", "interpolation", "none"]:
        """What helps first, for a program; interpolation of the weights if the verdict is "damaged"."""
        if self.verdict == "damaged":
            return "interpolation"
        if self.prototypes_change is not None and self.prototypes_change.direction > 0:
            return "prototypes"
        return "gamma" if self.calibration_helps else "none"

    @property
    def advice(self) -> str:
        """The next step in one sentence, with what to expect of it."""
        of_gamma = f"gamma gains up to {points(self.gain.change)} points"
        measured = self.prototypes_change
        if self.next_step == "interpolation":
            return f"Next step: search_interpolation, {_INTERPOLATION}"
        if self.next_step == "none":
            return (
                "Next step: none. Neither gamma nor anything else that was tried here gains what would be beyond noise."
            )
        damage = f" For part of the damage, try search_interpolation, {_INTERPOLATION}" if self.damaged else ""
        if self.next_step == "prototypes":
            return f"Next step: prototypes. On these samples {of_gamma}, and they gain {measured} more.{damage}"
        if measured is not None:
            alone = f"It{of_gamma.removeprefix('gamma')}; prototypes change that by {measured}."
            return f"Next step: gamma alone. {alone}{damage}"
        return (
            f"Next step: estimate_gamma. On these samples {of_gamma}. Then fit_prototypes, if there are unlabelled "
            f"samples: on models of the benchmark it gained 1.8 points more in the median.{damage}"
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """What can be recovered, what remains lost, and what speaks for it."""
        return (_headline(self), *_remarks(self))

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict, and the fields as Python values, reports and changes as dicts: for JSON."""
        return {"verdict": self.verdict, **super().to_dict()}

    def to_pandas(self) -> DataFrame:
        """Return a table with a row for each of the `SeenAbsentReport` that there are."""
        reports = {field.name: getattr(self, field.name) for field in fields(self)}
        records = {name: report.to_dict() for name, report in reports.items() if isinstance(report, SeenAbsentReport)}
        return data_frame(list(records.values()), list(records), "model")

    def plot(self, ax: Axes | None = None, **style: Any) -> Axes:
        """Draw the logit gaps before and after; see `finecal.plots.plot_gaps` (needs the extra ``plots``)."""
        axes: Axes = lazy.plots().plot_gaps(self, ax, **style)
        return axes

    def _blocks(self) -> Iterator[Block]:
        """The sentences, then each table with what it shows."""
        n_seen, n_absent = self.finetuned.n_seen, self.finetuned.n_absent
        ncm = "" if self.pretrained_ncm is None and self.finetuned_ncm is None else f" {_NCM_LEGEND}"
        cautions = [Caution(f"warning: {sentence}") for sentence in self.warnings]
        yield [f"verdict: {self.verdict}", *self.sentences, self.advice, *cautions]
        yield [f"{n_seen + n_absent} labelled samples: {n_seen} of seen classes, {n_absent} of absent ones"]
        yield [_accuracy_table(self), _ACCURACY_LEGEND + ncm]
        yield [_gap_table(self), _GAP_LEGEND]
        if self.head_rows is not None:
            yield [_head_table(self.head_rows), _HEAD_LEGEND]


def _headline(d: Diagnosis) -> str:
    """Say what the verdict is, and what calibration recovers."""
    now, best = d.finetuned, d.oracle
    recovered = (
        f"accuracy on all classes (Acc_Y/Y) {from_to(now.acc_all, best.acc_all)} ({d.gain}), on absent ones (Acc_U/Y) "
        f"{from_to(now.acc_absent, best.acc_absent)}, on seen ones (Acc_S/Y) {from_to(now.acc_seen, best.acc_seen)}"
    )
    oracle = f"the oracle gamma = {best.gamma:.4g}"
    nothing = f"even {oracle} changes Acc_Y/Y by {d.gain}, which is within noise or too little to matter"
    if d.verdict == "damaged":
        what = "Absent classes were damaged"
        if d.ncm_absent_change is None:
            what = "Absent classes' features or head rows were damaged"
        elif d.ncm_absent_change.direction < 0:
            what = "Absent classes' features were damaged"
        fall = from_to(d.pretrained.acc_absent_within, now.acc_absent_within)
        what += f" (told apart among themselves, Acc_U/U: {fall}, {d.absent_change})"
        if d.calibration_helps:
            return f"{what}: calibration recovers at most, with {oracle}, {recovered}."
        return f"{what}, and calibration will not help: {nothing}."
    if d.calibration_helps:
        return f"Calibration will help: {oracle} gives {recovered}."
    return f"No gap: {nothing}."


def _remarks(d: Diagnosis) -> list[str]:
    """Say what remains lost, and where the evidence comes from."""
    before, now, best = d.pretrained, d.finetuned, d.oracle
    within = f"Acc_U/U {from_to(before.acc_absent_within, now.acc_absent_within)} ({d.absent_change})"
    told_apart = {
        1: f"The absent classes are told apart better than before fine-tuning: {within}",
        0: f"How well the absent classes are told apart changed by no more than noise or a point: {within}",
        -1: "Part of what told the absent classes apart was lost, and no gamma brings it back"
        + (f": {within}" if d.verdict != "damaged" else ""),
    }[d.absent_change.direction]
    sentences = [
        f"{told_apart}; Acc_U/Y cannot exceed Acc_U/U = {percent(now.acc_absent_within)} %.",
        "Against the model before fine-tuning, the oracle gamma leaves "
        f"Acc_Y/Y {points(best.acc_all, before.acc_all)} points, "
        f"Acc_U/Y {points(best.acc_absent, before.acc_absent)} points and "
        f"Acc_S/Y {points(best.acc_seen, before.acc_seen)} points.",
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
        ncm = from_to(d.pretrained_ncm.acc_absent_within, d.finetuned_ncm.acc_absent_within)
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
        ("fine-tuned, prototypes", d.with_prototypes),
        ("NCM, features before fine-tuning", d.pretrained_ncm),
        ("NCM, features fine-tuned", d.finetuned_ncm),
    ]
    lines = []
    for name, at in rows:
        if at is not None:
            accuracies = at.acc_all, at.acc_seen, at.acc_absent, at.acc_seen_within, at.acc_absent_within
            gamma = "" if name.startswith("NCM") else f"{at.gamma:.4g}"
            lines.append([name, gamma, *map(percent, accuracies), decimal(at.ausuc, 4)])
    return Table(["accuracy, %", "gamma", "Acc_Y/Y", "Acc_S/Y", "Acc_U/Y", "Acc_S/S", "Acc_U/U", "AUSUC"], lines)


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


def _number(value: float) -> str:
    return UNDEFINED if math.isnan(value) else f"{value:#.3g}".rstrip(".")
