"""A model whose head was replaced, and the pre-trained one beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .._calibrators.restored_head import RestoredHead, fit_both_heads
from .._core.arrays import ArrayLike
from .._core.seen_mask import ClassNames
from .collect import run_over
from .feed import Feed, SplitBatch, device_of
from .output import Output, check_output, logits_of
from .restore import BothModels, HeadNames, RowsOfBoth, check_pair


class SideBySide(nn.Module):
    """A fine-tuned model and the pre-trained one, and a linear head of all classes on the logits of both.

    `run_side_by_side` makes one. It takes what both models take, and returns logits `(B, C')`: the C old classes in
    their order, then those that the pre-trained model does not have.

    Parameters
    ----------
    model, pretrained : nn.Module
        With logits `(B, K)` and `(B, C)`, on one device; they stay as they are.
    restored : RestoredHead
        Its weight is `(C', K + C)`.
    output : str or callable, optional
        As in `collect_logits`, for both models.

    Attributes
    ----------
    model, pretrained : nn.Module
    head : nn.Linear
        Of the new logits and behind them the old ones, in float32.
    restored : RestoredHead
        As given; not part of the `state_dict`.

    Raises
    ------
    TypeError
        If `restored` is none, or `output` is neither a text nor a function.
    """

    def __init__(
        self, model: nn.Module, pretrained: nn.Module, restored: RestoredHead, output: Output | None = None
    ) -> None:
        super().__init__()
        if not isinstance(restored, RestoredHead):
            raise TypeError(f"restored is a {type(restored).__name__}; run_side_by_side makes it")
        self.model: nn.Module = model
        self.pretrained: nn.Module = pretrained
        self.restored: RestoredHead = restored
        self._output = check_output(output)
        classes, inputs = restored.weight.shape
        self.head: nn.Linear = nn.Linear(inputs, classes, device=device_of(model))
        self.head.load_state_dict({"weight": restored.weight, "bias": restored.bias})

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        new, old = (logits_of(model(*args, **kwargs), self._output) for model in (self.model, self.pretrained))
        logits: Tensor = self.head(torch.cat([new, old], -1).to(self.head.weight))
        return logits


def run_side_by_side(
    model: nn.Module,
    pretrained: nn.Module,
    loader: Iterable[Any],
    *,
    new_to_old: ArrayLike | tuple[ClassNames, ClassNames] | None = None,
    is_held_out: bool = False,
    seen_share: float | None = None,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> SideBySide:
    r"""Keep a fine-tuned model and the pre-trained one, and give both together a head of all classes.

    As `restore_head`, with the old logits themselves in place of mapped ones: slower by a model, and hardly ever worse
    than the pre-trained one, whatever fine-tuning has done to the features. The head of `model` need not be linear.

    .. math::

        \tilde z_c = (1 - \beta) \, z^\text{new}_c + \beta \, k_S z^\text{old}_c \quad (c \in S), \qquad
        \tilde z_c = k_U z^\text{old}_c + \gamma \quad (c \in U)

    but for differences in level: see `finecal.weights.fit_restored_head` for these, for :math:`\beta` and k.

    Parameters
    ----------
    model, pretrained, loader, new_to_old, is_held_out, seen_share, batch, output, seed, verbose
        As in `restore_head`.

    Returns
    -------
    SideBySide
        In the mode of `model`. `restored.estimate` is gamma, which is in its head.

    Raises
    ------
    TypeError, ValueError
        As `restore_head`, but for what it needs a linear layer for.

    Warns
    -----
    FinecalWarning
        As `restore_head`.

    Examples
    --------
    >>> import torch, finecal
    >>> _ = torch.manual_seed(0)
    >>> pretrained, model = torch.nn.Linear(8, 10), torch.nn.Linear(8, 5)
    >>> x = 3 * torch.randn(600, 8)
    >>> x = x[pretrained(x).argmax(1) < 5]
    >>> _ = model.load_state_dict(
    ...     {name: rows[:5] for name, rows in pretrained.state_dict().items()}
    ... )
    >>> both = finecal.weights.run_side_by_side(
    ...     model,
    ...     pretrained,
    ...     [(x, model(x).argmax(1))],
    ...     new_to_old=range(5),
    ...     verbose=False,
    ... )
    >>> both(x).shape[1]
    10
    """
    check_pair(model, pretrained, loader, verbose)
    names = HeadNames.given(new_to_old, model, pretrained)
    feed = Feed(model, None, batch, output)
    both = BothModels(model, pretrained, feed.logits_of)
    rows = RowsOfBoth(both, None, with_labels=True)
    run_over(both, loader, rows, feed, verbose)
    samples = rows.samples()
    old_classes: Any = (
        new_to_old if names is None else names.new_to_old(samples.num_classes, samples.pretrained_logits.shape[1])
    )
    found = fit_both_heads(
        samples,
        new_to_old=old_classes,
        is_held_out=is_held_out,
        seen_share=seen_share,
        seed=seed,
    )
    if verbose:
        print(found, file=sys.stderr)
    return SideBySide(model, pretrained, found, output).train(model.training)
