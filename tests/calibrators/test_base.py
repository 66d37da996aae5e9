"""What all calibrators share."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from finecal.calibrators.base import Calibrator

MASK = torch.tensor([True, False, True, False, False])
VALUES = torch.tensor([1.0, 2.5, 0.3, 4.0, 0.7])
ARGUMENTS = {
    "AdditiveBias": (MASK, 1.7),
    "ClassBias": (VALUES,),
    "GroupTemperature": (MASK, 1.7, 0.3),
    "NormalizedLogits": (VALUES - 2, VALUES),
    "Temperature": (1.7,),
}
OTHER_MASK = torch.tensor([True, True, False, False, True])
OTHER_ARGUMENTS = {
    "AdditiveBias": (OTHER_MASK, 0.0),
    "ClassBias": (-VALUES,),
    "GroupTemperature": (OTHER_MASK, 1.0, 2.0),
    "NormalizedLogits": (VALUES, VALUES + 1),
    "Temperature": (1.0,),
}
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def make(name, arguments=ARGUMENTS):
    return getattr(finecal, name)(*arguments[name])


def describe(state):
    return {name: (value.dtype, value.tolist()) for name, value in state.items()}


@pytest.fixture(params=ARGUMENTS)
def any_calibrator(request):
    return make(request.param)


def test_all_calibrators_are_here():
    public = [getattr(finecal, name) for name in finecal.__all__]
    assert {kind.__name__ for kind in public if isinstance(kind, type) and issubclass(kind, Calibrator)} == set(
        ARGUMENTS
    )


def test_keeps_dtype_and_device(any_calibrator, device, dtype):
    out = any_calibrator.to(device)(LOGITS.to(device, dtype))
    assert out.dtype == dtype
    assert out.device.type == device.type


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 3, 5)])
def test_any_batch(any_calibrator, shape):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    out = any_calibrator(logits)
    assert out.shape == shape
    assert torch.equal(out.reshape(-1, 5), any_calibrator(logits.reshape(-1, 5)))


def test_nan_passes_and_masked_classes_stay_masked(any_calibrator):
    logits = LOGITS.clone()
    logits[0, 1], logits[1, 0], logits[2, 3:] = math.nan, -math.inf, -math.inf
    out = any_calibrator(logits)
    assert out[0, 1].isnan()
    assert torch.equal(out[1:] == -math.inf, logits[1:] == -math.inf)
    assert not out[1:].isnan().any()
    assert torch.equal(out[3], any_calibrator(LOGITS)[3])


def test_casts_leave_the_state_as_it_is(any_calibrator):
    before, expected = describe(any_calibrator.state_dict()), any_calibrator(LOGITS)
    for cast in ("half", "bfloat16", "double", "float"):
        assert describe(getattr(any_calibrator, cast)().state_dict()) == before
    assert describe(any_calibrator.type(torch.float16).state_dict()) == before
    model = nn.Sequential(nn.Linear(3, 5), any_calibrator).to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    assert describe(any_calibrator.state_dict()) == before
    assert torch.equal(any_calibrator(LOGITS), expected)


def test_moves_through_the_meta_device(any_calibrator):
    empty = copy.deepcopy(any_calibrator).half().to("meta")
    assert {value.device.type for value in empty.state_dict().values()} == {"meta"}
    assert "on the meta device" in repr(empty)
    restored = empty.to_empty(device="cpu")
    restored.load_state_dict(any_calibrator.state_dict())
    assert repr(restored) == repr(any_calibrator)
    assert torch.equal(restored(LOGITS), any_calibrator(LOGITS))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_state_dict_holds_tensors_only(name):
    calibrator, other = make(name), make(name, OTHER_ARGUMENTS)
    file = io.BytesIO()
    torch.save(calibrator.state_dict(), file)
    file.seek(0)
    assert not torch.equal(other(LOGITS), calibrator(LOGITS))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(LOGITS), calibrator(LOGITS))
    assert not list(calibrator.parameters())


@pytest.mark.parametrize("name", ARGUMENTS)
def test_other_values_make_it_forget_where_its_own_came_from(name):
    calibrator = make(name)
    calibrator.method = "by hand"
    calibrator.load_state_dict(calibrator.state_dict())
    assert calibrator.method == "by hand"
    calibrator.load_state_dict(make(name, OTHER_ARGUMENTS).state_dict())
    assert calibrator.method is None


def test_copies_and_pickles_keep_everything_and_share_nothing(any_calibrator):
    any_calibrator.method = "by hand"
    expected = any_calibrator(LOGITS)
    for twin in (copy.deepcopy(any_calibrator), pickle.loads(pickle.dumps(any_calibrator))):
        assert twin.method == "by hand"
        assert repr(twin) == repr(any_calibrator)
        assert torch.equal(twin(LOGITS), expected)
        for buffer in twin.buffers():
            buffer.zero_()
    assert torch.equal(any_calibrator(LOGITS), expected)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_construction_copies_its_arguments(name):
    arguments = [torch.as_tensor(argument).clone() for argument in ARGUMENTS[name]]
    calibrator = getattr(finecal, name)(*arguments)
    for argument in arguments:
        argument.zero_()
    assert torch.equal(calibrator(LOGITS), make(name)(LOGITS))


@pytest.mark.parametrize("name", ARGUMENTS)
def test_construction_does_not_depend_on_defaults_of_torch(name):
    torch.set_default_dtype(torch.float64)
    try:
        calibrator = make(name)
    finally:
        torch.set_default_dtype(torch.float32)
    assert describe(calibrator.state_dict()) == describe(make(name).state_dict())


def test_gradients_flow(any_calibrator):
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(any_calibrator, logits)


def test_training_and_evaluation_do_not_differ(any_calibrator):
    assert torch.equal(any_calibrator.train()(LOGITS), any_calibrator.eval()(LOGITS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_and_exports(any_calibrator, dtype):
    model = nn.Sequential(nn.Linear(3, 5), any_calibrator).to(dtype).eval()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = model(x)
    assert torch.equal(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
    assert torch.equal(exported.module()(x), expected)
    assert torch.equal(exported.module()(x[:2]), model(x[:2]))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces(any_calibrator):
    traced = torch.jit.trace(any_calibrator, torch.zeros(2, 5))
    assert torch.equal(traced(LOGITS), any_calibrator(LOGITS))


def test_wrong_logits(any_calibrator):
    with pytest.raises(TypeError, match="logits has dtype int64"):
        any_calibrator(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match="logits is a ndarray; pass a torch tensor"):
        any_calibrator(np.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"calibrator is on cpu, logits on meta; move it: calibrator\.to\('meta'\)"):
        any_calibrator(torch.zeros(2, 5, device="meta"))


@pytest.mark.parametrize("name", sorted(ARGUMENTS.keys() - {"Temperature"}))
def test_wrong_number_of_classes(name):
    with pytest.raises(ValueError, match="has 5 entries for logits of 4 classes"):
        make(name)(torch.zeros(2, 4))
