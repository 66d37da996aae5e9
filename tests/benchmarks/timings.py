"""Time what users wait for, in milliseconds, with the memory it takes, beside what one would write otherwise.

Of each call the median of some rounds in one thread, in turns with what it is compared with. A time with "~" was
measured on a part of the samples, of the gammas or of the steps, and multiplied. Linux, 1.5 GB of memory, some minutes.
"""

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from performance import (
    Problem,
    curve_by_thresholds,
    floor,
    gap_by_loop,
    grid,
    problem,
    seconds,
    temperature_by_lbfgs,
    whole_curve,
)

import finecal
from finecal._core.results import format_table
from finecal._core.warning import without_warnings

ROUNDS = 5
SHAPES = ((50_000, 1000), (5_000, 21_841))
HARD = 3.0
"""By how much labels lead on samples that the model was not trained on: it mistakes about half of them."""


class Samples(NamedTuple):
    """Of N training samples: N labelled ones of all classes, N / 5 held-out seen ones and N / 2 unlabelled ones."""

    labelled: Problem
    train: Problem
    held_out: Problem
    unlabelled: torch.Tensor

    @classmethod
    def of(cls, samples: int, classes: int) -> "Samples":
        return cls(
            problem(samples, classes),
            problem(samples, classes, only_seen=True),
            problem(samples // 5, classes, lead=HARD, only_seen=True),
            problem(samples // 2, classes, lead=HARD).logits,
        )


Run = Callable[[], Any]


class Other(NamedTuple):
    """What one would do without finecal, and how many times what was run makes the whole."""

    name: str
    run: Run
    times: float = 1


class Call(NamedTuple):
    """A line of the table."""

    what: str
    run: Run
    other: Other | None = None
    wanted: float = 0.0
    """Passes over the training logits that 50,000 samples of 1000 classes should take; 0 where that is not said."""


def class_bias_by_lbfgs(given: Problem, shrinkage: float = 1.0) -> torch.Tensor:
    """One bias per class at one shrinkage, by PyTorch's optimiser."""
    bias = torch.zeros(given.logits.shape[1], requires_grad=True)
    optimiser = torch.optim.LBFGS([bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(given.logits + bias, given.labels, reduction="sum")
        loss = loss + shrinkage / 2 * bias.square().sum()
        torch.autograd.backward(loss)
        return loss

    optimiser.step(closure)
    return bias.detach()


def argmax_of_sum(given: Problem) -> torch.Tensor:
    return (given.logits + 2.0 * ~given.mask).argmax(1)


def calls(given: Samples) -> list[Call]:
    labelled, (logits, labels, mask) = given.labelled, given.train
    train, held_out = (logits, labels), given.held_out[:2]
    everything = {"train": train, "held_out": held_out, "unlabelled": given.unlabelled}
    half = Problem(*(values[: len(labels) // 2] for values in labelled[:2]), mask)
    n, few = len(labels), max(1, 2_000_000 // len(mask))
    some = Problem(labelled.logits[:few], labelled.labels[:few], mask)
    seen = Problem(logits[:few], labels[:few], mask)

    by_thresholds = Other("the authors' algorithm", lambda: curve_by_thresholds(some, 2), n / few * n / 2)
    on_a_grid = Other("a grid of 1000 gammas", lambda: grid(some, 2), 500 * n / few)
    by_loop = Other("the authors' algorithm", lambda: gap_by_loop(seen), n / few)
    by_lbfgs = Other("PyTorch's LBFGS", lambda: temperature_by_lbfgs(some), n / few)
    bias_by_lbfgs = Other("the same, one shrinkage", lambda: class_bias_by_lbfgs(some), n / 2 / few)
    return [
        Call(
            "`predict`",
            lambda: finecal.predict(labelled.logits, mask, 2.0),
            Other("addition, `argmax`", lambda: argmax_of_sum(labelled)),
        ),
        Call("`tradeoff_curve`", whole_curve(labelled), by_thresholds),
        Call("`search_gamma`", lambda: finecal.search_gamma(*labelled), on_a_grid),
        Call("and 1000 resamplings", lambda: finecal.search_gamma(*labelled, n_bootstrap=1000)),
        Call("`average_logit_gap`", lambda: finecal.estimators.average_logit_gap(*given.train), by_loop),
        Call("`mixed_pair_gap`", lambda: finecal.estimators.mixed_pair_gap(*given.train), wanted=20),
        Call("`residual_gap`", lambda: finecal.estimators.residual_gap(*given.held_out)),
        Call("`estimate_gamma`, training samples", lambda: finecal.estimate_gamma(mask, train=train), wanted=30),
        Call("`estimate_gamma`, all samples", lambda: finecal.estimate_gamma(mask, **everything), wanted=45),
        Call("and 1000 resamplings", lambda: finecal.estimate_gamma(mask, **everything, n_bootstrap=1000), wanted=120),
        Call("`compare_estimators`", lambda: finecal.compare_estimators(mask, **everything), wanted=130),
        Call("`fit_temperature`", lambda: finecal.calibrators.fit_temperature(*labelled[:2]), by_lbfgs, 60),
        Call("`fit_class_bias`, half", lambda: finecal.calibrators.fit_class_bias(*half), bias_by_lbfgs, 150),
        Call("`html_report`, half", lambda: finecal.html_report(*half)),
    ]


class Figures(NamedTuple):
    """Seconds and MiB of a call, and the seconds of what it is compared with."""

    what: str
    seconds: float
    passes: float
    memory: float
    wanted: float = 0.0
    other: str = ""
    other_seconds: float = 0.0


def peak_of(run: Run) -> float:
    """Return the memory at its peak above that before, in MiB."""

    def memory(kind: str) -> int:
        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith(kind))
        return int(line.split()[1])

    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")  # starts the peak anew
    before = memory("VmRSS")
    run()
    return (memory("VmHWM") - before) / 1024


def measured(call: Call, one_pass: Run, rounds: int = ROUNDS) -> Figures:
    """Measure in turns; the first round warms up, and what takes long is not repeated as often."""
    memory = peak_of(call.run)
    found: list[tuple[float, float, float]] = []
    while len(found) < rounds and sum(map(sum, found)) < 20:
        other = 0.0 if call.other is None else seconds(call.other.run)
        found.append((seconds(call.run), seconds(one_pass), other))
    own, floors, other = zip(*found, strict=True)
    passes = statistics.median(a / b for a, b in zip(own, floors, strict=True))
    figures = Figures(call.what, statistics.median(own), passes, memory, call.wanted)
    if call.other is None:
        return figures
    name = call.other.name + (" ~" if call.other.times != 1 else "")
    return figures._replace(other=name, other_seconds=call.other.times * statistics.median(other))


def figures_of(shape: tuple[int, int], pattern: str, rounds: int = ROUNDS) -> list[Figures]:
    given = Samples.of(*shape)
    one_pass = floor(given.train)
    chosen = [call for call in calls(given) if fnmatch.fnmatch(call.what, pattern)]
    with without_warnings():
        return [measured(call, one_pass, rounds) for call in chosen]


def time_of(value: float) -> str:
    """Write a time: milliseconds up to ten seconds, then seconds, minutes and hours."""
    for unit, most, decimals in ((1e-3, 0.01, 1), (1e-3, 10, 0)):
        if value < most:
            return f"{value / unit:,.{decimals}f} ms"
    name, unit = next((name, unit) for name, unit in (("s", 1), ("min", 60), ("h", 3600)) if value < 600 * unit)
    return f"{value / unit:,.0f} {name}"


def times_table(shapes: Sequence[tuple[int, int]], found: Sequence[Sequence[Figures]]) -> str:
    sizes = [f"{samples:,} x {classes:,}" for samples, classes in shapes]
    rows = []
    for line in zip(*found, strict=True):
        others = [time_of(of.other_seconds) if of.other else "" for of in line]
        rows.append([line[0].what, *(time_of(of.seconds) for of in line), line[0].other, *others])
    return format_table(["what", *sizes, "otherwise", *sizes], rows)


def passes_table(shapes: Sequence[tuple[int, int]], found: Sequence[Sequence[Figures]]) -> str:
    header = ["what"]
    for samples, classes in shapes:
        header += [f"{samples:,} x {classes:,}", "MiB"]
    rows = []
    for line in zip(*found, strict=True):
        row = [line[0].what]
        for of in line:
            row += [f"{of.passes:.1f}", f"{of.memory:.0f}"]
        rows.append([*row, f"{line[0].wanted:g}" if line[0].wanted else ""])
    return format_table([*header, "wanted"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="*", metavar="PATTERN", help="lines such as '*estimate_gamma*'")
    parser.add_argument("--shape", type=int, nargs=2, action="append", metavar=("SAMPLES", "CLASSES"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--passes",
        action="store_true",
        help="print times by that of logits.amax(1) on the training logits, and the memory at its peak",
    )
    parser.add_argument("--compiled", action="store_true", help="with finecal.logits.compile_kernels()")
    parser.add_argument("--json", action="store_true", help="figures of one shape in this process, for the tables")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    finecal.logits.compile_kernels(options.compiled)
    shapes = [(samples, classes) for samples, classes in options.shape or SHAPES]
    if options.json:
        print(json.dumps([figures._asdict() for figures in figures_of(shapes[0], options.only, options.rounds)]))
        return
    found = []
    for samples, classes in shapes:  # each in a process of its own, whose memory is its own
        command = [sys.executable, __file__, "--json", "--only", options.only, "--rounds", str(options.rounds)]
        command += ["--shape", str(samples), str(classes), "--threads", str(options.threads)]
        command += ["--compiled"] if options.compiled else []
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        found.append([Figures(**figures) for figures in json.loads(printed)])
    print((passes_table if options.passes else times_table)(shapes, found))


if __name__ == "__main__":
    main()
