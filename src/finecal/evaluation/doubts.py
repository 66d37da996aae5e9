"""What looks wrong about labelled logits that have passed the checks."""

from torch import Tensor

from ..inputs.warning import warn
from ..logits.torch_kernels import LabelHits
from .guessing import doubt_about_labels
from .masked import doubts_about_masks


def doubts_about_input(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> list[str]:
    """Return warnings about labels that seem to be of other samples or columns, and masks by large numbers."""
    doubt = doubt_about_labels(logits, labels, mask, hits)
    return [*([doubt] if doubt else []), *doubts_about_masks(logits)]


def warn_of_input(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> None:
    """Warn of what `doubts_about_input` says."""
    for sentence in doubts_about_input(logits, labels, mask, hits):
        warn(sentence)
