"""Heads of all classes from a head of the fine-tuned ones, against cases that are known by hand."""

import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch.nn.functional import cross_entropy

import finecal
from finecal._calibrators.head_map import old_share
from finecal._calibrators.restored_head import fit_both_heads

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
    torch.testing.assert_close(restored.weight[restored.classes], weight, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(restored.bias[restored.classes], bias, rtol=1e-3, atol=1e-3)
    absent = ~restored.seen_mask[:OLD]
    torch.testing.assert_close(restored.weight[:OLD][absent], 3 * old[absent], rtol=1e-3, atol=1e-3)
    gamma = restored.estimate.gamma
    torch.testing.assert_close(restored.bias[:OLD][absent] - gamma, 3 * level[absent], rtol=1e-3, atol=1e-3)
    assert restored.scale == pytest.approx(3, rel=1e-3)
    torch.testing.assert_close(restored.explained, torch.ones(OLD, dtype=torch.float64), rtol=1e-5, atol=1e-5)


def by_ridge(samples, restored, rows=slice(None)):
    """Weight and intercept of scikit-learn's ridge regression on some of the rows, with the penalty that was chosen."""
    x, y = samples.features.numpy(), samples.pretrained_logits.numpy()
    unit = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0))).mean()
    return Ridge(alpha=restored.penalty * unit).fit(x[rows], y[rows])


def following(mapped, new, restored, shared_scale):
    """All logits or rows: new ones mixed with mapped ones, and scaled ones that follow half of the change in level."""
    shared, old = [5, 2, 0], [0, 1, 3]
    as_old = new.copy()
    as_old[old] = shared_scale * mapped[shared]
    as_old[old] += (new[old] - as_old[old]).mean(0)
    mixed = (1 - restored.old_share) * new + restored.old_share * as_old
    whole = np.zeros((OLD + 1, *mapped.shape[1:]))
    whole[:OLD] = restored.scale * mapped + 0.5 * (mixed[old] - restored.scale * mapped[shared]).mean(0)
    whole[[5, 2, 7, 0]] = mixed
    return whole


def mapped_left_out(samples, restored):
    """Mapped logits of each sample by a fit to all others, and the scale at which they rise as the new ones do."""
    count = len(samples.features)
    fits = [by_ridge(samples, restored, np.arange(count) != n) for n in range(count)]
    mapped = np.stack([fits[n].predict(samples.features[n : n + 1])[0] for n in range(count)])
    rises = [z.max(1).mean() - z.mean() for z in (samples.logits.numpy()[:, [0, 1, 3]], mapped[:, [5, 2, 0]])]
    return mapped, rises[0] / rises[1]


def test_rows_are_those_of_ridge_regression():
    samples, weight, bias, _, _ = problem(n=100, noise=2.0)
    labels = torch.where(torch.arange(100) % 3 == 0, (samples.labels + 1) % 4, samples.labels)
    samples = finecal.Samples(
        samples.logits, labels, features=samples.features, pretrained_logits=samples.pretrained_logits
    )
    restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD)
    assert 0 < restored.old_share < 1
    ridge, scale = by_ridge(samples, restored), mapped_left_out(samples, restored)[1]
    np.testing.assert_allclose(restored.weight, following(ridge.coef_, weight.numpy(), restored, scale), rtol=1e-8)
    expected = following(ridge.intercept_, bias.numpy(), restored, scale)
    expected[~restored.seen_mask.numpy()] += restored.estimate.gamma
    np.testing.assert_allclose(restored.bias, expected, rtol=1e-8)


def test_gamma_is_from_samples_left_out():
    """By as many fits as there are samples: mixed pairs, if no more are then taken for absent than before."""
    samples, weight, bias, _, _ = problem(n=60, noise=1.0)
    restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD)
    mapped, scale = mapped_left_out(samples, restored)
    rows = zip(mapped, samples.logits.numpy(), strict=True)
    logits = np.stack([following(old, new, restored, scale) for old, new in rows])
    labels, mask = restored.classes[samples.labels].numpy(), restored.seen_mask.numpy()
    pairs = finecal.estimators.mixed_pair_gap(logits, labels, mask).gamma
    known = labels < OLD
    old = samples.pretrained_logits.numpy()[known]
    taken = (old[:, mask[:OLD]].max(1) < old[:, ~mask[:OLD]].max(1)).mean()
    most = np.quantile(logits[known][:, mask].max(1) - logits[known][:, ~mask].max(1), taken)
    assert restored.estimate.gamma == pytest.approx(min(pairs, most), abs=0.02)


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
    alone = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD, is_held_out=True)
    assert restored.estimate.cost_source == alone.estimate.cost_source == "held-out samples"
    assert not torch.allclose(restored.weight, alone.weight)
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


def test_doubtful_heads_are_warned_of():
    samples, weight, bias, _, _ = problem(noise=50.0)
    with pytest.warns(finecal.FinecalWarning, match="the restored model is expected to be right on"):
        restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD)
    assert any("it may be worse than they are" in sentence for sentence in restored.estimate.warnings)
    assert restored.expected.is_doubtful(False)


def test_the_old_head_is_a_start_where_samples_are_few():
    """With fewer samples than features, what no sample shows comes from the old head."""
    samples, weight, bias, old, _ = problem(n=5)
    kwargs = {"new_to_old": NEW_TO_OLD}
    alone = finecal.weights.fit_restored_head(samples, weight, bias, **kwargs)
    pulled = finecal.weights.fit_restored_head(samples, weight, bias, old_weight=old, **kwargs)
    absent = ~pulled.seen_mask[:OLD]
    torch.testing.assert_close(pulled.weight[:OLD][absent], pulled.scale * old[absent], atol=1e-6, rtol=1e-6)
    assert not torch.allclose(alone.weight[:OLD][absent], alone.scale * old[absent], atol=0.1)
    with pytest.raises(ValueError, match=r"old_weight has shape \(4, 6\), but there are 7 old classes and 6 features"):
        finecal.weights.fit_restored_head(samples, weight, bias, old_weight=weight, **kwargs)


@pytest.mark.parametrize("seed", range(3))
def test_the_old_head_has_the_likeliest_share(seed):
    """By brute force over shares and temperatures, with labels of which the old logits know more, and of noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (300,), generator=generator)
    new, old = torch.randn(2, 300, 5, generator=generator, dtype=torch.float64)
    new[torch.arange(300), labels] += 1.0
    old[torch.arange(300), labels] += seed
    found = old_share(new, 3 * old, labels)

    def likelihood(share):
        mixed = (1 - share) * new + share * 3 * old
        return max(float(-cross_entropy(size * mixed, labels)) for size in np.linspace(0.1, 4, 80))

    shares = np.linspace(0, 1, 101)
    assert found == pytest.approx(shares[np.argmax([likelihood(share) for share in shares])], abs=0.03)


def test_share_is_zero_of_one_class_of_constants_and_where_the_new_head_knows_all():
    assert old_share(torch.ones(4, 1), torch.ones(4, 1), torch.zeros(4, dtype=torch.int64)) == 0
    right = torch.eye(3, dtype=torch.float64).repeat(40, 1)
    assert old_share(right, torch.zeros_like(right), right.argmax(1)) == 0
    assert old_share(right, -right, right.argmax(1)) == 0
    assert old_share(-right, right, right.argmax(1)) == pytest.approx(1, abs=1e-4)


def test_both_models_need_no_map():
    """The old logits themselves in place of mapped ones."""
    samples, _, _, _, _ = problem(noise=2.0, scale=2.0)
    both = fit_both_heads(samples, new_to_old=NEW_TO_OLD, is_held_out=True)
    old = samples.pretrained_logits.numpy()
    rises = [z.max(1).mean() - z.mean() for z in (samples.logits.numpy()[:, [0, 1, 3]], old[:, [5, 2, 0]])]
    scale = rises[0] / rises[1]
    rows = zip(old, samples.logits.numpy(), strict=True)
    expected = np.stack([following(before, after, both, scale) for before, after in rows])
    expected[:, ~both.seen_mask.numpy()] += both.estimate.gamma
    found = torch.cat([samples.logits, samples.pretrained_logits], 1) @ both.weight.T + both.bias
    np.testing.assert_allclose(found, expected, rtol=1e-8)
    assert both.agreement == 1


def test_little_agreement_is_warned_of():
    """A map that is right about the seen classes, and where the old logits of the absent ones are noise."""
    samples, weight, bias, _, _ = problem()
    noise = torch.randn(400, OLD, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    old = samples.pretrained_logits.clone()
    old[:, [1, 3, 4, 6]] = noise[:, [1, 3, 4, 6]] - 20
    samples = finecal.Samples(samples.logits, samples.labels, features=samples.features, pretrained_logits=old)
    with pytest.warns(finecal.FinecalWarning, match="the features have lost much of what it knew"):
        restored = finecal.weights.fit_restored_head(samples, weight, bias, new_to_old=NEW_TO_OLD, is_held_out=True)
    assert restored.agreement < 0.5
