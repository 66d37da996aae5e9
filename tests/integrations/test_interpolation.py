"""Weights between before and after fine-tuning, of models of other libraries."""

import copy

import peft
import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import AutoModelForSequenceClassification, BertConfig

import finecal

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the other packages
    pytest.mark.filterwarnings("error::finecal.FinecalWarning"),
]
C = 10
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": C}
TOKENS = {"input_ids": torch.arange(3, 27).reshape(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
ALPHAS = [0, 0.3, 1]


def bert():
    return AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=99, **SIZES)).eval()


def shaken(model, size=0.05):
    """Change what is trained, as fine-tuning would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def lora(base, **settings):
    config = peft.LoraConfig(**{"task_type": "SEQ_CLS", "r": 2, "lora_alpha": 6, **settings})
    return shaken(peft.get_peft_model(base, config), 0.3)


def logits(model):
    with torch.no_grad():
        return model(**TOKENS).logits


def images(model, size):
    with torch.no_grad():
        return model(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(2)))


# --- PEFT -------------------------------------------------------------------------------------------------------------

SETTINGS = {
    "attention": {},
    "embeddings": {"target_modules": ["query", "word_embeddings"]},
    "rslora": {"use_rslora": True, "target_modules": "all-linear"},
    "lora_bias": {"lora_bias": True},
}


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("with_base", [True, False])
def test_lora_as_its_merged_weights(settings, alpha, with_base):
    base = bert()
    finetuned = lora(copy.deepcopy(base), **settings)
    between = finecal.weights.interpolate_weights(base if with_base else None, finetuned, alpha)
    assert isinstance(between, peft.PeftModel)
    merged = copy.deepcopy(finetuned).merge_and_unload()
    expected = finecal.weights.interpolate_weights(base, merged, alpha)
    torch.testing.assert_close(logits(between), logits(expected), atol=1e-5, rtol=1e-4)
    if alpha == 0:
        torch.testing.assert_close(logits(between), logits(base))
    if alpha == 1:
        assert torch.equal(logits(between), logits(finetuned))


@pytest.mark.parametrize("settings", [{"bias": "all"}, {"bias": "lora_only"}])
def test_lora_with_trained_biases(settings):
    base = bert()
    finetuned = lora(copy.deepcopy(base), **settings)
    merged = copy.deepcopy(finetuned).merge_and_unload()
    between = finecal.weights.interpolate_weights(base, finetuned, 0.3)
    expected = finecal.weights.interpolate_weights(base, merged, 0.3)
    torch.testing.assert_close(logits(between), logits(expected), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="has trained biases too"):
        finecal.weights.interpolate_weights(None, finetuned, 0.3)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora"])
def test_lora_that_changes_the_base_weights_at_its_start(start, alpha):
    base = bert()
    finetuned = lora(copy.deepcopy(base), init_lora_weights=start)
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}', which changes .* pass the model before fine"):
        finecal.weights.interpolate_weights(None, finetuned, alpha)
    between = finecal.weights.interpolate_weights(base, finetuned, alpha)
    expected = finecal.weights.interpolate_weights(base, copy.deepcopy(finetuned).merge_and_unload(), alpha)
    torch.testing.assert_close(logits(between), logits(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("start", [False, "gaussian", "orthogonal"])
def test_lora_of_other_starts(start):
    base = bert()
    finetuned = lora(copy.deepcopy(base), init_lora_weights=start)
    torch.testing.assert_close(logits(finecal.weights.interpolate_weights(None, finetuned, 0)), logits(base))


def test_lora_is_saved_at_alpha(tmp_path):
    base = bert()
    between = finecal.weights.interpolate_weights(None, lora(copy.deepcopy(base)), 0.3)
    between.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(between))


def test_lora_inside_a_model_without_a_wrapper():
    base = bert()
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["query"])
    finetuned = shaken(peft.inject_adapter_in_model(config, copy.deepcopy(base)), 0.3)
    between = finecal.weights.interpolate_weights(None, finetuned, 0.5)
    layer, before = (model.bert.encoder.layer[0].attention.self.query for model in (between, finetuned))
    torch.testing.assert_close(layer.get_delta_weight("default"), before.get_delta_weight("default") / 2)
    assert torch.equal(layer.base_layer.weight, base.bert.encoder.layer[0].attention.self.query.weight)


def test_lora_that_cannot_be_scaled():
    base = bert()
    with pytest.raises(ValueError, match=r"another kind than plain LoRA, .*lora_magnitude_vector; merge it"):
        finecal.weights.interpolate_weights(None, lora(copy.deepcopy(base), use_dora=True), 0.5)
    with pytest.raises(ValueError, match=r"another kind than plain LoRA, .*trainable_tokens_delta; merge it"):
        finecal.weights.interpolate_weights(None, lora(copy.deepcopy(base), trainable_token_indices=[1]), 0.5)
    finetuned = lora(copy.deepcopy(base))
    with pytest.raises(ValueError, match="pretrained has LoRA adapters; pass None"):
        finecal.weights.interpolate_weights(finetuned, copy.deepcopy(finetuned), 0.5)
    finetuned.merge_adapter()
    with pytest.raises(ValueError, match="merged into its weights"):
        finecal.weights.interpolate_weights(None, finetuned, 0.5)


def test_another_adapter_than_lora():
    finetuned = peft.get_peft_model(bert(), peft.IA3Config(task_type="SEQ_CLS"))
    with pytest.raises(ValueError, match=r"another kind than plain LoRA, .*ia3_l; merge it"):
        finecal.weights.interpolate_weights(bert(), finetuned, 0.5)


def test_a_search_with_lora():
    finetuned = lora(bert())
    labels = torch.arange(40) % 4
    tokens = torch.randint(3, 99, (40, 6), generator=torch.Generator().manual_seed(0))
    loader = [{"input_ids": tokens, "labels": labels}]
    with pytest.warns(finecal.FinecalWarning):
        found = finecal.weights.search_interpolation(None, finetuned, loader, alphas=[0, 0.5, 1], progress=False)
    assert [step.alpha for step in found.steps] == [0, 0.5, 1]
    with torch.no_grad():
        last = finetuned(input_ids=tokens).logits[:, :4].argmax(1)
    assert found.steps[-1].acc_seen_within == pytest.approx(float((last == labels).double().mean()))


# --- models that are trained in full ----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", ALPHAS)
def test_hugging_face(alpha, tmp_path):
    pretrained = bert()
    finetuned = shaken(copy.deepcopy(pretrained))
    between = finecal.weights.interpolate_weights(pretrained, finetuned, alpha)
    assert type(between) is type(finetuned)
    state, before, after = (model.state_dict() for model in (between, pretrained, finetuned))
    for name, tensor in state.items():
        torch.testing.assert_close(tensor, before[name].lerp(after[name], alpha), msg=name)
    between.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(again), logits(between))


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=C, img_size=32, depth=2), 32),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=C, img_size=56, depths=(1, 1)), 56),
    ],
    ids=["vit", "swin"],
)
def test_timm(make, size):
    pretrained = make().eval()
    finetuned = shaken(copy.deepcopy(pretrained))
    assert torch.equal(
        images(finecal.weights.interpolate_weights(pretrained, finetuned, 1), size), images(finetuned, size)
    )
    assert torch.equal(
        images(finecal.weights.interpolate_weights(pretrained, finetuned, 0), size), images(pretrained, size)
    )
    assert images(finecal.weights.interpolate_weights(pretrained, finetuned, 0.5), size).isfinite().all()


def test_torchvision_batch_norm():
    pretrained = torchvision.models.resnet18(num_classes=C)
    finetuned = shaken(copy.deepcopy(pretrained))
    finetuned.train()(torch.randn(8, 3, 32, 32))
    finetuned.eval()
    batches = [torch.randn(8, 3, 32, 32) for _ in range(2)]
    between = finecal.weights.interpolate_weights(pretrained.eval(), finetuned, 0.5, batch_norm_loader=batches)
    expected = copy.deepcopy(between)
    torch.optim.swa_utils.update_bn(batches, expected)
    for layer, other in zip(between.modules(), expected.modules(), strict=True):
        if isinstance(layer, nn.BatchNorm2d):
            torch.testing.assert_close(layer.running_var, other.running_var)
    with pytest.warns(finecal.FinecalWarning, match="batch norms"):
        finecal.weights.interpolate_weights(pretrained, finetuned, 0.5)
