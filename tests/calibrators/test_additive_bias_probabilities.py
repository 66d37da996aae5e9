"""Probabilities in place of logits are told once, and nothing else changes by the look at them."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from finecal.calibrators import ClassBias, GroupTemperature, Prototypes

MASK = torch.tensor([True, True, False])
LOGITS = torch.tensor([[4.0, 1.0, 3.0], [0.5, 0.25, -1.0]])
PROBABILITIES = LOGITS.softmax(1)
TOLD = "logits look like probabilities: every row lies in .* pass the scores before softmax"
MODULES = {
    "AdditiveBias": lambda: finecal.AdditiveBias(MASK, 1.0),
    "ClassBias": lambda: ClassBias(np.ones(3)),
    "GroupTemperature": lambda: GroupTemperature(MASK, 1.0, 2.0),
    "NormalizedLogits": lambda: finecal.NormalizedLogits(np.zeros(3), np.ones(3)),
    "Temperature": lambda: finecal.Temperature(2.0),
    "Prototypes": lambda: Prototypes(MASK, 1.0, np.ones((3, 2)), np.zeros(2)),
}


def call(module, logits):
    return module(logits, torch.ones(len(logits), 2)) if isinstance(module, Prototypes) else module(logits)


@pytest.mark.parametrize("name", MODULES)
def test_probabilities_are_told_once(name):
    module = MODULES[name]()
    state, pickled = module.state_dict(), pickle.dumps(module)
    call(module, PROBABILITIES[:0])
    with pytest.warns(finecal.FinecalWarning, match=f"^{name}: {TOLD}".replace(" ", r"\s+")):
        first = call(module, PROBABILITIES)
    assert torch.equal(call(module, PROBABILITIES), first)
    assert module.state_dict().keys() == state.keys()
    if name != "AdditiveBias":  # which keeps an indicator of the absent classes
        assert pickle.dumps(module) == pickled
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        with pytest.warns(finecal.FinecalWarning):
            call(other, PROBABILITIES)


@pytest.mark.parametrize("name", MODULES)
def test_logits_are_not_told_of(name):
    for logits in (LOGITS, PROBABILITIES.log(), PROBABILITIES * 1.01, PROBABILITIES - 0.5):
        call(MODULES[name](), logits)


def test_dense_probabilities_are_told():
    dense = torch.rand(2, 3, 40, 50).softmax(1)
    with pytest.warns(finecal.FinecalWarning, match="AdditiveBias"):
        finecal.AdditiveBias(MASK, 1.0, dim=1)(dense)
    with pytest.warns(finecal.FinecalWarning, match="AdditiveBias"):
        finecal.CalibratedModel(nn.Softmax(1), finecal.AdditiveBias(MASK, 1.0))(LOGITS)


def test_graphs_and_transforms_look_at_nothing():
    module = finecal.AdditiveBias(MASK, 1.0)
    expected = PROBABILITIES + torch.tensor([0.0, 0.0, 1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of torch.jit.trace
        warnings.simplefilter("error", finecal.FinecalWarning)
        assert torch.equal(torch.compile(module, fullgraph=True, backend="eager")(PROBABILITIES), expected)
        assert torch.equal(torch.export.export(module, (PROBABILITIES,)).module()(PROBABILITIES), expected)
        assert torch.equal(torch.jit.trace(module, PROBABILITIES, check_trace=False)(PROBABILITIES), expected)
        assert torch.equal(torch.vmap(module)(PROBABILITIES), expected)
        assert copy.deepcopy(module).to("meta")(PROBABILITIES.to("meta")).is_meta
