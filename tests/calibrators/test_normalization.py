import math

import numpy as np
import pytest
import torch

import finecal
from finecal.streaming import ClassSums

MASK = torch.tensor([True, False, True, False, False])
LOC = torch.tensor([1.0, -2.0, 0.3, 4.0, 0.0])
SCALE = torch.tensor([2.0, 0.5, 1.7, 1.0, 3.0])


@pytest.fixture
def calibrator():
    return finecal.NormalizedLogits(LOC, SCALE)


def fitted(logits, labels, mask):
    """Return loc and scale of each class by loops in float64, None where it has none."""
    values = [[float(row[c]) for row, y in zip(logits, labels, strict=True) if y != c] for c in range(len(mask))]
    values = [[z for z in column if z != -math.inf] for column in values]
    locs = [float(np.mean(column)) if column else None for column in values]
    scales = [float(np.std(column)) if len(set(column)) > 1 else None for column in values]
    for kept in (locs, scales):
        for group in (mask, ~mask):
            members = [c for c in range(len(mask)) if group[c]]
            usable = sorted(kept[c] for c in members if scales[c] is not None)
            for c in members:
                if kept[c] is None:
                    kept[c] = usable[(len(usable) - 1) // 2]
    return locs, scales


# --- the modules ------------------------------------------------------------------------------------------------------


def test_divides_each_class_by_its_scale(device, dtype):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    out = finecal.NormalizedLogits(LOC, SCALE).to(device)(logits)
    assert out.dtype == dtype
    exact = (logits.double().cpu() - LOC.double()) / SCALE.double()
    assert torch.allclose(out.cpu().double(), exact, rtol=max(torch.finfo(dtype).eps, 1e-15), atol=1e-6)


def test_rounds_once():
    logits = torch.tensor([[100.25, 3.0]], dtype=torch.float16)
    out = finecal.NormalizedLogits([100.3, 0.0], [0.1, 1.0])(logits)
    assert float(out[0, 0]) == pytest.approx(-0.5, rel=1e-3)


def test_masked_classes_stay_masked_and_nan_passes(calibrator):
    logits = torch.tensor([[1.0, 2.0, -math.inf, 0.5, -math.inf], [math.nan, 1.0, 2.0, 3.0, 4.0]])
    out = calibrator(logits)
    assert torch.equal(out == -math.inf, logits == -math.inf)
    assert out[1, 0].isnan()
    assert out[1, ~MASK].isfinite().all()
    assert not out[0].isnan().any()


def test_gradients_flow(calibrator):
    logits = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(calibrator, logits)
    flat = torch.tensor([[1.0, 2.0, 1.0, -math.inf, 2.0]], requires_grad=True)
    calibrator(flat)[flat != -math.inf].sum().backward()
    assert flat.grad.isfinite().all()
    assert not list(calibrator.parameters())


def test_repr():
    normalized = finecal.NormalizedLogits(LOC.numpy(), SCALE.tolist())
    assert repr(normalized) == "NormalizedLogits(loc=-2..4, scale=0.5..3, classes=5)"
    normalized.method = "by hand"
    assert repr(normalized) == "NormalizedLogits(loc=-2..4, scale=0.5..3, method='by hand', classes=5)"


@pytest.mark.parametrize(
    ("loc", "scale", "error", "message"),
    [
        ([0, 0], [1.0, 0.0], ValueError, "scale is 0 for class 1 .1 of 2 classes.; it must be finite and positive"),
        ([0, 0], [1.0, -2.0], ValueError, "scale is -2 for class 1"),
        ([0, 0], [1.0, 1e-60], ValueError, "scale is 1e-60 for class 1 .* in float32"),
        ([0, 0], [1.0, math.nan], ValueError, "scale is nan for class 1"),
        ([0, math.inf], [1.0, 1.0], ValueError, "loc is inf for class 1 .* must be finite in float32"),
        ([0, 1e39], [1.0, 1.0], ValueError, r"loc is 1e\+39 for class 1"),
        ([0, 0, 0], [1.0, 1.0], ValueError, "loc has 3 entries and scale 2"),
        ([[0, 0]], [1.0, 1.0], ValueError, r"loc has shape \(1, 2\); expected \(C,\)"),
        ([0], [1.0], ValueError, r"loc has shape \(1,\)"),
        ([0, 0], [True, True], TypeError, "scale has dtype bool"),
        (0.0, [1.0, 1.0], TypeError, "loc is one float"),
    ],
)
def test_wrong_loc_or_scale(loc, scale, error, message):
    with pytest.raises(error, match=message):
        finecal.NormalizedLogits(loc, scale)


# --- fitting ----------------------------------------------------------------------------------------------------------


def problem(rng, masked=0.2):
    """Draw logits of 60 seen samples over 8 classes, the labels' own among the large ones, some masked."""
    mask = np.arange(8) % 2 == 0
    labels = rng.choice(np.flatnonzero(mask), 60)
    logits = rng.normal(np.arange(8), 1 + np.arange(8), (60, 8))
    logits[np.arange(60), labels] += 10
    logits[rng.random(logits.shape) < masked] = -math.inf
    return logits, labels, mask


def test_fit_equals_loops(device, dtype, rng):
    logits, labels, mask = problem(rng)
    x = torch.tensor(logits).to(device, dtype)
    calibrator = finecal.calibrators.fit_normalized_logits(x, torch.tensor(labels, device=device), mask)
    locs, scales = fitted(x.double().cpu().numpy(), labels, mask)
    assert calibrator.method == "fit_normalized_logits"
    assert calibrator.loc.device == x.device
    np.testing.assert_allclose(calibrator.loc.cpu().numpy(), locs, rtol=1e-6)
    np.testing.assert_allclose(calibrator.scale.cpu().numpy(), scales, rtol=1e-6)


def test_samples_in_place_of_logits_and_labels(rng):
    logits, labels, mask = problem(rng)
    expected, samples = finecal.calibrators.fit_normalized_logits(logits, labels, mask), finecal.Samples(logits, labels)
    for _ in range(2):  # the second time what was found the first time is used
        found = finecal.calibrators.fit_normalized_logits(samples, mask)
        assert torch.equal(found.loc, expected.loc)
        assert torch.equal(found.scale, expected.scale)


def test_batches_give_the_same(rng):
    logits, labels, mask = problem(rng)
    state = ClassSums(mask).update(logits[:13], labels[:13])
    loc, scale, _ = state.merge(ClassSums(mask).update(logits[13:], labels[13:])).compute()
    whole = finecal.calibrators.fit_normalized_logits(logits, labels, mask)
    assert torch.allclose(finecal.NormalizedLogits(loc, scale).loc, whole.loc, rtol=1e-6)
    assert torch.allclose(finecal.NormalizedLogits(loc, scale).scale, whole.scale, rtol=1e-6)


def test_normalized_samples_have_mean_0_and_deviation_1(rng):
    logits, labels, mask = problem(rng, masked=0)
    out = finecal.calibrators.fit_normalized_logits(logits, labels, mask)(torch.tensor(logits)).numpy()
    for c in range(8):
        others = out[labels != c, c]
        assert (others.mean(), others.std()) == pytest.approx((0, 1), abs=1e-6)


def test_rescaled_classes_change_nothing(rng):
    logits, labels, mask = problem(rng)
    slope, offset = np.exp(rng.normal(size=8)), rng.normal(0, 5, 8)
    plain = finecal.calibrators.fit_normalized_logits(logits, labels, mask)(torch.tensor(logits))
    other = slope * logits + offset
    again = finecal.calibrators.fit_normalized_logits(other, labels, mask)(torch.tensor(other))
    assert torch.allclose(plain, again, rtol=1e-5, atol=1e-5)


def test_order_of_classes_and_samples_does_not_matter(rng):
    logits, labels, mask = problem(rng)
    plain = finecal.calibrators.fit_normalized_logits(logits, labels, mask)
    classes, rows = rng.permutation(8), rng.permutation(60)
    position = np.argsort(classes)
    moved = finecal.calibrators.fit_normalized_logits(logits[rows][:, classes], position[labels[rows]], mask[classes])
    assert torch.allclose(moved.loc, plain.loc[classes], rtol=1e-6)
    assert torch.allclose(moved.scale, plain.scale[classes], rtol=1e-6)


def test_classes_without_a_scale_borrow_their_groups(device, dtype, rng):
    logits, labels, mask = problem(rng)
    logits[:, 1] = 0.1
    logits[:, 3] = -math.inf
    logits[1:, 2] = -math.inf
    logits[0, 2], labels[0] = 1.5, 4
    x = torch.tensor(logits).to(device, dtype)
    with pytest.warns(finecal.FinecalWarning, match=r"3 of 8 classes .* class 1 \(60\), 2 \(1\), 3 \(0\) \(usable"):
        calibrator = finecal.calibrators.fit_normalized_logits(x, torch.tensor(labels, device=device), mask)
    locs, scales = fitted(x.double().cpu().numpy(), labels, mask)
    np.testing.assert_allclose(calibrator.loc.cpu().numpy(), locs, rtol=1e-6)
    np.testing.assert_allclose(calibrator.scale.cpu().numpy(), scales, rtol=1e-6)
    assert float(calibrator.loc[1]) == pytest.approx(float(x[0, 1]))
    assert float(calibrator.loc[2]) == 1.5


def test_rounding_is_no_spread(rng):
    logits, labels, mask = problem(rng, masked=0)
    logits = logits.astype(np.float32)
    logits[:, 1] = np.float32(1000) + np.float32(6e-5) * (np.arange(60) % 2)
    with pytest.warns(finecal.FinecalWarning, match=r"1 of 8 classes .* class 1 \(60\)"):
        calibrator = finecal.calibrators.fit_normalized_logits(logits, labels, mask)
    assert calibrator.scale.min() > 0.5


@pytest.mark.parametrize(
    ("logits", "labels", "group"),
    [
        ([[3.0, 1.0, 0.0, 2.0]], [0], "2 seen"),
        ([[3.0, 1.0, 0.0, 2.0], [1.0, 4.0, 1.0, 3.0]], [0, 1], "2 seen"),
        (
            [[3.0, 1.0, 5.0, 2.0], [1.0, 4.0, 5.0, 2.0], [3.0, 2.0, 5.0, 2.0], [0.0, 2.0, 5.0, 2.0]],
            [0, 1, 0, 1],
            "2 absent",
        ),
    ],
)
def test_a_group_without_any_scale_is_an_error(logits, labels, group):
    with pytest.raises(ValueError, match=f"in all {group} classes.*no scale to divide by"):
        finecal.calibrators.fit_normalized_logits(np.array(logits), labels, [True, True, False, False])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"labels": [0, 2]}, ValueError, "labels contain absent class 2 .*fit_normalized_logits needs seen-class"),
        ({"logits": np.zeros((0, 3)), "labels": []}, ValueError, "logits are empty .*fit_normalized_logits"),
        ({"seen_mask": [True, False, False], "labels": [0, 0]}, ValueError, "one seen class; fit_normalized_logits"),
        ({"logits": np.full((2, 3), math.nan)}, ValueError, "logits contain NaN"),
        ({"logits": np.zeros((2, 3), dtype=int)}, TypeError, "logits has dtype int64"),
        ({"logits": np.full((2, 3), 1 / 3)}, ValueError, "logits look like probabilities"),
    ],
)
def test_wrong_samples(change, error, message):
    given = {"logits": np.array([[3.0, 1.0, 0.0], [1.0, 4.0, 1.0]]), "labels": [0, 1], "seen_mask": [True, True, False]}
    with pytest.raises(error, match=message):
        finecal.calibrators.fit_normalized_logits(**(given | change))
