"""Files that were written once load, and mean the same to the bit; see their README."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_model
from torch import nn

import finecal
from finecal._cli.arguments import main
from finecal._core.logits_file import read_logits
from finecal._estimators.estimate import read_gamma

FILES = Path(__file__).parent / "data" / "written"
REPRS = json.loads((FILES / "repr.json").read_text(encoding="utf-8"))
EXPECTED = dict(np.load(FILES / "expected.npz"))
MASK = EXPECTED["seen_mask"]


def load(name):
    return finecal.load(FILES / "calibrators" / f"{name}.safetensors")


def recorded(name):
    return json.loads((FILES / name).read_text(encoding="utf-8"))


# --- calibrators ------------------------------------------------------------------------------------------------------


def test_every_file_is_expected():
    assert {path.stem for path in (FILES / "calibrators").iterdir()} == set(REPRS)


@pytest.mark.parametrize("name", sorted(REPRS))
def test_calibrators_give_the_same(name):
    calibrator = load(name)
    assert repr(calibrator) == REPRS[name]
    inputs = ["logits", "features"] if name == "prototypes" else ["logits"]
    out = calibrator(*(torch.from_numpy(EXPECTED[part]) for part in inputs)).numpy()
    assert out.dtype == EXPECTED[name].dtype
    np.testing.assert_array_equal(out, EXPECTED[name])


def test_accounts_of_fits_are_kept():
    assert load("additive_bias").estimate.data == "120 labelled samples (seen classes)"
    assert load("additive_bias").class_names == tuple("abcdef")
    assert load("temperature").report.n == 240
    assert load("group_temperature")[0].report.n == 240
    assert load("class_bias").report.objective == "overall"


# --- gamma ------------------------------------------------------------------------------------------------------------


def test_gamma_has_its_classes_and_its_estimate():
    file, record = read_gamma(str(FILES / "gamma.json")), recorded("gamma.json")
    assert file.gamma == record["gamma"]
    assert file.seen_mask.tolist() == MASK.tolist()
    assert file.class_names == tuple("abcdef")
    assert file.estimate.method == "residual_gap(seen_share=0.5)"
    assert file.estimate.interval == tuple(record["interval"])
    assert (file.estimate.n, file.estimate.acc_seen_at_zero) == (60, record["acc_seen_before"])
    assert (file.estimate.seen_share, file.estimate.seen_share_source) == (0.5, "given")
    assert file.estimate.cost_source == "held-out samples"


def test_command_line_evaluates_with_it(capsys):
    assert main(["evaluate", str(FILES / "logits.npz"), "--gamma", str(FILES / "gamma.json"), "--json"]) == 0
    printed, record = json.loads(capsys.readouterr().out), recorded("evaluation.json")
    assert (printed["before"], printed["after"]) == (record["before"], record["after"])


def test_command_line_applies_it(tmp_path):
    target = tmp_path / "calibrated.npz"
    assert main(["apply", str(FILES / "logits.npz"), "--gamma", str(FILES / "gamma.json"), "-o", str(target)]) == 0
    new, old = read_logits(target), read_logits(FILES / "calibrated.npz")
    assert torch.equal(new.logits, old.logits)
    assert torch.equal(new.labels, old.labels)
    assert (new.gamma, new.class_names) == (old.gamma, old.class_names)
    assert (old.gamma, old.class_names) == (recorded("gamma.json")["gamma"], tuple("abcdef"))


def test_finished_folds_are_not_trained_again(tmp_path):
    def fine_tune(pseudo_seen_mask):
        raise AssertionError("a fold was trained again")

    folds = shutil.copytree(FILES / "folds", tmp_path / "folds")
    with pytest.warns(finecal.FinecalWarning, match="there are only 1 pseudo-absent classes"):
        estimate = finecal.estimators.pseudo_cv(
            fine_tune, MASK, n_splits=2, objective="balanced", directory=folds, progress=False
        )
    assert estimate.gamma == recorded("folds.json")["gamma"]


# --- a folded head ----------------------------------------------------------------------------------------------------


class Config:
    """As Hugging Face's: attributes that come from JSON."""

    def __init__(self, **attributes):
        vars(self).update(attributes)

    def save_pretrained(self):
        raise NotImplementedError


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = Config(**recorded("folded_head.json"))
        self.body, self.classifier = nn.Linear(4, 4), nn.Linear(4, 6)


@pytest.fixture
def folded():
    model = Classifier()
    load_model(model, FILES / "folded_head.safetensors")
    return model


@pytest.fixture
def calibrator():
    return nn.Sequential(load("additive_bias"), load("class_bias"))


def test_a_head_that_was_folded_is_not_folded_again(folded, calibrator):
    with pytest.raises(ValueError, match="is folded into the head classifier already"):
        finecal.fold_into_head(folded, calibrator)
    with pytest.raises(ValueError, match="folded into the model's head already"):
        finecal.CalibratedModel(folded, calibrator)


def test_a_head_that_was_folded_is_unfolded(folded, calibrator):
    record, bias = dict(vars(folded.config)), folded.classifier.bias.detach().clone()
    before = torch.from_numpy(np.load(FILES / "bias_before_folding.npy"))
    assert not torch.allclose(bias, before)
    finecal.unfold_from_head(folded, calibrator)
    assert torch.allclose(folded.classifier.bias, before, rtol=0, atol=1e-6)
    assert vars(folded.config) == {}
    with torch.no_grad():
        folded.classifier.bias.copy_(before)
    finecal.fold_into_head(folded, calibrator)
    assert vars(folded.config) == record
    assert torch.equal(folded.classifier.bias, bias)
