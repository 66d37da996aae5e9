"""Warnings about labelled logits that have passed the checks."""

from torch import Tensor

from ..inputs.warning import warn
from ..logits.torch_kernels import LabelHits
from .guessing import label_warning
from .masked import mask_warnings


def input_warnings(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> list[str]:
    """Return warnings about labels that seem to be of other samples or columns, and masks by large numbers."""
    doubt = label_warning(logits, labels, mask, hits)
    return [*([doubt] if doubt else []), *mask_warnings(logits)]


def warn_of_input(logits: Tensor, labels: Tensor, mask: Tensor, hits: LabelHits) -> None:
    """Issue the `input_warnings`."""
    for sentence in input_warnings(logits, labels, mask, hits):
        warn(sentence)
