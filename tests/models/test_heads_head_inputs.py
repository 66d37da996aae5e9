"""What the final linear layer is called with."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

import finecal
from finecal._models.heads import HeadInputs, attach_head_inputs, capture_head_inputs, single_head
from foldable_models import Classifier, Distilled

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
RAN = "^the final linear layer ran {} times for one batch, so its inputs are not one row per sample; pass the model"


@pytest.fixture
def linear():
    return nn.Linear(8, 6)


def test_records_what_is_wanted(linear):
    with capture_head_inputs(linear) as inputs:
        linear(X)  # before it is wanted
        inputs.arm()
        linear(X + 1)
        assert torch.equal(inputs.pop(), X + 1)
        linear(X)  # after it was taken
        with pytest.raises(ValueError, match=RAN.format(0)):
            inputs.pop()
        inputs.arm()
        linear(input=X)
        assert torch.equal(inputs.pop(), X)
        inputs.arm()
        linear(X)
        inputs.arm()  # of another batch
        linear(X + 2)
        assert torch.equal(inputs.pop(), X + 2)


@pytest.mark.parametrize("times", [0, 2, 3])
def test_a_layer_that_does_not_run_once(times, linear):
    with capture_head_inputs(linear) as inputs:
        inputs.arm()
        for _ in range(times):
            linear(X)
        with pytest.raises(ValueError, match=RAN.format(times)):
            inputs.pop()
        inputs.arm()
        linear(X)
        assert torch.equal(inputs.pop(), X)


def test_forgets(linear):
    with capture_head_inputs(linear) as inputs:
        inputs.arm()
        linear(X)
        inputs.clear()
        linear(X)
        with pytest.raises(ValueError, match=RAN.format(0)):
            inputs.pop()
        inputs.clear()  # what is not there


def test_is_there_for_the_time_being(linear):
    with pytest.raises(RuntimeError, match="mat1 and mat2"), capture_head_inputs(linear):
        linear(X[:, :3])
    assert not linear._forward_pre_hooks
    with capture_head_inputs(linear):
        assert len(linear._forward_pre_hooks) == 1
    assert not linear._forward_pre_hooks
    with capture_head_inputs(None) as inputs, pytest.raises(ValueError, match=RAN.format(0)):
        inputs.pop()


def test_one_that_lasts_is_put_there_once(linear):
    hook = attach_head_inputs(linear)
    assert attach_head_inputs(linear) is hook
    for twin in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        own = attach_head_inputs(twin)
        assert own is not hook
        assert len(twin._forward_pre_hooks) == 1
        own.arm()
        hook.arm()
        twin(X)
        assert torch.equal(own.pop(), X)
        with pytest.raises(ValueError, match=RAN.format(0)):
            hook.pop()


def test_other_hooks_stay(linear):
    linear.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    hook = attach_head_inputs(linear)
    hook.arm()
    linear(X)
    assert torch.equal(hook.pop(), 2 * X)  # what the layer itself is called with
    assert len(linear._forward_pre_hooks) == 2


def test_each_thread_has_its_own(linear):
    hook = attach_head_inputs(linear)
    hook.arm()
    linear(X)
    found = []

    def other():
        linear(X)  # not wanted here
        hook.arm()
        linear(X + 1)
        found.append(hook.pop())

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert torch.equal(found[0], X + 1)
    assert torch.equal(hook.pop(), X)


def test_single_head():
    model = Classifier()
    assert single_head(model) is model.classifier
    with pytest.raises(ValueError, match="the model averages the logits of classifier and head_dist.* no one row of"):
        single_head(Distilled())


class Reusing(nn.Module):
    """Changes the features once the head has read them."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        features = x + 1
        logits = self.head(features)
        features.relu_().add_(5)
        return logits


def test_features_are_those_that_the_head_has_read():
    model = Reusing().eval()
    samples = finecal.collect_logits(model, [X], with_features=True, progress=False)
    assert torch.equal(samples.features, X + 1)
    mask = [True, False, True, True, False, True]
    prototypes = finecal.calibrators.Prototypes(mask, 1.7, torch.randn(6, 8), torch.zeros(8))
    expected = prototypes(model.head(X + 1), X + 1)
    torch.testing.assert_close(finecal.CalibratedModel(model, prototypes)(X), expected)
    torch.testing.assert_close(finecal.fold_into_head(model, prototypes, inputs=X)(X), expected, atol=1e-5, rtol=1e-5)


def test_features_have_gradients(linear):
    x = X.clone().requires_grad_()
    with capture_head_inputs(linear) as inputs:
        inputs.arm()
        linear(x)
        inputs.pop().sum().backward()
    assert torch.equal(x.grad, torch.ones_like(X))


def test_hook_by_itself(linear):
    hook = HeadInputs()
    hook(linear, (X,), {})
    with pytest.raises(ValueError, match=RAN.format(0)):
        hook.pop()
