"""Small modules built like those of each family of models: where the head is."""

import pytest
import torch
from torch import nn

from finecal._models.heads import find_head, outputs_of


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


def conv(outputs=3):
    return nn.Conv2d(4, outputs, 1)


def blocks():
    return Parts(conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4))


def fcn():
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), conv())


def scales(outputs=3):
    return nn.ModuleList(nn.Sequential(blocks(), conv(outputs)) for _ in range(2))


def yolo_head(**branches):
    head = Parts(cv2=scales(12), dfl=Parts(conv=conv(1)), cv4=scales(5), **branches)
    head.nc = 3
    return head


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
    "no such layer": (nn.Sequential(nn.BatchNorm2d(3), nn.Flatten()), None),
    "nothing at all": (nn.Identity(), None),
    "a convolution itself": (conv(), [""]),
    "Sequential, then averaged": (nn.Sequential(conv(4), conv(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), ["1"]),
    "Sequential of linear layers, then a convolution": (nn.Sequential(body(), conv()), ["1"]),
    "Sequential, then upsampled": (nn.Sequential(blocks(), fcn(), nn.Upsample(scale_factor=2)), ["1.2"]),
    "a linear layer, then averaged over classes": (nn.Sequential(linear(), nn.AdaptiveAvgPool1d(3)), None),
    "SqueezeNet: ReLU at the end": (Parts(f=conv(4), classifier=nn.Sequential(conv(), nn.ReLU())), None),
    "timm, a convolution": (Timm("last", last=conv(), neck=body()), ["last"]),
    "FCN": (Parts(backbone=blocks(), classifier=fcn(), aux_classifier=fcn()), ["classifier.2"]),
    "FCN without auxiliary head": (Parts(backbone=blocks(), classifier=fcn(), aux_classifier=None), ["classifier.2"]),
    "LRASPP": (Parts(cbr=fcn(), low_classifier=conv(), high_classifier=conv()), ["high_classifier"]),
    "SegFormer": (
        Parts(encoder=body(), decode_head=Parts(c=nn.ModuleList([linear(4)]), fuse=conv(4), classifier=conv())),
        ["decode_head.classifier"],
    ),
    "UperNet": (
        Parts(
            backbone=body(),
            fpn=nn.Sequential(conv(4)),
            decode_head=Parts(classifier=conv(), psp=blocks()),
            auxiliary_head=Parts(convs=blocks(), classifier=conv()),
        ),
        ["decode_head.classifier"],
    ),
    "MobileViT": (
        Parts(m=body(), segmentation_head=Parts(aspp=blocks(), classifier=Parts(convolution=conv()))),
        ["segmentation_head.classifier.convolution"],
    ),
    "DPT": (
        Parts(dpt=body(), neck=blocks(), head=Parts(head=nn.Sequential(conv(4), conv(), nn.Upsample(scale_factor=2)))),
        ["head.head.1"],
    ),
    "U-Net": (Parts(inc=blocks(), down=blocks(), up=blocks(), outc=Parts(conv=conv())), ["outc.conv"]),
    "U-Net with attention": (Parts(down=blocks(), attention=body(), up=blocks(), out=conv()), ["out"]),
    "U-Net of bare convolutions": (Parts(first=conv(4), second=conv(4), third=conv()), ["third"]),
    "U-Net with an auxiliary output": (Parts(down=blocks(), out=conv(), aux_out=conv()), ["out"]),
    "two outputs of the same size": (Parts(down=blocks(), deep=conv(), out=conv()), None),
    "ResNet without head": (Parts(conv1=conv(4), layer=nn.Sequential(blocks())), None),
    "ViT whose convolution comes first": (Parts(patches=conv(4), encoder=body(), blocks=body()), None),
    "a linear head before a convolution": (Parts(body=body(), fc=linear(), stem=conv(4)), ["fc"]),
    "a linear layer of unusual name before one": (Parts(body=body(), out=linear(), stem=conv(4)), ["out"]),
    "Faster R-CNN": (
        Parts(
            backbone=blocks(),
            rpn=Parts(head=Parts(cls_logits=conv())),
            roi_heads=Parts(box_predictor=Parts(cls_score=linear(), bbox_pred=linear(12))),
        ),
        ["roi_heads.box_predictor.cls_score"],
    ),
    "RetinaNet": (
        Parts(backbone=blocks(), head=Parts(classification_head=Parts(conv=blocks(), cls_logits=conv()))),
        ["head.classification_head.cls_logits"],
    ),
    "SSDlite, in Lightning's module": (
        Parts(
            model=Parts(
                head=Parts(
                    classification_head=Parts(module_list=nn.ModuleList([nn.Sequential(blocks(), conv()), conv()])),
                    regression_head=Parts(module_list=nn.ModuleList([conv(4), conv(4)])),
                )
            )
        ),
        [f"model.head.classification_head.module_list.{name}" for name in ("0.1", "1")],
    ),
    "YOLO": (
        Parts(model=nn.Sequential(blocks(), yolo_head(cv3=scales()))),
        ["model.1.cv3.0.1", "model.1.cv3.1.1"],
    ),
    "YOLO with two branches": (
        Parts(model=nn.Sequential(blocks(), yolo_head(cv3=scales(), one2one_cv3=scales()))),
        [f"model.1.{branch}.{scale}.1" for branch in ("cv3", "one2one_cv3") for scale in range(2)],
    ),
    "YOLO, fused": (
        Parts(model=nn.Sequential(blocks(), yolo_head(cv3=None, one2one_cv3=scales()))),
        ["model.1.one2one_cv3.0.1", "model.1.one2one_cv3.1.1"],
    ),
    "DETR": (
        Parts(model=body(), class_labels_classifier=linear(), bbox_predictor=Parts(layers=nn.ModuleList([linear(4)]))),
        ["class_labels_classifier"],
    ),
    "softmax at the end": (nn.Sequential(linear(), nn.Softmax(-1)), None),
}  # fmt: skip


@pytest.mark.parametrize("family", FOUND)
def test_finds_the_head_or_says_what_to_do(family):
    model, names = FOUND[family]
    if names is None:
        with pytest.raises(ValueError, match="pass the layer that gives the logits, or .*CalibratedModel"):
            find_head(model)
        return
    head = find_head(model)
    assert list(head.names) == names
    assert [model.get_submodule(name) for name in names] == list(head.layers)
    assert [outputs_of(layer) for layer in head.layers] == [3] * len(names)
    assert head.outputs == 3


def test_sees_through_compile():
    assert find_head(torch.compile(Parts(body=body(), fc=linear()), backend="eager")).names == ("_orig_mod.fc",)


def test_refuses_zero_shot_models_and_language_models():
    clip = Parts(visual=body(), text=body())
    clip.logit_scale = nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match=r"no linear head: .*class names; calibrate the logits: calibrate_logits\("):
        find_head(clip)
    language_model = Parts(body=body(), lm_head=linear())
    language_model.get_output_embeddings = lambda: language_model.lm_head
    with pytest.raises(ValueError, match="over tokens, not over classes; pass the layer"):
        find_head(language_model)
    assert find_head(language_model.lm_head).names == ("",)


def test_only_a_certain_convolution_takes_several_boxes_at_a_position():
    for model, certain in ((conv(6), True), (linear(6), False), (nn.Sequential(conv(6)), False)):
        head = find_head(model)
        assert head.takes(6)
        assert (head.takes(3), head.takes(2)) == (certain, certain)
        assert not head.takes(4)
        assert not head.takes(12)
    model, _ = FOUND["SSDlite, in Lightning's module"]
    assert find_head(model).takes(3)
    assert find_head(model).is_certain


def test_yolo_has_one_box_at_a_position():
    head = find_head(FOUND["YOLO"][0])
    assert head.is_certain
    assert [head.takes(classes) for classes in (1, 3, 6)] == [False, True, False]


def test_yolo_that_compares_with_texts_has_no_head():
    with pytest.raises(ValueError, match=r"Parts compares positions with texts and has no bias for each class"):
        find_head(Parts(model=nn.Sequential(blocks(), yolo_head(cv3=scales(6)))))


def test_takes_modules_only():
    with pytest.raises(TypeError, match=r"model is a function; pass a torch.nn.Module"):
        find_head(linear)


def test_prints_its_names():
    assert str(find_head(linear())) == "the model itself"
    assert str(find_head(FOUND["timm, distilled"][0])) == "head and head_dist"
