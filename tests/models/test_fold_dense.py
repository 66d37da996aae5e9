"""Folding into heads of dense models, which are convolutions, and into the class heads of detectors."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import finecal
from finecal._models.fold import is_folded
from foldable_models import BIAS, MASK, C, Detector, Interpolated, Summed, UNet


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


PICTURES = torch.randn(2, 3, 8, 10, generator=torch.Generator().manual_seed(2))
MODES = ["nearest", "nearest-exact", "bilinear", "bicubic", "area"]


def pooled():
    return nn.Sequential(nn.Conv2d(3, C, 3), nn.Dropout2d(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


DENSE = {
    "1 x 1": (UNet, PICTURES, 1),
    "3 x 3, padded, in groups": (lambda: UNet(nn.Conv2d(16, C, 3, padding=2, groups=2)), PICTURES, 1),
    "with a stride": (lambda: UNet(nn.Conv2d(16, C, 2, stride=2)), PICTURES, -3),
    "transposed": (lambda: UNet(nn.ConvTranspose2d(16, C, 3, stride=2, output_padding=1)), PICTURES, 1),
    "in a Sequential": (lambda: nn.Sequential(UNet(nn.Conv2d(16, 5, 1)), nn.Conv2d(5, C, 1)), PICTURES, 1),
    "upsampled": (lambda: nn.Sequential(UNet(), nn.Upsample(scale_factor=2, mode="bilinear")), PICTURES, 1),
    "a sum of two": (Summed, PICTURES, 1),
    "averaged over positions": (pooled, PICTURES, -1),
    "the layer itself": (lambda: nn.Conv2d(3, C, 3), PICTURES, 1),
    "of one picture": (lambda: nn.Conv2d(3, C, 3), PICTURES[0], 0),
    "sequences": (lambda: nn.Sequential(nn.Conv1d(3, C, 3)), PICTURES[:, :, 0], -2),
    "volumes": (lambda: nn.Sequential(nn.Conv3d(3, C, 2)), PICTURES.unsqueeze(2).expand(2, 3, 4, 8, 10), 1),
    **{mode: (lambda mode=mode: Interpolated(mode), PICTURES, 1) for mode in MODES},
}


def logits_of(output):
    return output["out"] if isinstance(output, dict) else output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("kind", DENSE)
def test_each_position_gains_gamma(kind, dtype, device):
    make, x, dim = DENSE[kind]
    torch.manual_seed(0)
    model, x = make().to(device, dtype).eval().requires_grad_(False), x.to(device, dtype)
    twin = copy.deepcopy(model)
    before = model(x)
    shape = [1] * logits_of(before).ndim
    shape[dim] = C
    expected = logits_of(before).double() + (1.7 * ~MASK).double().to(device).reshape(shape)
    calibrator = finecal.AdditiveBias(MASK, 1.7, dim=dim).to(device)
    finecal.fold_into_head(model, calibrator, inputs=(x,))
    tolerance = 12 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(logits_of(model(x)).double(), expected, rtol=0, atol=tolerance)
    if isinstance(before, dict):
        assert torch.equal(model(x)["aux"], before["aux"])
    finecal.fold_into_head(twin, calibrator)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="folded into the model's head already"):
        finecal.CalibratedModel(twin, calibrator)
    finecal.unfold_from_head(model, calibrator)
    torch.testing.assert_close(logits_of(model(x)), logits_of(before), rtol=0, atol=tolerance)


class Doubled(Interpolated):
    def forward(self, x):
        return {"out": 2 * super().forward(x)["out"]}


class Padded(UNet):
    def forward(self, x):
        return F.pad(super().forward(x), (1, 1, 1, 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Doubled, "gain 2 times what is added to the bias, so something follows the layer"),
        (Padded, "miss what is added to the bias by up to"),
    ],
)
def test_what_follows_a_convolution_is_seen(make, message):
    model, calibrator = make().eval(), finecal.AdditiveBias(MASK, 1.7, dim=1)
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        finecal.fold_into_head(model, calibrator, inputs=PICTURES)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_activations_after_a_convolution_are_refused(calibrator):
    with pytest.raises(ValueError, match=r"the model ends in ReLU\(\), not in a linear layer or convolution"):
        finecal.fold_into_head(nn.Sequential(UNet(), nn.ReLU()), calibrator)


def test_the_proof_looks_for_the_classes_where_the_calibrator_does():
    state = copy.deepcopy(UNet().state_dict())
    for dim, found in ((-1, 1), (2, 1), (0, 1), (4, 1), (-5, 1)):
        with pytest.raises(ValueError, match=rf"shape \(2, 6, 8, 10\), .* along dim {dim}: make it with dim={found}"):
            finecal.fold_into_head(UNet(), finecal.AdditiveBias(MASK, 1.7, dim=dim), inputs=PICTURES)
    model = UNet().eval()
    model.load_state_dict(state)
    finecal.fold_into_head(model, finecal.AdditiveBias(MASK, 1.7))  # nothing is run, and the bias has one dimension
    torch.testing.assert_close(model.out.bias, state["out.bias"] + 1.7 * ~MASK)
    mixed = nn.Sequential(finecal.AdditiveBias(MASK, 1.7, dim=1), nn.Sequential(finecal.calibrators.ClassBias(BIAS)))
    with pytest.raises(ValueError, match=r"the parts of calibrator have the classes along dim \[-1, 1\]; give all the"):
        finecal.fold_into_head(UNet(), mixed)
    same = nn.Sequential(
        finecal.AdditiveBias(MASK, 1.7, dim=1), nn.Sequential(finecal.calibrators.ClassBias(BIAS, dim=1))
    )
    finecal.fold_into_head(UNet(), same, inputs=PICTURES)


def test_a_convolution_without_inputs_has_to_be_the_only_one_of_its_size(calibrator):
    last = nn.Sequential(nn.Conv2d(16, C, 1), nn.Conv2d(C, C, 1))
    finecal.fold_into_head(UNet(last), calibrator)
    model = UNet()
    model.above = nn.Sequential(model.above, nn.Conv2d(16, C, 1), nn.ReLU())
    with pytest.raises(ValueError, match="the head out has a row of weights for each of 6 classes, and so has above.1"):
        finecal.fold_into_head(model, calibrator)
    finecal.fold_into_head(Interpolated(), calibrator)  # the auxiliary head has the same size
    nested = nn.Module()
    nested.model = Interpolated()
    finecal.fold_into_head(nested, calibrator)


def test_a_folded_dense_model_is_compiled_and_exported(calibrator):
    model = UNet().eval()
    finecal.fold_into_head(model, calibrator)
    expected = model(PICTURES)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(PICTURES), expected)
    torch.testing.assert_close(torch.export.export(model, (PICTURES,)).module()(PICTURES), expected)


def test_a_dense_model_is_not_folded_twice(calibrator):
    model = finecal.fold_into_head(UNet(), calibrator)
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.out):
        with pytest.raises(ValueError, match="already"):
            finecal.fold_into_head(twin, finecal.AdditiveBias(MASK, 1.0, dim=1))
    again = UNet()
    again.load_state_dict(model.state_dict())
    with pytest.warns(finecal.FinecalWarning, match="folded before"):
        finecal.fold_into_head(again, calibrator)


def test_prototypes_cannot_go_into_a_convolution():
    with pytest.raises(ValueError, match=r"the head out is of type Conv2d; prototypes can be folded into an nn.Linear"):
        finecal.fold_into_head(UNet(), finecal.calibrators.Prototypes(MASK, 1.7, torch.zeros(C, 16), torch.zeros(16)))


# --- class heads of detectors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("anchors", [(1,), (3,), (4, 6, 1)])
@pytest.mark.parametrize("passed", ["detector", "layers"])
def test_each_box_gains_gamma(anchors, passed, calibrator, dtype):
    torch.manual_seed(0)
    detector, x = Detector(*anchors).eval().to(dtype).requires_grad_(False), PICTURES.to(dtype)
    layers = detector.head.classification_head.module_list
    before = detector.scores(x)
    features = detector.backbone(x)
    expected = before.double() + (1.7 * ~MASK).double()
    if passed == "detector":
        assert finecal.fold_into_head(detector, calibrator) is detector
        assert is_folded(detector)
    for layer in layers if passed == "layers" else ():
        finecal.fold_into_head(layer, finecal.AdditiveBias(MASK, 1.7, dim=1), inputs=features)
    tolerance = 8 * torch.finfo(dtype).eps * float(expected.abs().max())
    torch.testing.assert_close(detector.scores(x).double(), expected, rtol=0, atol=tolerance)
    for folded in (detector, *layers):
        with pytest.raises(ValueError, match="already"):
            finecal.fold_into_head(folded, calibrator)
    finecal.unfold_from_head(detector, calibrator)
    assert not is_folded(detector)
    torch.testing.assert_close(detector.scores(x), before, rtol=0, atol=tolerance)


def test_the_look_of_the_biases_of_several_boxes(calibrator):
    folded, again = finecal.fold_into_head(Detector(3, 2), calibrator), Detector(3, 2)
    again.load_state_dict(folded.state_dict())
    with pytest.warns(finecal.FinecalWarning, match="module_list.0 and .*module_list.1 looks as if .* folded before"):
        finecal.fold_into_head(again, calibrator)


def test_boxes_prove_nothing(calibrator):
    detector = Detector(3).eval()
    state = copy.deepcopy(detector.state_dict())
    with pytest.raises(
        TypeError, match=r"^the model returned a list of \['dict', 'dict'\], .* no logits; .* without inputs"
    ):
        finecal.fold_into_head(detector, calibrator, inputs=PICTURES)
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())


def test_other_numbers_of_outputs_are_refused(calibrator):
    for layer, outputs in (
        (nn.Conv2d(8, 3 * (C + 5), 1), 33),  # a box, whether there is one, and the classes, in turns
        (nn.Conv2d(8, 3, 1), 3),
        (nn.Linear(8, 2 * C), 12),  # as what gives four coordinates for each class
    ):
        message = f"the head the model itself has {outputs} outputs, the calibrator is for 6 classes"
        with pytest.raises(ValueError, match=message):
            finecal.fold_into_head(layer, calibrator)
    with pytest.raises(ValueError, match="the head out has 12 outputs, the calibrator is for 6 classes"):
        finecal.fold_into_head(UNet(nn.Conv2d(16, 2 * C, 1)), calibrator)  # classes, unless the layer is passed


def test_classes_lost_in_a_dtype_are_named_of_several_boxes():
    layer = nn.Conv2d(4, 6, 1).half()
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 3000.0]))
    with pytest.warns(finecal.FinecalWarning, match=r"in float16 that of class 2 changes by 0 in place of 0.75"):
        finecal.fold_into_head(layer, finecal.AdditiveBias([True, True, False], 0.75))
