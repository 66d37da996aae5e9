"""What to say of a gamma that was decided by expected accuracy: where it is uncertain, and may do harm."""

import math

from .absent_health import AbsentRetention
from .expected_accuracy import Decision
from .gap_evidence import GapEvidence
from .stream_evidence import UnlabelledEvidence

_FAR_APART = 3.0
_HUGE = 12.0
"""Units of log-odds."""
_DAMAGED = 0.5
"""AbsentRetention below which it is told."""
_UNDECIDED = 0.5
"""Standard deviations or units of log-odds, from which on it is told that absent classes are preferred."""
_STRANGE = 0.5
"""Of the unlabelled margins."""


def gap_warnings(found: GapEvidence, decision: Decision) -> list[str]:
    """Say where there is no gap, or an unclear, a negative or a huge one."""
    if found.gap_weight == 0:
        lead = found.gap / found.unit if math.isnan(found.pair_z_score) else found.pair_z_score
        if lead < -_UNDECIDED:
            return [
                f"no gap is seen ({_lead_in_words(found)}): where neither group is right the model prefers absent "
                "classes, but not clearly enough for a negative gamma; so gamma is 0: check it with search_gamma on a "
                "few labelled samples of all classes"
            ]
        return [
            f"no gap is seen ({_lead_in_words(found)}): the model prefers absent classes about as much as seen ones "
            "where neither is right, as a distilled or already balanced model does, or one with gamma in its head; so "
            "gamma is 0"
        ]
    if found.gap < 0:
        return [
            f"the seen classes lose: absent ones are ahead by {-found.gap:.4g}, {-found.gap / found.unit:.2g} units of "
            "log-odds, as after a loss that leaves out their logits (masked losses), or with gamma in the head; gamma "
            f"is {'negative' if decision.gamma < 0 else '0'}: check it with search_gamma on a few labelled samples of "
            "all classes"
        ]
    sentences = []
    if found.gap_weight < 1:
        sentences.append(
            f"the gap is unclear ({_lead_in_words(found)}), and may be none: gamma is {decision.gamma:.4g}, "
            f"{100 * found.gap_weight:.0f} % of what it would be"
        )
    if decision.gamma == 0:
        sentences.append(
            f"gamma is 0, although the gap is {found.gap:.4g}: a positive gamma would cost the seen classes "
            "more than the absent ones are expected to gain"
        )
    elif found.gap > _HUGE * max(found.unit, 1.0):
        sentences.append(
            f"the gap is {found.gap:.4g}, more than {_HUGE:g} units of log-odds: high learning rates and long training "
            "leave such gaps, and often damage the absent classes, so that gamma brings little back and may do harm; "
            "check it with search_gamma on a few labelled samples of all classes"
        )
    return sentences


def _lead_in_words(found: GapEvidence) -> str:
    if math.isnan(found.pair_z_score):
        return f"{found.gap:.4g}, {found.gap / found.unit:.2g} units of log-odds"
    return f"mixed pairs prefer seen classes by {found.pair_z_score:.2g} standard deviations of their margins"


def retention_warnings(retention: AbsentRetention, gamma: float, healthy: float) -> list[str]:
    """Say that fine-tuning seems to have damaged absent classes, and how far gamma falls back for that."""
    if retention.value >= _DAMAGED:
        return []
    instead = f" instead of {healthy:.4g}" if abs(healthy - gamma) > 0.005 * abs(healthy) else ""
    return [
        f"fine-tuning seems to have damaged the absent classes: {retention.evidence}; they count "
        f"{100 * retention.value:.0f} %, so gamma is {gamma:.4g}{instead}, and may still do harm: check it with "
        "search_gamma on a few labelled samples of all classes, and leave out columns that belong to no class"
    ]


def evidence_warnings(stream: UnlabelledEvidence) -> list[str]:
    """Return a warning if most unlabelled samples are unlike all that was expected."""
    if stream.outlier_share <= _STRANGE:
        return []
    return [
        f"{100 * stream.outlier_share:.0f} % of the unlabelled margins are like neither those of the labelled seen "
        "samples nor their mirror image at the gap: check that all logits are of the same model, and that gamma is in "
        "none"
    ]


def share_warnings(labelled: float, alone: float, unit: float) -> list[str]:
    """Return a warning if labelled samples say something else than the share of unlabelled ones."""
    # Scores of margin classifiers have no unit, so that the difference has to be large beside gamma, too.
    if abs(labelled - alone) <= max(_FAR_APART * unit, max(abs(labelled), abs(alone)) / 2):
        return []
    return [
        f"labelled samples ({labelled:.4g}) and the share of unlabelled ones ({alone:.4g}) disagree about gamma: "
        "check the share, and that all logits are of the same model"
    ]
