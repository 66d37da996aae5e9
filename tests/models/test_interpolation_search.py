"""How far to go from the pre-trained to the fine-tuned weights."""

import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import finecal
from every_result import Reader, markdown_tables
from finecal._core.results import to_json
from finecal._models.interpolation_search import InterpolationStep, _chosen

C, SEEN = 6, torch.arange(6) < 3


def problem(n=600, bias=6.0):
    """A linear model that fine-tuning has taught the seen classes, with held-out samples of these."""
    torch.manual_seed(0)
    pretrained, finetuned = nn.Linear(C, C), nn.Linear(C, C)
    labels = torch.arange(n) % 3
    with torch.no_grad():
        pretrained.weight.copy_(torch.eye(C) + 0.6 * torch.randn(C, C))
        finetuned.weight.copy_(2 * torch.eye(C) + 0.5 * torch.randn(C, C))
        pretrained.bias.zero_()
        finetuned.bias.copy_(bias * SEEN)
    return pretrained, finetuned, 2.5 * torch.eye(C)[labels] + torch.randn(n, C), labels


def batches(x, labels, size=100):
    return list(zip(x.split(size), labels.split(size), strict=True))


@pytest.fixture(scope="module")
def found():
    pretrained, finetuned, x, labels = problem()
    return finecal.weights.search_interpolation(
        pretrained, finetuned, batches(x, labels), seen_mask=SEEN, progress=False
    )


# --- values -----------------------------------------------------------------------------------------------------------


def test_as_a_loop_over_models(found):
    pretrained, finetuned, x, labels = problem()
    within = []
    for step, alpha in zip(found.steps, np.linspace(0, 1, 11), strict=True):
        model = finecal.weights.interpolate_weights(pretrained, finetuned, alpha)
        with torch.no_grad():
            logits = model(x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", finecal.FinecalWarning)
            estimate = finecal.estimate_gamma(SEEN, held_out=(logits, labels))
        within.append(float((logits[:, :3].argmax(1) == labels).double().mean()))
        assert step.alpha == pytest.approx(alpha)
        assert step.acc_seen_within == pytest.approx(within[-1])
        assert step.gamma.gamma == pytest.approx(estimate.gamma, abs=1e-4)
        assert step.gamma.acc_seen_at_gamma == pytest.approx(estimate.acc_seen_at_gamma)
    gammas = [step.gamma.gamma for step in found.steps]
    allowed = [i for i in range(11) if within[i] >= within[-1] and gammas[i] >= 0.05 * i * gammas[-1]]
    assert found.alpha == found.steps[allowed[0]].alpha
    assert 0 < found.alpha < 1
    assert found.gamma == found.steps[allowed[0]].gamma
    assert found.n == 600


def test_models_stay_as_they_are():
    pretrained, finetuned, x, labels = problem()
    before = copy.deepcopy(pretrained.state_dict()), copy.deepcopy(finetuned.state_dict())
    finetuned.train()
    finecal.weights.search_interpolation(pretrained, finetuned, batches(x, labels), alphas=[1, 0], progress=False)
    for state, model in zip(before, (pretrained, finetuned), strict=True):
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        assert model.training


def test_seen_mask_from_the_labels(found):
    pretrained, finetuned, x, labels = problem()
    again = finecal.weights.search_interpolation(pretrained, finetuned, batches(x, labels, 50), progress=False)
    assert [step.acc_seen_within for step in again.steps] == [step.acc_seen_within for step in found.steps]
    assert again.alpha == found.alpha


def test_share_of_seen_samples(found):
    pretrained, finetuned, x, labels = problem()
    rare = finecal.weights.search_interpolation(
        pretrained, finetuned, batches(x, labels), seen_share=0.1, alphas=[1, 0, 1], progress=False
    )
    assert [step.alpha for step in rare.steps] == [0, 1]
    assert rare.steps[-1].gamma.gamma > found.steps[-1].gamma.gamma


def steps_of(rows):
    return [
        InterpolationStep(alpha, within, finecal.GammaEstimate(gamma, "estimate_gamma", "", 1))
        for alpha, within, gamma in rows
    ]


@pytest.mark.parametrize(
    ("rows", "alpha"),
    [
        ([(0, 0.70, 0), (0.5, 0.88, 2), (1, 0.90, 4)], 0.5),  # two points less than in the end, as allowed
        ([(0, 0.70, 0), (0.5, 0.87, 2), (1, 0.90, 4)], 1),
        ([(0, 0.89, 0), (0.5, 0.70, 2), (1, 0.90, 4)], 0),
        ([(0, 0.90, 0), (0.5, 0.99, 2), (1, 0.90, 4)], 0),  # the best in between does not count
        ([(0, 0.70, 0), (0.5, 0.90, 0.9), (1, 0.90, 4)], 1),  # no gap in proportion
        ([(0, 0.70, 0), (0.5, 0.90, 1.0), (1, 0.90, 4)], 0.5),
        ([(0, 0.90, 0), (0.5, 0.90, 0.0), (1, 0.90, 0)], 1),  # no gap to begin with
        ([(0, 0.90, 0), (0.5, 0.90, -1), (1, 0.90, -2)], 1),
        ([(0.2, 0.90, 0.4), (0.4, 0.90, 1.6)], 0.2),  # without the fine-tuned model itself
        ([(0.3, 0.90, 2.0)], 0.3),
    ],
)
def test_choice(rows, alpha):
    assert _chosen(steps_of(rows), 0.02).alpha == alpha


def test_nothing_may_be_lost_by_default(found):
    assert found.max_seen_drop == 0
    assert _chosen(steps_of([(0, 0.5, 0), (0.5, 0.89, 2), (0.7, 0.9, 3), (1, 0.9, 4)]), 0.0).alpha == 0.7


def test_two_points_are_two_points_in_any_arithmetic():
    for hits in range(100):
        rows = steps_of([(0.5, (hits - 2) / 100 if hits > 1 else 0, 2), (1, hits / 100, 4)])
        assert _chosen(rows, 0.02).alpha == 0.5


def test_batch_norm():
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(C, C), nn.BatchNorm1d(C)) for _ in range(2)]
    *_, x, labels = problem()
    for model in models:
        model(torch.randn(50, C))
    held_out, train = batches(x, labels), [torch.randn(50, C)] * 2
    with pytest.warns(finecal.FinecalWarning) as caught:
        stale = finecal.weights.search_interpolation(*models, held_out, seen_mask=SEEN, progress=False)
    assert sum("running statistics of batch norms" in str(w.message) for w in caught) == 1
    assert any("running statistics of batch norms" in sentence for sentence in stale.warnings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        fresh = finecal.weights.search_interpolation(
            *models, held_out, seen_mask=SEEN, batch_norm_loader=train, alphas=[0.3, 0.6], progress=False
        )
    assert not any("running statistics" in sentence for sentence in fresh.warnings)
    for step in fresh.steps:
        model = finecal.weights.interpolate_weights(*models, step.alpha, batch_norm_loader=train).eval()
        assert step.acc_seen_within == pytest.approx(float((model(x)[:, :3].argmax(1) == labels).double().mean()))


# --- what it warns of -------------------------------------------------------------------------------------------------


def test_few_samples():
    pretrained, finetuned, x, labels = problem(60)
    with pytest.warns(finecal.FinecalWarning) as caught:
        found = finecal.weights.search_interpolation(pretrained, finetuned, [(x, labels)], progress=False)
    (sentence,) = found.warnings
    assert re.search(r"standard error of Acc_S/S on 60 held-out samples is \d\.\d points", sentence)
    assert f"search_interpolation: {sentence}" in [str(warning.message) for warning in caught]
    assert f"warning: {sentence}" in str(found).replace("\n", " ")


@pytest.mark.parametrize(
    ("alphas", "message"), [([0, 0.5, 1], "alpha = 0 was chosen"), ([0.4, 1], "smaller ones may do")]
)
def test_flat(alphas, message):
    pretrained, finetuned, x, labels = problem()
    with torch.no_grad():
        for model in (pretrained, finetuned):
            model.weight.copy_(torch.eye(C))
    with pytest.warns(finecal.FinecalWarning) as caught:
        found = finecal.weights.search_interpolation(
            pretrained, finetuned, batches(x, labels), alphas=alphas, progress=False
        )
    assert found.alpha == alphas[0]
    assert any(message in sentence for sentence in found.warnings)
    assert any(f"search_interpolation: {sentence}" == str(caught[0].message) for sentence in found.warnings)


def test_no_gap():
    pretrained, finetuned, x, labels = problem(bias=-4.0)
    with pytest.warns(finecal.FinecalWarning) as caught:
        found = finecal.weights.search_interpolation(pretrained, finetuned, batches(x, labels), progress=False)
    assert found.alpha == 1
    assert "No gap is found at alpha = 1, so nothing is taken back." in str(found)
    assert [str(warning.message) for warning in caught] == [
        f"estimate_gamma: {sentence}" for sentence in found.gamma.warnings
    ]


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"alphas": []}, ValueError, "alphas are empty"),
        ({"alphas": 0.5}, TypeError, "alphas is a float; pass several numbers"),
        ({"alphas": "0.5"}, TypeError, "alphas is a str; pass several numbers"),
        ({"alphas": [0, 1.5]}, ValueError, r"alphas\[1\] is 1\.5; it must lie in \[0, 1\]"),
        ({"alphas": [0, None]}, TypeError, r"alphas\[1\] is a NoneType; pass a number"),
        ({"max_seen_drop": 2}, ValueError, r"max_seen_drop is 2\.0; it is a fraction in \[0, 1\]"),
        ({"max_seen_drop": "2"}, TypeError, "max_seen_drop is a str"),
        ({"progress": 1}, TypeError, "progress is a int"),
        ({"device": "nowhere"}, ValueError, "device is 'nowhere'"),
        ({"seen_mask": [True] * C}, ValueError, "seen_mask"),
        ({"seen_mask": [True, False]}, ValueError, "seen_mask has 2 entries for logits of 6 classes"),
        (
            {"batch_norm_loader": iter([])},
            TypeError,
            "batch_norm_loader is a list_iterator, which gives its batches once",
        ),
    ],
)
def test_options_are_checked(options, error, message):
    pretrained, finetuned, x, labels = problem(60)
    with pytest.raises(error, match=message):
        finecal.weights.search_interpolation(pretrained, finetuned, [(x, labels)], **{"progress": False, **options})


def test_loaders_are_checked():
    pretrained, finetuned, x, labels = problem(60)

    def search(loader):
        return finecal.weights.search_interpolation(pretrained, finetuned, loader, progress=False)

    with pytest.raises(TypeError, match="loader is a generator, which gives its batches once"):
        search(batch for batch in batches(x, labels))
    with pytest.raises(TypeError, match="loader is a Tensor; pass something that gives batches"):
        search(x)
    with pytest.raises(ValueError, match="loader has no labels"):
        search([x])
    with pytest.raises(ValueError, match="loader gave no batch"):
        search([])
    with pytest.raises(ValueError, match="a single sample of 1 of the 3 classes"):
        search([(x[:58], torch.cat([labels[:57] % 2, torch.tensor([2])]))])
    with pytest.raises(ValueError, match="held_out: labels are of absent classes"):
        finecal.weights.search_interpolation(pretrained, finetuned, [(x, labels + 3)], seen_mask=SEEN, progress=False)


# --- what it shows ----------------------------------------------------------------------------------------------------


def test_prints_as_a_table(found):
    (rows,) = markdown_tables(found.to_markdown())
    assert rows[0] == ["alpha", "S/S", "gamma", "cost", "chosen"]
    assert [row[0] for row in rows[1:]] == ["0", *(f"0.{tenth}" for tenth in range(1, 10)), "1"]
    assert [row[0] for row in rows if row[-1] == "yes"] == [f"{found.alpha:g}"]
    assert str(found).startswith(
        f"alpha = {found.alpha:g}, gamma = {found.gamma.gamma:.6g}\nThe smallest alpha that shows"
    )
    assert Reader(found._repr_html_()).tables == [rows]


def test_becomes_values(found):
    record = found.to_dict()
    assert json.loads(to_json(record)) == record
    assert record["gamma"]["gamma"] == record["steps"][round(10 * found.alpha)]["gamma"]["gamma"] == found.gamma.gamma
    table = found.to_pandas()
    assert table.columns.tolist() == ["alpha", "acc_seen_within", "gamma", "cost", "chosen"]
    assert table.loc[table.chosen, "alpha"].tolist() == [found.alpha]
    assert table.gamma.tolist() == [step.gamma.gamma for step in found.steps]
    assert table.cost[10] == found.steps[-1].gamma.acc_seen_at_zero - found.steps[-1].gamma.acc_seen_at_gamma


@pytest.mark.parametrize(
    ("max_seen_drop", "words"),
    [(0.0, "is no lower than at alpha = 1, 90.0 %"), (0.02, "at most 2.0 points lower than")],
)
def test_says_why(max_seen_drop, words):
    steps = steps_of([(0.5, 0.90, 2.0), (1, 0.90, 4.0)])
    found = finecal.weights.InterpolationSearch(0.5, steps[0].gamma, tuple(steps), max_seen_drop, 10)
    assert words in str(found).replace("\n", " ")


def test_progress(capsys):
    pretrained, finetuned, x, labels = problem()
    finecal.weights.search_interpolation(pretrained, finetuned, batches(x, labels), alphas=[0, 1], progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("collect_logits") == 0
