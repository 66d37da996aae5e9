"""Hugging Face's Trainer on a small text model whose seen classes, the first three of six, have outgrown the others."""

import copy
import json
import logging
import warnings

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import IterableDataset
from transformers import (
    AutoModelForSequenceClassification,
    DistilBertConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import finecal
from finecal.integrations.transformers import CalibrationCallback, MarginMetrics

MASK = torch.arange(6) < 3
pytestmark = [
    pytest.mark.filterwarnings("ignore:'pin_memory' argument"),
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
]


def samples(n, num_classes, seed=0):
    """The class is the token that occurs most."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_classes
    tokens = torch.randint(0, 6, (n, 8), generator=generator)
    tokens[:, :4] = labels[:, None]
    return [{"input_ids": row + 1, "labels": label} for row, label in zip(tokens, labels, strict=True)]


def make_model(seed=0):
    torch.manual_seed(seed)
    config = DistilBertConfig(
        vocab_size=7, dim=16, hidden_dim=32, n_layers=1, n_heads=2, max_position_embeddings=8, num_labels=6
    )
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        model.classifier.bias[MASK] += 1.0
    return model


@pytest.fixture
def make_trainer(tmp_path):
    def make(model=None, **settings):
        fields = {"train_dataset": samples(60, 3), "eval_dataset": samples(48, 6, seed=1)}
        fields |= {name: settings.pop(name) for name in list(settings) if name in (*fields, *METRIC_HOOKS)}
        defaults = {"max_steps": 24, "learning_rate": 5e-3, "save_strategy": "no"}
        quiet = {"report_to": "none", "disable_tqdm": True, "per_device_train_batch_size": 16}
        arguments = TrainingArguments(str(tmp_path), **quiet | defaults | settings)
        return Trainer(model or make_model(), arguments, **fields)

    return make


METRIC_HOOKS = ("compute_metrics", "preprocess_logits_for_metrics")


def logits_and_labels(model, data):
    model = model.eval()
    labels = torch.stack([sample["labels"] for sample in data])
    with torch.no_grad():
        return model(input_ids=torch.stack([sample["input_ids"] for sample in data])).logits, labels


def last_log(trainer):
    return trainer.state.log_history[-1]


def test_end_of_training_logs_what_the_functions_find(make_trainer):
    trainer = make_trainer()
    callback = CalibrationCallback(trainer, MASK)
    trainer.add_callback(callback)
    trainer.train()
    expected = finecal.estimate_gamma(MASK, train=logits_and_labels(trainer.model, trainer.train_dataset))
    assert callback.estimate.gamma == pytest.approx(expected.gamma, abs=1e-5)
    logged = last_log(trainer)
    test = logits_and_labels(trainer.model, trainer.eval_dataset)
    for suffix, gamma in {"": 0.0, "_calibrated": callback.estimate}.items():
        report = finecal.evaluate(*test, MASK, gamma)
        for name in ("acc_seen", "acc_absent", "acc_all"):
            assert logged[f"eval_{name}{suffix}"] == getattr(report, name)
    assert logged["gamma"] == callback.estimate.gamma
    assert callback.accuracies["eval"].after == finecal.evaluate(*test, MASK, callback.estimate)
    wrapped = finecal.CalibratedModel(trainer.model, callback.calibrator)
    assert finecal.evaluate(*logits_and_labels(wrapped, trainer.eval_dataset), MASK).acc_all == report.acc_all


@pytest.mark.parametrize("fold", [False, True])
def test_results_are_where_results_are_looked_for(make_trainer, tmp_path, caplog, fold):
    trainer = make_trainer()
    callback = CalibrationCallback(trainer, MASK, fold=fold, save=not fold)
    trainer.add_callback(callback)
    caplog.set_level(logging.INFO, "transformers.trainer")
    logging.getLogger("transformers").propagate = True
    result = trainer.train()
    trainer.save_metrics("train", result.metrics)
    for name in ("finecal_results.json", "all_results.json"):
        found = json.loads((tmp_path / name).read_text())
        assert found["gamma"] == callback.estimate.gamma
        assert found["acc_seen_at_gamma"] == callback.estimate.acc_seen_at_gamma
        assert found["eval_acc_absent_calibrated"] == callback.accuracies["eval"].after.acc_absent
    assert "train_loss" in found
    before, after = callback.accuracies["eval"]
    told = f"Acc_U/Y {100 * before.acc_absent:.1f} -> {100 * after.acc_absent:.1f} %"
    account = [*str(callback.estimate).splitlines(), told]
    assert all(line in caplog.text for line in account)
    for _ in range(2):  # as create_model_card, then push_to_hub
        trainer.create_model_card(model_name="pears")
        card = (tmp_path / "README.md").read_text()
        assert card.count("## Calibration\n") == 1
        assert "pears" in card
        assert all(line in card for line in account)
    where = "is in the bias of its head, for the other 3" if fold else "is in `finecal.safetensors`, not in the weights"
    assert f"fine-tuned on 3 of its 6 classes. gamma {where}" in card
    trainer.train()
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text().count("## Calibration\n") == 1


class Augmented(list):
    """Half of the tokens of a sample are replaced at random, as word dropout does."""

    def __getitem__(self, index):
        sample = dict(super().__getitem__(index))
        dropped = torch.rand(len(sample["input_ids"])) < 0.5
        return sample | {"input_ids": torch.where(dropped, 0, sample["input_ids"])}


AUGMENTED = "CalibrationCallback: the samples are augmented at random"


def test_augmented_samples_are_noticed_and_others_can_be_given(make_trainer):
    plain = samples(60, 3)
    trainer = make_trainer(train_dataset=Augmented(plain))
    trainer.add_callback(CalibrationCallback(trainer, MASK))
    with pytest.warns(finecal.FinecalWarning, match=f"{AUGMENTED}.* pass calibration_dataset="):
        trainer.train()
    trainer = make_trainer(train_dataset=Augmented(plain))
    callback = CalibrationCallback(trainer, MASK, calibration_dataset=plain)
    trainer.add_callback(callback)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", AUGMENTED)
        trainer.train()
    expected = finecal.estimate_gamma(MASK, train=logits_and_labels(trainer.model, plain))
    assert callback.estimate.gamma == pytest.approx(expected.gamma, abs=1e-3)
    assert callback.estimate.acc_seen_at_gamma == pytest.approx(expected.acc_seen_at_gamma)
    assert "training" in callback.estimate.data


def test_augmented_samples_are_noticed_in_several_processes(make_trainer, monkeypatch):
    trainer = make_trainer(train_dataset=Augmented(samples(60, 3)))
    whole = trainer.get_test_dataloader

    def share(dataset):
        return prepare_data_loader(whole(dataset), num_processes=2, process_index=1)

    monkeypatch.setattr(trainer, "get_test_dataloader", share)
    callback = CalibrationCallback(trainer, MASK)
    with pytest.warns(finecal.FinecalWarning, match=AUGMENTED):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_samples_of_many_lengths_one_at_a_time(make_trainer):
    long = [
        {**sample, "input_ids": sample["input_ids"][: 4 + index % 5]} for index, sample in enumerate(samples(60, 3))
    ]
    sizes = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
    trainer = make_trainer(train_dataset=long, eval_dataset=None, **sizes)
    callback = CalibrationCallback(trainer, MASK)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.estimate.n == 60


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        ({"a": samples(6, 3)}, TypeError, "calibration_dataset is a dict; pass one data set"),
        (3, TypeError, "calibration_dataset is a int"),
        ([], ValueError, "calibration_dataset is empty"),
    ],
)
def test_wrong_calibration_data_are_refused(make_trainer, dataset, error, message):
    with pytest.raises(error, match=message):
        CalibrationCallback(make_trainer(), MASK, calibration_dataset=dataset)


class BiasAtStart(TrainerCallback):
    def __init__(self):
        self.biases = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.biases.append(model.classifier.bias.detach().clone())


def test_training_goes_on_from_a_checkpoint_after_a_fold(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=8)
    watch = BiasAtStart()
    callback = CalibrationCallback(trainer, MASK, fold=True)
    trainer.add_callback(callback)
    trainer.add_callback(watch)
    trainer.train()
    expected = watch.biases[8]
    watch.biases.clear()
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    torch.testing.assert_close(watch.biases[0], expected)
    assert trainer.model.classifier.finecal_folded["estimate"]["gamma"] == callback.estimate.gamma


def test_dropout_that_is_left_on_is_noticed(make_trainer):
    model = make_model()
    model.classifier.register_forward_pre_hook(lambda module, args: torch.nn.functional.dropout(args[0], 0.5))
    trainer = make_trainer(model)
    trainer.add_callback(CalibrationCallback(trainer, MASK))
    with pytest.warns(finecal.FinecalWarning, match="CalibrationCallback: the model is random in eval mode"):
        trainer.train()


@pytest.mark.parametrize("every_evaluation", [False, True])
def test_training_is_the_same_with_the_callback(make_trainer, every_evaluation):
    weights = []
    for with_callback in (False, True):
        trainer = make_trainer(seed=3, eval_strategy="steps", eval_steps=1, max_steps=12)
        if with_callback:
            trainer.add_callback(CalibrationCallback(trainer, MASK, every_evaluation=every_evaluation))
        trainer.train()
        weights.append(trainer.model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_every_evaluation_joins_the_metrics(make_trainer, tmp_path):
    trainer = make_trainer(
        eval_strategy="steps",
        eval_steps=12,
        save_strategy="steps",
        save_steps=12,
        load_best_model_at_end=True,
        metric_for_best_model="acc_all_calibrated",
    )
    callback = CalibrationCallback(trainer, MASK, every_evaluation=True, save=True)
    trainer.add_callback(callback)
    trainer.train()
    logged = [log for log in trainer.state.log_history if "eval_acc_all_calibrated" in log]
    assert [log["step"] for log in logged] == [12, 24, 24]
    assert trainer.state.best_metric == max(log["eval_acc_all_calibrated"] for log in logged[:2])
    for log in logged[:2]:
        saved = finecal.load(tmp_path / f"checkpoint-{log['step']}" / "finecal.safetensors")
        assert float(saved.gamma) == pytest.approx(log["gamma"])
    assert float(finecal.load(tmp_path / "finecal.safetensors").gamma) == pytest.approx(logged[-1]["gamma"])
    # After the training, evaluations go on to tell both.
    assert trainer.evaluate()["eval_acc_seen_calibrated"] == logged[-1]["eval_acc_seen_calibrated"]
    assert "seen_acc_seen" in trainer.evaluate(samples(6, 3), metric_key_prefix="seen")


def test_save_model_writes_the_calibrator_beside_the_model(make_trainer, tmp_path):
    trainer = make_trainer(save_strategy="steps", save_steps=8)
    callback = CalibrationCallback(trainer, MASK, save=True)
    trainer.add_callback(callback)
    trainer.save_model(tmp_path / "before")
    assert not (tmp_path / "before/finecal.safetensors").exists()
    trainer.train()
    for folder in (str(tmp_path / "elsewhere"), tmp_path / "a path"):
        trainer.save_model(folder)
    (tmp_path / "finecal.safetensors").unlink()
    trainer.save_model()
    for folder in ("elsewhere", "a path", "."):
        saved = finecal.load(tmp_path / folder / "finecal.safetensors")
        assert float(saved.gamma) == pytest.approx(callback.estimate.gamma)
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / folder)
        calibrated = finecal.CalibratedModel(model, saved)
        report = finecal.evaluate(*logits_and_labels(calibrated, trainer.eval_dataset), MASK)
        assert report.acc_all == callback.accuracies["eval"].after.acc_all
    gammas = {float(finecal.load(tmp_path / f"checkpoint-{i}/finecal.safetensors").gamma) for i in (8, 16, 24)}
    assert len(gammas) == 3


def test_save_model_writes_no_calibrator_for_other_weights(make_trainer, tmp_path):
    """Training that is interrupted leaves weights for which gamma was not estimated."""

    class Interrupt(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise KeyboardInterrupt

    trainer = make_trainer()
    trainer.add_callback(CalibrationCallback(trainer, MASK, save=True))
    trainer.train()
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.save_model(tmp_path / "interrupted")
    assert not (tmp_path / "interrupted/finecal.safetensors").exists()


def test_training_survives_an_early_model_without_gamma(make_trainer):
    def estimator(logits, labels, seen_mask):
        raise ValueError("too early")

    trainer = make_trainer(eval_strategy="steps", eval_steps=12)
    trainer.add_callback(CalibrationCallback(trainer, MASK, estimator=estimator, every_evaluation=True))
    with (
        pytest.warns(finecal.FinecalWarning, match="gamma is not estimated at step 12: too early"),
        pytest.raises(ValueError, match=r"^too early$"),
    ):
        trainer.train()
    assert trainer.state.global_step == 24


def test_fold_calibrates_the_saved_model(make_trainer, tmp_path):
    trainer = make_trainer()
    callback = CalibrationCallback(trainer, MASK, fold=True)
    trainer.add_callback(callback)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    report = finecal.evaluate(*logits_and_labels(loaded, trainer.eval_dataset), MASK)
    assert report.acc_seen == last_log(trainer)["eval_acc_seen_calibrated"]
    assert not any("calibrated" in name for name in trainer.evaluate())

    # Training again starts from the head without gamma.
    starts = []

    class Recorder(TrainerCallback):
        def on_train_begin(self, *args, model, **kwargs):
            starts.append(model.classifier.bias.detach().clone())

    trainer.add_callback(Recorder())
    folded, gamma = trainer.model.classifier.bias.detach().clone(), callback.estimate.gamma
    trainer.train()
    torch.testing.assert_close(starts[0], folded - gamma * ~MASK)


def test_data_sets_by_name_and_of_seen_classes_only(make_trainer):
    trainer = make_trainer(eval_dataset={"all": samples(48, 6), "seen": samples(12, 3)})
    trainer.add_callback(CalibrationCallback(trainer, MASK))
    trainer.train()
    logged = last_log(trainer)
    assert logged["eval_seen_acc_seen"] == logged["eval_seen_acc_all"]
    assert "eval_all_acc_absent_calibrated" in logged
    assert "eval_seen_acc_absent" not in logged


def test_evaluation_data_give_gamma_by_their_seen_samples(make_trainer):
    trainer = make_trainer()
    callback = CalibrationCallback(trainer, MASK, data="eval", estimator=finecal.estimators.max_logit_gap)
    trainer.add_callback(callback)
    trainer.train()
    logits, labels = logits_and_labels(trainer.model, trainer.eval_dataset)
    expected = finecal.estimators.max_logit_gap(logits[MASK[labels]], labels[MASK[labels]], MASK)
    assert (callback.estimate.gamma, callback.estimate.n) == (pytest.approx(expected.gamma, abs=1e-5), 24)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(samples(60, 3))


@pytest.mark.parametrize("data", [samples(60, 3), Stream()], ids=["list", "stream"])
def test_max_samples(make_trainer, data):
    trainer = make_trainer(train_dataset=data)
    callback = CalibrationCallback(trainer, MASK, max_samples=20, estimator=finecal.estimators.max_logit_gap)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.estimate.n == 20


def test_unlabelled_samples_are_refused_before_training(make_trainer):
    unlabelled = [{"input_ids": sample["input_ids"]} for sample in samples(6, 6)]
    for name, options in {"eval": {"data": "eval"}, "calibration": {"calibration_dataset": unlabelled}}.items():
        trainer = make_trainer(eval_dataset=unlabelled)
        trainer.add_callback(CalibrationCallback(trainer, MASK, **options))
        with pytest.raises(ValueError, match=rf"^{name}_dataset has no labels under \['labels'\]"):
            trainer.train()
        assert trainer.state.global_step == 0


@pytest.mark.parametrize("estimator", ["max_logit_gap", finecal.GammaEstimate])
def test_what_is_no_estimator(make_trainer, estimator):
    with pytest.raises(TypeError, match=r"^estimator is .*; pass a function of \(logits, labels, seen_mask\)"):
        CalibrationCallback(make_trainer(), MASK, estimator=estimator)


@pytest.mark.parametrize("result", [None, 1.5])
def test_an_estimator_that_returns_no_estimate(make_trainer, result):
    trainer = make_trainer()
    trainer.add_callback(CalibrationCallback(trainer, MASK, estimator=lambda *samples: result))
    with pytest.raises(TypeError, match=f"^estimator returned {result}; it must return a GammaEstimate"):
        trainer.train()


def test_margin_metrics_equal_those_of_all_logits(make_trainer):
    for gamma in (0.0, 0.7):
        metrics = MarginMetrics(MASK, gamma)
        trainer = make_trainer(preprocess_logits_for_metrics=metrics.reduce, compute_metrics=metrics.compute)
        values = trainer.evaluate()
        report = finecal.evaluate(*logits_and_labels(trainer.model, trainer.eval_dataset), MASK, gamma)
        for name in ("acc_seen", "acc_absent", "acc_all", "harmonic_mean", "balanced", "ausuc"):
            assert values[f"eval_{name}"] == pytest.approx(getattr(report, name), abs=1e-12)
        assert trainer.predict(trainer.eval_dataset).predictions.shape == (48, 3)
    assert "eval_acc_absent" not in trainer.evaluate(samples(6, 3))


def test_margin_metrics_take_tuples_and_half_types():
    logits, labels = torch.randn(5, 6, dtype=torch.bfloat16), torch.arange(5)
    rows = MarginMetrics(MASK).reduce((logits, torch.ones(5, 2, 2)), labels)
    expected = finecal.Samples(logits, labels).margins(MASK)
    np.testing.assert_array_equal(rows, torch.stack([expected.margin, expected.is_seen, expected.hit], 1))


def test_wrong_arguments(make_trainer):
    trainer = make_trainer()
    for options, message in [
        ({"data": "test"}, "data is 'test'"),
        ({"max_samples": 0}, "max_samples is 0"),
        ({"fold": True, "save": True}, "fold and save are both True"),
    ]:
        with pytest.raises(ValueError, match=message):
            CalibrationCallback(trainer, MASK, **options)
    with pytest.raises(TypeError, match=r"transformers\.Trainer"):
        CalibrationCallback(trainer.model, MASK)
    with pytest.raises(ValueError, match="train_dataset is none"):
        CalibrationCallback(make_trainer(train_dataset=None), MASK)
    with pytest.raises(ValueError, match="eval_dataset is several, by name"):
        CalibrationCallback(make_trainer(eval_dataset={"a": samples(6, 6)}), MASK, data="eval")
    with pytest.raises(RuntimeError, match="train first"):
        _ = CalibrationCallback(trainer, MASK).calibrator


@pytest.mark.parametrize("kind", ["wrapped", "folded", "no bias"])
def test_unfit_models_are_refused_before_training(make_trainer, kind):
    model, calibrator = make_model(), finecal.AdditiveBias(MASK, 1.0)
    if kind == "wrapped":
        model = finecal.CalibratedModel(model, calibrator)
    elif kind == "folded":
        finecal.fold_into_head(model, calibrator)
    else:
        model.classifier = torch.nn.Linear(16, 6, bias=False)
    trainer = make_trainer(model)
    before = copy.deepcopy(model.state_dict())
    trainer.add_callback(CalibrationCallback(trainer, MASK, fold=kind == "no bias"))
    with pytest.raises(ValueError, match="calibrated already|folded|bias"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_fold_that_would_not_calibrate_is_refused_before_training(make_trainer):
    model = make_model()
    model.classifier.register_forward_hook(lambda module, args, logits: 2 * logits)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model)
    trainer.add_callback(CalibrationCallback(trainer, MASK, fold=True))
    with pytest.raises(ValueError, match="the logits gain 2 times what is added to the bias"):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("settings", [{}, {"bf16": True}], ids=["float32", "mixed"])
def test_training_is_the_same_where_the_fold_is_checked(make_trainer, settings):
    plain = make_trainer(seed=3, max_steps=12, use_cpu=True, **settings)
    plain.train()
    trainer = make_trainer(seed=3, max_steps=12, use_cpu=True, **settings)
    callback = CalibrationCallback(trainer, MASK, fold=True)
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.model.config.finecal_folded["estimate"]["gamma"] == callback.estimate.gamma
    finecal.unfold_from_head(trainer.model, callback.calibrator)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(trainer.model.state_dict()[name], value, rtol=0, atol=1e-6)
    inputs = {"input_ids": torch.stack([sample["input_ids"] for sample in trainer.eval_dataset[:4]])}
    finecal.fold_into_head(trainer.model, callback.calibrator, inputs=inputs)  # accelerate has left its autocast there
