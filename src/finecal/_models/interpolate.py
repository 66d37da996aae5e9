"""Weights between before and after fine-tuning, and heads with normalised rows."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .._core.arrays import check_finite, check_number, dtype_name, shape_of
from .._core.checks import check_linear, named_classes
from .._core.warning import error_context, warn
from .collect import check_loader
from .feed import (
    Feed,
    SplitBatch,
    call_model,
    check_adapters,
    check_split,
    has_adapters,
    in_eval_mode,
    own_base,
    weights_before,
)
from .fold import check_uncalibrated
from .heads import find_head

_KEEP_A_COPY = (
    "fine-tuning changes a model in place: keep a copy.deepcopy(model) from before it, or load the pre-trained weights "
    "again"
)
_NAMED = 3
"""At most so many weights are named in an error: there may be hundreds."""
_COMPUTED = {
    WeightNorm: ("name", "_", "torch.nn.utils.remove_weight_norm"),
    SpectralNorm: ("name", "_", "torch.nn.utils.remove_spectral_norm"),
    BasePruningMethod: ("_tensor_name", "_mask", "torch.nn.utils.prune.remove"),
}
"""Hooks that compute a weight: their attribute with its name, what is behind that in the names of parts that it is not
linear in, and what removes them."""


class WeightPair(NamedTuple):
    """A floating-point parameter or buffer before and after fine-tuning."""

    start: Tensor
    end: Tensor


def changed_weights(pretrained: nn.Module | None, finetuned: nn.Module) -> dict[str, WeightPair]:
    """Return the weights that fine-tuning has changed, by name in the fine-tuned model; a tied one under all its names.

    TypeError or ValueError if the two are not of one architecture, or hold what cannot be mixed.
    """
    if pretrained is finetuned:
        raise ValueError(f"pretrained and finetuned are the same object; {_KEEP_A_COPY}")
    after = _checked_weights(finetuned, "finetuned")
    before = _before(pretrained, finetuned, after)
    _check_names(before, after, pretrained, finetuned)
    changed = {}
    for name, end in after.items():
        start = before[name]
        _check_alike(name, start, end, pretrained, finetuned)
        if _mixes(end) and _differ(start, end):
            changed[name] = WeightPair(start, end)
    if not changed:
        raise ValueError(f"pretrained and finetuned have the same weights; {_KEEP_A_COPY}")
    _check_plain(changed)
    _check_not_computed(finetuned, changed)
    return changed


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers; a tied one under all its names."""
    return dict(chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)))


def _before(pretrained: nn.Module | None, finetuned: nn.Module, after: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights from before fine-tuning, by name in the fine-tuned model."""
    base = None if pretrained is None else _checked_weights(pretrained, "pretrained")
    if base is not None and has_adapters(base):
        raise ValueError(
            "pretrained has LoRA adapters; pass None: a model with LoRA adapters holds its pre-trained weights"
        )
    check_adapters(finetuned, after)
    if has_adapters(after):
        return weights_before(after, own_base(finetuned, after) if base is None else base)
    if base is None:
        raise TypeError("pretrained is None, which is for models with LoRA adapters; pass the model before fine-tuning")
    return base


def _checked_weights(model: nn.Module, argument: str) -> dict[str, Tensor]:
    """Return the parameters and buffers, after refusing models that are calibrated, quantised or without values."""
    with error_context(argument):
        check_uncalibrated(model)
    for path, module in model.named_modules():
        if hasattr(module, "_packed_params"):
            raise ValueError(f"{path or 'the model'} of {argument} is quantised; pass the model before quantisation")
    tensors = named_tensors(model)
    for name, tensor in tensors.items():
        if is_lazy(tensor):
            raise ValueError(f"{name} of {argument} has no shape yet; run the model on a batch first")
        if tensor.is_meta:
            raise ValueError(f"{name} of {argument} is on the meta device and has no values; load the weights first")
    return tensors


def _check_names(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], pretrained: nn.Module | None, finetuned: nn.Module
) -> None:
    only = {"pretrained": [*before.keys() - after.keys()], "finetuned": [*after.keys() - before.keys()]}
    found = [f"{argument} alone has {_listed(names)}" for argument, names in only.items() if names]
    if found:
        kinds = "" if pretrained is None else f" ({type(pretrained).__name__}, {type(finetuned).__name__})"
        raise ValueError(
            f"pretrained and finetuned{kinds} are not of one architecture: {'; '.join(found)}. Pass both as they were "
            "before torch.compile, DataParallel, pruning or quantisation"
        )


def _check_alike(name: str, start: Tensor, end: Tensor, pretrained: nn.Module | None, finetuned: nn.Module) -> None:
    """Refuse tensors of different shapes or kinds, and integer ones that differ, but for counters (0-d)."""
    if start.shape != end.shape:
        classes = _num_classes(pretrained), _num_classes(finetuned)
        if None not in classes and classes[0] != classes[1]:
            raise ValueError(
                f"the head of pretrained has {classes[0]} classes, that of finetuned {classes[1]}; gamma needs logits "
                "of all classes: fine-tune the head of the pre-trained model, or give both the full one"
            )
        raise ValueError(
            f"{name} has shape {shape_of(start)} in pretrained and {shape_of(end)} in finetuned; pass two models of "
            "one architecture"
        )
    if _mixes(start) != _mixes(end) or start.is_complex() != end.is_complex():
        raise ValueError(
            f"{name} has dtype {dtype_name(start)} in pretrained and {dtype_name(end)} in finetuned; pass both before "
            "quantisation"
        )
    if not _mixes(end) and end.ndim and _differ(start, end):
        raise ValueError(
            f"{name} has dtype {dtype_name(end)}, which cannot be mixed, and differs between pretrained and finetuned; "
            "pass two models of one architecture, before quantisation"
        )


def _mixes(tensor: Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.itemsize > 1


def _differ(start: Tensor, end: Tensor) -> bool:
    if start is end:
        return False
    dtype = torch.promote_types(start.dtype, end.dtype)
    return not torch.equal(start.to(end.device, dtype), end.to(dtype))


def _num_classes(model: nn.Module | None) -> int | None:
    """Return the number of outputs of the head; None if it is not found."""
    try:
        return None if model is None else find_head(model).outputs
    except ValueError:
        return None


def _check_plain(changed: Mapping[str, WeightPair]) -> None:
    """Refuse parametrized weights, and tied weights that were not equal before fine-tuning."""
    starts: dict[int, tuple[str, Tensor]] = {}
    for name, (start, end) in changed.items():
        if "parametrizations" in name.split("."):
            raise ValueError(
                f"{name} is only a part of a parametrized weight; call torch.nn.utils.parametrize."
                "remove_parametrizations on that layer of both models first"
            )
        other, tied = starts.setdefault(id(end), (name, start))
        if _differ(tied, start):
            raise ValueError(f"{other} and {name} are tied in finetuned, but differ in pretrained; tie both or neither")


def _check_not_computed(model: nn.Module, changed: Mapping[str, WeightPair]) -> None:
    """Refuse weights that hooks compute from changed parts, of which they are no linear function."""
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            for kind, (name, part, remove) in _COMPUTED.items():
                weight = f"{path}.{getattr(hook, name, '')}".removeprefix(".")
                if isinstance(hook, kind) and any(each.startswith(f"{weight}{part}") for each in changed):
                    raise ValueError(
                        f"{weight} is computed by a hook ({type(hook).__name__}); call {remove} on that layer of both "
                        "models first"
                    )


def _listed(names: Collection[str]) -> str:
    first = sorted(names)[:_NAMED]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")


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

    Each alpha has a gamma of its own: estimate it for the new model.

    Parameters
    ----------
    pretrained : nn.Module or None
        The model before fine-tuning, with the same head over all C classes; None if `finetuned` has LoRA adapters
        (PEFT).
    finetuned : nn.Module
        The fine-tuned model. With LoRA adapters, the weights are those that merging would give,
        :math:`W + \alpha s B A`, and modules trained in full (`modules_to_save`) are interpolated.
    alpha : float in [0, 1]
        0 gives the weights of `pretrained`, 1 those of `finetuned`, bit for bit.
    batch_norm_loader : iterable of batches, optional
        Training samples, as in `collect_logits`; labels are ignored. Where fine-tuning has changed the running
        statistics of batch norms, they are replaced by the mean over these batches. Not used for alpha = 0 and 1.
    batch : callable, optional
        As in `collect_logits`.

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
        quantised, parametrized or without values, or has adapters other than LoRA; if changed weights are computed by
        hooks (`weight_norm`, `spectral_norm`, pruning with another mask); if `pretrained` is None and the adapters were
        made with an `init_lora_weights` that changes the weights below, as "pissa" and "olora".

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
    >>> between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.25)
    >>> x = torch.ones(1, 4)
    >>> torch.allclose(between(x), 0.75 * pretrained(x) + 0.25 * finetuned(x))
    True
    """
    share = check_alpha(alpha)
    if batch_norm_loader is not None:
        check_loader(batch_norm_loader, "batch_norm_loader")
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


class WeightPath(Generic[ModelT]):
    """A copy of a fine-tuned model whose weights can be set anywhere between the pre-trained ones and its own.

    `batch_norms` are those of `model` whose running statistics fine-tuning has changed.
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
        with torch.no_grad(), in_eval_mode(self.model), _restored_settings(self.batch_norms):
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
def _restored_settings(batch_norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Restore the momentum of batch norms, and the number of batches of their training."""
    before = [(layer.momentum, deepcopy(layer.num_batches_tracked)) for layer in batch_norms]
    try:
        yield
    finally:
        for layer, (momentum, number) in zip(batch_norms, before, strict=True):
            layer.momentum, layer.num_batches_tracked = momentum, number


def normalize_head(linear: nn.Linear, tau: float = 1.0) -> nn.Linear:
    r"""Return a copy of a linear classifier with its rows divided by a power of their norms.

    .. math:: \tilde w_c = w_c / \lVert w_c \rVert^\tau, \qquad \tilde b_c = b_c / \lVert w_c \rVert^\tau

    so that each class's logit is divided by :math:`\lVert w_c \rVert^\tau`.

    Parameters
    ----------
    linear : nn.Linear
        The classifier's head, `(C, D)` weight with or without a bias. It is left as it is.
    tau : float, default 1
        1 gives rows of unit norm, 0 the head as it is.

    Returns
    -------
    nn.Linear
        A deep copy of `linear`, of its dtype, device and ``requires_grad``, with other values.

    Raises
    ------
    TypeError
        If `linear` is not an nn.Linear or computes its weight (a parametrization), or `tau` is not a number.
    ValueError
        If `tau` is not finite, the weight or bias is not, or the results are not in the dtype of `linear`.

    Warns
    -----
    FinecalWarning
        If rows are all zero (pruned classes) and tau is positive: they stay as they are, with their bias.

    Notes
    -----
    :math:`\tau`-normalisation of Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
    ICLR 2020, whose code drops the bias. The logits shrink or grow, so estimate a temperature or a gamma anew. A cosine
    classifier also normalises the features: ``scale * F.normalize(features) @ head.weight.T``. Rounded once, from
    float64.

    Examples
    --------
    >>> import torch, finecal
    >>> linear = torch.nn.Linear(2, 2)
    >>> _ = linear.load_state_dict(
    ...     {
    ...         "weight": torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
    ...         "bias": torch.tensor([5.0, 1.0]),
    ...     }
    ... )
    >>> head = finecal.weights.normalize_head(linear)
    >>> head.weight.data, head.bias.data
    (tensor([[0.6000, 0.8000],
            [0.0000, 1.0000]]), tensor([1.0000, 0.5000]))
    """
    check_linear(linear)
    power = check_finite(tau, "tau")
    weight, bias = linear.weight.detach().double(), linear.bias
    norms = torch.linalg.vector_norm(weight, dim=1)
    empty = norms == 0
    if power > 0 and bool(empty.any()):
        warn(
            f"linear has rows of zeros, which have no norm to be divided by, in {int(empty.sum())} of "
            f"{empty.shape[0]} classes: {named_classes(empty)}; they stay as they are"
        )
    divisor = torch.where(empty, 1.0, norms).pow(power)
    head = copy.deepcopy(linear)
    with torch.no_grad():
        head.weight.copy_(weight / divisor.unsqueeze(1))
        if bias is not None:
            head.bias.copy_(bias.detach().double() / divisor)
    _check_head(head, ~empty, power)
    return head


def _check_head(head: nn.Linear, filled: Tensor, tau: float) -> None:
    """Refuse a head with NaN or inf, or with rows that were rounded to zero."""
    rows = head.weight if head.bias is None else torch.cat([head.weight, head.bias.unsqueeze(1)], 1)
    lost = ~rows.isfinite().all(1) | (filled & (head.weight == 0).all(1))
    if bool(lost.any()):
        raise ValueError(
            f"linear divided by its norms to the power tau = {tau:g} has no finite non-zero rows in "
            f"{str(head.weight.dtype).removeprefix('torch.')} for {int(lost.sum())} of {lost.shape[0]} classes: "
            f"{named_classes(lost)}; "
            "check its weight for NaN and inf, convert it with linear.float(), or take a smaller tau"
        )
