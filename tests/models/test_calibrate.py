import re
import sys
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import finecal

MASK = torch.tensor([True, True, True, False, False])


class Boosted(nn.Module):
    """Ten features, five classes, of which the first three score higher by 3, as fine-tuning does it."""

    def __init__(self, probabilities=False):
        super().__init__()
        self.head = nn.Linear(10, 5)
        self.probabilities = probabilities
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(5, 10))
            self.head.bias.copy_(3.0 * MASK)

    def forward(self, x):
        logits = self.head(x)
        return logits.softmax(1) if self.probabilities else logits


@pytest.fixture
def model(device):
    return Boosted().to(device)


def samples(n, classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return TensorDataset(3 * torch.eye(5, 10)[labels] + torch.randn(n, 10, generator=generator), labels)


def loader(n=300, classes=3, seed=0):
    return DataLoader(samples(n, classes, seed), 64)


@pytest.mark.parametrize("is_held_out", [False, True])
def test_equals_its_parts(model, is_held_out):
    calibrated = finecal.calibrate_model(model, loader(), is_held_out=is_held_out, seen_mask=MASK, n_bootstrap=10)
    samples = finecal.collect_logits(model, loader(), progress=False)
    data = {"held_out" if is_held_out else "train": samples}
    estimate = finecal.estimate_gamma(MASK, **data, n_bootstrap=10)
    assert calibrated.calibrator.estimate == estimate
    assert ("held-out" if is_held_out else "training") in estimate.data
    assert calibrated.model is model
    x = torch.randn(7, 10, device=calibrated.calibrator.gamma.device)
    assert torch.equal(calibrated(x), finecal.calibrate_logits(model(x), MASK, estimate))


def test_brings_the_absent_classes_back(model):
    calibrated = finecal.calibrate_model(model, loader(), is_held_out=True, verbose=False)
    test = finecal.collect_logits(model, loader(1000, 5, seed=1), progress=False)
    before, after = (finecal.evaluate(test, MASK, gamma) for gamma in (0.0, calibrated.calibrator.estimate))
    assert before.acc_absent < 0.5 < 0.8 < after.acc_absent
    assert after.acc_all > before.acc_all + 0.1


def test_without_a_mask_takes_the_classes_that_occur(model):
    calibrated = finecal.calibrate_model(model, loader(), is_held_out=True, verbose=False)
    assert calibrated.calibrator.seen_mask.tolist() == MASK.tolist()


def test_without_a_mask_refuses_samples_that_may_lack_classes(model):
    dataset = samples(300, 2)
    inputs = torch.cat([dataset.tensors[0], torch.ones(1, 10)])
    labels = torch.cat([dataset.tensors[1], torch.tensor([2])])
    with pytest.raises(ValueError) as error:  # noqa: PT011
        finecal.calibrate_model(model, [(inputs, labels)], is_held_out=True, verbose=False)
    assert str(error.value) == (
        "labels have a single sample of 1 of the 3 classes that occur, so about 0.33 % of the data (Good-Turing "
        "estimate) are of seen classes missing from this sample, which would be taken for absent: name the seen "
        "classes explicitly"
    )
    finecal.calibrate_model(model, [(inputs, labels)], is_held_out=True, seen_mask=MASK, verbose=False)


def test_unlabelled_samples_tell_the_share(model):
    test = samples(400, 5, seed=1)
    named = [(x, ["file.jpg"] * len(x)) for x in test.tensors[0].split(64)]  # whatever is in the place of labels
    calibrated = finecal.calibrate_model(model, loader(), is_held_out=True, unlabelled_loader=named, verbose=False)
    unlabelled = finecal.collect_logits(model, [test.tensors[0]], progress=False)
    held_out = finecal.collect_logits(model, loader(), progress=False)
    assert calibrated.calibrator.estimate.data.startswith("400 unlabelled samples, ")
    expected = finecal.estimate_gamma(MASK, held_out=held_out, unlabelled=unlabelled)
    assert calibrated.calibrator.estimate.gamma == pytest.approx(expected.gamma, rel=1e-5)


@pytest.mark.parametrize("is_held_out", [False, True])
def test_takes_a_known_share(model, is_held_out):
    keywords = {"is_held_out": is_held_out, "seen_share": 0.6, "verbose": False}
    calibrated = finecal.calibrate_model(model, loader(), unlabelled_loader=loader(400, 5, 1), **keywords)
    assert calibrated.calibrator.estimate.data.startswith("400 unlabelled samples and 300 ")
    alone = finecal.calibrate_model(model, loader(), **keywords).calibrator
    assert alone.estimate.gamma != calibrated.calibrator.estimate.gamma
    for method in (calibrated.calibrator.method, alone.method):
        assert method.startswith("estimate_gamma(")
        assert "residual_gap" in method
        assert method.endswith(", seen_share=0.6)")


@pytest.mark.parametrize("is_held_out", [False, True])
def test_says_what_it_did_and_what_to_expect(model, is_held_out, capsys, monkeypatch):
    finecal.calibrate_model(model, loader(), is_held_out=is_held_out)
    said = capsys.readouterr()
    words = "held-out" if is_held_out else "training"
    samples = "the held-out samples" if is_held_out else "these samples (training samples, so optimistic)"
    cost = (
        ""
        if is_held_out
        else "Training samples cannot show the true cost: held-out samples would, with is_held_out=True. "
    )
    beside = "" if is_held_out else " beside held-out ones"
    pattern = (
        rf"gamma = [\d.]+  \(estimate_gamma\(.*_gap, seen_share=0.6\); from 300 labelled {words} samples "
        r"\(seen classes\)\)\n"
        rf"Cost: accuracy on seen classes falls from [\d.]+ % to [\d.]+ % on {re.escape(samples)}\n"
        r"Pays if more than [\d.]+ % of the samples are of absent classes\n"
        rf"3 seen, 2 absent classes\n{cost}Seen samples cannot show what gamma brings back, .*, with "
        rf"unlabelled_loader={beside}\.\n"
    )
    assert re.search(pattern + r"\Z", said.err)
    assert "collect_logits: 100%" in said.err
    assert said.out == ""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tqdm", None)
        finecal.calibrate_model(model, loader(), is_held_out=is_held_out)
    assert re.search(r"\A" + pattern + r"\Z", capsys.readouterr().err)
    finecal.calibrate_model(model, loader(), is_held_out=is_held_out, verbose=False)
    assert capsys.readouterr().err == ""


def test_warnings_are_issued_once_and_kept(model, capsys):
    with torch.no_grad():
        model.head.bias.copy_(-1.0 * MASK)
    with pytest.warns(finecal.FinecalWarning) as record:
        calibrated = finecal.calibrate_model(model, loader(), is_held_out=True)
    assert len(record) == len(calibrated.calibrator.estimate.warnings) > 0
    assert "warning:" not in capsys.readouterr().err


@pytest.mark.parametrize("training", [False, True])
def test_the_calibrated_model_is_in_the_mode_of_the_model(model, training):
    calibrated = finecal.calibrate_model(model.train(training), loader(), is_held_out=True, verbose=False)
    assert all(module.training is training for module in calibrated.modules() if module is not calibrated.calibrator)


def untouchable():
    raise AssertionError("the model was run for nothing")
    yield


X, Y = samples(12, 3).tensors
WRONG = {
    "loader for bool": ({"is_held_out": [(X, Y)]}, TypeError, "is_held_out is a list; pass True if the model was not"),
    "unusable": ({"is_held_out": False, "unlabelled_loader": [X]}, ValueError, "unlabelled_loader needs samples that"),
    "indices": ({"seen_mask": [0, 1, 2]}, TypeError, "for class indices use seen_mask_from_indices"),
    "all seen": ({"seen_mask": [True] * 5}, ValueError, "no absent class: all 5 are seen"),
    "calibrated": (
        {"model": finecal.CalibratedModel(Boosted(), finecal.AdditiveBias(MASK, 1.0))},
        ValueError,
        "model is calibrated already",
    ),
    "no module": ({"model": torch.relu}, TypeError, "model is a builtin_function_or_method; pass the torch.nn.Module"),
}


@pytest.mark.parametrize(("given", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_beforehand_costs_no_pass(given, error, message):
    arguments = {"model": Boosted(), "is_held_out": True, "verbose": False} | given
    with pytest.raises(error, match=message):
        finecal.calibrate_model(arguments.pop("model"), untouchable(), **arguments)


def after_one(batch):
    yield batch
    untouchable().send(None)


FIRST = {
    "no labels": (X, {}, "seen_loader has no labels; its batches must be"),
    "other mask": ((X, Y), {"seen_mask": [True, False]}, "seen_mask has 2 entries for logits of 5 classes"),
    "other labels": ((X, Y + 5), {}, r"labels contain 7, outside \[0, 5\)"),
}


@pytest.mark.parametrize(("batch", "given", "message"), FIRST.values(), ids=FIRST)
def test_what_the_first_batch_tells_costs_no_more(batch, given, message):
    with pytest.raises(ValueError, match=message):
        finecal.calibrate_model(Boosted(), after_one(batch), is_held_out=True, verbose=False, **given)


LATER = {
    "absent samples": (Boosted(), (X, Y), {"seen_mask": [True, True, False, False, False]}, "labels contain absent"),
    "every class": (Boosted(), samples(20, 5).tensors, {}, "no absent class: all 5 are seen"),
    "one class": (Boosted(), (X, Y * 0), {}, "seen_mask has one seen class; estimate_gamma"),
    "probabilities": (Boosted(probabilities=True), (X, Y), {}, "logits look like probabilities"),
    "nan": (Boosted(), (X * float("nan"), Y), {}, "logits contain NaN"),
}


@pytest.mark.parametrize(("model", "batch", "given", "message"), LATER.values(), ids=LATER)
def test_wrong_data_are_refused(model, batch, given, message):
    with pytest.raises(ValueError, match=message):
        finecal.calibrate_model(model, [batch], is_held_out=True, verbose=False, **given)


def test_labels_that_look_reindexed_are_warned_of():
    scattered = torch.tensor([False, True, False, True, True])
    with pytest.warns(finecal.FinecalWarning, match="look re-indexed"), pytest.raises(ValueError, match="absent class"):
        finecal.calibrate_model(Boosted(), [(X, Y)], is_held_out=True, seen_mask=scattered, verbose=False)


def test_held_out_must_be_said():
    with pytest.raises(TypeError, match="is_held_out"):
        finecal.calibrate_model(Boosted(), [(X, Y)])


# --- fold -------------------------------------------------------------------------------------------------------------


def test_fold_returns_the_model_itself_with_gamma_in_its_head(model):
    calibrated = finecal.calibrate_model(model, loader(), is_held_out=True, verbose=False)
    x = torch.randn(7, 10, device=calibrated.calibrator.gamma.device)
    before, expected, estimate = model(x), calibrated(x), calibrated.calibrator.estimate
    assert calibrated.train().fold(X.to(x.device)) is model
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model(x), expected)
    with pytest.raises(ValueError, match="a calibrator was folded into the model's head after this CalibratedModel"):
        calibrated(x)
    with pytest.raises(ValueError, match="is folded into the head head already"):
        calibrated.fold(X.to(x.device))
    record = model.head.finecal_folded["estimate"]
    assert finecal.GammaEstimate(**{**record, "warnings": tuple(record["warnings"])}) == estimate
    finecal.unfold_from_head(model, finecal.AdditiveBias(calibrated.calibrator.seen_mask, estimate))
    torch.testing.assert_close(model(x), before)
    assert torch.equal(calibrated(x), calibrated.calibrator(model(x)))


class Negated(Boosted):
    def forward(self, x):
        return -super().forward(-x)


def test_a_fold_that_does_not_calibrate_is_refused():
    model = Negated()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    calibrated = finecal.CalibratedModel(model, finecal.AdditiveBias(MASK, 1.0))
    with pytest.raises(ValueError, match="the logits gain -1 times what is added to the bias"):
        calibrated.fold(X)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert calibrated(X).shape == (12, 5)  # works without


def test_a_fold_is_checked_only_with_inputs():
    model = Negated()
    calibrated = finecal.CalibratedModel(model, finecal.AdditiveBias(MASK, 1.0))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'inputs'"):
        calibrated.fold()
    assert calibrated.fold(None) is model


@pytest.mark.parametrize("inputs", [(X,), {"x": X}])
def test_a_fold_calls_the_model_with_any_arguments(inputs):
    model = Boosted()
    finecal.CalibratedModel(model, finecal.AdditiveBias(MASK, 1.0)).fold(inputs)
    assert model.head.finecal_folded["num_classes"] == 5


def test_a_loader_that_gives_its_batches_once_can_be_calibrated_on():
    calibrated = finecal.calibrate_model(Boosted(), iter(loader()), is_held_out=True, verbose=False)
    again = finecal.calibrate_model(Boosted(), loader(), is_held_out=True, verbose=False)
    assert calibrated.calibrator.estimate == again.calibrator.estimate


def test_a_head_that_cannot_be_folded_into():
    model = Boosted()
    model.head.bias, model.save_pretrained = None, print
    calibrated = finecal.CalibratedModel(model, finecal.AdditiveBias(MASK, 1.0))
    with pytest.raises(ValueError, match="the head head has no bias"):
        calibrated.fold(X)
    assert calibrated(X).shape == (12, 5)


@pytest.mark.parametrize("calibrator", [finecal.Temperature(2.0), nn.Identity()])
def test_a_calibrator_that_cannot_be_folded(calibrator):
    with pytest.raises(ValueError, match="only AdditiveBias and ClassBias can be folded into a bias"):
        finecal.CalibratedModel(Boosted(), calibrator).fold(X)


# --- batches of another form ------------------------------------------------------------------------------------------


class TakesLabels(Boosted):
    def forward(self, x, y=None):
        return super().forward(x)


OTHER_BATCHES = {
    "arrays": (Boosted(), (X.numpy(), Y.numpy()), TypeError, "inputs of a batch are a NumPy array in place of tensors"),
    "y": (Boosted(), {"x": X, "y": Y}, TypeError, r"a dict with the keys \['x', 'y'\], which are passed to Boosted by"),
    "y, accepted": (
        TakesLabels(),
        {"x": X, "y": Y},
        ValueError,
        r"seen_loader has no labels; .* a batch is \{'x': float32 tensor .*, 'y': int64 tensor .*\}; say which",
    ),
}


@pytest.mark.parametrize(("model", "batch", "error", "message"), OTHER_BATCHES.values(), ids=OTHER_BATCHES)
def test_a_batch_of_another_form_is_described(model, batch, error, message):
    with pytest.raises(error, match=message):
        finecal.calibrate_model(model, [batch], is_held_out=True, seen_mask=MASK, verbose=False)


def test_folds_into_a_head_of_double_precision():
    model, batches = Boosted().double(), [(x.double(), y) for x, y in loader()]
    before = model.head.bias.detach().clone()
    calibrated = finecal.calibrate_model(model, batches, is_held_out=False, verbose=False)
    folded = calibrated.fold(batches[0][0])
    gamma = folded.head.finecal_folded["estimate"]["gamma"]
    torch.testing.assert_close(folded.head.bias.detach() - before, gamma * ~MASK, check_dtype=False)


# --- prototypes -------------------------------------------------------------------------------------------------------


class Counted(Boosted):
    """Its head takes other features than the model's inputs, and it counts how often it runs."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(2 * x - 1)


def by_hand(model, is_held_out, **known):
    seen = finecal.collect_logits(model, loader(), progress=False, with_features=True)
    met = finecal.collect_logits(model, loader(500, 5, 1), progress=False, with_features=True)
    data = {"held_out": seen} if is_held_out else {"train": seen}
    estimate = finecal.estimate_gamma(MASK, unlabelled=met, **data, **known)
    return finecal.calibrators.fit_prototypes(met, MASK, estimate, held_out=seen if is_held_out else None)


@pytest.mark.parametrize(
    ("is_held_out", "known"), [(True, {}), (True, {"seen_share": 0.6}), (False, {"seen_share": 0.6})]
)
def test_prototypes_equal_their_parts(is_held_out, known, device):
    model = Counted().to(device)
    keywords = {"unlabelled_loader": loader(500, 5, 1), "verbose": False, "with_prototypes": True, **known}
    calibrated = finecal.calibrate_model(model, loader(), is_held_out=is_held_out, **keywords)
    assert model.runs == len(loader()) + len(loader(500, 5, 1))  # logits and features in one pass
    found, expected = calibrated.calibrator, by_hand(model, is_held_out, **known)
    assert isinstance(found, finecal.calibrators.Prototypes)
    assert (found.method, found.estimate, found.report) == ("fit_prototypes", expected.estimate, expected.report)
    assert (found.report.acc_seen_within is not None) is is_held_out
    assert {buffer.device.type for buffer in calibrated.buffers()} == {device.type}
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name].cpu(), value)
    x = torch.randn(7, 10, device=device)
    assert torch.equal(calibrated(x), found(model(x), 2 * x - 1))
    assert not torch.equal(calibrated(x), finecal.calibrate_logits(model(x), MASK, found.estimate))


def test_without_prototypes_gamma_is_the_same():
    model = Counted()
    keywords = {"is_held_out": True, "unlabelled_loader": loader(500, 5, 1), "verbose": False}
    alone = finecal.calibrate_model(model, loader(), **keywords).calibrator
    both = finecal.calibrate_model(model, loader(), with_prototypes=True, **keywords).calibrator
    assert isinstance(alone, finecal.AdditiveBias)
    assert alone.estimate == both.estimate


@pytest.mark.parametrize("is_held_out", [True, False])
def test_prototypes_can_be_folded(is_held_out):
    keywords = {"is_held_out": is_held_out, "seen_share": 0.6, "verbose": False, "with_prototypes": True}
    model, twin = Counted(), Counted()
    calibrated = finecal.calibrate_model(twin, loader(), unlabelled_loader=loader(500, 5, 1), **keywords)
    other = finecal.calibrate_model(
        model.train(), iter(loader()), unlabelled_loader=iter(loader(500, 5, 1)), **keywords
    )
    assert other.fold(X) is model
    assert model.training
    assert not model.head._forward_pre_hooks
    x = torch.randn(7, 10)
    torch.testing.assert_close(model(x), calibrated(x), rtol=1e-4, atol=1e-4)
    weight = torch.eye(5, 10) + calibrated.calibrator.weight
    torch.testing.assert_close(model.head.weight.detach(), weight)
    assert model.head.finecal_folded["calibrator"].startswith("Prototypes(")
    assert model.head.finecal_folded["estimate"]["gamma"] == calibrated.calibrator.estimate.gamma
    assert not model.head._forward_pre_hooks_with_kwargs
    finecal.unfold_from_head(model, calibrated.calibrator)
    torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(other(x), calibrated(x), rtol=1e-4, atol=1e-4)  # records the features again


class OfItsWeight(Boosted):
    """Its bias is read, but its weight only through a function."""

    def forward(self, x):
        return torch.nn.functional.linear(x, self.head.weight.tanh(), self.head.bias) + 0 * self.head(x)


def test_prototypes_that_cannot_be_folded_leave_the_model_as_it_was():
    model = OfItsWeight()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    calibrated = finecal.calibrate_model(
        model,
        loader(),
        is_held_out=True,
        unlabelled_loader=loader(500, 5, 1),
        verbose=False,
        with_prototypes=True,
    )
    expected = calibrated(X)
    with pytest.raises(ValueError, match="the weight of the head does not act on the logits as the calibrator does"):
        calibrated.fold(X)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not hasattr(model.head, "finecal_folded")
    assert torch.equal(calibrated(X), expected)


def test_prototypes_say_what_they_did(capsys):
    calibrated = finecal.calibrate_model(
        Counted(), loader(), is_held_out=True, unlabelled_loader=loader(500, 5, 1), with_prototypes=True
    )
    said = capsys.readouterr().err
    assert str(calibrated.calibrator.report) in said
    assert "prototypes of 5 classes from 500 unlabelled samples" in said
    assert f"gamma = {calibrated.calibrator.estimate.gamma:.6g}" in said


def test_warnings_of_prototypes_are_issued_once_and_kept():
    with pytest.warns(finecal.FinecalWarning) as record:
        calibrated = finecal.calibrate_model(
            Counted(), loader(), is_held_out=False, seen_share=0.6, unlabelled_loader=loader(5, 5), verbose=False,
            with_prototypes=True,
        ).calibrator  # fmt: skip
    assert calibrated.report.warnings
    said = [f"fit_prototypes: {text}" for text in calibrated.report.warnings]
    assert [str(warning.message) for warning in record][-len(said) :] == said
    assert len(record) == len(said) + len(calibrated.estimate.warnings)


class TwiceOver(Boosted):
    def forward(self, x):
        return (self.head(x) + self.head(x)) / 2


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.head_dist = nn.Linear(10, 5), nn.Linear(10, 5)

    def forward(self, x):
        return (self.head(x) + self.head_dist(x)) / 2


WITHOUT_A_PASS = {
    "no samples": (
        Boosted(),
        {"with_prototypes": True},
        ValueError,
        "prototypes are made of unlabelled samples of what the",
    ),
    "no bool": (Boosted(), {"with_prototypes": 1}, TypeError, "with_prototypes is a int; pass True or False"),
    "none": (Boosted(), {"with_prototypes": None}, TypeError, "with_prototypes is a NoneType"),
    "two heads": (
        TwoHeads(),
        {"with_prototypes": True, "unlabelled_loader": [X]},
        ValueError,
        "the model averages the logits of head and head_dist",
    ),
    "no head": (
        nn.Flatten(),
        {"with_prototypes": True, "unlabelled_loader": [X]},
        ValueError,
        "no linear layer",
    ),
}


@pytest.mark.parametrize(("model", "given", "error", "message"), WITHOUT_A_PASS.values(), ids=WITHOUT_A_PASS)
def test_prototypes_that_are_impossible_cost_no_pass(model, given, error, message):
    with pytest.raises(error, match=message):
        finecal.calibrate_model(model, untouchable(), is_held_out=True, verbose=False, **given)


def test_a_head_without_one_row_of_features_is_found_at_the_first_batch():
    model = TwiceOver()
    with pytest.raises(ValueError, match="the final linear layer ran 2 times for one batch"):
        finecal.calibrate_model(
            model, after_one((X, Y)), is_held_out=True, seen_mask=MASK, unlabelled_loader=[X], verbose=False,
            with_prototypes=True,
        )  # fmt: skip
    assert not model.head._forward_pre_hooks


class Segments(nn.Module):
    """Pictures of ten channels, of which a 1 x 1 convolution makes logits of five classes and a background, class 0."""

    def __init__(self):
        super().__init__()
        self.classifier = nn.Conv2d(10, 6, 1)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.eye(6, 10)[..., None, None])
            self.classifier.bias.copy_(torch.tensor([3.0, 3.0, 3.0, 3.0, 0.0, 0.0]))

    def forward(self, pictures):
        return {"out": self.classifier(pictures)}


DENSE_MASK = torch.tensor([True, True, True, True, False, False])


def segmented(classes, n=20, seed=0):
    """Batches of pictures with labels, of which some are 255, and, as 0, background."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n, 6, 7), generator=generator)
    pictures = 3 * torch.eye(10)[labels].movedim(-1, 1) + torch.randn(n, 10, 6, 7, generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = 255
    return list(zip(pictures.split(8), labels.split(8), strict=True))


DENSE = finecal.Positions(1, ignore_index=255, per_item=15, class_balanced=True, background=0)


@pytest.mark.parametrize("is_held_out", [False, True])
@pytest.mark.parametrize("seen_mask", [None, DENSE_MASK])
def test_dense_equals_its_parts(is_held_out, seen_mask):
    model, batches = Segments(), segmented(4)
    options = {"seen_mask": seen_mask, "n_bootstrap": 10, "verbose": False, "positions": DENSE}
    calibrated = finecal.calibrate_model(model, batches, is_held_out=is_held_out, **options)
    samples = finecal.collect_logits(model, batches, positions=DENSE, progress=False)
    data = {"held_out" if is_held_out else "train": samples}
    estimate = finecal.estimate_gamma(DENSE_MASK[1:], **data, n_bootstrap=10)
    assert calibrated.calibrator.estimate == estimate
    assert "in 20 groups" in estimate.data
    assert torch.equal(calibrated.calibrator.seen_mask, DENSE_MASK)
    pictures = batches[0][0]
    expected = finecal.calibrate_logits(model(pictures)["out"], DENSE_MASK, estimate, dim=1)
    assert torch.equal(calibrated(pictures)["out"], expected)
    folded = calibrated.fold(pictures)
    assert folded is model
    assert torch.allclose(folded(pictures)["out"], expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("seen_mask", [None, DENSE_MASK])
def test_background_that_gamma_takes_for_absent_classes_is_told(seen_mask, dtype):
    options = {"is_held_out": False, "seen_mask": seen_mask, "verbose": False}
    safe, unsure, batches = Segments(), Segments(), segmented(4)
    unsure.classifier.bias.data += torch.tensor([0.0, 4.0, 4.0, 4.0, 0.0, 0.0])
    unsure.classifier.weight.data[1:4, 0] = -4.0  # no seen class is near where the background is
    for model, is_told in ((safe, False), (unsure, True)):
        model.to(dtype)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            calibrated = finecal.calibrate_model(model, batches, **options, positions=DENSE)
        mine = [str(each.message) for each in caught if "background" in str(each.message)]
        estimate = calibrated.calibrator.estimate
        kept = []
        for gamma in (0.0, estimate.gamma):
            right = 0
            for pictures, labels in batches:  # at most 20 positions of each picture are of class 0
                scores = model(pictures.to(dtype))["out"].detach().double()
                scores[:, 4:] += gamma
                right += int((scores.argmax(1) == 0)[labels == 0].sum())
            kept.append(100 * right / sum(int((labels == 0).sum()) for _, labels in batches))
        assert (kept[0] - kept[1] > 10) == is_told
        if is_told:
            (sentence,) = mine
            assert sentence.startswith("calibrate_model: positions of the background are taken for absent classes")
            assert f": {kept[0]:.1f} -> {kept[1]:.1f} % stay so; leave out background=" in sentence
        else:
            assert mine == []
        whole = replace(DENSE, background=None)
        other = finecal.calibrate_model(model, batches, **options, positions=whole)  # would raise a warning
        assert (other.calibrator.estimate.gamma < estimate.gamma) or not is_told
    samples = finecal.collect_logits(unsure, batches, positions=DENSE, progress=False)
    assert finecal.estimate_gamma(DENSE_MASK[1:], train=samples) == estimate  # what is watched changes no draw


def test_dense_with_unlabelled_pictures(capsys):
    model = Segments()
    unlabelled = [pictures for pictures, _ in segmented(6, seed=1)]
    given = {"is_held_out": True, "seen_mask": DENSE_MASK, "unlabelled_loader": unlabelled}
    with pytest.raises(ValueError, match="^background cannot be told from other positions without labels"):
        finecal.calibrate_model(model, segmented(4), **given, positions=DENSE)
    calibrated = finecal.calibrate_model(model, segmented(4), **given, positions=replace(DENSE, background=None))
    assert "unlabelled samples in 20 groups" in calibrated.calibrator.estimate.data
    assert "4 seen, 2 absent classes" in capsys.readouterr().err


def test_padding_of_unlabelled_sentences_does_not_count():
    generator = torch.Generator().manual_seed(0)
    held_out, tokens = torch.randn(2, 40, 6, 5, generator=generator) + 2 * MASK
    labels = torch.randint(3, (40, 6), generator=generator)
    held_out += torch.eye(5)[labels]
    padded = torch.cat([tokens, torch.full((40, 4, 5), -9.0) + 30 * ~MASK], 1)
    beside = torch.cat([torch.full((40, 6), 17), torch.full((40, 4), -100)], 1)
    given = {"is_held_out": True, "seen_mask": MASK, "positions": finecal.Positions(-1, ignore_index=-100)}

    def calibrated(batch):
        found = finecal.calibrate_model(
            nn.Identity(), [(held_out, labels)], unlabelled_loader=[batch], verbose=False, **given
        )
        return found.calibrator.estimate

    expected = calibrated(tokens)
    assert calibrated((padded, beside)) == expected
    assert calibrated((padded, beside.numpy())) == expected
    assert calibrated((tokens, torch.arange(40))) == expected  # of whole sentences
    assert calibrated(padded) != expected


def test_dense_needs_positions_and_rows_of_features_go_without():
    given = {"is_held_out": True, "verbose": False}
    with pytest.raises(
        ValueError, match=r"expected \(N, C\).*so do collect_logits and calibrate_model: positions=Positions\(1\)"
    ):
        finecal.calibrate_model(Segments(), segmented(4), **given)
    with pytest.raises(TypeError, match="^positions is a int; pass finecal.Positions"):
        finecal.calibrate_model(Segments(), untouchable(), **given, positions=1)
    with pytest.raises(ValueError, match="seen_mask has 6 entries.*dimension 1 of their shape.*use dim=1"):
        finecal.calibrate_model(
            Segments(), segmented(4), **given, seen_mask=DENSE_MASK, positions=finecal.Positions(-1)
        )
    with pytest.raises(ValueError, match="with_prototypes=True is for one row of features"):
        finecal.calibrate_model(
            Segments(), untouchable(), **given, positions=DENSE, unlabelled_loader=segmented(6), with_prototypes=True
        )
    with pytest.raises(ValueError, match="background contains class 5, which seen_mask says is absent"):
        finecal.calibrate_model(
            Segments(), untouchable(), **given, seen_mask=DENSE_MASK, positions=replace(DENSE, background=5)
        )
