"""One checked pass over logits: what the estimators, curves and states start from."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..inputs.arrays import Groups, Labels, Logits, Mask
from ..inputs.checks import as_logits, check_labels, check_mask, check_mask_values, check_scores, warn_if_reindexed
from ..inputs.groups import Grouping, check_groups
from ..logits.reductions import group_maxima, label_hits, label_scalars, margin_of
from ..logits.torch_kernels import LabelHits, LabelScalars
from .doubts import doubts_about_input, warn_of_input
from .margins import Margins


def batch_margins(logits: Logits, labels: Labels, seen_mask: Mask) -> tuple[Margins[Tensor], Tensor]:
    """Check labelled logits, of which more may follow, and return their margins and labels."""
    x, mask = checked(logits, seen_mask)
    samples, y, _ = margins_of(x, labels, mask)
    return samples, y


def margins_of(x: Tensor, labels: Labels, mask: Tensor) -> tuple[Margins[Tensor], Tensor, LabelHits]:
    """Return margins, labels and hits of what `checked` gave; labels and scores are checked here."""
    y = check_labels(labels, x.shape[0], x.shape[1], x.device)
    hits = label_hits(x, y, mask)
    check_scores(x, torch.maximum(hits.seen_max, hits.absent_max))
    return Margins(margin_of(hits.seen_max, hits.absent_max), mask[y], hits.hit, y), y, hits


class LabelledScan(NamedTuple):
    """Checked input and its per-sample scalars: what the estimators from labelled data start from."""

    logits: Tensor
    labels: Tensor
    mask: Tensor
    scalars: LabelScalars
    margin: Tensor
    groups: Grouping | None = None
    """Which samples belong together; None where each is independent of all others."""

    @property
    def samples(self) -> Margins[Tensor]:
        """What questions about gamma need of them."""
        return Margins(self.margin, self.scalars.is_seen, self.scalars.hit, self.labels)

    def acc_seen(self, gamma: float) -> float:
        """`Acc_{S/Y}` at gamma, NaN without seen samples."""
        correct = self.scalars.hit & (self.margin.double() >= gamma)
        return float(correct[self.scalars.is_seen].double().mean())

    def doubts(self) -> list[str]:
        """Return warnings about labels that seem to be of other samples or columns, and masks by large numbers."""
        return doubts_about_input(self.logits, self.labels, self.mask, self.scalars.hits)

    def warn(self) -> None:
        """Warn of what `doubts` says."""
        warn_of_input(self.logits, self.labels, self.mask, self.scalars.hits)

    def rounding_step(self) -> float:
        """Distance of neighbouring numbers, in the dtype of the logits, at the largest of the groups' maxima."""
        maxima = torch.stack([self.scalars.seen_max, self.scalars.absent_max])
        largest = float(maxima.abs().masked_fill(~maxima.isfinite(), 0).max())
        return torch.finfo(self.logits.dtype).eps * 2.0 ** math.floor(math.log2(largest)) if largest > 0 else 0.0


def scan_labelled(
    logits: Logits, labels: Labels, seen_mask: Mask, groups: Groups | None = None, groups_name: str = "groups"
) -> LabelledScan:
    """Check labelled logits, and the groups of the samples if any, and reduce them to scalars."""
    scan = scan_batch(logits, labels, seen_mask)
    warn_if_reindexed(scan.labels, scan.mask)
    if groups is None:
        return scan
    return scan._replace(groups=check_groups(groups, len(scan.labels), groups_name))


def scan_batch(logits: Logits, labels: Labels, seen_mask: Mask) -> LabelledScan:
    """Scan what may be one batch of many: too few labels to tell whether they are re-indexed."""
    x, mask = checked(logits, seen_mask)
    y = check_labels(labels, x.shape[0], x.shape[1], x.device)
    scalars = label_scalars(x, y, mask)
    seen_max, absent_max = scalars.seen_max, scalars.absent_max
    check_scores(x, torch.maximum(seen_max, absent_max))
    return LabelledScan(x, y, mask, scalars, margin_of(seen_max, absent_max))


def unlabelled_margins(logits: Logits, seen_mask: Mask, name: str = "logits") -> Tensor:
    """Check logits without labels and return their margins."""
    x, mask = checked(logits, seen_mask, name)
    seen_max, absent_max = group_maxima(x, mask)
    check_scores(x, torch.maximum(seen_max, absent_max), name)
    return margin_of(seen_max, absent_max)


def checked(logits: Logits, seen_mask: Mask, name: str = "logits") -> tuple[Tensor, Tensor]:
    x = as_logits(logits, name).detach()
    return x, check_mask_values(check_mask(seen_mask, x.shape[1], x.device))
