"""A temperature for each group and gamma, fitted together."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

import finecal
from finecal._calibrators.group_temperature import _solve_jointly
from finecal._core.reductions import make_samples
from problems import held_back

INF = math.inf


def nll(logits, labels):
    return float(nn.functional.cross_entropy(logits.double(), labels))


def quiet(fit, *args, **kwargs):
    with pytest.warns(finecal.FinecalWarning):
        return fit(*args, **kwargs)


def values_of(calibrator):
    group, bias = calibrator
    return [float(v) for v in (group.seen_temperature, group.absent_temperature, bias.gamma)]


def joint_nll(logits, labels, seen, point):
    inverse_seen, inverse_absent, gamma = torch.as_tensor(point, dtype=torch.float64)
    return nn.functional.cross_entropy(
        torch.where(seen, logits * inverse_seen, logits * inverse_absent + gamma), labels
    )


def best_joint_nll(logits, labels, seen):
    def value_and_gradient(point):
        p = torch.tensor(point, requires_grad=True)
        inverse_seen, inverse_absent, gamma = p
        loss = nn.functional.cross_entropy(
            torch.where(seen, logits * inverse_seen, logits * inverse_absent + gamma), labels
        )
        loss.backward()
        return float(loss.detach()), p.grad.numpy()

    return float(minimize(value_and_gradient, np.array([0.5, 0.5, 0.0]), jac=True, options={"gtol": 1e-10}).fun)


def test_samples_in_place_of_logits_and_labels():
    logits, labels, seen = held_back()
    expected = finecal.calibrators.fit_group_temperature(logits, labels, seen)
    found = finecal.calibrators.fit_group_temperature(finecal.Samples(logits, labels), seen)
    assert values_of(found) == values_of(expected)
    assert found[0].report == expected[0].report


@pytest.mark.parametrize("seed", range(3))
def test_minimises_the_joint_nll(seed):
    logits, labels, seen = held_back(seed)
    calibrator = finecal.calibrators.fit_group_temperature(logits, labels, seen)
    report = calibrator[0].report
    assert report.nll_after <= best_joint_nll(logits, labels, seen) + 1e-9
    assert report.nll_after == pytest.approx(nll(calibrator(logits), labels), abs=1e-12)
    assert report.nll_after < finecal.calibrators.fit_temperature(logits, labels).report.nll_after
    assert report.nll_before == pytest.approx(nll(logits, labels), abs=1e-12)
    assert report.steps < 10
    assert calibrator[1].method == "fit_group_temperature"


def test_joint_golden():
    """Equal logits say nothing: gamma is the log-odds of the groups per class, and the temperatures stay."""
    seen = [True, True, True, False, False]
    calibrator = finecal.calibrators.fit_group_temperature(torch.zeros(8, 5), [0, 1, 2, 3, 4, 4, 4, 4], seen)
    assert values_of(calibrator) == pytest.approx([1, 1, math.log((5 / 2) / (3 / 3))], abs=1e-6)


def test_joint_invariances():
    logits, labels, seen = held_back()
    t_seen, t_absent, gamma = values_of(finecal.calibrators.fit_group_temperature(logits, labels, seen))
    g = torch.Generator().manual_seed(1)
    rows, classes = torch.randperm(len(labels), generator=g), torch.randperm(8, generator=g)
    permuted = logits[rows][:, classes], classes.argsort()[labels[rows]], seen[classes]
    # A constant that all rows share goes into gamma; swapping the groups swaps the temperatures and negates gamma.
    for case, expected in (
        (permuted, [t_seen, t_absent, gamma]),
        ((1e3 * logits, labels, seen), [1e3 * t_seen, 1e3 * t_absent, gamma]),
        ((1e-3 * logits, labels, seen), [1e-3 * t_seen, 1e-3 * t_absent, gamma]),
        ((logits + 10, labels, seen), [t_seen, t_absent, gamma + 10 / t_seen - 10 / t_absent]),
        ((logits, labels, ~seen), [t_absent, t_seen, -gamma]),
    ):
        assert values_of(finecal.calibrators.fit_group_temperature(*case)) == pytest.approx(expected, rel=1e-4)


def test_joint_types_devices_and_dtypes(device, dtype):
    logits, labels, seen = held_back(dtype=dtype)
    calibrator = finecal.calibrators.fit_group_temperature(logits.to(device), labels.to(device), seen)
    assert {buffer.device.type for buffer in calibrator.buffers()} == {device.type}
    wide = finecal.calibrators.fit_group_temperature(logits.double().numpy(), labels.tolist(), seen.tolist())
    assert values_of(calibrator) == pytest.approx(values_of(wide), rel=1e-4)


@pytest.mark.parametrize("start", [(1e-5, 1e5, 0.0), (1e5, 1e-5, 30.0), (1.0, 1.0, -200.0), (1e5, 1e5, 0.0)])
def test_joint_any_start(start):
    logits, labels, seen = held_back()
    groups = torch.stack([seen, ~seen])
    top = torch.stack([logits[:, seen].amax(1), logits[:, ~seen].amax(1)], dim=1)
    fit = _solve_jointly(make_samples(logits, labels, groups, top, ""), start, 1e-5, 1e5)
    assert fit.nll == pytest.approx(
        finecal.calibrators.fit_group_temperature(logits, labels, seen)[0].report.nll_after, abs=1e-9
    )


def test_joint_many_rows_start_from_a_part():
    logits, labels, seen = held_back(n=10_000, c=6)
    for order in (slice(None), labels.argsort()):
        report = finecal.calibrators.fit_group_temperature(logits[order], labels[order], seen)[0].report
        assert report.nll_after <= best_joint_nll(logits, labels, seen) + 1e-9
        assert report.steps <= 3


def test_a_seen_class_and_an_absent_one():
    logits, labels, _ = held_back(n=200, c=2, bonus=2.0)
    seen = torch.tensor([True, False])
    report = finecal.calibrators.fit_group_temperature(logits, labels, seen)[0].report
    assert report.nll_after <= best_joint_nll(logits, labels, seen) + 1e-9


def test_rows_with_a_masked_group():
    logits, labels, seen = held_back()
    logits[:40, seen] = -INF
    labels[:40] = 5 + labels[:40] % 3
    calibrator = finecal.calibrators.fit_group_temperature(logits, labels, seen)
    finite = logits.clamp(min=-1e9)
    t_seen, t_absent, gamma = values_of(calibrator)
    assert calibrator[0].report.nll_after == pytest.approx(
        float(joint_nll(finite, labels, seen, [1 / t_seen, 1 / t_absent, gamma])), abs=1e-9
    )
    assert calibrator[0].report.nll_after <= best_joint_nll(finite, labels, seen) + 1e-9


def test_a_temperature_at_its_bound():
    logits, labels, seen = held_back()
    logits[:, ~seen] *= -1
    with pytest.warns(finecal.FinecalWarning, match="still falls at the bound of absent_temperature"):
        calibrator = finecal.calibrators.fit_group_temperature(logits, labels, seen)
    assert calibrator[0].report.at_bound == ("absent_temperature",)
    assert calibrator[0].absent_temperature == 1e5
    inside = [(t, u, g) for t in (1.0, 1.5, 2.0) for u in (1e2, 1e3, 1e5) for g in (-1.0, 0.0, 1.0)]
    floor = min(float(joint_nll(logits, labels, seen, [1 / t, 1 / u, g])) for t, u, g in inside)
    assert calibrator[0].report.nll_after <= floor


def test_separated_groups_are_warned_of():
    logits, _, seen = held_back()
    labels = logits.argmax(1)
    calibrator = quiet(finecal.calibrators.fit_group_temperature, logits, labels, seen)
    assert calibrator[0].report.at_bound == ("seen_temperature", "absent_temperature")
    assert calibrator[0].report.nll_after == 0


def test_what_samples_do_not_determine_is_warned_of():
    logits, labels, seen = held_back()
    logits[~seen[labels]] = logits[~seen[labels]].masked_fill(seen, -INF)
    with pytest.warns(finecal.FinecalWarning, match="do not determine gamma"):
        calibrator = finecal.calibrators.fit_group_temperature(logits, labels, seen)
    assert values_of(calibrator)[2] < -10


def test_logits_far_from_zero_are_warned_of():
    logits, labels, seen = held_back()
    with pytest.warns(finecal.FinecalWarning, match="it stopped where the NLL could still fall by about") as caught:
        report = finecal.calibrators.fit_group_temperature(logits + 1e5, labels, seen)[0].report
    assert len(caught) == 1
    assert 1e-9 < report.nll_after - best_joint_nll(logits, labels, seen) < 1e-6


def test_labels_of_one_group_are_an_error():
    logits, labels, seen = held_back()
    for chosen, group in ((seen[labels], "seen"), (~seen[labels], "absent")):
        with pytest.raises(ValueError, match=f"{group} classes only .*fit_temperature"):
            finecal.calibrators.fit_group_temperature(logits[chosen], labels[chosen], seen)
