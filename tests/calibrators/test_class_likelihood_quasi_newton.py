import numpy as np
import pytest
import torch

from finecal._calibrators.class_likelihood import Curvature, minimise

C = 12


def balanced_quadratics(rng, count):
    """Positive definite Hessians and minima, both such that gradients add up to 0 where arguments do."""
    hessians, minima = [], []
    for _ in range(count):
        links = rng.random((C, C)) ** 8
        links = links + links.T
        hessians.append(np.diag(links.sum(1)) - links + 0.05 * np.eye(C))
        minima.append(rng.normal(size=C))
    minima = np.array(minima)
    return torch.tensor(np.array(hessians)), torch.tensor(minima - minima.mean(1, keepdims=True))


def below(tolerance):
    return lambda gradient, _: gradient.abs().amax(-1) <= tolerance


def test_finds_the_minima_of_quadratic_functions(rng):
    hessians, minima = balanced_quadratics(rng, 5)
    calls = []

    def evaluate(x):
        calls.append(x)
        return torch.einsum("kij,kj->ki", hessians, x - minima), hessians.diagonal(dim1=1, dim2=2)

    found = minimise(evaluate, torch.zeros(5, C, dtype=torch.float64), below(1e-9), Curvature(20))
    torch.testing.assert_close(found, minima, rtol=0, atol=1e-7)
    assert len(calls) < 60
    again = minimise(evaluate, minima, below(1e-9), Curvature(20))
    assert torch.equal(again, minima)


def test_what_a_call_has_learnt_serves_the_next(rng):
    hessians, minima = balanced_quadratics(rng, 1)
    calls = []

    def evaluate(x):
        calls.append(x)
        return torch.einsum("kij,kj->ki", hessians, x - minima), hessians.diagonal(dim1=1, dim2=2)

    curvature, start = Curvature(40), torch.zeros(1, C, dtype=torch.float64)
    minimise(evaluate, start, below(1e-9), curvature)
    anew, calls[:] = len(calls), []
    found = minimise(evaluate, start, below(1e-9), curvature)
    assert len(calls) <= anew / 2
    torch.testing.assert_close(found, minima, rtol=0, atol=1e-7)


def test_steps_that_go_too_far_are_shortened():
    """The diagonals are a thousandth of what they should be, for the first function alone."""
    truth = torch.tensor([[1000.0], [1.0]], dtype=torch.float64)
    minima = torch.tensor([[1.0, -1.0], [2.0, -2.0]], dtype=torch.float64)
    points = []

    def evaluate(x):
        points.append(x)
        return truth * (x - minima), torch.ones(2, 2, dtype=torch.float64)

    found = minimise(evaluate, torch.zeros(2, 2, dtype=torch.float64), below(1e-6), Curvature(5))
    torch.testing.assert_close(found, minima, rtol=0, atol=1e-8)
    assert torch.equal(points[1][1], minima[1])
    assert all(torch.equal(point[1], minima[1]) for point in points[1:])


@pytest.mark.parametrize("start", [-60.0, 60.0])
def test_exponentials_from_afar(start):
    """The sum of e^x - 2 x and e^-x + 2 x, where both add up to 0: far away the one is flat and the other steep."""

    def evaluate(x):
        grows = torch.exp(x * torch.tensor([1.0, -1.0], dtype=torch.float64))
        return (grows - 2) * torch.tensor([1.0, -1.0], dtype=torch.float64), grows

    found = minimise(evaluate, torch.tensor([[start, -start]], dtype=torch.float64), below(1e-9), Curvature(5))
    np.testing.assert_allclose(found, [[np.log(2), -np.log(2)]], atol=1e-9)
    assert float(found.sum()) == pytest.approx(0, abs=1e-12)


def test_stops_after_so_many_steps():
    calls = []

    def evaluate(x):
        calls.append(x)
        return x - 1 - (x - 1).mean(), torch.full_like(x, 100.0)

    minimise(evaluate, torch.tensor([[5.0, -5.0]]), below(0.0), Curvature(0), most=7)
    assert len(calls) == 8
