"""Interpolate between the weights before and after fine-tuning (WiSE-FT)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..inputs.numbers import check_number
from ..inputs.warning import warn
from .collection import check_loader
from .feed import Feed, SplitBatch, check_split
from .running import call_model, in_eval_mode
from .weight_ends import WeightPair, changed_weights, named_tensors

ModelT = TypeVar("ModelT", bound=nn.Module)
STALE_STATISTICS = (
    "the running statistics of batch norms are interpolated as well, and are not those of the activations under "
    "interpolated weights; pass batch_norm_loader=, batches of training samples to measure them on"
)


def interpolate_weights(
    pretrained: nn.Module | None,
    finetuned: ModelT,
    alpha: float,
    *,
    batch_norm_loader: Iterable[Any] | None = None,
    batch: SplitBatch | None = None,
) -> ModelT:
    r"""Make a model whose weights lie between those before and those after fine-tuning.

    .. math:: \theta = (1 - \alpha) \, \theta_\mathrm{pre} + \alpha \, \theta_\mathrm{fine}

    A smaller alpha takes back a part of the damage that fine-tuning has done to the absent classes, and a part of what
    it has taught about the seen ones. Each alpha has a gamma of its own: estimate it for the new model.
    `search_interpolation` chooses alpha.

    Parameters
    ----------
    pretrained : nn.Module or None
        The model before fine-tuning, with the same head over all C classes. None if `finetuned` has LoRA adapters
        (PEFT), since it then holds the weights from before.
    finetuned : nn.Module
        The fine-tuned model. With LoRA adapters, the weights are those that merging would give,
        :math:`W + \alpha s B A`, and modules trained in full (`modules_to_save`) are interpolated.
    alpha : float in [0, 1]
        0 gives the weights of `pretrained`, 1 those of `finetuned`, bit for bit.
    batch_norm_loader : iterable of batches, optional
        Training samples, as in `collect_logits`; labels are ignored. Where fine-tuning has changed the running
        statistics of batch norms, they are replaced by the mean over these batches: a mean of the two models' is not
        what the activations of the new one are. Not used for alpha = 0 and 1.
    batch : callable, optional
        From a batch of `batch_norm_loader` to ``(inputs, labels)``, as in `collect_logits`.

    Returns
    -------
    nn.Module
        A copy of `finetuned`: its class, modes, devices, dtypes and integer buffers, with other floating-point and
        complex parameters and buffers. They are mixed in float32 or wider, and rounded once. Tied weights stay tied.

    Raises
    ------
    TypeError
        If an argument is of an unfit type, or `pretrained` is None and `finetuned` has no LoRA adapters.
    ValueError
        If alpha lies outside [0, 1] (there is no extrapolation); if the models have different weights, shapes or
        numbers of classes, or are the same; if one is calibrated or folded (interpolate first, then calibrate),
        quantised, parametrized or without values, or has adapters other than LoRA.

    Warns
    -----
    FinecalWarning
        If fine-tuning has changed the running statistics of batch norms, and there is no `batch_norm_loader`.

    See Also
    --------
    search_interpolation : tabulates alpha on held-out samples of the seen classes, and chooses it.

    Notes
    -----
    WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022.

    Examples
    --------
    >>> import torch, finecal
    >>> pretrained, finetuned = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    >>> between = finecal.interpolate_weights(pretrained, finetuned, 0.25)
    >>> x = torch.ones(1, 4)
    >>> torch.allclose(between(x), 0.75 * pretrained(x) + 0.25 * finetuned(x))
    True
    """
    share = check_alpha(alpha)
    check_batch_norm_loader(batch_norm_loader)
    path = WeightPath(pretrained, finetuned, batch)
    if path.batch_norms and batch_norm_loader is None and 0 < share < 1:
        warn(f"interpolate_weights: {STALE_STATISTICS}")
    return path.move_to(share, batch_norm_loader)


def check_alpha(alpha: object, name: str = "alpha") -> float:
    """Return `alpha` as a float, after checking that it lies in [0, 1]."""
    share = check_number(alpha, name)
    if not 0 <= share <= 1:
        raise ValueError(
            f"{name} is {share}; it must lie in [0, 1]: 0 is the pre-trained model, 1 the fine-tuned one, and finecal "
            "does not extrapolate"
        )
    return share


def check_batch_norm_loader(loader: object) -> None:
    if loader is not None:
        check_loader(loader, "batch_norm_loader")


class WeightPath(Generic[ModelT]):
    """A copy of a fine-tuned model whose weights can be set anywhere between the pre-trained ones and its own.

    Attributes
    ----------
    model : nn.Module
        At first with the fine-tuned weights, alpha = 1.
    batch_norms : list of modules
        The batch norms of `model` whose running statistics fine-tuning has changed.
    """

    def __init__(self, pretrained: nn.Module | None, finetuned: ModelT, batch: SplitBatch | None = None) -> None:
        self._batch = check_split(batch)
        changed = changed_weights(pretrained, finetuned)
        self.model = deepcopy(finetuned)
        tensors = named_tensors(self.model)
        self._weights = {id(tensors[name]): (tensors[name], ends) for name, ends in changed.items()}  # tied ones once
        self.batch_norms = [
            module
            for module in self.model.modules()
            if isinstance(module, _BatchNorm) and not self._weights.keys().isdisjoint(map(id, module.buffers()))
        ]

    def move_to(self, alpha: float, batch_norm_loader: Iterable[Any] | None = None) -> ModelT:
        """Set the weights to those at `alpha`, and return the model."""
        with torch.no_grad():
            for weight, ends in self._weights.values():
                weight.copy_(_between(ends, alpha))
        if self.batch_norms and batch_norm_loader is not None and 0 < alpha < 1:
            self._measure_batch_statistics(batch_norm_loader)
        return self.model

    def _measure_batch_statistics(self, loader: Iterable[Any]) -> None:
        """Run the model over the batches in eval mode, except the batch norms, whose statistics become the mean."""
        feed, number = Feed(self.model, split=self._batch), 0
        with torch.no_grad(), in_eval_mode(self.model), _restored_momenta(self.batch_norms):
            for number, item in enumerate(loader, start=1):
                for layer in self.batch_norms:
                    layer.training, layer.momentum = True, 1 / number
                call_model(self.model, feed.split_batch(item)[0], item)
        if number == 0:
            raise ValueError("batch_norm_loader gave no batch: it is empty, or an iterator that was used up before")


def _between(ends: WeightPair, alpha: float) -> Tensor:
    if alpha in (0, 1):
        return ends.end if alpha else ends.start
    wide = torch.promote_types(torch.promote_types(ends.start.dtype, ends.end.dtype), torch.float32)
    start, end = ends.start.to(ends.end.device, wide), ends.end.to(wide)
    return torch.where(start == end, end, torch.lerp(start, end, alpha))  # -inf - -inf would be NaN


@contextmanager
def _restored_momenta(batch_norms: Sequence[_BatchNorm]) -> Iterator[None]:
    momenta = [layer.momentum for layer in batch_norms]
    try:
        yield
    finally:
        for layer, momentum in zip(batch_norms, momenta, strict=True):
            layer.momentum = momentum
