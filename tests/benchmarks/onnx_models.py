"""Put gamma into ONNX files of many kinds: ``python tests/benchmarks/onnx_models.py`` prints a row for each.

Weights are random. ONNX Runtime scores the same inputs by the file and by the folded one, and the differences to
`calibrate_logits` are shown. Models of libraries that are not installed are left out.
"""

import argparse
import contextlib
import io
import os
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import InferenceSession

import finecal
from finecal.integrations.onnx import OnnxModel, fold_into_onnx, record_of

os.environ.setdefault("KERAS_BACKEND", "torch")
GAMMA = 1.75


def pictures(count=4, size=64, channels=3):
    return np.random.default_rng(0).normal(size=(count, channels, size, size)).astype(np.float32)


def export(model, inputs, names=("images",), outputs=("logits",), **options):
    """Write `model.onnx`; sizes of batches stay open unless the options say otherwise."""
    arguments = tuple(torch.from_numpy(array) for array in inputs)
    options = {"dynamic_shapes": tuple({0: torch.export.Dim("batch")} for _ in inputs), **options}
    names = {"input_names": list(names), "output_names": list(outputs)}
    torch.onnx.export(model.eval(), arguments, "model.onnx", dynamo=True, verbose=False, **names, **options)
    return dict(zip(names["input_names"], inputs, strict=True))


def torchvision_resnet():
    from torchvision.models import resnet18

    return export(resnet18(num_classes=20), [pictures()], dynamic_shapes=None)


def torchvision_squeezenet():
    from torchvision.models import squeezenet1_1

    return export(squeezenet1_1(num_classes=20), [pictures()])


def timm_vit():
    import timm

    return export(timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=20), [pictures()])


def hugging_face_text():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    model = BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=20, **sizes))
    ids = np.random.default_rng(0).integers(0, 100, (4, 12))
    return export(model, [ids, np.ones_like(ids)], ("input_ids", "attention_mask"))


def hugging_face_score():
    """A head without a bias, at the last token."""
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=100, n_embd=32, n_layer=2, n_head=2, num_labels=20, pad_token_id=0, use_cache=False)
    ids = np.random.default_rng(0).integers(1, 100, (4, 12))
    return export(GPT2ForSequenceClassification(config), [ids], ("input_ids",), dynamic_shapes=None)


def unet():
    import segmentation_models_pytorch as smp

    model = smp.Unet("resnet18", encoder_weights=None, classes=20)
    return export(model, [pictures()])


def int8():
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from torchvision.models import mobilenet_v3_small

    class Samples(CalibrationDataReader):
        def __init__(self, inputs):
            self.rows = iter([inputs])

        def get_next(self):
            return next(self.rows, None)

    inputs = export(mobilenet_v3_small(num_classes=20), [pictures()], external_data=False)
    quant_pre_process("model.onnx", "prepared.onnx", skip_symbolic_shape=True)
    quantize_static("prepared.onnx", "model.onnx", Samples(inputs))
    return inputs


def float16():
    from torchvision.models import convnext_tiny

    return export(convnext_tiny(num_classes=20).half(), [pictures().astype(np.float16)])


def scikit_learn(make, **options):
    from skl2onnx import to_onnx
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    model = make().fit(x, y)
    onnx.save(to_onnx(model, x[:1], options={"zipmap": False, **options}, target_opset=17), "model.onnx")
    return {"X": x[::40]}


def scikit_learn_network():
    from sklearn.neural_network import MLPClassifier

    return scikit_learn(lambda: MLPClassifier((32,), max_iter=20))


def scikit_learn_linear():
    from sklearn.linear_model import LogisticRegression

    return scikit_learn(lambda: LogisticRegression(max_iter=100))


def scikit_learn_scores():
    from sklearn.linear_model import LogisticRegression

    return scikit_learn(lambda: LogisticRegression(max_iter=100), raw_scores=True)


def scikit_learn_trees():
    from sklearn.ensemble import RandomForestClassifier

    return scikit_learn(lambda: RandomForestClassifier(5, max_depth=5))


def keras():
    import keras

    layers = [keras.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(20, "softmax")]
    model = keras.Sequential(layers)
    inputs = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    model(inputs)
    model.export("model.onnx", format="onnx", verbose=False)
    (name,) = OnnxModel("model.onnx").input_names
    return {name: inputs}


def softmax():
    from torchvision.models import efficientnet_b0

    return export(torch.nn.Sequential(efficientnet_b0(num_classes=20), torch.nn.Softmax(-1)), [pictures()])


def two_outputs():
    from torchvision.models import regnet_y_400mf

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = regnet_y_400mf(num_classes=20)
            self.head, self.body.fc = self.body.fc, torch.nn.Identity()

        def forward(self, images):
            features = self.body(images)
            return features, self.head(features)

    return export(Network(), [pictures()], outputs=("features", "logits"))


def torchscript_dynamic():
    from torchvision.models import swin_t

    model, inputs = swin_t(num_classes=20).eval(), pictures()
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    names = {"input_names": ["images"], "output_names": ["logits"]}
    arguments = (torch.from_numpy(inputs),)
    torch.onnx.export(model, arguments, "model.onnx", dynamo=False, dynamic_axes=axes, opset_version=17, **names)
    return {"images": inputs}


def runtime_optimised():
    """What ONNX Runtime itself writes: with fused nodes of its own domain."""
    from onnxruntime import GraphOptimizationLevel, SessionOptions

    inputs = timm_vit()
    options = SessionOptions()
    options.optimized_model_filepath = "optimised.onnx"
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    InferenceSession("model.onnx", options)
    Path("optimised.onnx").replace("model.onnx")
    return inputs


def exported_wrapper():
    from torchvision.models import resnet18

    model = finecal.CalibratedModel(resnet18(num_classes=20), finecal.AdditiveBias(np.arange(20) < 10, GAMMA))
    return export(model, [pictures()])


MODELS = {
    "torchvision ResNet-18, batch of 4": (torchvision_resnet, "torchvision", {}),
    "torchvision SqueezeNet": (torchvision_squeezenet, "torchvision", {}),
    "timm ViT": (timm_vit, "timm", {}),
    "Hugging Face BERT": (hugging_face_text, "transformers", {}),
    "Hugging Face GPT-2, `score`": (hugging_face_score, "transformers", {}),
    "U-Net of smp": (unet, "segmentation_models_pytorch", {"dim": 1}),
    "int8 MobileNetV3": (int8, "torchvision", {}),
    "float16 ConvNeXt": (float16, "torchvision", {}),
    "scikit-learn MLPClassifier": (scikit_learn_network, "skl2onnx", {}),
    "scikit-learn LogisticRegression": (scikit_learn_linear, "skl2onnx", {}),
    "scikit-learn LogisticRegression, `raw_scores`": (scikit_learn_scores, "skl2onnx", {}),
    "scikit-learn RandomForestClassifier": (scikit_learn_trees, "skl2onnx", {}),
    "Keras, `model.export`": (keras, "keras", {}),
    "torchvision EfficientNet and Softmax": (softmax, "torchvision", {}),
    "RegNet with two outputs": (two_outputs, "torchvision", {}),
    "the same, `output='logits'`": (two_outputs, "torchvision", {"output": "logits"}),
    "Swin by TorchScript": (torchscript_dynamic, "torchvision", {}),
    "timm ViT, as ONNX Runtime optimised it": (runtime_optimised, "timm", {}),
    "an exported CalibratedModel": (exported_wrapper, "torchvision", {}),
}


def outcome(make, dim=-1, output=None):
    """Return the cells of a row: opset, where gamma went, or why it is refused, and the largest difference."""
    torch.manual_seed(0)
    inputs = make()
    model = onnx.load("model.onnx", load_external_data=False)
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default="")
    try:
        scores = OnnxModel("model.onnx", output=output)
        logits = scores(**inputs)
        classes = logits.shape[dim]
        seen_mask = torch.arange(classes) < classes // 2
        calibrator = finecal.AdditiveBias(seen_mask, GAMMA, dim=dim)
        new = fold_into_onnx("model.onnx", calibrator, inputs, output=output, out="folded.onnx")
    except ValueError as error:
        return opset, f"refused: {error}", ""
    expected = finecal.calibrate_logits(logits, seen_mask, GAMMA, dim=dim)
    difference = float((OnnxModel("folded.onnx", output=output)(**inputs) - expected).abs().max())
    return opset, record_of(new)["place"], f"{difference:.1e}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="parts of their names")
    wanted = parser.parse_args().models
    warnings.simplefilter("ignore")
    print("| model | opset | gamma | largest difference |\n| --- | --- | --- | --- |")
    for name, (make, package, options) in MODELS.items():
        if find_spec(package) and (not wanted or any(part in name for part in wanted)):
            with (
                tempfile.TemporaryDirectory() as folder,
                contextlib.chdir(folder),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                cells = outcome(make, **options)
            print("|", " | ".join(map(str, (name, *cells))), "|", flush=True)
