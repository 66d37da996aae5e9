"""What a model, its config and its file tell of folding."""

import io

import pytest
import torch
from torch import nn

import finecal
from finecal._models.fold import is_folded
from foldable_models import MASK, C, Classifier, Config


@pytest.fixture
def calibrator():
    return finecal.AdditiveBias(MASK, 1.7)


def test_a_config_carries_the_record(calibrator):
    model = finecal.fold_into_head(Classifier(Config()), calibrator)
    again = Classifier(Config.from_pretrained(model.config.save_pretrained()))
    again.load_state_dict(model.state_dict())
    assert is_folded(again)
    with pytest.raises(ValueError, match="already: use the model as it is, or take it out with unfold_from_head"):
        finecal.fold_into_head(again, calibrator)
    finecal.unfold_from_head(again, calibrator)
    assert not is_folded(again)
    assert vars(again.config) == {}


def test_a_record_about_a_head_since_replaced_is_stale(calibrator):
    config = finecal.fold_into_head(Classifier(Config()), calibrator).config
    other = Classifier(config, classes=2)
    assert not is_folded(other)
    finecal.fold_into_head(other, finecal.AdditiveBias([True, False], 1.0))
    assert config.finecal_folded["num_classes"] == 2


def test_only_the_config_that_is_saved_with_the_head_is_used(calibrator):
    encoder = nn.Module()
    encoder.config = Config()
    model = nn.Sequential(encoder, nn.Linear(8, C))
    finecal.fold_into_head(model, calibrator)
    assert vars(encoder.config) == {}
    assert is_folded(model)


def test_a_state_dict_carries_the_bias_but_the_record_only_by_its_looks(calibrator):
    state = io.BytesIO()
    torch.save(finecal.fold_into_head(Classifier(), calibrator).state_dict(), state)
    state.seek(0)
    again = Classifier()
    again.load_state_dict(torch.load(state, weights_only=True))
    once = again.classifier.bias.detach().clone()
    assert not is_folded(again)
    with pytest.raises(ValueError, match="nothing is recorded as folded"):
        finecal.unfold_from_head(again, calibrator)
    with pytest.warns(finecal.FinecalWarning, match=r"looks as if .* had been folded before .*unfold_from_head"):
        finecal.fold_into_head(again, calibrator)
    torch.testing.assert_close(finecal.unfold_from_head(again, calibrator).classifier.bias, once)
