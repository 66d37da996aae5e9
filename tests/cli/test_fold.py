"""Options of ``finecal fold`` that are refused before anything is loaded; tests/integrations has the rest."""

import re
import sys
from pathlib import Path

import pytest

from finecal._cli import arguments as cli


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("train.csv").write_text("text,label\na,x\nb,y\n")
    Path("pictures/x").mkdir(parents=True)
    Path("pictures/x/1.png").write_text("")
    Path("weights.safetensors").write_text("")


TIMM = "--timm resnet18 --checkpoint weights.safetensors --train pictures --out new"


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("--train train.csv --out new", "give MODEL_DIR, MODEL.onnx, or --timm NAME with --checkpoint FILE"),
        (f"model {TIMM}", "give MODEL_DIR, MODEL.onnx, or --timm NAME with --checkpoint FILE"),
        (
            "--timm resnet18 --train pictures --out new",
            "--timm NAME and --checkpoint FILE go together; give both, or MODEL_DIR",
        ),
        (
            "model --checkpoint weights.safetensors --train train.csv --out new",
            "--timm NAME and --checkpoint FILE go together; give both, or MODEL_DIR",
        ),
        (f"{TIMM} --base model", "--base is about directories of Hugging Face, not about timm; leave it out"),
        (f"{TIMM} --max-length 8", "--max-length is about directories of Hugging Face, not about timm; leave it out"),
        ("model --train train.csv --out model", "model exists already, and is not replaced; choose another name"),
        ("model --train train.csv --out no/new", "no/new cannot be made: there is no folder no; make it first"),
        (
            "model --train train.csv --out model/new",
            "model/new would be a part of model, which is copied; choose a name outside of it",
        ),
        ("modle --train train.csv --out new", "modle is not there; give a directory that save_pretrained has written"),
        (
            "train.csv --train train.csv --out new",
            "train.csv is no directory; give a directory that save_pretrained has written",
        ),
        ("model --train train.csv --out new --batch-size 0", "--batch-size is 0; pass a positive number"),
        ("model --train train.csv --out new --max-samples -1", "--max-samples is -1; pass a positive number"),
        ("model --train train.csv --out new --seed -1", "seed is -1; it cannot be negative"),
        (
            "model --train train.csv --out new --max-seen-drop 0.1",
            "--max-seen-drop needs --held-out, labelled samples that the model was not trained on: those of "
            "--train do not tell what is lost",
        ),
        (
            "model --train train.csv --out new --max-seen-drop 2 --held-out train.csv",
            "--max-seen-drop is 2.0; it must lie strictly between 0 and 1 (2.0 % is 0.02)",
        ),
        (
            "model --train train.csv --out new --unlabelled train.csv",
            "--unlabelled needs --held-out, labelled samples that the model was not trained on, or --seen-share, the "
            "share of seen samples in it; give one of these, or leave it out",
        ),
        (
            "model --train train.csv --out new --seen-share 0",
            "--seen-share is 0.0; it must lie strictly between 0 and 1",
        ),
        ("model --train no.csv --out new", "no.csv does not exist; check the name"),
        (
            "model --train train.csv --held-out pictures --out new",
            "pictures has images, train.csv has texts; give data of one kind",
        ),
        (
            "model --train pictures --label-column x --out new",
            "--text-column and --label-column are for tables, and pictures is a folder; leave them out",
        ),
        (
            "model --train train.csv --out new --text-column body",
            "train.csv has no column 'body' (it has 'text', 'label'); name the one with the text by --text-column",
        ),
    ],
)
def test_refuses_before_anything_is_loaded(refuses, line, sentence):
    refuses(f"fold {line}", sentence)


def test_refuses_devices_that_are_none(capsys):
    with pytest.raises(SystemExit):
        cli.main(["fold", "model", "--train", "train.csv", "--out", "new", "--device", "gpu"])
    assert capsys.readouterr().err.startswith("finecal fold: error: device is 'gpu', which is none (")


@pytest.mark.parametrize(("line", "package"), [("model --train train.csv --out new", "transformers"), (TIMM, "timm")])
def test_says_which_package_is_missing(capsys, monkeypatch, line, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"finecal.integrations._saved_{package}", raising=False)
    with pytest.raises(SystemExit):
        cli.main(f"fold {line}".split())
    error = capsys.readouterr().err
    assert re.search(rf"needs {package} \(.*\): pip install 'finecal\[{package}\]'\n$", error)
    assert not Path("new").exists()
