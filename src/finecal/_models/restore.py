"""Give a model whose head was replaced by one of the fine-tuned classes alone a head of all classes again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from .._calibrators.head_map import DrawnRows
from .._calibrators.restored_head import RestoredHead, add_samples, fit_from_rows
from .._core.arrays import ArrayLike, check_flag, check_seed
from .._core.checks import check_head, head_warnings
from .._core.results import encoded_fields
from .._core.samples import Samples
from .._core.seen_mask import ClassNames, ordered_class_names
from .._core.warning import error_context
from .collect import check_loader, run_over
from .feed import Feed, SplitBatch, device_of, move_to
from .fold import check_uncalibrated
from .heads import HeadInputs, capture_head_inputs, single_head
from .output import Output, logits_of
from .positions import Rows, SampleRows, have_labels

ModelT = TypeVar("ModelT", bound=nn.Module)
RESTORED = "finecal_restored"
"""Attribute of the head, and of the configuration that Hugging Face saves, with what was done."""
_BLOCK = 1 << 12
"""Samples that are added up at once."""
_COUNTS = ("num_classes", "num_labels", "n_classes", "out_features", "nc")
"""Attributes of models that say how many classes they have."""


def restore_head(
    model: ModelT,
    pretrained: nn.Module,
    loader: Iterable[Any],
    *,
    new_to_old: ArrayLike | tuple[ClassNames, ClassNames] | None = None,
    is_held_out: bool = False,
    unlabelled_loader: Iterable[Any] | None = None,
    with_prototypes: bool = False,
    seen_share: float | None = None,
    batch: SplitBatch | None = None,
    output: Output | None = None,
    seed: int = 0,
    verbose: bool = True,
) -> ModelT:
    r"""Give a fine-tuned model, whose head has the fine-tuned classes alone, a head of all classes, in place.

    The rows of the other classes come from a ridge regression of the pre-trained model's logits on the features of the
    fine-tuned one, over samples that both score: see `finecal.weights.fit_restored_head` for the formula. Gamma is in
    the new bias, so that the argmax is right.

    Parameters
    ----------
    model : nn.Module
        The fine-tuned model; its final layer is an ``nn.Linear`` of K classes.
    pretrained : nn.Module
        The model before fine-tuning, with logits `(B, C)`. It takes the same inputs.
    loader : iterable of batches
        As in `collect_logits`. Samples of the fine-tuned classes with labels in the numbering of the new head; without
        labels they are taken for samples of all classes, in the proportions in which the model will be used.
    new_to_old : (K,) int, or pair of lists of names, optional
        The old class of each new one, -1 for one that the old head does not have; or the names of the new classes and
        those of the old ones. Default: the names in ``config.id2label`` of both models.
    is_held_out : bool, default False
        Whether the model was not trained on the samples of `loader`. Such samples are better.
    unlabelled_loader : iterable of batches, optional
        Samples of all classes, in the proportions in which the model will be used; labels are ignored.
    with_prototypes : bool, default False
        Whether to add prototypes of the samples of `unlabelled_loader`: see `fit_prototypes`.
    seen_share : float in (0, 1), optional
        Share of samples of fine-tuned classes where the model will be used.
    batch, output
        As in `collect_logits`; `output` for both models.
    seed : int, default 0
        Seed of the pairs of `mixed_pair_gap`.
    verbose : bool, default True
        Whether to print what was done to stderr, and to show bars there if tqdm is installed.

    Returns
    -------
    nn.Module
        `model`, with an ``nn.Linear`` of all classes: the C old ones in their order, then those that the old head does
        not have. Its counts of classes and, for Hugging Face, ``config.id2label`` are mended. The `RestoredHead` is the
        attribute `finecal_restored` of the layer, as a dict.

    Raises
    ------
    TypeError, ValueError
        As `collect_logits` and `fit_restored_head`; ValueError if the final linear layer is not found, a calibrator is
        folded into it, or names are missing or do not match.

    Warns
    -----
    FinecalWarning
        As `fit_restored_head`.

    Notes
    -----
    Samples are added up as they come: all are kept only if prototypes are made of them.

    Examples
    --------
    >>> import torch, finecal
    >>> _ = torch.manual_seed(0)
    >>> body = torch.nn.Linear(8, 16)
    >>> pretrained = torch.nn.Sequential(body, torch.nn.Linear(16, 10))
    >>> model = torch.nn.Sequential(body, torch.nn.Linear(16, 5))
    >>> x = 3 * torch.randn(600, 8)
    >>> x = x[pretrained(x).argmax(1) < 5]
    >>> _ = model[1].load_state_dict(
    ...     {name: rows[:5] for name, rows in pretrained[1].state_dict().items()}
    ... )
    >>> batches = [(x, model(x).argmax(1))]
    >>> restored = finecal.restore_head(
    ...     model, pretrained, batches, new_to_old=range(5), verbose=False
    ... )
    >>> restored
    Sequential(
      (0): Linear(in_features=8, out_features=16, bias=True)
      (1): Linear(in_features=16, out_features=10, bias=True)
    )
    """
    check_pair(model, pretrained, loader, verbose)
    check_flag(is_held_out, "is_held_out")
    if check_flag(with_prototypes, "with_prototypes") and unlabelled_loader is None:
        raise ValueError("prototypes are made of unlabelled samples; pass them as unlabelled_loader=")
    if unlabelled_loader is not None:
        check_loader(unlabelled_loader, "unlabelled_loader")
    linear = single_head(model)
    names = HeadNames.given(new_to_old, model, pretrained)
    feed = Feed(model, None, batch, output)
    both = BothModels(model, pretrained, feed.logits_of)
    drawn = DrawnRows(check_seed(seed))
    _score(both, loader, linear, feed, verbose, drawn, with_labels=True)
    stream = None
    if unlabelled_loader is not None:
        stream = DrawnRows(seed, sys.maxsize if with_prototypes else 0)
        _score(both, unlabelled_loader, linear, feed, verbose, stream, with_labels=False, at_once=with_prototypes)
    classes = drawn.columns[1].shape[1]
    old_classes: Any = new_to_old if names is None else names.new_to_old(linear.out_features, classes)
    found = fit_from_rows(
        drawn,
        stream,
        linear.weight,
        linear.bias,
        new_to_old=old_classes,
        old_weight=_old_weight(pretrained, (classes, linear.in_features)),
        is_held_out=is_held_out,
        with_prototypes=with_prototypes,
        seen_share=seen_share,
        seed=seed,
    )
    if verbose:
        print(found, file=sys.stderr)
    return _with_head(model, linear, found, names)


def check_pair(model: nn.Module, pretrained: object, loader: Iterable[Any], verbose: object) -> None:
    """A model without gamma, another one, and what they score."""
    check_uncalibrated(model)
    if not isinstance(pretrained, nn.Module):
        raise TypeError(f"pretrained is a {type(pretrained).__name__}; pass the model before fine-tuning")
    if pretrained is model:
        raise ValueError("pretrained is model itself; pass the model before fine-tuning, with the head that it had")
    check_flag(verbose, "verbose")
    check_loader(loader)


class BothModels(nn.Module):
    """Runs both models on the same inputs; gives the output of the fine-tuned one, keeps the logits of the other."""

    def __init__(
        self, model: nn.Module, pretrained: nn.Module, find_logits: Callable[[object], Tensor] = logits_of
    ) -> None:
        super().__init__()
        self.model, self.pretrained, self._find_logits = model, pretrained, find_logits
        self.old_logits = torch.empty(0)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call both."""
        output = self.model(*args, **kwargs)
        device = device_of(self.pretrained)
        self.old_logits = self._find_logits(self.pretrained(*move_to(args, device), **move_to(kwargs, device)))
        return output


class RowsOfBoth:
    """The new logits, labels and, if they are recorded, features of all samples, and their old logits."""

    def __init__(self, both: BothModels, recorded: HeadInputs | None, with_labels: bool) -> None:
        self._both, self._with_labels = both, with_labels
        self._rows, self._old = SampleRows(recorded), Rows("pretrained_logits")

    def update(self, logits: Tensor, labels: object) -> None:
        self._rows.update(logits, labels if self._with_labels else None)
        self._old.append(self._both.old_logits)

    def samples(self) -> Samples:
        own = self._rows.samples()
        return Samples(own.logits, own.labels, features=own.features, pretrained_logits=self._old.joined())


class _Blocks:
    """Passes the rows of both models on in large blocks, or all at once, so that the others are not kept."""

    def __init__(
        self, both: BothModels, recorded: HeadInputs, linear: nn.Linear, drawn: DrawnRows, with_labels: bool, most: int
    ) -> None:
        self._both, self._recorded, self._linear, self._drawn = both, recorded, linear, drawn
        self._with_labels, self._most = with_labels, most
        self._labelled: bool | None = None
        self._start()

    def _start(self) -> None:
        self._rows, self._count = RowsOfBoth(self._both, self._recorded, self._with_labels), 0

    def update(self, logits: Tensor, labels: object) -> None:
        self._rows.update(logits, labels)
        self._count += len(logits)
        if self._count >= self._most:
            self.flush()

    def flush(self) -> None:
        """Pass on what there is."""
        if not self._count:
            return
        samples = self._rows.samples()
        self._start()
        self._labelled = have_labels(samples.labels, self._labelled)
        assert samples.features_tensor is not None
        weight, bias = check_head(self._linear, samples.num_classes, samples.features_tensor.device)
        if head_warnings(samples.logits_tensor, samples.features_tensor, weight, bias):
            raise ValueError(
                "the final linear layer of model does not give its logits, which are scaled, negated or normalised "
                "behind it; such a head cannot be restored"
            )
        add_samples(self._drawn, samples, "samples" if self._with_labels else "unlabelled")


def _score(
    both: BothModels,
    loader: Iterable[Any],
    linear: nn.Linear,
    feed: Feed,
    progress: bool,
    drawn: DrawnRows,
    *,
    with_labels: bool,
    at_once: bool = False,
) -> None:
    """Run both models over a loader."""
    with capture_head_inputs(linear) as recorded:
        blocks = _Blocks(both, recorded, linear, drawn, with_labels, sys.maxsize if at_once else _BLOCK)
        run_over(both, loader, blocks, feed, progress, recorded)
        blocks.flush()


def _old_weight(pretrained: nn.Module, shape: tuple[int, int]) -> Tensor | None:
    """Return the weight of the old head, if it takes features of the same width."""
    try:
        weight = single_head(pretrained).weight
    except ValueError:
        return None
    return weight if tuple(weight.shape) == shape else None


class HeadNames(NamedTuple):
    """The names of the new and of the old classes, in the order of their rows."""

    new: tuple[str, ...]
    old: tuple[str, ...]

    @classmethod
    def given(cls, new_to_old: Any, model: nn.Module, pretrained: nn.Module) -> HeadNames | None:
        """Return the names that were passed, or those of the models' configurations; None for indices."""
        if new_to_old is None:
            return cls(_config_names(model, "model"), _config_names(pretrained, "pretrained"))
        is_pair = isinstance(new_to_old, (tuple, list)) and len(new_to_old) == 2
        if is_pair and not any(isinstance(part, (int, str)) for part in new_to_old):
            with error_context("new_to_old"):
                return cls(*map(ordered_class_names, new_to_old))
        return None

    def new_to_old(self, rows: int, classes: int) -> list[int]:
        """Return the index among the old names of each new one, -1 for none; of a head of `rows` and of `classes`."""
        if len(self.new) != rows:
            raise ValueError(f"there are {len(self.new)} names of new classes, but the head of model has {rows} rows")
        if len(self.old) != classes:
            raise ValueError(f"there are {len(self.old)} names of old classes, but pretrained has {classes} logits")
        place = {name: index for index, name in enumerate(self.old)}
        if not place.keys() & set(self.new):
            raise ValueError(
                f"no new class has the name of an old one ({self.new[0]!r}, ... and {self.old[0]!r}, ...); pass "
                "new_to_old, the old class of each new one"
            )
        repeated = next((name for name in self.new if self.old.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(
                f"{self.old.count(repeated)} old classes have the name {repeated!r}; pass new_to_old as indices"
            )
        return [place.get(name, -1) for name in self.new]

    def of(self, found: RestoredHead) -> list[str]:
        """Return the names of all classes of the restored head."""
        own = [name for name, place in zip(self.new, found.classes.tolist(), strict=True) if place >= len(self.old)]
        return [*self.old, *own]


def _config_names(model: nn.Module, name: str) -> tuple[str, ...]:
    """Return the names in the configuration of a model, or its own in ultralytics; may be placeholders, or none."""
    names = getattr(getattr(model, "config", None), "id2label", None) or vars(model).get("names")
    if not isinstance(names, dict) or not names or all(label == f"LABEL_{index}" for index, label in names.items()):
        raise ValueError(
            f"new_to_old is missing, and {name} has no class names in config.id2label; pass the old class of each new "
            "one, or (new_names, old_names)"
        )
    return ordered_class_names(names)


def _with_head(model: ModelT, linear: nn.Linear, found: RestoredHead, names: HeadNames | None) -> ModelT:
    """Put the restored head in the place of the new one, and mend what says how many classes there are."""
    layer: Any = nn.Linear(linear.in_features, len(found.bias), device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(found.weight)
        layer.bias.copy_(found.bias)
    layer.requires_grad_(linear.weight.requires_grad).train(linear.training)
    layer.finecal_restored = {
        "estimate": encoded_fields(found.estimate),
        "explained": float(found.explained.mean()),
        "penalty": found.penalty,
        "scale": found.scale,
        "old_share": found.old_share,
        "agreement": found.agreement,
    }
    if model is linear:
        return layer  # type: ignore[no-any-return]
    holders = [module for module in model.modules() if any(part is linear for part in module.modules())]
    for module in holders:
        for name, child in list(module.named_children()):
            if child is linear:
                setattr(module, name, layer)
        for name in _COUNTS:
            if vars(module).get(name) == linear.out_features:
                setattr(module, name, layer.out_features)
        _mend_config(module, linear.out_features, found, names, layer.finecal_restored)
    return model


def _mend_config(
    module: nn.Module, before: int, found: RestoredHead, names: HeadNames | None, record: dict[str, Any]
) -> None:
    """Give the configurations of Hugging Face, timm and ultralytics the classes of the head, and what made it."""
    config: Any = getattr(module, "config", None)
    labels = [f"LABEL_{index}" for index in range(len(found.bias))] if names is None else names.of(found)
    if hasattr(config, "id2label"):
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        setattr(config, RESTORED, record)
    own: Any = vars(module)
    if isinstance(own.get("names"), dict) and len(own["names"]) == before:
        own["names"] = dict(enumerate(labels))
    for name, key in (("pretrained_cfg", "num_classes"), ("default_cfg", "num_classes"), ("yaml", "nc")):
        if isinstance(own.get(name), dict) and own[name].get(key) == before:
            own[name][key] = len(found.bias)
