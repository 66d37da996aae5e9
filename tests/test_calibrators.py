import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import finecal

MASK = torch.tensor([True, False, True, False, False])


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


def test_equals_calibrate_logits(device, dtype, calibrator):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    out = calibrator.to(device)(logits)
    assert out.dtype == dtype
    assert torch.equal(out, finecal.calibrate_logits(logits, MASK, float(calibrator.gamma)))


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 5)])
def test_any_batch(calibrator, shape):
    assert calibrator(torch.zeros(shape)).shape == shape


def test_gamma_is_kept_in_float32_by_every_cast(calibrator):
    gamma = calibrator.gamma.clone()
    for cast in (calibrator.half, calibrator.bfloat16, calibrator.double, calibrator.float):
        cast()
        assert calibrator.gamma.dtype == torch.float32
        assert torch.equal(calibrator.gamma, gamma)
    model = nn.Sequential(nn.Linear(3, 5), calibrator).to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    assert torch.equal(model[1].gamma, gamma)


def test_moves_through_the_meta_device(calibrator):
    empty = copy.deepcopy(calibrator).half().to("meta")
    assert empty.gamma.device.type == "meta"
    restored = empty.to_empty(device="cpu")
    restored.load_state_dict(calibrator.state_dict())
    assert torch.equal(restored.gamma, calibrator.gamma)


def test_state_dict_holds_tensors_only(calibrator):
    state = calibrator.state_dict()
    assert set(state) == {"seen_mask", "gamma"}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = finecal.AdditiveBias(~MASK, 0.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(torch.zeros(1, 5)), calibrator(torch.zeros(1, 5)))


def test_copies_do_not_share_memory(calibrator):
    twin = copy.deepcopy(calibrator)
    twin.gamma.fill_(0)
    assert calibrator.gamma == torch.tensor(1.7)
    mask, gamma = MASK.clone(), torch.tensor(1.0)
    own = finecal.AdditiveBias(mask, gamma)
    mask.fill_(False)
    gamma.fill_(9)
    assert own(torch.zeros(5)).tolist() == [0, 1, 0, 1, 1]


def test_pickles(calibrator):
    again = pickle.loads(pickle.dumps(calibrator))
    assert repr(again) == repr(calibrator)
    assert torch.equal(again(torch.zeros(5)), calibrator(torch.zeros(5)))


def test_repr_shows_gamma_method_and_class_counts(calibrator):
    assert repr(calibrator) == "AdditiveBias(gamma=1.7, seen=2, absent=3)"
    estimate = finecal.GammaEstimate(2.0, "by hand", "nothing", 0)
    calibrator = finecal.AdditiveBias(MASK.numpy(), estimate)
    assert calibrator.method == "by hand"
    assert repr(calibrator) == "AdditiveBias(gamma=2, method='by hand', seen=2, absent=3)"


def test_gradients_flow(calibrator):
    logits = torch.zeros(2, 5, requires_grad=True)
    calibrator(logits).sum().backward()
    assert torch.equal(logits.grad, torch.ones(2, 5))
    assert not list(calibrator.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_and_exports(calibrator, dtype):
    model = nn.Sequential(nn.Linear(3, 5), calibrator).to(dtype).eval()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = model(x)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert torch.equal(exported.module()(x), expected)
    assert torch.equal(exported.module()(x[:2]), model(x[:2]))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces(calibrator):
    traced = torch.jit.trace(calibrator, torch.zeros(2, 5))
    assert torch.equal(traced(torch.ones(3, 5)), calibrator(torch.ones(3, 5)))


def test_wrong_input(calibrator):
    with pytest.raises(ValueError, match="seen_mask has 5 entries for logits of 4 classes"):
        calibrator(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="logits has dtype int64"):
        calibrator(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="logits is a ndarray; pass a torch tensor"):
        calibrator(np.zeros((2, 5)))
    with pytest.raises(ValueError, match="gamma is 1e\\+39, which float32 cannot hold"):
        finecal.AdditiveBias(MASK, 1e39)


def test_gamma_is_float32_whatever_the_default_is():
    torch.set_default_dtype(torch.float64)
    try:
        assert finecal.AdditiveBias(MASK, 1.5).gamma.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_largest_float32_is_a_gamma():
    finecal.AdditiveBias(MASK, torch.finfo(torch.float32).max)


def test_casts_of_all_buffers_leave_the_mask_boolean(calibrator):
    calibrator.type(torch.float16)
    assert calibrator.seen_mask.dtype == torch.bool
    assert calibrator(torch.zeros(5)).tolist() == pytest.approx([0, 1.7, 0, 1.7, 1.7])


def test_prints_on_the_meta_device():
    calibrator = finecal.AdditiveBias(MASK, finecal.GammaEstimate(2.0, "by hand", "nothing", 0)).to("meta")
    assert repr(calibrator) == "AdditiveBias(gamma on the meta device, method='by hand', classes=5)"


def test_gamma_may_require_a_gradient():
    assert finecal.AdditiveBias(MASK, torch.tensor(1.5, requires_grad=True)).gamma == 1.5


def test_logits_elsewhere_are_an_error(calibrator):
    with pytest.raises(ValueError, match=r"calibrator is on cpu, logits on meta; move it: calibrator\.to\('meta'\)"):
        calibrator(torch.zeros(2, 5, device="meta"))
