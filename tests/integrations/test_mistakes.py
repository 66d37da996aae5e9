"""What the tables of common mistakes on timm and ONNX say that happens, happens."""

from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

import finecal

MASK = torch.arange(6) < 3
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model while it is in training mode"),
]


@pytest.fixture
def calibrated():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 6))
    return finecal.CalibratedModel(model, finecal.AdditiveBias(MASK, 2.0)).eval()


@pytest.fixture
def export(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def export(model, n=2, open_batch=True, **options):
        shapes = ({0: torch.export.Dim("batch")},) if open_batch else None
        names = {"input_names": ["images"], "output_names": ["logits"]}
        torch.onnx.export(
            model,
            (torch.ones(n, 4, 4),),
            "m.onnx",
            dynamic_shapes=shapes,
            dynamo=True,
            verbose=False,
            **names,
            **options,
        )
        return {node.op_type for node in onnx.load("m.onnx").graph.node}

    return export


def shape_of_served(n):
    session = onnxruntime.InferenceSession("m.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"images": torch.ones(n, 4, 4).numpy()})[0].shape


def test_dropout_in_train_mode(calibrated, export):
    assert "Dropout" not in export(calibrated)
    with pytest.warns(UserWarning, match="while it is in training mode"):
        assert "Dropout" in export(calibrated.train())


def test_weights_in_a_file_of_their_own(calibrated, export):
    export(calibrated, external_data=False)
    assert [path.name for path in Path.cwd().iterdir()] == ["m.onnx"]
    export(calibrated)
    Path("m.onnx.data").unlink()
    with pytest.raises(Exception, match="data"):
        shape_of_served(2)


def test_one_number_of_samples(calibrated, export):
    for n in (1, 2):  # of the example
        export(calibrated, n, external_data=False)
        assert [shape_of_served(m) for m in (1, 3)] == [(1, 6), (3, 6)]
    export(calibrated, open_batch=False, external_data=False)
    with pytest.raises(Exception, match="Got: 3 Expected: 2"):
        shape_of_served(3)


def test_the_head_of_a_wrapped_model_alone_is_refused():
    model = timm.create_model("resnet10t", num_classes=6).eval()
    calibrated = finecal.CalibratedModel(model, finecal.AdditiveBias(MASK, 2.0))
    with torch.no_grad():
        features = calibrated.forward_features(torch.ones(1, 3, 32, 32))
        with pytest.raises(ValueError, match="forward_head of ResNet does not call the model's forward"):
            calibrated.forward_head(features)
