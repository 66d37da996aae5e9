"""Say how long reports take and how large they are; write the one of 50,000 samples and 1,000 classes.

A pass is the time of `logits.amax(1)` on the same logits, in one thread. The first report of a process, of 100 samples
and 10 classes, shows what every report costs.

Needs the extra report: python tests/benchmarks/report_page.py [report.html]
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from performance import problem

import finecal

GAMMA = 2.5
ROUNDS = 5
SHAPES = [(1_000, 10), (100_000, 10), (1_000_000, 10), (1_000, 1000), (25_000, 1000), (50_000, 1000)]


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(samples: int, classes: int) -> tuple[float, float, str]:
    """Return the seconds of a report, those of a pass over its logits, and the report."""
    logits, labels, mask = problem(samples, classes)
    names = [f"class {c}" for c in range(classes)]
    page = finecal.html_report(logits, labels, mask, GAMMA, class_names=names)
    floor = min(seconds(lambda: logits.amax(1)) for _ in range(3 * ROUNDS))
    whole = statistics.median(seconds(lambda: finecal.html_report(logits, labels, mask, GAMMA)) for _ in range(ROUNDS))
    return whole, floor, page


if __name__ == "__main__":
    torch.set_num_threads(1)
    small = problem(100, 10)
    print(f"the first report, 100 x 10: {seconds(lambda: finecal.html_report(*small, GAMMA)):.2f} s")
    fixed, _, page = measured(100, 10)
    for samples, classes in SHAPES:
        whole, floor, page = measured(samples, classes)
        size = len(page.encode()) / 1e6
        print(
            f"{samples:>9,} x {classes:>4}: {whole:.3f} s, {(whole - fixed) / floor:.1f} passes on top, {size:.2f} MB"
        )
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(page, encoding="utf-8")
