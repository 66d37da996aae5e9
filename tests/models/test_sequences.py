"""A model and an `AdditiveBias` in an ``nn.Sequential``, and gamma that is folded into the model's head."""

import copy
import pickle
from collections import OrderedDict

import pytest
import torch
from torch import nn

import finecal

MASK = torch.tensor([True, False, True, False, False])
INPUTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
TWICE = "so gamma would be added twice"


def bias(gamma=1.5):
    return finecal.AdditiveBias(MASK, gamma)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.body(x))


def appended(model, calibrator):
    return nn.Sequential(model).append(calibrator)


def put_in_place(model, calibrator):
    sequence = nn.Sequential(model, nn.Identity())
    sequence[1] = calibrator
    return sequence


def model_put_in_place(model, calibrator):
    sequence = nn.Sequential(nn.Identity(), calibrator)
    sequence[0] = model
    return sequence


SEQUENCES = {
    "two parts": nn.Sequential,
    "by name": lambda model, calibrator: nn.Sequential(OrderedDict(model=model, calibrator=calibrator)),
    "more parts": lambda model, calibrator: nn.Sequential(
        nn.Identity(), model, nn.Dropout(), calibrator, nn.Softmax(-1)
    ),
    "nested bias": lambda model, calibrator: nn.Sequential(model, nn.Sequential(calibrator, finecal.Temperature(2.0))),
    "nested model": lambda model, calibrator: nn.Sequential(nn.Sequential(nn.Identity(), model), calibrator),
    "nested both": lambda model, calibrator: nn.Sequential(nn.Sequential(model, calibrator), nn.Identity()),
    "appended": appended,
    "put in place": put_in_place,
    "model put in place": model_put_in_place,
    "slice": lambda model, calibrator: nn.Sequential(model, calibrator, nn.Identity())[:2],
}


@pytest.mark.parametrize("make", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_refuses_gamma_twice(make, same, when):
    model, calibrator = Model(), bias()
    folded = calibrator if same else bias()
    if when == "before":
        finecal.fold_into_head(model, folded)
        sequence = make(model, calibrator).eval()
    else:
        sequence = make(model, calibrator).eval()
        expected = sequence(INPUTS)
        finecal.fold_into_head(model, folded)
    for _ in range(2):
        with pytest.raises(ValueError, match=TWICE):
            sequence(INPUTS)
    finecal.unfold_from_head(model, folded)
    again = sequence(INPUTS)
    assert when == "before" or torch.allclose(again, expected)


def test_a_head_that_is_folded_by_itself_is_seen():
    model = Model()
    sequence = nn.Sequential(model, bias())
    finecal.fold_into_head(model.fc, bias())
    with pytest.raises(ValueError, match=TWICE):
        sequence(INPUTS)


def test_the_calibrator_may_be_called_on_other_logits():
    model, calibrator = Model(), bias()
    other = copy.deepcopy(model)
    sequence = nn.Sequential(other, calibrator)
    expected = calibrator(model(INPUTS))
    finecal.fold_into_head(model, calibrator)
    assert torch.allclose(model(INPUTS), expected)
    assert torch.equal(sequence(INPUTS), calibrator(other(INPUTS)))
    assert torch.equal(nn.Sequential(calibrator)(other(INPUTS)), sequence(INPUTS))


@pytest.mark.parametrize("calibrator", [finecal.Temperature(2.0), finecal.ClassBias([0.0, 1, 0, 1, 0])])
def test_other_calibrators_may_follow_gamma(calibrator):
    model = finecal.fold_into_head(Model(), bias())
    assert torch.equal(nn.Sequential(model, calibrator)(INPUTS), calibrator(model(INPUTS)))


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_look_at_their_own_model(again):
    sequence = nn.Sequential(Model(), bias())
    twin = again(sequence)
    finecal.fold_into_head(sequence[0], bias())
    assert torch.equal(twin(INPUTS), twin[1](twin[0](INPUTS)))
    with pytest.raises(ValueError, match=TWICE):
        again(sequence)(INPUTS)
    finecal.fold_into_head(twin[0], bias())
    with pytest.raises(ValueError, match=TWICE):
        twin(INPUTS)


def test_parts_that_are_changed_in_silence_are_seen():
    sequence = nn.Sequential(Model(), bias())
    folded = finecal.fold_into_head(Model(), bias())
    sequence._modules["0"] = folded
    with pytest.raises(ValueError, match=TWICE):
        sequence(INPUTS)
    del sequence[1]
    assert torch.equal(sequence(INPUTS), folded(INPUTS))


def test_state_is_as_without():
    sequence = nn.Sequential(Model(), bias())
    names = [f"0.{name}" for name in Model().state_dict()]
    assert list(sequence.state_dict()) == [*names, "1.seen_mask", "1.gamma"]
    assert len(list(sequence.modules())) == 5
    other = nn.Sequential(Model(), bias(2.5))
    other.load_state_dict(sequence.state_dict())
    assert torch.equal(other(INPUTS), sequence(INPUTS))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of torch.compile, as it breaks
def test_compiled_and_parallel_sequences_refuse_as_well():
    sequence = nn.Sequential(Model(), bias()).eval()
    wrappers = [torch.compile(sequence, backend="eager"), copy.copy(sequence), nn.DataParallel(sequence)]
    expected = [wrapper(INPUTS) for wrapper in wrappers]
    finecal.fold_into_head(sequence[0], bias())
    for wrapper in wrappers:
        with pytest.raises(ValueError, match=TWICE):
            wrapper(INPUTS)
    finecal.unfold_from_head(sequence[0], bias())
    for wrapper, before in zip(wrappers, expected, strict=True):
        torch.testing.assert_close(wrapper(INPUTS), before)


def test_compiles_and_exports():
    sequence = nn.Sequential(Model(), bias()).eval()
    expected = sequence(INPUTS)
    compiled = torch.compile(sequence, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(INPUTS), expected)
    exported = torch.export.export(sequence, (INPUTS,)).module()
    assert torch.equal(exported(INPUTS), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_traces():
    sequence = nn.Sequential(Model(), bias()).eval()
    traced = torch.jit.trace(sequence, INPUTS)
    assert torch.equal(traced(INPUTS), sequence(INPUTS))
    finecal.fold_into_head(sequence[0], bias())
    with pytest.raises(ValueError, match=TWICE):
        torch.jit.trace(sequence, INPUTS)


class Awkward(nn.Module):
    """A classifier whose methods do not let themselves be called."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 5)

    def get_classifier(self, name):
        raise NotImplementedError

    def forward(self, x):
        return self.fc(x)


def test_models_that_cannot_be_looked_into_are_taken_as_they_are():
    model = Awkward()
    sequence = nn.Sequential(model, bias())
    assert torch.equal(sequence(INPUTS), sequence[1](model(INPUTS)))
    finecal.fold_into_head(model.fc, bias())
    with pytest.raises(ValueError, match=TWICE):
        sequence(INPUTS)


def test_other_modules_are_left_alone():
    class Own(nn.Sequential):
        def forward(self, x):
            return self[0](x)

    plain, own = nn.Sequential(Model(), nn.Softmax(-1)), Own(Model(), bias())
    model = nn.Module()
    model.part, model.bias = Model(), bias()
    for module in (plain, own, model):
        assert not module._forward_pre_hooks
