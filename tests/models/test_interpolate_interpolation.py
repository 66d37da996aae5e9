"""Weights between two models."""

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

import finecal
from finecal._models.interpolate import named_tensors

SEEN = [True, True, False]


def pair(make, seed=0):
    """Two models of one architecture with other weights."""
    torch.manual_seed(seed)
    return make(), make()


def perceptron():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def with_batch_norm():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.9), nn.Linear(6, 3))


def trained(model, scale=1.0, steps=3):
    """Let the batch norms of a model see something, and put it into eval mode."""
    model.train()
    for _ in range(steps):
        model(1 + scale * torch.randn(20, 4))
    return model.eval()


def state(model):
    return {name: tensor.clone() for name, tensor in named_tensors(model).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- values -----------------------------------------------------------------------------------------------------------


def test_by_hand():
    pretrained, finetuned = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        pretrained.weight.copy_(torch.tensor([[0.0, 4.0], [8.0, -2.0]]))
        pretrained.bias.copy_(torch.tensor([1.0, 2.0]))
        finetuned.weight.copy_(torch.tensor([[4.0, 0.0], [8.0, 2.0]]))
        finetuned.bias.copy_(torch.tensor([1.0, -2.0]))
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.25)
    assert between.weight.tolist() == [[1.0, 3.0], [8.0, -1.0]]
    assert between.bias.tolist() == [1.0, 1.0]


@given(alpha=st.floats(0, 1), seed=st.integers(0, 99))
def test_logits_of_a_linear_model_are_mixed_as_its_weights(alpha, seed):
    pretrained, finetuned = pair(lambda: nn.Linear(5, 4, dtype=torch.float64), seed)
    x = torch.randn(7, 5, dtype=torch.float64)
    logits = finecal.weights.interpolate_weights(pretrained, finetuned, alpha)(x)
    torch.testing.assert_close(logits, (1 - alpha) * pretrained(x) + alpha * finetuned(x))


def test_every_tensor_by_the_formula(dtype, device):
    pretrained, finetuned = (trained(model).to(device, dtype) for model in pair(with_batch_norm))
    with pytest.warns(finecal.FinecalWarning, match="batch norms"):
        between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.3)
    before, after, found = (named_tensors(model) for model in (pretrained, finetuned, between))
    for name, tensor in found.items():
        if tensor.is_floating_point():
            wide = 0.7 * before[name].double() + 0.3 * after[name].double()
            assert tensor.dtype == dtype
            assert tensor.device.type == device.type
            tolerance = torch.finfo(dtype).eps * before[name].double().abs().maximum(after[name].double().abs())
            assert ((tensor.double() - wide).abs() <= tolerance).all()
        else:
            assert torch.equal(tensor, after[name])


@pytest.mark.parametrize("alpha", [0, 1, 0.0, 1.0, np.float32(1), torch.tensor(0)])
def test_the_ends_are_exact(alpha, dtype):
    pretrained, finetuned = (trained(model).to(dtype) for model in pair(with_batch_norm))
    between = finecal.weights.interpolate_weights(pretrained, finetuned, alpha)
    end = named_tensors(finetuned if alpha else pretrained)
    for name, tensor in named_tensors(between).items():
        if tensor.is_floating_point():
            assert torch.equal(tensor.view(torch.uint8), end[name].view(torch.uint8))


def test_weights_that_are_the_same_stay_bit_for_bit():
    pretrained, finetuned = pair(perceptron)
    finetuned[0].load_state_dict(pretrained[0].state_dict())
    with torch.no_grad():
        finetuned[2].weight[0] = pretrained[2].weight[0]
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.1)
    assert torch.equal(between[0].weight, pretrained[0].weight)
    assert torch.equal(between[2].weight[0], pretrained[2].weight[0])
    assert not torch.equal(between[2].weight[1], pretrained[2].weight[1])


def test_rounded_once_to_the_dtype_of_the_finetuned_model():
    pretrained, finetuned = pair(perceptron)
    finetuned.bfloat16()
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)
    expected = (pretrained[0].weight + finetuned[0].weight.float()) / 2
    assert torch.equal(between[0].weight, expected.bfloat16())
    assert finecal.weights.interpolate_weights(pretrained, finetuned, 0)[0].weight.dtype == torch.bfloat16


def test_complex_weights():
    pretrained, finetuned = pair(lambda: nn.Linear(3, 3, dtype=torch.complex64))
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.25)
    torch.testing.assert_close(between.weight, 0.75 * pretrained.weight + 0.25 * finetuned.weight)


def test_masks_of_infinity_stay():
    pretrained, finetuned = pair(perceptron)
    for model in (pretrained, finetuned):
        model.register_buffer("mask", torch.tensor([0.0, -torch.inf]), persistent=False)
    finetuned.mask[0] = 1.0
    assert finecal.weights.interpolate_weights(pretrained, finetuned, 0.5).mask.tolist() == [0.5, -torch.inf]


# --- all else is that of the fine-tuned model -------------------------------------------------------------------------


def test_a_copy_of_the_finetuned_model():
    pretrained, finetuned = pair(with_batch_norm)
    trained(pretrained), trained(finetuned, steps=5)
    finetuned.name = "mine"
    finetuned[0].weight.requires_grad_(False)
    finetuned[1].train()
    before, after = state(pretrained), state(finetuned)
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.5, batch_norm_loader=[torch.randn(9, 4)])
    assert same(before, state(pretrained))
    assert same(after, state(finetuned))
    assert type(between) is nn.Sequential
    assert between.name == "mine"
    assert [module.training for module in between.modules()] == [module.training for module in finetuned.modules()]
    assert [p.requires_grad for p in between.parameters()] == [p.requires_grad for p in finetuned.parameters()]
    assert all(p.is_leaf and p.grad is None for p in between.parameters())
    between(torch.randn(2, 4)).sum().backward()
    assert between[3].weight.grad is not None
    assert finetuned[3].weight.grad is None


class Tied(nn.Module):
    def __init__(self, tied=True):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        if tied:
            self.head.weight = self.embedding.weight


def test_tied_weights_stay_tied_and_are_mixed_once():
    pretrained, finetuned = pair(Tied)
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.25)
    assert between.head.weight is between.embedding.weight
    torch.testing.assert_close(between.head.weight, 0.75 * pretrained.head.weight + 0.25 * finetuned.head.weight)


def test_tied_before_only():
    pretrained, finetuned = Tied(), Tied(tied=False)
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)
    for name in ("embedding.weight", "head.weight"):
        ends = pretrained.get_parameter(name), finetuned.get_parameter(name)
        torch.testing.assert_close(between.get_parameter(name), (ends[0] + ends[1]) / 2)


def test_tied_after_only():
    with pytest.raises(ValueError, match=r"embedding\.weight and head\.weight are tied in finetuned, but differ"):
        finecal.weights.interpolate_weights(Tied(tied=False), Tied(), 0.5)


def test_counters_are_those_of_the_finetuned_model():
    pretrained, finetuned = pair(with_batch_norm)
    trained(pretrained, steps=2), trained(finetuned, steps=7)
    assert finecal.weights.interpolate_weights(pretrained, finetuned, 0)[1].num_batches_tracked == 7


def test_measuring_does_not_count():
    pretrained, finetuned = pair(with_batch_norm)
    trained(pretrained, steps=2), trained(finetuned, steps=7)
    batches = [torch.randn(9, 4)] * 3
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.5, batch_norm_loader=batches)
    assert between[1].num_batches_tracked == finetuned[1].num_batches_tracked == 7


def test_integer_buffers_must_be_the_same():
    pretrained, finetuned = pair(perceptron)
    pretrained.register_buffer("index", torch.tensor([0, 1, 2]))
    finetuned.register_buffer("index", torch.tensor([0, 1, 2]))
    assert finecal.weights.interpolate_weights(pretrained, finetuned, 0.5).index.tolist() == [0, 1, 2]
    finetuned.index[0] = 2
    with pytest.raises(ValueError, match="index has dtype int64, which cannot be mixed, and differs"):
        finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)


# --- batch norm -------------------------------------------------------------------------------------------------------


def test_batch_norm_is_measured_at_the_new_weights():
    pretrained, finetuned = (trained(model) for model in pair(with_batch_norm))
    batches = [2 + torch.randn(30, 4) for _ in range(3)]
    between = finecal.weights.interpolate_weights(
        pretrained, finetuned, 0.5, batch_norm_loader=[(x, None) for x in batches]
    )
    hidden = [between[0](x) for x in batches]
    torch.testing.assert_close(between[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
    torch.testing.assert_close(between[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
    assert between[1].momentum == finetuned[1].momentum
    assert not between[1].training


def test_batch_norm_agrees_with_torch():
    pretrained, finetuned = (
        trained(model) for model in pair(lambda: nn.Sequential(*with_batch_norm()[:2], nn.Linear(6, 3)))
    )
    batches = [2 + torch.randn(30, 4) for _ in range(3)]
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.5, batch_norm_loader=batches)
    expected = copy.deepcopy(between)
    torch.optim.swa_utils.update_bn(batches, expected)
    torch.testing.assert_close(between[1].running_mean, expected[1].running_mean)
    torch.testing.assert_close(between[1].running_var, expected[1].running_var)


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_keep_their_statistics(alpha):
    pretrained, finetuned = (trained(model) for model in pair(with_batch_norm))
    between = finecal.weights.interpolate_weights(pretrained, finetuned, alpha, batch_norm_loader=[torch.randn(9, 4)])
    assert torch.equal(between[1].running_mean, (finetuned if alpha else pretrained)[1].running_mean)


def test_frozen_statistics_stay():
    pretrained, finetuned = pair(with_batch_norm)
    finetuned[1].load_state_dict(trained(pretrained)[1].state_dict())
    finetuned.eval()
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.5, batch_norm_loader=[torch.randn(9, 4)])
    assert torch.equal(between[1].running_mean, pretrained[1].running_mean)
    finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)  # without a warning


def test_batch_norm_without_statistics():
    pretrained, finetuned = pair(lambda: nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 3)))
    finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)


def test_no_batches_for_batch_norm():
    pretrained, finetuned = (trained(model) for model in pair(with_batch_norm))
    with pytest.raises(ValueError, match="batch_norm_loader gave no batch"):
        finecal.weights.interpolate_weights(pretrained, finetuned, 0.5, batch_norm_loader=[])
    with pytest.raises(TypeError, match="batch_norm_loader is a Tensor; pass something that gives batches"):
        finecal.weights.interpolate_weights(pretrained, finetuned, 0.5, batch_norm_loader=torch.randn(3, 4))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "error", "message"),
    [
        (-0.1, ValueError, r"alpha is -0\.1; it must lie in \[0, 1\]"),
        (1.5, ValueError, r"alpha is 1\.5; it must lie in \[0, 1\].*does not extrapolate"),
        (float("inf"), ValueError, "alpha is inf"),
        (float("nan"), ValueError, "alpha is NaN"),
        (True, TypeError, "alpha is a bool; pass a number"),
        ("0.5", TypeError, "alpha is a str; pass a number"),
        (None, TypeError, "alpha is a NoneType; pass a number"),
        ([0.5], TypeError, "alpha is a list; pass a number"),
    ],
)
def test_alpha_is_checked(alpha, error, message):
    with pytest.raises(error, match=message):
        finecal.weights.interpolate_weights(*pair(perceptron), alpha)


def error_of(pretrained, finetuned, kind=ValueError):
    with pytest.raises(kind) as caught:
        finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)
    return str(caught.value)


def test_the_same_model():
    model = perceptron()
    assert "are the same object; fine-tuning changes a model in place: keep a copy" in error_of(model, model)
    assert "have the same weights; fine-tuning changes a model in place" in error_of(model, copy.deepcopy(model))
    other = perceptron()
    for name in ("weight", "bias"):
        for layer in (0, 2):
            setattr(other[layer], name, getattr(model[layer], name))
    assert "have the same weights" in error_of(model, other)


def test_other_heads():
    pretrained, finetuned = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 10)), perceptron()
    finetuned = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    message = "the head of pretrained has 10 classes, that of finetuned 3; gamma needs logits of all classes"
    assert message in error_of(pretrained, finetuned)


def test_other_shapes():
    message = error_of(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)))
    assert message.startswith("0.weight has shape (6, 5) in pretrained and (6, 4) in finetuned; pass two models")


def test_other_names():
    message = error_of(perceptron(), nn.Sequential(*perceptron(), nn.Linear(3, 3)))
    assert "(Sequential, Sequential) are not of one architecture: finetuned alone has 3.bias, 3.weight. Pass" in message
    message = error_of(with_batch_norm(), perceptron())
    assert "pretrained alone has 1.bias, 1.num_batches_tracked, 1.running_mean and 4 more; finetuned alone" in message


@pytest.mark.parametrize("position", [0, 1])
def test_not_a_model(position):
    models = list(pair(perceptron))
    models[position] = models[position].state_dict()
    argument = ("pretrained", "finetuned")[position]
    assert f"{argument}: model is a OrderedDict; pass the torch.nn.Module" in error_of(*models, kind=TypeError)


def test_no_pretrained_model():
    assert "pretrained is None, which is for models with LoRA" in error_of(None, perceptron(), TypeError)


@pytest.mark.parametrize("position", [0, 1])
def test_calibrated_models(position):
    models = list(pair(perceptron))
    argument = ("pretrained", "finetuned")[position]
    bias = finecal.AdditiveBias(SEEN, 2.0)
    plain = models[position]
    models[position] = finecal.CalibratedModel(plain, bias)
    assert f"{argument}: model is calibrated already" in error_of(*models)
    models[position] = finecal.fold_into_head(plain, bias)
    message = error_of(*models)
    assert f"{argument}: a calibrator is folded into the model's head already" in message
    assert "unfold_from_head" in message
    finecal.unfold_from_head(plain, bias)
    finecal.weights.interpolate_weights(*models, 0.5)


def test_no_values():
    message = error_of(perceptron(), perceptron().to("meta"))
    assert message == "0.weight of finetuned is on the meta device and has no values; load the weights first"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch: lazy modules are under development
        lazy = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 3))
    assert error_of(lazy, perceptron()) == "0.weight of pretrained has no shape yet; run the model on a batch first"


def test_parametrized_weights():
    pretrained, finetuned = pair(perceptron)
    for model in (pretrained, finetuned):
        parametrizations.weight_norm(model[0])
    message = error_of(pretrained, finetuned)
    assert "0.parametrizations.weight.original0 is only a part of a parametrized weight; call" in message
    finetuned[0].load_state_dict(pretrained[0].state_dict())
    finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)  # only the head differs


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("compute", "advice"),
    [
        (nn.utils.weight_norm, "torch.nn.utils.remove_weight_norm"),
        (nn.utils.spectral_norm, "torch.nn.utils.remove_spectral_norm"),
        (lambda layer: prune.random_unstructured(layer, "weight", amount=0.5), "torch.nn.utils.prune.remove"),
    ],
)
def test_weights_that_hooks_compute(compute, advice):
    pretrained, finetuned = pair(perceptron)
    for model in (pretrained, finetuned):
        compute(model[0])
    message = error_of(pretrained, finetuned)
    assert message.startswith("0.weight is computed by a hook (")
    assert f"; call {advice} on that layer of both models first" in message
    finetuned[0].load_state_dict(pretrained[0].state_dict())
    for model in (pretrained, finetuned):
        with torch.no_grad():
            model(torch.randn(2, 4))  # else torch refuses to copy it
    x = torch.randn(5, 4)
    between = finecal.weights.interpolate_weights(pretrained.eval(), finetuned.eval(), 0.5)  # only the head differs
    torch.testing.assert_close(between(x), (pretrained(x) + finetuned(x)) / 2)


def test_pruned_weights_with_one_mask():
    pretrained, x = perceptron(), torch.randn(5, 4)
    prune.random_unstructured(pretrained[0], "weight", amount=0.5)
    with torch.no_grad():
        pretrained(x)  # else torch refuses to copy it
        finetuned = copy.deepcopy(pretrained)
        nn.init.normal_(finetuned[0].weight_orig)
        between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.25)
        torch.testing.assert_close(between[0](x), 0.75 * pretrained[0](x) + 0.25 * finetuned[0](x))


def test_models_made_under_inference_mode():
    with torch.inference_mode():
        pretrained, finetuned = pair(perceptron)
    x = torch.randn(5, 4)
    between = finecal.weights.interpolate_weights(pretrained, finetuned, 0.25)
    torch.testing.assert_close(between[0](x), 0.75 * pretrained[0](x) + 0.25 * finetuned[0](x))


def test_quantised_weights():
    pretrained, finetuned = pair(perceptron)
    finetuned[0].weight = nn.Parameter(torch.zeros(6, 4, dtype=torch.int8), requires_grad=False)
    message = "0.weight has dtype float32 in pretrained and int8 in finetuned; pass both before quantisation"
    assert error_of(pretrained, finetuned) == message
    pretrained[0].weight = nn.Parameter(torch.ones(6, 4, dtype=torch.int8), requires_grad=False)
    assert "0.weight has dtype int8, which cannot be mixed" in error_of(pretrained, finetuned)
    pretrained[0].weight = finetuned[0].weight  # the frozen weights of QLoRA
    finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)


def test_quantised_modules():
    pretrained, finetuned = pair(perceptron)
    finetuned[0]._packed_params = object()
    assert error_of(pretrained, finetuned) == "0 of finetuned is quantised; pass the model before quantisation"
