"""Lightning's Trainer: gamma at the end of training or after every validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from itertools import islice
from os import PathLike
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # the same library under its older name
    from pytorch_lightning import Callback

from ..calibrators.additive_bias import AdditiveBias
from ..calibrators.file import save
from ..gamma.estimate import GammaEstimate
from ..inputs.arrays import Mask
from ..inputs.numbers import check_choice
from ..models.collection import collect_logits
from ..models.fold_proof import Run
from ..models.folding import fold_proven, unfold_from_head
from ..streaming.margins import MarginRows
from ._calibration import (
    Accuracies,
    Estimator,
    accuracies_at,
    check_calibratable,
    check_callback_mask,
    check_max_samples,
    choose_samples,
    continuing,
    estimate_from,
    head_to_fold,
    prove_head,
    values_of,
)

__all__ = ["CalibrationCallback"]


class CalibrationCallback(Callback):
    """Estimate gamma while Lightning's `Trainer` trains, log what it buys, and put it into the model.

    At the end of training, and after every validation if asked for, the callback scores training samples, estimates
    gamma, and logs it together with the accuracies on the validation data without and with gamma: to the trainer's
    loggers and `callback_metrics`.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes: ``finecal.seen_mask_from_labels(train_labels, num_classes)``.
    data : {"train", "val"}
        What gamma is estimated from: training samples, or the samples of seen classes in the validation data.
    estimator : callable, optional
        ``estimator(logits, labels, seen_mask)`` returns a `GammaEstimate`. Default: `estimate_gamma`.
    max_samples : int or None, default 10000
        At most so many samples, chosen at random and the same ones each time, are scored for the estimate; of a stream
        of unknown length, the first batches. None: all. Their logits, `(max_samples, C)`, are held in memory.
    every_validation : bool, default False
        Whether to estimate after every validation too, so that a `ModelCheckpoint` can monitor
        ``"val_acc_all_calibrated"`` and every checkpoint holds its gamma.
    fold : bool or nn.Linear, default False
        Whether to fold gamma into the head's bias at the end of training (see `fold_into_head`); or the head itself.
        Checkpoints written before, which are all but those of ``trainer.save_checkpoint``, are without gamma.
    save_to : path, optional
        Where to write the calibrator at the end of training: a file that ends with ``.safetensors``.

    Attributes
    ----------
    estimate : GammaEstimate or None
        The latest estimate, None before the first. It is part of the trainer's checkpoints.
    accuracies : dict of str to (before, after)
        By data set, ``"val"`` (several: ``"val_0"``, or their names): a `SeenAbsentReport` each without and with gamma.
    calibrator : AdditiveBias
        With the latest gamma: ``finecal.CalibratedModel(module, callback.calibrator)``.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class; if both `fold` and `save_to` are given: the
        saved calibrator would calibrate the folded model a second time; when training begins, if the model is
        calibrated already, or gamma cannot be folded into it; in training, if the trainer has not one data loader of
        the kind asked for.

    Notes
    -----
    The module is called with the inputs of a batch, and has to return logits, as `collect_logits` tells; batches are
    ``(inputs, labels)`` or mappings with "labels". Logged are ``gamma``, ``expected_acc_seen`` and, for the validation
    data, ``val_acc_seen``, ``val_acc_absent`` and ``val_acc_all`` (`Acc_{S/Y}`, `Acc_{U/Y}` and `Acc_{Y/Y}`), each also
    with ``_calibrated`` at its end. What no sample defines, `Acc_{U/Y}` on data of seen classes only, is left out.

    The cost is a pass over `max_samples` training samples and one over the validation data. Training goes on as it
    would have without the callback: torch's random numbers and the training's own loader are left alone. Of several
    processes each scores the same samples and gets the same gamma. A model that is not good enough yet for an estimate
    gives a `FinecalWarning` after a validation, and an error at the end of training. That a fold changes the logits by
    gamma is proven on one batch, before the training (unless its data are a stream) and at its end. If training starts
    again, a gamma that the callback folded in is taken out first.

    The class is one of ``lightning.pytorch``, or of ``pytorch_lightning`` where only that is installed; trainers of
    both call it.

    Examples
    --------
    >>> callback = CalibrationCallback(seen_mask, fold=True)  # doctest: +SKIP
    >>> trainer = lightning.Trainer(callbacks=[callback])  # doctest: +SKIP
    >>> trainer.fit(module, train_loader, val_loader)  # doctest: +SKIP
    """

    def __init__(
        self,
        seen_mask: Mask,
        *,
        data: str = "train",
        estimator: Estimator | None = None,
        max_samples: int | None = 10_000,
        every_validation: bool = False,
        fold: bool | nn.Linear = False,
        save_to: str | PathLike[str] | None = None,
    ) -> None:
        self.seen_mask = check_callback_mask(seen_mask)
        self.data = check_choice(data, ("train", "val"), "data")
        self.estimator = estimator
        self.max_samples = check_max_samples(max_samples)
        self.every_validation = every_validation
        if fold and save_to is not None:
            raise ValueError("fold and save_to are both given: the calibrator would calibrate the folded model again")
        self.fold, self.save_to = fold, save_to
        self.estimate: GammaEstimate | None = None
        self.accuracies: dict[str, Accuracies] = {}
        self._is_folded = False

    @property
    def calibrator(self) -> AdditiveBias:
        if self.estimate is None:
            raise RuntimeError("gamma has not been estimated yet; train first")
        return AdditiveBias(self.seen_mask, self.estimate)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        head = head_to_fold(pl_module, self.fold)
        if self._is_folded and head is not None:
            unfold_from_head(head, self.calibrator)
        self._is_folded = False
        check_calibratable(pl_module, self.seen_mask, head)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        head = head_to_fold(pl_module, self.fold)
        source = self._source(trainer)
        if head is not None and not isinstance(source.dataset, IterableDataset):  # a stream may give samples only once
            prove_head(head, self._run(trainer, pl_module, source))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.every_validation and trainer.state.fn == "fit" and not trainer.sanity_checking:
            with continuing(f"step {trainer.global_step}"):
                pl_module.log_dict(self._calibrate(trainer, pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        values = self._calibrate(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        head = head_to_fold(pl_module, self.fold)
        if head is not None:
            fold_proven(head, self.calibrator, self._run(trainer, pl_module, self._source(trainer)))
            self._is_folded = True
        elif self.save_to is not None and trainer.is_global_zero:
            save(self.calibrator, self.save_to)

    def state_dict(self) -> dict[str, Any]:
        """Return the estimate, for the trainer's checkpoints."""
        estimate = None if self.estimate is None else dataclasses.asdict(self.estimate)
        return {"estimate": estimate, "is_folded": self._is_folded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the estimate of a checkpoint."""
        estimate = state_dict["estimate"]
        self.estimate = None if estimate is None else GammaEstimate(**estimate)
        self._is_folded = state_dict["is_folded"]

    def _source(self, trainer: Any) -> Any:
        """Return the loader of the data that gamma is estimated from."""
        source = trainer.train_dataloader if self.data == "train" else _by_name(trainer.val_dataloaders).get("val")
        if not isinstance(source, DataLoader):
            raise ValueError(
                f"data is {self.data!r}, and the trainer's is a {type(source).__name__}, not one torch DataLoader; "
                "gamma is estimated from one data set: choose the other data, or calibrate_model after the training"
            )
        return source

    def _run(self, trainer: Any, module: Any, source: Any) -> Run:
        """Return what gives the logits of one batch, the same each time."""
        with torch.random.fork_rng(devices=[]):
            batch = next(iter(_some_batches(source, self.max_samples)))
        return lambda: _score(trainer, module, [batch])[0]

    def _calibrate(self, trainer: Any, module: Any) -> dict[str, float]:
        """Estimate gamma, and return what is to be logged."""
        source = self._source(trainer)
        batches = [_score(trainer, module, _some_batches(source, self.max_samples))]
        self.estimate = estimate_from(batches, self.seen_mask, self.estimator, is_training=self.data == "train")
        values = values_of(self.estimate)
        for name, loader in _by_name(trainer.val_dataloaders).items():
            rows = _score(trainer, module, _some_batches(loader, None), into=MarginRows(self.seen_mask))
            self.accuracies[name] = accuracies_at(self.estimate, rows)
            values |= self.accuracies[name].as_dict(f"{name}_")
        return values


def _score(trainer: Any, module: Any, loader: Iterable[Any], **into: Any) -> Any:
    """Collect the logits, or feed them to a state, in the trainer's precision and with its transfers of batches."""
    batches = (trainer.strategy.batch_to_device(batch) for batch in loader)
    with torch.random.fork_rng(devices=[]), trainer.precision_plugin.forward_context():
        return collect_logits(module, batches, device=module.device, progress=False, **into)


def _by_name(loaders: Any) -> dict[str, Any]:
    """Return the validation loaders by the names under which their accuracies are logged."""
    if loaders is None:
        return {}
    if isinstance(loaders, (list, tuple)):
        loaders = {f"val_{i}": loader for i, loader in enumerate(loaders)} if len(loaders) > 1 else {"val": loaders[0]}
    elif isinstance(loaders, Mapping):
        loaders = {f"val_{name}": loader for name, loader in loaders.items()}
    return loaders if isinstance(loaders, dict) else {"val": loaders}


def _some_batches(loader: Any, max_samples: int | None) -> Iterable[Any]:
    """Return batches of the loader's data, made by another loader: the training's own may be in use, and shuffles."""
    batches: Iterable[Any] = loader
    if not isinstance(loader, DataLoader):
        return batches
    dataset, size = loader.dataset, loader.batch_size or getattr(loader.batch_sampler, "batch_size", None)
    chosen = choose_samples(dataset, max_samples)
    batches = DataLoader(
        dataset if chosen is None else Subset(dataset, chosen),
        batch_size=size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        worker_init_fn=loader.worker_init_fn,
        generator=torch.Generator(),
    )
    if max_samples is None or not isinstance(dataset, IterableDataset):
        return batches
    return islice(batches, math.ceil(max_samples / (size or 1)))
