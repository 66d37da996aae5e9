"""Every public method of models of many libraries, called through their `CalibratedModel`: calibrated or refused.

Each method that a bare model answers with an array of one number per class has to answer otherwise through the wrapper,
whose gamma is so large that only absent classes are left, or to be refused. So the `predict` of the next library is
found here, without a list of names.
"""

import contextlib
import copy
import inspect
import io
import os
import re
from collections.abc import Mapping
from types import MethodType

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from finecal import CalibratedModel

os.environ.setdefault("KERAS_BACKEND", "torch")
CLASSES, GAMMA = 7, 1000.0
MASK = torch.arange(CLASSES) < 3
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ROWS = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 5]])
pytestmark = pytest.mark.filterwarnings("ignore")


def torchvision_model():
    import torchvision

    return torchvision.models.resnet18(num_classes=CLASSES), (IMAGES,), {}


def timm_model():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=CLASSES)
    return model, (IMAGES,), {"forward_head": (model.eval().forward_features(IMAGES).detach(),)}


def transformers_model():
    from transformers import BertConfig, BertForSequenceClassification

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=10, num_labels=CLASSES, **size)
    return BertForSequenceClassification(config), (TOKENS,), {}


def causal_model():
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=CLASSES, bos_token_id=0, eos_token_id=None, pad_token_id=0, **size)
    return LlamaForCausalLM(config), (TOKENS,), {"generate": (TOKENS,)}


def peft_model():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(causal_model()[0], LoraConfig(task_type="CAUSAL_LM")), (TOKENS,), {"generate": (TOKENS,)}


def lightning_model():
    import lightning

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, CLASSES)

        def forward(self, x):
            return self.fc(x)

        def predict_step(self, batch, index):
            return self(batch)

        def validation_step(self, batch, index):
            return self.fc(batch)

    step = (ROWS, 0)
    return Net(), (ROWS,), {"predict_step": step, "validation_step": step}


def segmentation_model():
    import segmentation_models_pytorch

    model = segmentation_models_pytorch.Unet("resnet18", encoder_weights=None, classes=CLASSES)
    return model, (IMAGES,), {}


def monai_model():
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, 3, CLASSES, features=(4, 4, 4, 4, 4, 4)), (IMAGES,), {}


def geometric_model():
    from torch_geometric.nn import GCN

    return GCN(4, 8, 2, CLASSES), (ROWS, torch.tensor([[0, 1], [1, 0]])), {}


def keras_model():
    import keras

    layers = [keras.layers.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(CLASSES)]
    rows = {name: (ROWS.numpy(),) for name in ("predict", "predict_on_batch")}
    return keras.Sequential(layers), (ROWS,), rows


def sentence_model(folder):
    from sentence_transformers import CrossEncoder
    from transformers import BertTokenizer

    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nb\nc\nd\ne")
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    transformers_model()[0].save_pretrained(folder)
    model = CrossEncoder(str(folder))
    return model, (model.tokenizer(["a b"], return_tensors="pt"),), {"predict": ([("a", "b"), ("c", "d e")],)}


MODELS = {
    "torchvision": torchvision_model,
    "timm": timm_model,
    "transformers": transformers_model,
    "transformers, causal": causal_model,
    "peft": peft_model,
    "lightning": lightning_model,
    "segmentation_models_pytorch": segmentation_model,
    "monai": monai_model,
    "torch_geometric": geometric_model,
    "keras": keras_model,
    "sentence_transformers": sentence_model,
}
CALIBRATED = {  # those that have to be found
    "transformers, causal": {"generate"},
    "peft": {"generate"},
    "lightning": {"predict_step"},
    "segmentation_models_pytorch": {"predict"},
    "keras": {"predict", "predict_on_batch", "predict_step"},
    "sentence_transformers": {"predict"},
}
REFUSED = {
    "timm": {"forward_head"},
    "lightning": {"validation_step", "to_torchscript"},
    "keras": {"save", "save_weights"},
    "sentence_transformers": {"save"},
}


OUTPUT = {"sentence_transformers": "scores"}
"""Where the logits are in what the model returns, if not in one of the usual places."""


def make(name, folder):
    function = MODELS[name]
    torch.manual_seed(0)
    model, inputs, arguments = function(folder) if inspect.signature(function).parameters else function()
    return model.eval(), inputs, arguments


def names_of(model):
    """Names of the methods that a wrapper hands to the model."""

    def is_method(name):
        try:
            value = getattr(model, name)
        except Exception:  # properties may raise any
            return False
        return isinstance(value, MethodType) and value.__self__ is model

    return [name for name in dir(model) if name[0] != "_" and not hasattr(CalibratedModel, name) and is_method(name)]


def arrays(result):
    """All arrays in a result, however nested, with one number per class, or integer: classes or tokens."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if isinstance(result, (tuple, list)):
        return [array for item in result for array in arrays(item)]
    if isinstance(result, np.ndarray):
        result = torch.from_numpy(result)
    if not isinstance(result, torch.Tensor) or result.ndim < 2:
        return []
    return [result] if not result.is_floating_point() or CLASSES in (result.shape[1], result.shape[-1]) else []


def call(model, name, inputs, arguments):
    """Return what the first call that the method takes returns; None if it takes none of them, the error if refused."""
    for given in [arguments[name]] if name in arguments else [inputs, ()]:
        try:
            with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
                return getattr(model, name)(*copy.deepcopy(given))
        except Exception as error:  # any method with any arguments
            if re.search(r"calibrated\.fold\(|fold_into_head\(", str(error)):
                return error
    return None


def outcome(name, model, inputs, arguments, dim, output):
    """Say what a method does through the wrapper: calibrated, refused, uncalibrated, or no logits."""
    if name == "get_weights":  # of Keras: arrays too
        return "no logits"
    bare = call(copy.deepcopy(model), name, inputs, arguments)
    calibrator = finecal.AdditiveBias(MASK, GAMMA, dim=dim)
    wrapped = call(CalibratedModel(copy.deepcopy(model), calibrator, output=output), name, inputs, arguments)
    if isinstance(wrapped, Exception):
        return "refused"
    same = [torch.equal(*pair) for pair in zip(arrays(bare), arrays(wrapped), strict=True)]
    if not all(same):
        return "calibrated"
    return "uncalibrated" if any(array.is_floating_point() for array in arrays(bare)) else "no logits"


@pytest.mark.parametrize("name", MODELS)
def test_every_method(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, inputs, arguments = make(name, tmp_path)
    dim = 1 if name in ("segmentation_models_pytorch", "monai") else -1
    found = {method: outcome(method, model, inputs, arguments, dim, OUTPUT.get(name)) for method in names_of(model)}
    print(name, {method: how for method, how in found.items() if how != "no logits"}, len(found))
    assert [method for method, how in found.items() if how == "uncalibrated"] == []
    assert {method for method, how in found.items() if how == "calibrated"} == CALIBRATED.get(name, set())
    assert {method for method, how in found.items() if how == "refused"} >= REFUSED.get(name, set())


def test_onnx_of_lightning(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model, (rows,), _ = make("lightning", tmp_path)
    calibrated = CalibratedModel(model, finecal.AdditiveBias(MASK, GAMMA))
    calibrated.to_onnx(tmp_path / "model.onnx", rows, input_names=["x"])
    (logits,) = onnxruntime.InferenceSession(tmp_path / "model.onnx").run(None, {"x": rows.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), calibrated(rows).detach())
