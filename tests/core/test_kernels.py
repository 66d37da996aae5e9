import multiprocessing
import os

import pytest
import torch

import finecal
from finecal._core import kernels as torch_kernels
from finecal._core import kernels as workers
from finecal._core import reductions as kernels
from finecal.streaming import ClassSums


@pytest.fixture(params=[2, 3])
def threads(request, monkeypatch):
    """Let torch use several threads, for logits of any size."""
    before = torch.get_num_threads()
    monkeypatch.setattr(workers, "_LEAST_ELEMENTS", 1)
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def problem(n=101):
    generator = torch.Generator().manual_seed(0)
    logits = (2 * torch.randn(n, 9, generator=generator)).round()
    logits[::7] = -torch.inf
    return logits, torch.randint(9, (n,), generator=generator), torch.arange(9) % 2 == 0


def results(logits, labels, mask):
    scalars, maxima = kernels.label_scalars(logits, labels, mask), kernels.group_maxima(logits, mask)
    winners, sums = torch_kernels.winners(logits, mask), torch_kernels.group_log_sum_exps(logits, mask)
    return [*scalars, *maxima, *winners, *sums, kernels.winning_classes(logits, mask, 0.5)]


def assert_same(found, expected):
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("n", [0, 1, 2, 101])
def test_as_one_thread_gives(threads, n, compiled):
    given = problem(n)
    with finecal.logits.compile_kernels(compiled):
        found = results(*given)
    torch.set_num_threads(1)
    assert_same(found, results(*given))


@pytest.mark.filterwarnings("ignore::finecal.FinecalWarning")
def test_estimates_do_not_depend_on_the_number_of_threads(threads):
    rng = torch.Generator().manual_seed(1)
    labels, mask = torch.randint(4, (90,), generator=rng), torch.arange(9) < 4
    logits = torch.randn(90, 9, generator=rng) + 3 * mask + 2 * torch.nn.functional.one_hot(labels, 9)

    def estimates():
        methods = (
            finecal.estimators.average_logit_gap,
            finecal.estimators.residual_gap,
            finecal.estimators.mixed_pair_gap,
        )
        gammas = [method(logits, labels, mask).gamma for method in methods]
        temperature = float(finecal.calibrators.fit_temperature(logits, labels).temperature)
        probabilities = finecal.probabilities.evaluate_probabilities(logits, torch.arange(90) % 9, mask, 1.0)
        bias = finecal.calibrators.fit_class_bias(logits, torch.arange(90) % 9, mask, shrinkage=1.0).bias
        moments = ClassSums(mask).update(logits, labels).compute()
        scores = [probabilities.all.nll, probabilities.all.brier, probabilities.all.classwise_ece]
        return [*gammas, temperature, *scores, *bias.tolist(), *moments.loc.tolist(), *moments.scale.tolist()]

    found = estimates()
    torch.set_num_threads(1)
    assert found == pytest.approx(estimates(), rel=1e-12)


def test_workers_have_one_thread_each_and_leave_that_of_others_alone(threads):
    def kernel(rows):
        return torch.tensor([torch.get_num_threads()]), torch.tensor([len(rows)])

    counts, rows = workers.map_row_chunks(kernel, torch.zeros(10, 2))
    assert counts.tolist() == [1] * threads
    assert sum(rows.tolist()) == 10
    assert torch.get_num_threads() == threads


def test_rows_stay_in_order(threads):
    rows = torch.arange(22.0).reshape(11, 2)
    (found,) = workers.map_row_chunks(lambda part: (part,), rows)
    assert torch.equal(found, rows)


def test_errors_come_through(threads):
    def fail(rows):
        raise ValueError("no")

    with pytest.raises(ValueError, match="^no$"):
        workers.map_row_chunks(fail, torch.zeros(10, 2))


def test_without_gradients_and_in_inference_mode(threads):
    given = problem()
    with torch.inference_mode():
        found = results(*given)
    assert_same(found, results(*given))

    def kernel(rows):
        return (torch.tensor([torch.is_grad_enabled()]),)

    (enabled,) = workers.map_row_chunks(kernel, torch.zeros(10, 2))
    assert not enabled.any()


def _in_child(queue):
    torch.set_num_threads(2)
    workers._LEAST_ELEMENTS = 1
    queue.put(kernels.group_maxima(*problem()[::2])[0].sum().item())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_starts_workers_of_its_own(threads):
    expected = kernels.group_maxima(*problem()[::2])[0].sum().item()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    try:
        assert queue.get(timeout=60) == expected
    finally:
        child.kill()
        child.join()


def test_small_logits_and_graphs_are_left_alone(threads, monkeypatch):
    monkeypatch.setattr(workers, "_pool", None)
    monkeypatch.setattr(workers, "_LEAST_ELEMENTS", 1000)
    assert_same(results(*problem()), results(*problem()))
