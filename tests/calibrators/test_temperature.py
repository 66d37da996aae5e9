"""One temperature; what one and two have in common is tested here too."""

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn

import finecal
from finecal._calibrators.temperature import solve_shortfall
from finecal._core.reductions import make_samples
from problems import held_back
from profiles import examples

INF = math.inf
MASK = torch.tensor([True, False, True, False, False])
DIVISORS = {"Temperature": [1.7] * 5, "GroupTemperature": [1.7, 0.3, 1.7, 0.3, 0.3]}


@pytest.fixture(params=["Temperature", "GroupTemperature"])
def calibrator(request):
    return make(request.param)


def make(name):
    return finecal.Temperature(1.7) if name == "Temperature" else finecal.calibrators.GroupTemperature(MASK, 1.7, 0.3)


def divisors(calibrator):
    return torch.tensor(DIVISORS[type(calibrator).__name__], dtype=torch.float64)


def nll(logits, labels):
    return float(nn.functional.cross_entropy(logits.double(), labels))


# --- the modules ------------------------------------------------------------------------------------------------------


def test_divides_in_float32_or_wider(device, dtype, calibrator):
    logits = 9 * torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    logits[0, 1], logits[1, 0] = -INF, math.nan
    out = calibrator.to(device)(logits)
    assert out.dtype == dtype
    expected = logits.double() / divisors(calibrator).to(device)
    tolerance = max(torch.finfo(dtype).eps, 1e-7)
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=0, equal_nan=True)


def test_one_temperature_keeps_the_decision_and_two_do_not(calibrator):
    logits = torch.tensor([[4.0, 1.0, 3.0, 0.0, 0.0]])
    assert calibrator(logits).argmax() == (0 if isinstance(calibrator, finecal.Temperature) else 1)


def test_copies_and_pickles_keep_method_and_report():
    logits, labels, seen = held_back()
    for fitted in (
        finecal.calibrators.fit_temperature(logits, labels),
        finecal.calibrators.fit_group_temperature(logits, labels, seen)[0],
    ):
        for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
            assert repr(twin) == repr(fitted)
            assert twin.report == fitted.report
            next(twin.buffers()).zero_()
        assert torch.isfinite(fitted(logits)).all()


def test_construction_copies_its_arguments():
    mask, value = MASK.clone(), torch.tensor(2.0, requires_grad=True)
    one, two = finecal.Temperature(value), finecal.calibrators.GroupTemperature(mask, value, 1.0)
    mask.fill_(False)
    value.data.fill_(9)
    assert one.temperature == 2
    assert two(torch.full((5,), 2.0)).tolist() == [1, 2, 1, 2, 2]


def test_repr():
    assert repr(finecal.Temperature(2)) == "Temperature(temperature=2)"
    expected = "GroupTemperature(seen_temperature=1.7, absent_temperature=0.3, seen=2, absent=3)"
    assert repr(make("GroupTemperature")) == expected
    fitted = finecal.calibrators.fit_temperature(*held_back()[:2])
    assert "method='fit_temperature'" in repr(fitted)
    assert "method='fit_temperature'" in repr(fitted.to("meta"))


def test_gradients_flow(calibrator):
    logits = torch.zeros(2, 5, dtype=torch.float64, requires_grad=True)
    calibrator(logits).sum().backward()
    torch.testing.assert_close(logits.grad, (1 / divisors(calibrator)).expand(2, 5), rtol=1e-6, atol=0)
    assert not list(calibrator.parameters())


def test_float32_whatever_the_default_is(calibrator):
    torch.set_default_dtype(torch.float64)
    try:
        twin = make(type(calibrator).__name__)
        fitted = finecal.calibrators.fit_temperature(*held_back()[:2])
    finally:
        torch.set_default_dtype(torch.float32)
    assert {buffer.dtype for buffer in (*twin.buffers(), *fitted.buffers())} <= {torch.float32, torch.bool}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, INF, 1e39, 1e-46])
def test_temperatures_are_positive_and_finite(value):
    with pytest.raises(ValueError, match="temperature is "):
        finecal.Temperature(value)
    with pytest.raises(ValueError, match="absent_temperature is "):
        finecal.calibrators.GroupTemperature(MASK, 1.0, value)


def test_wrong_input(calibrator):
    with pytest.raises(TypeError, match="logits has dtype int64"):
        calibrator(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"calibrator is on cpu, logits on meta"):
        calibrator(torch.zeros(2, 5, device="meta"))
    for wrong in (True, "2", torch.ones(2)):
        with pytest.raises(TypeError, match="temperature is a"):
            finecal.Temperature(wrong)
    with pytest.raises(ValueError, match="seen_mask has 5 entries for logits of 4 classes"):
        make("GroupTemperature")(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="no absent class"):
        finecal.calibrators.GroupTemperature([True, True], 1.0, 1.0)


# --- fit_temperature --------------------------------------------------------------------------------------------------


def best_nll(logits, labels, near):
    """By Brent's method on log T, to tight tolerance."""
    scores = log_softmax(logits.double().numpy(), axis=1)
    own = labels.numpy()[:, None]
    result = minimize_scalar(
        lambda u: -np.take_along_axis(log_softmax(scores * math.exp(-u), axis=1), own, axis=1).mean(),
        bounds=(math.log(near) - 2, math.log(near) + 2),
        method="bounded",
        options={"xatol": 1e-10},
    )
    return float(result.fun)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("seed", range(3))
def test_minimises_the_nll_at_any_scale(seed, scale):
    logits, labels, _ = held_back(seed)
    fitted = finecal.calibrators.fit_temperature(scale * logits, labels)
    temperature = float(fitted.temperature)
    assert fitted.report.nll_after == pytest.approx(nll(scale * logits / temperature, labels), abs=1e-12)
    assert fitted.report.nll_after <= best_nll(scale * logits, labels, temperature) + 1e-10
    assert fitted.report.nll_before == pytest.approx(nll(scale * logits, labels), rel=1e-12)
    assert fitted.report.steps < 10
    assert temperature / scale == pytest.approx(
        float(finecal.calibrators.fit_temperature(logits, labels).temperature), rel=1e-5
    )


def test_golden():
    """Three of four labels have a logit that is larger by 6, one smaller by 6: sigmoid(6 / T) = 3 / 4."""
    logits = [[6.0, 0.0], [6.0, 0.0], [0.0, 6.0], [6.0, 0.0]]
    fitted = finecal.calibrators.fit_temperature(logits, [0, 0, 1, 1])
    assert float(fitted.temperature) == pytest.approx(6 / math.log(3), rel=1e-6)
    assert fitted.report.nll_after == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4, abs=1e-12)
    assert str(fitted.report) == "NLL 1.5025 -> 0.5623 on 4 samples, 4 Newton steps"


def test_invariances():
    logits, labels, _ = held_back()
    g = torch.Generator().manual_seed(1)
    expected = float(finecal.calibrators.fit_temperature(logits, labels).temperature)
    shifted = logits + 100 * torch.randn(len(labels), 1, generator=g, dtype=torch.float64)
    rows, classes = torch.randperm(len(labels), generator=g), torch.randperm(8, generator=g)
    relabelled = classes.argsort()[labels]
    for z, y in ((shifted, labels), (logits[rows], labels[rows]), (logits[:, classes], relabelled)):
        assert float(finecal.calibrators.fit_temperature(z, y).temperature) == pytest.approx(expected, rel=1e-6)


def test_samples_in_place_of_logits_and_labels():
    logits, labels, _ = held_back()
    expected = finecal.calibrators.fit_temperature(logits, labels, bounds=(0.5, 64.0))
    found = finecal.calibrators.fit_temperature(finecal.Samples(logits, labels), bounds=(0.5, 64.0))
    assert torch.equal(found.temperature, expected.temperature)
    assert found.report == expected.report


def test_types_devices_and_dtypes(device, dtype):
    logits, labels, _ = held_back(dtype=dtype)
    fitted = finecal.calibrators.fit_temperature(logits.to(device), labels.to(device))
    assert fitted.temperature.device.type == device.type
    wide = finecal.calibrators.fit_temperature(logits.double().numpy(), labels.tolist())
    assert float(fitted.temperature) == pytest.approx(float(wide.temperature), rel=1e-6)
    before = logits.clone()
    finecal.calibrators.fit_temperature(logits, labels)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("start", [1e-5, 1e-2, 1.0, 1e2, 1e5])
def test_any_start(start):
    logits, labels, _ = held_back()
    samples = make_samples(logits, labels, torch.ones(1, 8), logits.amax(1, keepdim=True), "")
    temperature, value, steps = solve_shortfall(samples, start, 1e-5, 1e5)
    assert temperature == pytest.approx(
        float(finecal.calibrators.fit_temperature(logits, labels).temperature), rel=1e-5
    )
    assert value == pytest.approx(nll(logits / temperature, labels), abs=1e-12)
    assert steps < 20


@pytest.mark.parametrize("case", ["ordinary", "all but one sample separated"])
def test_many_rows_start_from_a_part(case):
    logits, labels, _ = held_back(n=10_000, c=4)
    if case != "ordinary":
        labels = logits.argmax(1)
        labels[-1] = logits[-1].argmin()
    fitted = finecal.calibrators.fit_temperature(logits, labels)
    temperature = float(fitted.temperature)
    assert fitted.report.nll_after <= best_nll(logits, labels, temperature) + 1e-10
    assert fitted.report.steps <= (3 if case == "ordinary" else 9)


@examples(60)
@given(st.integers(0, 2**32 - 1))
def test_never_worse_than_one_and_never_far_from_the_best(seed):
    rng = np.random.default_rng(seed)
    n, c = int(rng.integers(1, 9)), int(rng.integers(2, 5))
    logits = rng.normal(size=(n, c)) * 10 ** rng.uniform(-1, 1)
    logits[rng.random((n, c)) < 0.1] = -INF
    logits[:, 0] = rng.integers(-2, 3, n)
    labels = rng.integers(0, c, n)
    own = logits[np.arange(n), labels]
    if not np.isfinite(own).any():
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", finecal.FinecalWarning)
        report = finecal.calibrators.fit_temperature(logits, labels).report
    kept = np.isfinite(own)
    assert report.n == kept.sum()
    logits, labels = torch.tensor(np.maximum(logits[kept], -1e30)), torch.tensor(labels[kept])
    grid = min(nll(logits / t, labels) for t in (1.0, *np.geomspace(1.1e-5, 0.9e5, 200)))
    assert report.nll_after <= grid + 1e-9


def test_separated_samples_stop_at_the_lower_bound():
    logits, _, _ = held_back()
    with pytest.warns(finecal.FinecalWarning, match="every label has the largest logit"):
        fitted = finecal.calibrators.fit_temperature(logits, logits.argmax(1), bounds=(0.5, 4))
    assert fitted.temperature == 0.5
    assert fitted.report.at_bound == ("temperature",)
    assert str(fitted.report).endswith("; at its bound: temperature")


def test_labels_worse_than_chance_stop_at_the_upper_bound():
    logits, _, _ = held_back()
    with pytest.warns(finecal.FinecalWarning, match="no better than chance"):
        fitted = finecal.calibrators.fit_temperature(logits, logits.argmin(1))
    assert fitted.temperature == 1e5
    assert fitted.report.nll_after == pytest.approx(math.log(8), rel=1e-3)


@pytest.mark.parametrize("bounds", [(1e-5, 0.5), (30.0, 40.0)])
def test_bounds_hold(bounds):
    logits, labels, _ = held_back()
    with pytest.warns(finecal.FinecalWarning, match="still falls at the bound of T"):
        fitted = finecal.calibrators.fit_temperature(logits, labels, bounds=bounds)
    assert float(fitted.temperature) in bounds


def test_equal_logits_give_one():
    with pytest.warns(finecal.FinecalWarning, match="all equal"):
        fitted = finecal.calibrators.fit_temperature(torch.full((4, 3), 7.0), [0, 1, 2, 0])
    assert fitted.temperature == 1
    assert fitted.report.nll_after == pytest.approx(math.log(3))


def test_huge_logits_are_warned_of_as_what_they_are():
    logits, labels, _ = held_back()
    with pytest.warns(finecal.FinecalWarning, match="still falls at the bound of T"):
        assert finecal.calibrators.fit_temperature(1e30 * logits, labels).temperature == 1e5
    with pytest.warns(finecal.FinecalWarning, match="every label has the largest logit"):
        assert finecal.calibrators.fit_temperature(1e30 * logits, logits.argmax(1)).temperature == 1e-5
    wide = finecal.calibrators.fit_temperature(1e30 * logits, labels, bounds=(1e-5, 1e35))
    assert float(wide.temperature) / 1e30 == pytest.approx(
        float(finecal.calibrators.fit_temperature(logits, labels).temperature)
    )


def test_any_default_device():
    logits, labels, seen = held_back()
    expected = [
        finecal.calibrators.fit_temperature(logits, labels),
        finecal.calibrators.fit_group_temperature(logits, labels, seen),
    ]
    with torch.device("meta"):
        fitted = [
            finecal.calibrators.fit_temperature(logits, labels),
            finecal.calibrators.fit_group_temperature(logits, labels, seen),
        ]
        assert finecal.Temperature(1.7).temperature.is_meta
        assert not make("GroupTemperature").seen_temperature.is_meta
    for one, other in zip(fitted, expected, strict=True):
        assert repr(one) == repr(other)


@pytest.mark.parametrize("value", [-INF, -1e9, float(torch.finfo(torch.float32).min)])
def test_masked_classes_are_as_good_as_left_out(value):
    logits, labels, _ = held_back()
    labels = labels % 5
    expected = finecal.calibrators.fit_temperature(logits[:, :5], labels)
    masked = logits.float().index_fill(1, torch.arange(5, 8), value)
    fitted = finecal.calibrators.fit_temperature(masked, labels)
    assert float(fitted.temperature) == pytest.approx(float(expected.temperature), rel=1e-6)
    assert fitted.report.nll_after == pytest.approx(expected.report.nll_after, abs=1e-7)


def test_masked_labels_are_left_out():
    logits, labels, _ = held_back()
    masked = logits.clone()
    masked[torch.arange(9), labels[:9]] = -INF
    expected = finecal.calibrators.fit_temperature(logits[9:], labels[9:])
    with pytest.warns(finecal.FinecalWarning, match=r"the label is masked .* in 9 of 300 samples"):
        fitted = finecal.calibrators.fit_temperature(masked, labels)
    assert (fitted.temperature, fitted.report) == (expected.temperature, expected.report)
    with pytest.raises(ValueError, match="masked .* in all 9 samples"):
        finecal.calibrators.fit_temperature(masked[:9], labels[:9])


def test_wrong_input_of_the_fits():
    logits, labels, seen = held_back()
    for fit, rest in ((finecal.calibrators.fit_temperature, ()), (finecal.calibrators.fit_group_temperature, (seen,))):
        name = fit.__name__
        with pytest.raises(ValueError, match=f"0 samples.; {name} has nothing"):
            fit(logits[:0], labels[:0], *rest)
        with pytest.raises(ValueError, match="logits contain NaN"):
            fit(logits.index_fill(1, torch.tensor([1]), math.nan), labels, *rest)
        with pytest.raises(ValueError, match="look like probabilities"):
            fit(logits.softmax(1), labels, *rest)
        with pytest.raises(ValueError, match="labels contain 9"):
            fit(logits, labels + 2, *rest)
        for bounds, error in (((0, 1), ValueError), ((2, 1), ValueError), (3, TypeError), ((1, "2"), TypeError)):
            with pytest.raises(error, match="bound"):
                fit(logits, labels, *rest, bounds=bounds)
