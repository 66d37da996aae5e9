"""Lightning's Trainer on points around their class's corner; the seen classes are the first three of six."""

import lightning.pytorch as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

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


def test_several_validation_sets(fit):
    trainer, _ = fit(CalibrationCallback(MASK), validation=[loader(TEST), loader(samples(12, 3))])
    assert "val_0_acc_absent_calibrated" in trainer.callback_metrics
    assert "val_1_acc_seen" in trainer.callback_metrics
    assert "val_1_acc_absent" not in trainer.callback_metrics
    trainer, _ = fit(CalibrationCallback(MASK), validation={"a": loader(TEST)})
    assert "val_a_acc_absent" in trainer.callback_metrics


def test_validation_data_give_gamma_by_their_seen_samples(fit):
    callback = CalibrationCallback(MASK, data="val", estimator=finecal.max_logit_gap)
    _, module = fit(callback)
    logits, labels = logits_and_labels(module, TEST)
    expected = finecal.max_logit_gap(logits[MASK[labels]], labels[MASK[labels]], MASK)
    assert (callback.estimate.gamma, callback.estimate.n) == (pytest.approx(expected.gamma, abs=1e-4), 24)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(TRAIN)


@pytest.mark.parametrize(("dataset", "n"), [(TRAIN, 20), (Stream(), 32)], ids=["tensors", "stream"])
def test_max_samples(fit, dataset, n):
    callback = CalibrationCallback(MASK, max_samples=20, estimator=finecal.max_logit_gap)
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


def test_training_is_the_same_where_the_fold_is_proven(fit):
    _, plain = fit()
    callback = CalibrationCallback(MASK, fold=True)
    _, folded = fit(callback)
    finecal.unfold_from_head(folded, callback.calibrator)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(folded.state_dict()[name], value, rtol=0, atol=1e-6)


def test_a_second_layer_with_a_row_per_class_is_no_obstacle_to_a_proven_fold(fit):
    module = make_module()
    module.auxiliary = torch.nn.Conv1d(12, 6, 1)
    fit(CalibrationCallback(MASK, fold=True), module=module)
    assert hasattr(module.head, "finecal_folded")
