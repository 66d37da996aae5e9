import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import finecal

MASK = torch.tensor([True, True, False])
X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))


def bias(gamma=1.5):
    return finecal.AdditiveBias(MASK, gamma)


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3, bias=False)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_plain_linear_layer_gets_a_bias(dtype):
    model = net(dtype)
    before, keys = model(X.to(dtype)), set(model.state_dict())
    with pytest.warns(finecal.FinecalWarning, match=r"one key more, 2\.bias: .*bias=True"):
        folded = finecal.fold_into_head(model, bias(), inputs=X.to(dtype))
    assert folded is model
    torch.testing.assert_close(model(X.to(dtype)), finecal.calibrate_logits(before, MASK, 1.5))
    assert set(model.state_dict()) - keys == {"2.bias"}
    assert model[2].bias.dtype == dtype
    loaded = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)
    loaded.load_state_dict(model.state_dict())
    assert torch.equal(loaded(X.to(dtype)), model(X.to(dtype)))
    with pytest.raises(ValueError, match="is folded into the head 2 already"):
        finecal.fold_into_head(model, bias(), inputs=X.to(dtype))
    finecal.unfold_from_head(model, bias())
    assert torch.equal(model(X.to(dtype)), before)


def test_the_wrapper_folds_it_too():
    model = net()
    expected = finecal.CalibratedModel(copy.deepcopy(model), bias())(X)
    with pytest.warns(finecal.FinecalWarning, match="one key more"):
        folded = finecal.CalibratedModel(model, bias()).fold(X)
    torch.testing.assert_close(folded(X), expected)


class Cosine(nn.Module):
    """Reads the weight of its layer alone."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return 20 * F.linear(F.normalize(x), F.normalize(self.fc.weight))


class Scaled(Cosine):
    def forward(self, x):
        return 20 * self.fc(F.normalize(x))


class Pretrained(nn.Module):
    def __init__(self):
        super().__init__()
        self.score = nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.score(x)

    def save_pretrained(self, folder):
        pass


class Special(nn.Linear):
    pass


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Cosine(), "the bias of the head fc does not act"),
        (Scaled(), "gain 20 times"),
        (Pretrained(), "score has no bias, and one that is added now would be dropped .*finecal.sequences.logit_bias"),
        (nn.Sequential(Special(4, 3, bias=False)), "has no bias, and one"),
    ],
)
def test_others_are_refused_and_stay_as_they_are(model, message):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        finecal.fold_into_head(model, bias(), inputs=X)
    assert model.state_dict().keys() == before.keys()
    assert all(module.bias is None for module in model.modules() if isinstance(module, nn.Linear))


def test_without_inputs_it_is_not_checked_and_not_given():
    model = net()
    with pytest.raises(ValueError, match=r"head 2 has no bias; .*inputs=\.\.\.\) gives it one"):
        finecal.fold_into_head(model, bias())
    assert model[2].bias is None


def test_a_gamma_of_zero_needs_no_bias():
    model = net()
    finecal.fold_into_head(model, bias(0.0), inputs=X)
    assert model[2].bias is None
