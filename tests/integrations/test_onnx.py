"""ONNX models: logits before and after by ONNX Runtime, and what is refused."""

import io
import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from torch import nn

import finecal
from finecal.calibrators import ClassBias, GroupTemperature, NormalizedLogits, Prototypes, Temperature
from finecal.integrations.onnx import OnnxModel, fold_into_onnx, record_of

CLASSES, FEATURES = 6, 4
MASK = torch.arange(CLASSES) < 3
GAMMA = 1.75
CALIBRATOR = finecal.AdditiveBias(MASK, GAMMA)
X = torch.randn(5, FEATURES, generator=torch.Generator().manual_seed(0))
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript"),
]


def export(model, inputs=X, *, dynamic=True, outputs=("logits",), opset=17):
    file = io.BytesIO()
    axes = {name: {0: "batch"} for name in ("inputs", *outputs)} if dynamic else None
    torch.onnx.export(
        model.eval(),
        (inputs,),
        file,
        input_names=["inputs"],
        output_names=list(outputs),
        dynamic_axes=axes,
        opset_version=opset,
        dynamo=False,
    )
    return onnx.load_from_string(file.getvalue())


def run(model, inputs=X):
    session = InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: np.asarray(inputs)})


def operations(model):
    return [node.op_type for node in model.graph.node]


def linear(bias=True):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES, bias=bias))


def by_hand(kinds, weight=None, bias=None, opset=17, extra_outputs=(), initializers=()):
    """A graph of `(operation, inputs, output, attributes)` from `inputs` to `logits`."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(FEATURES, CLASSES)).astype(np.float32) if weight is None else weight
    bias = rng.normal(size=CLASSES).astype(np.float32) if bias is None else bias
    nodes = [helper.make_node(kind, inputs, [made], **attributes) for kind, inputs, made, attributes in kinds]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])]
    tensors = [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(bias, "b"), *initializers]
    inputs = [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", FEATURES])]
    graph = helper.make_graph(nodes, "graph", inputs, [*outputs, *extra_outputs], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


GRAPHS = {
    "Gemm": (lambda: export(linear()), "the bias of the last Gemm (logits)", 0),
    "Gemm in float64": (lambda: export(linear().double(), X.double()), "the bias of the last Gemm (logits)", 0),
    "MatMul": (lambda: export(linear(bias=False)), "Add behind the last MatMul (logits)", 1),
    "Tanh": (lambda: export(nn.Sequential(linear(), nn.Tanh())), "Add behind the last Tanh (logits)", 1),
    "MatMul and Add": (
        lambda: by_hand([("MatMul", ["inputs", "W"], "h", {}), ("Add", ["b", "h"], "logits", {})]),
        "the bias of the last Add (logits)",
        0,
    ),
    "Gemm with factors": (
        lambda: by_hand([("Gemm", ["inputs", "W", "b"], "logits", {"alpha": 2.0, "beta": 0.5})]),
        "the bias of the last Gemm (logits)",
        0,
    ),
    "Gemm without its last input": (
        lambda: by_hand([("Gemm", ["inputs", "W"], "logits", {})]),
        "the bias of the last Gemm (logits)",
        0,
    ),
    "a bias that serves another node": (
        lambda: by_hand([("Gemm", ["inputs", "W", "b"], "h", {}), ("Add", ["h", "b"], "logits", {})]),
        "the bias of the last Add (logits)",
        0,
    ),
    "a bias that is one number": (
        lambda: by_hand(
            [("MatMul", ["inputs", "W"], "h", {}), ("Add", ["h", "b"], "logits", {})], bias=np.ones(1, np.float32)
        ),
        "Add behind the last Add (logits)",
        1,
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_gamma_is_where_the_graph_has_the_logits(name):
    make, place, nodes = GRAPHS[name]
    model = make()
    before = model.SerializeToString()
    inputs = X.double() if "float64" in name else X
    new = fold_into_onnx(model, CALIBRATOR, inputs)
    assert model.SerializeToString() == before
    assert record_of(new)["place"] == place
    assert len(new.graph.node) - len(model.graph.node) == nodes
    assert list(new.graph.output) == list(model.graph.output)
    assert list(new.graph.input) == list(model.graph.input)
    assert list(new.opset_import) == list(model.opset_import)
    expected = finecal.calibrate_logits(run(model, inputs)[0], MASK, GAMMA)
    np.testing.assert_allclose(run(new, inputs)[0], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.LogSoftmax(-1)])
def test_before_a_softmax(layer, opset):
    model = export(nn.Sequential(linear(), layer), opset=opset)
    new = fold_into_onnx(model, CALIBRATOR, X)
    assert operations(new) == operations(model)
    assert "Gemm" in record_of(new)["place"]
    logits = linear()(X).detach() + GAMMA * ~MASK
    np.testing.assert_allclose(run(new)[0], layer(logits), rtol=0, atol=1e-6)
    assert torch.allclose(OnnxModel(model)(X), linear()(X), atol=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_pixels(bias):
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, CLASSES, 1, bias=bias))
    file = export(model, x)
    calibrator = finecal.AdditiveBias(MASK, GAMMA, dim=1)
    new = fold_into_onnx(file, calibrator, x)
    assert operations(new) == operations(file)
    expected = finecal.calibrate_logits(run(file, x)[0], MASK, GAMMA, dim=1)
    np.testing.assert_allclose(run(new, x)[0], expected, rtol=0, atol=1e-6)
    resized = export(nn.Sequential(model, nn.Upsample(scale_factor=2)), x)
    new = fold_into_onnx(resized, calibrator, x)
    assert operations(new)[-1] == "Add"
    expected = finecal.calibrate_logits(run(resized, x)[0], MASK, GAMMA, dim=1)
    np.testing.assert_allclose(run(new, x)[0], expected, rtol=0, atol=1e-6)


CALIBRATORS = {
    "class biases": ClassBias(torch.arange(6.0)),
    "a temperature": Temperature(2.0),
    "temperatures by group": GroupTemperature(MASK, 2.0, 0.5),
    "standardisation": NormalizedLogits(torch.arange(6.0), torch.arange(1.0, 7.0)),
    "several": nn.Sequential(GroupTemperature(MASK, 2.0, 0.5), CALIBRATOR, Temperature(3.0)),
}


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrators(name):
    model = export(linear())
    new = fold_into_onnx(model, CALIBRATORS[name], X)
    np.testing.assert_allclose(run(new)[0], CALIBRATORS[name](torch.tensor(run(model)[0])), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_prototypes(bias):
    model = linear(bias)
    prototypes = Prototypes(MASK, GAMMA, torch.randn(CLASSES, 8), torch.randn(8))
    file = export(model)
    expected = prototypes(model(X), model[:2](X)).detach()
    np.testing.assert_allclose(run(fold_into_onnx(file, prototypes, X))[0], expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="Prototypes need the features, .* a Tanh gives 'logits'"):
        fold_into_onnx(export(nn.Sequential(model, nn.Tanh())), prototypes, X)


class Samples(CalibrationDataReader):
    def __init__(self):
        self.rows = iter([{"inputs": X.numpy()}])

    def get_next(self):
        return next(self.rows, None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_quantised(tmp_path, kind):
    onnx.save(export(linear()), tmp_path / "float.onnx")
    if kind == "static":
        quantize_static(tmp_path / "float.onnx", tmp_path / "int8.onnx", Samples())
    else:
        quantize_dynamic(tmp_path / "float.onnx", tmp_path / "int8.onnx")
    model = onnx.load(tmp_path / "int8.onnx")
    new = fold_into_onnx(tmp_path / "int8.onnx", CALIBRATOR, X)
    expected = finecal.calibrate_logits(run(model)[0], MASK, GAMMA)
    np.testing.assert_allclose(run(new)[0], expected, rtol=0, atol=1e-6)


class TwoOutputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(FEATURES, 8), nn.Linear(8, CLASSES)

    def forward(self, inputs):
        features = self.body(inputs)
        return features, self.head(features)


def test_one_of_two_outputs():
    model = export(TwoOutputs(), outputs=("features", "logits"))
    with pytest.raises(ValueError, match=r"2 floating-point outputs .*'features', 'logits'\); pass output="):
        fold_into_onnx(model, CALIBRATOR, X)
    new = fold_into_onnx(model, CALIBRATOR, X, output="logits")
    (features, logits), (same, calibrated) = run(model), run(new)
    np.testing.assert_array_equal(same, features)
    np.testing.assert_allclose(calibrated, finecal.calibrate_logits(logits, MASK, GAMMA), rtol=0, atol=1e-6)
    assert record_of(new)["outputs"] == ["logits"]


def test_outputs_that_follow_the_logits_are_calibrated_too():
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])
    nodes = [("Gemm", ["inputs", "W", "b"], "logits", {}), ("ArgMax", ["logits"], "label", {"axis": 1, "keepdims": 0})]
    model = by_hand(nodes, extra_outputs=[label])
    new = fold_into_onnx(model, finecal.AdditiveBias(MASK, 100.0), X)
    logits, labels = run(new)
    assert (labels >= 3).all()
    assert (labels == logits.argmax(1)).all()
    assert record_of(new)["outputs"] == ["label", "logits"]


def test_a_fixed_batch_size_is_run_as_often_as_it_takes():
    model = export(linear(), X[:2], dynamic=False)
    assert torch.allclose(OnnxModel(model)(X), linear()(X), atol=1e-6)
    new = fold_into_onnx(model, CALIBRATOR, X)
    expected = finecal.calibrate_logits(run(model, X[:2])[0], MASK, GAMMA)
    np.testing.assert_allclose(run(new, X[:2])[0], expected, rtol=0, atol=1e-6)


def test_as_a_module(tmp_path):
    onnx.save(export(linear()), tmp_path / "model.onnx")
    model = OnnxModel(tmp_path / "model.onnx")
    samples = finecal.collect_logits(model, [(X[:3], torch.tensor([0, 1, 2])), (X[3:], torch.tensor([0, 1]))])
    assert torch.allclose(samples.logits_tensor, linear()(X), atol=1e-6)
    calibrated = finecal.CalibratedModel(model, CALIBRATOR)
    assert torch.equal(calibrated(X.double().numpy()), CALIBRATOR(model(inputs=X)))


def test_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, out = tmp_path / "model.onnx", tmp_path / "new.onnx"
    onnx.save(export(linear()), path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert (tmp_path / "model.data").exists()
    new = fold_into_onnx(path, CALIBRATOR, X, out=out)
    assert onnx.load(out) == new
    assert json.loads(onnx.load(out).metadata_props[-1].value)["calibrator"] == repr(CALIBRATOR)
    out.unlink()
    monkeypatch.setattr("finecal.integrations.onnx.add_to_logits", lambda *args: "nowhere")
    with pytest.raises(ValueError, match=r"output 'logits' of the new one is off by 1\.8;"):
        fold_into_onnx(path, CALIBRATOR, X, out=out)
    assert not out.exists()
    (tmp_path / "model.data").unlink()
    with pytest.raises(ValueError, match="put its files of external data beside it"):
        fold_into_onnx(path, CALIBRATOR, X)


def test_models_beyond_2_gb(tmp_path, monkeypatch):
    onnx.save(export(linear()), tmp_path / "m.onnx", save_as_external_data=True, location="d", size_threshold=0)
    monkeypatch.setattr("finecal.integrations.onnx._LARGEST", (tmp_path / "m.onnx").stat().st_size + 10)
    with pytest.raises(ValueError, match="more than the 2 GB that one file of ONNX holds"):
        OnnxModel(tmp_path / "m.onnx")


EXPORTED = {
    "gamma": CALIBRATOR,
    "gamma behind temperatures": nn.Sequential(GroupTemperature(MASK, 2.0, 0.5), CALIBRATOR),
    "gamma before a temperature": nn.Sequential(CALIBRATOR, Temperature(2.0)),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("name", EXPORTED)
def test_an_exported_calibrator_is_seen_in_the_graph(name, softmax):
    wrapped = finecal.CalibratedModel(linear(), EXPORTED[name])
    model = export(nn.Sequential(wrapped, nn.Softmax(-1)) if softmax else wrapped)
    match = r"a calibrator already: the Add '.*' of 1\.75 to the absent classes, and of 0 to the others; pass a model"
    with pytest.raises(ValueError, match=match):
        fold_into_onnx(model, finecal.AdditiveBias(MASK, 0.5), X)
    other = finecal.AdditiveBias(~MASK, 0.5)  # the pattern is of other classes
    expected = other(EXPORTED[name](linear()(X))).detach()
    expected = expected.softmax(-1) if softmax else expected
    np.testing.assert_allclose(run(fold_into_onnx(model, other, X))[0], expected, rtol=0, atol=1e-5)


def test_the_exporter_names_any_calibrator():
    pytest.importorskip("onnxscript")
    file = io.BytesIO()
    wrapped = finecal.CalibratedModel(linear(), Temperature(2.0)).eval()
    torch.onnx.export(wrapped, (X,), file, dynamo=True, external_data=False, verbose=False)
    with pytest.raises(ValueError, match="already: the Div '.*', of an exported Temperature; pass a model"):
        fold_into_onnx(onnx.load_from_string(file.getvalue()), CALIBRATOR, X)


def classifier(post_transform):
    """A linear classifier of scikit-learn, as skl2onnx writes it, with the label of the largest score."""
    rng = np.random.default_rng(0)
    attributes = {
        "coefficients": rng.normal(size=FEATURES * CLASSES).tolist(),
        "intercepts": rng.normal(size=CLASSES).tolist(),
        "classlabels_ints": list(range(CLASSES)),
        "post_transform": post_transform,
        "domain": "ai.onnx.ml",
    }
    nodes = [
        helper.make_node("LinearClassifier", ["inputs"], ["label", "scores"], **attributes),
        helper.make_node("Normalizer", ["scores"], ["normalised"], norm="L1", domain="ai.onnx.ml"),
    ]
    nodes = nodes if post_transform == "SOFTMAX" else nodes[:1]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
        helper.make_tensor_value_info(nodes[-1].output[-1], TensorProto.FLOAT, ["n", CLASSES]),
    ]
    inputs = [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", FEATURES])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(helper.make_graph(nodes, "graph", inputs, outputs), opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize("post_transform", ["NONE", "SOFTMAX"])
def test_the_label_of_a_linear_classifier_follows(post_transform):
    model = classifier(post_transform)
    before = model.SerializeToString()
    logits = OnnxModel(model)(X)
    np.testing.assert_allclose(logits, run(classifier("NONE"))[1], rtol=0, atol=1e-5)
    new = fold_into_onnx(model, finecal.AdditiveBias(MASK, 100.0), X)
    assert model.SerializeToString() == before
    labels, scores = run(new)
    assert (labels >= 3).all()
    assert (labels == scores.argmax(1)).all()
    assert record_of(new)["place"].startswith("the intercepts of the last LinearClassifier")
    assert record_of(new)["outputs"][0] == "label"
    expected = finecal.calibrate_logits(logits, MASK, 100.0)
    expected = torch.softmax(expected, -1) if post_transform == "SOFTMAX" else expected
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="LinearClassifier gives '.*' and also 'label', which would not follow"):
        fold_into_onnx(model, GroupTemperature(MASK, 2.0, 0.5), X)


def test_the_logits_are_compared_where_they_are_no_output():
    nodes = [("Gemm", ["inputs", "W", "b"], "scores", {}), ("Relu", ["scores"], "logits", {})]
    new = fold_into_onnx(by_hand(nodes), CALIBRATOR, X, output="scores")
    scores = OnnxModel(by_hand(nodes), output="scores")(X)
    np.testing.assert_allclose(run(new)[0], CALIBRATOR(scores).relu(), rtol=0, atol=1e-6)


class Cosine(finecal.AdditiveBias):
    def forward(self, logits):
        return super().forward(logits).square()


def scored(model, calibrator=CALIBRATOR, inputs=X, **options):
    return lambda: fold_into_onnx(model, calibrator, inputs, **options)


def sums_to_one():
    nodes = [
        ("Gemm", ["inputs", "W", "b"], "scores", {}),
        ("Exp", ["scores"], "powers", {}),
        ("ReduceL1", ["powers"], "total", {"axes": [1]}),
        ("Div", ["powers", "total"], "logits", {}),
    ]
    return by_hand(nodes)


REFUSED = {
    "twice": (lambda: scored(fold_into_onnx(export(linear()), CALIBRATOR, X)), "has a calibrator already"),
    "other classes": (
        lambda: scored(export(linear()), finecal.AdditiveBias([True, False], 1.0)),
        "seen_mask has 2 entries",
    ),
    "no affine map": (lambda: scored(export(linear()), Cosine(MASK, 1.0)), "does more than scale"),
    "probabilities": (lambda: scored(sums_to_one()), "no softmax of the graph gives them"),
    "another softmax": (
        lambda: scored(
            export(nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.Softmax(1)), torch.randn(2, 3, CLASSES, CLASSES)),
            inputs=torch.randn(2, 3, CLASSES, CLASSES),
        ),
        "along dimension 1, and the classes of the calibrator are along 3; make the calibrator with dim=1",
    ),
    "an old opset": (
        lambda: scored(by_hand([("Gemm", ["inputs", "W", "b"], "logits", {})], opset=6)),
        "opset 6 and IR version 8; opset 7",
    ),
    "no such output": (lambda: scored(export(linear()), output="scores"), "output is 'scores', which no node"),
    "wrong inputs": (lambda: scored(export(linear()), inputs={"x": X}), r"inputs are \['x'\], .* \['inputs'\]"),
    "a wrong shape": (lambda: scored(export(linear()), inputs=X[:, :2]), "ONNX Runtime cannot run the model on"),
    "a broken graph": (
        lambda: scored(by_hand([("Gemm", ["inputs", "nothing"], "logits", {})])),
        "the model is no valid ONNX",
    ),
    "a suffix": (lambda: scored(export(linear()), out="model.pt"), "ends with .onnx"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()()


def test_wrong_types(tmp_path):
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x08\xff\xff")
    with pytest.raises(ValueError, match=r"damaged\.onnx is truncated or no \.onnx file; export the model again"):
        OnnxModel(tmp_path / "damaged.onnx")
    with pytest.raises(TypeError, match=r"model is a Linear; pass the path of an \.onnx file"):
        OnnxModel(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="calibrator is a float; pass an AdditiveBias"):
        fold_into_onnx(export(linear()), 1.5, X)
    with pytest.raises(TypeError, match="2 inputs, but the graph has 1"):
        OnnxModel(export(linear()))(X, X)
