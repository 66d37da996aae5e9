"""Prototypes of unlabelled samples, by NumPy, by what must not change them, and by what goes wrong."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import finecal
from finecal.streaming import _prototypes as prototypes
from naive_prototypes import clusters, naive, with_features
from profiles import examples
from streams import quietly

GAMMA = 4.0
ALONE = (
    "prototypes of one half of the samples tell nothing of the other half, so the model is left alone: gamma is all "
    "that is added; pass more samples"
)


def fit(logits, features, mask, gamma=GAMMA, held_out=None):
    return quietly(
        lambda: finecal.calibrators.fit_prototypes(with_features(logits, features), mask, gamma, held_out=held_out)
    )


def report_of(*arguments, **more):
    return fit(*arguments, **more).report


# --- the formula ------------------------------------------------------------------------------------------------------


@examples(60)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(12, 150),
    width=st.integers(1, 12),
    classes=st.integers(3, 6),
    masked=st.booleans(),
)
def test_equals_numpy(seed, n, width, classes, masked):
    rng = np.random.default_rng(seed)
    seen = int(rng.integers(1, classes))
    logits, features, _, mask = clusters(seed, n=n, width=width, classes=classes, seen=seen)
    if masked:
        logits[torch.from_numpy(rng.random(logits.shape) < 0.1)] = -math.inf
        logits[0] = -math.inf
    found, expected = fit(logits, features, mask), naive(logits, features, mask, GAMMA)
    assume(not expected.explained > 0.999)  # the likeliest scale is without end
    size = max(1.0, float(np.abs(expected.weight).max()))
    report = found.report
    np.testing.assert_allclose(report.class_counts, expected.counts, rtol=1e-3, atol=1e-3)
    assert report.n == expected.samples == int(logits.isfinite().any(1).sum())
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-3, atol=1e-4 * size)
    np.testing.assert_allclose(found.center, expected.center, rtol=1e-4, atol=1e-5)
    if expected.weight.any():
        assert report.trust == pytest.approx(expected.trust, rel=1e-4)
        assert report.scale == pytest.approx(expected.scale, rel=1e-3)
        assert report.explained == pytest.approx(expected.explained, rel=1e-3)
    else:
        assert report.trust == 0
        assert report.changed == 0


def test_what_is_added_is_what_the_docstring_says():
    logits, features, _, mask = clusters()
    found, expected = fit(logits, features, mask), naive(logits, features, mask, GAMMA)
    wide = logits.double().numpy() + GAMMA * ~mask.numpy()
    wide += (features.double().numpy() - expected.center) @ expected.weight.T
    np.testing.assert_allclose(found(logits, features), wide, rtol=1e-4, atol=1e-3)
    new = torch.randn(5, 6), torch.randn(5, 8)
    again = new[0].double().numpy() + GAMMA * ~mask.numpy() + (new[1].numpy() - expected.center) @ expected.weight.T
    np.testing.assert_allclose(found(*new), again, rtol=1e-4, atol=1e-3)


def test_brings_accuracy():
    logits, features, labels, mask = clusters(1, n=900, width=16, spread=1.5)
    before = finecal.evaluate(logits, labels, mask, GAMMA)
    after = finecal.evaluate(fit(logits, features, mask)(logits, features), labels, mask)
    assert after.acc_all > before.acc_all + 0.05
    assert report_of(logits, features, mask).changed > 0.05


def test_assignments_that_have_nothing_to_do_with_the_features():
    for seed in range(3):
        g = torch.Generator().manual_seed(seed)
        logits, features = 3 * torch.randn(300, 6, generator=g), torch.randn(300, 5, generator=g)
        found = fit(logits, features, torch.arange(6) < 3)
        assert found.report.scale < 0.5
        assert found.report.changed < 0.02
        assert found.report.warnings


def test_certain_assignments_and_clusters_far_apart():
    """Each half tells all of the other: the model is not left alone as if it told nothing."""
    _, features, labels, mask = clusters(spread=0.01)
    logits = 1e4 * torch.nn.functional.one_hot(labels, 6).float()
    found = finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA)
    assert found.report.explained == pytest.approx(1, abs=1e-6)
    assert found.report.scale > 10
    assert found.report.changed == 0


# --- what changes nothing ---------------------------------------------------------------------------------------------


def in_order(monkeypatch):
    """Cut the samples into halves by their order: the features' own hash is of their bits, which a rotation changes."""
    monkeypatch.setattr(prototypes, "_keys", lambda features: torch.arange(len(features)))


def assert_same(found, expected, rotation=None, atol=1e-3):
    weight = expected.weight if rotation is None else expected.weight @ rotation
    torch.testing.assert_close(found.weight, weight, rtol=1e-2, atol=atol)
    assert found.report.scale == pytest.approx(expected.report.scale, rel=1e-3)
    assert found.report.changed == pytest.approx(expected.report.changed, abs=0.01)


@examples(30)
@given(seed=st.integers(0, 2**16))
def test_neither_order_nor_numbers_added_to_rows_matter(seed):
    logits, features, _, mask = clusters(seed, n=90)
    expected = fit(logits, features, mask)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(seed))
    assert_same(fit(logits[order], features[order], mask), expected)
    added = torch.randn(90, 1, generator=torch.Generator().manual_seed(seed)) * 10
    assert_same(fit(logits + added, features, mask), expected)


@examples(30)
@given(seed=st.integers(0, 2**16))
def test_classes_in_another_order(seed):
    logits, features, _, mask = clusters(seed, n=90)
    expected = fit(logits, features, mask)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    found = fit(logits[:, order], features, mask[order])
    torch.testing.assert_close(found.weight, expected.weight[order], rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(found.report.class_counts, np.array(expected.report.class_counts)[order], atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_rotated_and_mirrored_features(monkeypatch, seed):
    in_order(monkeypatch)
    logits, features, _, mask = clusters(seed)
    expected = fit(logits, features, mask)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))).Q
    found = fit(logits, features @ rotation, mask)
    assert_same(found, expected, rotation)
    torch.testing.assert_close(found(logits, features @ rotation), expected(logits, features), rtol=1e-3, atol=1e-2)
    mirrored = features.flip(1) * torch.tensor([1.0, -1.0] * 4)
    assert_same(fit(logits, mirrored, mask), expected, torch.eye(8).flip(1) * torch.tensor([1.0, -1.0] * 4))


@pytest.mark.parametrize("size", [1e-20, 1e-3, 64.0, 1e20])
def test_features_in_another_unit(monkeypatch, size):
    in_order(monkeypatch)
    logits, features, _, mask = clusters()
    expected, found = fit(logits, features, mask), fit(logits, features * size, mask)
    torch.testing.assert_close(found.weight * size, expected.weight, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found(logits, features * size), expected(logits, features), rtol=1e-3, atol=1e-2)


def test_features_moved_elsewhere(monkeypatch):
    in_order(monkeypatch)
    logits, features, _, mask = clusters()
    expected, found = fit(logits, features, mask), fit(logits, features + 100, mask)
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(found.center, expected.center + 100)


def test_units_that_are_never_active_change_nothing_but_the_ridge():
    logits, features, _, mask = clusters()
    dead = torch.cat([features, torch.zeros(240, 2)], 1)
    found, expected = fit(logits, dead, mask), naive(logits, dead, mask, GAMMA)
    assert not found.weight[:, 8:].any()
    np.testing.assert_allclose(found.weight, expected.weight, rtol=1e-3, atol=1e-4)


def test_gamma_added_beforehand_is_no_other_gamma():
    logits, features, _, mask = clusters()
    shifted = logits + 2.5 * ~mask
    assert_same(fit(shifted, features, mask, GAMMA - 2.5), fit(logits, features, mask))


# --- kinds of input ---------------------------------------------------------------------------------------------------


def test_dtypes_and_devices(device, dtype):
    logits, features, _, mask = clusters(dtype=dtype)
    expected = fit(logits.float(), features.float(), mask)
    found = fit(logits.to(device), features.to(device), mask)
    assert {buffer.device.type for buffer in found.buffers()} == {device.type}
    torch.testing.assert_close(found.weight.cpu(), expected.weight, rtol=1e-4, atol=1e-5)
    mixed = fit(logits.to(device), features.float().to(device), mask.to(device))
    torch.testing.assert_close(mixed.weight.cpu(), expected.weight, rtol=1e-4, atol=1e-5)


def test_half_precision_is_close():
    logits, features, _, mask = clusters()
    out = fit(logits, features, mask)(logits, features)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = fit(logits.to(dtype), features.to(dtype), mask)(logits, features)
        assert float((rounded - out).abs().mean()) < 0.1 * float((out - logits).abs().mean())


def test_arrays_lists_and_tensors_give_the_same():
    logits, features, _, mask = clusters()
    expected = fit(logits, features, mask)
    logits.requires_grad_()
    for found in (
        fit(logits.detach().numpy(), features.numpy(), mask.numpy()),
        fit(logits.tolist(), features.tolist(), mask.tolist()),
        fit(logits, features.T.contiguous().T, mask),
        fit(logits.detach().numpy()[::-1], features.numpy()[::-1], mask),
        fit(logits, features, mask, torch.tensor(GAMMA, dtype=torch.float64)),
    ):
        torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-4)
        assert not found.weight.requires_grad


def test_inputs_stay_as_they_are():
    logits, features, labels, mask = clusters()
    given = [logits, features, mask, labels[labels < 3], logits[labels < 3], features[labels < 3]]
    kept = [value.clone() for value in given]
    fit(*given[:3], held_out=with_features(given[4], given[5], given[3]))
    assert all(torch.equal(value, before) for value, before in zip(given, kept, strict=True))


def test_autocast_rounds_nothing():
    logits, features, _, mask = clusters()
    expected = fit(logits, features, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = fit(logits, features, mask)
        out = found(logits, features)
    assert torch.equal(found.weight, expected.weight)
    assert torch.equal(out, expected(logits, features))


def test_keeps_the_estimate_of_gamma():
    logits, features, _, mask = clusters()
    estimate = finecal.GammaEstimate(GAMMA, "by hand", "data", 3)
    found = fit(logits, features, mask, estimate)
    assert found.estimate is estimate
    assert found.method == "fit_prototypes"
    assert float(found.gamma) == GAMMA
    assert torch.equal(found.weight, fit(logits, features, mask).weight)


# --- too little to tell -----------------------------------------------------------------------------------------------


def left_alone(logits, features, mask):
    with pytest.warns(finecal.FinecalWarning, match=f"^fit_prototypes: {ALONE}$") as record:
        found = finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA)
    assert len(record) == 1
    assert found.report.warnings == (ALONE,)
    assert found.report.trust == found.report.changed == 0
    assert not found.weight.any()
    expected = finecal.calibrate_logits(logits, mask, GAMMA)
    assert torch.equal(found(logits, features), expected)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_samples(n):
    logits, features, _, mask = clusters(n=n)
    left_alone(logits, features, mask)


@pytest.mark.parametrize("value", [0.0, 0.1, -1e5])
def test_features_that_are_all_alike(value):
    logits, features, _, mask = clusters()
    left_alone(logits, torch.full_like(features, value), mask)


def test_one_sample_many_times():
    logits, features, _, mask = clusters()
    left_alone(logits[:1].repeat(50, 1), features[:1].repeat(50, 1), mask)


def test_all_absent_classes_masked():
    logits, features, _, mask = clusters()
    left_alone(logits.masked_fill(~mask, -math.inf), features, mask)


def test_logits_that_are_all_alike():
    _, features, _, mask = clusters()
    left_alone(torch.zeros(240, 6), features, mask)


def test_huge_logits():
    """Assignments are certain and of no cluster."""
    _, features, _, mask = clusters()
    logits = 1e30 * torch.randn(240, 6, generator=torch.Generator().manual_seed(0))
    found = fit(logits, features, mask)
    assert bool(found.weight.isfinite().all())
    assert bool(found(logits, features).isfinite().all())


def test_a_masked_class_gets_nothing():
    logits, features, _, mask = clusters()
    logits[:, 4] = -math.inf
    found = fit(logits, features, mask)
    assert not found.weight[4].any()
    assert found.weight.any()
    assert found.report.class_counts[4] == 0
    assert bool((found(logits, features)[:, 4] == -math.inf).all())


def test_a_masked_row_does_not_count():
    logits, features, _, mask = clusters()
    more = torch.cat([logits, torch.full((3, 6), -math.inf)]), torch.cat([features, 100 * torch.ones(3, 8)])
    found, expected = fit(*more, mask), fit(logits, features, mask)
    assert torch.equal(found.weight, expected.weight)
    assert found.report == expected.report


# --- warnings ---------------------------------------------------------------------------------------------------------


def warnings_of(*arguments, **more):
    """Return the report's warnings, which have to be those issued."""
    with pytest.warns(finecal.FinecalWarning) as record:
        report = finecal.calibrators.fit_prototypes(*arguments, **more).report
    assert [str(warning.message) for warning in record] == [f"fit_prototypes: {text}" for text in report.warnings]
    assert {warning.filename for warning in record} == {__file__}
    assert all(f"warning: {text}" in str(report) for text in report.warnings)
    return report.warnings


def test_good_samples_give_no_warning():
    logits, features, _, mask = clusters()
    report = finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA).report
    assert report.warnings == ()
    assert str(report) == (
        f"prototypes of 6 classes from 240 unlabelled samples: weight {report.trust:.2f}, scale {report.scale:.4g}\n"
        f"{100 * report.changed:.1f} % of the samples change their class"
    )


def test_few_samples():
    logits, features, _, mask = clusters(n=14, spread=0.5, lead=8.0)
    (few,) = (text for text in warnings_of(with_features(logits, features), mask, GAMMA) if "thought to have" in text)
    average = np.mean(fit(logits, features, mask).report.class_counts[3:])
    assert average < 2
    assert few == (
        f"the average absent class is thought to have {average:.1f} samples, too few to gain much; pass more "
        "unlabelled samples"
    )


def test_classes_that_do_not_occur():
    _, features, labels, mask = clusters(n=600, spread=0.5)
    logits = 8.0 * torch.nn.functional.one_hot(labels, 6) - 2 * ~mask
    two, one = (labels != 4) & (labels != 5), labels != 4
    (missing,) = warnings_of(with_features(logits[two], features[two]), mask, GAMMA)
    assert missing == (
        "2 of 3 absent classes seem not to occur in the samples (class 4, 5), so there is little to gain for them"
    )
    assert (
        finecal.calibrators.fit_prototypes(with_features(logits[one], features[one]), mask, GAMMA).report.warnings == ()
    )


def test_features_that_hardly_cluster():
    logits, features, _, mask = clusters(n=600)
    (vague,) = warnings_of(with_features(logits, features[:, :1]), mask, GAMMA)
    explained = report_of(logits, features[:, :1], mask).explained
    assert explained < 0.35
    assert vague == (
        f"prototypes of one half of the samples tell {100 * explained:.1f} % of the assignments of the other half: the "
        "features hardly cluster by class, and little can be gained"
    )


# --- held-out samples -------------------------------------------------------------------------------------------------


def test_held_out_samples_are_a_check():
    logits, features, labels, mask = clusters(n=600)
    seen = mask[labels]
    held_out = with_features(logits[seen], features[seen], labels[seen])
    found = finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA, held_out=held_out)
    assert torch.equal(found.weight, fit(logits, features, mask).weight)
    out = found(held_out.logits, held_out.features)[:, :3].argmax(1)
    assert found.report.acc_seen_within == float((out == held_out.labels).double().mean())
    assert found.report.acc_seen_within_before == finecal.evaluate(logits, labels, mask).acc_seen_within
    before, after = 100 * found.report.acc_seen_within_before, 100 * found.report.acc_seen_within
    assert f"Acc_S/S of the held-out samples: {after:.1f} % ({before:.1f} % by gamma alone)" in str(found.report)
    arrays = with_features(*(value[seen].numpy() for value in (logits, features, labels)))
    assert (
        finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA, held_out=arrays).report
        == found.report
    )


def misleading(labels, features, lost):
    """Samples that the model knows, a few of which have the features of another class."""
    own = 0.1 * torch.nn.functional.one_hot(labels, 6)
    order = torch.arange(len(labels))
    other = torch.stack([features[labels != label][0] for label in labels])
    return with_features(own, torch.where((order < lost)[:, None], other, features), labels)


@pytest.mark.parametrize(("lost", "refused"), [(0, False), (2, False), (3, True), (20, True)])
def test_a_loss_beyond_chance_leaves_the_model_alone(lost, refused):
    """McNemar's test: lost - won > 1.64 sqrt(lost + won), which 2 are not and 3 are."""
    logits, features, labels, mask = clusters(n=600, spread=0.2)
    seen = mask[labels]
    held_out = misleading(labels[seen], features[seen], lost)
    plain = finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA)
    hits = plain(held_out.logits, held_out.features)[:, :3].argmax(1) == held_out.labels
    assert int((~hits).sum()) == lost
    if not refused:
        found = finecal.calibrators.fit_prototypes(with_features(logits, features), mask, GAMMA, held_out=held_out)
        assert torch.equal(found.weight, plain.weight)
        return
    n = len(hits)
    (sentence,) = warnings_of(with_features(logits, features), mask, GAMMA, held_out=held_out)
    assert sentence == (
        f"with prototypes {lost} of {n} held-out samples are lost within the seen classes, 0 won, so the model is left "
        "alone: gamma is all that is added"
    )
    found = fit(logits, features, mask, held_out=held_out)
    assert not found.weight.any()
    assert found.report.trust == found.report.changed == 0
    assert found.report.acc_seen_within_before == 1
    assert found.report.acc_seen_within == pytest.approx(1 - lost / n)
    assert torch.equal(found(logits, features), finecal.calibrate_logits(logits, mask, GAMMA))


Z, F, Y, MASK = clusters(n=60)
S = MASK[Y]
HELD_OUT = {
    "pair": ((Z, Y), TypeError, r"held_out is a tuple; pass held_out=Samples\(logits, labels, features=\.\.\.\)"),
    "text": ("abc", TypeError, "held_out is a str; pass held_out=Samples"),
    "no labels": (with_features(Z, F), TypeError, r"held_out has no labels; pass held_out=Samples\(logits, labels, fe"),
    "no features": (finecal.Samples(Z, Y), TypeError, "held_out has no features; pass held_out=Samples"),
    "absent": (
        with_features(Z, F, Y),
        ValueError,
        r"held_out: labels contain absent class 4 .*; fit_prototypes needs seen-class",
    ),
    "width": (
        with_features(Z[S], F[S][:, :2], Y[S]),
        ValueError,
        r"held_out: features have shape .* expected \(\d+, 8\)",
    ),
    "logits": (with_features(Z[S] * math.nan, F[S], Y[S]), ValueError, "held_out: logits contain NaN"),
    "none": (with_features(Z[:0], F[:0], Y[:0]), ValueError, "held_out: logits are empty"),
    "classes": (
        with_features(Z[S][:, :5], F[S], Y[S]),
        ValueError,
        "held_out: seen_mask has 6 entries for logits of 5 classes",
    ),
}


@pytest.mark.parametrize(("held_out", "error", "message"), HELD_OUT.values(), ids=HELD_OUT)
def test_wrong_held_out_samples(held_out, error, message):
    with pytest.raises(error, match=f"^{message}"):
        finecal.calibrators.fit_prototypes(with_features(Z, F), MASK, GAMMA, held_out=held_out)


NO_SAMPLES = {
    "range": ((Z[S], F[S], Y[S] + 6), ValueError, r"labels contain \d+, outside \[0, 6\)"),
    "rows": ((Z[S], F[S][:2], Y[S]), ValueError, r"features have shape \(2, 8\)"),
    "NaN": ((Z[S], F[S] * math.nan, Y[S]), ValueError, "features contain NaN"),
}


@pytest.mark.parametrize(("parts", "error", "message"), NO_SAMPLES.values(), ids=NO_SAMPLES)
def test_what_no_samples_have(parts, error, message):
    with pytest.raises(error, match=f"^{message}"):
        with_features(*parts)


def test_a_single_seen_class_can_be_checked():
    logits, features, labels, mask = clusters(n=300, seen=1)
    one = labels == 0
    found = finecal.calibrators.fit_prototypes(
        with_features(logits, features), mask, GAMMA, held_out=with_features(logits[one], features[one], labels[one])
    )
    assert found.report.acc_seen_within == 1


# --- what is refused --------------------------------------------------------------------------------------------------

ARGUMENTS = {"logits": Z, "features": F, "seen_mask": MASK, "gamma": GAMMA}
REFUSED = {
    "empty": ({"logits": Z[:0], "features": F[:0]}, ValueError, r"logits are empty \(0 samples\); fit_prototypes has"),
    "masked": ({"logits": torch.full_like(Z, -math.inf)}, ValueError, "no logits were given, or none but rows of -inf"),
    "NaN": ({"logits": Z * math.nan}, ValueError, "logits contain NaN"),
    "inf": ({"logits": Z.clone().fill_(math.inf)}, ValueError, r"logits contain \+inf"),
    "probabilities": ({"logits": Z.softmax(1)}, ValueError, "logits look like probabilities"),
    "integers": ({"logits": Z.long()}, TypeError, "logits has dtype int64"),
    "too large": ({"logits": Z.double() * 1e300}, ValueError, "logits are too large for float32"),
    "one class": ({"logits": Z[:, :1]}, ValueError, "logits"),
    "integer features": ({"features": F.long()}, TypeError, "features have dtype int64"),
    "NaN features": ({"features": F * math.nan}, ValueError, "features contain NaN or infinity"),
    "no features": ({"features": F[:, :0]}, ValueError, r"features have shape \(60, 0\)"),
    "one feature": ({"features": F[:, 0]}, ValueError, r"features have shape \(60,\); expected \(60, D\)"),
    "few features": ({"features": F[:7]}, ValueError, r"features have shape \(7, 8\); expected \(60, D\)"),
    "meta": ({"features": F.to("meta")}, ValueError, "features is on the meta device"),
    "too large features": ({"features": F.double() * 1e300}, ValueError, "features are too large for float32"),
    "denormal features": ({"features": F * 1e-42}, ValueError, "features are too small or too large"),
    "indices": ({"seen_mask": [0, 1, 2]}, TypeError, "seen_mask has dtype int64; .* use seen_mask_from_indices"),
    "all seen": ({"seen_mask": [True] * 6}, ValueError, "seen_mask has no absent class"),
    "none seen": ({"seen_mask": [False] * 6}, ValueError, "seen_mask has no seen class"),
    "short": ({"seen_mask": [True, False]}, ValueError, "seen_mask has 2 entries for logits of 6 classes"),
    "bool": ({"gamma": True}, TypeError, "gamma is a bool"),
    "none": ({"gamma": None}, TypeError, "gamma is a NoneType"),
    "nan": ({"gamma": math.nan}, ValueError, "gamma is nan; it must be finite"),
    "wide": ({"gamma": 1e39}, ValueError, r"gamma is 1e\+39, which float32 cannot hold"),
    "two": ({"gamma": torch.zeros(2)}, ValueError, r"gamma is a tensor of shape \(2,\); pass one number"),
}


@pytest.mark.parametrize(("given", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named(given, error, message):
    logits, features, *rest = (ARGUMENTS | given).values()
    with pytest.raises(error, match=f"^{message}"):
        finecal.calibrators.fit_prototypes(with_features(logits, features), *rest)


def test_samples_have_features():
    with pytest.raises(TypeError, match=r"^samples has no features; pass samples=Samples\(logits, features=\.\.\.\)$"):
        finecal.calibrators.fit_prototypes(finecal.Samples(Z, Y), MASK, GAMMA)
    with pytest.raises(TypeError, match=r"^samples is a Tensor; pass samples=Samples\(logits, features=\.\.\.\)$"):
        finecal.calibrators.fit_prototypes(Z, MASK, GAMMA)


def test_labels_are_not_looked_at():
    expected = finecal.calibrators.fit_prototypes(with_features(Z, F), MASK, GAMMA)
    known = with_features(Z, F, Y)
    finecal.search_gamma(known, MASK)
    for samples in (with_features(Z, F, Y.flip(0)), known):
        found = finecal.calibrators.fit_prototypes(samples, MASK, GAMMA)
        assert torch.equal(found.weight, expected.weight)
        assert found.report == expected.report


def test_a_few_samples_that_lie_far_apart_do_not_take_over(monkeypatch):
    """Their likeliest scale is large; similarities count at most as much as the logits do."""
    logits, features, _, mask = clusters(7, spread=0.5)
    rows = torch.randperm(240, generator=torch.Generator().manual_seed(7))[:4]
    found = fit(logits[rows], features[rows], mask)
    assert found.report.scale == pytest.approx(naive(logits[rows], features[rows], mask, GAMMA).scale, rel=1e-3)
    monkeypatch.setattr(prototypes, "spread", lambda values: torch.zeros(()))  # no limit
    assert fit(logits[rows], features[rows], mask).report.scale > 2 * found.report.scale
