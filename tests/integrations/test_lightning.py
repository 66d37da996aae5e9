"""Lightning's Trainer on points around their class's corner; the seen classes are the first three of six."""

import itertools
import random
import warnings

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import finecal
from finecal.integrations.lightning import CalibrationCallback

MASK = torch.arange(6) < 3
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]


def samples(n, num_classes, seed=0):
    labels = torch.arange(n) % num_classes
    noise = torch.randn(n, 6, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(torch.eye(6)[labels] * 3 + noise, labels)


TRAIN, TEST = samples(60, 3), samples(48, 6, seed=1)


def loader(dataset=TRAIN, **settings):
    return DataLoader(dataset, 16, shuffle=not isinstance(dataset, IterableDataset) and dataset is TRAIN, **settings)


def make_module(base=L.LightningModule, bias=True):
    class Module(base):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Linear(6, 12)
            self.head = torch.nn.Linear(12, 6, bias=bias)

        def forward(self, x):
            return self.head(F.dropout(self.body(x), 0.1, self.training))

        def training_step(self, batch, _):
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, _, dataloader_idx=0):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    torch.manual_seed(0)
    module = Module()
    with torch.no_grad():
        module.body.weight.copy_(torch.eye(6).repeat(2, 1))
        module.head.weight.copy_(torch.eye(6).repeat(1, 2) / 2)
    return module


@pytest.fixture
def fit(tmp_path):
    def run(*callbacks, module=None, train=None, validation=True, ecosystem=L, trainer=None, **settings):
        module = module or make_module(ecosystem.LightningModule)
        if trainer is None:
            defaults = {"max_epochs": 5, "enable_checkpointing": False, "logger": False}
            quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
            settings = defaults | quiet | settings
            trainer = ecosystem.Trainer(callbacks=list(callbacks), default_root_dir=tmp_path, **settings)
        torch.manual_seed(1)
        trainer.fit(module, loader() if train is None else train, loader(TEST) if validation is True else validation)
        return trainer, module

    return run


def logits_and_labels(module, dataset):
    module.eval()
    with torch.no_grad():
        return module(dataset.tensors[0]), dataset.tensors[1]


@pytest.mark.parametrize("ecosystem", [L, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_end_of_training_logs_what_the_functions_find(fit, tmp_path, ecosystem):
    callback = CalibrationCallback(MASK, save_to=tmp_path / "gamma.safetensors")
    logger = ecosystem.loggers.CSVLogger(tmp_path)
    trainer, module = fit(callback, ecosystem=ecosystem, logger=logger)
    estimate = finecal.estimate_gamma(MASK, train=logits_and_labels(module, TRAIN))
    assert callback.estimate.gamma == pytest.approx(estimate.gamma, abs=1e-4)
    test = logits_and_labels(module, TEST)
    for suffix, gamma in {"": 0.0, "_calibrated": callback.estimate}.items():
        report = finecal.evaluate(*test, MASK, gamma)
        for name in ("acc_seen", "acc_absent", "acc_all"):
            assert float(trainer.callback_metrics[f"val_{name}{suffix}"]) == pytest.approx(getattr(report, name))
    assert callback.accuracies["val"].after == report
    assert report.acc_absent > callback.accuracies["val"].before.acc_absent
    assert float(finecal.load(tmp_path / "gamma.safetensors").gamma) == pytest.approx(callback.estimate.gamma)
    assert "val_acc_absent_calibrated" in (tmp_path / "lightning_logs/version_0/metrics.csv").read_text()


@pytest.mark.parametrize("every_validation", [False, True])
def test_training_is_the_same_with_the_callback(fit, every_validation):
    _, plain = fit(validation=loader(TEST))
    _, watched = fit(CalibrationCallback(MASK, every_validation=every_validation))
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name])
    assert watched.training == plain.training


def test_checkpoints_hold_gamma(fit, tmp_path):
    callback = CalibrationCallback(MASK, every_validation=True)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val_acc_all_calibrated", mode="max", save_top_k=-1)
    fit(callback, checkpoint, enable_checkpointing=True)
    assert checkpoint.best_model_score == max(checkpoint.best_k_models.values())
    last = next(tmp_path.glob("epoch=4*.ckpt"))
    restored = CalibrationCallback(MASK)
    restored.load_state_dict(torch.load(last, weights_only=True)["callbacks"]["CalibrationCallback"])
    assert restored.estimate == callback.estimate


@pytest.mark.parametrize("by_hand", [False, True])
def test_fold_calibrates_the_module(fit, by_hand):
    module = make_module()
    callback = CalibrationCallback(MASK, fold=module.head if by_hand else True)
    trainer, _ = fit(callback, module=module)
    report = finecal.evaluate(*logits_and_labels(module, TEST), MASK)
    assert report.acc_seen == callback.accuracies["val"].after.acc_seen
    folded, gamma = module.head.bias.detach().clone(), callback.estimate.gamma
    callback.on_fit_start(trainer, module)
    torch.testing.assert_close(module.head.bias.detach(), folded - gamma * ~MASK)


class StepsOfTests:
    """What a module does in testing and predicting: its accuracy and its predictions."""

    def _test_step(self, batch, _):
        self.log("test_acc", (self(batch[0]).argmax(1) == batch[1]).double().mean(), batch_size=len(batch[1]))

    def predict_step(self, batch, _):
        return self(batch[0]).argmax(1)


def make_tested_module():
    module = make_module()
    module.__class__ = type("TestedModule", (StepsOfTests, type(module)), {"test_step": StepsOfTests._test_step})
    return module


def weights_before_the_fold(checkpoint):
    """Take gamma out by hand."""
    state = torch.load(checkpoint)
    saved = state["callbacks"]["CalibrationCallback"]
    assert saved["is_folded"]
    weights = dict(state["state_dict"])
    weights["head.bias"] = weights["head.bias"] - saved["estimate"]["gamma"] * ~MASK
    return weights, saved["estimate"]


@pytest.mark.parametrize("afresh", [False, True], ids=["same trainer", "another session"])
def test_checkpoints_are_tested_with_their_own_gamma(fit, tmp_path, afresh):
    callback = CalibrationCallback(MASK, fold=True)
    files = ModelCheckpoint(tmp_path / "all", save_top_k=-1, filename="{epoch}")
    trainer, module = fit(callback, files, module=make_tested_module(), enable_checkpointing=True)
    end = callback.estimate
    gammas = []
    for epoch in (1, 3):
        path = tmp_path / f"all/epoch={epoch}.ckpt"
        weights, estimate = weights_before_the_fold(path)
        plain = make_module()
        plain.load_state_dict(weights)
        expected = finecal.estimate_gamma(MASK, train=logits_and_labels(plain, TRAIN))
        assert estimate["gamma"] == pytest.approx(expected.gamma, abs=1e-3)
        report = finecal.evaluate(*logits_and_labels(plain, TEST), MASK, expected)
        assert report.acc_all != finecal.evaluate(*logits_and_labels(plain, TEST), MASK).acc_all
        if afresh:
            callback, module = CalibrationCallback(MASK, fold=True), make_tested_module()
            quiet = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
            trainer = L.Trainer(callbacks=[callback], default_root_dir=tmp_path, **quiet)
        (found,) = trainer.test(module, loader(TEST), ckpt_path=path, verbose=False)
        assert found["test_acc"] == pytest.approx(report.acc_all)
        predicted = torch.cat(trainer.predict(module, loader(TEST), ckpt_path=path))
        assert float((predicted == TEST.tensors[1]).double().mean()) == pytest.approx(report.acc_all)
        assert module.head.finecal_folded["estimate"]["gamma"] == estimate["gamma"] == callback.estimate.gamma
        finecal.unfold_from_head(module, callback.calibrator)
        torch.testing.assert_close(module.head.bias.detach(), weights["head.bias"])
        finecal.fold_into_head(module, callback.calibrator, inputs=TEST.tensors[0])
        gammas.append(estimate["gamma"])
    assert len({*gammas, end.gamma}) == 3


def test_training_goes_on_from_a_folded_checkpoint_as_if_it_were_none(fit, tmp_path):
    def run(name, **settings):
        files = ModelCheckpoint(tmp_path / name, save_top_k=-1, filename="{epoch}")
        return fit(CalibrationCallback(MASK, fold=True), files, enable_checkpointing=True, **settings)[1]

    whole = run("whole")
    plain = fit(module=make_module())[1]
    torch.testing.assert_close(whole.body.weight, plain.body.weight)
    callback = CalibrationCallback(MASK)  # without fold, it still takes out what the checkpoint has
    trainer, _ = fit(callback, max_epochs=1)
    trainer.fit_loop.max_epochs = 5
    resumed = make_module()
    trainer.fit(resumed, loader(), loader(TEST), ckpt_path=tmp_path / "whole/epoch=1.ckpt")
    assert not hasattr(resumed.head, "finecal_folded")
    expected = finecal.estimate_gamma(MASK, train=logits_and_labels(resumed, TRAIN))
    assert callback.estimate.gamma == pytest.approx(expected.gamma, abs=1e-3)
    assert expected.gamma > 1.5  # 0 where the gap is closed already


def test_checkpoints_of_weights_only_are_tested_without_gamma_and_not_in_silence(fit, tmp_path):
    files = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}", save_weights_only=True)
    callback = CalibrationCallback(MASK, fold=True)
    with pytest.warns(finecal.FinecalWarning, match="save_weights_only=True are written without gamma"):
        trainer, module = fit(callback, files, module=make_tested_module(), enable_checkpointing=True)
    path = tmp_path / "epoch=1.ckpt"
    with pytest.warns(finecal.FinecalWarning, match="are not those that gamma was folded into"):
        (found,) = trainer.test(module, loader(TEST), ckpt_path=path, verbose=False)
    assert found["test_acc"] == pytest.approx(finecal.evaluate(*logits_and_labels(module, TEST), MASK).acc_all)
    assert not hasattr(module.head, "finecal_folded")
    assert not callback.state_dict()["is_folded"]


def test_an_early_checkpoint_without_gamma_is_no_reason_to_stop(fit, tmp_path):
    def estimator(logits, labels, seen_mask):
        if len(calls := [*estimator.calls, 1]) == 1:
            estimator.calls = calls
            raise ValueError("too early")
        return finecal.estimators.max_logit_gap(logits, labels, seen_mask)

    estimator.calls = []
    files = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    with pytest.warns(finecal.FinecalWarning, match="step 4, whose checkpoint is written without it: too early"):
        fit(CalibrationCallback(MASK, fold=True, estimator=estimator), files, enable_checkpointing=True)
    saved = [torch.load(tmp_path / f"epoch={i}.ckpt", weights_only=True)["callbacks"] for i in (0, 1)]
    assert [each["CalibrationCallback"]["is_folded"] for each in saved] == [False, True]


def test_validation_of_a_checkpoint_notes_its_weights(fit, tmp_path):
    files = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{epoch}")
    callback = CalibrationCallback(MASK, fold=True)
    trainer, module = fit(callback, files, enable_checkpointing=True)
    end = callback.estimate
    trainer.validate(module, loader(TEST), ckpt_path=tmp_path / "epoch=1.ckpt", verbose=False)
    assert callback.estimate != end
    assert module.head.finecal_folded["estimate"]["gamma"] == callback.estimate.gamma
    finecal.unfold_from_head(module, callback.calibrator)


@pytest.mark.parametrize("first", [False, True])
def test_averaged_weights_are_to_come_first(fit, first):
    average = StochasticWeightAveraging(0.01, swa_epoch_start=0.4)
    callback, module = CalibrationCallback(MASK, fold=True), make_module()
    if not first:
        with pytest.warns(finecal.FinecalWarning, match="StochasticWeightAveraging comes after it in the list"):
            fit(callback, average, module=module)
        return
    fit(average, callback, module=module)
    assert module.head.finecal_folded
    report = finecal.evaluate(*logits_and_labels(module, TEST), MASK)
    assert report.acc_all == callback.accuracies["val"].after.acc_all


def test_double_precision(fit):
    callback = CalibrationCallback(MASK, fold=True)
    _, module = fit(callback, module=make_module(), precision="64-true")
    assert module.head.bias.dtype == torch.float64
    assert callback.estimate.n == 60


# --- samplers ---------------------------------------------------------------------------------------------------------

SOME = list(range(0, 480, 4))


class Shuffling(Sampler):
    """Shuffles its own rows at each pass, and has no length."""

    def __init__(self, rows):
        self.rows = list(rows)

    def __iter__(self):
        random.shuffle(self.rows)
        return iter(self.rows)


def draws(sampler, **settings):
    return lambda: {"batch_size": 16, "sampler": sampler(), **settings}


def generator():
    return torch.Generator().manual_seed(5)


SAMPLERS = {
    "none": (lambda: {"batch_size": 50}, range(480)),
    "no last batch": (lambda: {"batch_size": 50, "drop_last": True}, range(450)),
    "list": (draws(lambda: SOME), SOME),
    "tensor": (draws(lambda: torch.tensor(SOME)), SOME),
    "own": (draws(lambda: Shuffling(SOME)), SOME),
    "SubsetRandomSampler": (draws(lambda: SubsetRandomSampler(SOME)), SOME),
    "RandomSampler": (draws(lambda: RandomSampler(range(480), generator=generator())), range(480)),
    "some": (draws(lambda: RandomSampler(range(480), num_samples=70, generator=generator())), 70),
    "replacement": (draws(lambda: RandomSampler(range(480), True, 700, generator=generator())), 700),
    "weighted": (draws(lambda: WeightedRandomSampler(torch.arange(480.0), 700, generator=generator())), 700),
    "batches": (lambda: {"batch_sampler": [SOME[i : i + 12] for i in range(0, 120, 12)]}, SOME),
    "batches of many sizes": (lambda: {"batch_sampler": [SOME[:7], SOME[7:50], SOME[50:]]}, SOME),
    "own in batches": (lambda: {"batch_sampler": BatchSampler(Shuffling(SOME), 16, False)}, SOME),
    "lists to the data set": (lambda: {"batch_size": None, "sampler": BatchSampler(SOME, 16, False)}, SOME),
}


class Noted(TensorDataset):
    """Notes the rows that are asked for."""

    def __init__(self, *tensors):
        super().__init__(*tensors)
        self.asked = []

    def __getitem__(self, rows):
        self.asked.extend(rows if isinstance(rows, list) else [int(rows)])
        return super().__getitem__(rows)


def _validation_step(self, batch, _):
    self.log("val_acc", (self(batch[0]).argmax(1) == batch[1]).double().mean(), batch_size=len(batch[1]))


def make_validated_module():
    module = make_module()
    module.__class__ = type("ValidatedModule", (type(module),), {"validation_step": _validation_step})
    return module


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samples_of_the_validation_are_those_of_the_loader(fit, name):
    make, expected = SAMPLERS[name]
    module, callback, data = make_validated_module(), CalibrationCallback(MASK), Noted(*samples(480, 6, 1).tensors)
    validation = DataLoader(data, **make())
    trainer, _ = fit(callback, module=module, validation=validation, max_epochs=1)
    before, _ = callback.accuracies["val"]
    count = expected if isinstance(expected, int) else len(expected)
    scored = data.asked[-count:]
    assert before.n_seen + before.n_absent == count
    if not isinstance(expected, int):
        assert sorted(scored) == list(expected)
    logits, labels = logits_and_labels(module, data)
    assert before.acc_all == pytest.approx(float((logits.argmax(1) == labels)[scored].double().mean()))
    (found,) = trainer.validate(module, validation, verbose=False)  # goes on with the same generator
    assert found["val_acc"] == pytest.approx(before.acc_all)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_samples_of_the_estimate_are_those_of_the_loader(fit, name):
    make, expected = SAMPLERS[name]
    data = samples(480, 3)
    callback = CalibrationCallback(MASK, estimator=finecal.estimators.max_logit_gap)
    _, module = fit(callback, train=DataLoader(data, **make()), validation=None, max_epochs=1)
    assert callback.estimate.n == (expected if isinstance(expected, int) else len(expected))
    if not isinstance(expected, int):
        logits, labels = logits_and_labels(module, data)
        rows = list(expected)
        by_hand = finecal.estimators.max_logit_gap(logits[rows], labels[rows], MASK)
        assert callback.estimate.gamma == pytest.approx(by_hand.gamma, abs=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_draw_for_the_training_as_without_the_callback(fit, name):
    make, _ = SAMPLERS[name]
    trained = []
    for callbacks in ([], [CalibrationCallback(MASK, every_validation=True, fold=True)]):
        random.seed(0)
        data = samples(480, 3)
        module = fit(*callbacks, train=DataLoader(data, **make()), validation=DataLoader(data, 50), max_epochs=2)[1]
        trained.append(module.body.weight)
    torch.testing.assert_close(*trained, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["list", "replacement", "batches", "batches of many sizes", "lists to the data set"])
def test_max_samples_of_a_sampler(fit, name):
    callback = CalibrationCallback(MASK, max_samples=40, estimator=lambda *of: labels.append(of[1]) or zero(*of))
    zero, labels = finecal.estimators.max_logit_gap, []
    fit(callback, train=DataLoader(samples(480, 3), **SAMPLERS[name][0]()), validation=None, max_epochs=1)
    assert callback.estimate.n == 40
    assert len(set(labels[0].tolist())) > 1


class Endless(Sampler):
    def __iter__(self):
        return itertools.cycle(range(60))


def test_a_sampler_without_end(fit):
    callback = CalibrationCallback(MASK)
    fit(callback, train=DataLoader(TRAIN, 16, sampler=Endless()), max_epochs=-1, max_steps=9, validation=None)
    assert callback.estimate.n == 64  # the batches of 60 samples


def test_limits_of_the_trainer(fit):
    """Of a training on two batches, the other samples are held out; validations are of three."""
    callback = CalibrationCallback(MASK, estimator=finecal.estimators.max_logit_gap)
    limits = {"limit_train_batches": 2, "limit_val_batches": 3, "max_epochs": 1}
    module, validation = make_validated_module(), DataLoader(samples(480, 6, 1), 16)
    trainer, _ = fit(callback, module=module, train=DataLoader(TRAIN, 16), validation=validation, **limits)
    assert callback.estimate.n == 32
    (found,) = trainer.validate(module, validation, verbose=False)
    before, _ = callback.accuracies["val"]
    assert (before.n_seen + before.n_absent, before.acc_all) == (48, pytest.approx(found["val_acc"]))


# --- other samples, and other batches ---------------------------------------------------------------------------------


class Augmented(TensorDataset):
    """Every sample is drawn towards the origin, at random."""

    def __getitem__(self, index):
        inputs, labels = super().__getitem__(index)
        return inputs * torch.rand(()), labels


def test_augmented_samples_are_noticed_and_others_can_be_given(fit):
    augmented = Augmented(*TRAIN.tensors)
    with pytest.warns(finecal.FinecalWarning, match="augmented at random. .* pass calibration_loader="):
        fit(CalibrationCallback(MASK), train=loader(augmented))
    with pytest.warns(finecal.FinecalWarning, match="augmented at random"):
        fit(CalibrationCallback(MASK), train=DataLoader(augmented, 16, sampler=Shuffling(range(60))))
    callback = CalibrationCallback(MASK, calibration_loader=loader(TRAIN))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "CalibrationCallback: the samples")
        _, module = fit(callback, train=loader(augmented))
    expected = finecal.estimate_gamma(MASK, train=logits_and_labels(module, TRAIN))
    assert callback.estimate.gamma == pytest.approx(expected.gamma, abs=1e-3)
    assert callback.estimate.acc_seen_at_gamma == pytest.approx(expected.acc_seen_at_gamma)
    assert "training" in callback.estimate.data
    held_out = CalibrationCallback(MASK, calibration_loader=loader(samples(30, 3, seed=2)), data="val")
    fit(held_out, train=loader(augmented))
    assert "held-out" in held_out.estimate.data


def test_batches_of_another_form(fit):
    class Numbered(TensorDataset):
        def __getitem__(self, index):
            return index, super().__getitem__(index)

    module = make_module()
    step = module.training_step
    module.training_step = lambda batch, batch_idx: step(batch[1], batch_idx)
    callback = CalibrationCallback(MASK, batch=lambda b: b[1])
    fit(callback, module=module, train=loader(Numbered(*TRAIN.tensors)), validation=loader(Numbered(*TEST.tensors)))
    expected = finecal.estimate_gamma(MASK, train=logits_and_labels(module, TRAIN))
    assert callback.estimate.gamma == pytest.approx(expected.gamma, abs=1e-3)


def test_outputs_of_another_form(fit):
    callback = CalibrationCallback(MASK, output="main", fold=True)
    module = make_module()
    forward = module.forward
    module.forward = lambda x: {"main": forward(x), "aux": x}
    module.training_step = lambda batch, batch_idx: F.cross_entropy(module(batch[0])["main"], batch[1])
    fit(callback, module=module)
    module.forward = forward
    finecal.unfold_from_head(module, callback.calibrator)
    expected = finecal.estimate_gamma(MASK, train=logits_and_labels(module, TRAIN))
    assert callback.estimate.gamma == pytest.approx(expected.gamma, abs=1e-3)


def test_several_validation_sets(fit):
    trainer, _ = fit(CalibrationCallback(MASK), validation=[loader(TEST), loader(samples(12, 3))])
    assert "val_0_acc_absent_calibrated" in trainer.callback_metrics
    assert "val_1_acc_seen" in trainer.callback_metrics
    assert "val_1_acc_absent" not in trainer.callback_metrics
    trainer, _ = fit(CalibrationCallback(MASK), validation={"a": loader(TEST)})
    assert "val_a_acc_absent" in trainer.callback_metrics


def test_validation_data_give_gamma_by_their_seen_samples(fit):
    callback = CalibrationCallback(MASK, data="val", estimator=finecal.estimators.max_logit_gap)
    _, module = fit(callback)
    logits, labels = logits_and_labels(module, TEST)
    expected = finecal.estimators.max_logit_gap(logits[MASK[labels]], labels[MASK[labels]], MASK)
    assert (callback.estimate.gamma, callback.estimate.n) == (pytest.approx(expected.gamma, abs=1e-4), 24)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TRAIN)


@pytest.mark.parametrize(("dataset", "n"), [(TRAIN, 20), (Stream(), 32)], ids=["tensors", "stream"])
def test_max_samples(fit, dataset, n):
    callback = CalibrationCallback(MASK, max_samples=20, estimator=finecal.estimators.max_logit_gap)
    fit(callback, train=loader(dataset), validation=None)
    assert callback.estimate.n == n
    assert callback.accuracies == {}


def test_training_survives_an_early_module_without_gamma(fit):
    def estimator(logits, labels, seen_mask):
        raise ValueError("too early")

    callback = CalibrationCallback(MASK, estimator=estimator, every_validation=True)
    with (
        pytest.warns(finecal.FinecalWarning, match="gamma is not estimated at step 4: too early"),
        pytest.raises(ValueError, match=r"^too early$"),
    ):
        fit(callback)


def test_wrong_arguments(fit):
    for options, message in [
        ({"data": "eval"}, "data is 'eval'"),
        ({"max_samples": 0}, "max_samples is 0"),
        ({"fold": True, "save_to": "x.safetensors"}, "fold and save_to are both given"),
    ]:
        with pytest.raises(ValueError, match=message):
            CalibrationCallback(MASK, **options)
    with pytest.raises(ValueError, match="not one torch DataLoader"):
        fit(CalibrationCallback(MASK, data="val"), validation=None)
    with pytest.raises(RuntimeError, match="train first"):
        _ = CalibrationCallback(MASK).calibrator


@pytest.mark.parametrize("estimator", ["max_logit_gap", 3.0, finecal.GammaEstimate])
def test_what_is_no_estimator(estimator):
    with pytest.raises(TypeError, match=r"^estimator is .*; pass a function of \(logits, labels, seen_mask\)"):
        CalibrationCallback(MASK, estimator=estimator)


@pytest.mark.parametrize("result", [None, 1.5])
def test_an_estimator_that_returns_no_estimate(fit, result):
    with pytest.raises(TypeError, match=f"^estimator returned {result}; it must return a GammaEstimate"):
        fit(CalibrationCallback(MASK, estimator=lambda *samples: result))


@pytest.mark.parametrize("fold", [False, True])
def test_calibration_samples_without_labels_are_refused_before_training(fit, fold):
    module = make_module()
    before = module.body.weight.clone()
    for batches in (DataLoader(TensorDataset(TRAIN.tensors[0]), 16), DataLoader(TRAIN.tensors[0], 16)):
        with pytest.raises(ValueError, match="^calibration_loader has no labels; its batches must be"):
            fit(CalibrationCallback(MASK, calibration_loader=batches, fold=fold), module=module)
    with pytest.raises(ValueError, match="^the loader of val has no labels"):
        fit(CalibrationCallback(MASK, data="val"), module=module, validation=DataLoader(TRAIN.tensors[0], 16))
    with pytest.raises(ValueError, match="^calibration_loader gave no batch"):
        fit(CalibrationCallback(MASK, calibration_loader=DataLoader(TRAIN, 100, drop_last=True)), module=module)
    assert torch.equal(module.body.weight, before)


def test_validation_samples_without_labels(fit):
    with pytest.raises(ValueError, match="^the loader of val_1 has no labels"):
        fit(CalibrationCallback(MASK), validation=[loader(TEST), DataLoader(TRAIN.tensors[0], 16)])


def test_unfit_modules_are_refused_before_training(fit):
    folded = finecal.fold_into_head(make_module(), finecal.AdditiveBias(MASK, 1.0))
    with pytest.raises(ValueError, match="folded"):
        fit(CalibrationCallback(MASK), module=folded)
    with pytest.raises(ValueError, match="bias"):
        fit(CalibrationCallback(MASK, fold=True), module=make_module(bias=False))


def followed(module):
    """Scale the logits after the head."""
    plain = module.forward
    module.forward = lambda x: 2 * plain(x)
    return module


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_fold_that_would_not_calibrate_is_refused_before_training(fit, by_hand):
    module = followed(make_module())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    callback = CalibrationCallback(MASK, fold=module.head if by_hand else True)
    with pytest.raises(ValueError, match="the logits gain 2 times what is added to the bias"):
        fit(callback, module=module)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_training_is_the_same_where_the_fold_is_checked(fit):
    _, plain = fit()
    callback = CalibrationCallback(MASK, fold=True)
    _, folded = fit(callback)
    finecal.unfold_from_head(folded, callback.calibrator)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(folded.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_second_layer_with_a_row_per_class_is_no_obstacle_to_a_checked_fold(fit):
    module = make_module()
    module.auxiliary = torch.nn.Conv1d(12, 6, 1)
    fit(CalibrationCallback(MASK, fold=True), module=module)
    assert hasattr(module.head, "finecal_folded")
