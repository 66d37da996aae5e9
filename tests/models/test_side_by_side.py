"""Both models, with a head of all classes on their logits."""

import copy

import pytest
import torch
from torch import nn

import finecal

NEW_TO_OLD = [4, 1, -1]
pytestmark = pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")  # what is expected of made-up models


class Doubled(nn.Linear):
    """A model whose head is not linear in features that could be recorded."""

    def forward(self, x):
        return {"logits": 2 * super().forward(x).sinh()}


@pytest.fixture
def models():
    torch.manual_seed(0)
    return Doubled(5, 3), nn.Linear(5, 6)


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    x, labels = torch.randn(300, 5, generator=generator), torch.randint(3, (300,), generator=generator)
    return [(x[:120], labels[:120]), (x[120:], labels[120:])]


def beside(models, batches, **others):
    return finecal.weights.run_side_by_side(*models, batches, **{"new_to_old": NEW_TO_OLD, "verbose": False, **others})


def test_logits_are_sums_of_those_of_both(models, batches):
    both = beside(models, batches, is_held_out=True)
    x = torch.randn(50, 5)
    with torch.no_grad():
        found, new, old = both(x), models[0](x)["logits"], models[1](x)
    restored, gamma = both.restored, both.restored.estimate.gamma
    assert found.shape == (50, 7)
    assert restored.classes.tolist() == [4, 1, 6]
    torch.testing.assert_close(found[:, 6], new[:, 2])
    absent = [0, 2, 3, 5]
    level = 0.5 * (found[:, [4, 1]] - restored.scale * old[:, [4, 1]]).mean(1, keepdim=True)
    torch.testing.assert_close(found[:, absent], restored.scale * old[:, absent] + level + gamma)


def test_models_stay_and_batches_make_no_difference(models, batches):
    before = copy.deepcopy(nn.ModuleList(models).state_dict())
    both = beside(models, batches)
    assert both.model is models[0]
    assert both.training
    after = nn.ModuleList(models).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    whole = beside(models, [tuple(map(torch.cat, zip(*batches, strict=True)))])
    torch.testing.assert_close(whole.head.weight, both.head.weight)
    torch.testing.assert_close(whole.head.bias, both.head.bias)


def test_state_is_kept_by_the_module(models, batches):
    both = beside(models, batches)
    other = finecal.weights.SideBySide(Doubled(5, 3), nn.Linear(5, 6), both.restored)
    other.load_state_dict(both.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(other(x), both(x))


def test_says_what_it_did_and_helps_itself_to_names(models, batches, capsys):
    both = beside(models, batches, new_to_old=(["e", "b", "own"], list("abcdef")), verbose=True)
    assert "head of 7 classes restored: 3 fine-tuned, 4 from the old head" in capsys.readouterr().err
    assert torch.equal(both.head.weight, beside(models, batches).head.weight)


def test_refuses(models, batches):
    with pytest.raises(ValueError, match="pretrained is model itself"):
        beside((models[0], models[0]), batches)
    with pytest.raises(ValueError, match=r"new_to_old has shape \(2,\)"):
        beside(models, batches, new_to_old=[0, 1])
    with pytest.raises(TypeError, match="restored is a NoneType; run_side_by_side makes it"):
        finecal.weights.SideBySide(*models, None)
