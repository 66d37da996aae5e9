"""``finecal fold MODEL.onnx``: arrays and tables in, a file with gamma in its graph out."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import nn

import finecal
from finecal._cli.arguments import main
from finecal.integrations.onnx import OnnxModel, record_of

CLASSES, SEEN = 6, 3
MASK = torch.arange(CLASSES) < SEEN
pytestmark = [
    pytest.mark.filterwarnings("ignore::finecal.FinecalWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def samples(n, classes, seed):
    """A number for each class, the largest one mostly that of the label."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (rng.normal(size=(n, CLASSES)) + 3 * np.eye(CLASSES)[labels]).astype(np.float32), labels


class TooLoud(nn.Module):
    """The seen classes are four units too loud."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(CLASSES))
            self.head.bias.copy_(4.0 * MASK)

    def forward(self, numbers):
        return self.head(numbers)


def write_table(path, inputs, labels):
    header = ",".join([*(f"x{column}" for column in range(CLASSES)), "label"])
    rows = [",".join([*map(str, row.tolist()), str(label)]) for row, label in zip(inputs, labels, strict=True)]
    path.write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, data = TooLoud(), {"train": (120, SEEN, 0), "held_out": (120, CLASSES, 1), "test": (300, CLASSES, 2)}
    for head, name in ((model, "model"), (nn.Sequential(model, nn.Softmax(-1)), "softmax")):
        torch.onnx.export(
            head.eval(),
            (torch.zeros(1, CLASSES),),
            f"{name}.onnx",
            input_names=["numbers"],
            output_names=["scores"],
            dynamic_axes={"numbers": {0: "n"}},
            dynamo=False,
        )
    for name, settings in data.items():
        inputs, labels = samples(*settings)
        np.savez(tmp_path / f"{name}.npz", numbers=inputs, labels=labels)
        write_table(tmp_path / f"{name}.csv", inputs, labels)
    (tmp_path / "classes.txt").write_text("ant\nbee\ncat\ndog\nelk\nfox\n")
    return tmp_path


@pytest.fixture
def run(work, capsys):
    def run(line):
        assert main(f"fold {line} --no-progress".split()) == 0
        return capsys.readouterr().out

    return run


def test_arrays(run):
    out = run("model.onnx --train train.npz --held-out held_out.npz --out new.onnx")
    train, (inputs, labels) = samples(120, SEEN, 0), samples(120, CLASSES, 1)
    logits = {"train": train[0] + 4 * MASK.numpy(), "held_out": inputs + 4 * MASK.numpy()}
    kept = labels < SEEN
    estimate = finecal.estimate_gamma(
        MASK, train=(logits["train"], train[1]), held_out=(logits["held_out"][kept], labels[kept])
    )
    assert f"| gamma                                          | {estimate.gamma:.6g} " in out
    assert "the bias of the last Gemm (scores); outputs that follow: scores" in out
    assert 'wrote new.onnx, which needs no finecal: onnxruntime.InferenceSession("new.onnx")' in out
    test, classes = samples(300, CLASSES, 2)
    (scores,) = InferenceSession("new.onnx").run(None, {"numbers": test})
    np.testing.assert_allclose(scores, test + 4 * MASK.numpy() + estimate.gamma * ~MASK.numpy(), rtol=0, atol=1e-4)
    assert (scores.argmax(1) == classes).mean() > ((test + 4 * MASK.numpy()).argmax(1) == classes).mean() + 0.2


def test_a_softmax_and_tables(run):
    record = json.loads(run("softmax.onnx --train train.csv --out new.onnx --json --class-names classes.txt"))
    same = json.loads(run("model.onnx --train train.npz --out same.onnx --json"))
    assert record["gamma"] == pytest.approx(same["gamma"], abs=1e-4)
    assert record["seen_classes"] == [0, 1, 2]
    test, _ = samples(50, CLASSES, 2)
    (found,) = InferenceSession("new.onnx").run(None, {"numbers": test})
    expected = OnnxModel("same.onnx")(test).softmax(1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert record_of(onnx.load("new.onnx"))["num_classes"] == CLASSES


REFUSED = {
    "model.onnx --train train.npz --out new": "new cannot be written: choose a name that ends with .onnx",
    "none.onnx --train train.npz --out new.onnx": "none.onnx does not exist",
    "model.onnx --train classes.txt --out new.onnx": "classes.txt cannot be given to an ONNX model",
    "model.onnx --train train.npz --out new.onnx --text-column x": "--text-column is about models in torch",
    "model.onnx --train train.npz --out new.onnx --device cpu": "--device is about models in torch",
    "model.onnx --train train.npz --out new.onnx --output-name x": "output is 'x', which no node of the graph gives",
    "model.onnx --train other.npz --out new.onnx": "model.onnx has the inputs 'numbers', and the data arrays 'x'",
    "model.onnx --train unlabelled.npz --out new.onnx": "unlabelled.npz has no array 'labels' (it has 'numbers')",
    "model.onnx --train uneven.npz --out new.onnx": "uneven.npz has arrays for different numbers of samples",
    "model.onnx --train floats.npz --out new.onnx": "floats.npz: 'labels' has dtype float64",
    "model.onnx --train empty.npz --out new.onnx": "empty.npz has no rows",
    "model.onnx --train words.csv --out new.onnx": "words.csv, line 2: every column but that of the label has to be a",
    "model.onnx --train narrow.csv --out new.onnx": "ONNX Runtime cannot run the model on numbers float32 (1, 1)",
}


@pytest.mark.parametrize("line", REFUSED)
def test_refused(work, capsys, line):
    inputs, labels = samples(12, SEEN, 0)
    np.savez("other.npz", x=inputs, labels=labels)
    np.savez("unlabelled.npz", numbers=inputs)
    np.savez("uneven.npz", numbers=inputs, labels=labels[:5])
    np.savez("floats.npz", numbers=inputs, labels=labels.astype(float))
    np.savez("empty.npz", numbers=inputs[:0], labels=labels[:0])
    (work / "words.csv").write_text("x,label\nword,1\n")
    (work / "narrow.csv").write_text("x,label\n1.5,1\n")
    before = sorted(work.rglob("*"))
    with pytest.raises(SystemExit):
        main(f"fold {line} --no-progress".split())
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"finecal fold: error: {REFUSED[line]}")
    assert sorted(work.rglob("*")) == before


def test_refuses_a_second_gamma(run, capsys):
    run("model.onnx --train train.npz --out new.onnx")
    with pytest.raises(SystemExit):
        main(["fold", "new.onnx", "--train", "train.npz", "--out", "newer.onnx"])
    assert "new.onnx has gamma in its graph already" in capsys.readouterr().err
