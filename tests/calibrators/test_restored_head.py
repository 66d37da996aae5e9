"""Heads of all classes from a head of the fine-tuned ones, against cases that are known by hand."""

import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import finecal

OLD, NEW, WIDTH = 7, 4, 6
NEW_TO_OLD = [5, 2, -1, 0]
pytestmark = pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")


def problem(n=400, *, seed=0, noise=0.0, scale=1.0, all_classes=False):
    """Features, an old head that is linear in them but for noise, and a new head that is wider by a factor."""
    generator = torch.Generator().manual_seed(seed)
    old = torch.randn(OLD, WIDTH, generator=generator, dtype=torch.float64)
    own = torch.randn(1, WIDTH, generator=generator, dtype=torch.float64)
    level = torch.randn(OLD, generator=generator, dtype=torch.float64)
    rows = torch.cat([old, own])
    weight = scale * rows[[5, 2, 7, 0]]
    bias = scale * torch.cat([level, torch.zeros(1)])[[5, 2, 7, 0]]
    features = torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)
    logits = features @ old.T + level
    noisy = logits + noise * torch.randn(n, OLD, generator=generator, dtype=torch.float64)
    new_logits = features @ weight.T + bias
    samples = finecal.Samples(
        new_logits,
        None if all_classes else new_logits.argmax(1),
        features=features,
        pretrained_logits=noisy,
    )
    return samples, weight, bias, old, level


def test_a_linear_old_head_comes_back_exactly():
    samples, weight, bias, old, level = problem(scale=3.0)
    restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD)
    assert restored.seen_mask.tolist() == [True, False, True, False, False, True, False, True]
    assert restored.classes.tolist() == [5, 2, 7, 0]
    assert torch.equal(restored.weight[restored.classes], weight)
    assert torch.equal(restored.bias[restored.classes], bias)
    absent = ~restored.seen_mask[:OLD]
    torch.testing.assert_close(restored.weight[:OLD][absent], 3 * old[absent], rtol=1e-3, atol=1e-3)
    gamma = restored.estimate.gamma
    torch.testing.assert_close(restored.bias[:OLD][absent] - gamma, 3 * level[absent], rtol=1e-3, atol=1e-3)
    assert restored.scale == pytest.approx(3, rel=1e-3)
    torch.testing.assert_close(restored.explained, torch.ones(OLD, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def test_rows_are_those_of_ridge_regression():
    samples, weight, bias, _, _ = problem(noise=2.0)
    restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD)
    x, y = samples.features.numpy(), samples.pretrained_logits.numpy()
    unit = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean()
    ridge = Ridge(alpha=restored.penalty * unit).fit(x, y)
    absent = (~restored.seen_mask[:OLD]).numpy()
    np.testing.assert_allclose(restored.weight[:OLD][absent], restored.scale * ridge.coef_[absent], rtol=1e-8)
    expected = restored.scale * ridge.intercept_[absent] + restored.estimate.gamma
    np.testing.assert_allclose(restored.bias[:OLD][absent], expected, rtol=1e-8)


def test_gamma_is_from_samples_left_out(monkeypatch):
    """The estimate is the same as from as many fits as there are samples."""
    samples, weight, bias, _, _ = problem(n=60, noise=1.0)
    restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD)
    x, y = samples.features.numpy(), samples.pretrained_logits.numpy()
    unit = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean()
    mapped = np.zeros((60, OLD + 1))
    for n in range(60):
        rest = np.arange(60) != n
        mapped[n, :OLD] = Ridge(alpha=restored.penalty * unit).fit(x[rest], y[rest]).predict(x[n : n + 1])[0]
    logits = restored.scale * mapped
    logits[:, restored.classes] = samples.logits
    labels = restored.classes[samples.labels].numpy()
    by_hand = finecal.estimators.mixed_pair_gap(logits, labels, restored.seen_mask.numpy())
    assert restored.estimate.gamma == pytest.approx(by_hand.gamma, abs=0.02)


def test_arrays_and_half_precision():
    samples, weight, bias, old, _ = problem()
    arrays = finecal.Samples(
        samples.logits.numpy(),
        samples.labels.numpy(),
        features=samples.features.numpy().astype(np.float32),
        pretrained_logits=samples.pretrained_logits.numpy().astype(np.float16),
    )
    restored = finecal.weights.fit_restored_head(arrays, weight.numpy(), bias.numpy(), new_to_old=NEW_TO_OLD)
    absent = ~restored.seen_mask[:OLD]
    torch.testing.assert_close(restored.weight[:OLD][absent], old[absent], rtol=2e-2, atol=2e-2)


def test_unlabelled_samples_and_prototypes():
    samples, weight, bias, _, _ = problem(scale=2.0)
    stream = problem(n=600, seed=0, scale=2.0, all_classes=True)[0]
    restored = finecal.weights.fit_restored_head(
        samples, weight, bias, new_to_old=NEW_TO_OLD, is_held_out=True, unlabelled=stream, with_prototypes=True
    )
    assert restored.prototypes.n == 600
    assert "unlabelled" in restored.estimate.data
    assert "prototypes of 8 classes" in str(restored)


def test_without_labels_the_share_decides():
    samples, weight, bias, _, _ = problem(all_classes=True)
    restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD, seen_share=0.25)
    assert restored.estimate.function == "known_share_gamma"
    predicted = (samples.features @ restored.weight.T + restored.bias).argmax(1)
    assert restored.seen_mask[predicted].double().mean() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"new_to_old": [5, 2, -1]}, ValueError, "new_to_old has shape (3,), but the new head has 4 rows"),
        ({"new_to_old": [5, 2, -1, 7]}, ValueError, "pass indices of the 7 old classes"),
        ({"new_to_old": [5, 5, -1, 0]}, ValueError, "names an old class twice"),
        ({"new_to_old": [-1, -1, -1, -1]}, ValueError, "the heads share no class"),
        ({"new_to_old": [0.0, 1, 2, 3]}, TypeError, "new_to_old has dtype"),
        ({"new_to_old": [True, False, True, True]}, TypeError, "new_to_old has dtype bool"),
        ({"samples": (1, 2)}, TypeError, "samples is a tuple; pass a finecal.Samples"),
        ({"weight": torch.ones(4, 3)}, ValueError, "weight has shape (4, 3), but features have 6 columns"),
        ({"bias": torch.ones(3)}, ValueError, "bias has shape (3,), weight (4, 6)"),
        ({"with_prototypes": True}, ValueError, "pass them as unlabelled="),
        ({"is_held_out": "no"}, TypeError, "is_held_out"),
        ({"without": "features"}, TypeError, "samples has no features"),
        ({"without": "pretrained_logits"}, TypeError, "samples has no pretrained_logits"),
    ],
)
def test_refuses(change, error, sentence):
    samples, weight, bias, _, _ = problem()
    if "without" in change:
        fields = {"features": samples.features, "pretrained_logits": samples.pretrained_logits}
        del fields[change["without"]]
        change = {"samples": finecal.Samples(samples.logits, samples.labels, **fields)}
    given = {"samples": samples, "weight": weight, "bias": bias, "new_to_old": NEW_TO_OLD} | change
    with pytest.raises(error, match=re.escape(sentence)):
        finecal.weights.fit_restored_head(given.pop("samples"), given.pop("weight"), given.pop("bias"), **given)


def test_refuses_heads_of_all_classes():
    samples = problem()[0]
    full = finecal.Samples(
        samples.pretrained_logits, features=samples.features, pretrained_logits=samples.pretrained_logits
    )
    with pytest.raises(ValueError, match="none is absent, and there is nothing to restore"):
        finecal.weights.fit_restored_head(full, torch.ones(OLD, WIDTH), None, new_to_old=range(OLD))


def test_pretrained_logits_of_other_classes_are_for_restoring_alone():
    samples, _, _, _, _ = problem()
    with pytest.raises(ValueError, match=r"pretrained_logits are of 7 classes, .*logits of 4; .*finecal\.restore_head"):
        finecal.diagnose(samples, [True, True, True, False])


def test_little_explained_is_warned_of():
    samples, weight, bias, _, _ = problem(noise=50.0)
    with pytest.warns(finecal.FinecalWarning, match="the features explain"):
        restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD)
    assert any("restored model may be worse" in sentence for sentence in restored.estimate.warnings)
