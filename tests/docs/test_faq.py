"""The Python of the questions runs, and what the answers say of it holds."""

import copy
import re

import pytest
import torch

import finecal
from pages import DOCS, blocks


@pytest.fixture
def run(names):
    """Run the one block of the page in which these words are."""
    names["finecal"] = finecal

    def run(words):
        (block,) = (block for block in blocks("docs/faq.md", "python") if words in block)
        exec(block, names)
        return names

    return run


def test_every_block_is_run_by_a_test():
    tests = re.findall(r'run\("(.*?)"\)', (DOCS.parent / "tests/docs/test_faq.py").read_text(encoding="utf-8"))
    unrun = [block for block in blocks("docs/faq.md", "python") if not any(words in block for words in tests)]
    assert unrun == []


def test_share(run):
    names = run("share =")
    assert names["share"] > 0.8 > names["seen_mask"][names["test_labels"]].float().mean()


def test_small_head(names):
    with pytest.raises(ValueError, match="seen_mask has 5 entries for logits of 3 classes"):
        finecal.estimate_gamma(names["seen_mask"], train=(names["train_logits"][:, :3], names["train_labels"]))


def test_multi_label(names):
    one_hot = torch.nn.functional.one_hot(names["test_labels"], 5)
    with pytest.raises(ValueError, match="labels have shape"):
        finecal.evaluate(names["test_logits"], one_hot, names["seen_mask"])


def test_segmentation(run):
    names = run("calibrated_maps =")
    rows = finecal.calibrate_logits(names["test_logits"], names["seen_mask"], names["estimate"])
    assert torch.equal(names["calibrated_maps"].reshape(-1, 5), rows)


def test_absent_labels(names):
    with pytest.raises(ValueError, match="labels contain absent class"):
        finecal.estimate_gamma(names["seen_mask"], train=(names["test_logits"], names["test_labels"]))


def test_probabilities(run, names):
    names["train_probabilities"] = names["train_logits"].softmax(1)
    with pytest.raises(ValueError, match="look like probabilities"):
        finecal.estimate_gamma(names["seen_mask"], train=(names["train_probabilities"], names["train_labels"]))
    gamma = run("train_probabilities.log()")["gamma"]
    given = finecal.estimate_gamma(names["seen_mask"], train=(names["train_logits"], names["train_labels"]))
    assert float(gamma) == pytest.approx(float(given), abs=1e-5)


def test_re_indexed(run, names):
    names |= {"class_names": list("edcba"), "folder_names": ["a", "c"], "folder_labels": torch.tensor([0, 1, 1])}
    names = run("index_of =")
    assert names["labels"].tolist() == [4, 2, 2]
    assert names["seen_mask"].tolist() == [False, False, True, False, True]
    logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    with pytest.warns(finecal.FinecalWarning, match="look re-indexed"), pytest.raises(ValueError, match="absent class"):
        finecal.estimators.max_logit_gap(logits, torch.tensor([0, 1, 0, 1]), names["seen_mask"])


def test_share_in_use(run):
    names = run("mostly_absent =")
    usual = finecal.estimate_gamma(names["seen_mask"], train=(names["train_logits"], names["train_labels"]))
    assert float(names["mostly_absent"]) > float(usual) > float(names["mostly_seen"])
    assert 0 < float(names["from_use"]) < 6


def test_memory(run):
    names = run("MarginRows")
    assert names["curve"].at(2.0) == finecal.tradeoff_curve(
        names["test_logits"], names["test_labels"], names["seen_mask"]
    ).at(2.0)


@pytest.fixture
def twenty_classes(rng):
    """Samples of the first ten of twenty classes, and logits of a model that has no gap."""
    labels = torch.tensor(rng.integers(10, size=600))
    logits = torch.tensor(rng.normal(size=(600, 20))) + 3 * torch.eye(20)[labels]
    return torch.arange(20) < 10, logits, labels


def test_no_gap(names, twenty_classes):
    mask, logits, labels = twenty_classes
    for share, sign in ((None, 0), (0.1, 1), (0.99, -1)):
        with pytest.warns(finecal.FinecalWarning, match="no gap is seen"):
            found = finecal.estimate_gamma(mask, train=(logits, labels), seen_share=share)
        assert (found.gamma > 0) - (found.gamma < 0) == sign
    with pytest.warns(finecal.FinecalWarning, match="max_logit_gap is .*, of the other sign"):
        few_classes = finecal.estimate_gamma(
            names["seen_mask"], train=(names["pretrained_train_logits"], names["train_labels"])
        )
    assert 0.3 < float(few_classes) < 1.2
    held_out = (names["pretrained_held_out_logits"], names["held_out_labels"])
    negative = finecal.estimators.residual_gap(*held_out, names["seen_mask"], seen_share=0.99)
    assert float(negative) < -1
    with pytest.warns(finecal.FinecalWarning, match="the seen classes lose: absent ones are ahead"):
        losing = finecal.estimate_gamma(mask, held_out=(logits - 3 * mask, labels))
    assert -4 < float(losing) < -2
    pushed_down = names["train_logits"] - 6 * names["seen_mask"]
    for estimator in (finecal.estimators.max_logit_gap, finecal.estimators.average_logit_gap):
        with pytest.warns(finecal.FinecalWarning, match="may have the wrong sign"):
            assert float(estimator(pushed_down, names["train_labels"], names["seen_mask"])) < 0


def test_cosines_have_a_gap_without_their_scale(names):
    gammas = [
        float(finecal.estimate_gamma(names["seen_mask"], train=(names["train_logits"] / scale, names["train_labels"])))
        for scale in (1, 20)
    ]
    assert 20 * gammas[1] == pytest.approx(gammas[0], rel=0.02)


@pytest.mark.parametrize("scale", [1, 8])
def test_gamma_is_in_units_of_the_logits(names, scale):
    given = (names["train_labels"], names["seen_mask"])
    gamma = float(finecal.estimators.max_logit_gap(names["train_logits"], *given))
    assert float(finecal.estimators.max_logit_gap(scale * names["train_logits"], *given)) == pytest.approx(
        scale * gamma
    )


def test_interval(run):
    names = run("n_bootstrap=200")
    assert names["low"] < float(names["estimate"]) < names["high"]
    again = finecal.estimate_gamma(names["seen_mask"], train=(names["train_logits"], names["train_labels"]))
    assert float(again) == float(names["estimate"])


def test_budget(run):
    careful = run("careful =")["careful"]
    assert 0.85 < careful.acc_seen_at_gamma < 0.98


def test_validation(run, capsys):
    names = run("search_gamma")
    report = finecal.evaluate(names["test_logits"], names["test_labels"], names["seen_mask"])
    better = finecal.evaluate(names["test_logits"], names["test_labels"], names["seen_mask"], names["gamma"])
    assert better.acc_all > report.acc_all + 0.1
    assert better.acc_absent_within == report.acc_absent_within
    assert capsys.readouterr().out


def test_order(run, names):
    names["gamma"] = 3.0
    names = run("brought_back = finecal.AdditiveBias(seen_mask, gamma)")
    behind = names["calibrated"](names["test_inputs"])
    t = float(names["temperature"].temperature)
    expected = finecal.calibrate_logits(names["test_logits"] / t, names["seen_mask"], 3.0 / t)
    assert torch.allclose(behind, expected, atol=1e-5)


def test_temperature(run, capsys):
    names = run("print(temperature.report)")
    assert "steps" in capsys.readouterr().out
    assert names["temperature"].report.at_bound == ()
    others = (names["valid_labels"] + 1) % 5
    with pytest.warns(finecal.FinecalWarning):
        assert finecal.calibrators.fit_temperature(names["valid_logits"], others).report.at_bound
    larger = finecal.calibrators.fit_temperature(100 * names["valid_logits"], names["valid_labels"]).temperature
    assert float(larger) == pytest.approx(100 * float(names["temperature"].temperature), rel=1e-4)
    assert torch.equal(names["temperature"](names["test_logits"]).argmax(1), names["test_logits"].argmax(1))


def test_half_precision(run):
    names = run("to(torch.bfloat16)")
    assert names["calibrator"].gamma.item() == pytest.approx(4.7, abs=1e-6)
    assert names["rounded"].tolist() == [[1, 2, 3, 8.6875, 9.6875]]
    close = torch.tensor([[8.6875, 0.0, 0.0, 4.0, 0.0]], dtype=torch.bfloat16)
    assert names["calibrator"](close).argmax(1).item() == 0  # a tie, after rounding
    assert finecal.predict(close, names["seen_mask"], 4.7).item() == 3
    assert names["calibrator"](close.float()).argmax(1).item() == 3
    with pytest.raises(TypeError, match="int8"):
        finecal.evaluate(names["test_logits"].to(torch.int8), names["test_labels"], names["seen_mask"])


def test_no_bias(names):
    headless = torch.nn.Linear(5, 5, bias=False)
    with pytest.raises(ValueError, match="the head has no bias"):
        finecal.fold_into_head(headless, finecal.AdditiveBias(names["seen_mask"], 1.0))


def test_keys(run, names, capsys):
    names |= {
        "brought_back": finecal.AdditiveBias(names["seen_mask"], 3.0),
        "old_state": {key: value + 1 for key, value in copy.deepcopy(names["model"]).state_dict().items()},
    }
    names = run("old_state")
    (block,) = (block for block in blocks("docs/faq.md", "python") if "old_state" in block)
    assert capsys.readouterr().out.strip() == re.search(r"^# (\[.*\])$", block, re.MULTILINE).group(1)
    assert torch.equal(names["model"].bias, names["old_state"]["bias"])
    keys = list(names["model"].state_dict())
    assert list(finecal.fold_into_head(names["model"], names["brought_back"]).state_dict()) == keys


def test_macro(run):
    names = run("test_labels != 1")
    hits = (names["test_logits"].argmax(1) == names["test_labels"]).double()
    of_class = [float(hits[names["test_labels"] == label].mean()) for label in (0, 2)]
    assert names["report"].acc_seen == pytest.approx(sum(of_class) / 2)
