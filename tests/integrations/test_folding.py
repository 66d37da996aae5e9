"""Folding into the heads of real models, before and after they are saved and loaded."""

import open_clip
import peft
import pytest
import timm
import torch
import torchvision
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    DetrConfig,
    DetrForObjectDetection,
    DPTConfig,
    DPTForSemanticSegmentation,
    LlamaConfig,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    ResNetConfig,
    RobertaConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
    ViTConfig,
)

import finecal
from finecal._models.fold import is_folded
from finecal._models.heads import find_head

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the other packages
    pytest.mark.filterwarnings("error::finecal.FinecalWarning"),
]
C = 10
MASK = torch.arange(C) < 6
GAMMA = 3.3
SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "num_labels": C}
TOKENS = {"input_ids": torch.arange(3, 27).reshape(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
DTYPES = [torch.float32, torch.bfloat16]


def image(size):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def bert():
    return AutoModelForSequenceClassification.from_config(BertConfig(vocab_size=99, **SIZES))


def roberta():
    config = RobertaConfig(vocab_size=99, max_position_embeddings=64, **SIZES)
    return AutoModelForSequenceClassification.from_config(config)


def vit():
    return AutoModelForImageClassification.from_config(ViTConfig(image_size=32, patch_size=8, **SIZES))


def lora(base, **settings):
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, init_lora_weights=False, **settings))
    return model.eval()


STATE_DICT = {
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=C), 64),
    "torchvision vit": (lambda: torchvision.models.VisionTransformer(32, 8, 1, 2, 32, 32, num_classes=C), 32),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", num_classes=C, depth=1), 224),
    "timm, a convolution": (lambda: timm.create_model("resnetv2_18", num_classes=C), 64),
    "timm distilled": (lambda: timm.create_model("deit_tiny_distilled_patch16_224", num_classes=C, depth=1), 224),
    "Sequential": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, C)), 4),
}
TRANSFORMERS = {"BERT": (bert, TOKENS), "RoBERTa": (roberta, TOKENS), "ViT": (vit, {"pixel_values": image(32)})}
AUTO = {"ViT": AutoModelForImageClassification}


def build(make, dtype, seed=0):
    torch.manual_seed(seed)
    return make().to(dtype).eval()


def logits_of(model, inputs):
    dtype = next(model.parameters()).dtype
    with torch.inference_mode():
        if isinstance(inputs, int):
            return model(image(inputs).to(dtype))
        return model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in inputs.items()}).logits


def assert_calibrated(actual, logits):
    """To 1e-6 of the largest logit in float32, one step of it in half types."""
    expected = finecal.calibrate_logits(logits, MASK, GAMMA).double()
    tolerance = 1e-6 if logits.dtype == torch.float32 else torch.finfo(logits.dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, GAMMA)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", STATE_DICT)
def test_state_dict(kind, dtype, calibrator):
    make, size = STATE_DICT[kind]
    model = build(make, dtype)
    logits = logits_of(model, size)
    finecal.fold_into_head(model, calibrator)
    assert_calibrated(logits_of(model, size), logits)
    again = build(make, dtype, seed=1)
    again.load_state_dict(model.state_dict())
    assert_calibrated(logits_of(again, size), logits)
    with pytest.warns(finecal.FinecalWarning, match="folded before"):
        finecal.fold_into_head(again, calibrator)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_save_pretrained(kind, dtype, calibrator, tmp_path):
    make, inputs = TRANSFORMERS[kind]
    model = build(make, dtype)
    logits = logits_of(model, inputs)
    finecal.fold_into_head(model, calibrator).save_pretrained(tmp_path)
    assert_calibrated(logits_of(model, inputs), logits)
    AutoConfig.from_pretrained(tmp_path)
    again = AUTO.get(kind, AutoModelForSequenceClassification).from_pretrained(tmp_path, dtype=dtype)
    assert_calibrated(logits_of(again, inputs), logits)
    with pytest.raises(ValueError, match="already"):
        finecal.fold_into_head(again, calibrator)
    with pytest.raises(ValueError, match="already"):
        finecal.CalibratedModel(again, calibrator)
    finecal.unfold_from_head(again, calibrator)
    again.save_pretrained(tmp_path)
    assert not is_folded(AUTO.get(kind, AutoModelForSequenceClassification).from_pretrained(tmp_path))


@pytest.mark.parametrize("dtype", DTYPES)
def test_peft(dtype, calibrator, tmp_path):
    def make():
        return lora(bert(), task_type="SEQ_CLS", target_modules=["query"])

    model = build(make, dtype)
    logits = logits_of(model, TOKENS)
    finecal.fold_into_head(model, calibrator).save_pretrained(tmp_path)
    assert_calibrated(logits_of(model, TOKENS), logits)
    again = peft.PeftModel.from_pretrained(build(make, dtype).unload(), tmp_path).eval()
    assert_calibrated(logits_of(again, TOKENS), logits)
    with pytest.raises(ValueError, match="already"):
        finecal.fold_into_head(again, calibrator)
    assert not is_folded(model.base_model.model.classifier.original_module)

    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged", dtype=dtype)
    assert is_folded(again)
    tolerance = 1e-5 if dtype == torch.float32 else 0.05  # of the merging
    torch.testing.assert_close(
        logits_of(again, TOKENS), finecal.calibrate_logits(logits, MASK, GAMMA), rtol=tolerance, atol=tolerance
    )
    finecal.unfold_from_head(again, calibrator)


def test_peft_adapter_that_knows_no_task_keeps_the_bias_but_no_record(calibrator, tmp_path):
    def make():
        return lora(vit(), target_modules=["q_proj"], modules_to_save=["classifier"])

    inputs = {"pixel_values": image(32)}
    model = build(make, torch.float32)
    logits = logits_of(model, inputs)
    finecal.fold_into_head(model, calibrator).save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(build(make, torch.float32).unload(), tmp_path).eval()
    assert_calibrated(logits_of(again, inputs), logits)
    with pytest.warns(finecal.FinecalWarning, match="folded before"):
        finecal.fold_into_head(again, calibrator)


@pytest.mark.parametrize(("bias", "is_saved"), [("none", False), ("all", True), ("lora_only", True)])
def test_lora_on_the_head_itself(bias, is_saved, calibrator, tmp_path):
    def make():
        return lora(bert(), target_modules=["query", "classifier"], bias=bias)

    model = build(make, torch.float32)
    logits = logits_of(model, TOKENS)
    if is_saved:
        finecal.fold_into_head(model, calibrator).save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(build(make, torch.float32).unload(), tmp_path).eval()
        assert_calibrated(logits_of(again, TOKENS), logits)
    else:
        with pytest.raises(ValueError, match=r"save_pretrained would not save .* fold after merge_and_unload\(\)"):
            finecal.fold_into_head(model, calibrator)
        merged = model.merge_and_unload()
        logits = logits_of(merged, TOKENS)
        assert_calibrated(logits_of(finecal.fold_into_head(merged, calibrator), TOKENS), logits)


def test_both_heads_of_hugging_face_deit(calibrator):
    model = build(
        lambda: DeiTForImageClassificationWithTeacher(DeiTConfig(image_size=32, patch_size=8, **SIZES)), torch.float32
    )
    inputs = {"pixel_values": image(32)}
    logits = logits_of(model, inputs)
    assert_calibrated(logits_of(finecal.fold_into_head(model, calibrator), inputs), logits)


def test_refusals(calibrator):
    sizes = {**SIZES, "num_key_value_heads": 2}
    llama = AutoModelForSequenceClassification.from_config(LlamaConfig(vocab_size=99, **sizes))
    with pytest.raises(ValueError, match="the head score has no bias"):
        finecal.fold_into_head(llama, calibrator)
    with pytest.raises(ValueError, match="over tokens"):
        find_head(BertForMaskedLM(BertConfig(vocab_size=99, **SIZES)))
    text = {key: SIZES[key] for key in SIZES if key != "num_labels"}
    clip = CLIPModel(CLIPConfig(text_config={**text, "vocab_size": 99}, vision_config={**text, "image_size": 32}))
    with pytest.raises(ValueError, match="no linear head"):
        find_head(clip)
    with pytest.raises(ValueError, match="no linear layer"):
        find_head(timm.create_model("resnet18", num_classes=0))
    quantised = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, C)), {nn.Linear})
    with pytest.raises(ValueError, match="not in a linear layer or convolution"):
        finecal.fold_into_head(quantised, calibrator)


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "efficientnet_b0", "densenet121", "swin_t", "convnext_tiny", "alexnet"]
)
def test_heads_of_torchvision(name):
    model = torchvision.models.get_model(name, num_classes=7)
    (linear,) = find_head(model).layers
    assert linear.out_features == 7


def test_open_clip():
    with pytest.raises(ValueError, match="calibrate the logits"):
        find_head(open_clip.create_model("RN50", pretrained=None))


# --- segmentation -----------------------------------------------------------------------------------------------------

STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1] * 4}
SMALL = {"image_size": 32, "patch_size": 16, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}


def torchvision_segmentation(name, **settings):
    builder = getattr(torchvision.models.segmentation, name)
    return builder(weights=None, weights_backbone=None, num_classes=C, **settings)


def segformer():
    config = SegformerConfig(num_attention_heads=[1] * 4, decoder_hidden_size=16, num_labels=C, **STAGES)
    return SegformerForSemanticSegmentation(config)


def mobilevit():
    necks = [8, 8, 16, 16, 16, 16, 32]
    sizes = {"image_size": 32, "hidden_sizes": [16] * 3, "neck_hidden_sizes": necks, "aspp_out_channels": 16}
    return MobileViTForSemanticSegmentation(MobileViTConfig(num_attention_heads=2, num_labels=C, **sizes))


def upernet():
    backbone = ConvNextConfig(out_features=[f"stage{number}" for number in range(1, 5)], **STAGES)
    heads = {"hidden_size": 16, "pool_scales": [1, 2], "auxiliary_channels": 16, "auxiliary_in_channels": 16}
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone, num_labels=C, **heads))


def dpt():
    layers = {"num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False}
    sizes = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 16}
    return DPTForSemanticSegmentation(DPTConfig(num_labels=C, **layers, **sizes, **SMALL))


SEGMENTATION = {
    "FCN": (lambda: torchvision_segmentation("fcn_resnet50", aux_loss=True), "classifier.4"),
    "DeepLab": (lambda: torchvision_segmentation("deeplabv3_mobilenet_v3_large", aux_loss=True), "classifier.4"),
    "LRASPP": (lambda: torchvision_segmentation("lraspp_mobilenet_v3_large"), "classifier.high_classifier"),
    "SegFormer": (segformer, "decode_head.classifier"),
    "MobileViT": (mobilevit, "segmentation_head.classifier.convolution"),
    "UperNet": (upernet, "decode_head.classifier"),
    "DPT": (dpt, "head.head.4"),
}


@pytest.mark.parametrize("kind", SEGMENTATION)
def test_segmentation(kind):
    make, name = SEGMENTATION[kind]
    model = build(make, torch.float32)
    key = "out" if hasattr(model, "backbone") and not hasattr(model, "config") else "logits"
    calibrator = finecal.AdditiveBias(MASK, GAMMA, dim=1)
    with torch.inference_mode():
        before = model(image(32))
        wrapped = finecal.CalibratedModel(model, calibrator)(image(32))
    assert find_head(model).names == (name,)
    assert type(wrapped) is type(before)
    expected = before[key] + (GAMMA * ~MASK).reshape(1, C, 1, 1)
    torch.testing.assert_close(wrapped[key], expected)
    bias = model.get_submodule(name).bias
    biases = {key: value.clone() for key, value in model.named_parameters() if key.endswith("bias")}
    finecal.fold_into_head(model, calibrator)  # the proof is not needed to find it
    folded = bias.detach().clone()
    finecal.unfold_from_head(model, calibrator)
    finecal.fold_into_head(model, calibrator, inputs=image(32))
    torch.testing.assert_close(bias, folded)
    with torch.inference_mode():
        after = model(image(32))
    tolerance = 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(after[key], expected, rtol=0, atol=tolerance)
    changed = [key for key, value in model.named_parameters() if key in biases and not torch.equal(value, biases[key])]
    assert changed == [f"{name}.bias"]


def test_segformer_is_saved_with_gamma_and_its_record(tmp_path):
    calibrator = finecal.AdditiveBias(MASK, GAMMA, dim=1)
    model = build(segformer, torch.float32)
    logits = logits_of(model, {"pixel_values": image(32)})
    finecal.fold_into_head(model, calibrator).save_pretrained(tmp_path)
    again = SegformerForSemanticSegmentation.from_pretrained(tmp_path)
    expected = finecal.calibrate_logits(logits, MASK, GAMMA, dim=1)
    torch.testing.assert_close(logits_of(again, {"pixel_values": image(32)}), expected)
    with pytest.raises(ValueError, match="already"):
        finecal.fold_into_head(again, calibrator)
    twice = SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=2 * C, ignore_mismatched_sizes=True
    )  # its config has the record, but its head is another
    assert not is_folded(twice)


def test_lora_on_segformer_with_the_head_trained():
    calibrator = finecal.AdditiveBias(MASK, GAMMA, dim=1)
    model = build(lambda: lora(segformer(), target_modules=["q_proj"], modules_to_save=["decode_head"]), torch.float32)
    logits = logits_of(model, {"pixel_values": image(32)})
    finecal.fold_into_head(model, calibrator, inputs={"pixel_values": image(32)})
    expected = finecal.calibrate_logits(logits, MASK, GAMMA, dim=1)
    torch.testing.assert_close(logits_of(model, {"pixel_values": image(32)}), expected)


# --- detection --------------------------------------------------------------------------------------------------------


def torchvision_detector(name):
    builder = getattr(torchvision.models.detection, name)
    return builder(weights=None, weights_backbone=None, num_classes=C)


def recorded_scores(detector, layers):
    """Return what the layers that score the classes return while the detector runs, as (..., C) for each call."""
    found = []

    def record(layer, args, output):
        dense = output.unflatten(1, (-1, C)).movedim(2, -1) if output.ndim == 4 else output
        found.append(dense)

    handles = [layer.register_forward_hook(record) for layer in layers]
    with torch.inference_mode():
        detector([image(64)[0]])
    for handle in handles:
        handle.remove()
    return found


DETECTORS = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": 1,
    "retinanet_resnet50_fpn": 1,
    "fcos_resnet50_fpn": 1,
    "ssdlite320_mobilenet_v3_large": 6,
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_torchvision(name, calibrator):
    detector = build(lambda: torchvision_detector(name), torch.float32)
    detector.transform.min_size, detector.transform.max_size = (64,), 64
    head = find_head(detector)
    assert len(head.layers) == DETECTORS[name]
    before = recorded_scores(detector, head.layers)
    with pytest.raises(TypeError, match="fold the calibrator into the layer that scores the classes"):
        finecal.CalibratedModel(detector, calibrator)([image(64)[0]])
    finecal.fold_into_head(detector, calibrator)
    after = recorded_scores(detector, head.layers)
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(other, one + GAMMA * ~MASK)
    finecal.unfold_from_head(detector, calibrator)
    for layer in head.layers:
        finecal.fold_into_head(layer, calibrator)
    for one, other in zip(before, recorded_scores(detector, head.layers), strict=True):
        torch.testing.assert_close(other, one + GAMMA * ~MASK)


def test_retinanet_orders_its_outputs_as_finecal_takes_them(calibrator):
    """By the detector's own reshaping to (boxes, C), not by that of this file."""
    head = torchvision.models.detection.retinanet.RetinaNetClassificationHead(8, 3, C)
    features = [torch.randn(2, 8, 4, 5)]
    before = head(features)
    finecal.fold_into_head(head.cls_logits, calibrator)
    torch.testing.assert_close(head(features), calibrator(before))
    head = torchvision.models.detection.ssd.SSDClassificationHead([8, 8], [3, 2], C)
    features = [torch.randn(2, 8, 4, 5), torch.randn(2, 8, 2, 2)]
    before = head(features)
    for layer in head.module_list:
        finecal.fold_into_head(layer, calibrator)
    torch.testing.assert_close(head(features), calibrator(before))


def test_detr():
    mask = torch.cat([MASK, torch.tensor([True])])  # the last output is "no object"
    calibrator = finecal.AdditiveBias(mask, GAMMA)
    backbone = ResNetConfig(embedding_size=8, out_features=["stage4"], **STAGES)
    parts = ("encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads")
    sizes = {"d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_queries": 5, **dict.fromkeys(parts, 1)}
    config = DetrConfig(use_timm_backbone=False, backbone_config=backbone, num_labels=C, **sizes)
    model = build(lambda: DetrForObjectDetection(config), torch.float32)
    inputs = {"pixel_values": image(64)}
    expected = finecal.calibrate_logits(logits_of(model, inputs), mask, GAMMA)
    torch.testing.assert_close(logits_of(finecal.CalibratedModel(model, calibrator), inputs), expected)
    finecal.fold_into_head(model, calibrator, inputs=inputs)
    torch.testing.assert_close(logits_of(model, inputs), expected)
    finecal.unfold_from_head(model.class_labels_classifier, calibrator)
    torch.testing.assert_close(finecal.calibrate_logits(logits_of(model, inputs), mask, GAMMA), expected)
