"""What the tables of common mistakes say that happens, happens."""

import copy
import warnings

import pytest
import torch

import finecal


def estimate_of(model, loader, is_held_out=False):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        calibrated = finecal.calibrate_model(model, loader, is_held_out=is_held_out, verbose=False)
    return calibrated.calibrator.estimate


def gamma_of(model, loader):
    return estimate_of(model, loader).gamma


def test_weights_with_gamma_in_them(rng):
    """Of ten classes: with five, mixed pairs prefer the seen ones by as much as where there is a gap."""
    model, labels = torch.nn.Linear(10, 10), torch.tensor(rng.integers(5, size=300))
    with torch.no_grad():
        model.weight.copy_(torch.eye(10))
        model.bias.copy_(3.0 * (torch.arange(10) < 5))
    loader = [(torch.tensor(rng.normal(size=(300, 10)), dtype=torch.float32) + 3 * torch.eye(10)[labels], labels)]
    calibrated = finecal.calibrate_model(model, loader, is_held_out=False, verbose=False)
    assert 2.5 < calibrated.calibrator.estimate.gamma < 4
    finecal.fold_into_head(model, calibrated.calibrator)
    loaded = torch.nn.Linear(10, 10)
    loaded.load_state_dict(model.state_dict())
    with pytest.warns(finecal.FinecalWarning, match="no gap is seen"):
        again = finecal.calibrate_model(loaded, loader, is_held_out=False, verbose=False)
    assert again.calibrator.estimate.gamma == 0


def test_weights_from_before_under_a_record_of_folding(names):
    model, loader = names["model"], names["train_loader"]
    before = copy.deepcopy(model.state_dict())
    calibrated = finecal.calibrate_model(model, loader, is_held_out=False, verbose=False)
    gamma = calibrated.calibrator.estimate.gamma
    finecal.fold_into_head(model, calibrated.calibrator)
    model.load_state_dict(before)
    with pytest.raises(ValueError, match="folded into the model's head already"):
        gamma_of(model, loader)
    unfolded = finecal.unfold_from_head(copy.deepcopy(model), calibrated.calibrator)
    assert gamma_of(unfolded, loader) == pytest.approx(2 * gamma, rel=0.1)
    del model.finecal_folded
    assert gamma_of(model, loader) == pytest.approx(gamma)


def test_memorised_samples_that_are_called_held_out():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(10, 40, generator=generator)

    def samples(n, num_classes, shift):
        labels = torch.arange(n) % num_classes
        return centres[labels] + shift + 2 * torch.randn(n, 40, generator=generator), labels

    model = torch.nn.Linear(40, 10)
    for inputs, labels, steps in ((*samples(400, 10, 0.0), 100), (*samples(60, 5, 1.0), 300)):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    with torch.no_grad():
        assert model(inputs).argmax(1).equal(labels)
    told_right, told_wrong = (estimate_of(model, [(inputs, labels)], held_out) for held_out in (False, True))
    assert told_wrong.gamma == pytest.approx(told_right.gamma, rel=0.1)
    assert told_wrong.acc_seen_at_gamma == told_wrong.acc_seen_at_zero == 1
    assert "training" in told_right.data
    assert "held-out" in told_wrong.data
    new_inputs, new_labels = samples(1000, 5, 1.0)
    with torch.no_grad():
        report = finecal.evaluate(model(new_inputs), new_labels, torch.arange(10) < 5, told_wrong)
    assert report.acc_seen < report.acc_seen_within - 0.05
