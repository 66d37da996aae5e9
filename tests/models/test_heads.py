"""Small modules built like those of each family of models: where the head is."""

import pytest
import torch
from torch import nn

from finecal.models.heads import find_head


class Parts(nn.Module):
    """Children in a given order; what `forward` would do is not looked at."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


class Timm(Parts):
    """As timm: `get_classifier` says which children are the head."""

    def __init__(self, *names, **children):
        super().__init__(**children)
        self._names = names

    def get_classifier(self):
        heads = tuple(getattr(self, name) for name in self._names)
        return heads if len(heads) > 1 else heads[0]


class SavedModule(Parts):
    """As PEFT's ModulesToSaveWrapper."""

    def __init__(self, original, trained, active=("default",)):
        super().__init__(original_module=original, modules_to_save=nn.ModuleDict({"default": trained}))
        self.active_adapters = list(active)


class LoraLayer(Parts):
    """As PEFT's LoRA layers."""

    def get_base_layer(self):
        return self.base_layer


class Peft(Parts):
    def get_base_model(self):
        return self.base_model.model


def body():
    return Parts(dense=nn.Linear(4, 4), attention=nn.MultiheadAttention(4, 1))


def linear(outputs=3):
    return nn.Linear(4, outputs)


def dense_and_out():
    return Parts(dense=linear(4), dropout=nn.Dropout(), out_proj=linear())


def lora():
    return LoraLayer(
        base_layer=linear(),
        lora_A=nn.ModuleDict({"default": linear(2)}),
        lora_B=nn.ModuleDict({"default": nn.Linear(2, 3)}),
    )


def peft(head):
    return Peft(base_model=Parts(model=Parts(bert=body(), classifier=head)))


FOUND = {
    "the layer itself": (linear(), [""]),
    "Sequential": (nn.Sequential(linear(4), nn.ReLU(), linear()), ["2"]),
    "Sequential, then log-softmax": (nn.Sequential(body(), linear(), nn.LogSoftmax(-1), nn.Dropout()), ["1"]),
    "Sequential of models": (nn.Sequential(nn.Flatten(), Parts(features=body(), fc=linear())), ["1.fc"]),
    "ResNet": (Parts(conv=nn.Conv2d(3, 4, 3), fc=linear()), ["fc"]),
    "VGG": (Parts(f=nn.Conv2d(3, 4, 3), classifier=nn.Sequential(linear(4), nn.ReLU(), linear())), ["classifier.2"]),
    "torchvision ViT": (Parts(encoder=body(), heads=nn.Sequential()), None),
    "torchvision ViT with head": (Parts(encoder=body(), heads=nn.Sequential(linear())), ["heads.0"]),
    "timm": (Timm("last", last=linear(), neck=body()), ["last"]),
    "timm, in a part": (Timm("head", head=Parts(norm=nn.LayerNorm(4), l=linear())), ["head.l"]),
    "timm, distilled": (Timm("head", "head_dist", b=body(), head=linear(), head_dist=linear()), ["head", "head_dist"]),
    "timm without head": (Timm("head", body=body(), head=nn.Identity()), None),
    "timm, a list of heads": (Timm("head", head=nn.ModuleList([linear(), linear()])), None),
    "BERT": (Parts(bert=body(), dropout=nn.Dropout(), classifier=linear()), ["classifier"]),
    "RoBERTa": (Parts(roberta=body(), classifier=dense_and_out()), ["classifier.out_proj"]),
    "XLM-R, head first": (Parts(classifier=dense_and_out(), roberta=body()), ["classifier.out_proj"]),
    "ModernBERT": (Parts(model=body(), head=Parts(dense=linear(4)), classifier=linear()), ["classifier"]),
    "DistilBERT": (Parts(d=body(), pre_classifier=linear(4), classifier=linear()), ["classifier"]),
    "Llama": (Parts(model=body(), score=nn.Linear(4, 3, bias=False)), ["score"]),
    "BART": (Parts(model=body(), classification_head=dense_and_out()), ["classification_head.out_proj"]),
    "Hugging Face DeiT": (
        Parts(deit=body(), cls_classifier=linear(), distillation_classifier=linear()),
        ["cls_classifier", "distillation_classifier"],
    ),
    "PEFT": (peft(SavedModule(linear(), linear())), ["base_model.model.classifier.modules_to_save.default"]),
    "PEFT, adapter off": (peft(SavedModule(linear(), linear(), ())), ["base_model.model.classifier.original_module"]),
    "LoRA on the head": (peft(lora()), ["base_model.model.classifier.base_layer"]),
    "LoRA on a layer of any name": (Parts(body=body(), out=lora()), ["out.base_layer"]),
    "DataParallel": (nn.DataParallel(Parts(body=body(), fc=linear())), ["module.fc"]),
    "Lightning": (Parts(model=Parts(body=body(), fc=linear()), criterion=nn.CrossEntropyLoss()), ["model.fc"]),
    "a layer of any name": (Parts(body=body(), out=linear()), ["out"]),
    "layers in order": (Parts(fc1=linear(5), fc2=linear(4), out=linear()), ["out"]),
    "two layers of the same size": (Parts(body=body(), age=linear(), label=linear()), None),
    "a layer of unusual name, then others": (Parts(projection=linear(), encoder=body()), None),
    "no head at the end": (Parts(embedding=body(), encoder=body()), None),
    "blocks only": (Parts(blocks=nn.ModuleList([body(), body()])), None),
    "no linear layer": (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten()), None),
    "nothing at all": (nn.Identity(), None),
    "softmax at the end": (nn.Sequential(linear(), nn.Softmax(-1)), None),
}  # fmt: skip


@pytest.mark.parametrize("family", FOUND)
def test_finds_the_head_or_says_what_to_do(family):
    model, names = FOUND[family]
    if names is None:
        with pytest.raises(ValueError, match="pass the nn.Linear that gives the logits, or .*CalibratedModel"):
            find_head(model)
        return
    head = find_head(model)
    assert list(head.names) == names
    assert [model.get_submodule(name) for name in names] == list(head.linears)
    assert all(linear.out_features == 3 for linear in head.linears)


def test_sees_through_compile():
    assert find_head(torch.compile(Parts(body=body(), fc=linear()), backend="eager")).names == ("_orig_mod.fc",)


def test_refuses_zero_shot_models_and_language_models():
    clip = Parts(visual=body(), text=body())
    clip.logit_scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match=r"no linear head: .*class names; calibrate the logits: calibrate_logits\("):
        find_head(clip)
    language_model = Parts(body=body(), lm_head=linear())
    language_model.get_output_embeddings = lambda: language_model.lm_head
    with pytest.raises(ValueError, match="over tokens, not over classes; pass the nn.Linear"):
        find_head(language_model)
    assert find_head(language_model.lm_head).names == ("",)


def test_takes_modules_only():
    with pytest.raises(TypeError, match=r"model is a function; pass a torch.nn.Module"):
        find_head(linear)


def test_prints_its_names():
    assert str(find_head(linear())) == "the model itself"
    assert str(find_head(FOUND["timm, distilled"][0])) == "head and head_dist"
