import concurrent.futures
import copy
import gc
import inspect
import io
import pickle
import threading
import weakref
from collections import namedtuple

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import nn

import finecal
from finecal import CalibratedModel

MASK = torch.tensor([True, False, True, False, False])
GAMMA = float(torch.tensor(1.7))
INPUTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
Output = namedtuple("Output", ["loss", "logits"])

WRITERS = {
    "tensor": lambda logits, loss: logits,
    "tuple": lambda logits, loss: (loss, logits),
    "dict": lambda logits, loss: {"loss": loss, "logits": logits},
    "named": lambda logits, loss: Output(loss, logits),
}


class Model(nn.Module):
    """With attributes, a keyword-only argument, a loss, a part that training changes, and a choice of outputs."""

    def __init__(self, kind="dict"):
        super().__init__()
        self.kind = kind
        self.config = {"num_labels": 5}
        self._note = "private"
        self.norm = nn.BatchNorm1d(3)
        self.fc = nn.Linear(3, 5)

    @property
    def dtype(self):
        return self.fc.weight.dtype

    def forward(self, pixel_values, labels=None, *, scale=1.0) -> object:
        logits = self.fc(self.norm(pixel_values)) * scale
        return WRITERS[self.kind](logits, logits.square().mean())

    def features(self, pixel_values):
        return self.norm(pixel_values)

    def save_pretrained(self, directory, **kwargs):
        self.saved = directory, kwargs


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, GAMMA)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model().eval()


@pytest.fixture
def calibrated(model, calibrator):
    return CalibratedModel(model, calibrator)


def expected(model, inputs=INPUTS):
    return finecal.calibrate_logits(model(inputs)["logits"], MASK, GAMMA)


def test_calibrates(device, dtype, calibrated):
    calibrated = calibrated.to(device, dtype)
    inputs = INPUTS.to(device, dtype)
    out = calibrated(inputs)["logits"]
    assert out.dtype == dtype
    assert calibrated.calibrator.gamma.dtype == torch.float32
    assert torch.equal(out, expected(calibrated.model, inputs))


@pytest.mark.parametrize("kind", WRITERS)
def test_output_keeps_its_type_and_loss(kind, calibrator):
    model = Model(kind).eval()
    calibrated = CalibratedModel(model, calibrator)
    plain, out = model(INPUTS, scale=2.0), calibrated(INPUTS, scale=2.0)
    assert type(out) is type(plain)
    if kind == "tensor":
        plain, out = {"logits": plain}, {"logits": out}
    elif kind != "dict":
        plain, out = dict(zip(Output._fields, plain, strict=True)), dict(zip(Output._fields, out, strict=True))
    assert out.keys() == plain.keys()
    assert torch.equal(out["logits"], finecal.calibrate_logits(plain["logits"], MASK, GAMMA))
    if "loss" in out:
        assert torch.equal(out["loss"], plain["loss"])


def test_calibrators_compose(model):
    parts = nn.Sequential(finecal.Temperature(2.0), finecal.AdditiveBias(MASK, GAMMA))
    out = CalibratedModel(model, parts)(INPUTS)["logits"]
    assert torch.equal(out, finecal.calibrate_logits(model(INPUTS)["logits"] / 2, MASK, GAMMA))


def test_train_and_eval_are_calibrated_alike(calibrated):
    for mode in (True, False):
        calibrated.train(mode)
        assert calibrated.model.norm.training is mode
        twin = copy.deepcopy(calibrated.model)
        assert torch.equal(calibrated(INPUTS)["logits"], expected(twin))


def test_wrapping_leaves_the_modes_alone(model, calibrator):
    model.train()
    model.norm.eval()
    calibrated = CalibratedModel(model, calibrator)
    assert (calibrated.training, model.training, model.norm.training) == (True, True, False)


def test_signature_is_the_models(model, calibrated):
    assert inspect.signature(calibrated.forward) == inspect.signature(model.forward)
    assert list(inspect.signature(type(calibrated).forward).parameters)[1:] == ["pixel_values", "labels", "scale"]
    assert isinstance(calibrated, CalibratedModel)


def test_signature_of_a_patched_forward(model, calibrator):
    model.forward = lambda pixels: {"logits": torch.zeros(len(pixels), 5)}
    calibrated = CalibratedModel(model, calibrator)
    assert str(inspect.signature(calibrated.forward)) == "(pixels)"
    assert torch.equal(calibrated(pixels=INPUTS)["logits"], (~MASK * torch.tensor(GAMMA)).expand(4, 5))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_model_in_torchscript(calibrator):
    script = torch.jit.script(nn.Linear(3, 5))
    out = CalibratedModel(script, calibrator)(INPUTS)
    assert torch.equal(out, finecal.calibrate_logits(script(INPUTS), MASK, GAMMA))


def test_gradients_flow(model, calibrated):
    calibrated(INPUTS)["logits"].square().sum().backward()
    gradient = model.fc.weight.grad.clone()
    model.zero_grad()
    expected(model).square().sum().backward()
    torch.testing.assert_close(gradient, model.fc.weight.grad)
    assert len(list(calibrated.parameters())) == len(list(model.parameters()))


def test_attributes_are_the_models(model, calibrated):
    assert calibrated.config is model.config
    assert calibrated.dtype is torch.float32
    assert torch.equal(calibrated.features(INPUTS), model.features(INPUTS))
    assert hasattr(calibrated, "fc")
    assert not hasattr(calibrated, "head")
    assert not hasattr(calibrated, "_note")
    with pytest.raises(AttributeError, match="'Model' object has no attribute 'head'"):
        _ = calibrated.head


def test_setting_what_the_model_has_sets_it_there(model, calibrated):
    calibrated.config = {"num_labels": 6}
    calibrated.fc = nn.Linear(3, 5)
    calibrated.step = 3
    calibrated._note = "own"
    assert model.config == {"num_labels": 6}
    assert set(calibrated._modules) == {"model", "calibrator"}
    assert model.fc is calibrated.fc
    assert not hasattr(model, "step")
    assert (calibrated._note, model._note) == ("own", "private")
    assert torch.equal(calibrated(INPUTS)["logits"], expected(model))


@pytest.mark.parametrize("name", ["model", "calibrator"])
def test_parts_can_be_replaced_though_the_model_has_such_names(name, model, calibrator):
    model.add_module(name, nn.Identity())
    calibrated = CalibratedModel(model, calibrator)
    assert (calibrated.model, calibrated.calibrator) == (model, calibrator)
    other = copy.deepcopy(getattr(calibrated, name))
    setattr(calibrated, name, other)
    assert getattr(calibrated, name) is other
    assert isinstance(getattr(model, name), nn.Identity)


def test_state_dict_round_trip(calibrated):
    state = calibrated.state_dict()
    assert {key.split(".")[0] for key in state} == {"model", "calibrator"}
    assert {key.removeprefix("model.") for key in state if key.startswith("model.")} == set(
        calibrated.model.state_dict()
    )
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    other = CalibratedModel(Model().eval(), finecal.AdditiveBias(~MASK, 0.0))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(INPUTS)["logits"], calibrated(INPUTS)["logits"])


def test_safetensors(calibrated, tmp_path):
    save_model(calibrated, tmp_path / "model.safetensors")
    other = CalibratedModel(Model().eval(), finecal.AdditiveBias(~MASK, 0.0))
    assert load_model(other, tmp_path / "model.safetensors") == (set(), [])
    assert torch.equal(other(INPUTS)["logits"], calibrated(INPUTS)["logits"])


class Copied(Model):
    """Copies and pickles itself in its own way."""

    def __deepcopy__(self, memo):
        return type(self)(self.kind).eval()

    def __reduce__(self):
        return type(self), (self.kind,)


def through_pickle(module):
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("kind", [Model, Copied])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, copy.copy])
def test_copies(kind, duplicate, calibrator):
    calibrated = CalibratedModel(kind().eval(), calibrator)
    calibrated.step = 3
    calibrated.compile(backend="eager")
    twin = duplicate(calibrated)
    assert isinstance(twin, CalibratedModel)
    assert isinstance(twin.model, kind)
    assert (twin.model is calibrated.model) == (twin.calibrator is calibrator) == (duplicate is copy.copy)
    assert twin.step == 3
    assert inspect.signature(twin.forward) == inspect.signature(calibrated.forward)
    assert torch.equal(twin(INPUTS)["logits"], expected(twin.model))


def test_moves_through_the_meta_device(calibrated):
    empty = copy.deepcopy(calibrated).half().to("meta")
    assert repr(empty).startswith("CalibratedModel(Model, AdditiveBias(gamma on the meta device")
    restored = empty.to_empty(device="cpu").float()
    restored.load_state_dict(calibrated.state_dict())
    assert torch.equal(restored(INPUTS)["logits"], calibrated(INPUTS)["logits"])


def test_replica_of_data_parallel_calls_its_own_model(calibrated):
    replica = calibrated._replicate_for_data_parallel()
    replica.model = Model().eval()
    replica.calibrator = finecal.AdditiveBias(~MASK, GAMMA)
    assert torch.equal(
        replica(INPUTS)["logits"], finecal.calibrate_logits(replica.model(INPUTS)["logits"], ~MASK, GAMMA)
    )
    assert torch.equal(calibrated(INPUTS)["logits"], expected(calibrated.model))
    assert torch.equal(nn.DataParallel(calibrated)(INPUTS)["logits"], expected(calibrated.model))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_and_exports(kind, dtype, calibrator):
    calibrated = CalibratedModel(Model(kind).eval(), calibrator).to(dtype)
    inputs = INPUTS.to(dtype)
    plain = calibrated(inputs, scale=2.0)
    compiled = torch.compile(calibrated, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(calibrated, (inputs,), {"scale": 2.0}).module()
    for out in (compiled(inputs, scale=2.0), exported(inputs, scale=2.0)):
        assert type(out) is type(plain)
        torch.testing.assert_close(out, plain, rtol=0, atol=0)


def test_exports_any_batch_by_name(calibrated):
    shapes = {"pixel_values": {0: torch.export.Dim("batch", min=2)}}
    exported = torch.export.export(calibrated, (), {"pixel_values": INPUTS}, dynamic_shapes=shapes).module()
    for inputs in (INPUTS, INPUTS[:2]):
        assert torch.equal(exported(pixel_values=inputs)["logits"], calibrated(inputs)["logits"])


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces(calibrator):
    calibrated = CalibratedModel(Model("tuple").eval(), calibrator)
    traced = torch.jit.trace(calibrated, INPUTS)
    assert torch.equal(traced(INPUTS[:2])[1], calibrated(INPUTS[:2])[1])


STATES = {
    "gamma": (finecal.AdditiveBias(MASK, GAMMA), finecal.AdditiveBias(~MASK, 2.5)),
    "temperature": (finecal.Temperature(2.0), finecal.Temperature(3.0)),
    "several": (
        nn.Sequential(finecal.calibrators.GroupTemperature(MASK, 1.0, 2.0), finecal.AdditiveBias(MASK, GAMMA)),
        nn.Sequential(finecal.calibrators.GroupTemperature(~MASK, 3.0, 2.0), finecal.AdditiveBias(~MASK, 2.5)),
    ),
    "prototypes": (
        finecal.calibrators.Prototypes(MASK, GAMMA, torch.eye(5, 3), torch.zeros(3)),
        finecal.calibrators.Prototypes(~MASK, 2.5, 2 * torch.eye(5, 3), torch.ones(3)),
    ),
}


def written_and_read(traced):
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("again", [lambda traced: traced, copy.deepcopy, written_and_read], ids=["", "copy", "file"])
@pytest.mark.parametrize("calibrators", STATES.values(), ids=STATES)
def test_a_trace_loads_the_state_of_another_model(calibrators, again):
    one, other = (CalibratedModel(Model("tensor").eval(), copy.deepcopy(each)) for each in calibrators)
    other(INPUTS)  # what a calibrator keeps of its mask must not get into a trace
    traced = again(torch.jit.trace(one, INPUTS))
    assert list(traced.state_dict()) == list(other.state_dict())
    assert not torch.equal(traced(INPUTS), other(INPUTS))
    traced.load_state_dict(other.state_dict())
    assert torch.equal(traced(INPUTS), other(INPUTS))
    back = CalibratedModel(Model("tensor").eval(), copy.deepcopy(calibrators[0]))
    back.load_state_dict(traced.state_dict())
    assert torch.equal(back(INPUTS), other(INPUTS))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("compiled", [torch.jit.script, lambda model: torch.jit.trace(model, INPUTS)])
@pytest.mark.parametrize("assign", [False, True])
def test_a_model_in_torchscript_loads_a_state(compiled, assign):
    one = CalibratedModel(compiled(nn.Linear(3, 5)), finecal.AdditiveBias(MASK, GAMMA))
    other = CalibratedModel(nn.Linear(3, 5), finecal.AdditiveBias(~MASK, 2.5))
    one.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
    assert torch.equal(one(INPUTS), other(INPUTS))


def test_repr_is_short(calibrated):
    assert repr(calibrated) == "CalibratedModel(Model, AdditiveBias(gamma=1.7, seen=2, absent=3))"


@pytest.mark.parametrize("given", ["calibrated.", ""])
def test_save_pretrained_saves_both(given, model, calibrated, tmp_path):
    state = (calibrated if given else model).state_dict()
    calibrated.save_pretrained(tmp_path / "new" / "folder", state_dict=state, max_shard_size="1GB")
    directory, kwargs = model.saved
    assert directory == tmp_path / "new" / "folder"
    assert kwargs.keys() == {"state_dict", "max_shard_size"}
    assert kwargs["state_dict"].keys() == model.state_dict().keys()
    again = CalibratedModel(model, finecal.load(directory / "finecal.safetensors"))
    assert torch.equal(again(INPUTS)["logits"], calibrated(INPUTS)["logits"])


def test_save_pretrained_of_another_process_leaves_the_file_alone(model, calibrated, tmp_path):
    calibrated.save_pretrained(tmp_path, is_main_process=False)
    assert model.saved == (tmp_path, {"is_main_process": False})
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_saved_or_uploaded_in_part(model, calibrated, calibrator, tmp_path):
    model.push_to_hub = lambda *args: pytest.fail("uploaded the bare model")
    with pytest.raises(ValueError, match="push_to_hub would upload the model without its calibrator; write both with"):
        calibrated.push_to_hub("me/model")
    with pytest.raises(ValueError, match="push_to_hub would upload"):
        calibrated.save_pretrained(tmp_path / "a", push_to_hub=True)
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'save_pretrained'"):
        CalibratedModel(nn.Linear(3, 5), calibrator).save_pretrained(tmp_path / "b")
    with pytest.raises(TypeError):
        CalibratedModel(model, nn.Bilinear(1, 1, 1)).save_pretrained(tmp_path / "c")
    assert not hasattr(model, "saved")


def test_merged_adapters_stay_calibrated(model, calibrated, calibrator):
    merged = Model().eval()
    model.merge_and_unload = lambda safe_merge: merged
    out = calibrated.merge_and_unload(safe_merge=True)
    assert isinstance(out, CalibratedModel)
    assert (out.model, out.calibrator) == (merged, calibrator)


def test_nothing_is_calibrated_twice(model, calibrated, calibrator):
    for again in (calibrated, nn.DataParallel(calibrated)):
        with pytest.raises(ValueError, match="calibrated already: it holds CalibratedModel\\(Model, AdditiveBias"):
            CalibratedModel(again, calibrator)
    with pytest.raises(ValueError, match="it holds AdditiveBias\\(gamma=1.7, seen=2, absent=3\\); pass the uncalib"):
        CalibratedModel(nn.Sequential(model, calibrator), finecal.Temperature(2.0))
    linear = nn.Linear(3, 5)
    finecal.fold_into_head(linear, calibrator)
    for folded in (linear, nn.Sequential(nn.Linear(3, 3), linear)):
        with pytest.raises(
            ValueError,
            match="folded into the model's head already: use the model as it is, or",
        ):
            CalibratedModel(folded, calibrator)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch.compile, as it breaks
@pytest.mark.parametrize("ambiguous", [False, True])
def test_refuses_a_model_folded_since(ambiguous, model, calibrator, tmp_path):
    if ambiguous:
        model.gate = nn.Linear(3, 5)
    calibrated = CalibratedModel(model, calibrator)
    compiled = torch.compile(calibrated, backend="eager")
    wrappers = [calibrated, compiled, copy.copy(calibrated), nn.DataParallel(calibrated)]
    logits = compiled(INPUTS)["logits"]
    finecal.fold_into_head(model.fc, calibrator)
    for wrapper in wrappers:
        with pytest.raises(ValueError, match="would be calibrated twice: use its attribute `model`"):
            wrapper(INPUTS)
    with pytest.raises(ValueError, match="calibrated twice"):
        calibrated.save_pretrained(tmp_path)
    assert not hasattr(model, "saved")
    torch.testing.assert_close(calibrated.model(INPUTS)["logits"], logits)
    finecal.unfold_from_head(model.fc, calibrator)
    for wrapper in wrappers:
        torch.testing.assert_close(wrapper(INPUTS)["logits"], logits)


def test_warns_of_a_folding_whose_record_was_lost(model, calibrator):
    again = Model().eval()
    again.load_state_dict(finecal.fold_into_head(model, calibrator).state_dict())
    with pytest.warns(finecal.FinecalWarning, match="looks as if the calibrator had been folded .* use it alone"):
        CalibratedModel(again, calibrator)
    CalibratedModel(again, finecal.AdditiveBias(~MASK, GAMMA))


@pytest.mark.parametrize("name", ["model", "fc"])
def test_takes_another_model_in_place_of_a_folded_one(name, model, calibrated, calibrator):
    other = Model().eval()
    finecal.fold_into_head(model.fc, calibrator)
    setattr(calibrated, name, other if name == "model" else other.fc)
    assert torch.equal(calibrated(INPUTS)["logits"], expected(calibrated.model))
    finecal.fold_into_head(other.fc, calibrator)
    with pytest.raises(ValueError, match="calibrated twice"):
        calibrated(INPUTS)


def test_wrong_parts(model, calibrator):
    with pytest.raises(TypeError, match="model is a int; pass the torch.nn.Module"):
        CalibratedModel(1, calibrator)
    with pytest.raises(TypeError, match="model is the calibrator AdditiveBias.*pass the model first"):
        CalibratedModel(calibrator, model)
    with pytest.raises(TypeError, match="calibrator is a float; pass a torch.nn.Module such as AdditiveBias"):
        CalibratedModel(model, GAMMA)


def test_number_of_classes_differs(model):
    calibrated = CalibratedModel(model, finecal.AdditiveBias(MASK[:4], GAMMA))
    with pytest.raises(ValueError, match="seen_mask has 4 entries for logits of 5 classes"):
        calibrated(INPUTS)


def test_output_without_logits(calibrator):
    model = nn.Identity()
    with pytest.raises(
        TypeError, match="the model returned a dict with the keys \\['scores'\\], in which finecal finds no"
    ):
        CalibratedModel(model, calibrator)({"scores": INPUTS})


def test_can_be_made_on_the_meta_device_and_loaded(calibrated):
    with torch.device("meta"):
        empty = CalibratedModel(
            Model(), finecal.AdditiveBias(torch.ones(5, dtype=torch.bool), torch.tensor(0.0))
        ).eval()
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    empty.load_state_dict(calibrated.state_dict(), assign=True)
    assert torch.equal(empty(INPUTS)["logits"], calibrated(INPUTS)["logits"])
    wrong = {**calibrated.state_dict(), "calibrator.seen_mask": torch.ones(5, dtype=torch.bool)}
    with pytest.raises(
        RuntimeError, match="calibrator.AdditiveBias cannot hold what was given: seen_mask has no absent"
    ):
        empty.load_state_dict(wrong, assign=True)


# --- prototypes, which take features ----------------------------------------------------------------------------------

WEIGHT = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
CENTER = torch.tensor([0.5, -1.0, 2.0])


@pytest.fixture
def prototypes():
    return finecal.calibrators.Prototypes(MASK, GAMMA, WEIGHT, CENTER)


@pytest.fixture
def with_prototypes(model, prototypes):
    return CalibratedModel(model, prototypes)


def with_weight(model, inputs=INPUTS):
    """What the model gives with the prototypes, by way of its parts."""
    features = model.features(inputs)
    added = GAMMA * ~MASK + (features - CENTER.to(features)) @ WEIGHT.to(features).T
    return model(inputs)["logits"] + added


def hook_of(calibrated):
    (hook,) = calibrated.model.fc._forward_pre_hooks.values()
    return hook


@pytest.mark.parametrize("kind", WRITERS)
def test_prototypes_take_what_the_head_takes(kind, prototypes):
    model = Model(kind).eval()
    plain, out = model(INPUTS), CalibratedModel(model, prototypes)(INPUTS)
    assert type(out) is type(plain)
    named = {"tensor": lambda o: o, "dict": lambda o: o["logits"]}.get(kind, lambda o: o[1])
    model.kind = "dict"
    torch.testing.assert_close(named(out), with_weight(model))
    if kind in ("tuple", "named"):
        assert torch.equal(out[0], plain[0])


def test_prototypes_on_any_device_and_dtype(with_prototypes, device, dtype):
    calibrated = with_prototypes.to(device, dtype)
    inputs = INPUTS.to(device, dtype)
    out = calibrated(inputs)["logits"]
    expected = calibrated.calibrator(calibrated.model(inputs)["logits"], calibrated.features(inputs))
    assert out.dtype == dtype
    assert torch.equal(out, expected)
    assert calibrated.calibrator.weight.dtype == torch.float32


def test_prototypes_in_train_mode_are_of_the_same_run(with_prototypes):
    """The features are those that gave the logits, dropout and all, and not those of another run."""
    with_prototypes.model.norm = nn.Dropout(0.5)
    with_prototypes.train()
    torch.manual_seed(3)
    out = with_prototypes(INPUTS)["logits"]
    torch.manual_seed(3)
    features = with_prototypes.features(INPUTS)
    expected = with_prototypes.calibrator(with_prototypes.fc(features), features)
    torch.testing.assert_close(out, expected)


def test_gradients_flow_through_the_features_too(model, with_prototypes):
    inputs = INPUTS.clone().requires_grad_()
    with_prototypes(inputs)["logits"].square().sum().backward()
    gradient, inputs.grad = inputs.grad.clone(), None
    with_weight(model, inputs).square().sum().backward()
    torch.testing.assert_close(gradient, inputs.grad)


def test_nothing_is_kept_after_a_call(with_prototypes):
    kept = []
    with_prototypes.model.norm.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    with torch.no_grad():
        for run in (with_prototypes, with_prototypes.model, with_prototypes):
            run(INPUTS)
            gc.collect()
            assert kept.pop()() is None
    assert hook_of(with_prototypes)._recorded == {}


def test_nothing_is_kept_after_an_error(with_prototypes):
    def fail(module, args, output):
        raise RuntimeError("after the head")

    handle = with_prototypes.model.fc.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="after the head"):
        with_prototypes(INPUTS)
    assert hook_of(with_prototypes)._recorded == {}
    handle.remove()
    torch.testing.assert_close(with_prototypes(INPUTS)["logits"], with_weight(with_prototypes.model))


def test_threads_do_not_take_each_others_features(with_prototypes):
    """All are in the head at once, before the first of them goes on."""
    together = threading.Barrier(4, timeout=10)

    def wait(module, args, output):
        together.wait()

    with_prototypes.model.fc.register_forward_hook(wait)
    batches = [INPUTS + shift for shift in range(4)]
    with torch.no_grad(), concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda inputs: with_prototypes(inputs)["logits"], batches))
    with_prototypes.model.fc._forward_hooks.clear()
    for inputs, logits in zip(batches, found, strict=True):
        torch.testing.assert_close(logits, with_weight(with_prototypes.model, inputs))


@pytest.mark.parametrize("kind", [Model, Copied])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, through_pickle, copy.copy])
def test_copies_with_prototypes(kind, duplicate, prototypes):
    calibrated = CalibratedModel(kind().eval(), prototypes)
    twin = duplicate(calibrated)
    assert (twin.model is calibrated.model) == (twin.calibrator is prototypes) == (duplicate is copy.copy)
    for one in (twin, calibrated, twin):
        torch.testing.assert_close(one(INPUTS)["logits"], with_weight(one.model))
    assert len(twin.model.fc._forward_pre_hooks) == 1


def test_state_dict_with_prototypes(with_prototypes):
    other = CalibratedModel(Model().eval(), finecal.calibrators.Prototypes(~MASK, 0.0, 0 * WEIGHT, CENTER))
    other.load_state_dict(with_prototypes.state_dict())
    assert torch.equal(other(INPUTS)["logits"], with_prototypes(INPUTS)["logits"])


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prototypes_compile_and_export(kind, dtype, prototypes):
    calibrated = CalibratedModel(Model(kind).eval(), prototypes).to(dtype)
    inputs = INPUTS.to(dtype)
    plain = calibrated(inputs, scale=2.0)
    compiled = torch.compile(calibrated, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(calibrated, (inputs,), {"scale": 2.0}).module()
    for out in (compiled(inputs, scale=2.0), compiled(inputs, scale=2.0), exported(inputs, scale=2.0)):
        assert type(out) is type(plain)
        torch.testing.assert_close(out, plain, rtol=0, atol=0)
    assert hook_of(calibrated)._recorded == {}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_prototypes_trace(prototypes):
    calibrated = CalibratedModel(Model("tuple").eval(), prototypes)
    traced = torch.jit.trace(calibrated, INPUTS)
    assert torch.equal(traced(INPUTS[:2])[1], calibrated(INPUTS[:2])[1])


def test_prototypes_in_parallel(with_prototypes):
    torch.testing.assert_close(nn.DataParallel(with_prototypes)(INPUTS)["logits"], with_weight(with_prototypes.model))
    inner = nn.DataParallel(with_prototypes.model)
    around = CalibratedModel(inner, with_prototypes.calibrator)
    torch.testing.assert_close(around(INPUTS)["logits"], with_weight(with_prototypes.model))


def test_autocast_leaves_prototypes_alone(with_prototypes):
    with torch.autocast("cpu", torch.bfloat16):
        out = with_prototypes(INPUTS)["logits"]
        logits = with_prototypes.model(INPUTS)["logits"]
    expected = with_prototypes.calibrator(logits, with_prototypes.features(INPUTS))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, expected)


class Twice(Model):
    def forward(self, pixel_values):
        return (self.fc(pixel_values) + self.fc(-pixel_values)) / 2


class Elsewhere(Model):
    def forward(self, pixel_values):
        return nn.functional.linear(pixel_values, self.fc.weight)


class OfTokens(Model):
    def forward(self, pixel_values):
        return self.fc(pixel_values[:, None].expand(-1, 7, -1)).mean(1)


RUNS = {
    Twice: "the final linear layer ran 2 times for one batch, so its inputs are not one row per sample; pass the model",
    Elsewhere: "the final linear layer ran 0 times for one batch",
    OfTokens: r"features have shape \(4, 7, 3\) for logits of shape \(4, 5\); expected \(4, 3\)",
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_head_that_gives_no_features(kind, prototypes):
    calibrated = CalibratedModel(kind().eval(), prototypes)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{RUNS[kind]}"):
            calibrated(INPUTS)
        assert hook_of(calibrated)._recorded == {}


def test_sequences_have_features_by_token(prototypes):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 5))
    inputs = torch.randn(2, 7, 3)
    out = CalibratedModel(model, prototypes)(inputs)
    assert torch.equal(out, prototypes(model(inputs), model[0](inputs)))


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.head_dist = nn.Linear(3, 5), nn.Linear(3, 5)

    def forward(self, x):
        return (self.head(x) + self.head_dist(x)) / 2


UNFIT = {
    "wide": (lambda: nn.Linear(4, 5), "takes 4 features for 5 classes, but the prototypes are of 3 features for 5 cla"),
    "classes": (lambda: nn.Linear(3, 6), "takes 3 features for 6 classes, but the prototypes are of 3 features for 5"),
    "two heads": (TwoHeads, "the model averages the logits of head and head_dist"),
    "no head": (nn.Identity, "has no linear layer"),
}


@pytest.mark.parametrize(("make", "message"), UNFIT.values(), ids=UNFIT)
def test_models_that_prototypes_do_not_fit(make, message, with_prototypes, prototypes):
    with pytest.raises(ValueError, match=message):
        CalibratedModel(make(), prototypes)
    before = with_prototypes.model
    with pytest.raises(ValueError, match=message):
        with_prototypes.model = make()
    assert with_prototypes.model is before  # and works as it did
    torch.testing.assert_close(with_prototypes(INPUTS)["logits"], with_weight(before))


@pytest.mark.parametrize("around", [nn.Sequential, lambda part: nn.Sequential(part, finecal.Temperature(2.0))])
def test_prototypes_are_no_part_of_several(around, model, prototypes, calibrator, calibrated):
    with pytest.raises(ValueError, match="calibrator holds Prototypes beside others, but these take features: pass th"):
        CalibratedModel(model, around(prototypes))
    with pytest.raises(ValueError, match="calibrator holds Prototypes beside others"):
        calibrated.calibrator = around(prototypes)
    assert calibrated.calibrator is calibrator
    assert torch.equal(calibrated(INPUTS)["logits"], expected(model))


def test_calibrators_take_each_others_place(model, calibrated, calibrator, prototypes):
    calibrated.calibrator = prototypes
    torch.testing.assert_close(calibrated(INPUTS)["logits"], with_weight(model))
    calibrated.calibrator = calibrator
    assert torch.equal(calibrated(INPUTS)["logits"], expected(model))
    calibrated.calibrator = prototypes
    calibrated.fc = nn.Linear(3, 5)
    torch.testing.assert_close(calibrated(INPUTS)["logits"], with_weight(model))
    other = Model().eval()
    calibrated.model = other
    torch.testing.assert_close(calibrated(INPUTS)["logits"], with_weight(other))


def test_two_wrappers_share_a_model(model, with_prototypes):
    other = CalibratedModel(model, finecal.calibrators.Prototypes(MASK, 0.0, 0 * WEIGHT, CENTER))
    torch.testing.assert_close(with_prototypes(INPUTS)["logits"], with_weight(model))
    assert torch.equal(other(INPUTS)["logits"], model(INPUTS)["logits"])
    assert len(model.fc._forward_pre_hooks) == 1


def test_prototypes_on_the_meta_device(with_prototypes):
    empty = copy.deepcopy(with_prototypes).to("meta")
    restored = empty.to_empty(device="cpu")
    restored.load_state_dict(with_prototypes.state_dict())
    assert torch.equal(restored(INPUTS)["logits"], with_prototypes(INPUTS)["logits"])


def test_refuses_a_model_into_which_prototypes_were_folded_since(model, with_prototypes, prototypes):
    expected = with_weight(model)
    finecal.fold_into_head(model.fc, prototypes)
    with pytest.raises(ValueError, match="would be calibrated twice"):
        with_prototypes(INPUTS)
    torch.testing.assert_close(model(INPUTS)["logits"], expected)
    with pytest.raises(ValueError, match="folded into the model's head already"):
        CalibratedModel(model, prototypes)


def test_save_pretrained_saves_prototypes(model, with_prototypes, tmp_path):
    with_prototypes.save_pretrained(tmp_path)
    again = CalibratedModel(model, finecal.load(tmp_path / "finecal.safetensors"))
    assert torch.equal(again(INPUTS)["logits"], with_prototypes(INPUTS)["logits"])


def test_symbolic_trace(calibrator):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5))
    calibrated = CalibratedModel(model, calibrator)
    traced = torch.fx.symbolic_trace(calibrated)
    assert torch.equal(traced(INPUTS), calibrated(INPUTS))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"][-1] == "calibrator"


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_model_that_torch_cannot_copy_is_named():
    model = nn.Sequential(nn.Linear(4, 8), torch.nn.utils.weight_norm(nn.Linear(8, 3)))
    calibrated = CalibratedModel(model, finecal.AdditiveBias([True, True, False], 1.5))
    x = torch.ones(2, 4)
    expected = calibrated(x)
    with pytest.raises(
        ValueError, match=r"model\.1\.weight is computed .*parametrizations\.weight_norm.*remove_weight_norm"
    ):
        copy.deepcopy(calibrated)
    torch.nn.utils.remove_weight_norm(model[1])
    copied = copy.deepcopy(calibrated)
    torch.testing.assert_close(copied(x), expected)
    assert copied.model is not model
    assert copied.training is calibrated.training
