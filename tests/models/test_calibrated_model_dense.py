"""CalibratedModel around segmentation models, whose logits have a row of classes at each position."""

import copy
import pickle

import pytest
import torch

import finecal
from finecal import CalibratedModel
from foldable_models import MASK as SIX
from foldable_models import Detector, Interpolated, Summed, UNet

GAMMA = float(torch.tensor(1.7))
PICTURES = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(2))
SHIFT = (GAMMA * ~SIX).reshape(1, 6, 1, 1)


def dense(build):
    torch.manual_seed(0)
    return CalibratedModel(build().eval(), finecal.AdditiveBias(SIX, GAMMA, dim=1))


@pytest.mark.parametrize("build", [UNet, Summed, Interpolated])
@pytest.mark.parametrize("training", [False, True])
def test_each_position_is_calibrated(build, training, device):
    calibrated = dense(build).to(device).train(training)
    twin, x = copy.deepcopy(calibrated.model), PICTURES.to(device)
    plain, out = twin(x), calibrated(x)
    assert type(out) is type(plain)
    if isinstance(plain, dict):
        assert list(out) == ["out", "aux"]
        torch.testing.assert_close(out["aux"], plain["aux"])
        plain, out = plain["out"], out["out"]
    torch.testing.assert_close(out, plain + SHIFT.to(device))
    out.sum().backward()
    assert not any(parameter.grad is None for name, parameter in calibrated.named_parameters() if "aux" not in name)


def test_a_dense_model_compiles_exports_and_is_copied():
    calibrated = dense(Interpolated)
    expected = calibrated(PICTURES)
    other = dense(Interpolated)
    other.model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    other.load_state_dict(calibrated.state_dict())
    for twin in (
        torch.compile(calibrated, fullgraph=True, backend="aot_eager"),
        torch.export.export(calibrated, (PICTURES,)).module(),
        copy.deepcopy(calibrated),
        pickle.loads(pickle.dumps(calibrated)),
        other,
    ):
        out = twin(PICTURES)
        assert type(out) is type(expected)
        torch.testing.assert_close(out["out"], expected["out"])
        torch.testing.assert_close(out["aux"], expected["aux"])


def test_a_dense_model_is_not_calibrated_twice():
    calibrated = dense(Interpolated)
    finecal.fold_into_head(calibrated.model, calibrated.calibrator, inputs=PICTURES)
    with pytest.raises(ValueError, match="a calibrator was folded into the model's head after"):
        calibrated(PICTURES)
    finecal.unfold_from_head(calibrated.model, calibrated.calibrator)
    calibrated(PICTURES)


def test_a_forgotten_dim_is_named():
    calibrated = CalibratedModel(UNet(), finecal.AdditiveBias(SIX, GAMMA))
    with pytest.raises(ValueError, match=r"dimension 1 of their shape, \(2, 6, 8, 10\), fits: .* use dim=1"):
        calibrated(PICTURES)


@pytest.mark.parametrize("training", [False, True])
def test_a_detector_is_calibrated_in_its_head(training):
    calibrated = CalibratedModel(Detector(3).train(training), finecal.AdditiveBias(SIX, GAMMA))
    with pytest.raises(TypeError, match=r"a detector keeps them to itself, so fold the calibrator into the layer that"):
        calibrated(PICTURES)
    finecal.fold_into_head(calibrated.model.head.classification_head.module_list[0], calibrated.calibrator)
    with pytest.raises(ValueError, match="a calibrator was folded into the model's head after"):
        calibrated(PICTURES)


def test_features_of_a_convolution_are_refused():
    with pytest.raises(ValueError, match="the head out is of type Conv2d, whose inputs are no one row of features per"):
        CalibratedModel(UNet(), finecal.calibrators.Prototypes(SIX, GAMMA, torch.zeros(6, 16), torch.zeros(16)))
