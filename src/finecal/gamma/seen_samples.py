"""Labelled seen samples with cached statistics."""

from __future__ import annotations

from functools import cached_property

from ..evaluation.samples import Samples
from ..inputs.arrays import Mask
from ..inputs.groups import check_several
from .absent_health import AbsentRetention, retention_from_rivals
from .bootstrap import Bootstrap
from .design_effect import design_effect
from .estimate import scan_seen
from .few_recognised import SmoothedAccuracy
from .gap_evidence import GapEvidence, evidence_of_held_out, evidence_of_training


class SeenSamples:
    """Labelled samples, all of seen classes, and what estimates of gamma find in them, each found once.

    Those called "held_out" are new to the model. An error if all are of one group, and groups are to be drawn.
    """

    def __init__(self, samples: Samples, seen_mask: Mask, caller: str, bootstrap: Bootstrap) -> None:
        self.samples = samples
        self.scan = scan_seen(samples, seen_mask, caller, min_seen=1)
        if bootstrap.n > 0 and self.scan.groups is not None:
            check_several(self.scan.groups)
        self._bootstrap, self._are_new = bootstrap, samples.name == "held_out"

    @cached_property
    def evidence(self) -> GapEvidence:
        """How far the seen logits have grown; an error if the samples do not tell."""
        find = evidence_of_held_out if self._are_new else evidence_of_training
        return find(self.scan, self._bootstrap)

    @cached_property
    def effect(self) -> float:
        """How many of them count for one independent sample, by their groups."""
        return design_effect(self.scan.margin, self.scan.groups)

    @cached_property
    def accuracy(self) -> SmoothedAccuracy:
        """What gamma costs."""
        return SmoothedAccuracy(self.scan)

    @cached_property
    def retention(self) -> AbsentRetention:
        """How good the absent classes are, by their winners."""
        return retention_from_rivals(self.scan)
