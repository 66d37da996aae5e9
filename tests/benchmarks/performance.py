"""Measure every performance target: a ratio of two times taken side by side, in turns, and the median of the rounds.

The floor is one pass over the logits, `logits.amax(1)`, in one thread. See README.md.
"""

import argparse
import fnmatch
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import finecal
from finecal._core.reductions import label_hits
from finecal._core.report import Margins
from finecal._core.results import format_table
from finecal._estimators.search import likelihood_of

ROUNDS = 9
CORES = os.cpu_count() or 1
SEEN_SHIFT, LEAD = 3.0, 4.0
"""Logits as after fine-tuning: the seen classes have outgrown the others, and the label leads."""

Run = Callable[[], object]


class Problem(NamedTuple):
    logits: Tensor
    labels: Tensor
    mask: Tensor


class Target(NamedTuple):
    """One line of the table."""

    name: str
    what: str
    measure: Callable[[], float]
    limit: float
    unit: str = "x"
    at_least: bool = False


def problem(
    samples: int,
    classes: int,
    dtype: torch.dtype = torch.float32,
    *,
    lead: float = LEAD,
    only_seen: bool = False,
) -> Problem:
    generator = torch.Generator().manual_seed(samples * classes)
    logits = torch.empty(samples, classes, dtype=dtype)
    labels = torch.randint(classes, (samples,), generator=generator)
    if only_seen:
        labels -= labels % 2
    mask = torch.arange(classes) % 2 == 0
    for rows, own in zip(torch.split(logits, 1024), torch.split(labels, 1024), strict=True):
        drawn = torch.randn(rows.shape, generator=generator) + SEEN_SHIFT * mask
        rows.copy_(drawn.scatter_add_(1, own.unsqueeze(1), drawn.new_full((len(own), 1), lead)))
    return Problem(logits, labels, mask)


def seconds(run: Run, repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def ratio(slow: Run, fast: Run, rounds: int = ROUNDS, repeats: int = 1) -> float:
    """Return the median of time of the first by time of the second, each round taking both in turns."""
    slow(), fast()
    return statistics.median(seconds(slow, repeats) / seconds(fast, repeats) for _ in range(rounds))


def whole_curve(given: Problem) -> Run:
    def run() -> object:
        curve = finecal.tradeoff_curve(*given)
        return curve.ausuc, curve.best()

    return run


def floor(given: Problem) -> Run:
    return lambda: given.logits.amax(1)


# --- what the targets compare with ------------------------------------------------------------------------------------


def curve_by_thresholds(given: Problem, points: int) -> list[tuple[float, float]]:
    """The authors' algorithm, from its description: score all logits anew for the threshold of each sample."""
    logits, labels, mask = (value.numpy() for value in given)
    is_seen = mask[labels]
    thresholds = np.sort(logits[:, mask].max(1) - logits[:, ~mask].max(1))[:points]
    accuracies = []
    for gamma in thresholds:
        right = (logits + gamma * ~mask).argmax(1) == labels
        accuracies.append((right[is_seen].mean(), right[~is_seen].mean()))
    return accuracies


def grid(given: Problem, points: int) -> list[float]:
    """A grid of gammas, as one would write it."""
    accuracies = []
    for gamma in np.linspace(0, 10, points):
        logits = given.logits.clone()
        logits[:, ~given.mask] += gamma
        accuracies.append(float((logits.argmax(1) == given.labels).double().mean()))
    return accuracies


def by_numpy(given: Problem) -> float:
    """AUSUC as accuracies within the groups times an AUROC, by NumPy and scikit-learn."""
    from sklearn.metrics import roc_auc_score

    logits, labels, mask = (value.numpy() for value in given)
    is_seen = mask[labels]
    seen, absent = np.where(mask, logits, -np.inf), np.where(mask, -np.inf, logits)
    hit = np.where(is_seen, seen.argmax(1), absent.argmax(1)) == labels
    margin = seen.max(1) - absent.max(1)
    return float(hit[is_seen].mean() * hit[~is_seen].mean() * roc_auc_score(is_seen[hit], margin[hit]))


def gap_by_loop(given: Problem) -> float:
    """The average logit gap a sample at a time."""
    logits, labels, mask = (value.numpy() for value in given)
    gaps = []
    for row, label in zip(logits, labels, strict=True):
        others = mask.copy()
        others[label] = False
        gaps.append(row[others].mean() - row[~mask].mean())
    return float(np.mean(gaps))


def temperature_by_lbfgs(given: Problem) -> float:
    log_t = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([log_t], lr=1, max_iter=100, line_search_fn="strong_wolfe", tolerance_change=1e-12)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(given.logits / log_t.exp(), given.labels)
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)
    return float(log_t.detach().exp())


# --- the targets ------------------------------------------------------------------------------------------------------


def seen_only(given: Problem) -> Problem:
    rows = given.mask[given.labels]
    return Problem(given.logits[rows], given.labels[rows], given.mask)


def against_a_sort(samples: int) -> float:
    """Time from margins to AUSUC and the best gamma, against that of NumPy's sort of as many float32 numbers."""
    generator = torch.Generator().manual_seed(0)
    is_seen, hit = (torch.rand(samples, generator=generator) < share for share in (0.5, 0.8))
    margin = torch.randn(samples, generator=generator) * 3 + 4 * is_seen
    given = Margins(margin, is_seen, hit, None)

    def run() -> object:
        curve = given.curve()
        return curve.ausuc, curve.best()

    values = margin.numpy()
    return ratio(run, lambda: np.sort(values), 5)


MEMORY = """
import torch, finecal
generator = torch.Generator().manual_seed(0)
logits, labels = torch.randn({samples}, {classes}, generator=generator), torch.randint({classes}, ({samples},))
mask = torch.arange({classes}) % 2 == 0
small = slice(0, 64)
finecal.tradeoff_curve(logits[small], labels[small], mask).best()

def memory(kind):
    (line,) = (line for line in open("/proc/self/status") if line.startswith(kind))
    return int(line.split()[1])

open("/proc/self/clear_refs", "w").write("5")  # starts the peak anew
before = memory("VmRSS")
finecal.tradeoff_curve(logits, labels, mask).best()
print(memory("VmHWM") - before)
"""


def extra_memory(samples: int, classes: int) -> float:
    """MiB of resident memory at its peak above that of the logits, but for 16 bytes a sample (Linux)."""
    code = MEMORY.format(samples=samples, classes=classes)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(printed.stdout) / 1024 - 16 * samples / 2**20


def on_one_batch(size: int) -> tuple[Run, Run]:
    logits, _, mask = problem(size, 1000)
    calibrator, bias = finecal.AdditiveBias(mask, 1.0), torch.where(mask, 0.0, 1.0)
    return lambda: calibrator(logits), lambda: logits + bias


def microseconds_over(size: int) -> float:
    calibrated, plain = on_one_batch(size)
    return 1e6 * statistics.median(seconds(calibrated, 2000) - seconds(plain, 2000) for _ in range(ROUNDS))


def compiled(run: Run) -> Run:
    def with_kernels() -> object:
        with finecal.logits.compile_kernels():
            return run()

    return with_kernels


def with_two_threads(given: Problem, neighbours: int = 1) -> float:
    """Time with two threads beside busy neighbours, by the time with one."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(neighbours)]
    run = whole_curve(given)

    def with_threads(count: int) -> Run:
        def run_with() -> object:
            torch.set_num_threads(count)
            try:
                return run()
            finally:
                torch.set_num_threads(1)

        return run_with

    try:
        return ratio(with_threads(2), with_threads(1))
    finally:
        for process in busy:
            process.kill()
            process.wait()


def scalars(given: Problem) -> Run:
    return lambda: label_hits(*given)


def likelihood(given: Problem) -> float:
    """Milliseconds for the likeliest gamma from the scalars of 50,000 samples."""
    logits, labels, seen_mask = given
    scan = finecal.Samples(logits, labels).scan(seen_mask)
    found, samples = likelihood_of(scan), scan.margins
    found.best(samples, None)
    return 1e3 * statistics.median(seconds(lambda: found.best(samples, None)) for _ in range(ROUNDS))


def nll_excess(given: Problem) -> float:
    """NLL at the fitted temperature above that of the best one in its neighbourhood."""
    fitted = float(finecal.calibrators.fit_temperature(given.logits, given.labels).temperature)

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(given.logits.double() / temperature, given.labels))

    return nll(fitted) - min(nll(fitted * (1 + step)) for step in (-1e-4, -1e-6, 0, 1e-6, 1e-4))


def targets(usual: Problem) -> list[Target]:
    half = Problem(usual.logits.bfloat16(), usual.labels, usual.mask)
    seen = seen_only(usual)
    small, four = problem(4000, 65), problem(4000, 200)

    def alg() -> object:
        return finecal.estimators.average_logit_gap(*seen)

    def predict() -> object:
        return finecal.predict(usual.logits, usual.mask, 2.0)

    def thresholds(given: Problem) -> float:
        points = 40
        return ratio(lambda: curve_by_thresholds(given, points), whole_curve(given), 5) * len(given.labels) / points

    def wide(samples: int, classes: int) -> float:
        given = problem(samples, classes)
        return ratio(scalars(given), floor(given), 5)

    def few_hits(samples: int, classes: int) -> float:
        """Margins where a quarter of the labels leads, by enough to be a hit."""
        given = problem(samples, classes, lead=0)
        given.logits[torch.arange(0, samples, 4), given.labels[::4]] += 4 * LEAD
        return ratio(lambda: finecal.Samples(*given[:2]).margins(given[2]), floor(given), 5)

    def grown(samples: int, classes: int) -> float:
        given, larger = (
            problem(samples, classes),
            problem(2 * samples, classes),
        )
        wider = problem(samples, 2 * classes)
        return max(ratio(whole_curve(larger), whole_curve(given), 5), ratio(whole_curve(wider), whole_curve(given), 5))

    return [
        Target("P1", "curve, AUSUC, best gamma; 50k x 1000", lambda: ratio(whole_curve(usual), floor(usual)), 3.0),
        Target("P2", "the same with compile_kernels", lambda: ratio(compiled(whole_curve(usual)), floor(usual)), 1.3),
        Target("P3", "speed-up over the authors' curve; 4000 x 65", lambda: thresholds(small), 10_000, at_least=True),
        Target("P3", "the same; 4000 x 200", lambda: thresholds(four), 10_000, at_least=True),
        Target(
            "P4",
            "speed-up over a grid of 1000 gammas; 50k x 1000",
            lambda: ratio(lambda: grid(usual, 2), whole_curve(usual), 3) * 500,
            4000,
            at_least=True,
        ),
        Target(
            "P5",
            "speed-up over NumPy and roc_auc_score",
            lambda: ratio(lambda: by_numpy(usual), whole_curve(usual), 3),
            5,
            at_least=True,
        ),
        Target("P6", "scalars of wide rows; 5k x 21,841", lambda: wide(5000, 21_841), 2.8),
        Target("P6", "the same; 2k x 128,256", lambda: wide(2000, 128_256), 2.8),
        Target("P6", "margins of wide rows with few hits; 2k x 128,256", lambda: few_hits(2000, 128_256), 4.0),
        Target("P7", "curve from 1e6 margins, against np.sort of them", lambda: against_a_sort(10**6), 10),
        Target("P7", "the same; 1e7", lambda: against_a_sort(10**7), 10),
        Target("P8", "extra memory; 50k x 1000", lambda: extra_memory(50_000, 1000), 8, "MiB"),
        Target("P8", "the same; 2k x 128,256", lambda: extra_memory(2000, 128_256), 8, "MiB"),
        Target("P9", "curve of bfloat16, against float32", lambda: ratio(whole_curve(half), whole_curve(usual)), 1.0),
        Target("P10", "ALG with its cost; 25k x 1000", lambda: ratio(alg, floor(seen)), 3.2),
        Target("P10", "the same with compile_kernels", lambda: ratio(compiled(alg), floor(seen)), 3.2),
        Target(
            "P10",
            "speed-up over ALG a sample at a time",
            lambda: ratio(lambda: gap_by_loop(seen), alg, 3),
            1000,
            at_least=True,
        ),
        Target("P11", "predict", lambda: ratio(predict, floor(usual)), 2.5),
        Target("P11", "the same with compile_kernels", lambda: ratio(compiled(predict), floor(usual)), 2.5),
        Target(
            "P12",
            "temperature",
            lambda: ratio(lambda: finecal.calibrators.fit_temperature(*usual[:2]), floor(usual), 3),
            60,
        ),
        Target(
            "P12",
            "speed-up over LBFGS for the temperature",
            lambda: ratio(
                lambda: temperature_by_lbfgs(usual), lambda: finecal.calibrators.fit_temperature(*usual[:2]), 1
            ),
            10,
            at_least=True,
        ),
        Target("P12", "NLL above the best", lambda: nll_excess(usual), 1e-9, "nats"),
        Target("P13", "likeliest gamma from scalars; 50k", lambda: likelihood(usual), 1.0, "ms"),
        Target("P14", "calibrator over x + bias; 1 x 1000", lambda: microseconds_over(1), 3.5, "us"),
        Target("P14", "the same; 256 x 1000", lambda: ratio(*on_one_batch(256), repeats=200), 1.15),
        Target("P15", "two threads beside a busy process, against one", lambda: with_two_threads(usual), 1.5),
        Target("P15", "the same beside as many as there are cores", lambda: with_two_threads(usual, CORES), 1.5),
        Target("P17", "twice the samples, or classes; 10k x 1000", lambda: grown(10_000, 1000), 2.1),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", default="*", metavar="PATTERN", help="such as P1 or 'P1*' (default: all)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for target in targets(problem(50_000, 1000)):
        if not fnmatch.fnmatch(target.name, options.targets):
            continue
        figure = target.measure()
        holds = figure >= target.limit if target.at_least else figure <= target.limit
        limit = f"{'>=' if target.at_least else '<='} {target.limit:g} {target.unit}"
        rows.append(
            [target.name, target.what, f"{figure:.3g} {target.unit}", limit, "holds" if holds else "falls short"]
        )
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    print(format_table(["target", "what", "measured", "wanted", ""], rows))


if __name__ == "__main__":
    main()
