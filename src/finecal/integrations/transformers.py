"""Hugging Face's Trainer: gamma at the end of training or at every evaluation, and evaluations that fit in memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import replace
from functools import partial, wraps
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback

from .._calibrators.additive_bias import AdditiveBias
from .._calibrators.file import save
from .._core.arrays import Mask, check_choice, check_flag
from .._core.checks import check_background, gamma_as_float
from .._core.files import write_text
from .._core.report import Margins
from .._core.samples import scan_batch
from .._core.warning import warn
from .._estimators.estimate import GammaEstimate
from .._models.fold import check_and_fold, record_folded, unfold_from_head
from .._models.fold_trial import Run
from .._models.next_tokens import check_shift, shifted
from .._models.output import logits_of
from .._models.positions import PositionRows, Positions, check_positions
from .._models.repeatability import doubts_about_samples, logits_and_doubts, random_states_kept
from ..streaming._bins import MarginRows
from ._calibration import (
    CALIBRATOR_FILE,
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
    choose_samples,
    copy_biases,
    describe_estimate,
    estimate_from,
    head_to_fold,
    log_values,
    selected_rows,
    warn_on_failure,
)

__all__ = ["CalibrationCallback", "MarginMetrics"]

_LOGGER = logging.getLogger("transformers.trainer.finecal")
"""Child of the Trainer's logger, so that both have the same handlers and level."""


class CalibrationCallback(TrainerCallback):
    """Estimate gamma at the end of training or at every evaluation, log it, and fold or save it.

    The callback also logs the accuracies on the evaluation data without and with gamma. See
    :doc:`/how-to/hugging-face`.

    Parameters
    ----------
    trainer : transformers.Trainer
        The trainer to which the callback is added.
    seen_mask : (C,) bool
        True for the seen classes: ``finecal.seen_mask_from_labels(train_labels, num_classes)``.
    data : {"train", "eval"}
        Source of the estimate: training samples, or the samples of seen classes in the evaluation data.
    calibration_dataset : dataset, optional
        Replaces the trainer's data set for the estimate: the training samples without augmentation, for example. `data`
        states whether the model was trained on its samples.
    estimator : callable, optional
        ``estimator(logits, labels, seen_mask)`` returns a `GammaEstimate`. Default: `estimate_gamma`.
    positions : Positions, optional
        For dense logits, such as `(B, L, C)` of a token classifier: which tokens (pixels) of each sample gamma is
        estimated from. The accuracies are those of all that count. See :doc:`/how-to/entities`.
    max_samples : int or None, default 10000
        Most samples scored for the estimate, drawn with a fixed seed; the first ones of a stream. None: all.
    every_evaluation : bool, default False
        Whether to estimate at every evaluation during training too, and add the accuracies to its metrics, so that
        ``metric_for_best_model="acc_all_calibrated"`` chooses the best calibrated model.
    fold : bool or nn.Linear, default False
        Whether to fold gamma into the head's bias (`fold_into_head`) at the end of training; or the head itself.
        Checkpoints are written without gamma.
    save : bool, default False
        Whether to write the calibrator, ``finecal.safetensors``, into every checkpoint (with the gamma of the
        checkpoint), into ``output_dir`` at the end of training, and wherever `trainer.save_model` saves afterwards.

    Attributes
    ----------
    estimate : GammaEstimate or None
        The latest estimate.
    accuracies : dict of str to (before, after)
        `SeenAbsentReport` without and with gamma by data set: ``"eval"`` or ``"eval_NAME"``.
    calibrator : AdditiveBias
        With the latest gamma.

    Raises
    ------
    TypeError, ValueError
        If an argument is of another type, `seen_mask` has no seen or no absent class, `trainer` lacks the data, or both
        `fold` and `save` are given; when training begins, if the model is calibrated already or cannot be folded into,
        or the samples have no labels; at its end, if there is no estimate.

    Warns
    -----
    FinecalWarning
        If the samples for the estimate are augmented at random, or during training a model is too inaccurate for an
        estimate or its logits vary between runs, or gamma takes more than a tenth of the background for absent classes.

    Notes
    -----
    Logged: ``gamma``, ``acc_seen_at_gamma``, and of each data set ``eval_acc_seen``, ``eval_acc_absent`` and
    ``eval_acc_all`` (`Acc_{S/Y}`, `Acc_{U/Y}`, `Acc_{Y/Y}`; fractions), each also with the suffix ``_calibrated``;
    without those that are NaN. At the end of training they are written to ``all_results.json``,
    ``finecal_results.json``, the Trainer's log and the model card.

    Cost: one evaluation of `max_samples` samples and one of the evaluation data (`MarginMetrics` saves the second).
    Random numbers and loaders of the training are unchanged. Processes get the same gamma. A fold is checked on one
    batch, before training (except for streams) and at its end. Before more training, folded gamma is subtracted.

    Examples
    --------
    >>> callback = CalibrationCallback(trainer, seen_mask, fold=True)  # doctest: +SKIP
    >>> trainer.add_callback(callback)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    """

    def __init__(
        self,
        trainer: Trainer,
        seen_mask: Mask,
        *,
        data: str = "train",
        calibration_dataset: Any = None,
        estimator: Estimator | None = None,
        positions: Positions | None = None,
        max_samples: int | None = 10_000,
        every_evaluation: bool = False,
        fold: bool | nn.Linear = False,
        save: bool = False,
    ) -> None:
        if not isinstance(trainer, Trainer):
            raise TypeError(
                f"trainer is a {type(trainer).__name__}; pass the transformers.Trainer that trains the model"
            )
        self.trainer = trainer
        self.seen_mask: Tensor = check_callback_mask(seen_mask)
        self.data: str = check_choice(data, ("train", "eval"), "data")
        self.calibration_dataset: Any = _check_dataset(calibration_dataset)
        self.estimator: Estimator | None = check_estimator(estimator)
        self.positions: Positions | None = check_positions(positions)
        background = None if positions is None else positions.background
        self._kept = ~check_background(background, self.seen_mask)
        self.max_samples: int | None = check_max_samples(max_samples)
        self.every_evaluation: bool = check_flag(every_evaluation, "every_evaluation")
        self.fold: bool | nn.Module = check_fold_argument(fold)
        self.save: bool = check_flag(save, "save")
        if self.fold and save:
            raise ValueError("fold and save are both True: the calibrator would calibrate the folded model again")
        self.estimate: GammaEstimate | None = None
        self.accuracies: dict[str, Accuracies] = {}
        self._step: int | None = None
        self._folded_bias: list[Tensor] | None = None
        self._estimation_data()
        if self.save:
            trainer.save_model = self._with_calibrator(trainer.save_model)

    @property
    def calibrator(self) -> AdditiveBias:
        if self.estimate is None:
            raise RuntimeError("gamma has not been estimated yet; train first")
        return AdditiveBias(self.seen_mask, self.estimate, dim=self._dim)

    @property
    def _dim(self) -> int:
        return -1 if self.positions is None else self.positions.dim

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._step = None
        head = head_to_fold(self.trainer.model, self.fold)
        if self._folded_bias is not None and head is not None:
            if are_biases_equal(self._folded_bias, copy_biases(head)):
                unfold_from_head(head, self.calibrator)
            else:  # those of a checkpoint, which are without gamma
                record_folded(head, None)
        self._folded_bias = None
        check_calibratable(self.trainer.model, self.seen_mask, head)
        if not hasattr(self._estimation_data(), "__len__"):  # a stream may give samples only once
            return
        loader = self.trainer.get_test_dataloader(self._estimation_data())
        parts = {name: getattr(loader, name) for name in ("collate_fn", "num_workers", "worker_init_fn")}
        whole = DataLoader(loader.dataset, args.eval_batch_size, **parts)  # not the share of one process
        for sentence in doubts_about_samples(whole, "pass calibration_dataset=, with the transform of the test"):
            warn(f"CalibrationCallback: {sentence}")
        inputs = self._first_inputs()
        self._check_labels([inputs.get(name) for name in self.trainer.label_names], self._data_name)
        if head is not None:
            check_head_fold(head, self._run(inputs), self._dim)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        is_training = self.trainer.is_in_train and self.every_evaluation
        is_folded = self._folded_bias is not None
        if is_folded or not (is_training or self._step == state.global_step):
            return
        if not self._can_estimate_at(state.global_step):
            return
        # Only the names of the metrics contain the name of the data set.
        prefix = next(name for name in metrics if name.endswith("_runtime")).removesuffix("_runtime")
        values = self._compare(prefix, kwargs["eval_dataloader"])
        metrics.update(values)
        self._log(values)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.save and self._can_estimate_at(state.global_step):
            self._write(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.load_best_model_at_end:
            # The model has other weights than at the last step.
            self._step = None
        self._estimate_at(state.global_step)
        datasets = self.trainer.eval_dataset
        if not isinstance(datasets, dict):
            datasets = {} if datasets is None else {"": datasets}
        values: dict[str, float] = {}
        for name, dataset in datasets.items():
            prefix = f"eval_{name}" if name else "eval"
            values |= self._compare(prefix, self.trainer.get_test_dataloader(dataset))
        self._log(values)
        self._report(values)
        head = head_to_fold(self.trainer.model, self.fold)
        if head is not None:
            check_and_fold(head, self.calibrator, self._run(self._first_inputs()))
            self._folded_bias = copy_biases(head)
        elif self.save:
            self._write(Path(args.output_dir))

    def _report(self, values: dict[str, float]) -> None:
        """Write the results to files, log and model card."""
        assert self.estimate is not None
        self.trainer.save_metrics("finecal", {**log_values(self.estimate), **values})
        if self.trainer.is_world_process_zero():
            for line in ("***** finecal *****", *describe_estimate(self.estimate, self.accuracies).splitlines()):
                _LOGGER.info(line)
        create = self.trainer.create_model_card
        self.trainer.create_model_card = _ModelCard(create.create if isinstance(create, _ModelCard) else create, self)

    def _estimation_data(self) -> Any:
        if self.calibration_dataset is not None:
            return self.calibration_dataset
        dataset = getattr(self.trainer, f"{self.data}_dataset")
        if dataset is None or isinstance(dataset, dict):
            what = "several, by name" if dataset else "none"
            raise ValueError(
                f"data is {self.data!r}, and the trainer's {self.data}_dataset is {what}; gamma is estimated from one "
                "data set: give the Trainer one, or choose the other data"
            )
        return dataset

    @property
    def _data_name(self) -> str:
        return f"{self.data}_dataset" if self.calibration_dataset is None else "calibration_dataset"

    def _estimate_at(self, step: int) -> None:
        """Estimate gamma, unless it was estimated at this step."""
        if self._step == step:
            return
        dataset, chosen = self._estimation_data(), choose_samples(self._estimation_data(), self.max_samples)
        if chosen is not None:
            dataset = Subset(dataset, chosen)
        elif not hasattr(dataset, "__len__"):
            dataset = list(islice(dataset, self.max_samples))
        batches = self._score(self.trainer.get_test_dataloader(dataset), self._data_name)
        rows = selected_rows(batches, self.positions, watches_background=not bool(self._kept.all()))
        mask = self.seen_mask[self._kept]
        self.estimate = estimate_from(rows.samples(), mask, self.estimator, is_training=self.data == "train")
        if isinstance(rows, PositionRows):
            rows.check_background(self.seen_mask, self.estimate, "CalibrationCallback")
        self._step = step

    def _can_estimate_at(self, step: int) -> bool:
        """Estimate gamma; warn and return False if that is impossible."""
        with warn_on_failure(f"step {step}"):
            self._estimate_at(step)
        return self._step == step

    def _compare(self, name: str, loader: Iterable[Any]) -> dict[str, float]:
        assert self.estimate is not None
        every = None if self.positions is None else replace(self.positions, per_item=None, class_balanced=False)
        rows = MarginRows(self.seen_mask[self._kept])
        for batch in self._score(loader, f"the data set of {name}"):
            samples = selected_rows([batch], every).samples()
            rows.update(samples.logits_tensor, samples.labels_tensor)
        self.accuracies[name] = accuracies_at(self.estimate, rows)
        return self.accuracies[name].as_dict(f"{name}_")

    def _first_inputs(self) -> Any:
        """Return this process's part of one fixed batch."""
        dataset, few = self._estimation_data(), self.trainer.args.eval_batch_size * self.trainer.args.world_size
        if hasattr(dataset, "__len__"):
            dataset = Subset(dataset, range(min(few, len(dataset))))
        else:
            dataset = list(islice(dataset, few))
        with random_states_kept():
            return next(iter(self.trainer.get_test_dataloader(dataset)))

    def _run(self, inputs: Any) -> Run:
        """Return a function that computes the logits of a batch."""

        def run() -> Tensor:
            with random_states_kept():
                return logits_of(self._predict(inputs)[0])

        return run

    def _predict(self, inputs: Any) -> tuple[Any, Any]:
        """Return output and labels of a batch, as the Trainer's evaluation computes them."""
        trainer = self.trainer
        for part in (trainer.model_wrapped, trainer.optimizer):
            # Schedule-free optimisers have a mode too. The next training step restores both.
            if hasattr(part, "eval"):
                part.eval()
        _, logits, labels = trainer.prediction_step(trainer.model_wrapped, inputs, prediction_loss_only=False)
        return logits, labels

    def _check_labels(self, labels: Any, name: str) -> None:
        if labels is None or (isinstance(labels, list) and None in labels):
            raise ValueError(
                f"{name} has no labels under {self.trainer.label_names} after the data collator; gamma needs labelled "
                "samples: add them, or name their column in TrainingArguments(label_names=)"
            )

    def _score(self, loader: Iterable[Any], name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits and labels of all processes, each sample of the data set `name` once."""
        trainer, labels = self.trainer, None

        def run(inputs: Any) -> Tensor:
            nonlocal labels
            logits, labels = self._predict(inputs)
            return logits_of(logits)

        with random_states_kept():
            for number, inputs in enumerate(loader):
                logits, doubts = logits_and_doubts(partial(run, inputs)) if number == 0 else (run(inputs), [])
                for sentence in doubts:
                    warn(f"CalibrationCallback: {sentence}")
                self._check_labels(labels, name)
                if self.positions is None or self.positions.shift is None:
                    check_shift(trainer.model, inputs, labels, getattr(self.positions, "ignore_index", None))
                if self.positions is not None:  # the longest sentence is another one in each process
                    logits, labels = shifted(logits, labels, self.positions.shift, self.positions.dim)
                    ignored = self.positions.ignore_index
                    logits = trainer.accelerator.pad_across_processes(logits, dim=1)
                    labels = trainer.accelerator.pad_across_processes(
                        labels, dim=1, pad_index=-100 if ignored is None else ignored
                    )
                logits, labels = trainer.accelerator.gather_for_metrics((logits, labels))
                yield logits.cpu(), labels.cpu()

    def _log(self, values: dict[str, float]) -> None:
        assert self.estimate is not None
        self.trainer.log({**log_values(self.estimate), **values})

    def _with_calibrator(self, save_model: Callable[..., None]) -> Callable[..., None]:
        """Return a replacement of the Trainer's `save_model`, which no callback hears of: it writes the calibrator.

        Of weights that gamma was not estimated for, as those of an interrupted training, it writes none.
        """

        @wraps(save_model)
        def save_both(output_dir: str | PathLike[str] | None = None, *args: Any, **kwargs: Any) -> None:
            save_model(output_dir, *args, **kwargs)
            if self.estimate is not None and self._step == self.trainer.state.global_step:
                self._write(Path(self.trainer.args.output_dir if output_dir is None else output_dir))

        return save_both

    def _write(self, folder: Path) -> None:
        if self.trainer.args.should_save:
            save(self.calibrator, folder / CALIBRATOR_FILE)


def _check_dataset(dataset: Any) -> Any:
    """Return the data set if the Trainer can iterate over its samples."""
    gives_samples = hasattr(dataset, "__getitem__") or hasattr(dataset, "__iter__")
    if dataset is not None and (isinstance(dataset, (dict, DataLoader)) or not gives_samples):
        raise TypeError(f"calibration_dataset is a {type(dataset).__name__}; pass one data set, as for train_dataset")
    if isinstance(dataset, Sized) and len(dataset) == 0:
        raise ValueError("calibration_dataset is empty; gamma needs samples to be estimated from")
    return dataset


class _ModelCard:
    """Replacement of the Trainer's `create_model_card` that appends a section on gamma."""

    def __init__(self, create: Callable[..., None], callback: CalibrationCallback) -> None:
        self.create, self._callback = create, callback

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.create(*args, **kwargs)
        trainer, estimate = self._callback.trainer, self._callback.estimate
        if estimate is not None and trainer.is_world_process_zero():
            card = Path(trainer.args.output_dir) / "README.md"
            account = describe_estimate(estimate, self._callback.accuracies)
            section = f"## Calibration\n\n{self._where()}\n\n```text\n{account}\n```\n"
            write_text(card, f"{card.read_text(encoding='utf-8').rstrip()}\n\n{section}")

    def _where(self) -> str:
        """Return the sentences on what gamma is for, and whether the weights contain it."""
        callback = self._callback
        seen = int(callback.seen_mask.sum())
        absent = callback.seen_mask.numel() - seen
        gamma = f"The model was fine-tuned on {seen} of its {seen + absent} classes. gamma"
        if callback.fold:
            return f"{gamma} is in the bias of its head, for the other {absent}. Do not add it again."
        where = f" is in `{CALIBRATOR_FILE}`, not in the weights" if callback.save else " is not in the weights"
        return f"{gamma}{where}. It is to be added to the logits of the other {absent}."


class MarginMetrics:
    """Accuracies on seen and absent classes as metrics of a `Trainer`, which keeps 12 bytes per sample.

    `reduce`, for ``preprocess_logits_for_metrics``, turns logits `(B, C)` into `(B, 3)` numbers; `compute`, for
    ``compute_metrics``, turns these into accuracies.

    Parameters
    ----------
    seen_mask : (C,) bool
        True for the seen classes.
    gamma : float, 0-d tensor or GammaEstimate, default 0
        Gamma of the accuracies; 0 for a model that is calibrated already.

    Raises
    ------
    TypeError, ValueError
        If `seen_mask` is not boolean, or has no seen or no absent class, or `gamma` is not a finite number.

    Examples
    --------
    >>> import torch
    >>> metrics = MarginMetrics([True, True, False], gamma=0.75)
    >>> rows = metrics.reduce(
    ...     torch.tensor([[4.0, 1.0, 3.0], [2.0, 5.0, 4.5]]), torch.tensor([0, 2])
    ... )
    >>> rows
    tensor([[1.0000, 1.0000, 1.0000],
            [0.5000, 0.0000, 1.0000]])
    >>> metrics.compute((rows.numpy(), None))["acc_all"]
    1.0
    """

    def __init__(self, seen_mask: Mask, gamma: SupportsFloat = 0.0) -> None:
        self.seen_mask: Tensor = check_callback_mask(seen_mask)
        self.gamma: float = gamma_as_float(gamma)

    def reduce(self, logits: Any, labels: Tensor) -> Tensor:
        """Return `(B, 3)`: margin, whether the label is seen, and whether it is the best class of its group."""
        scan = scan_batch(logits_of(logits), labels, self.seen_mask)
        return torch.stack(
            [scan.margin, *(flag.to(scan.margin) for flag in (scan.scalars.is_seen, scan.scalars.hit))], 1
        )

    def compute(self, prediction: Any) -> dict[str, float]:
        """Return the accuracies and the AUSUC by name, without those that are NaN."""
        margin, is_seen, hit = torch.as_tensor(prediction[0]).unbind(1)
        report = Margins(margin, is_seen.bool(), hit.bool(), None).curve().at(self.gamma)
        values = {name: getattr(report, name) for name in METRICS}
        return {name: value for name, value in values.items() if not math.isnan(value)}


METRICS = ("acc_seen", "acc_absent", "acc_all", "harmonic_mean", "balanced", "ausuc")
