"""Lightning's Trainer: gamma at the end of training or after every validation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sized
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from .._calibrators.additive_bias import AdditiveBias
from .._calibrators.file import save
from .._core.arrays import Mask, check_choice, check_flag
from .._core.warning import warn
from .._estimators.estimate import GammaEstimate
from .._models.collect import StateT as RowsT
from .._models.collect import check_labelled, run_over
from .._models.feed import Feed, SplitBatch, check_split
from .._models.fold import check_and_fold, record_folded, unfold_from_head
from .._models.fold_check import head_and_shift, rounded_sum, shift_of
from .._models.fold_trial import Run
from .._models.output import Output, check_output
from .._models.positions import SampleRows
from .._models.repeatability import doubts_about_samples, random_states_kept
from ..streaming._bins import MarginRows
from ._calibration import (
    Accuracies,
    Estimator,
    accuracies_at,
    are_biases_equal,
    check_calibratable,
    check_callback_mask,
    check_estimator,
    check_fold_argument,
    check_head_fold,
    check_max_samples,
    copy_biases,
    estimate_from,
    head_to_fold,
    log_values,
    warn_on_failure,
)
from ._same_samples import batches_again

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # the same library under its older name
    from pytorch_lightning import Callback


__all__ = ["CalibrationCallback"]

_AVERAGING = ("StochasticWeightAveraging", "WeightAveraging")
"""Callbacks that replace the weights at the end of training."""


class CalibrationCallback(Callback):
    """Estimate gamma at the end of training or after every validation, log it, and fold or save it.

    The callback also logs the accuracies on the validation data without and with gamma, to the trainer's loggers and
    `callback_metrics`. See :doc:`/how-to/lightning`.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes: ``finecal.seen_mask_from_labels(train_labels, num_classes)``.
    data : {"train", "val"}
        Source of the estimate: training samples, or the samples of seen classes in the validation data.
    calibration_loader : DataLoader, optional
        Replaces the trainer's loader for the estimate: the training samples without augmentation, for example. `data`
        states whether the module was trained on its samples.
    batch : callable, optional
        Returns ``(inputs, labels)`` of a batch, as in `collect_logits`.
    output : str or callable, optional
        Where the logits are in what the module returns, as in `collect_logits`.
    estimator : callable, optional
        ``estimator(logits, labels, seen_mask)`` returns a `GammaEstimate`. Default: `estimate_gamma`.
    max_samples : int or None, default 10000
        Most samples scored for the estimate, drawn with a fixed seed from those of an epoch; the first batches of a
        stream. None: all.
    every_validation : bool, default False
        Whether to estimate after every validation too, so that a `ModelCheckpoint` can monitor
        ``"val_acc_all_calibrated"``.
    fold : bool or nn.Linear, default False
        Whether to fold gamma into the head's bias (`fold_into_head`), at the end of training and in every checkpoint;
        or the head itself. False: gamma is only estimated and logged.
    save_to : path, optional
        File for the calibrator at the end of training, ``.safetensors``.

    Attributes
    ----------
    estimate : GammaEstimate or None
        The latest estimate; part of the trainer's checkpoints.
    accuracies : dict of str to (before, after)
        `SeenAbsentReport` without and with gamma by data set: ``"val"``, or ``"val_0"`` or ``"val_NAME"`` of several.
    calibrator : AdditiveBias
        With the latest gamma.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, `seen_mask` has no seen or no absent class, or both `fold` and `save_to` are
        given; when training begins, if the model is calibrated already or cannot be folded into, the trainer has not
        exactly one loader of `data`, or the samples have no labels; at its end, if there is no estimate.

    Warns
    -----
    FinecalWarning
        If the samples for the estimate are augmented at random, checkpoints hold weights only (gamma is not folded into
        these), a model is too inaccurate for an estimate during training, or testing and predicting use other weights
        than those with gamma.

    Notes
    -----
    Logged: ``gamma``, ``acc_seen_at_gamma``, and ``val_acc_seen``, ``val_acc_absent`` and ``val_acc_all`` (`Acc_{S/Y}`,
    `Acc_{U/Y}`, `Acc_{Y/Y}`; fractions), each also with the suffix ``_calibrated``; without those that are NaN.

    Cost: a pass over `max_samples` samples, for each checkpoint with `fold`, and one over the validation data. Random
    numbers and loaders of the training are unchanged. All processes get the same gamma. A fold is checked on one batch,
    before training (except for streams) and at its end. Before more training, folded gamma is subtracted, up to a
    rounding of the bias.

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
        calibration_loader: DataLoader[Any] | None = None,
        batch: SplitBatch | None = None,
        output: Output | None = None,
        estimator: Estimator | None = None,
        max_samples: int | None = 10_000,
        every_validation: bool = False,
        fold: bool | nn.Linear = False,
        save_to: str | PathLike[str] | None = None,
    ) -> None:
        self.seen_mask: Tensor = check_callback_mask(seen_mask)
        self.data: str = check_choice(data, ("train", "val"), "data")
        if calibration_loader is not None and not isinstance(calibration_loader, DataLoader):
            raise TypeError(f"calibration_loader is a {type(calibration_loader).__name__}; pass a torch DataLoader")
        self.calibration_loader = calibration_loader
        self.batch: SplitBatch | None = check_split(batch)
        self.output: Output | None = check_output(output)
        self.estimator: Estimator | None = check_estimator(estimator)
        self.max_samples: int | None = check_max_samples(max_samples)
        self.every_validation: bool = check_flag(every_validation, "every_validation")
        self.fold: bool | nn.Module = check_fold_argument(fold)
        self.save_to: str | PathLike[str] | None = save_to
        if self.fold and save_to is not None:
            raise ValueError("fold and save_to are both given: the calibrator would calibrate the folded model again")
        self.estimate: GammaEstimate | None = None
        self.accuracies: dict[str, Accuracies] = {}
        self._step: int | None = None
        self._is_folded = self._is_restored = False
        self._folded_bias: list[Tensor] | None = None

    @property
    def calibrator(self) -> AdditiveBias:
        if self.estimate is None:
            raise RuntimeError("gamma has not been estimated yet; train first")
        return AdditiveBias(self.seen_mask, self.estimate)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._note_restored_weights(pl_module)
        if self._is_folded:
            unfold_from_head(self._head_of(pl_module), self.calibrator)
        self._step, self._is_folded = None, False
        check_calibratable(pl_module, self.seen_mask, head_to_fold(pl_module, self.fold))
        if self.fold and any(getattr(each, "save_weights_only", False) for each in trainer.checkpoint_callbacks):
            warn(
                "CalibrationCallback: checkpoints with save_weights_only=True are written without gamma. Lightning "
                "asks no callback for these: leave it out, or fold after loading"
            )
        following = trainer.callbacks[trainer.callbacks.index(self) :] if self in trainer.callbacks else []
        averaging = [each for each in following if any(base.__name__ in _AVERAGING for base in type(each).__mro__)]
        if averaging:
            warn(
                f"CalibrationCallback: {type(averaging[0]).__name__} comes after it in the list of callbacks, so it "
                "replaces the weights that gamma was estimated for: list it first"
            )

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        head = head_to_fold(pl_module, self.fold)
        if isinstance(self._source(trainer).dataset, IterableDataset):  # a stream may give samples only once
            return
        batches = self._batches(trainer)
        for sentence in doubts_about_samples(batches, "pass calibration_loader=, with the transform of the test"):
            warn(f"CalibrationCallback: {sentence}")
        batch = self._first_of(batches)
        _, labels = Feed(pl_module, split=self.batch).split_batch(batch)
        check_labelled(batch, labels, self._source_name)
        if head is not None:
            check_head_fold(head, self._run(trainer, pl_module, batch))

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        if self.every_validation and trainer.state.fn == "fit" and not trainer.sanity_checking:
            with warn_on_failure(f"step {trainer.global_step}"):
                pl_module.log_dict(self._calibrate(trainer, pl_module))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        values = self._calibrate(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in values.items()})
        head = head_to_fold(pl_module, self.fold)
        if head is not None:
            run = self._run(trainer, pl_module, self._first_of(self._batches(trainer)))
            check_and_fold(head, self.calibrator, run)
            self._is_folded, self._folded_bias = True, copy_biases(head)
        elif self.save_to is not None and trainer.is_global_zero:
            save(self.calibrator, self.save_to)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Fold gamma into the weights of a checkpoint during training; the module itself stays without gamma."""
        if not self.fold or self._is_folded or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self._step != trainer.global_step:
            with warn_on_failure(f"step {trainer.global_step}, whose checkpoint is written without it"):
                self._estimate(trainer, pl_module)
        if self._step == trainer.global_step:
            head, shift = head_and_shift(self._head_of(pl_module), self.calibrator)
            names, weights = {bias: name for name, bias in pl_module.named_parameters()}, checkpoint["state_dict"]
            for bias in head.biases:
                name = names[bias]  # in averaged weights, not the module's own bias
                weights[name] = rounded_sum(weights[name], shift_of(bias, shift))
            checkpoint["callbacks"][self.state_key] = {**self.state_dict(), "is_folded": True}

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn != "fit":
            self._note_restored_weights(pl_module)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._note_restored_weights(pl_module)

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._note_restored_weights(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the estimate for the trainer's checkpoints."""
        estimate = None if self.estimate is None else dataclasses.asdict(self.estimate)
        return {"estimate": estimate, "is_folded": self._is_folded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the estimate of a checkpoint."""
        estimate = state_dict["estimate"]
        self.estimate = None if estimate is None else GammaEstimate(**estimate)
        self._is_folded, self._is_restored = state_dict["is_folded"], True

    def _head_of(self, module: Any) -> Any:
        """Return the module with the head; needed without `fold` too, as a checkpoint may contain gamma."""
        return self.fold if isinstance(self.fold, nn.Module) else module

    def _note_restored_weights(self, module: Any) -> None:
        """Update the record of the fold after a checkpoint may have replaced the weights."""
        head = self._head_of(module)
        if self._is_restored:
            record_folded(head, self.calibrator if self._is_folded else None)
        elif self._is_folded and not are_biases_equal(self._folded_bias, copy_biases(head)):
            record_folded(head, None)
            self._is_folded = False
            warn(
                "CalibrationCallback: the weights are not those that gamma was folded into, and are used without it. "
                "They are of a checkpoint that holds weights only, or of another run: estimate gamma for them"
            )
        self._is_restored, self._folded_bias = False, copy_biases(head) if self._is_folded else None

    def _source(self, trainer: Any) -> Any:
        """Return the loader for the estimate."""
        if self.calibration_loader is not None:
            return self.calibration_loader
        source = trainer.train_dataloader if self.data == "train" else _name_loaders(trainer.val_dataloaders).get("val")
        if not isinstance(source, DataLoader):
            raise ValueError(
                f"data is {self.data!r}, and the trainer's is a {type(source).__name__}, not one torch DataLoader; "
                "gamma is estimated from one data set: choose the other data, or calibrate_model after the training"
            )
        return source

    @property
    def _source_name(self) -> str:
        return f"the loader of {self.data}" if self.calibration_loader is None else "calibration_loader"

    def _batches(self, trainer: Any) -> Iterable[Any]:
        """Return batches of the samples for the estimate: those of one epoch."""
        source, limit = self._source(trainer), math.inf
        if self.calibration_loader is None:
            limit = trainer.num_training_batches if self.data == "train" else trainer.num_val_batches[0]
            if math.isinf(limit) and isinstance(source.dataset, Sized):  # its sampler may never end
                limit = math.ceil(len(source.dataset) / (source.batch_size or 1))
        return batches_again(source, self.max_samples, limit)

    def _first_of(self, batches: Iterable[Any]) -> Any:
        with random_states_kept():
            batch = next(iter(batches), None)
        if batch is None:
            raise ValueError(f"{self._source_name} gave no batch; gamma needs samples to be estimated from")
        return batch

    def _run(self, trainer: Any, module: Any, batch: Any) -> Run:
        """Return a function that computes the logits of a batch."""

        def run() -> Tensor:
            return self._score(trainer, module, [batch], SampleRows(), self._source_name).samples().logits_tensor

        return run

    def _calibrate(self, trainer: Any, module: Any) -> dict[str, float]:
        """Estimate gamma, and return the numbers to log."""
        estimate = self._estimate(trainer, module)
        values = log_values(estimate)
        loaders = _name_loaders(trainer.val_dataloaders)
        for (name, loader), limit in zip(loaders.items(), trainer.num_val_batches, strict=True):
            batches = batches_again(loader, max_batches=limit)
            rows = self._score(trainer, module, batches, MarginRows(self.seen_mask), f"the loader of {name}")
            self.accuracies[name] = accuracies_at(estimate, rows)
            values |= self.accuracies[name].as_dict(f"{name}_")
        return values

    def _estimate(self, trainer: Any, module: Any) -> GammaEstimate:
        samples = self._score(trainer, module, self._batches(trainer), SampleRows(), self._source_name).samples()
        self.estimate = estimate_from(samples, self.seen_mask, self.estimator, is_training=self.data == "train")
        self._step = trainer.global_step
        return self.estimate

    def _score(self, trainer: Any, module: Any, loader: Iterable[Any], rows: RowsT, name: str) -> RowsT:
        """Add the batches of the loader `name` to `rows`, with the trainer's precision and transfer of batches."""
        _share_buffers(trainer.strategy.model)
        precision = trainer.precision_plugin
        batches = (trainer.strategy.batch_to_device(precision.convert_input(batch)) for batch in loader)
        with random_states_kept(), precision.forward_context():
            feed = Feed(module, module.device, self.batch, self.output)
            run_over(module, batches, rows, feed, False, needs_labels=name)
        return rows


def _share_buffers(model: nn.Module) -> None:
    """Give all processes the batch norms of the first one, as DDP does before each batch, so that gamma is the same."""
    if isinstance(model, nn.parallel.DistributedDataParallel) and model.broadcast_buffers:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0, group=model.process_group)


def _name_loaders(loaders: Any) -> dict[str, Any]:
    """Return the validation loaders by the prefix of their logged accuracies."""
    if loaders is None:
        return {}
    if isinstance(loaders, (list, tuple)):
        loaders = {f"val_{i}": loader for i, loader in enumerate(loaders)} if len(loaders) > 1 else {"val": loaders[0]}
    elif isinstance(loaders, Mapping):
        loaders = {f"val_{name}": loader for name, loader in loaders.items()}
    return loaders if isinstance(loaders, dict) else {"val": loaders}
