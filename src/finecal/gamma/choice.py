"""The answer to "which estimator do I need?": README, the documentation and the command line show this one table."""

from typing import NamedTuple


class Choice(NamedTuple):
    """One answer: what there is, what to call, and what that recovers."""

    question: str
    """Asked in this order: the first one that is answered as below decides; the last choice is for all others."""
    answer: str
    have: str
    call: str
    options: str
    """Of ``finecal estimate``."""
    recovered: int
    """In % of what the best gamma gains: the median of the models that count in ``tests/benchmarks/estimators.py``."""


MODELS = 61
CHOICES = (
    Choice(
        "Do you have labels of all classes?",
        "yes",
        "labelled samples of all classes",
        "search_gamma(logits, labels, seen_mask)",
        "--labelled FILE --method search_gamma",
        96,
    ),
    Choice(
        "Do you have held-out samples of the seen classes?",
        "no",
        "only the training samples",
        "estimate_gamma(seen_mask, train=...)",
        "--train FILE",
        95,
    ),
    Choice(
        "Do you have unlabelled samples of what the model meets?",
        "no",
        "held-out samples of the seen classes",
        "estimate_gamma(seen_mask, held_out=...)",
        "--held-out FILE",
        95,
    ),
    Choice(
        "",
        "yes",
        "held-out and unlabelled samples",
        "estimate_gamma(seen_mask, held_out=..., unlabelled=...)",
        "--held-out FILE --unlabelled FILE",
        95,
    ),
)


def choices_for_the_command_line() -> str:
    """Return a line for each choice, with the options of ``finecal estimate``."""
    width = max(len(choice.have) for choice in CHOICES)
    lines = [f"  {each.have:<{width}}  {each.recovered} %  {each.options}" for each in CHOICES]
    return "\n".join(lines)
