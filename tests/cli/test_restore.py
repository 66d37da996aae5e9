"""Options of ``finecal restore`` that are refused before anything is loaded; tests/integrations has the rest."""

import sys
from pathlib import Path

import pytest

from finecal._cli import arguments as cli


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tuned", "old"):
        Path(name).mkdir()
    Path("train.csv").write_text("text,label\na,x\nb,y\n")
    Path("pictures/x").mkdir(parents=True)
    Path("pictures/x/1.png").write_text("")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("tuned old --data train.csv --out old", "old exists already, and is not replaced; choose another name"),
        (
            "tuned old --data train.csv --out tuned/new",
            "tuned/new would be a part of tuned, which is copied; choose a name outside of it",
        ),
        (
            "tuned old --data train.csv --out old/new",
            "old/new would be a part of old, which is copied; choose a name outside of it",
        ),
        ("tuned no --data train.csv --out new", "no is not there; give a directory that save_pretrained has written"),
        ("tuned old --data train.csv --out new --batch-size 0", "--batch-size is 0; pass a positive number"),
        (
            "tuned old --data train.csv --out new --seen-share 2",
            "--seen-share is 2.0; it must lie strictly between 0 and 1 (2.0 % is 0.02)",
        ),
        (
            "tuned old --data train.csv --out new --prototypes",
            "--prototypes are made of unlabelled samples of all classes; give some as --unlabelled",
        ),
        ("tuned old --data no.csv --out new", "no.csv does not exist; check the name"),
        (
            "tuned old --data train.csv --unlabelled pictures --out new",
            "pictures has images, train.csv has texts; give data of one kind",
        ),
    ],
)
def test_refuses_before_anything_is_loaded(refuses, line, sentence):
    refuses(f"restore {line}", sentence)


def test_says_which_package_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "finecal.integrations._saved_transformers", raising=False)
    with pytest.raises(SystemExit):
        cli.main(["restore", "tuned", "old", "--data", "train.csv", "--out", "new"])
    assert "finecal restore needs transformers (" in capsys.readouterr().err
    assert not Path("new").exists()
