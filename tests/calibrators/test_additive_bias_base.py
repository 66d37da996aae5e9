"""What all calibrators share."""

import copy
import io
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import finecal
from finecal._calibrators.additive_bias import Calibrator
from public_names import PUBLIC, public

MASK = torch.tensor([True, False, True, False, False])
VALUES = torch.tensor([1.0, 2.5, 0.3, 4.0, 0.7])
ARGUMENTS = {
    "AdditiveBias": (MASK, 1.7),
    "ClassBias": (VALUES,),
    "GroupTemperature": (MASK, 1.7, 0.3),
    "NormalizedLogits": (VALUES - 2, VALUES),
    "Prototypes": (MASK, 1.7, torch.outer(VALUES, torch.tensor([1.0, -0.3])), VALUES[:2]),
    "Temperature": (1.7,),
}
OTHER_MASK = torch.tensor([True, True, False, False, True])
OTHER_ARGUMENTS = {
    "AdditiveBias": (OTHER_MASK, 0.0),
    "ClassBias": (-VALUES,),
    "GroupTemperature": (OTHER_MASK, 1.0, 2.0),
    "NormalizedLogits": (VALUES, VALUES + 1),
    "Prototypes": (OTHER_MASK, 0.0, torch.outer(1 / VALUES, torch.tensor([0.5, 2.0])), VALUES[2:4]),
    "Temperature": (1.0,),
}
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


class Prototypes(finecal.calibrators.Prototypes):
    """Called as all others are: with features that are all ones."""

    def forward(self, logits):
        shape = list(logits.shape)
        shape[self.dim if -logits.ndim <= self.dim < logits.ndim else -1] = 2
        return super().forward(logits, torch.ones(shape, device=self.center.device))


def kind_of(name):
    return Prototypes if name == "Prototypes" else public(name)


def make(name, arguments=ARGUMENTS, **options):
    return kind_of(name)(*arguments[name], **options)


def describe(state):
    return {name: (value.dtype, value.tolist()) for name, value in state.items()}


@pytest.fixture(params=ARGUMENTS)
def any_calibrator(request):
    return make(request.param)


def test_all_calibrators_are_here():
    kinds = [kind for kind in PUBLIC.values() if isinstance(kind, type) and issubclass(kind, Calibrator)]
    assert {kind.__name__ for kind in kinds} == set(ARGUMENTS)


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
    calibrator = kind_of(name)(*arguments)
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
    with pytest.raises(TypeError, match="logits is a SimpleNamespace; pass a torch tensor"):
        any_calibrator(SimpleNamespace(shape=(2, 5), ndim=2))
    with pytest.raises(ValueError, match=r"calibrator is on cpu, logits on meta; move it: calibrator\.to\('meta'\)"):
        any_calibrator(torch.zeros(2, 5, device="meta"))


class Foreign:
    """An array of another library: what torch reads, and a namespace that makes more of it."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self):
        return Foreign

    @classmethod
    def from_dlpack(cls, values):
        return cls(torch.from_dlpack(values))


def test_arrays_come_back_as_their_kind(any_calibrator):
    expected = any_calibrator(LOGITS).numpy()
    for module in (any_calibrator, torch.nn.Sequential(any_calibrator)):
        found = module(LOGITS.numpy())
        assert type(found) is np.ndarray
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
        foreign = module(Foreign(LOGITS))
        assert type(foreign) is Foreign
        np.testing.assert_array_equal(foreign.tensor, expected)
    np.testing.assert_array_equal(any_calibrator(logits=LOGITS.numpy()), expected)


WITH_CLASSES = sorted(ARGUMENTS.keys() - {"Temperature"})


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_wrong_number_of_classes(name):
    with pytest.raises(ValueError, match="has 5 entries for logits of 4 classes"):
        make(name)(torch.zeros(2, 4))


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


@pytest.fixture
def estimate():
    return finecal.GammaEstimate(2.0, "by hand", "nothing", 0)


def assigned(calibrator):
    calibrator.seen_mask = OTHER_MASK.clone()


def set_item(calibrator):
    calibrator.seen_mask[1], calibrator.seen_mask[2], calibrator.seen_mask[4] = True, False, True


def reloaded(calibrator):
    calibrator.load_state_dict({**calibrator.state_dict(), "seen_mask": OTHER_MASK.clone()}, assign=True)


CHANGES = {
    "item": set_item,
    "copy": lambda calibrator: calibrator.seen_mask.copy_(OTHER_MASK),
    "assignment": assigned,
    "buffer": lambda calibrator: calibrator.register_buffer("seen_mask", OTHER_MASK.clone()),
    "state": reloaded,
}
WITH_A_MASK = ("AdditiveBias", "GroupTemperature", "Prototypes")


@pytest.mark.parametrize("duplicate", [lambda c: c, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c)), copy.copy])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", WITH_A_MASK)
def test_forward_follows_the_mask(name, change, duplicate):
    calibrator = make(name)
    calibrator(LOGITS)
    twin = duplicate(calibrator)
    CHANGES[change](twin)
    expected = kind_of(name)(OTHER_MASK, *ARGUMENTS[name][1:])
    assert torch.equal(twin.state_dict()["seen_mask"], OTHER_MASK)
    assert repr(twin) == repr(expected)
    for _ in range(2):
        assert torch.equal(twin(LOGITS), expected(LOGITS))
        assert torch.equal(twin(LOGITS.half()), expected(LOGITS.half()))
    if duplicate(calibrator) is not calibrator and duplicate is not copy.copy:
        assert torch.equal(calibrator(LOGITS), make(name)(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_a_copy_counts_its_changes_anew(name):
    calibrator = make(name)
    for _ in range(3):
        calibrator.seen_mask.copy_(MASK)
    calibrator(LOGITS)
    twin = copy.deepcopy(calibrator)
    twin.seen_mask[0] = False
    twin.seen_mask[1] = False
    twin.seen_mask[3] = True
    expected = kind_of(name)(twin.seen_mask, *ARGUMENTS[name][1:])
    assert torch.equal(twin(LOGITS), expected(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_forward_follows_a_mask_of_inference_mode(name):
    with torch.inference_mode():
        calibrator = make(name)
        calibrator(LOGITS)
        calibrator.seen_mask.copy_(OTHER_MASK)
        expected = kind_of(name)(OTHER_MASK, *ARGUMENTS[name][1:])
        assert torch.equal(calibrator(LOGITS), expected(LOGITS))
    assert torch.equal(calibrator(LOGITS), expected(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_compiled_and_exported_modules_follow_the_mask(name):
    calibrator, expected = make(name), kind_of(name)(OTHER_MASK, *ARGUMENTS[name][1:])
    compiled = torch.compile(calibrator, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(calibrator, (LOGITS,)).module()
    for module in (compiled, exported, calibrator):
        assert torch.equal(module(LOGITS), make(name)(LOGITS))
    calibrator.seen_mask.copy_(OTHER_MASK)
    exported.load_state_dict(calibrator.state_dict())
    for module in (compiled, exported, calibrator):
        assert torch.equal(module(LOGITS), expected(LOGITS))


@pytest.mark.parametrize("name", WITH_A_MASK)
def test_a_mask_of_a_functional_call_is_of_that_call(name):
    calibrator = make(name)
    before = calibrator(LOGITS)
    called = torch.func.functional_call(calibrator, {"seen_mask": OTHER_MASK}, (LOGITS,))
    assert torch.equal(called, kind_of(name)(OTHER_MASK, *ARGUMENTS[name][1:])(LOGITS))
    assert torch.equal(calibrator(LOGITS), before)


def test_buffers_are_the_state(any_calibrator):
    any_calibrator(LOGITS)
    assert dict(any_calibrator.named_buffers()).keys() == any_calibrator.state_dict().keys()


# --- made on the meta device ------------------------------------------------------------------------------------------


def on_meta(name, arguments=ARGUMENTS, **options):
    with torch.device("meta"):
        return kind_of(name)(*(torch.as_tensor(a).to("meta") for a in arguments[name]), **options)


def test_calibrators_can_be_made_on_the_meta_device_and_loaded(any_calibrator):
    name = type(any_calibrator).__name__
    empty = on_meta(name, OTHER_ARGUMENTS)
    assert all(buffer.is_meta for buffer in empty.buffers())
    assert describe_kinds(empty) == describe_kinds(any_calibrator)
    assert "on the meta device" in repr(empty)
    empty.method = "another fit"
    empty.load_state_dict(any_calibrator.state_dict(), assign=True)
    assert repr(empty) == repr(any_calibrator)
    assert torch.equal(empty(LOGITS), any_calibrator(LOGITS))
    other = on_meta(name).to_empty(device="cpu")
    other.load_state_dict(any_calibrator.state_dict())
    assert torch.equal(other(LOGITS), any_calibrator(LOGITS))


def describe_kinds(module):
    return {key: (value.dtype, value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_numbers_and_lists_can_be_given_on_the_meta_device(name):
    arguments = [a.tolist() if isinstance(a, torch.Tensor) else a for a in OTHER_ARGUMENTS[name]]
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 5), kind_of(name)(*arguments))
    full = nn.Sequential(nn.Linear(3, 5), make(name))
    model.load_state_dict(full.state_dict(), assign=True)
    x = torch.randn(2, 3)
    assert torch.equal(model(x), full(x))


def test_gamma_may_be_an_estimate_on_the_meta_device(estimate):
    with torch.device("meta"):
        calibrator = finecal.AdditiveBias(torch.ones(5, dtype=torch.bool), estimate)
        assert finecal.AdditiveBias(MASK, torch.tensor(1.0)).gamma.is_meta
    calibrator.load_state_dict(finecal.AdditiveBias(MASK, 1.7).state_dict(), assign=True)
    assert repr(calibrator) == "AdditiveBias(gamma=1.7, seen=2, absent=3)"  # the estimate was of other values


WRONG_STATES = {
    "all seen": ("AdditiveBias", {"seen_mask": torch.ones(5, dtype=torch.bool)}, "seen_mask has no absent class"),
    "gamma": ("AdditiveBias", {"gamma": torch.tensor(float("nan"))}, "gamma is nan; it must be finite"),
    "none seen": ("GroupTemperature", {"seen_mask": torch.zeros(5, dtype=torch.bool)}, "seen_mask has no seen class"),
    "cold": ("GroupTemperature", {"absent_temperature": torch.tensor(-1.0)}, "absent_temperature is -1.0; it must be"),
    "zero": ("Temperature", {"temperature": torch.tensor(0.0)}, "temperature is 0.0; it must be positive"),
    "bias": ("ClassBias", {"bias": torch.full((5,), float("inf"))}, "bias is inf for class 0"),
    "scale": ("NormalizedLogits", {"scale": -VALUES}, "scale is -1 for class 0"),
    "weight": ("Prototypes", {"weight": torch.full((5, 2), float("nan"))}, "weight has values that are not finite in"),
    "center": ("Prototypes", {"center": torch.tensor([1.0, float("inf")])}, "center has values that are not finite in"),
    "gamma of prototypes": ("Prototypes", {"gamma": torch.tensor(float("inf"))}, "gamma is inf; it must be finite"),
}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("kind", WRONG_STATES)
def test_values_are_checked_when_they_are_loaded(kind, assign):
    name, wrong, message = WRONG_STATES[kind]
    calibrator = make(name)
    before = describe(calibrator.state_dict())
    state = {**calibrator.state_dict(), **wrong}
    with pytest.raises(RuntimeError, match=f"{name} cannot hold what was given: {message}"):
        calibrator.load_state_dict(state, assign=assign)
    assert describe(calibrator.state_dict()) == before
    model = nn.Sequential(nn.Identity(), on_meta(name))
    with pytest.raises(RuntimeError, match=rf"1\.{name} cannot hold what was given: {message}"):
        model.load_state_dict({f"1.{key}": value for key, value in state.items()}, assign=True)


def test_an_assigned_state_of_another_dtype_takes_the_calibrators(any_calibrator):
    state = {key: value.double() for key, value in any_calibrator.state_dict().items()}
    again = on_meta(type(any_calibrator).__name__)
    again.load_state_dict(state, assign=True)
    assert describe(again.state_dict()) == describe(any_calibrator.state_dict())
    assert torch.equal(again(LOGITS), any_calibrator(LOGITS))


def test_missing_and_misshapen_entries_are_named_by_torch(any_calibrator):
    key = next(iter(any_calibrator.state_dict()))
    with pytest.raises(RuntimeError, match="Missing key"):
        any_calibrator.load_state_dict({})
    with pytest.raises(RuntimeError, match=f"size mismatch for {key}"):
        any_calibrator.load_state_dict({**any_calibrator.state_dict(), key: torch.ones(7, 2)})


# --- classes along another dimension ----------------------------------------------------------------------------------

SHAPES = [(5,), (2, 5), (2, 3, 5), (2, 1, 3, 5), (2, 3, 1, 2, 5), (0, 3, 5), (2, 0, 3, 5)]
DIMS = [(shape, dim) for shape in SHAPES for dim in range(-len(shape), len(shape))]


def drawn(shape, dim=-1, dtype=torch.float32):
    """Logits with the classes along `dim`; `shape` has them last."""
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return rows.movedim(-1, dim).contiguous()


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_classes_along_any_dimension(name, device, dtype):
    last = make(name).to(device)
    for shape, dim in DIMS:
        logits = drawn(shape, dim, dtype).to(device)
        out = make(name, dim=dim).to(device)(logits)
        assert out.dtype == dtype
        assert torch.equal(out, last(logits.movedim(dim, -1)).movedim(-1, dim)), (shape, dim)


def layouts():
    logits = drawn((2, 4, 3, 5), 1)
    return {
        "contiguous": logits,
        "channels last": logits.to(memory_format=torch.channels_last),
        "transposed": logits.transpose(2, 3),
        "batch last": logits.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", layouts())
@pytest.mark.parametrize("name", WITH_CLASSES)
def test_the_memory_format_stays(name, layout, dtype):
    logits = layouts()[layout].to(dtype)
    assert make(name, dim=1)(logits).stride() == logits.stride()


class Outputs(TorchDispatchMode):
    """What the operations return."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.found += [out] if isinstance(out, torch.Tensor) else []
        return out


@pytest.mark.parametrize("name", sorted({*WITH_CLASSES} - {"Prototypes"}))
def test_logits_are_not_copied(name):
    calibrator, logits = make(name, dim=1), drawn((2, 64, 64, 5), 1)
    with Outputs() as outputs:
        calibrator(logits)
    large = {out.data_ptr() for out in outputs.found if out.numel() == logits.numel()} - {logits.data_ptr()}
    assert len(large) == 1 + (name == "NormalizedLogits")  # the result, and the differences from `loc`


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_compiles_and_exports_with_classes_along_a_dimension(name):
    calibrator = make(name, dim=1)
    first, second = drawn((2, 4, 3, 5), 1), drawn((3, 2, 6, 5), 1)
    compiled = torch.compile(calibrator, fullgraph=True, backend="aot_eager", dynamic=True)
    for logits in (first, second):
        assert torch.equal(compiled(logits), calibrator(logits))
    sizes = {dim: torch.export.Dim(name, min=2) for dim, name in ((0, "batch"), (2, "height"), (3, "width"))}
    exported = torch.export.export(calibrator, (first,), dynamic_shapes=(sizes,)).module()
    assert torch.equal(exported(second), calibrator(second))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", sorted({*WITH_CLASSES} - {"Prototypes"}))
def test_traces_with_classes_along_a_dimension(name):
    calibrator = make(name, dim=1)
    traced = torch.jit.trace(calibrator, drawn((2, 4, 3, 5), 1))
    logits = drawn((3, 2, 6, 5), 1)
    assert torch.equal(traced(logits), calibrator(logits))


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_gradients_flow_with_classes_along_a_dimension(name):
    assert torch.autograd.gradcheck(make(name, dim=1), drawn((2, 2, 5), 1, torch.float64).requires_grad_())


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_copies_keep_dim_and_show_it(name):
    calibrator, logits = make(name, dim=1), drawn((2, 4, 3, 5), 1)
    assert type(calibrator.dim) is int
    assert repr(calibrator).endswith(", dim=1)")
    assert "dim" not in repr(make(name))
    assert describe(calibrator.state_dict()) == describe(make(name).state_dict())
    restored = on_meta(name, dim=1)
    assert repr(restored).endswith(", dim=1)")
    restored.load_state_dict(calibrator.state_dict(), assign=True)
    for twin in (copy.deepcopy(calibrator), pickle.loads(pickle.dumps(calibrator)), restored, calibrator.half()):
        assert torch.equal(twin(logits), make(name, dim=1)(logits))
    assert type(make(name, dim=np.int64(1)).dim) is int


@pytest.mark.parametrize("name", WITH_CLASSES)
def test_wrong_dims(name):
    for dim, what in ((True, "bool"), (1.0, "float"), ("1", "str"), (None, "NoneType")):
        with pytest.raises(
            TypeError, match=f"^dim is a {what}; pass the dimension of the classes: -1 for the last, 1 "
        ):
            make(name, dim=dim)
    with pytest.raises(ValueError, match="^dim is 64, but no tensor has so many dimensions"):
        make(name, dim=64)
    with pytest.raises(TypeError, match="positional argument"):
        kind_of(name)(*ARGUMENTS[name], 1)
    with pytest.raises(
        ValueError,
        match=r"^dim is 2, but logits has shape \(2, 5\), of 2 dimensions; .*, such as dim=1 for \(B, C, H, W\)$",
    ):
        make(name, dim=2)(torch.zeros(2, 5))
    with pytest.raises(
        ValueError, match="has 5 entries for logits of 4 classes; it needs one .* per column of the logit"
    ) as e:
        make(name)(torch.zeros(2, 5, 3, 4))
    assert str(e.value).endswith(
        "; dimension 1 of their shape, (2, 5, 3, 4), fits: if it is that of the classes, use dim=1"
    )
    with pytest.raises(
        ValueError, match=r"has 5 entries for logits of 4 classes.* of the logits \(if the head has lost"
    ):
        make(name, dim=1)(torch.zeros(2, 4, 3))


def test_a_temperature_is_for_logits_of_any_shape():
    logits = drawn((2, 3, 5))[..., :1]
    assert torch.equal(finecal.Temperature(2.0)(logits), logits / 2)
    with pytest.raises(TypeError, match="dim"):
        finecal.Temperature(2.0, dim=1)
